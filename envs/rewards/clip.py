"""Rewards on CLIP's embeddings: CLIP score, PickScore and the LAION aesthetic predictor.

Models come from a local folder (``save_pretrained``'s) or from the Hub's cache, by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from .weights import FOLDER, ScoreHead, Source, fill, frozen, locate, pixels, read_state


def pretrained(kind: Any, argument: str, name: str | os.PathLike[str]) -> Any:
    """``kind.from_pretrained`` of a folder, of the last part of ``name`` in ``$GIRSANOV_WEIGHTS``,
    or from the Hub's cache.
    """
    folder = os.environ.get(FOLDER)
    place = Path(folder) / Path(name).name if folder else None
    where = name if os.path.isdir(name) or place is None or not place.is_dir() else place
    try:
        return kind.from_pretrained(os.fspath(where), local_files_only=True)
    except (
        OSError,
        ValueError,
    ) as error:  # the Hub's client raises either where a name is not a repository's
        raise ValueError(
            f"{argument} must be a folder that {kind.__name__} can read, or a model in the Hub's"
            f" cache; got {os.fspath(name)!r}: {str(error).splitlines()[0]} Obtain it by `hf"
            f" download {Path(name).as_posix()}`, or put its folder into the one that ${FOLDER}"
            f" names ({folder!r})"
        ) from error


class ClipScore(nn.Module):
    """100 times the cosine between image and prompt in CLIP's space (not cut off at zero, so that
    gradients survive).

    Args:
        weights: folder or name of a ``CLIPModel``, or the model.
        tokenizer: folder or name of its tokenizer, where that lies elsewhere.
    """

    differentiable: ClassVar[bool] = True
    whole: ClassVar[bool] = False  # of an image that is no square the middle is seen
    model: Any

    def __init__(
        self,
        weights: str | os.PathLike[str] | CLIPModel = "openai/clip-vit-large-patch14",
        tokenizer: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        model: Any = weights
        if not isinstance(weights, CLIPModel):
            model = pretrained(CLIPModel, "weights", weights)
        place: Any = tokenizer or weights
        name = "weights" if tokenizer is None else "tokenizer"
        self.tokenizer = pretrained(CLIPTokenizer, name, place)
        self.model = model
        frozen(self)

    @property
    def scale(self) -> Tensor:
        """What the cosine is multiplied by, a scalar."""
        return self.model.logit_scale.new_tensor(100.0)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See PromptedReward."""
        texts = list(dict.fromkeys(prompts))
        most = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(
            texts, padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        like = self.model.visual_projection.weight
        found = self.model(
            input_ids=words["input_ids"].to(like.device),
            attention_mask=words["attention_mask"].to(like.device),
            pixel_values=pixels(
                images, self.model.config.vision_config.image_size, like, whole=self.whole
            ),
        )
        prompt = found.text_embeds[[texts.index(text) for text in prompts]]
        return (self.scale * (found.image_embeds * prompt).sum(1)).float()


class PickScore(ClipScore):
    """The preference model of Kirstain et al. (2023, arXiv:2305.01569): the cosine times the
    model's own scale.

    Args:
        weights: folder or name of the fine-tuned ``CLIPModel``.
        tokenizer: folder or name of its tokenizer; the published weights take that of the model
            they grew from.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] = "yuvalkirstain/PickScore_v1",
        tokenizer: str | os.PathLike[str] | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ) -> None:
        super().__init__(weights, tokenizer)

    @property
    def scale(self) -> Tensor:
        """See ClipScore."""
        return self.model.logit_scale.exp()


class Aesthetic(nn.Module):
    """LAION's improved aesthetic predictor, about 1 to 10: linear layers on the normalised image
    embedding; no prompt.

    Args:
        weights: the predictor's file, or a folder that holds it.
        clip: folder or name of the CLIP model whose embeddings it was fitted to.
    """

    differentiable: ClassVar[bool] = True
    source: ClassVar[Source] = Source(
        "sac+logos+ava1-l14-linearMSE.pth",
        "",
        "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    )
    vision: Any
    projection: Any

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] = "openai/clip-vit-large-patch14",
    ) -> None:
        super().__init__()
        path = locate("weights", weights, self.source)
        whole = pretrained(CLIPModel, "clip", clip)
        self.size = whole.config.vision_config.image_size
        self.vision, self.projection = (
            whole.vision_model,
            whole.visual_projection,
        )  # the text's half is let go
        self.head = ScoreHead(self.projection.out_features)
        fill(self.head, read_state(path), path)
        frozen(self)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See PromptedReward."""
        seen = pixels(images, self.size, self.projection.weight)
        embedding = self.projection(self.vision(pixel_values=seen).pooler_output)
        return self.head(F.normalize(embedding, dim=1)).float()
