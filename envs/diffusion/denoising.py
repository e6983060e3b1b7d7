"""The denoising chain of a diffusion model as a control problem (Han et al. 2025, eq. 1-3).

Time runs from noise (k = 0) to data (k = T). With the score s of the pre-trained model,

    F_k(x, z) = (x + (1 - alpha_k) s_k(x)) / sqrt(alpha_k) + sigma_k z

for DDPM, and in general a Gaussian step of ``step_table``, whose mean is affine in what the network
predicts. ``Schedule`` holds the tables of diffusers' variance-preserving schedulers, so that a step
here equals ``DDPMScheduler.step`` with the same noise.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..problem import Problem, at, check_positive
from .schedule import Schedule as Schedule
from .step_table import Reading, StepTable


class DenoisingProblem(Problem):
    """A denoising chain; a subclass supplies what the pre-trained network predicts and the reward
    on the final sample.

    A subclass whose ``prediction`` is ``epsilon`` defines ``predict_noise``; any other defines
    ``predict``.

    Args:
        schedule: noise tables, a ``Schedule`` or any ``StepTable``; their length is the horizon.
        state_shape: shape of one sample.
        temperature: price of one nat of KL.
        dtype: of the states and tables.
        prediction: what ``predict`` returns, one of ``step_table.PREDICTIONS``.

    Raises:
        ValueError: no step has noise, or the prediction can't be read at one of them.
    """

    model_methods: ClassVar[tuple[str, ...]] = ("predict", "predict_noise")

    def __init__(
        self,
        schedule: Schedule | StepTable,
        state_shape: tuple[int, ...],
        temperature: float,
        dtype: torch.dtype = torch.float32,
        prediction: str = "epsilon",
    ) -> None:
        own, base = type(self), DenoisingProblem
        if own.predict is base.predict and own.predict_noise is base.predict_noise:
            raise TypeError(f"{own.__name__} must define predict_noise or predict")
        check_positive("temperature", temperature)
        # derived tables are computed in the schedule's float64, then rounded once
        table = schedule.table()
        if not table.sigma.any():
            raise ValueError(
                "schedule must have noise in one step at least, or there is nothing to control; got"
                f" {len(table.sigma)} without"
            )
        reading = Reading.of(table, prediction)
        self.schedule = schedule.to(dtype)
        self.prediction = prediction
        self.state_shape = self.noise_shape = tuple(state_shape)
        self.horizon = len(table.sigma)
        self.temperature = temperature
        still = table.sigma == 0  # no noise, hence nothing to control
        steer = torch.where(still, 0.0, reading.slope / table.sigma.masked_fill(still, 1.0))
        self._reading = Reading(*(t.to(dtype) for t in reading))
        self._control_slope = steer.to(dtype)
        self._signal, self._noise_scale = table.signal.to(dtype), table.noise.to(dtype)
        # of pure noise, were the data of unit variance
        start = float(torch.hypot(table.signal[0], table.noise[0]))
        self._start = 1.0 if abs(start - 1) < 1e-9 else start

    @staticmethod
    def from_diffusers(*args: Any, **kwargs: Any) -> DenoisingProblem:
        """``diffusers_chain.image_diffusion``, under the name by which it was known first."""
        return import_module(".diffusers_chain", __package__).image_diffusion(*args, **kwargs)

    @staticmethod
    def from_network(
        network: Any, schedule: Schedule | StepTable, prediction: str = "epsilon", **kwargs: Any
    ) -> DenoisingProblem:
        """Your own denoiser as a problem; arguments: ``network.NetworkDenoiser``'s.

        ``DenoisingProblem.from_network(net, StepTable.rectified_flow(28), "velocity", shape=(2,),
        reward=height, temperature=0.1, label=torch.tensor([3]))``
        """
        found = import_module(".network", __package__)
        return found.NetworkDenoiser(network, schedule, prediction, **kwargs)

    def predict(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What the pre-trained model predicts, in the chain's parametrisation ``prediction``, ``(n,
        *noise_shape)``.
        """
        return self.predict_noise(k, x)

    def predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The pre-trained model's estimate of the noise in ``x``: minus the score times the noise's
        scale b_k.
        """
        return self._noise_in(k, x, self.predict(k, x))

    def _noise_in(self, k: int | Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """The noise that a prediction tells."""
        if self.prediction == "epsilon":
            return prediction
        noise_x, noise_y = (at(t, k, x) for t in (self._reading.noise_x, self._reading.noise_y))
        return noise_x * self.latents(x) + noise_y * prediction

    def latents(self, x: Tensor) -> Tensor:
        """The part of states that is noised: all of it, unless a subclass carries a context
        along.
        """
        return x

    def with_latents(self, x: Tensor, latents: Tensor) -> Tensor:
        """States with the context of ``x`` and other latents."""
        return latents

    def score(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The pre-trained score s_k(x), the gradient of the log density of X_k."""
        return -self.predict_noise(k, x) / at(self._noise_scale, k, x)

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Normal noise: standard, but where variance explodes."""
        x = torch.randn(
            n,
            *self.state_shape,
            generator=generator,
            device=generator.device,
            dtype=self._control_slope.dtype,
        )
        return x if self._start == 1.0 else self._start * x

    def gaussian_kernel(self, k: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noised part of ``X_{k+1}`` given ``X_k = x``, without
        control.
        """
        shrink, slope = at(self._reading.shrink, k, x), at(self._reading.slope, k, x)
        mean = shrink * self.latents(x) - slope * self.predict(k, x)
        return mean, self.noise_scale(k, x)

    def noise_scale(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Standard deviation of the noise of step k, the same for all states; it broadcasts over
        ``x``.
        """
        return at(self.schedule.sigma, k, x)

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """One denoising step with noise and control ``z`` in place of the noise."""
        mean, sigma = self.gaussian_kernel(k, x)
        return self.with_latents(x, torch.addcmul(mean, sigma, z))

    def control_of(self, k: int | Tensor, x: Tensor, difference: Tensor) -> Tensor:
        """The control that amounts to another prediction; exactly 0 at steps without noise.

        ``mean + sigma_k a`` is the mean of the step with ``predict + difference`` (Han et al.: u
        in place of s), so that ``|a|^2 / 2`` is the KL between the two steps (their Lemma
        2.5).

        Args:
            k: the step, or one a row.
            x: the states, ``(n, *state_shape)``.
            difference: of the other model's prediction from the pre-trained one, both in the
                chain's parametrisation, ``(n, *noise_shape)``.
        """
        return -at(self._control_slope, k, x) * difference

    def terminal_estimate(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The clean sample that the pre-trained model predicts from ``x`` (Tweedie); ``x`` itself
        at ``k = T``.

        With an exact score the map is the gradient of a strictly convex function of x, hence
        one-to-one: no information about the value function is lost, and its gradient is the one
        that moves along the data.
        """
        if isinstance(k, int):
            if k == self.horizon:
                return x
            return self.with_latents(x, self._clean(k, x))
        last = (k == self.horizon).reshape(-1, *[1] * (x.dim() - 1))
        return torch.where(
            last, x, self.with_latents(x, self._clean(k.clamp(max=self.horizon - 1), x))
        )

    def _clean(self, k: int | Tensor, x: Tensor) -> Tensor:
        scale, slope = at(self._reading.clean_x, k, x), at(self._reading.clean_y, k, x)
        return scale * self.latents(x) - slope * self.predict(k, x)
