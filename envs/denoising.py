"""The denoising chain of a diffusion model as a control problem (Han et al. 2025, eq. 1-3).

Time runs from noise (k = 0) to data (k = T). With the score s of the pre-trained model,

    F_k(x, z) = (x + (1 - alpha_k) s_k(x)) / sqrt(alpha_k) + sigma_k z.

Tables follow diffusers' schedulers, so that a step here equals ``DDPMScheduler.step`` with the same noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem, at, check_positive


class Schedule(NamedTuple):
    """Noise tables of a chain of T steps, ``(T,)`` each, from the noisiest step to the last."""

    alpha_bar: Tensor  # cumulative product before the step: X_k = sqrt(alpha_bar) X_data + sqrt(1 - alpha_bar) noise
    alpha: Tensor  # alpha_bar of this step over that of the next, less noisy one
    sigma: Tensor  # standard deviation of the step's noise
    timesteps: Tensor  # the training index of each step, as diffusers counts it

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
        """The tables of diffusers' DDPMScheduler after ``set_timesteps(steps)``; its argument names and defaults.

        ``beta_schedule``: ``linear`` or ``squaredcos_cap_v2``; ``variance_type``: ``fixed_small`` or ``fixed_large``;
        ``timestep_spacing``: ``leading``, ``trailing`` or ``linspace``.
        """
        if not 1 <= steps <= train_steps:
            raise ValueError(f"steps must be between 1 and train_steps = {train_steps}; got {steps}")
        betas = _choose("beta_schedule", beta_schedule, linear=_linear, squaredcos_cap_v2=_squared_cosine)(
            train_steps, beta_start, beta_end
        )
        spacing = _choose("timestep_spacing", timestep_spacing, leading=_leading, trailing=_trailing, linspace=_linspace)
        timesteps = spacing(steps, train_steps)
        cumulative = torch.cumprod(1 - betas, 0)
        alpha_bar = cumulative[timesteps]
        # diffusers' previous_timestep: the next in the list; past its end, the clean image
        following = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])
        alpha = alpha_bar / following
        posterior = (1 - following) / (1 - alpha_bar) * (1 - alpha)
        variance = _choose("variance_type", variance_type, fixed_small=posterior, fixed_large=1 - alpha)
        variance = torch.where(timesteps > 0, variance.clamp(min=1e-20), 0.0)  # no noise is added at timestep 0
        return cls(alpha_bar, alpha, variance.sqrt(), timesteps)

    @property
    def log_snr(self) -> Tensor:
        """``log(alpha_bar / (1 - alpha_bar))`` before each step, ``(T,)``."""
        return torch.log(self.alpha_bar) - torch.log1p(-self.alpha_bar)


def _choose(name, value, **options):  # type: ignore[no-untyped-def]
    if value not in options:
        raise ValueError(f"{name} must be one of {sorted(options)}; got {value!r}")
    return options[value]


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _squared_cosine(n: int, start: float, end: float) -> Tensor:
    bar = torch.cos((torch.arange(n + 1, dtype=torch.float64) / n + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


def _leading(steps: int, n: int) -> Tensor:
    return (torch.arange(steps) * (n // steps)).flip(0)


def _trailing(steps: int, n: int) -> Tensor:
    return torch.arange(n, 0, -n / steps, dtype=torch.float64).round().long()[:steps] - 1


def _linspace(steps: int, n: int) -> Tensor:
    return torch.linspace(0, n - 1, steps, dtype=torch.float64).round().long().flip(0)


class DenoisingProblem(Problem):
    """A denoising chain; a subclass supplies the pre-trained noise prediction and the reward on the final sample.

    Args:
        schedule: noise tables; their length is the horizon.
        state_shape: shape of one sample.
        temperature: price of one nat of KL.
        dtype: of the states and tables.
    """

    def __init__(
        self,
        schedule: Schedule,
        state_shape: tuple[int, ...],
        temperature: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_positive("temperature", temperature)
        self.schedule = Schedule(*(t.to(dtype) if t.is_floating_point() else t for t in schedule))
        self.state_shape = self.noise_shape = tuple(state_shape)
        self.horizon = len(schedule.alpha)
        self.temperature = temperature
        # derived tables are computed in the schedule's float64, then rounded once
        noise_scale = (1 - schedule.alpha_bar).sqrt()
        self._shrink = schedule.alpha.rsqrt().to(dtype)
        self._slope = ((1 - schedule.alpha) / noise_scale * schedule.alpha.rsqrt()).to(dtype)
        self._clean_scale = schedule.alpha_bar.rsqrt().to(dtype)
        self._clean_slope = (noise_scale * schedule.alpha_bar.rsqrt()).to(dtype)

    @abstractmethod
    def predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The pre-trained model's estimate of the noise in ``x``: minus the score times ``sqrt(1 - alpha_bar_k)``."""

    def score(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The pre-trained score s_k(x), the gradient of the log density of X_k."""
        return -self.predict_noise(k, x) / (1 - at(self.schedule.alpha_bar, k, x)).sqrt()

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise."""
        return torch.randn(n, *self.state_shape, generator=generator, device=generator.device, dtype=self._shrink.dtype)

    def gaussian_kernel(self, k: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of ``X_{k+1}`` given ``X_k = x`` without control."""
        mean = at(self._shrink, k, x) * x - at(self._slope, k, x) * self.predict_noise(k, x)
        return mean, at(self.schedule.sigma, k, x)

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """One denoising step with noise and control ``z`` in place of the noise."""
        mean, sigma = self.gaussian_kernel(k, x)
        return torch.addcmul(mean, sigma, z)

    def terminal_estimate(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The clean sample that the pre-trained model predicts from ``x`` (Tweedie); ``x`` itself at ``k = T``.

        With an exact score the map is the gradient of a strictly convex function of x, hence one-to-one: no information
        about the value function is lost, and its gradient is the one that moves along the data.
        """
        if isinstance(k, int):
            if k == self.horizon:
                return x
            return at(self._clean_scale, k, x) * x - at(self._clean_slope, k, x) * self.predict_noise(k, x)
        last = (k == self.horizon).reshape(-1, *[1] * (x.dim() - 1))
        inside = k.clamp(max=self.horizon - 1)
        estimate = at(self._clean_scale, inside, x) * x - at(self._clean_slope, inside, x) * self.predict_noise(inside, x)
        return torch.where(last, x, estimate)
