"""Adjoint matching (Domingo-Enrich et al. 2024), in noise units and exact in discrete time.

The control is regressed, along its own paths, on ``J_z^T p_{k+1} / temperature``, where the lean
adjoint runs backwards through the PRE-TRAINED transition alone,

    p_T = grad y(X_T),    p_k = grad r_k(X_k) + J_x F_k(X_k, a_k + W_k)^T p_{k+1}.

The gradient of a path's return, q, obeys the same recursion plus ``(grad a_k)^T (J_z^T q_{k+1} -
temperature a_k)``. Where ``temperature a_k(x) = E[J_z^T grad V_{k+1}(F_k(x, a_k + W))]`` (the
first-order condition of J), the mean of that term given x_k is zero, so by induction backwards in k
``E[p_k | x_k] = grad V_k(x_k)``: the regression's fixed points are exactly the stationary points of
J, and no derivative of the control is ever needed. PI-FT (``agents.policy_iteration``) takes q for
p.

The paper's memoryless noise is what makes the optimum of J sample the density tilted by ``exp(y /
temperature)``; a denoising chain's own noise is of that kind. Nothing here depends on it.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...envs.problem import Problem, Trajectories, check_positive
from ..fine_tuning import FineTuner, rows_of
from ..hyperparameters import ADJOINT_MATCHING as TUNED
from ..step_policies import StepPolicy


def lean_adjoint(problem: Problem, paths: Trajectories) -> Tensor:
    """``J_z^T p_{k+1}`` along each path, ``(T, n, *noise_shape)``; memory does not grow with the
    horizon.

    Raises:
        ValueError: the reward or the transition cannot be differentiated.
    """
    name = type(problem).__name__
    with torch.enable_grad():
        x = paths.states[-1].detach().requires_grad_()
        reward = problem.terminal_reward(x)
        if not reward.requires_grad:
            raise ValueError(
                f"AdjointMatching needs the gradient of the reward; {name}.terminal_reward returned"
                " a detached tensor"
            )
        (adjoint,) = torch.autograd.grad(reward.sum(), x)
    by_noise = []
    for k in reversed(range(problem.horizon)):
        with torch.enable_grad():
            x = paths.states[k].detach().requires_grad_()
            z = (paths.noises[k] + paths.controls[k]).detach().requires_grad_()
            ahead = (adjoint * problem.transition(k, x, z)).sum() + problem.running_reward(
                k, x
            ).sum()
            noise = None
            if ahead.requires_grad:
                adjoint, noise = torch.autograd.grad(ahead, (x, z), allow_unused=True)
            if noise is None or adjoint is None:
                raise ValueError(
                    f"AdjointMatching needs a transition that autograd can follow; {name}'s is not"
                )
        by_noise.append(noise)
    return torch.stack(by_noise[::-1])


class Targets(NamedTuple):
    """Regression data, one row a step of a path."""

    k: Tensor  # (N,)
    inputs: Tensor  # (N, p): encoded states
    target: Tensor  # (N, m): J_z^T p_{k+1} / temperature


class AdjointMatching(FineTuner):
    """Regression of the control on the lean adjoint; see the module.

    Args:
        policy: ``FineTuner``'s, as are env, learning_rate, n_trajectories, gradient_steps,
            batch_size, max_grad_norm and weight_decay.
        max_target: longest target at one step, in noise units; longer ones are shortened (the
            paper's code drops them).
    """

    hyperparameters: ClassVar[tuple[str, ...]] = (*FineTuner.hyperparameters, "max_target")
    table = TUNED

    def __init__(
        self,
        policy: str | type[StepPolicy] | None = None,
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_trajectories: int = 20,
        gradient_steps: int = 10,
        batch_size: int = 512,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        max_target: float = 10.0,
        **kwargs: Any,
    ) -> None:
        check_positive("max_target", max_target)
        self.max_target = max_target
        common = (learning_rate, n_trajectories, gradient_steps, batch_size)
        super().__init__(policy, env, *common, max_grad_norm, weight_decay, **kwargs)

    def prepare(self, paths: Trajectories, inputs: Tensor) -> Targets:
        """The round's steps with their targets."""
        target = lean_adjoint(self.problem, paths).flatten(2).float() / self.problem.temperature
        target = target * (self.max_target / target.norm(dim=2, keepdim=True)).clamp(max=1)
        steps = torch.arange(len(target), device=target.device)[:, None].expand(target.shape[:2])
        return Targets(*rows_of(self.policy.steered, steps, inputs, target))

    def loss(self, rows: Targets) -> Tensor:
        """Square distance to the target; its minimiser is the target's mean given the state."""
        return (self.policy.output(rows.k, rows.inputs) - rows.target).square().sum(1)
