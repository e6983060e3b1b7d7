"""A problem of which everything is known, a policy of no merit, and ids to try them on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from girsanov.envs.problem import Problem


class Walk(Problem):
    """``X' = X + scale z`` from 1, rewarded by ``X_T``: returns are N(1, scale^2 T), and everything
    is known.
    """

    state_shape = noise_shape = (1,)

    def __init__(self, scale: float = 0.5, horizon: int = 4, temperature: float = 1.0) -> None:
        self.scale, self.horizon, self.temperature = scale, horizon, temperature

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.ones(n, 1)

    def transition(self, k: Any, x: Tensor, z: Tensor) -> Tensor:
        return x + self.scale * z

    def terminal_reward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def state_feedback(problem: Problem) -> Any:
    """Some policy of no merit: bounded, and different at every step and state."""
    size = math.prod(problem.noise_shape)
    mix = torch.randn(
        math.prod(problem.state_shape), size, generator=torch.Generator().manual_seed(1)
    )
    return lambda k, x: (
        0.15 / size**0.5 * torch.sin(x.flatten(1) @ mix + k).view(-1, *problem.noise_shape)
    )


IDS = ["girsanov/GaussianMixture-v0", "girsanov/Pendulum-v0", "girsanov/LinearQuadratic-v0"]
