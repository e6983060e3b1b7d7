"""Stable Diffusion 3 and 3.5: a rectified flow, a multimodal transformer, up to three encoders."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .family import Conditions, FlowFamily, Size


class StableDiffusion3Family(FlowFamily):
    """Conditions are the prompt's tokens and its pooled embedding."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        # positions are cut out of a square of so many patches
        self.most = self.network_of(pipeline).config.pos_embed_max_size * self.patch

    def encode(
        self,
        pipeline: Any,
        prompts: list[str],
        negative: str | None,
        guidance_scale: float,
        size: Size,
        **options: Any,
    ) -> Conditions:
        """See Family."""
        guided = guidance_scale > 1
        words, no_words, pooled, no_pooled = pipeline.encode_prompt(
            prompts,
            **{"prompt_2": None, "prompt_3": None, **options},
            device=pipeline.device,
            do_classifier_free_guidance=guided,
            negative_prompt=None if negative is None else [negative] * len(prompts),
        )
        return Conditions((words, pooled), (no_words[:1], no_pooled[:1]) if guided else None)

    def call(
        self, network: Any, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """See Family."""
        words, pooled = conditions
        return network(latents, words, pooled, times).sample
