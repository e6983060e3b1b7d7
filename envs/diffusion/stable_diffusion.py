"""``girsanov/StableDiffusion-v0``: a pipeline of diffusers from a folder or the hub, with a reward
by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .diffusers_chain import ImageReward
from .latent_digits import CHECKPOINT as LATENT_DIGITS
from .loading import as_dtype, check_folder, load_pipeline
from .pipelines.prompted import PromptedDiffusion

#: The name by which it was known when Stable Diffusion was all that it took.
StableDiffusion = PromptedDiffusion


def stable_diffusion(
    *,
    model: str | Path | Any = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    prompts: str | Sequence[str] = "A green colored rabbit",
    reward: str | Mapping[str, float] | ImageReward = "image-reward",
    reward_kwargs: dict[str, Any] | None = None,
    temperature: float = 0.01,
    steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    variant: str | None = None,
    **kwargs: Any,
) -> PromptedDiffusion:
    """``girsanov/StableDiffusion-v0``: a pipeline that draws what a prompt says, rewarded on its
    images. Needs ``girsanov[sd]``.

    Args:
        model: a local diffusers folder, a name on the Hugging Face hub, a pipeline (whose networks
            are frozen and used), or ``latent-digits``, the small model that comes with the package.
            Stable Diffusion 1, 2, XL and 3, Flux, PixArt, latent consistency models, and DiT, whose
            prompts are classes.
        prompts: one prompt, or several.
        reward: a callable ``(images (n, 3, H, W) in 0..1, prompts) -> (n,)`` with a flag
            ``differentiable``, the name of one in ``image_rewards``, or several names with a weight
            each.
        reward_kwargs: arguments of a reward that is named; by name, if there are several.
        temperature: price of one nat of KL.
        steps: number of denoising steps; the pipeline's own default if absent.
        guidance_scale: at least 1; 1 is no guidance; the pipeline's own default if absent.
        scheduler: ``ddim``, ``ddpm`` or ``lcm``; for flows ``posterior`` or ``flow-grpo``. If
            absent the one that suits the pipeline.
        dtype: of network and autoencoder: ``float32``, ``bfloat16``, ``float16``; states and
            tables are never below float32.
        revision: of the model on the hub.
        variant: of the weights' files, such as ``fp16``.
        **kwargs: further arguments of ``PromptedDiffusion``.

    Raises:
        ValueError: packages, the model or the reward's weights are missing (before anything long
            starts), or a bad argument.
    """
    network = as_dtype(dtype)
    model = LATENT_DIGITS if isinstance(model, str) and model == "latent-digits" else model
    check_folder(model)
    if isinstance(reward, (str, Mapping)):
        from ..rewards.images import make_reward

        reward = make_reward(reward, **(reward_kwargs or {}))
    pipeline = load_pipeline(
        model,
        network,
        revision=revision,
        variant=variant,
        safety_checker=None,
    )
    try:
        return PromptedDiffusion(
            pipeline, prompts, reward, temperature, steps, guidance_scale, scheduler, **kwargs
        )
    except TypeError as error:
        raise ValueError(
            f"arguments must be PromptedDiffusion's; got {sorted(kwargs)} ({error})"
        ) from error
