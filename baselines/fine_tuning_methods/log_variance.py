"""The log-variance loss (Richter et al. 2020), in noise units: trajectory balance (Malkin et al.
2022) with its constant estimated from the batch (VarGrad).

At the optimum of J every path from the same start has the same

    balance = temperature log dP^pi/dP^0 - (sum_k r_k + y),    log dP^pi/dP^0 = sum_k a.z - |a|^2/2,

with ``z = a_old + W`` as it was sampled: minus the value of the start. The loss is its variance
among paths that share their start, whoever sampled them, so that several gradient steps on one
round's paths need no importance weights. The reward is a black box. Its gradient on fresh paths is
that of minus J by the score function, with the group's mean for a baseline.

GFlowNets learn one constant for all starts, which a memoryless chain allows; here groups share a
start, and no chain has to be memoryless.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...agents.checks import check_whole
from ...envs.problem import Policy, Trajectories
from ..fine_tuning import FineTuner, rows_of
from ..step_policies import StepPolicy


class PathSteps(NamedTuple):
    """Steps of sampled paths, one row each; those without noise left out."""

    k: Tensor  # (N,)
    inputs: Tensor  # (N, p): encoded states
    taken: Tensor  # (N, m): z = a_old + W
    path: Tensor  # (N,): the number of the path
    weight: Tensor  # (N,): the path's balance less its group's mean, over the number of paths


class LogVariance(FineTuner):
    """The variance of the balance among paths that share their start; see the module.

    Args:
        policy, env, learning_rate, n_trajectories, gradient_steps, max_grad_norm, weight_decay:
            ``FineTuner``'s; each gradient step is on all of the round's paths.
        group_size: paths that share a start, two at least; it divides ``n_trajectories``.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = (
        *(name for name in FineTuner.hyperparameters if name != "batch_size"),
        "group_size",
    )
    table: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "DiffusersChain": {"learning_rate": 3e-4, "anneal": False},  # DDPO's
    }

    def __init__(
        self,
        policy: str | type[StepPolicy] | None = None,
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_trajectories: int = 40,
        gradient_steps: int = 4,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        group_size: int = 10,
        **kwargs: Any,
    ) -> None:
        check_whole("group_size", group_size, 2)
        check_whole("n_trajectories", n_trajectories, 1)
        if n_trajectories % group_size:
            raise ValueError(
                f"group_size must divide n_trajectories = {n_trajectories}; got {group_size}"
            )
        self.group_size = group_size
        common = (learning_rate, n_trajectories, gradient_steps, 1)
        super().__init__(policy, env, *common, max_grad_norm, weight_decay, **kwargs)

    def collect(
        self, policy: Policy | None, n: int | None = None, start: Tensor | None = None
    ) -> Trajectories:
        """See ProblemAgent; ``group_size`` paths from each start."""
        n = self.n_trajectories if n is None else n
        if start is None and n % self.group_size == 0:
            drawn = self.problem.initial(n // self.group_size, self.generator)
            start = drawn.repeat_interleave(self.group_size, 0)
        return super().collect(policy, n, start)

    def prepare(self, paths: Trajectories, inputs: Tensor) -> PathSteps:
        """The round's steps; weights are those of the present policy."""
        horizon, n = inputs.shape[:2]
        k, path = (
            torch.arange(size, device=inputs.device).view(shape).expand(horizon, n)
            for size, shape in ((horizon, (-1, 1)), (n, (1, -1)))
        )
        taken = (paths.controls + paths.noises).flatten(2).to(inputs)
        columns = (k, inputs, taken, path, torch.zeros_like(path).to(inputs))
        rows = PathSteps(*rows_of(self.policy.steered, *columns))
        return self.weighed(rows, paths.reward)

    def log_ratio(self, rows: PathSteps) -> Tensor:
        """``log dP^pi/dP^0`` of each step, ``(N,)``, differentiable in the parameters."""
        a = self.policy.output(rows.k, rows.inputs)
        return (a * (rows.taken - 0.5 * a)).sum(1)

    @torch.no_grad()
    def weighed(self, rows: PathSteps, reward: Tensor) -> PathSteps:
        """The same steps with the weights of the present policy; ``reward`` ``(n,)``."""
        steps = torch.cat([self.log_ratio(part) for part in self.parts_of(rows)])
        ratio = torch.zeros_like(reward).index_add_(0, rows.path, steps.to(reward))
        groups = (self.problem.temperature * ratio - reward).view(-1, self.group_size)
        gap = (groups - groups.mean(1, keepdim=True)).flatten() / len(reward)
        return rows._replace(weight=gap[rows.path].to(rows.weight))

    def loss(self, rows: PathSteps) -> Tensor:
        """``(N,)``: the gradient of their sum is that of half the variance of the balance over the
        temperature.
        """
        return rows.weight * self.log_ratio(rows)

    def divisor(self, rows: PathSteps) -> int:
        """See FineTuner: the weights hold it."""
        return 1

    def iterate(self) -> None:
        """One round."""
        self.set_learning_rate(self.optimizer)
        paths, inputs = self.sample()
        rows = self.prepare(paths, inputs)
        for step in range(self.gradient_steps):
            if step:
                rows = self.weighed(rows, paths.reward)
            last = self.descend(rows)
        self.tell(last)
