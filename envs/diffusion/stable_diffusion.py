"""``girsanov/StableDiffusion-v0``: a pipeline of diffusers from a folder or the hub, with a reward
by name; and ``girsanov/FlowDigits-v0``, the small flow that comes with the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import checked
from .diffusers_chain import ImageReward
from .latent_digits import CHECKPOINT as LATENT_DIGITS
from .latent_digits import FLOW_CHECKPOINT as FLOW_DIGITS
from .loading import as_dtype, check_folder, load_pipeline
from .pipelines.prompted import PromptedDiffusion

#: The name by which it was known when Stable Diffusion was all that it took.
StableDiffusion = PromptedDiffusion
#: The small models that come with the package, and what ``PromptedDiffusion`` is told of each: the
#: flow has no T5, and wants no tokens in its place.
SHIPPED: dict[str, tuple[Path, dict[str, Any]]] = {
    "latent-digits": (LATENT_DIGITS, {}),
    "flow-digits": (FLOW_DIGITS, {"prompt_kwargs": {"max_sequence_length": 0}}),
}


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
            are frozen and used), or one of the small models that come with the package:
            ``latent-digits`` or, a rectified flow, ``flow-digits``. Stable Diffusion 1, 2, XL and
            3, Flux, PixArt, latent consistency models, and DiT, whose prompts are classes.
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
    if isinstance(model, str) and model in SHIPPED:
        model, told = SHIPPED[model]
        kwargs = {**told, **kwargs}
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


@checked
def flow_digits(
    *,
    prompts: str | Sequence[str] = "a yellow eight",
    reward: str | Mapping[str, float] | ImageReward = "digit-prompt",
    temperature: float = 0.1,
    steps: int = 10,
    guidance_scale: float = 1.0,
    scheduler: str = "posterior",
    eta: float = 1.0,
    noise_level: float = 0.7,
    batch_size: int = 256,
    gradient_checkpointing: bool = False,
) -> PromptedDiffusion:
    """``girsanov/FlowDigits-v0``: a small rectified flow that draws painted digits, to be taught
    what its prompts say. Needs ``girsanov[sd]``.

    Args:
        prompts: one of ``"a <colour> <digit>"``, or several.
        reward: a callable ``(images (n, 3, 16, 16) in 0..1, prompts) -> (n,)`` with a flag
            ``differentiable``, the name of one in ``image_rewards``, or several names with a weight
            each.
        temperature: price of one nat of KL.
        steps: number of denoising steps.
        guidance_scale: at least 1; 1 is no guidance.
        scheduler: ``posterior`` or ``flow-grpo``.
        eta: of ``posterior``, above 0 and at most 1; at 1 the chain forgets its start.
        noise_level: of ``flow-grpo``.
        batch_size: images that the network is given at once (twice as many rows with guidance).
        gradient_checkpointing: compute activations again in the backward pass instead of keeping
            them.

    Raises:
        ValueError: a package is missing, or a bad argument.
    """
    return stable_diffusion(
        model="flow-digits",
        prompts=prompts,
        reward=reward,
        temperature=temperature,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        eta=eta,
        noise_level=noise_level,
        batch_size=batch_size,
        gradient_checkpointing=gradient_checkpointing,
    )
