"""Function classes for images or latents ``(C, H, W)``: small convolutional networks.

With ``PDE("CnnPolicy", problem, adaptive=False)`` this is value-guided sampling: a value network on
latents and time, trained on uncontrolled samples only, guides the frozen pipeline.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.problem import Problem
from ..networks import NetworkValue, Standardise, time_features
from .policies import ValueGradientPolicy

# pixels a side at which convolutions stop and the map is flattened: where a thing lies still counts
_COARSEST = 4
_WIDEST = 64


class _Convolutions(nn.Module):
    """``(n, C, H, W)`` and an embedding of time and context to ``(n,)``; zero before training.

    Convolutions with stride 2 down to 4 pixels a side and one more there, their channels scaled and
    shifted by the embedding; what is left is flattened into one hidden layer. Smooth, as its
    gradient is the policy.
    """

    def __init__(self, shape: tuple[int, ...], embedding: int, width: int, hidden: int) -> None:
        super().__init__()
        channels, *size = shape
        self.layers, self.modulations = nn.ModuleList(), nn.ModuleList()
        last = False
        while not last:
            last = min(size) <= _COARSEST
            stride = 1 if last else 2
            self.layers.append(nn.Conv2d(channels, width, 3, stride, padding=1))
            self.modulations.append(nn.Linear(embedding, 2 * width))
            channels, size = width, [-(-side // stride) for side in size]
            width = min(2 * width, max(width, _WIDEST))
        self.dense = nn.Linear(channels * size[0] * size[1] + embedding, hidden)
        self.last = nn.Linear(hidden, 1)
        for weight in self.last.parameters():
            nn.init.zeros_(weight)

    def forward(self, images: Tensor, embedding: Tensor) -> Tensor:
        """See the class."""
        h = images
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(embedding)[:, :, None, None].chunk(2, 1)
            h = F.silu(torch.addcmul(shift, layer(h), 1 + scale))
        return self.last(F.silu(self.dense(torch.cat([h.flatten(1), embedding], 1))))[:, 0]


class _Pixels(Standardise):
    """Standardises the first ``n_inputs`` columns and leaves out the others."""

    def fit(self, inputs: Tensor, apart: bool = False) -> None:
        """See Standardise."""
        super().fit(inputs[:, : len(self.centre)], apart)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(n, p) -> (n, n_inputs)``."""
        return super().forward(inputs[:, : len(self.centre)])


class CnnValue(NetworkValue):
    """``log f`` as an ensemble of convolutional networks.

    They take the encoded state, the time and, where there are several, the prompt.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        shape: of the image or latent, ``(C, H, W)``.
        contexts: number of prompts; with more than one, the plane below the image holds the number
            of the state's prompt.
        width: channels of the first convolution; they double from layer to layer, up to 64.
        hidden: width of the last layer but one.
        members: networks in the ensemble; their mean is the estimate.
    """

    def __init__(
        self,
        n_inputs: int,
        horizon: int,
        shape: tuple[int, ...],
        contexts: int = 1,
        width: int = 16,
        hidden: int = 128,
        members: int = 2,
    ) -> None:
        super().__init__(n_inputs, horizon)
        self.shape, self.contexts = shape, contexts
        self.standardise = _Pixels(torch.Size(shape).numel())
        embedding = time_features(torch.zeros(1), 1).shape[1] + (contexts if contexts > 1 else 0)
        self.networks = nn.ModuleList(
            _Convolutions(shape, embedding, width, hidden) for _ in range(members)
        )

    def members(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """See NetworkValue."""
        given = time_features(self.clock[k], len(inputs))
        if self.contexts > 1:
            context = inputs[:, -1].round().long().clamp(0, self.contexts - 1)
            given = torch.cat([given, F.one_hot(context, self.contexts).to(given)], 1)
        images = self.standardise(inputs).view(len(inputs), *self.shape)
        outputs = torch.stack([network(images, given) for network in self.networks])
        return self.unit[k] * outputs + self.offset[k]


class CnnPolicy(ValueGradientPolicy):
    """``log f`` is an ensemble of convolutional networks of the terminal estimate.

    Of the state, where no such estimate is offered. Its gradient then goes through the problem's
    denoiser, which keeps it along the data; see ``StateCnnPolicy`` for one that spares this.

    Args:
        draws: antithetic pairs of noise that smooth the gradient; 0 takes none.
        iterations: of the fixed point (see ValueGradientPolicy).
        batch_size: states whose gradient is taken at once; it bounds the memory of the denoiser's
            activations.
        value_kwargs: arguments of ``CnnValue``: ``width``, ``hidden``, ``members``.
    """

    value_class = CnnValue
    dear = True
    warm = False  # 150 passes of convolutions before the first update would be dear

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        draws: int = 0,
        iterations: int = 1,
        batch_size: int = 64,
        **value_kwargs: Any,
    ) -> None:
        if len(problem.noise_shape) != 3 or len(problem.state_shape) != 3:
            name, shape = type(problem).__name__, problem.state_shape
            raise ValueError(
                f"policy {type(self).__name__} needs states of shape (C, H, W); {name}'s are"
                f" {shape}"
            )
        super().__init__(
            observation_space, action_space, problem, draws, iterations, **value_kwargs
        )
        self.batch_size = batch_size

    def make_value(self, **kwargs: Any) -> CnnValue:
        """See ValuePolicy."""
        contexts = len(getattr(self.problem, "prompts", ""))
        return CnnValue(
            self.n_inputs, self.problem.horizon, self.problem.noise_shape, contexts, **kwargs
        )

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ValueGradientPolicy."""
        steps = [k] * len(x) if isinstance(k, int) else k.split(self.batch_size)
        return torch.cat(
            [
                super(CnnPolicy, self).control(*part)
                for part in zip(steps, x.split(self.batch_size), strict=False)
            ]
        )


class StateCnnPolicy(CnnPolicy):
    """The same of the states themselves.

    No derivative of the denoiser is taken, and none of its memory is needed.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, _without_estimate(problem), *args, **kwargs
        )

    @property
    def problem(self) -> Problem:
        """The problem that the control steers, less its terminal estimate."""
        return self._problem[0]

    @problem.setter
    def problem(self, problem: Problem) -> None:
        self._problem = [_without_estimate(problem)]


def _without_estimate(problem: Problem) -> Problem:
    plain = copy.copy(problem)
    object.__setattr__(plain, "terminal_estimate", None)
    return plain
