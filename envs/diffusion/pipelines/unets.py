"""Stable Diffusion 1, 2 and XL and their distillations: UNets with cross-attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .family import Conditions, PreservedFamily, Size, in_float32


class StableDiffusionFamily(PreservedFamily):
    """Stable Diffusion 1 and 2: the prompt's tokens are all that the UNet is told.

    Conditions are the tokens and, for a network with ``time_cond_proj_dim``, its guidance.
    """

    part: ClassVar[str] = "unet"
    addition: ClassVar[str | None] = None  # the UNet's ``addition_embed_type``

    def __init__(self, pipeline: Any) -> None:
        config = self.network_of(pipeline).config
        if config.addition_embed_type != self.addition or config.encoder_hid_dim_type is not None:
            raise ValueError(
                f"pipeline must take prompts alone; the UNet of {type(pipeline).__name__} has"
                f" addition_embed_type={config.addition_embed_type!r} and"
                f" encoder_hid_dim_type={config.encoder_hid_dim_type!r}"
            )
        super().__init__(pipeline)
        self.told_guidance = config.time_cond_proj_dim is not None

    def _patch(self, network: Any) -> int:
        return 2 ** (len(network.config.block_out_channels) - 1)

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
        guided = guidance_scale > 1 and not self.told_guidance
        with_, without = self._words(pipeline, prompts, negative, guided, size, options)
        if self.told_guidance:
            with_ = *with_, self._guidance(pipeline, guidance_scale).to(with_[0])
        given = tuple(t.expand(len(prompts), *t.shape[1:]) for t in with_)
        return Conditions(given, tuple(t[:1] for t in without) if guided else None)

    def _words(
        self,
        pipeline: Any,
        prompts: list[str],
        negative: str | None,
        guided: bool,
        size: Size,
        options: dict[str, Any],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Conditions with the prompts, and with what guidance leads away from."""
        several = None if negative is None else [negative] * len(prompts)
        with_, without = pipeline.encode_prompt(
            prompts, pipeline.device, 1, guided, negative_prompt=several, **options
        )
        return (with_,), (without,)

    def _guidance(self, pipeline: Any, guidance_scale: float) -> Tensor:
        scale = torch.tensor([guidance_scale - 1.0])
        dim = self.network_of(pipeline).config.time_cond_proj_dim
        return pipeline.get_guidance_scale_embedding(scale, embedding_dim=dim)

    def call(
        self, network: Any, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """See Family."""
        words, *more = conditions
        told = more.pop() if self.told_guidance else None
        added = {"text_embeds": more[0], "time_ids": more[1]} if more else None
        return network(latents, times, words, timestep_cond=told, added_cond_kwargs=added).sample


class LatentConsistencyFamily(StableDiffusionFamily):
    """Latent consistency models (Luo et al. 2023), which are told their guidance."""

    takes_negative: ClassVar[bool] = False


class StableDiffusionXLFamily(StableDiffusionFamily):
    """Stable Diffusion XL: the UNet is also told the pooled prompt and, as six numbers, the image's
    size and crop.
    """

    addition: ClassVar[str | None] = "text_time"

    def vae_of(self, pipeline: Any) -> Any:
        """See Family."""
        return in_float32(super().vae_of(pipeline))

    def _words(
        self,
        pipeline: Any,
        prompts: list[str],
        negative: str | None,
        guided: bool,
        size: Size,
        options: dict[str, Any],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        several = None if negative is None else [negative] * len(prompts)
        words, no_words, pooled, no_pooled = pipeline.encode_prompt(
            prompts,
            device=pipeline.device,
            do_classifier_free_guidance=guided,
            negative_prompt=several,
            **options,
        )
        height, width = (side * self.pixels for side in size)
        seen = torch.tensor([[height, width, 0, 0, height, width]]).to(words)
        return (words, pooled, seen), (no_words, no_pooled, seen)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """See Family."""
        mean, std = (vae.config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            shape, scale = (1, -1, 1, 1), vae.config.scaling_factor
            # so that dividing by the scale undoes the scale alone
            latents = latents * latents.new_tensor(std).view(shape)
            latents = latents + scale * latents.new_tensor(mean).view(shape)
        return super().decode(vae, latents)
