"""Networks that both families of agents use, and values: positive by construction, they give
``log f`` of the Cole-Hopf transform ``f_k(x) = exp(V_k(x) / temperature)``. Linear classes are
PDE's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..envs.features import FREQUENCIES, Standardise, encode, time_features

__all__ = [
    "EnsembleMLP",
    "NetworkValue",
    "NeuralValue",
    "Standardise",
    "Value",
    "encode",
    "time_features",
]


class EnsembleMLP(nn.Module):
    """``members`` independent multilayer perceptrons evaluated as one batched product.

    The last layer starts at zero.
    """

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
        # level of log f at every step, where the function starts
        self.register_buffer("offset", torch.zeros(horizon + 1))
        # of log f less its level
        self.register_buffer("bounds", torch.tensor([-math.inf, math.inf]))
        self.register_buffer("clock", torch.linspace(0, 1, horizon + 1))
        self.offset: Tensor
        self.bounds: Tensor
        self.clock: Tensor

    def wind(self, steps: Tensor, inputs: Tensor) -> None:
        """Set the clock by paths seen at every step.

        It is half plain time, half the distance that encoded states travel. log f changes fast
        where states do (the last third of a denoising chain); on this clock it changes evenly.

        Args:
            steps: ``(n, S)``.
            inputs: encoded states ``(n, S, p)``.
        """
        if steps.shape[1] != self.horizon + 1 or not bool((steps.diff(dim=1) == 1).all()):
            return  # seen at random times: plain time
        travelled = torch.cat(
            [inputs.new_zeros(1), inputs.diff(dim=1).square().sum(2).mean(0).sqrt().cumsum(0)]
        )
        if float(travelled[-1]) > 0:
            plain = torch.linspace(0, 1, self.horizon + 1, device=inputs.device)
            self.clock.copy_(0.5 * plain + 0.5 * travelled / travelled[-1])

    @abstractmethod
    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``, of encoded states ``(n, p)``; ``k`` an int or one step per row."""

    def bounded(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f_k`` within the bounds that the rewards in the data give, ``(n,)``."""
        return self.within(k, self(k, inputs))

    def within(self, k: int | Tensor, log_f: Tensor) -> Tensor:
        """``log_f`` ``(n,)`` of step k brought within those bounds."""
        level = self.offset[k]
        return log_f.clamp(level + self.bounds[0], level + self.bounds[1])


class NetworkValue(Value):
    """``log f`` as the mean of an ensemble of networks; a subclass says which.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
    """

    def __init__(self, n_inputs: int, horizon: int) -> None:
        super().__init__(n_inputs, horizon)
        self.register_buffer("unit", torch.ones(horizon + 1))  # nats, at every step
        self.unit: Tensor

    @abstractmethod
    def members(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``log f`` of each member, ``(members, n)``."""

    def forward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The mean of the members."""
        return self.members(k, inputs).mean(0)


class NeuralValue(NetworkValue):
    """``log f`` as an ensemble of multilayer perceptrons of the encoded state and the time.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        hidden: widths of the hidden layers.
        members: networks in the ensemble; their mean is the estimate.
    """

    def __init__(
        self, n_inputs: int, horizon: int, hidden: Sequence[int] = (128, 128), members: int = 2
    ) -> None:
        super().__init__(n_inputs, horizon)
        self.network = EnsembleMLP(n_inputs + 1 + 2 * FREQUENCIES, 1, hidden, members)

    def members(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """See NetworkValue."""
        time = time_features(self.clock[k], len(inputs))
        outputs = self.network(torch.cat([self.standardise(inputs), time], 1))[..., 0]
        return self.unit[k] * outputs + self.offset[k]
