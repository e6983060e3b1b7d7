"""Rewards learnt from those seen, to simulate a known transition without asking for more.

A reward is a plain function of the state, seen without noise: supervised regression learns it from
far fewer paths than log f, which has to be carried from the horizon to the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...envs.problem import Policy, Problem, rollout
from ...envs.recording import Recording
from ..networks import EnsembleMLP, encode
from .replay import Replay

#: Of Adam, falling to nearly zero in every call of ``regress``.
_RATE = 4e-3
_BATCH = 256


class LearnedRewards(nn.Module):
    """Running reward ``r_k(x)`` and terminal reward ``y(x)`` as networks.

    They take encoded states and are in units of the temperature.

    Args:
        n_inputs: size of the encoded state.
        horizon: number of steps of the problem.
        hidden: widths of the hidden layers.
        members: networks in each ensemble; their mean is the estimate, kept between the rewards
            that were seen.
    """

    def __init__(
        self, n_inputs: int, horizon: int, hidden: Sequence[int] = (128, 128, 128), members: int = 2
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.running = EnsembleMLP(n_inputs + 1, 1, hidden, members)
        self.terminal = EnsembleMLP(n_inputs, 1, hidden, members)
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        # mean and deviation: running, terminal
        self.register_buffer("units", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.register_buffer("bounds", torch.tensor([[-math.inf, math.inf], [-math.inf, math.inf]]))
        self.centre: Tensor
        self.scale: Tensor
        self.units: Tensor
        self.bounds: Tensor
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=_RATE)

    def regress(self, data: Replay, steps: int, generator: torch.Generator) -> tuple[float, float]:
        """Fit all paths seen at every step.

        Returns the last losses, shares of the variance of running and terminal reward.
        """
        inputs, visits = data.inputs, data.steps.shape[1] - 1
        running, terminal = data.log_reward.diff(dim=1), data.log_terminal
        self.centre.copy_(inputs.flatten(0, 1).mean(0))
        self.scale.copy_(inputs.flatten(0, 1).std(0).clamp(min=1e-6))
        for i, seen in enumerate((running, terminal)):
            self.units[i] = torch.stack([seen.mean(), seen.std().clamp(min=1e-6)])
            self.bounds[i] = torch.stack([seen.min(), seen.max()])
        losses = torch.zeros(2)
        for i in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = _RATE * max(1 - i / steps, 0.02)
            row, end = (
                torch.randint(data.n, (_BATCH,), generator=generator, device=inputs.device)
                for _ in range(2)
            )
            k = torch.randint(visits, (_BATCH,), generator=generator, device=inputs.device)
            misses = (
                self._running(k, inputs[row, k]) - running[row, k],
                self._terminal(inputs[end, -1]) - terminal[end],
            )
            losses = torch.stack(
                [
                    (miss / unit).square().mean()
                    for miss, unit in zip(misses, self.units[:, 1], strict=True)
                ]
            )
            self.optimizer.zero_grad()
            losses.sum().backward()
            self.optimizer.step()
        return float(losses[0].detach()), float(losses[1].detach())

    def _running(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        time = (torch.as_tensor(k, device=inputs.device).to(inputs) / self.horizon).expand(
            len(inputs)
        )[:, None]
        return (
            self.units[0, 0]
            + self.units[0, 1]
            * self.running(torch.cat([self._standardised(inputs), time], 1))[..., 0]
        )

    def _terminal(self, inputs: Tensor) -> Tensor:
        return (
            self.units[1, 0] + self.units[1, 1] * self.terminal(self._standardised(inputs))[..., 0]
        )

    def _standardised(self, inputs: Tensor) -> Tensor:
        return (inputs - self.centre) / self.scale

    def running_reward(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """``r_k / beta``, ``(n,)``."""
        return self._running(k, inputs).mean(0).clamp(*self.bounds[0])

    def terminal_reward(self, inputs: Tensor) -> Tensor:
        """``y / beta``, ``(n,)``."""
        return self._terminal(inputs).mean(0).clamp(*self.bounds[1])


class ImaginedProblem(Problem):
    """A problem with learned rewards in place of its own, which are not asked."""

    def __init__(self, problem: Problem, rewards: LearnedRewards) -> None:
        self.problem, self.rewards = problem, rewards
        self.state_shape, self.noise_shape = problem.state_shape, problem.noise_shape
        self.horizon, self.temperature = problem.horizon, problem.temperature

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """The problem's."""
        return self.problem.initial(n, generator)

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """The problem's."""
        return self.problem.transition(k, x, z)

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Learned."""
        return self.temperature * self.rewards.running_reward(
            k, encode(self.problem, k, x).float()
        ).to(x.dtype)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """Learned."""
        return self.temperature * self.rewards.terminal_reward(
            encode(self.problem, self.horizon, x).float()
        ).to(x.dtype)


@torch.no_grad()
def imagine(
    problem: Problem,
    rewards: LearnedRewards,
    control: Policy | None,
    n: int,
    generator: torch.Generator,
) -> Replay:
    """``n`` paths of the problem under ``control`` with learned rewards, as regression data."""
    return Replay.of(
        problem, Recording.of(rollout(ImaginedProblem(problem, rewards), control, n, generator))
    )
