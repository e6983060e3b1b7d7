"""Denoising chains whose network is a diffusers UNet: what text-to-image latents and plain images
have in common.

The network is frozen and shared: by copies of the problem on the same device, and by the LoRA
adapters that agents hang into it (``adapters``), each under a name of its own. diffusers is
imported only by what loads a pipeline.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..extras import install_command
from ..problem import at, check_integer
from .adapters import Checkpointing, active
from .denoising import DenoisingProblem, Schedule
from .loading import check_weights
from .memo import LastCall

#: A reward of images ``(n, channels, H, W)`` in 0..1 and their prompts; see ``image_rewards``.
ImageReward = Callable[[Tensor, Sequence[str]], Tensor]
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class DiffusersChain(DenoisingProblem):
    """A chain around a frozen diffusers UNet.

    Args:
        unet: the network.
        schedule: noise tables; their length is the horizon.
        shape: of the noised part of a state, ``(channels, H, W)``.
        reward: ``(images in 0..1, prompts) -> (n,)``; without an attribute ``differentiable`` that
            is true it is a black box.
        temperature: price of one nat of KL.
        prediction_type: what the network predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        batch_size: rows that a network is given at once, to bound memory.
        gradient_checkpointing: compute the networks' activations again in the backward pass instead
            of keeping them.
    """

    def __init__(
        self,
        unet: Any,
        schedule: Schedule,
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
        weight = next(unet.parameters())
        double = weight.dtype == torch.float64
        super().__init__(schedule, shape, temperature, torch.float64 if double else torch.float32)
        self.unet = unet.requires_grad_(False).eval()
        self.reward = reward
        if isinstance(reward, nn.Module):
            reward.requires_grad_(False).eval()
        self.prediction_type, self.batch_size = prediction_type, batch_size
        dtype = self._shrink.dtype
        self._signal = schedule.alpha_bar.sqrt().to(dtype)
        self._noise_scale = (1 - schedule.alpha_bar).sqrt().to(dtype)
        self._last = LastCall()
        if gradient_checkpointing:
            Checkpointing(unet)

    # --- noise

    @abstractmethod
    def _output(self, timesteps: Tensor, latents: Tensor, x: Tensor) -> Tensor:
        """What the network says of ``latents``, the noised part of states ``x``, in its own
        prediction type.
        """

    def predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The pre-trained model's noise prediction ``(n, *noise_shape)``, the same that
        ``control_of`` counts from.

        Asked again about the same ``x``, it answers from memory.
        """
        return self._last(self._predict_noise, self.unet, k, x)

    def adapted_noise(self, k: int | Tensor, x: Tensor, adapter: str) -> Tensor:
        """The same with the LoRA adapter of that name at work, ``(n, *noise_shape)``."""
        with active(self.unet, adapter):
            return self._noise(k, x)

    def _predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        with active(self.unet, None):
            return self._noise(k, x)

    def _noise(self, k: int | Tensor, x: Tensor) -> Tensor:
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
                [self.reward(self.decode(part), self.prompts_of(part)).to(x.dtype) for part in rows]
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
        x = path[-1:].to(self._shrink)
        both = self.decode(torch.cat([x, self.terminal_estimate(len(path) - 1, x)]))
        picture = (both.float() * 255).round().byte().cpu().expand(-1, 3, -1, -1)
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
        return self.unet(latents.to(self.unet.conv_in.weight.dtype), timesteps).sample

    def _noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        noise = super()._noise(k, x)
        if self.clip is None:
            return noise
        signal, scale = at(self._signal, k, x), at(self._noise_scale, k, x)
        return (x - signal * ((x - scale * noise) / signal).clamp(-self.clip, self.clip)) / scale

    def decode(self, x: Tensor) -> Tensor:
        """See DiffusersChain."""
        return (x / 2 + 0.5).clamp(0, 1)


def check_folder(model: Any) -> None:
    """Raise a ValueError if ``model`` is a path, and no name on the hub, where no pipeline lies."""
    if not isinstance(model, (str, Path)):
        return
    folder, name = Path(model), str(model)
    if (folder / "model_index.json").is_file():
        return
    if folder.exists():
        raise ValueError(
            f"model must be a folder that holds a diffusers pipeline; {name!r} has no"
            " model_index.json"
        )
    if (
        isinstance(model, Path)
        or folder.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
    ):
        raise ValueError(
            f"model must be a folder that holds a diffusers pipeline; there is no folder {name!r}"
        )


def load_pipeline(kind: str, model: Any, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A diffusers pipeline: ``model`` itself if it is one, else a local folder or a name on the
    Hugging Face hub.

    Args:
        kind: name of the pipeline's class in diffusers.
        model: pipeline, folder or hub name.
        dtype: of its networks; a pipeline that is given keeps its own.
        kwargs: of ``from_pretrained``; entries that are None are left out.

    Raises:
        ValueError: diffusers is missing, or there is no such folder and nothing can be fetched.
    """
    if not isinstance(model, (str, Path)):
        return model
    try:
        diffusers, _, _ = (import_module(name) for name in ("diffusers", "peft", "transformers"))
    except ImportError as error:
        raise ValueError(
            f"diffusers pipelines need {error.name or error}: {install_command('sd')}"
        ) from error
    check_folder(model)
    # the argument's name, by the presence of what tells its old name from its new one
    renamed = hasattr(import_module("diffusers.utils.deprecation_utils"), "_resolve_dtype")
    given: dict[str, Any] = {"dtype" if renamed else "torch_dtype": dtype}
    given |= {key: value for key, value in kwargs.items() if value is not None}
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(str(model), **given)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = (
            str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        )
        raise ValueError(
            "model must be a local diffusers pipeline or a hub name that can be fetched; got"
            f" {str(model)!r}, which is neither ({type(error).__name__}: {reason}). Where there is"
            f" a network: hf download {model} --local-dir FOLDER; then pass model=FOLDER, the"
            " folder with model_index.json"
        ) from error
    if kwargs.get("variant") is None:
        check_weights(pipeline, Path(model))
    return pipeline


def image_diffusion(
    pipeline: Any,
    reward: ImageReward,
    temperature: float,
    *,
    steps: int = 50,
    scheduler: str = "ddpm",
    eta: float = 1.0,
    variance: str | None = None,
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
        dtype: of the network.
        **kwargs: ``batch_size`` and ``gradient_checkpointing`` as in ``DiffusersChain``.
    """
    pipe = load_pipeline("DiffusionPipeline", pipeline, as_dtype(dtype))
    unet: Any = getattr(pipe, "unet", None)
    if type(unet).__name__ != "UNet2DModel" or hasattr(pipe, "vqvae"):
        raise ValueError(
            "pipeline must be unconditional in pixel space, with a UNet2DModel; got"
            f" {type(pipe).__name__}"
        )
    if (
        unet.config.out_channels != unet.config.in_channels
        or unet.config.class_embed_type is not None
    ):
        raise ValueError(
            "pipeline must predict neither variances nor take classes; got one that does"
        )
    config = pipe.scheduler.config
    if config.get("thresholding"):
        raise ValueError(
            "the pipeline's scheduler must not use dynamic thresholding; got thresholding=True"
        )
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return ImageDiffusion(
        unet,
        Schedule.from_scheduler(pipe.scheduler, steps, scheduler, eta, variance),
        (unet.config.in_channels, height, width),
        reward,
        temperature,
        config.get("prediction_type", "epsilon"),
        clip=clip,
        **kwargs,
    )


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A network's type from its name; float64, float32, bfloat16 or float16."""
    allowed = {
        "float64": torch.float64,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    found = allowed.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in allowed.values():
        raise ValueError(f"dtype must be one of {sorted(allowed)}; got {dtype!r}")
    return found
