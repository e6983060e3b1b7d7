"""ImageReward (Xu et al. 2023, arXiv:2304.05977) on transformers' BLIP: how well an image fits its
prompt, to human eyes.

A ViT-L/16 reads the image, BERT reads the prompt and attends to the image in every layer, linear
layers score its first token: ``(score - 0.16717) / 1.03334``. The published checkpoint loads with
its keys renamed (``renamed``), nothing missing.

How it was checked: its test holds a second implementation of the original architecture, under
the original's names, in plain torch. With random weights saved by the one and loaded by the other
the scores agree to 1e-6, and so do their gradients by the pixels; and the names of a full-size
checkpoint are exactly those that are taken here. The published weights (1.79 GB) themselves have
not been tried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from .weights import ScoreHead, Source, fill, frozen, locate, pixels, read_state

WEIGHTS = Source.hub("THUDM/ImageReward", "ImageReward.pt")
VOCABULARY = Source.hub("bert-base-uncased", "vocab.txt")
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of the scores of the authors' images
_LENGTH = 35  # tokens of a prompt


@dataclass(frozen=True)
class Architecture:
    """Sizes; the defaults are the published model's."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 30524  # BERT's 30,522 and two that BLIP adds
    positions: int = 512

    @classmethod
    def of(cls, state: Mapping[str, Tensor], head_size: int = 64) -> Architecture:
        """Read off a checkpoint in the original's names; only the size of an attention head cannot
        be.
        """
        vision, text = "blip.visual_encoder", "blip.text_encoder"
        try:
            _, places, vision_width = state[f"{vision}.pos_embed"].shape
            patch_size = state[f"{vision}.patch_embed.proj.weight"].shape[-1]
            vocabulary, text_width = state[f"{text}.embeddings.word_embeddings.weight"].shape
            positions = len(state[f"{text}.embeddings.position_embeddings.weight"])
        except KeyError as error:
            raise ValueError(
                f"weights must be an ImageReward checkpoint; it has no {error}"
            ) from error
        return cls(
            image_size=patch_size * round((places - 1) ** 0.5),
            patch_size=patch_size,
            vision_width=vision_width,
            vision_layers=_count(state, rf"{vision}\.blocks\.(\d+)\."),
            vision_heads=max(1, vision_width // head_size),
            text_width=text_width,
            text_layers=_count(state, rf"{text}\.encoder\.layer\.(\d+)\."),
            text_heads=max(1, text_width // head_size),
            vocabulary=vocabulary,
            positions=positions,
        )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for match in (re.match(pattern, key) for key in state) if match})


_RENAMES = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.",
        r"vision.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.",
        r"vision.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.", "head."),
)
#: In the checkpoint, but without a part in the score: projections of BLIP's contrastive loss, and a
#: table of 0, 1, 2, ...
_UNUSED = re.compile(
    r"^blip\.(vision_proj|text_proj)\.|^blip\.text_encoder\.embeddings\.position_ids$"
)


def renamed(key: str) -> str | None:
    """The name here of a tensor of the original; None for those without a part in the score; itself
    where it is unknown.
    """
    if _UNUSED.match(key):
        return None
    for pattern, name in _RENAMES:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    return key


class ImageReward(nn.Module):
    """The score of images for their prompts; weights as they come from the random initialisation
    (see ``load_image_reward``).

    Args:
        vocabulary: BERT's word pieces, a file with one a line or a mapping to their numbers; two of
            BLIP's are added.
        architecture: sizes.
    """

    differentiable: ClassVar[bool] = True
    vision: Any  # transformers' models, which are typed loosely
    text: Any

    def __init__(
        self,
        vocabulary: str | os.PathLike[str] | dict[str, int],
        architecture: Architecture | None = None,
    ) -> None:
        super().__init__()
        sizes = Architecture() if architecture is None else architecture
        self.tokenizer = _tokenizer(vocabulary, sizes)
        vision = BlipVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=4 * sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            layer_norm_eps=1e-6,
            initializer_range=0.02,
        )
        text = BlipTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.text_width,
            encoder_hidden_size=sizes.vision_width,
            intermediate_size=4 * sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=sizes.positions,
            layer_norm_eps=1e-12,
            # builds the layers that attend to the image; it is called as an encoder
            is_decoder=True,
        )
        self.image_size = sizes.image_size
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = ScoreHead(sizes.text_width)
        frozen(self)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See PromptedReward."""
        weight = next(self.head.parameters())
        seen = self.vision(pixel_values=pixels(images, self.image_size, weight)).last_hidden_state
        pieces = self.tokenizer.encode_batch(list(prompts))
        ids = torch.tensor([piece.ids for piece in pieces], device=weight.device)
        mask = torch.tensor([piece.attention_mask for piece in pieces], device=weight.device)
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False
        )
        return (self.head(read.last_hidden_state[:, 0]).float() - _MEAN) / _STD


def _tokenizer(
    vocabulary: str | os.PathLike[str] | dict[str, int], sizes: Architecture
) -> BertWordPieceTokenizer:
    pieces = vocabulary if isinstance(vocabulary, dict) else os.fspath(vocabulary)
    tokenizer = BertWordPieceTokenizer(pieces, lowercase=True)
    tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
    if tokenizer.get_vocab_size() != sizes.vocabulary:
        raise ValueError(
            f"vocabulary must hold {sizes.vocabulary - 2:,} word pieces, those that the weights"
            f" were trained with; got {tokenizer.get_vocab_size() - 2:,}"
        )
    tokenizer.enable_truncation(_LENGTH)
    tokenizer.enable_padding(length=_LENGTH)
    return tokenizer


def load_image_reward(
    weights: str | os.PathLike[str] | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    head_size: int = 64,
) -> ImageReward:
    """ImageReward with the weights of a checkpoint in the original's names.

    Args:
        weights: ``ImageReward.pt`` (or the same as safetensors), or a folder that holds it.
        vocabulary: ``vocab.txt`` of bert-base-uncased, or a folder that holds it.
        head_size: width of an attention head; 64 in the published model.

    Absent ones are looked for in ``$GIRSANOV_WEIGHTS`` and in the Hub's cache.

    Raises:
        ValueError: a file that is missing, corrupt, or another model's.
    """
    words, path = locate("vocabulary", vocabulary, VOCABULARY), locate("weights", weights, WEIGHTS)
    state = read_state(path)
    model = ImageReward(words, Architecture.of(state, head_size))
    fill(
        model,
        {name: value for key, value in state.items() if (name := renamed(key)) is not None},
        path,
    )
    return model
