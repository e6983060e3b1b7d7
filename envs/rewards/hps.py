"""HPSv2 (Wu et al. 2023, arXiv:2306.09341): human preference as the cosine between image and prompt
in a fine-tuned CLIP of LAION's.

Its weights are published in open_clip's layout; here they are put into transformers' ``CLIPModel``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from .clip import ClipScore, pretrained
from .weights import Source, fill, frozen, locate, read_state

#: Names that differ: open_clip's, as patterns, and transformers'. Those of a block are below both
#: towers.
_TOWERS = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.weight$", "vision_model.embeddings.patch_embedding.weight"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
_TURNED = ("visual.proj", "text_projection")  # what open_clip multiplies by from the right
_JOINT = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")  # of query, key and value together


def renamed(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an open_clip model under the names that transformers gives them."""
    for name, tensor in state.items():
        place = name
        for pattern, ours in _TOWERS:
            place = re.sub(pattern, ours, place)
        joint = _JOINT.fullmatch(place)
        if joint is not None:
            for part, share in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                yield f"{joint[1]}.self_attn.{part}_proj.{joint[2]}", share
        elif name != "attn_mask":  # which is no weight
            yield place, tensor.T.contiguous() if name in _TURNED else tensor


class HPSv2(ClipScore):
    """The cosine itself, about 0.2 to 0.35; version 2.1 of the weights if both are there.

    Args:
        weights: the published file, or a folder that holds it.
        clip: folder or name of the CLIP that it grew from: its sizes and its tokenizer; of its
            weights none are read.
    """

    source: ClassVar[Source] = Source.hub("xswu/HPSv2", "HPS_v2.1_compressed.pt")
    whole: ClassVar[bool] = True  # images are shown whole, on black

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ) -> None:
        path = locate("weights", weights, self.source)
        config: Any = pretrained(CLIPConfig, "clip", clip)
        super().__init__(CLIPModel(config), clip)
        state = dict(renamed(read_state(path, "state_dict")))
        fill(self.model, state, path)
        frozen(self)

    @property
    def scale(self) -> Tensor:
        """See ClipScore."""
        return self.model.logit_scale.new_ones(())
