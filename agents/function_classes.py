"""Function classes for the Cole-Hopf transform ``f_k(x) = exp(V_k(x) / temperature)`` and for controls.

Every value class is positive by construction and gives ``log f``. Where a problem offers ``terminal_estimate`` (a denoiser's
prediction of the clean sample), functions take that estimate in place of the state: the map is one-to-one, and the chain
rule then passes every gradient through the denoiser's Jacobian, which keeps it along the data (Tweedie's formula).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..envs.problem import Problem
from .inequality import solve_ball, solve_positive

_FREQUENCIES = 4


def encode(problem: Problem, k: int | Tensor, x: Tensor) -> Tensor:
    """What functions of the state take as input, ``(n, p)``: the flattened terminal estimate if offered, else the state."""
    estimate = getattr(problem, "terminal_estimate", None)
    return (x if estimate is None else estimate(k, x)).flatten(1)


def time_features(t: Tensor, n: int) -> Tensor:
    """Smooth features of times in [0, 1], ``(n, 1 + 2 * 4)``: t and the first sines and cosines of ``pi t``."""
    angle = math.pi * t.reshape(-1, 1) * torch.arange(1, _FREQUENCIES + 1, device=t.device, dtype=t.dtype)
    return torch.cat([t.reshape(-1, 1), angle.sin(), angle.cos()], 1).expand(n, -1)


class Standardise(nn.Module):
    """Shift and scale inputs by what was seen in the first data; constant inputs are not blown up.

    The scale is one number for inputs that share a unit (pixels), or one an input (a pendulum's angle and speed).
    """

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        self.centre: Tensor
        self.scale: Tensor

    def fit(self, inputs: Tensor) -> None:
        """Take centre and scale from ``inputs`` ``(n, p)``; scales below a third of the root mean square are raised to it."""
        deviation = inputs.std(0)
        self.centre.copy_(inputs.mean(0))
        self.scale.copy_(deviation.clamp(min=float(deviation.square().mean().sqrt()) / 3 + 1e-6))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(n, p) -> (n, p)``."""
        return (inputs - self.centre) / self.scale


class EnsembleMLP(nn.Module):
    """``members`` independent multilayer perceptrons evaluated as one batched product; the last layer starts at zero."""

    def __init__(self, n_inputs: int, n_outputs: int, hidden: Sequence[int], members: int) -> None:
        super().__init__()
        sizes = [n_inputs, *hidden, n_outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            last = len(self.weights) == len(hidden)
            scale = 0.0 if last else math.sqrt(2.0 / n_in)
            self.weights.append(nn.Parameter(torch.randn(members, n_in, n_out) * scale))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, n_out)))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(n, p) -> (members, n, outputs)``."""
        h = inputs.expand(len(self.weights[0]), *inputs.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h * torch.sigmoid(h) if i else h, weight)
        return h


class Value(nn.Module, ABC):
    """``log f_k`` of encoded states, between bounds.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
    """

    def __init__(self, n_inputs: int, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.standardise = Standardise(n_inputs)
        self.register_buffer("offset", torch.zeros(()))  # log of the mean of f_T: the function starts as this constant
        self.register_buffer("bounds", torch.tensor([-math.inf, math.inf]))
        self.register_buffer("clock", torch.linspace(0, 1, horizon + 1))
        self.offset: Tensor
        self.bounds: Tensor
        self.clock: Tensor

    def wind(self, steps: Tensor, inputs: Tensor) -> None:
        """Set the clock by paths seen at every step: half plain time, half the distance that encoded states travel.

        log f changes fast where states do (the last third of a denoising chain); on this clock it changes evenly.

        Args:
            steps: ``(n, S)``.
            inputs: encoded states ``(n, S, p)``.
        """
        if steps.shape[1] != self.horizon + 1 or not bool((steps.diff(dim=1) == 1).all()):
            return  # seen at random times: plain time
        travelled = torch.cat([inputs.new_zeros(1), inputs.diff(dim=1).square().sum(2).mean(0).sqrt().cumsum(0)])
        if float(travelled[-1]) > 0:
            plain = torch.linspace(0, 1, self.horizon + 1, device=inputs.device)
            self.clock.copy_(0.5 * plain + 0.5 * travelled / travelled[-1])

    @abstractmethod
    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``, of encoded states ``(n, p)``; ``k`` an int or one step per row."""

    def bounded(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k`` within the bounds that the rewards in the data give, ``(n,)``."""
        return self(k, inputs).clamp(self.bounds[0], self.bounds[1])


class NeuralValue(Value):
    """``log f`` as an ensemble of networks of the encoded state and the time.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        hidden: widths of the hidden layers.
        members: networks in the ensemble; their mean is the estimate.
    """

    def __init__(self, n_inputs: int, horizon: int, hidden: Sequence[int] = (128, 128), members: int = 2) -> None:
        super().__init__(n_inputs, horizon)
        self.network = EnsembleMLP(n_inputs + 1 + 2 * _FREQUENCIES, 1, hidden, members)

    def members(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f`` of each member, ``(members, n)``."""
        time = time_features(self.clock[k], len(inputs))
        return self.network(torch.cat([self.standardise(inputs), time], 1))[..., 0] + self.offset

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The mean of the members."""
        return self.members(k, inputs).mean(0)


class Tangent(NamedTuple):
    """A linear class at rows of one step: ``log f`` and its derivative by the weights, ``time (x) space``."""

    log_f: Tensor  # (n,)
    space: Tensor  # (n, Ms)


class LinearValue(Value):
    """Linear combinations of features ``b_i(k) s_j(x)`` of time and space, in float64.

    The features of time are Chebyshev polynomials of its clock; a subclass writes those of space, and which convex set the
    weights ``(times, features)`` belong to.

    ``linear_in_weights`` tells whether f itself is linear in them, or only ``log f``.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of features of space.
        times: number of features of time.
    """

    linear_in_weights: bool

    def __init__(self, n_inputs: int, horizon: int, features: int, times: int) -> None:
        super().__init__(n_inputs, horizon)
        self.register_buffer("weights", torch.zeros(times, features))
        self.weights: Tensor
        self.double()

    @property
    def time_table(self) -> Tensor:
        """Features of time at every step, ``(T + 1, times)``."""
        angle = torch.acos((2 * self.clock - 1).clamp(-1, 1))
        return torch.cos(torch.arange(len(self.weights), device=angle.device) * angle[:, None])

    @abstractmethod
    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Choose what depends on data (centres, length scales) from steps ``(n,)`` and encoded states ``(n, p)``."""

    @abstractmethod
    def space(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Features of space ``(n, Ms)`` of encoded states ``(n, p)``."""

    @abstractmethod
    def tangent(self, k: int, inputs: Tensor) -> Tangent:
        """``log f`` and its derivative by the weights, at rows that share a step."""

    @abstractmethod
    def project(self, weights: Tensor) -> Tensor:
        """The nearest point of the convex set, same shape."""

    @abstractmethod
    def solve(self, matrix: Tensor, vector: Tensor, ridge: float) -> Tensor:
        """``(A w - b)^T (u - w) >= 0`` for all u of the set; ``ridge``, a share of A's mean diagonal, is added to it."""

    def _linear(self, k: int | Tensor, space: Tensor) -> Tensor:
        return (space * (self.time_table[k] @ self.weights)).sum(1)


class ExponentialValue(LinearValue):
    """``f = exp(w . phi)`` with w in a ball; the first feature of space is the constant 1, which the ridge leaves alone.

    Args:
        radius: of the ball.
    """

    linear_in_weights = False
    radius: float

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``."""
        return self._linear(k, self.space(k, inputs)) + self.offset

    def tangent(self, k: int, inputs: Tensor) -> Tangent:
        """See LinearValue: the derivative is the features themselves."""
        space = self.space(k, inputs)
        return Tangent(self._linear(k, space) + self.offset, space)

    def project(self, weights: Tensor) -> Tensor:
        """Scale weights outside of the ball back to its surface."""
        return weights * (self.radius / weights.norm().clamp(min=1e-300)).clamp(max=1)

    def solve(self, matrix: Tensor, vector: Tensor, ridge: float) -> Tensor:
        """See LinearValue."""
        penalty = (ridge * matrix.diagonal().mean() * self.penalties()).flatten()
        return solve_ball(matrix + torch.diag(penalty), vector, self.radius)

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
        times: number of features of time.
        radius: of the ball of weights.
    """

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        degree: int = 2,
        interaction: int | None = None,
        times: int = 8,
        radius: float = 1e6,
    ) -> None:
        if degree < 1:
            raise ValueError(f"degree must be at least 1; got {degree!r}")
        if interaction is None:
            interaction = degree if math.comb(n_inputs + degree, degree) <= 500 else 1
        powers: list[tuple[int, ...]] = [()]
        for size in range(1, degree + 1):
            if interaction == 1:
                powers += [(i,) * size for i in range(n_inputs)]
            else:
                every = combinations_with_replacement(range(n_inputs), size)
                powers += [p for p in every if len(set(p)) <= interaction]
        super().__init__(n_inputs, horizon, len(powers), times)
        self.radius = radius
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

    def space(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Products of normalised Hermite polynomials of the standardised coordinates."""
        x = self.standardise(inputs.double())
        rows = [torch.ones_like(x), x]
        for order in range(1, self.degree):
            rows.append((x * rows[-1] - math.sqrt(order) * rows[-2]) / math.sqrt(order + 1))
        columns = torch.stack(rows[1:], 2).flatten(1)  # (n, p * degree)
        columns = torch.cat([torch.ones_like(columns[:, :1]), columns], 1)
        product = columns[:, self.slots[:, 0]]
        for slot in self.slots.T[1:]:
            product = product * columns[:, slot]
        return product


class FourierValue(ExponentialValue):
    """``log f`` is a constant, a linear function and random Fourier features of a Gaussian kernel (Rahimi and Recht 2007).

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        features: number of waves.
        length: length scale of the kernel, in units of the median distance between data.
        times: number of features of time.
        radius: of the ball of weights.
    """

    def __init__(
        self, n_inputs: int, horizon: int, features: int = 100, length: float = 1.0, times: int = 6, radius: float = 1e6
    ) -> None:
        super().__init__(n_inputs, horizon, 1 + n_inputs + features, times)
        self.radius, self.length = radius, length
        self.register_buffer("frequencies", torch.zeros(features, n_inputs, dtype=torch.float64))
        self.register_buffer("phases", torch.zeros(features, dtype=torch.float64))
        self.frequencies: Tensor
        self.phases: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Draw the waves."""
        waves = torch.randn(self.frequencies.shape, generator=generator, device=inputs.device, dtype=torch.float64)
        self.frequencies.copy_(waves / (self.length * median_distance(self.standardise(inputs.double()))))
        self.phases.copy_(torch.rand(len(self.phases), generator=generator, device=inputs.device) * 2 * math.pi)

    def space(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``[1, x, sqrt(2 / features) cos(frequency . x + phase)]``."""
        x = self.standardise(inputs.double())
        waves = torch.cos(x @ self.frequencies.T + self.phases) * math.sqrt(2 / len(self.phases))
        return torch.cat([torch.ones_like(x[:, :1]), x, waves], 1)


class KernelValue(ExponentialValue):
    """``log f`` is a constant, a linear function and an element of the Gaussian kernel's space, on a Nystrom basis.

    Features are whitened, so that the norm of the weights is the norm of the reproducing-kernel space (Williams and
    Seeger 2001): the ball of weights is a ball of that space.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        centres: size of the basis; they are placed on data.
        length: length scale of the kernel, in units of the median distance between data.
        times: number of features of time.
        radius: of the ball of weights.
    """

    def __init__(
        self, n_inputs: int, horizon: int, centres: int = 100, length: float = 1.0, times: int = 6, radius: float = 1e6
    ) -> None:
        super().__init__(n_inputs, horizon, 1 + n_inputs + centres, times)
        self.radius, self.length = radius, length
        self.register_buffer("centres", torch.zeros(centres, n_inputs, dtype=torch.float64))
        self.register_buffer("whitening", torch.eye(centres, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.centres: Tensor
        self.whitening: Tensor
        self.scale: Tensor

    def place(self, k: Tensor, inputs: Tensor, generator: torch.Generator) -> None:
        """Centre the basis on random data."""
        x = self.standardise(inputs.double())
        self.scale.copy_(self.length * median_distance(x))
        self.centres.copy_(x[torch.randint(len(x), (len(self.centres),), generator=generator, device=x.device)])
        values, vectors = torch.linalg.eigh(self._kernel(self.centres))
        root = torch.where(values > 1e-10 * values[-1], values.clamp(min=1e-300).rsqrt(), 0.0)
        self.whitening.copy_((vectors * root) @ vectors.T)

    def _kernel(self, x: Tensor) -> Tensor:
        # not cdist, which autograd can't differentiate twice
        square = x.square().sum(1)[:, None] + self.centres.square().sum(1) - 2 * x @ self.centres.T
        return torch.exp(-0.5 * square / self.scale.square())

    def space(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``[1, x, K^{-1/2} k(centres, x)]``."""
        x = self.standardise(inputs.double())
        return torch.cat([torch.ones_like(x[:, :1]), x, self._kernel(x) @ self.whitening], 1)


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

    def space(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The bumps at ``(k, inputs)``, ``(n, M)``."""
        x = self.standardise(inputs.double())
        t = torch.as_tensor(k, device=inputs.device).to(x.dtype).reshape(-1, 1) / self.horizon
        square = x.square().sum(1)[:, None] + self.centres.square().sum(1) - 2 * x @ self.centres.T
        return torch.exp(-0.5 * (square / self.scale.square() + ((t - self.times) / self.span).square()))

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``."""
        return torch.log(self.space(k, inputs) @ self.weights[0] + self.floor) + self.offset

    def tangent(self, k: int, inputs: Tensor) -> Tangent:
        """See LinearValue: the derivative is ``phi / f``."""
        space = self.space(k, inputs)
        f = space @ self.weights[0] + self.floor
        return Tangent(f.log() + self.offset, space / f[:, None])

    def project(self, weights: Tensor) -> Tensor:
        """Negative weights become zero."""
        return weights.clamp(min=0)

    def solve(self, matrix: Tensor, vector: Tensor, ridge: float) -> Tensor:
        """See LinearValue."""
        penalty = ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return solve_positive(matrix + penalty, vector)


def median_distance(inputs: Tensor, most: int = 500) -> Tensor:
    """Median distance between (at most ``most`` evenly chosen) rows of ``inputs`` ``(n, p)``; 1 where all rows are equal."""
    some = inputs[:: max(1, len(inputs) // most)]
    distance = torch.pdist(some)
    distance = distance[distance > 0]
    return distance.median() if len(distance) else inputs.new_ones(())
