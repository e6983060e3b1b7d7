"""Linear classes for the Cole-Hopf transform: f or log f is a linear combination of features, its weights in a convex set."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.problem import check_positive
from .function_classes import Value
from .inequality import solve_ball, solve_positive

#: Directions that the data hold less of than this share of the mean count less in the norm of what is missed.
_SMOOTHING = 1e-6


class Tangent(NamedTuple):
    """A linear class at some rows: ``log f`` and its derivative by the weights, ``time (x) (space mixing)``."""

    log_f: Tensor  # (n,)
    space: Tensor  # (n, R)


class LinearValue(Value):
    """Linear combinations of features ``b_i(k) s_j(x)`` of time and space, in float64.

    The features of time are Chebyshev polynomials of its clock; a subclass writes those of space, and which convex set the
    weights ``(times, features)`` belong to.

    ``linear_in_weights`` tells whether f itself is linear in them, or only ``log f``.

    Features of space may be linear combinations of raw ones, ``s(x) = raw(x) mixing``: sums over many rows are then taken of
    the raw ones, and mixed once.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of features of space.
        times: number of features of time; None: as many as steps, each the indicator of one, so that every step has weights
            of its own (see ``backward``).
    """

    linear_in_weights: bool
    mixing: Tensor | None  #: ``(R, Ms)``; None: raw features are those of space

    def __init__(self, n_inputs: int, horizon: int, features: int, times: int | None) -> None:
        self.stepwise = times is None
        if times is None:
            times = horizon + 1
        check_count("times", times)
        super().__init__(n_inputs, horizon)
        self.register_buffer("weights", torch.zeros(times, features))
        self.register_buffer("time_table", torch.zeros(horizon + 1, times))  # features of time at every step
        self.register_buffer("mixing", None)
        self.weights: Tensor
        self.time_table: Tensor
        self.double()
        self._tabulate()

    def wind(self, steps: Tensor, inputs: Tensor) -> None:
        """See Value."""
        super().wind(steps, inputs)
        self._tabulate()

    def _tabulate(self) -> None:
        if self.stepwise:
            self.time_table.copy_(torch.eye(len(self.weights)))
            return
        angle = torch.acos((2 * self.clock - 1).clamp(-1, 1))
        self.time_table.copy_(torch.cos(torch.arange(len(self.weights), device=angle.device) * angle[:, None]))

    @abstractmethod
    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Choose what depends on data (centres, length scales) from steps ``(n,)`` and encoded states ``(n, p)``."""

    @abstractmethod
    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Raw features of space ``(n, R)`` of encoded states ``(n, p)``."""

    @abstractmethod
    def evaluate(self, k: int | Tensor, raw: Tensor, weights: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``, of raw features ``(n, R)`` with ``weights`` in place of its own."""

    @abstractmethod
    def tangent(self, k: int | Tensor, inputs: Tensor) -> Tangent:
        """``log f`` and its derivative by the weights."""

    def space(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Features of space ``(n, Ms)`` of encoded states ``(n, p)``."""
        return self.mixed(self.raw(k, inputs))

    def mixed(self, raw: Tensor) -> Tensor:
        """``raw mixing``, ``(n, R) -> (n, Ms)``."""
        return raw if self.mixing is None else raw @ self.mixing

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``."""
        return self.evaluate(k, self.raw(k, inputs), self.weights)

    @abstractmethod
    def project(self, weights: Tensor) -> Tensor:
        """The nearest point of the convex set, same shape."""

    @abstractmethod
    def solve(self, matrix: Tensor, gram: Tensor, vector: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """``(A w - b)^T (u - w) >= 0`` for all u of the set but for a ridge, in float64, ``(M,)`` for each of several.

        Args:
            matrix: ``A``, ``(M, M)``.
            gram: Gram matrix of the features, ``(M, M)``.
            vector: ``b``, ``(M,)``.
            ridges: shares of the mean diagonal.
        """


class ExponentialValue(LinearValue):
    """``f = exp(w . phi)`` with w in a ball; the first feature of space is the constant 1, which the ridge leaves alone.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of features of space.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball.
    """

    linear_in_weights = False

    def __init__(self, n_inputs: int, horizon: int, features: int, times: int | None, radius: float) -> None:
        super().__init__(n_inputs, horizon, features, times)
        check_positive("radius", radius)
        self.radius = radius

    def evaluate(self, k: int | Tensor, raw: Tensor, weights: Tensor) -> Tensor:
        """See LinearValue."""
        table = self.time_table[k] if isinstance(k, int) else self.time_table
        table = table @ weights
        table = table if self.mixing is None else table @ self.mixing.T
        linear = raw @ table if isinstance(k, int) else (raw * table[k]).sum(1)
        return linear + self.offset

    def tangent(self, k: int | Tensor, inputs: Tensor) -> Tangent:
        """See LinearValue: the derivative is the features themselves."""
        raw = self.raw(k, inputs)
        return Tangent(self.evaluate(k, raw, self.weights), raw)

    def project(self, weights: Tensor) -> Tensor:
        """Scale weights outside of the ball back to its surface."""
        return weights * (self.radius / weights.norm().clamp(min=1e-300)).clamp(max=1)

    def solve(self, matrix: Tensor, gram: Tensor, vector: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """See LinearValue.

        With few data A need not be coercive, and a ridge added to it may make it singular. So the ridge is added to the square
        of what is missed, ``(A w - b)^T (G + s)^-1 (A w - b) + ridge w^T w``, in the norm dual to that of the features: where A
        is the Gram matrix G itself this is ridge regression, and no A makes it singular. Outside of the ball it is the
        inequality with a ridge on A that is solved.
        """
        unit = gram.diagonal().mean()
        penalty = (unit * self.penalties()).flatten()
        factor, failed = torch.linalg.cholesky_ex(gram + _SMOOTHING * torch.diag(unit.expand(len(gram))))
        if int(failed):  # nothing was seen, or nothing but NaN
            return [torch.zeros_like(vector) for _ in ridges]
        both = torch.linalg.solve_triangular(factor, torch.cat([matrix, vector[:, None]], 1), upper=False)
        squared = both[:, :-1].T @ both
        found = []
        for ridge in ridges:
            root, failed = torch.linalg.cholesky_ex(squared[:, :-1] + torch.diag(ridge * penalty))
            w = torch.cholesky_solve(squared[:, -1:], root)[:, 0]
            inside = not int(failed) and float(w.norm()) <= self.radius
            found.append(w if inside else solve_ball(matrix + torch.diag(ridge * penalty), vector, self.radius))
        return found

    def penalties(self) -> Tensor:
        """How much the ridge weighs on each weight, ``(times, Ms)``: not at all on functions of time alone."""
        penalty = torch.ones_like(self.weights)
        penalty[:, 0] = 1e-9  # where every state is equal the constant must still be told from the rest
        return penalty


class PolynomialValue(ExponentialValue):
    """``log f`` is a polynomial: quadratics of Gaussian problems, exactly, or sums of powers of single coordinates.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        degree: largest total degree.
        interaction: most coordinates in one monomial; absent: ``degree`` where that makes at most 500 features, else 1.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball of weights.
    """

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        degree: int = 2,
        interaction: int | None = None,
        times: int | None = 8,
        radius: float = 1e6,
    ) -> None:
        check_count("degree", degree)
        if interaction is not None:
            check_count("interaction", interaction)
        if interaction is None:
            interaction = degree if math.comb(n_inputs + degree, degree) <= 500 else 1
        powers: list[tuple[int, ...]] = [()]
        for size in range(1, degree + 1):
            if interaction == 1:
                powers += [(i,) * size for i in range(n_inputs)]
            else:
                every = combinations_with_replacement(range(n_inputs), size)
                powers += [p for p in every if len(set(p)) <= interaction]
        super().__init__(n_inputs, horizon, len(powers), times, radius)
        table = torch.zeros(len(powers), n_inputs, dtype=torch.long)
        for row, power in enumerate(powers):
            for i in power:
                table[row, i] += 1
        self.degree = degree
        # a monomial is a product of at most `degree` columns of [1, H_1(x_1), ..., H_degree(x_p)]
        slots = torch.zeros(len(powers), max(1, max(len(set(p)) for p in powers)), dtype=torch.long)
        for row, power in enumerate(powers):
            for slot, i in enumerate(sorted(set(power))):
                slots[row, slot] = 1 + i * degree + int(table[row, i]) - 1
        self.register_buffer("slots", slots)
        self.slots: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Nothing to choose."""

    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Products of normalised Hermite polynomials of the standardised coordinates."""
        x = self.standardise(inputs.double()).T  # one row a coordinate: rows are gathered much faster than columns
        rows = [torch.ones_like(x), x]
        for order in range(1, self.degree):
            rows.append((x * rows[-1] - math.sqrt(order) * rows[-2]) / math.sqrt(order + 1))
        factors = torch.cat([rows[0][:1], torch.stack(rows[1:], 1).flatten(0, 1)])  # (1 + p * degree, n)
        product = factors.index_select(0, self.slots[:, 0])
        for slot in self.slots.T[1:]:
            product = product * factors.index_select(0, slot)
        return product.T


class TrendValue(ExponentialValue):
    """``log f`` is a constant, a linear function and a combination of ``shapes`` of a length scale, which a subclass writes.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        shapes: number of them.
        length: length scale, in units of the median distance between data.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball of weights.
    """

    def __init__(self, n_inputs: int, horizon: int, shapes: int, length: float, times: int | None, radius: float) -> None:
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
        self, n_inputs: int, horizon: int, features: int = 100, length: float = 1.0, times: int | None = 6, radius: float = 1e6
    ) -> None:
        check_count("features", features)
        super().__init__(n_inputs, horizon, features, length, times, radius)
        self.register_buffer("frequencies", torch.zeros(features, n_inputs, dtype=torch.float64))
        self.register_buffer("phases", torch.zeros(features, dtype=torch.float64))
        self.frequencies: Tensor
        self.phases: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Draw the waves."""
        waves = torch.randn(self.frequencies.shape, generator=generator, device=inputs.device, dtype=torch.float64)
        self.frequencies.copy_(waves / (self.length * median_distance(self.standardise(inputs.double()))))
        self.phases.copy_(torch.rand(len(self.phases), generator=generator, device=inputs.device) * 2 * math.pi)

    def shapes(self, x: Tensor) -> Tensor:
        """``sqrt(2 / features) cos(frequency . x + phase)``."""
        return torch.addmm(self.phases, x, self.frequencies.T).cos() * math.sqrt(2 / len(self.phases))


class KernelValue(TrendValue):
    """Shapes: a Nystrom basis of the Gaussian kernel's space.

    Features are whitened, so that the norm of the weights is the norm of the reproducing-kernel space (Williams and
    Seeger 2001): the ball of weights is a ball of that space.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        centres: size of the basis; they are placed on data.
        length: length scale of the kernel, in units of the median distance between data.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball of weights.
    """

    def __init__(
        self, n_inputs: int, horizon: int, centres: int = 100, length: float = 1.0, times: int | None = 6, radius: float = 1e6
    ) -> None:
        check_count("centres", centres)
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
        self.centres.copy_(x[torch.randint(len(x), (len(self.centres),), generator=generator, device=x.device)])
        values, vectors = torch.linalg.eigh(self.shapes(self.centres))
        root = torch.where(values > 1e-8 * values[-1], values.clamp(min=1e-300).rsqrt(), 0.0)
        self.mixing[-len(values) :, -len(values) :] = (vectors * root) @ vectors.T

    def shapes(self, x: Tensor) -> Tensor:
        """``k(centres, x)``, to be mixed by ``K^{-1/2}``."""
        return gaussians(x, self.centres, self.scale, 0.0)


class RadialValue(LinearValue):
    """``f = sum_j w_j phi_j`` with Gaussian bumps in (state, time) and weights ``w >= 0``: positive wherever it is defined.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        centres: number of bumps; they are placed on data.
        width: standard deviation of a bump, in units of the median distance between data at one time.
        span: standard deviation of a bump in time, as a share of the horizon.
        floor: a constant function is added with this share of the mean, so that log f has no hole off the data.
    """

    linear_in_weights = True

    def __init__(
        self, n_inputs: int, horizon: int, centres: int = 200, width: float = 1.0, span: float = 0.1, floor: float = 1e-6
    ) -> None:
        check_count("centres", centres)
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
        """Centre the bumps on random data; their radius comes from distances between data at nearby times."""
        row = torch.randint(len(inputs), (len(self.centres),), generator=generator, device=inputs.device)
        self.centres.copy_(self.standardise(inputs[row].double()))
        self.times.copy_(k[row] / self.horizon)
        near = (self.times[:, None] - self.times).abs() < self.span
        distance = torch.cdist(self.centres, self.centres)[near]
        distance = distance[distance > 0]
        self.scale.copy_(self.width * (distance.median() if len(distance) else distance.new_ones(())))
        self.weights.fill_(1.0)

    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The bumps at ``(k, inputs)``, ``(n, M)``."""
        t = torch.as_tensor(k, device=inputs.device).to(self.times).reshape(-1, 1) / self.horizon
        return gaussians(
            self.standardise(inputs.double()), self.centres, self.scale, -0.5 * ((t - self.times) / self.span).square()
        )

    def evaluate(self, k: int | Tensor, raw: Tensor, weights: Tensor) -> Tensor:
        """See LinearValue."""
        return torch.log(raw @ weights[0] + self.floor) + self.offset

    def tangent(self, k: int | Tensor, inputs: Tensor) -> Tangent:
        """See LinearValue: the derivative is ``phi / f``."""
        raw = self.raw(k, inputs)
        f = raw @ self.weights[0] + self.floor
        return Tangent(f.log() + self.offset, raw / f[:, None])

    def project(self, weights: Tensor) -> Tensor:
        """Negative weights become zero."""
        return weights.clamp(min=0)

    def solve(self, matrix: Tensor, gram: Tensor, vector: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """See LinearValue: the ridge is added to A.

        With few data A need not be coercive, and the inequality may have no solution or many. Then the form is made coercive by
        just enough of a penalty on the distance to the present weights: a proximal step (Rockafellar 1976), which shrinks
        nothing, and which repeated steps lead to a solution of the inequality itself if they converge.
        """
        unit = matrix.diagonal().abs().mean()
        hold = (1e-10 * unit - torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))[0]).clamp(min=0)
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        vector = vector + hold * self.weights.flatten()
        return [solve_positive(matrix + (hold + ridge * unit) * eye, vector) for ridge in ridges]


def median_distance(inputs: Tensor, most: int = 500) -> Tensor:
    """Median distance between (at most ``most`` evenly chosen) rows of ``inputs`` ``(n, p)``; 1 where all rows are equal."""
    some = inputs[:: max(1, len(inputs) // most)]
    distance = torch.pdist(some)
    distance = distance[distance > 0]
    return distance.median() if len(distance) else inputs.new_ones(())


def gaussians(x: Tensor, centres: Tensor, scale: Tensor, exponent: Tensor | float) -> Tensor:
    """``exp(exponent - |x_i - c_j|^2 / (2 scale^2))``, ``(n, M)``, of ``(n, p)``, ``(M, p)``, ``(1 or n, M)``."""
    # not cdist, which autograd can't differentiate twice
    x, centres = x / scale, centres / scale
    constant = exponent - 0.5 * centres.square().sum(1)
    return torch.exp(torch.addmm(constant, x, centres.T) - 0.5 * x.square().sum(1)[:, None])


def check_count(name: str, value: int) -> None:
    """Raise a ValueError unless ``value`` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
