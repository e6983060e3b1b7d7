"""Noise tables of diffusers' variance-preserving schedulers."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .step_table import StepTable, check_eta


class Schedule(NamedTuple):
    """Noise tables of a chain of T steps, ``(T,)`` each, from the noisiest step to the last."""

    # cumulative product before the step: X_k = sqrt(alpha_bar) X_data + sqrt(1 - alpha_bar) noise
    alpha_bar: Tensor
    alpha: Tensor  # alpha_bar of this step over that of the next, less noisy one
    sigma: Tensor  # standard deviation of the step's noise
    timesteps: Tensor  # the training index of each step, as diffusers counts it
    noise_slope: Tensor | None = (
        # of the mean in minus the predicted noise; (1 - alpha) / sqrt(alpha (1 - alpha_bar)) if
        # absent
        None
    )

    @classmethod
    def ddpm(
        cls,
        steps: int = 50,
        *,
        beta_schedule: str = "linear",
        variance_type: str = "fixed_small",
        timestep_spacing: str = "leading",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        train_steps: int = 1000,
    ) -> Schedule:
        """The tables of diffusers' DDPMScheduler after ``set_timesteps(steps)``; its argument names
        and defaults.

        ``beta_schedule``: ``linear`` or ``squaredcos_cap_v2``; ``variance_type``: ``fixed_small``
        or ``fixed_large``; ``timestep_spacing``: ``leading``, ``trailing`` or ``linspace``.
        """
        _check_integer("steps", steps)
        if not 1 <= steps <= train_steps:
            raise ValueError(
                f"steps must be between 1 and train_steps = {train_steps}; got {steps}"
            )
        betas = _choose(
            "beta_schedule", beta_schedule, linear=_linear, squaredcos_cap_v2=_squared_cosine
        )(train_steps, beta_start, beta_end)
        spacing = _choose(
            "timestep_spacing",
            timestep_spacing,
            leading=_leading,
            trailing=_trailing,
            linspace=_linspace,
        )
        timesteps = spacing(steps, train_steps)
        cumulative = torch.cumprod(1 - betas, 0)
        alpha_bar = cumulative[timesteps]
        # diffusers' previous_timestep: the next in the list; past its end, the clean image
        following = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])
        alpha = alpha_bar / following
        posterior = (1 - following) / (1 - alpha_bar) * (1 - alpha)
        variance = _choose(
            "variance_type", variance_type, fixed_small=posterior, fixed_large=1 - alpha
        )
        variance = torch.where(
            timesteps > 0, variance.clamp(min=1e-20), 0.0
        )  # no noise is added at timestep 0
        return cls(alpha_bar, alpha, variance.sqrt(), timesteps)

    @classmethod
    def from_scheduler(
        cls,
        scheduler: Any,
        steps: int = 50,
        kind: str = "ddim",
        eta: float = 1.0,
        variance: str | None = None,
    ) -> Schedule:
        """The tables by which diffusers' DDIMScheduler or DDPMScheduler steps, made from another
        scheduler's configuration.

        The sigma of a last step that diffusers leaves without noise, or gives a noise of 1e-10 for
        its logarithm's sake, is 0.

        Args:
            scheduler: any diffusers scheduler of the variance-preserving family; its ``config`` is
                read.
            steps: number of denoising steps.
            kind: ``ddim`` or ``ddpm``.
            eta: of DDIM: 1 is the posterior's noise, and 0 would leave nothing to control.
            variance: of DDPM: ``fixed_small`` or ``fixed_large``; the configuration's, if absent.
        """
        _check_family(scheduler)
        config = scheduler.config
        get = config.get
        n = get("num_train_timesteps", 1000)
        _check_integer("steps", steps)
        if not 1 <= steps <= n:
            raise ValueError(
                f"steps must be between 1 and the scheduler's num_train_timesteps = {n}; got"
                f" {steps}"
            )
        check_eta(eta)
        cumulative = _cumulative(config)
        spacing = get("timestep_spacing", "leading")
        timesteps = _choose(
            "timestep_spacing", spacing, leading=_leading, trailing=_trailing, linspace=_linspace
        )(steps, n)
        if spacing == "leading":
            timesteps = timesteps + get("steps_offset", 0)
        if int(timesteps[0]) >= n:
            raise ValueError(
                f"steps must leave room for steps_offset below {n} training steps; got {steps}"
            )
        alpha_bar = cumulative[timesteps]
        # what comes after each step: DDPM looks at the next in the list, DDIM a fixed number of
        # training steps further
        if _choose("scheduler", kind, ddim=True, ddpm=False):
            before = timesteps - n // steps
            last = alpha_bar.new_ones(()) if get("set_alpha_to_one", True) else cumulative[0]
            following = torch.where(before >= 0, cumulative[before.clamp(min=0)], last)
        else:
            following = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])
        alpha = alpha_bar / following
        posterior = (1 - following) / (1 - alpha_bar) * (1 - alpha)
        if kind == "ddim":
            sigma = eta * posterior.sqrt()
            # sqrt(following) clean + sqrt(1 - following - sigma^2) noise, in terms of the state and
            # the noise
            slope = ((1 - alpha_bar) / alpha).sqrt() - (1 - following - sigma.square()).clamp(
                min=0
            ).sqrt()
            return cls(alpha_bar, alpha, sigma, timesteps, slope)
        kept = get("variance_type", "fixed_small") if variance is None else variance
        noise = _choose("variance", kept, fixed_small=posterior, fixed_large=1 - alpha)
        return cls(alpha_bar, alpha, torch.where(timesteps > 0, noise, 0.0).sqrt(), timesteps)

    def table(self) -> StepTable:
        """The same chain in the terms that all families share."""
        noise = (1 - self.alpha_bar).sqrt()
        next_signal = (self.alpha_bar / self.alpha).sqrt()
        kept = noise * self.alpha.rsqrt() - self._slope()
        return StepTable(
            self.alpha_bar.sqrt(), noise, next_signal, kept, self.sigma, self.timesteps
        )

    def to(self, dtype: torch.dtype) -> Schedule:
        """The same, each table rounded once."""
        tables = (*self[:-1], self._slope())
        return Schedule(*(t.to(dtype) if t.is_floating_point() else t for t in tables))

    def _slope(self) -> Tensor:
        if self.noise_slope is not None:
            return self.noise_slope
        return (1 - self.alpha) / (1 - self.alpha_bar).sqrt() * self.alpha.rsqrt()

    @property
    def log_snr(self) -> Tensor:
        """``log(alpha_bar / (1 - alpha_bar))`` before each step, ``(T,)``."""
        return torch.log(self.alpha_bar) - torch.log1p(-self.alpha_bar)


#: diffusers' schedulers that noise with betas, so that their configuration tells Schedule's tables.
_FAMILY = {
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
        *("DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete"),
        *("HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM"),
        *("SASolver", "TCD", "UniPCMultistep"),
    )
}


def _cumulative(config: Any) -> Tensor:
    """The cumulative product of ``1 - beta`` that a scheduler's configuration tells, in float64."""
    get = config.get
    if get("rescale_betas_zero_snr"):
        raise ValueError(
            "rescale_betas_zero_snr must be False: a first step without signal has an infinite"
            " score; got True"
        )
    if get("trained_betas") is not None:
        betas = torch.as_tensor(get("trained_betas"), dtype=torch.float64)
    else:
        family = {
            "linear": _linear,
            "scaled_linear": _scaled_linear,
            "squaredcos_cap_v2": _squared_cosine,
        }
        betas = _choose("beta_schedule", get("beta_schedule", "linear"), **family)(
            get("num_train_timesteps", 1000), get("beta_start", 1e-4), get("beta_end", 0.02)
        )
    return torch.cumprod(1 - betas, 0)


def consistency(scheduler: Any, steps: int = 4) -> StepTable:
    """The multistep sampler of latent consistency models (Luo et al. 2023), as diffusers'
    LCMScheduler takes it: each step jumps to the clean sample, and noises it anew but for the last.

    Args:
        scheduler: an LCMScheduler; it is copied, and stays as it is.
        steps: number of steps, 2 at least.

    Raises:
        ValueError: another scheduler, one that clips, or a number of steps that it refuses.
    """
    name = type(scheduler).__name__
    if name != "LCMScheduler":
        raise ValueError(f"scheduler must be an LCMScheduler for kind 'lcm'; got {name}")
    config = scheduler.config
    for flag in ("clip_sample", "thresholding"):
        if config.get(flag):
            raise ValueError(f"the scheduler must not have {flag}; got {flag}=True")
    cumulative = _cumulative(config)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    times = own.timesteps
    bar = torch.cat([cumulative[times], cumulative.new_ones(1)])  # the last step keeps its sample
    signal, noise = bar.sqrt(), (1 - bar).sqrt()
    scaled = times.double() * config.get("timestep_scaling", 10.0)
    skip, out = 0.25 / (scaled.square() + 0.25), scaled / (scaled.square() + 0.25).sqrt()
    ahead = signal[1:]
    table = StepTable(
        signal[:-1],
        noise[:-1],
        ahead * (skip * signal[:-1] + out),
        ahead * skip * noise[:-1],
        noise[1:],
        times,
    )
    return table.noisy()


def _check_family(scheduler: Any) -> None:
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    if name == "FlowMatchEulerDiscreteScheduler" or config.get("use_flow_sigmas"):
        raise ValueError(
            f"scheduler must preserve variance; got {name}, a flow's: StepTable.from_scheduler"
            " takes FlowMatchEulerDiscreteScheduler"
        )
    if name not in _FAMILY:
        raise ValueError(f"scheduler must be one of {sorted(_FAMILY)}; got {name}")


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer; got {value!r}")


def _choose(name, value, **options):  # type: ignore[no-untyped-def]
    if value not in options:
        raise ValueError(f"{name} must be one of {sorted(options)}; got {value!r}")
    return options[value]


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _scaled_linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2


def _squared_cosine(n: int, start: float, end: float) -> Tensor:
    bar = (
        torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2) ** 2
    )
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


def _leading(steps: int, n: int) -> Tensor:
    return (torch.arange(steps) * (n // steps)).flip(0)


def _trailing(steps: int, n: int) -> Tensor:
    return torch.arange(n, 0, -n / steps, dtype=torch.float64).round().long()[:steps] - 1


def _linspace(steps: int, n: int) -> Tensor:
    return torch.linspace(0, n - 1, steps, dtype=torch.float64).round().long().flip(0)
