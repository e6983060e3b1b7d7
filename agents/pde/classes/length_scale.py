"""Linear classes with a length scale.

Random Fourier features, a Nystrom basis of a kernel's space, positive radial bases.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ....envs.problem import check_positive
from ...checks import check_whole
from .inequality import solve_positive
from .linear import ExponentialValue, LinearValue, Tangent


class TrendValue(ExponentialValue):
    """``log f`` is affine plus a combination of ``shapes`` of a length scale.

    A subclass writes the shapes.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        shapes: number of them.
        length: length scale, in units of the median distance between data.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball of weights.
    """

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        shapes: int,
        length: float,
        times: int | None,
        radius: float,
    ) -> None:
        super().__init__(n_inputs, horizon, 1 + n_inputs + shapes, times, radius)
        check_positive("length", length)
        self.length = length

    @abstractmethod
    def shapes(self, x: Tensor) -> Tensor:
        """Raw features ``(n, shapes)`` of standardised states ``(n, p)``."""

    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``[1, x, shapes(x)]``."""
        x = self.standardise(inputs.double())
        return torch.cat([torch.ones_like(x[:, :1]), x, self.shapes(x)], 1)


class FourierValue(TrendValue):
    """Shapes: random Fourier features of a Gaussian kernel (Rahimi and Recht 2007).

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of waves.
        length: length scale of the kernel, in units of the median distance between data.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball of weights.
    """

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        features: int = 100,
        length: float = 1.0,
        times: int | None = 6,
        radius: float = 1e6,
    ) -> None:
        check_whole("features", features, 1)
        super().__init__(n_inputs, horizon, features, length, times, radius)
        self.register_buffer("frequencies", torch.zeros(features, n_inputs, dtype=torch.float64))
        self.register_buffer("phases", torch.zeros(features, dtype=torch.float64))
        self.frequencies: Tensor
        self.phases: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Draw the waves."""
        waves = torch.randn(
            self.frequencies.shape, generator=generator, device=inputs.device, dtype=torch.float64
        )
        self.frequencies.copy_(
            waves / (self.length * median_distance(self.standardise(inputs.double())))
        )
        self.phases.copy_(
            torch.rand(len(self.phases), generator=generator, device=inputs.device) * 2 * math.pi
        )

    def shapes(self, x: Tensor) -> Tensor:
        """``sqrt(2 / features) cos(frequency . x + phase)``."""
        return torch.addmm(self.phases, x, self.frequencies.T).cos() * math.sqrt(
            2 / len(self.phases)
        )


class KernelValue(TrendValue):
    """Shapes: a Nystrom basis of the Gaussian kernel's space.

    Features are whitened, so that the norm of the weights is the norm of the reproducing-kernel
    space (Williams and Seeger 2001): the ball of weights is a ball of that space.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        centres: size of the basis; they are placed on data.
        length: length scale of the kernel, in units of the median distance between data.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball of weights.
    """

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        centres: int = 100,
        length: float = 1.0,
        times: int | None = 6,
        radius: float = 1e6,
    ) -> None:
        check_whole("centres", centres, 1)
        super().__init__(n_inputs, horizon, centres, length, times, radius)
        self.register_buffer("centres", torch.zeros(centres, n_inputs, dtype=torch.float64))
        self.mixing = torch.eye(1 + n_inputs + centres, dtype=torch.float64)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.centres: Tensor
        self.mixing: Tensor
        self.scale: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Centre the basis on random data."""
        x = self.standardise(inputs.double())
        self.scale.copy_(self.length * median_distance(x))
        self.centres.copy_(
            x[torch.randint(len(x), (len(self.centres),), generator=generator, device=x.device)]
        )
        values, vectors = torch.linalg.eigh(self.shapes(self.centres))
        root = torch.where(values > 1e-8 * values[-1], values.clamp(min=1e-300).rsqrt(), 0.0)
        self.mixing[-len(values) :, -len(values) :] = (vectors * root) @ vectors.T

    def shapes(self, x: Tensor) -> Tensor:
        """``k(centres, x)``, to be mixed by ``K^{-1/2}``."""
        return gaussians(x, self.centres, self.scale, 0.0)


class RadialValue(LinearValue):
    """``f = sum_j w_j phi_j`` with Gaussian bumps in (state, time) and weights ``w >= 0``.

    It is positive wherever it is defined.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        centres: number of bumps; they are placed on data.
        width: standard deviation of a bump, in units of the median distance between data at one
            time.
        span: standard deviation of a bump in time, as a share of the horizon.
        floor: a constant function is added with this share of the mean, so that log f has no hole
            off the data.
    """

    linear_in_weights = True

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        centres: int = 200,
        width: float = 1.0,
        span: float = 0.1,
        floor: float = 1e-6,
    ) -> None:
        check_whole("centres", centres, 1)
        for name, number in (("width", width), ("span", span)):
            check_positive(name, number)
        if not (math.isfinite(floor) and floor >= 0):
            raise ValueError(f"floor must be a number of at least 0; got {floor!r}")
        super().__init__(n_inputs, horizon, centres, times=1)
        self.width, self.span, self.floor = width, span, floor
        self.register_buffer("centres", torch.zeros(centres, n_inputs, dtype=torch.float64))
        self.register_buffer("times", torch.zeros(centres, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.centres: Tensor
        self.times: Tensor
        self.scale: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Centre the bumps on random data.

        Their radius comes from distances between data at nearby times.
        """
        row = torch.randint(
            len(inputs), (len(self.centres),), generator=generator, device=inputs.device
        )
        self.centres.copy_(self.standardise(inputs[row].double()))
        self.times.copy_(k[row] / self.horizon)
        near = (self.times[:, None] - self.times).abs() < self.span
        distance = torch.cdist(self.centres, self.centres)[near]
        distance = distance[distance > 0]
        self.scale.copy_(
            self.width * (distance.median() if len(distance) else distance.new_ones(()))
        )
        self.weights.fill_(1.0)

    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The bumps at ``(k, inputs)``, ``(n, M)``."""
        t = torch.as_tensor(k, device=inputs.device).to(self.times).reshape(-1, 1) / self.horizon
        return gaussians(
            self.standardise(inputs.double()),
            self.centres,
            self.scale,
            -0.5 * ((t - self.times) / self.span).square(),
        )

    def evaluate(self, k: int | Tensor, raw: Tensor, weights: Tensor) -> Tensor:
        """See LinearValue."""
        return torch.log(raw @ weights[0] + self.floor) + self.offset[k]

    def tangent(self, k: int | Tensor, inputs: Tensor) -> Tangent:
        """See LinearValue: the derivative is ``phi / f``."""
        raw = self.raw(k, inputs)
        f = raw @ self.weights[0] + self.floor
        return Tangent(f.log() + self.offset[k], raw / f[:, None])

    def project(self, weights: Tensor) -> Tensor:
        """Negative weights become zero."""
        return weights.clamp(min=0)

    def solve(
        self, matrix: Tensor, gram: Tensor, vector: Tensor, ridges: Sequence[float]
    ) -> list[Tensor]:
        """See LinearValue: the ridge is added to A.

        With few data A need not be coercive, and the inequality may have no solution or many. Then
        the form is made coercive by just enough of a penalty on the distance to the present
        weights: a proximal step (Rockafellar 1976), which shrinks nothing, and which repeated steps
        lead to a solution of the inequality itself if they converge.
        """
        unit = matrix.diagonal().abs().mean()
        hold = (1e-10 * unit - torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))[0]).clamp(min=0)
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        vector = vector + hold * self.weights.flatten()
        return [solve_positive(matrix + (hold + ridge * unit) * eye, vector) for ridge in ridges]


def median_distance(inputs: Tensor, most: int = 500) -> Tensor:
    """Median distance between (at most ``most`` evenly chosen) rows of ``inputs`` ``(n, p)``.

    1 where all rows are equal.
    """
    some = inputs[:: max(1, len(inputs) // most)]
    distance = torch.pdist(some)
    distance = distance[distance > 0]
    return distance.median() if len(distance) else inputs.new_ones(())


def gaussians(x: Tensor, centres: Tensor, scale: Tensor, exponent: Tensor | float) -> Tensor:
    """``exp(exponent - |x_i - c_j|^2 / (2 scale^2))``, ``(n, M)``.

    The inputs are ``(n, p)``, ``(M, p)`` and ``(1 or n, M)``.
    """
    # not cdist, which autograd can't differentiate twice
    x, centres = x / scale, centres / scale
    constant = exponent - 0.5 * centres.square().sum(1)
    return torch.exp(torch.addmm(constant, x, centres.T) - 0.5 * x.square().sum(1)[:, None])
