"""Controls that paths are gathered under, and what a rollout sees by the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....envs.problem import Policy, Problem, Trajectories
from ....envs.recording import Recording
from ...networks import encode
from ..replay import Replay

#: Share of the free paths that must count under the optimum for half of the rounds to be free.
_TOLD = 0.03


class Watched:
    """A control that notes the encoded states which it meets.

    A denoiser that has just been asked for a state's clean estimate answers the transition from
    memory, so the estimate of every state comes with the path.

    Args:
        problem: encodes.
        control: what it is; None: no control.
    """

    def __init__(self, problem: Problem, control: Policy | None) -> None:
        self.problem, self.control = problem, control
        self._inputs: list[Tensor] = []

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """The control ``(n, *noise_shape)`` at states ``x`` of step ``k``."""
        self._inputs.append(encode(self.problem, k, x).float())
        if self.control is None:
            return x.new_zeros(len(x), *self.problem.noise_shape)
        return self.control(k, x)

    def replay(self, paths: Trajectories) -> Replay:
        """The paths that were rolled out under it as regression data."""
        last = encode(self.problem, self.problem.horizon, paths.states[-1]).float()
        inputs = torch.stack([*self._inputs, last], 1)
        return Replay.of(self.problem, Recording.of(paths), inputs)


def is_controlled(rounds: Sequence[Replay], share: float | None, dear: bool) -> bool:
    """Whether the policy controls the next round.

    Args:
        rounds: so far; the first is free.
        share: of the others that it controls; None: half of them on a dear problem, where enough
            of the first paths count under the optimum, else all.
        dear: whether a derivative of the transition is.
    """
    if share is None:
        told = dear and bool(rounds) and rounds[0].effective_share >= _TOLD
        share = 0.5 if told else 1.0
    return math.ceil(len(rounds) * share) > math.ceil((len(rounds) - 1) * share)


def pushed(
    control: Policy | None,
    n: int,
    spread: float,
    problem: Problem,
    bound: float,
    generator: torch.Generator,
) -> Policy:
    """``control`` plus a push, constant along a path, of every other of ``n`` paths.

    Args:
        control: None: no control.
        n: paths.
        spread: standard deviation of the pushes.
        problem: whose noise they are like.
        bound: of the sum.
        generator: draws the pushes.
    """
    push = spread * torch.randn(
        n, *problem.noise_shape, generator=generator, device=generator.device
    )
    push[::2] = 0

    def both(k: int, x: Tensor) -> Tensor:
        a = push.to(x.dtype)
        return (a if control is None else control(k, x) + a).clamp(-bound, bound)

    return both
