"""PixArt and DiT: transformers that predict noise, and often its variance, which goes unread."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .family import Conditions, PreservedFamily, Size


class PixArtFamily(PreservedFamily):
    """PixArt alpha; conditions are the prompt's tokens, which of them count and, for a network of
    1024 pixels, the image's size and aspect.
    """

    tells_size: ClassVar[bool] = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        # the pipeline's own test
        self.told_size = self.tells_size and self.network_of(pipeline).config.sample_size == 128

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
        words, mask, no_words, no_mask = pipeline.encode_prompt(
            prompts,
            guided,
            negative_prompt=negative or "",
            device=pipeline.device,
            **{"clean_caption": True, **options},
        )
        height, width = (side * self.pixels for side in size)
        seen: tuple[Tensor, ...] = ()
        if self.told_size:
            seen = words.new_tensor([[height, width]]), words.new_tensor([[height / width]])
        given = (words, mask, *(t.expand(len(prompts), -1) for t in seen))
        return Conditions(given, (no_words[:1], no_mask[:1], *seen) if guided else None)

    def call(
        self, network: Any, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """See Family."""
        words, mask, *seen = conditions
        shape, aspect = seen if self.told_size else (None, None)
        return network(
            latents,
            words,
            timestep=times,
            encoder_attention_mask=mask,
            added_cond_kwargs={"resolution": shape, "aspect_ratio": aspect},
        ).sample


class PixArtSigmaFamily(PixArtFamily):
    """PixArt sigma, which is told no size."""

    tells_size: ClassVar[bool] = False


class DiTFamily(PreservedFamily):
    """Class-conditional DiT (Peebles and Xie 2023): a prompt is a class, by its name in the
    pipeline's ``labels`` or by its number, such as ``"207"``.
    """

    takes_negative: ClassVar[bool] = False

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
        classes = self.network_of(pipeline).config.num_embeds_ada_norm
        numbers = [
            int(prompt) if prompt.isdecimal() else pipeline.labels.get(prompt, -1)
            for prompt in prompts
        ]
        for prompt, number in zip(prompts, numbers, strict=True):
            if not 0 <= number < classes:
                raise ValueError(
                    "prompts must be classes of the pipeline, by their names in its labels or by"
                    f" their numbers below {classes}; got {prompt!r}"
                )
        given = torch.tensor([*numbers, classes], device=pipeline.device)
        return Conditions((given[:-1],), (given[-1:],) if guidance_scale > 1 else None)

    def call(
        self, network: Any, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """See Family."""
        return network(latents, times, conditions[0]).sample
