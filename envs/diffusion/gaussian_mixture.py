"""The denoising chain over a mixture of Gaussians: exact score, and the optimum in closed form up
to the step size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import checked
from ..problem import at
from ..rendering import canvas, pixels
from .denoising import DenoisingProblem, Schedule
from .step_table import StepTable


class QuadraticReward(nn.Module):
    """``y(x) = -(x - target)^T Q (x - target) / 2 + slope^T x``, any symmetric ``Q``; ``Q = 0`` is
    a linear reward.

    Args:
        matrix: ``Q``, ``(d, d)``.
        target: ``(d,)``.
        slope: ``(d,)``; zero if absent.
    """

    matrix: Tensor
    target: Tensor
    slope: Tensor

    def __init__(self, matrix: Any, target: Any, slope: Any = None) -> None:
        super().__init__()  # a module, so that it moves to a device with its problem
        self.register_buffer("matrix", torch.as_tensor(matrix, dtype=torch.float64))
        self.register_buffer("target", torch.as_tensor(target, dtype=torch.float64))
        zero = torch.zeros_like(self.target)
        self.register_buffer(
            "slope", zero if slope is None else torch.as_tensor(slope, dtype=torch.float64)
        )
        d = len(self.target)
        if self.matrix.shape != (d, d) or self.slope.shape != (d,):
            shapes = tuple(self.matrix.shape), tuple(self.target.shape), tuple(self.slope.shape)
            raise ValueError(
                f"matrix, target and slope must have shapes (d, d), (d,), (d,); got {shapes}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, d) -> (n,)``."""
        off = x - self.target.to(x)
        return -0.5 * ((off @ self.matrix.to(x)) * off).sum(1) + x @ self.slope.to(x)

    def maximum(self) -> float:
        """The largest value of ``y``; infinity where it has none."""
        values, vectors = torch.linalg.eigh(self.matrix)
        slope = self.slope @ vectors
        flat = values <= 1e-12 * values.abs().max()
        if (values < 0).any() or (slope[flat] != 0).any():
            return math.inf
        top = 0.5 * (slope[~flat].square() / values[~flat]).sum() + self.target @ self.slope
        return float(top)

    def log_moment(self, mean: Tensor, variance: Tensor, temperature: float) -> Tensor:
        """``log E exp(y(X) / temperature)`` for ``X ~ N(mean, variance I)``; ``mean (..., d)``,
        ``variance (...)``.

        In the eigenbasis of Q the integral is a product of one-dimensional Gaussian integrals.
        """
        values, vectors = torch.linalg.eigh(self.matrix)
        q = (values / temperature).to(mean)
        turn = vectors.to(mean)
        off = (mean - self.target.to(mean)) @ turn
        g = (self.slope / temperature).to(mean)
        h = g @ turn
        v = variance[..., None]
        spread = 1 + v * q
        if not (spread > 0).all():
            raise ValueError(
                "the reward grows faster than the density falls: E exp(y / temperature) is infinite"
            )
        exponent = (-0.5 * q * off.square() + h * off + 0.5 * v * h.square()) / spread
        return (exponent - 0.5 * spread.log()).sum(-1) + self.target.to(mean) @ g


def _rows(table: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One contiguous tensor a step."""
    return table.to(dtype).contiguous().unbind(0)


class GaussianMixture(DenoisingProblem):
    """Denoise samples of ``sum_j weights_j N(means_j, std_j^2 I)``, rewarded on the clean sample.

    Args:
        means: ``(M, d)``.
        std: one standard deviation, or ``(M,)``.
        weights: ``(M,)``, positive; equal if absent. They are normalised.
        reward: a ``QuadraticReward``, or any callable ``(n, d) -> (n,)`` (then there is no
            closed-form reference).
        temperature: price of one nat of KL.
        schedule: noise tables, a ``Schedule`` or any ``StepTable``; diffusers' DDPM defaults with
            50 steps if absent. Where a chain begins without a signal, as flows do, ``predict``
            returns the velocity ``E[e - x0 | x]``, else the noise.
    """

    model_methods = ("predict", "predict_noise", "gaussian_kernel")  # the last knows the score, too

    @checked
    def __init__(
        self,
        means: Any,
        std: Any,
        reward: Any,
        temperature: float,
        weights: Any = None,
        schedule: Schedule | StepTable | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        centre = torch.as_tensor(means, dtype=torch.float64)
        if centre.dim() != 2:
            raise ValueError(f"means must have shape (modes, dimension); got {tuple(centre.shape)}")
        modes, d = centre.shape
        spread = torch.as_tensor(std, dtype=torch.float64).expand(modes)
        weight = (
            torch.ones(modes, dtype=torch.float64)
            if weights is None
            else torch.as_tensor(weights, dtype=torch.float64)
        )
        if weight.shape != (modes,) or not (weight > 0).all() or not (spread > 0).all():
            raise ValueError(
                f"weights and std must hold one positive number for each of the {modes} modes"
            )
        tables = Schedule.ddpm() if schedule is None else schedule
        table = tables.table()
        prediction = "epsilon" if bool((table.signal > 0).all()) else "velocity"
        super().__init__(tables, (d,), temperature, dtype, prediction)
        self.reward = reward
        self.means, self.std = centre.to(dtype), spread.to(dtype)
        weight = weight / weight.sum()
        # One row per step and one for the clean end: log responsibility = const + x . pull - |x|^2
        # precision / 2.
        signal = torch.cat([table.signal, table.signal.new_ones(1)])
        noise = torch.cat([table.noise, table.noise.new_zeros(1)])
        variance = (signal[:, None] * spread) ** 2 + noise[:, None] ** 2
        scaled = signal[:, None, None] * centre
        pull = scaled / variance[..., None]
        constant = (
            weight.log() - 0.5 * d * variance.log() - 0.5 * scaled.square().sum(-1) / variance
        )
        self._noise_scale = noise.to(dtype)
        self._precision = (1 / variance).to(dtype)
        self._pull = pull.to(dtype)
        self._constant = constant.to(dtype)
        # Under a mode, E[x0 | x] = m + gain (x - a m) and E[e | x] = b / variance (x - a m).
        gain = (signal[:, None] * spread**2 / variance)[..., None]
        self._gain, self._rest = gain.to(dtype), (centre - gain * scaled).to(dtype)
        # When all rows are at one step: log responsibility = constant + x @ linear + x^2 @
        # quadratic, and the mean of the next state is shift + stretch x, both from shares @ blend.
        # Lists, since indexing a tensor costs as much as using it.
        linear, quadratic = pull.mT, (-0.5 / variance)[:, None].expand(-1, d, -1)
        clean, kept = table.next_signal[:, None, None], table.kept[:, None, None]
        stretch = clean * gain[:-1] + kept * (noise[:-1, None] / variance[:-1])[..., None]
        shift = clean * centre - stretch * scaled[:-1]
        self._logit_tables = tuple(
            zip(*(_rows(t, dtype) for t in (constant, linear, quadratic)), strict=True)
        )
        blend = torch.cat([shift, stretch.expand(-1, -1, d)], 2)
        self._kernel_tables = tuple(
            zip(_rows(blend, dtype), _rows(table.sigma, dtype), strict=True)
        )

    def _logits(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Unnormalised log responsibilities of the modes, ``(n, M)``."""
        if isinstance(k, int):
            constant, linear, quadratic = self._logit_tables[k]
            return torch.addmm(torch.addmm(constant, x, linear), x * x, quadratic)
        half = -0.5 * x.square().sum(1, keepdim=True)
        return (
            self._constant[k]
            + torch.einsum("nd,nmd->nm", x, self._pull[k])
            + half * self._precision[k]
        )

    def gaussian_kernel(self, k: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As every denoiser's, in few operations: the chain is so cheap that their number decides
        its speed.
        """
        if not isinstance(k, int):
            return super().gaussian_kernel(k, x)
        blend, sigma = self._kernel_tables[k]
        shift, stretch = (torch.softmax(self._logits(k, x), 1) @ blend).chunk(2, 1)
        return torch.addcmul(shift, stretch, x), sigma

    def predict(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See DenoisingProblem; exact."""
        if self.prediction == "epsilon":
            return self.predict_noise(k, x)
        share = torch.softmax(self._logits(k, x), 1)
        if isinstance(k, int):
            clean = share @ self._rest[k] + x * (share @ self._gain[k])
        else:
            clean = torch.einsum("nm,nmd->nd", share, self._rest[k] + x[:, None] * self._gain[k])
        return self.predict_noise(k, x) - clean

    def predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The exact noise prediction, ``-b_k grad log p_k(x)``."""
        share = torch.softmax(self._logits(k, x), 1)
        if isinstance(k, int):
            return (
                x * (share @ self._precision[k])[:, None] - share @ self._pull[k]
            ) * self._noise_scale[k]
        pulled = torch.einsum("nm,nmd->nd", share, self._pull[k])
        return (x * (share * self._precision[k]).sum(1, keepdim=True) - pulled) * at(
            self._noise_scale, k, x
        )

    def log_density(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Log density of the noised mixture at step k (of the clean one at ``k = T``), ``(n,)``."""
        return torch.logsumexp(self._logits(k, x), 1) - 0.5 * self.means.shape[1] * math.log(
            2 * math.pi
        )

    def terminal_reward(self, x: Tensor) -> Tensor:
        """The reward of the clean sample."""
        return self.reward(x)

    @property
    def reward_bound(self) -> float:
        """The largest reward of a quadratic that has one; absent for other rewards."""
        if isinstance(self.reward, QuadraticReward) and math.isfinite(top := self.reward.maximum()):
            return top
        raise AttributeError(
            f"reward_bound is known for a concave QuadraticReward only; got {self.reward!r}"
        )

    def reference_value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``beta log E[exp(y(X_data) / beta) | X_k = x]`` from the posterior mixture: V_k up to the
        step size, ``(n,)``.
        """
        if not isinstance(self.reward, QuadraticReward):
            raise ValueError(
                f"reference_value needs a QuadraticReward; got {type(self.reward).__name__}"
            )
        rows = k if isinstance(k, int) else k[:, None]
        gain = self._gain[k]  # (M, 1) or (n, M, 1)
        mean = self._rest[k] + gain * x[:, None]
        variance = self.std.square() * self._precision[k] * self._noise_scale[rows].square()
        log_share = torch.log_softmax(self._logits(k, x), 1)
        moment = self.reward.log_moment(mean, variance.expand(log_share.shape), self.temperature)
        return self.temperature * torch.logsumexp(log_share + moment, 1)

    def reference_control(self, k: int, x: Tensor) -> Tensor:
        """``sigma_k grad V_{k+1}(mean_k(x)) / beta``: optimal up to the step size, ``(n, d)``."""
        with torch.no_grad():
            mean, sigma = self.gaussian_kernel(k, x)
        with torch.enable_grad():
            mean.requires_grad_()
            (gradient,) = torch.autograd.grad(self.reference_value(k + 1, mean).sum(), mean)
        return sigma * gradient / self.temperature

    def render(self, path: Tensor) -> np.ndarray:
        """The modes and the path so far, in the first two coordinates."""
        figure, axes = canvas()
        centre = self.means.cpu().double().numpy()
        second = min(1, centre.shape[1] - 1)
        for mean, std in zip(centre, self.std.cpu().tolist(), strict=True):
            for radius in (1, 2):
                angle = np.linspace(0, 2 * np.pi, 60)
                x, y = (
                    mean[0] + radius * std * np.cos(angle),
                    mean[second] + radius * std * np.sin(angle),
                )
                axes.plot(x, y, color="0.7", linewidth=1)
        walk = path.double().numpy()
        axes.plot(walk[:, 0], walk[:, second], color="C0", linewidth=0.8)
        axes.scatter(walk[-1, 0], walk[-1, second], color="C3", zorder=3)
        limit = float(np.abs(centre).max() + 3 * float(self.std.max()))
        axes.set(
            xlim=(-limit, limit),
            ylim=(-limit, limit),
            title=f"step {len(walk) - 1} of {self.horizon}",
        )
        axes.set_aspect("equal")
        return pixels(figure)


@checked
def gaussian_mixture(
    temperature: float = 0.5, steps: int = 50, dimension: int = 2, **schedule: Any
) -> GaussianMixture:
    """``girsanov/GaussianMixture-v0``: four modes at (+-1, +-1), rewarded by minus the squared
    distance to the first.

    In an even ``dimension`` above 2 the two directions that tell the modes apart are spread over
    all coordinates: each is the diagonal of one half of them, so that distances between modes stay
    what they are in the plane.

    Args:
        temperature: price of one nat of KL.
        steps: number of denoising steps.
        dimension: of the states.
        **schedule: further arguments of ``Schedule.ddpm``.
    """
    if not isinstance(dimension, int) or dimension < 2 or dimension % 2:
        raise ValueError(f"dimension must be an even integer of at least 2; got {dimension!r}")
    plane = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    means = (plane / (dimension / 2) ** 0.5).repeat_interleave(dimension // 2, 1)
    reward = QuadraticReward(2.0 * torch.eye(dimension), means[0])
    return GaussianMixture(
        means, 0.3, reward, temperature, schedule=Schedule.ddpm(steps, **schedule)
    )
