"""The denoising chain of a pipeline that draws what a prompt says.

States are latents. The pre-trained model is the pipeline with its guidance, ``y = y_u + w (y_c -
y_u)`` of what its network predicts, and the KL is exact in latent space. The reward sees decoded
images and their prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters import Checkpointing
from ..diffusers_chain import DiffusersChain, ImageReward
from .family import Sampling
from .registry import FAMILIES, known_class


class PromptedDiffusion(DiffusersChain):
    """The chain of a pipeline in ``registry.FAMILIES``: Stable Diffusion 1, 2, XL and 3, Flux,
    PixArt, latent consistency models, and DiT, whose prompts are classes.

    With one prompt a state is a latent ``(C, H, W)``. With several, one more channel lies beneath
    the latents, constant over the plane: the number of the state's prompt, drawn by ``initial`` and
    carried along: ``(C + 1, H, W)``. Noise and control are ``(C, H, W)`` in both cases.

    Args:
        pipeline: of diffusers. Its networks are frozen and used, not copied; of a compiled network
            that which was compiled.
        prompts: one prompt, or several.
        reward: ``(images (n, 3, H, W) in 0..1, prompts) -> (n,)`` with a flag ``differentiable``.
        temperature: price of one nat of KL.
        steps: number of denoising steps, the horizon; the pipeline's own default if absent.
        guidance_scale: w, at least 1; 1 is no guidance; the pipeline's own default if absent. A
            network that is told w (Flux, latent consistency models) is asked once.
        scheduler: ``ddim``, ``ddpm`` or, with an LCMScheduler, ``lcm``, with the tables of the
            pipeline's own scheduler; for flows ``posterior`` or ``flow-grpo``. If absent ``lcm``
            where the pipeline has an LCMScheduler, else ``ddim`` and ``posterior``.
        eta: of ``ddim`` and ``posterior``, above 0 and at most 1.
        variance: of ``ddpm``: ``fixed_small`` or ``fixed_large``.
        negative_prompt: what guidance leads away from; what the pipeline takes for it if absent.
        resolution: side of the image, or height and width, in pixels; the model's own if absent.
        batch_size: images that a network is given at once (twice as many rows with guidance).
        gradient_checkpointing: compute activations of network and decoder again in the backward
            pass instead of keeping them.
        noise_level: of ``flow-grpo``.
        prompt_kwargs: further arguments of the pipeline's ``encode_prompt``, such as
            ``max_sequence_length``.

    Raises:
        ValueError: no family serves the pipeline, or a bad argument.
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: str | Sequence[str],
        reward: ImageReward,
        temperature: float = 0.01,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        eta: float = 1.0,
        variance: str | None = None,
        negative_prompt: str | None = None,
        resolution: int | tuple[int, int] | None = None,
        batch_size: int = 16,
        gradient_checkpointing: bool = False,
        noise_level: float = 0.7,
        prompt_kwargs: dict[str, Any] | None = None,
    ) -> None:
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts must be one string or several; got {prompts!r}")
        known = known_class(pipeline)
        own = inspect.signature(type(pipeline).__call__).parameters
        if steps is None:
            steps = own["num_inference_steps"].default
        if guidance_scale is None:
            guidance_scale = own["guidance_scale"].default
        if (
            isinstance(guidance_scale, bool)
            or not isinstance(guidance_scale, (int, float))
            or not guidance_scale >= 1
        ):
            raise ValueError(f"guidance_scale must be at least 1; got {guidance_scale!r}")
        family = FAMILIES[known](pipeline)
        if negative_prompt is not None and not family.takes_negative:
            raise ValueError(
                f"negative_prompt must be absent for {type(pipeline).__name__}; got"
                f" {negative_prompt!r}"
            )
        size = family.size(pipeline, resolution)
        shape = (family.channels, *size)
        network = family.network_of(pipeline)
        super().__init__(
            network,
            family.schedule(pipeline, Sampling(steps, scheduler, eta, variance, noise_level), size),
            shape,
            reward,
            temperature,
            family.prediction_type(pipeline),
            batch_size,
            gradient_checkpointing,
        )
        self.family = family
        self.prompts, self.guidance_scale = prompts, float(guidance_scale)
        self.negative_prompt, self.prompt_kwargs = negative_prompt, dict(prompt_kwargs or {})
        self.vae = family.vae_of(pipeline).requires_grad_(False).eval()
        if gradient_checkpointing:
            Checkpointing(self.vae)
        if hasattr(type(pipeline), "save_lora_weights"):
            self.lora_reader = known, family.part
        with torch.no_grad():
            conditions = family.encode(
                pipeline,
                list(prompts),
                negative_prompt,
                self.guidance_scale,
                size,
                **self.prompt_kwargs,
            )
        self._given, self._empty = conditions
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
        dtype, index = self.network.dtype, self.prompt_index(x)
        given = tuple(_as(t[index], dtype) for t in self._given)
        latents = latents.to(dtype)
        if self._empty is None:
            return self._asked(latents, timesteps, given).to(x.dtype)
        both = tuple(
            torch.cat([_as(empty, dtype).expand_as(t), t])
            for empty, t in zip(self._empty, given, strict=True)
        )
        output = self._asked(torch.cat([latents, latents]), timesteps.repeat(2), both)
        without, with_ = output.to(x.dtype).chunk(2)
        return without + self.guidance_scale * (with_ - without)

    def _asked(self, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        output = self.family.call(self.network, latents, times, conditions)
        return output[:, : self.family.channels]  # variances, if there are any, come after

    def decode(self, x: Tensor) -> Tensor:
        """Images ``(n, 3, H, W)`` in 0..1; gradients flow."""
        parts = self.latents(x).split(self.batch_size)
        images = torch.cat([self.family.decode(self.vae, part) for part in parts])
        return (images.to(x.dtype) / 2 + 0.5).clamp(0, 1)


def _as(condition: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in the network's dtype; classes and masks as they are."""
    return condition.to(dtype) if condition.is_floating_point() else condition
