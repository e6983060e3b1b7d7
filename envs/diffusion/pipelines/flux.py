"""Flux: a rectified flow of 2x2 patches of latents, whose transformer is told its guidance."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import Conditions, FlowFamily, Size


class FluxFamily(FlowFamily):
    """Conditions are the prompt's tokens, its pooled embedding and, for a network with
    ``guidance_embeds``, the guidance; one without ignores it.
    """

    takes_negative: ClassVar[bool] = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.told_guidance = True
        self.embeds_guidance = bool(self.network_of(pipeline).config.guidance_embeds)

    def _channels(self, network: Any) -> int:
        return network.config.in_channels // 4

    def _patch(self, network: Any) -> int:
        return 2

    def native(self, pipeline: Any) -> int:
        """See Family; 1024 pixels."""
        return pipeline.default_sample_size

    def sigmas(self, steps: int) -> list[float] | None:
        """See FlowFamily."""
        return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()

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
        words, pooled, _ = pipeline.encode_prompt(
            prompts, **{"prompt_2": None, **options}, device=pipeline.device
        )
        told = (words.new_full((len(prompts),), guidance_scale),) if self.embeds_guidance else ()
        return Conditions((words, pooled, *told), None)

    def call(
        self, network: Any, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """See Family."""
        words, pooled, *told = conditions
        patches = F.pixel_unshuffle(latents, 2)
        height, width = patches.shape[-2:]
        rows, columns = (torch.arange(n, device=latents.device) for n in (height, width))
        places = torch.cartesian_prod(rows[:1], rows, columns).to(latents)
        output = network(
            hidden_states=patches.flatten(2).mT,
            timestep=times / 1000,
            guidance=told[0] if told else None,
            pooled_projections=pooled,
            encoder_hidden_states=words,
            txt_ids=latents.new_zeros(words.shape[1], 3),
            img_ids=places,
        ).sample
        return F.pixel_shuffle(output.mT.unflatten(2, (height, width)), 2)
