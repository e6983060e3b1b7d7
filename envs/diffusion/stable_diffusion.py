"""Text-to-image: the denoising chain of a latent diffusion pipeline of diffusers, Stable Diffusion
above all.

States are latents. The pre-trained model is the pipeline with its guidance, ``eps = eps_u + w
(eps_c - eps_u)``, and the KL is exact in latent space. The reward sees decoded images and their
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapters import Checkpointing
from .diffusers_chain import (
    DiffusersChain,
    ImageReward,
    check_no_classes,
    native_size,
    preserved,
)
from .latent_digits import CHECKPOINT as LATENT_DIGITS
from .loading import as_dtype, check_folder, load_pipeline


class StableDiffusion(DiffusersChain):
    """The chain of a text-to-image pipeline: a UNet2DConditionModel, an autoencoder and embedded
    prompts.

    With one prompt a state is a latent ``(C, H, W)``. With several, one more channel lies beneath
    the latents, constant over the plane: the number of the state's prompt, drawn by ``initial`` and
    carried along: ``(C + 1, H, W)``. Noise and control are ``(C, H, W)`` in both cases.

    Args:
        pipeline: a diffusers pipeline with ``unet``, ``vae``, ``scheduler`` and ``encode_prompt``.
            Its networks are frozen and used, not copied.
        prompts: one prompt, or several.
        reward: ``(images (n, 3, H, W) in 0..1, prompts) -> (n,)`` with a flag ``differentiable``.
        temperature: price of one nat of KL.
        steps: number of denoising steps, the horizon.
        guidance_scale: w, at least 1; 1 is no guidance. A network with ``time_cond_proj_dim`` is
            told w, and asked once.
        scheduler: ``ddim`` or ``ddpm``, with the tables of the pipeline's own scheduler.
        eta: of DDIM, above 0 and at most 1.
        variance: of DDPM: ``fixed_small`` or ``fixed_large``.
        negative_prompt: what guidance leads away from.
        resolution: side of the image in pixels; the model's own if absent.
        batch_size: images that a network is given at once (twice as many rows with guidance).
        gradient_checkpointing: compute activations of UNet and decoder again in the backward pass
            instead of keeping them.
    """

    lora_reader = "StableDiffusionPipeline", "unet"

    def __init__(
        self,
        pipeline: Any,
        prompts: str | Sequence[str],
        reward: ImageReward,
        temperature: float = 0.01,
        steps: int = 50,
        guidance_scale: float = 7.5,
        scheduler: str = "ddim",
        eta: float = 1.0,
        variance: str | None = None,
        negative_prompt: str = "",
        resolution: int | None = None,
        batch_size: int = 16,
        gradient_checkpointing: bool = False,
    ) -> None:
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts must be one string or several; got {prompts!r}")
        if (
            isinstance(guidance_scale, bool)
            or not isinstance(guidance_scale, (int, float))
            or not guidance_scale >= 1
        ):
            raise ValueError(f"guidance_scale must be at least 1; got {guidance_scale!r}")
        unet: Any = getattr(pipeline, "unet", None)
        vae: Any = getattr(pipeline, "vae", None)
        if (
            type(unet).__name__ != "UNet2DConditionModel"
            or vae is None
            or unet.config.addition_embed_type is not None
        ):
            raise ValueError(
                "pipeline must be one of latents with a UNet2DConditionModel that takes the prompt"
                f" alone, such as StableDiffusionPipeline; got {type(pipeline).__name__}"
            )
        check_no_classes(pipeline, unet)
        if unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"pipeline must denoise plain latents; got a UNet of {unet.config.in_channels}"
                " input channels"
            )
        shape = (unet.config.in_channels, *_latent_size(unet, vae, resolution))
        super().__init__(
            unet,
            preserved(pipeline, steps, scheduler, eta, variance),
            shape,
            reward,
            temperature,
            pipeline.scheduler.config.get("prediction_type", "epsilon"),
            batch_size,
            gradient_checkpointing,
        )
        self.prompts, self.guidance_scale = prompts, float(guidance_scale)
        self.vae = vae.requires_grad_(False).eval()
        if gradient_checkpointing:
            Checkpointing(vae)
        with torch.no_grad():
            given, empty = pipeline.encode_prompt(
                list(prompts),
                pipeline.device,
                1,
                True,
                negative_prompt=[negative_prompt] * len(prompts),
            )
        self._embeddings, self._unprompted = given.detach(), empty[:1].detach()
        size = unet.config.time_cond_proj_dim
        self._told_guidance = (  # distilled networks are told the guidance instead
            None
            if size is None
            else pipeline.get_guidance_scale_embedding(
                torch.tensor([guidance_scale - 1.0]), embedding_dim=size
            ).to(given)
        )
        if len(prompts) > 1:
            self.state_shape = (shape[0] + 1, *shape[1:])

    def latents(self, x: Tensor) -> Tensor:
        """The latents of states, ``(n, C, H, W)``."""
        return x[:, : self.noise_shape[0]]

    def with_latents(self, x: Tensor, latents: Tensor) -> Tensor:
        """States with the prompts of ``x`` and other latents."""
        return latents if len(self.prompts) == 1 else torch.cat([latents, x[:, -1:]], 1)

    def prompt_index(self, x: Tensor) -> Tensor:
        """The number of each state's prompt, ``(n,)``."""
        if len(self.prompts) == 1:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        return x[:, -1, 0, 0].round().long().clamp(0, len(self.prompts) - 1)

    def prompts_of(self, x: Tensor) -> list[str]:
        """The prompt of each state."""
        return [self.prompts[i] for i in self.prompt_index(x).tolist()]

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents and, if there are several, a prompt for each."""
        device, dtype = generator.device, self._control_slope.dtype
        x = torch.randn(n, *self.noise_shape, generator=generator, device=device, dtype=dtype)
        if len(self.prompts) == 1:
            return x
        prompt = torch.randint(len(self.prompts), (n, 1, 1, 1), generator=generator, device=device)
        return torch.cat([x, prompt.to(dtype).expand(n, 1, *x.shape[2:])], 1)

    def _output(self, timesteps: Tensor, latents: Tensor, x: Tensor) -> Tensor:
        dtype = self.unet.conv_in.weight.dtype
        given = self._embeddings[self.prompt_index(x)].to(dtype)
        latents = latents.to(dtype)
        if self._told_guidance is not None:
            told = self._told_guidance.to(dtype).expand(len(x), -1)
            return self.unet(latents, timesteps, given, timestep_cond=told).sample
        if self.guidance_scale == 1.0:
            return self.unet(latents, timesteps, given).sample
        text = torch.cat([self._unprompted.to(dtype).expand_as(given), given])
        both = self.unet(torch.cat([latents, latents]), timesteps.repeat(2), text).sample
        without, with_ = both.to(x.dtype).chunk(2)
        return without + self.guidance_scale * (with_ - without)

    def decode(self, x: Tensor) -> Tensor:
        """Images ``(n, 3, H, W)`` in 0..1; gradients flow."""
        dtype, config = next(self.vae.parameters()).dtype, self.vae.config
        z = self.latents(x) / config.scaling_factor + (config.get("shift_factor") or 0.0)
        images = torch.cat(
            [self.vae.decode(part.to(dtype)).sample for part in z.split(self.batch_size)]
        )
        return (images.to(x.dtype) / 2 + 0.5).clamp(0, 1)


def _latent_size(unet: Any, vae: Any, resolution: int | None) -> tuple[int, int]:
    if resolution is None:
        return native_size(unet)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    least = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if (
        isinstance(resolution, bool)
        or not isinstance(resolution, int)
        or resolution < least
        or resolution % least
    ):
        raise ValueError(f"resolution must be a multiple of {least} pixels; got {resolution!r}")
    return resolution // factor, resolution // factor


def stable_diffusion(
    *,
    model: str | Path | Any = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    prompts: str | Sequence[str] = "A green colored rabbit",
    reward: str | ImageReward = "image-reward",
    reward_kwargs: dict[str, Any] | None = None,
    temperature: float = 0.01,
    steps: int = 50,
    guidance_scale: float = 7.5,
    scheduler: str = "ddim",
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    variant: str | None = None,
    **kwargs: Any,
) -> StableDiffusion:
    """``girsanov/StableDiffusion-v0``: a text-to-image pipeline, rewarded on its images. Needs
    ``girsanov[sd]``.

    Args:
        model: a local diffusers folder, a name on the Hugging Face hub, a pipeline (whose networks
            are frozen and used), or ``latent-digits``, the small model that comes with the package.
        prompts: one prompt, or several.
        reward: a callable ``(images (n, 3, H, W) in 0..1, prompts) -> (n,)`` with a flag
            ``differentiable``, or the name of one in ``image_rewards``.
        reward_kwargs: arguments of a reward that is named.
        temperature: price of one nat of KL.
        steps: number of denoising steps.
        guidance_scale: at least 1; 1 is no guidance.
        scheduler: ``ddim`` or ``ddpm``.
        dtype: of UNet and autoencoder: ``float32``, ``bfloat16``, ``float16``; states and tables
            are never below float32.
        revision: of the model on the hub.
        variant: of the weights' files, such as ``fp16``.
        **kwargs: further arguments of ``StableDiffusion``.

    Raises:
        ValueError: packages, the model or the reward's weights are missing (before anything long
            starts), or a bad argument.
    """
    network = as_dtype(dtype)
    model = LATENT_DIGITS if isinstance(model, str) and model == "latent-digits" else model
    check_folder(model)
    if isinstance(reward, str):
        from ..rewards.images import make_reward

        reward = make_reward(reward, **(reward_kwargs or {}))
    pipeline = load_pipeline(
        "StableDiffusionPipeline",
        model,
        network,
        revision=revision,
        variant=variant,
        safety_checker=None,
    )
    try:
        return StableDiffusion(
            pipeline, prompts, reward, temperature, steps, guidance_scale, scheduler, **kwargs
        )
    except TypeError as error:
        raise ValueError(
            f"arguments must be StableDiffusion's; got {sorted(kwargs)} ({error})"
        ) from error
