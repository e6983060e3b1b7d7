"""Function classes for the Cole-Hopf transform ``f_k(x) = exp(V_k(x) / temperature)`` and for controls.

Every value class is positive by construction and gives ``log f``. Where a problem offers ``terminal_estimate`` (a denoiser's
prediction of the clean sample), functions take that estimate in place of the state: the map is one-to-one, and the chain
rule then passes every gradient through the denoiser's Jacobian, which keeps it along the data (Tweedie's formula).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..envs.problem import Problem

_FREQUENCIES = 4


def encode(problem: Problem, k: int | Tensor, x: Tensor) -> Tensor:
    """What functions of the state take as input, ``(n, p)``: the flattened terminal estimate if offered, else the state."""
    estimate = getattr(problem, "terminal_estimate", None)
    return (x if estimate is None else estimate(k, x)).flatten(1)


def time_features(k: int | Tensor, horizon: int, n: int, like: Tensor) -> Tensor:
    """Smooth features of the step, ``(n, 1 + 2 * 4)``: ``t = k / T`` and the first sines and cosines of ``pi t``."""
    t = torch.as_tensor(k, device=like.device).to(like.dtype) / horizon
    angle = math.pi * t.reshape(-1, 1) * torch.arange(1, _FREQUENCIES + 1, device=like.device, dtype=like.dtype)
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
            h = torch.baddbmm(bias, nn.functional.silu(h) if i else h, weight)
        return h


class NeuralValue(nn.Module):
    """``log f`` as an ensemble of networks of the encoded state and the time.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        hidden: widths of the hidden layers.
        members: networks in the ensemble; their mean is the estimate.
    """

    def __init__(self, n_inputs: int, horizon: int, hidden: Sequence[int] = (128, 128), members: int = 2) -> None:
        super().__init__()
        self.horizon = horizon
        self.standardise = Standardise(n_inputs)
        self.network = EnsembleMLP(n_inputs + 1 + 2 * _FREQUENCIES, 1, hidden, members)
        self.register_buffer("offset", torch.zeros(()))  # log of the mean of f_T: the function starts as this constant
        self.offset: Tensor

    def members(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f`` of each member, ``(members, n)``."""
        time = time_features(k, self.horizon, len(inputs), inputs)
        return self.network(torch.cat([self.standardise(inputs), time], 1))[..., 0] + self.offset

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``, of encoded states ``(n, p)``."""
        return self.members(k, inputs).mean(0)


class RadialValue(nn.Module):
    """``f = sum_j w_j phi_j`` with Gaussian bumps in (state, time) and weights ``w >= 0``: positive wherever it is defined.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        centres: number of bumps; they are placed on data by ``place``.
        width: standard deviation of a bump, in units of the median distance between data at nearby times.
        span: standard deviation of a bump in time, as a share of the horizon.
        floor: a constant function is added with at least this share of the mean, so that log f has no hole off the data.
    """

    def __init__(
        self, n_inputs: int, horizon: int, centres: int = 300, width: float = 1.0, span: float = 0.1, floor: float = 1e-6
    ) -> None:
        super().__init__()
        self.horizon, self.width, self.span, self.floor = horizon, width, span, floor
        self.standardise = Standardise(n_inputs)
        for name, value in {
            "centres": torch.zeros(centres, n_inputs),
            "times": torch.zeros(centres),
            "radius": torch.ones(()),
            "weights": torch.zeros(centres),
            "offset": torch.zeros(()),
        }.items():
            self.register_buffer(name, value)
        self.centres: Tensor
        self.times: Tensor
        self.radius: Tensor
        self.weights: Tensor
        self.offset: Tensor

    def place(self, k: Tensor, inputs: Tensor) -> None:
        """Centre the bumps on ``(k (M,), inputs (M, p))`` and set their radius from the spread of the data."""
        self.centres.copy_(self.standardise(inputs))
        self.times.copy_(k.to(self.times) / self.horizon)
        near = (self.times[:, None] - self.times).abs() < self.span
        distance = torch.cdist(self.centres, self.centres)[near]
        self.radius.copy_(self.width * distance[distance > 0].median())

    def features(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The bumps at ``(k, inputs)``, ``(n, M)``."""
        t = torch.as_tensor(k, device=inputs.device).to(inputs.dtype).reshape(-1, 1) / self.horizon
        square = torch.cdist(self.standardise(inputs), self.centres).square() / self.radius.square()
        return torch.exp(-0.5 * (square + ((t - self.times) / self.span).square()))

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``."""
        return torch.log(self.features(k, inputs) @ self.weights + self.floor) + self.offset
