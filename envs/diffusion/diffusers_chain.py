"""Denoising chains whose network is one of diffusers: what latents that follow a prompt and plain
images have in common.

The network is frozen and shared: by copies of the problem on the same device, and by the LoRA
adapters that agents hang into it (``adapters``), each under a name of its own. diffusers is
imported only by what loads a pipeline.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..problem import at, check_integer
from ..rewards.conversion import rewards_of, rgb
from .adapters import Checkpointing, active, freeze
from .denoising import DenoisingProblem, Schedule
from .last_call import LastCall
from .loading import as_dtype, load_pipeline
from .step_table import StepTable

#: A reward of images ``(n, channels, H, W)`` in 0..1 and their prompts; see ``image_rewards``.
ImageReward = Callable[[Tensor, Sequence[str]], Tensor]
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "velocity")


class DiffusersChain(DenoisingProblem):
    """A chain around a frozen network of diffusers.

    Args:
        network: the network.
        schedule: noise tables; their length is the horizon.
        shape: of the noised part of a state, ``(channels, H, W)``.
        reward: ``(images in 0..1, prompts) -> (n,)``, or what ``rewards_of`` takes for it; without
            an attribute ``differentiable`` that is true it is a black box.
        temperature: price of one nat of KL.
        prediction_type: what the network predicts: ``epsilon``, ``sample``, ``v_prediction``, or
            ``velocity``, which is then the chain's own parametrisation; else it is the noise.
        batch_size: rows that a network is given at once, to bound memory.
        gradient_checkpointing: compute the networks' activations again in the backward pass instead
            of keeping them.
    """

    model_methods = ("_own",)  # what memory does not answer
    #: The pipeline that reads an adapter's file, and its network's name there; None: peft does.
    lora_reader: tuple[str, str] | None = None

    def __init__(
        self,
        network: Any,
        schedule: Schedule | StepTable,
        shape: tuple[int, ...],
        reward: ImageReward,
        temperature: float,
        prediction_type: str = "epsilon",
        batch_size: int = 16,
        gradient_checkpointing: bool = False,
    ) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {PREDICTION_TYPES}; got {prediction_type!r}"
            )
        check_integer("batch_size", batch_size)
        if not callable(reward):
            raise ValueError(f"reward must be a callable (images, prompts) -> (n,); got {reward!r}")
        double = network.dtype == torch.float64
        own = "velocity" if prediction_type == "velocity" else "epsilon"
        dtype = torch.float64 if double else torch.float32
        super().__init__(schedule, shape, temperature, dtype, own)
        self.network = freeze(network)
        self.reward = reward
        if isinstance(reward, nn.Module):
            reward.requires_grad_(False).eval()
        self.prediction_type, self.batch_size = prediction_type, batch_size
        self._last = LastCall()
        if gradient_checkpointing:
            Checkpointing(network)

    # --- noise

    @abstractmethod
    def _output(self, timesteps: Tensor, latents: Tensor, x: Tensor) -> Tensor:
        """What the network says of ``latents``, the noised part of states ``x``, in its own
        prediction type.
        """

    def predict(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What the pre-trained model predicts, ``(n, *noise_shape)``, the same that ``control_of``
        counts from.

        Asked again about the same ``x``, it answers from memory.
        """
        return self._last(self._predict, self.network, k, x)

    def predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See DenoisingProblem."""
        return self._noise_in(k, x, self.predict(k, x))

    def adapted(self, k: int | Tensor, x: Tensor, adapter: str) -> Tensor:
        """What ``predict`` returns, with the LoRA adapter of that name at work."""
        with active(self.network, adapter):
            return self._own(k, x)

    def adapted_noise(self, k: int | Tensor, x: Tensor, adapter: str) -> Tensor:
        """What ``predict_noise`` returns, with the LoRA adapter of that name at work."""
        return self._noise_in(k, x, self.adapted(k, x, adapter))

    def _predict(self, k: int | Tensor, x: Tensor) -> Tensor:
        with active(self.network, None):
            return self._own(k, x)

    def _own(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The network's output in the chain's parametrisation."""
        latents = self.latents(x)
        timesteps = self.schedule.timesteps[k].expand(len(x))
        rows = (t.split(self.batch_size) for t in (timesteps, latents, x))
        output = torch.cat([self._output(*part).to(x.dtype) for part in zip(*rows, strict=True)])
        if self.prediction_type == "sample":
            return (latents - at(self._signal, k, x) * output) / at(self._noise_scale, k, x)
        if self.prediction_type == "v_prediction":
            return at(self._signal, k, x) * output + at(self._noise_scale, k, x) * latents
        return output

    # --- rewards

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Images ``(n, channels, H, W)`` in 0..1 of states; gradients flow."""

    def prompts_of(self, x: Tensor) -> list[str]:
        """The prompt of each state."""
        return [""] * len(x)

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """``decode`` without gradients."""
        return self.decode(x)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """The reward of the finished images; detached if the reward is a black box."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and bool(getattr(self.reward, "differentiable", False))
        ):
            rows = x.split(self.batch_size)
            return torch.cat(
                [
                    rewards_of(self.reward, self.decode(part), self.prompts_of(part)).to(x.dtype)
                    for part in rows
                ]
            )

    @property
    def success(self) -> Callable[[Tensor], Tensor]:
        """``success(x) -> bool (n,)``: what the reward itself takes for success; absent where it
        has no word for it.
        """
        judge = getattr(self.reward, "success", None)
        if judge is None:
            raise AttributeError(f"success is not defined for {type(self.reward).__name__}")
        return lambda x: torch.cat(
            [judge(self.images(part), self.prompts_of(part)) for part in x.split(self.batch_size)]
        )

    @torch.no_grad()
    def render(self, path: Tensor) -> np.ndarray:
        """The image as it is now and, beside it, the one that the model sees in it; ``(H, 2 W + 16,
        3)``.
        """
        x = path[-1:].to(self._control_slope)
        both = self.decode(torch.cat([x, self.terminal_estimate(len(path) - 1, x)]))
        both = rgb(both) if both.shape[1] in (1, 3, 4) else both.mean(1, True).expand(-1, 3, -1, -1)
        picture = (both.float() * 255).round().byte().cpu()
        gap = torch.full((3, picture.shape[2], 16), 64, dtype=torch.uint8)
        return torch.cat([picture[0], gap, picture[1]], 2).permute(1, 2, 0).contiguous().numpy()


class ImageDiffusion(DiffusersChain):
    """An unconditional model of images in pixel space (diffusers' UNet2DModel); made by
    ``image_diffusion``.

    Args:
        clip: clean images are clipped to ``[-clip, clip]`` in every step, as DDPMScheduler does
            (and DDIMScheduler with ``use_clipped_model_output``); None does not.

    The other arguments are ``DiffusersChain``'s.
    """

    def __init__(self, *args: Any, clip: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clip = clip

    def _output(self, timesteps: Tensor, latents: Tensor, x: Tensor) -> Tensor:
        return self.network(latents.to(self.network.dtype), timesteps).sample

    def _own(self, k: int | Tensor, x: Tensor) -> Tensor:
        noise = super()._own(k, x)
        if self.clip is None:
            return noise
        signal, scale = at(self._signal, k, x), at(self._noise_scale, k, x)
        return (x - signal * ((x - scale * noise) / signal).clamp(-self.clip, self.clip)) / scale

    def decode(self, x: Tensor) -> Tensor:
        """See DiffusersChain."""
        return (x / 2 + 0.5).clamp(0, 1)


def image_diffusion(
    pipeline: Any,
    reward: ImageReward,
    temperature: float,
    *,
    steps: int = 50,
    scheduler: str = "ddpm",
    eta: float = 1.0,
    variance: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    dtype: str | torch.dtype = "float32",
    **kwargs: Any,
) -> ImageDiffusion:
    """An unconditional DDPM or DDIM pipeline of diffusers (a UNet2DModel of images) as a problem;
    needs ``girsanov[sd]``.

    Args:
        pipeline: a pipeline (its UNet is frozen and used, not copied), the folder of one, or a name
            on the hub.
        reward: ``(images (n, channels, H, W) in 0..1, prompts) -> (n,)``; the prompts are empty
            strings. Without an attribute ``differentiable`` that is true it is taken for a black
            box.
        temperature: price of one nat of KL.
        steps: number of denoising steps, the horizon.
        scheduler: ``ddpm`` or ``ddim``.
        eta: as in ``Schedule.from_scheduler``.
        variance: as in ``Schedule.from_scheduler``.
        resolution: side of the image, or height and width, in pixels; the model's own if absent.
        dtype: of the network.
        **kwargs: ``batch_size`` and ``gradient_checkpointing`` as in ``DiffusersChain``.
    """
    pipe = load_pipeline(pipeline, as_dtype(dtype))
    unet: Any = uncompiled(getattr(pipe, "unet", None))
    if type(unet).__name__ != "UNet2DModel" or hasattr(pipe, "vqvae"):
        raise ValueError(
            "pipeline must be unconditional in pixel space, with a UNet2DModel; got"
            f" {type(pipe).__name__}"
        )
    if unet.config.out_channels != unet.config.in_channels:
        raise ValueError("pipeline must not predict variances; got one that does")
    check_no_classes(pipe, unet)
    config = pipe.scheduler.config
    if config.get("thresholding"):
        raise ValueError(
            "the pipeline's scheduler must not use dynamic thresholding; got thresholding=True"
        )
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None
    height, width = sides(
        unet.config.sample_size if resolution is None else resolution,
        2 ** (len(unet.config.block_out_channels) - 1),
        unet,
    )
    return ImageDiffusion(
        unet,
        preserved(pipe, steps, scheduler, eta, variance),
        (unet.config.in_channels, height, width),
        reward,
        temperature,
        config.get("prediction_type", "epsilon"),
        clip=clip,
        **kwargs,
    )


def uncompiled(network: Any) -> Any:
    """What ``torch.compile`` was given: adapters are switched inside it from call to call."""
    return getattr(network, "_orig_mod", network)


def check_no_classes(pipeline: Any, unet: Any) -> None:
    """Raise a ValueError if a UNet asks for class labels, which its pipeline has not to give."""
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError(
            f"pipeline must take no class labels; the UNet of {type(pipeline).__name__} embeds"
            " classes: DenoisingProblem.from_network takes it, with class_labels=..."
        )


def sides(resolution: Any, least: int, network: Any, most: int | None = None) -> tuple[int, int]:
    """Height and width of a side, or of both.

    Args:
        resolution: what was asked for, or is in the network's configuration.
        least: what both must be multiples of.
        network: that draws the image.
        most: of either; no bound if absent.

    Raises:
        ValueError: there is none, or the network can't draw such an image.
    """
    if resolution is None:
        raise ValueError(
            f"resolution must be given, in pixels, for a {type(network).__name__} whose"
            " configuration has sample_size=None"
        )
    found = (resolution,) * 2 if isinstance(resolution, int) else resolution
    whole = isinstance(found, (tuple, list)) and all(type(side) is int for side in found)
    if not (
        whole
        and len(found) == 2
        and all(side >= least and side % least == 0 for side in found)
        and (most is None or max(found) <= most)
    ):
        bound = "" if most is None else f" and at most {most}"
        raise ValueError(
            f"resolution must be a multiple of {least} pixels{bound}, or two for height and width;"
            f" got {resolution!r}"
        )
    return found[0], found[1]


def preserved(
    pipeline: Any, steps: int, kind: str, eta: float, variance: str | None = None
) -> Schedule:
    """``Schedule.from_scheduler`` of a pipeline's scheduler; a warning says so where the pipeline
    itself would sample in another way.
    """
    found = Schedule.from_scheduler(pipeline.scheduler, steps, kind, eta, variance)
    name = type(pipeline.scheduler).__name__
    if not name.startswith(("DDIM", "DDPM")):
        chain = f"DDIM's with eta = {eta:g}" if kind == "ddim" else "DDPM's"
        warnings.warn(
            f"{type(pipeline).__name__} samples by {name}; the chain is {chain} instead, {steps}"
            " steps on the same noise levels",
            stacklevel=4,
        )
    return found
