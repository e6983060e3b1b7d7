"""One kind of pipeline: how its prompts are encoded, how its network is asked, how its latents are
decoded, and by which tables it steps.

A family reads what it needs of a pipeline's configuration when it is made and keeps numbers alone:
networks and embeddings belong to the problem.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..diffusers_chain import check_no_classes, preserved, sides, uncompiled
from ..schedule import Schedule, consistency
from ..step_table import StepTable

#: Height and width.
Size = tuple[int, int]


class Conditions(NamedTuple):
    """What a network is told beside latents and time, in the order of ``Family.call``."""

    given: tuple[Tensor, ...]  # one row a prompt each
    empty: tuple[Tensor, ...] | None  # one row each: what guidance leads away from, if it does


@dataclass(frozen=True)
class Sampling:
    """Which chain a pipeline is given.

    Args:
        steps: number of denoising steps.
        kind: ``ddim``, ``ddpm`` or ``lcm`` where variance is preserved, ``posterior`` or
            ``flow-grpo`` for flows; the pipeline's own family if absent.
        eta: of ``ddim`` and ``posterior``.
        variance: of ``ddpm``.
        noise_level: of ``flow-grpo``.
    """

    steps: int
    kind: str | None = None
    eta: float = 1.0
    variance: str | None = None
    noise_level: float = 0.7


class Family(ABC):
    """What a problem asks of a pipeline.

    Args:
        pipeline: of a class that the family serves.

    Raises:
        ValueError: the pipeline is one of its class that draws from more than prompts.
    """

    part: ClassVar[str] = "transformer"  #: the network's name in the pipeline
    takes_negative: ClassVar[bool] = True  #: whether a prompt may be led away from
    channels: int  #: of the latents
    patch: int  #: latents a side that the network takes together
    told_guidance = False  #: whether the network is told its guidance, and asked once
    most: int | None = None  #: latents a side at most

    def __init__(self, pipeline: Any) -> None:
        network, vae = self.network_of(pipeline), uncompiled(pipeline.vae)
        self.channels = self._channels(network)
        self.patch = self._patch(network)
        self.pixels = 2 ** (len(vae.config.block_out_channels) - 1)  # a side of one latent
        if self.channels != vae.config.latent_channels:
            raise ValueError(
                f"pipeline must denoise plain latents; {type(pipeline).__name__} has a"
                f" {type(network).__name__} of {network.config.in_channels} input channels"
            )
        check_no_classes(pipeline, network)

    @classmethod
    def network_of(cls, pipeline: Any) -> Any:
        """The pipeline's denoiser; of a compiled one that which was compiled."""
        return uncompiled(getattr(pipeline, cls.part))

    def vae_of(self, pipeline: Any) -> Any:
        """The pipeline's decoder."""
        return uncompiled(pipeline.vae)

    def _channels(self, network: Any) -> int:
        return network.config.in_channels

    def _patch(self, network: Any) -> int:
        return network.config.patch_size

    # --- sizes

    def native(self, pipeline: Any) -> Any:
        """A side, or height and width, in latents, that the pipeline was made for, if it says."""
        return self.network_of(pipeline).config.sample_size

    def size(self, pipeline: Any, resolution: int | tuple[int, int] | None) -> Size:
        """Height and width in latents of a side, or of height and width, in pixels.

        Raises:
            ValueError: the network can't draw such an image.
        """
        network, native = self.network_of(pipeline), self.native(pipeline)
        if resolution is None and native is not None:
            return (native, native) if isinstance(native, int) else (native[0], native[1])
        most = None if self.most is None else self.most * self.pixels
        height, width = sides(resolution, self.pixels * self.patch, network, most)
        return height // self.pixels, width // self.pixels

    # --- what the pipeline does

    @abstractmethod
    def encode(
        self,
        pipeline: Any,
        prompts: list[str],
        negative: str | None,
        guidance_scale: float,
        size: Size,
        **options: Any,
    ) -> Conditions:
        """What the network is told of each prompt.

        Args:
            pipeline: the pipeline.
            prompts: P of them.
            negative: what guidance leads away from; the pipeline's own default if absent.
            guidance_scale: w; 1 is no guidance.
            size: of the latents.
            **options: of the pipeline's ``encode_prompt``.
        """

    @abstractmethod
    def call(
        self, network: Any, latents: Tensor, times: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """The network's output ``(n, channels or more, H, W)`` for latents ``(n, channels, H, W)``,
        with a time and a row of each condition for each of them, all in the network's dtype.
        """

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Images ``(n, 3, height, width)`` in -1..1."""
        z = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        return vae.decode(z.to(next(vae.parameters()).dtype)).sample

    @abstractmethod
    def schedule(self, pipeline: Any, sampling: Sampling, size: Size) -> Schedule | StepTable:
        """The chain's tables."""

    @abstractmethod
    def prediction_type(self, pipeline: Any) -> str:
        """What the network predicts; see ``DiffusersChain``."""


class PreservedFamily(Family):
    """Pipelines whose noising preserves variance."""

    def schedule(self, pipeline: Any, sampling: Sampling, size: Size) -> Schedule | StepTable:
        """See Family."""
        kind = sampling.kind
        if kind is None:
            kind = "lcm" if type(pipeline.scheduler).__name__ == "LCMScheduler" else "ddim"
        if kind == "lcm":
            return consistency(pipeline.scheduler, sampling.steps)
        return preserved(pipeline, sampling.steps, kind, sampling.eta, sampling.variance)

    def prediction_type(self, pipeline: Any) -> str:
        """See Family."""
        return pipeline.scheduler.config.get("prediction_type", "epsilon")


class FlowFamily(Family):
    """Pipelines of rectified flows."""

    def sigmas(self, steps: int) -> list[float] | None:
        """Times before shifting, where the pipeline gives its scheduler other ones than its own."""
        return None

    def schedule(self, pipeline: Any, sampling: Sampling, size: Size) -> StepTable:
        """See Family."""
        if sampling.variance is not None:
            raise ValueError(
                f"variance must be absent for {type(pipeline).__name__}, a flow; got"
                f" {sampling.variance!r}"
            )
        kind = sampling.kind or "posterior"
        if kind not in ("posterior", "flow-grpo"):
            raise ValueError(
                f"scheduler must be 'posterior' or 'flow-grpo' for {type(pipeline).__name__}, a"
                f" flow; got {kind!r}"
            )
        return StepTable.from_scheduler(
            pipeline.scheduler,
            sampling.steps,
            kind,
            sampling.eta,
            noise_level=sampling.noise_level,
            mu=self._shift(pipeline.scheduler.config, size),
            sigmas=self.sigmas(sampling.steps),
        )

    def _shift(self, config: Any, size: Size) -> float | None:
        """The shift for so many patches, on the line through the scheduler's two points."""
        if not config.get("use_dynamic_shifting"):
            return None
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        patches = (size[0] // self.patch) * (size[1] // self.patch)
        return low + (high - low) * (patches - least) / (most - least)

    def prediction_type(self, pipeline: Any) -> str:
        """See Family."""
        return "velocity"


def in_float32(vae: Any) -> Any:
    """A decoder that overflows in half precision, copied in single precision."""
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        return copy.deepcopy(vae).float()
    return vae
