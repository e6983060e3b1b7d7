"""Linear classes: f or log f is a linear combination of features.

The weights lie in a convex set.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from ....envs.problem import check_positive
from ...checks import check_whole
from ...networks import Value
from .inequality import solve_ball

#: Directions that the data hold less of than this share of the mean count less in the norm of what
#: is missed.
_SMOOTHING = 1e-6


class Tangent(NamedTuple):
    """A linear class at some rows: ``log f`` and its derivative by the weights.

    The derivative is ``time (x) (space mixing)``.
    """

    log_f: Tensor  # (n,)
    space: Tensor  # (n, R)


class LinearValue(Value):
    """Linear combinations of features ``b_i(k) s_j(x)`` of time and space, in float64.

    The features of time are Chebyshev polynomials of its clock; a subclass writes those of space,
    and which convex set the weights ``(times, features)`` belong to.

    ``linear_in_weights`` tells whether f itself is linear in them, or only ``log f``.

    Features of space may be linear combinations of raw ones, ``s(x) = raw(x) mixing``: sums over
    many rows are then taken of the raw ones, and mixed once.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of features of space.
        times: number of features of time; None: as many as steps, each the indicator of one, so
            that every step has weights of its own (see ``backward``).
    """

    linear_in_weights: bool
    mixing: Tensor | None  #: ``(R, Ms)``; None: raw features are those of space

    def __init__(self, n_inputs: int, horizon: int, features: int, times: int | None) -> None:
        self.stepwise = times is None
        if times is None:
            times = horizon + 1
        check_whole("times", times, 1)
        super().__init__(n_inputs, horizon)
        self.register_buffer("weights", torch.zeros(times, features))
        # features of time at every step
        self.register_buffer("time_table", torch.zeros(horizon + 1, times))
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
        self.time_table.copy_(
            torch.cos(torch.arange(len(self.weights), device=angle.device) * angle[:, None])
        )

    @abstractmethod
    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Choose what depends on data, such as centres and length scales.

        The data are steps ``(n,)`` and encoded states ``(n, p)``.
        """

    @abstractmethod
    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Raw features of space ``(n, R)`` of encoded states ``(n, p)``."""

    @abstractmethod
    def evaluate(self, k: int | Tensor, raw: Tensor, weights: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``, of raw features ``(n, R)`` and given ``weights``."""

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
    def solve(
        self, matrix: Tensor, gram: Tensor, vector: Tensor, ridges: Sequence[float]
    ) -> list[Tensor]:
        """``(A w - b)^T (u - w) >= 0`` for all u of the set but for a ridge.

        In float64, ``(M,)`` for each of several ridges.

        Args:
            matrix: ``A``, ``(M, M)``.
            gram: Gram matrix of the features, ``(M, M)``.
            vector: ``b``, ``(M,)``.
            ridges: shares of the mean diagonal.
        """


class ExponentialValue(LinearValue):
    """``f = exp(w . phi)`` with w in a ball.

    The first feature of space is the constant 1, which the ridge leaves alone.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of features of space.
        times: number of features of time; None: weights of their own at every step.
        radius: of the ball.
    """

    linear_in_weights = False

    def __init__(
        self, n_inputs: int, horizon: int, features: int, times: int | None, radius: float
    ) -> None:
        super().__init__(n_inputs, horizon, features, times)
        check_positive("radius", radius)
        self.radius = radius

    def evaluate(self, k: int | Tensor, raw: Tensor, weights: Tensor) -> Tensor:
        """See LinearValue."""
        table = self.time_table[k] if isinstance(k, int) else self.time_table
        table = table @ weights
        table = table if self.mixing is None else table @ self.mixing.T
        linear = raw @ table if isinstance(k, int) else (raw * table[k]).sum(1)
        return linear + self.offset[k]

    def tangent(self, k: int | Tensor, inputs: Tensor) -> Tangent:
        """See LinearValue: the derivative is the features themselves."""
        raw = self.raw(k, inputs)
        return Tangent(self.evaluate(k, raw, self.weights), raw)

    def follow(self, k: Tensor, inputs: Tensor, log_f: Tensor, ridge: float = 1e-4) -> None:
        """Take the weights whose log f is nearest to ``log_f`` ``(n,)``, by ridge regression.

        Args:
            k: steps ``(n,)``.
            inputs: encoded states ``(n, p)``.
            log_f: the logarithms there, float64.
            ridge: a share of the Gram matrix's mean diagonal.
        """
        both = self.time_table[k][:, :, None] * self.space(k, inputs)[:, None]
        features = both.flatten(1)
        gram = features.T @ features
        pull = ridge * gram.diagonal().mean() * self.penalties().flatten()
        slope = features.T @ (log_f - self.offset[k])
        weights = torch.linalg.solve(gram + torch.diag(pull), slope)
        self.weights.copy_(self.project(weights.view_as(self.weights)))

    def project(self, weights: Tensor) -> Tensor:
        """Scale weights outside of the ball back to its surface."""
        return weights * (self.radius / weights.norm().clamp(min=1e-300)).clamp(max=1)

    def solve(
        self, matrix: Tensor, gram: Tensor, vector: Tensor, ridges: Sequence[float]
    ) -> list[Tensor]:
        """See LinearValue.

        With few data A need not be coercive, and a ridge added to it may make it singular. So the
        ridge is added to the square of what is missed, ``(A w - b)^T (G + s)^-1 (A w - b) + ridge
        w^T w``, in the norm dual to that of the features: where A is the Gram matrix G itself this
        is ridge regression, and no A makes it singular. Outside of the ball it is the inequality
        with a ridge on A that is solved.
        """
        unit = gram.diagonal().mean()
        penalty = (unit * self.penalties()).flatten()
        factor, failed = torch.linalg.cholesky_ex(
            gram + _SMOOTHING * torch.diag(unit.expand(len(gram)))
        )
        if int(failed):  # nothing was seen, or nothing but NaN
            return [torch.zeros_like(vector) for _ in ridges]
        both = torch.linalg.solve_triangular(
            factor, torch.cat([matrix, vector[:, None]], 1), upper=False
        )
        squared = both[:, :-1].T @ both
        found = []
        for ridge in ridges:
            root, failed = torch.linalg.cholesky_ex(squared[:, :-1] + torch.diag(ridge * penalty))
            w = torch.cholesky_solve(squared[:, -1:], root)[:, 0]
            inside = not int(failed) and float(w.norm()) <= self.radius
            found.append(
                w
                if inside
                else solve_ball(matrix + torch.diag(ridge * penalty), vector, self.radius)
            )
        return found

    def penalties(self) -> Tensor:
        """How much the ridge weighs on each weight, ``(times, Ms)``.

        Not at all on functions of time alone.
        """
        penalty = torch.ones_like(self.weights)
        penalty[:, 0] = (
            1e-9  # where every state is equal the constant must still be told from the rest
        )
        return penalty


class PolynomialValue(ExponentialValue):
    """``log f`` is a polynomial.

    Quadratics, which Gaussian problems have exactly, or sums of powers of single coordinates.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        degree: largest total degree.
        interaction: most coordinates in one monomial; absent: ``degree`` where that makes at most
            500 features, else 1.
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
        check_whole("degree", degree, 1)
        if interaction is not None:
            check_whole("interaction", interaction, 1)
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
        # one row a coordinate: rows are gathered much faster than columns
        x = self.standardise(inputs.double()).T
        rows = [torch.ones_like(x), x]
        for order in range(1, self.degree):
            rows.append((x * rows[-1] - math.sqrt(order) * rows[-2]) / math.sqrt(order + 1))
        # (1 + p * degree, n)
        factors = torch.cat([rows[0][:1], torch.stack(rows[1:], 1).flatten(0, 1)])
        product = factors.index_select(0, self.slots[:, 0])
        for slot in self.slots.T[1:]:
            product = product * factors.index_select(0, slot)
        return product.T
