"""GRPO on denoising steps: Flow-GRPO (Liu et al. 2025) and DanceGRPO, in noise units.

Paths of one prompt are a group, and compared with each other alone: the advantage of every step of
a path is its reward, less the group's mean, over the group's standard deviation (their eq. 4).
There is no value network. The clipped ratio of PPO and the price of the step's own KL make the loss
(their eq. 5); the KL of later steps is not in the return, which leaves the gradient of J blind to
it, as theirs is. Their denoising reduction is a problem made with fewer ``steps``, their SDE
``StepTable.flow_grpo``.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...envs.problem import Trajectories, check_positive
from ..fine_tuning import Steps
from ..step_policies import StepPolicy
from .ddpo import DDPO


class GroupAdvantage(NamedTuple):
    """Rewards of paths against those of their group."""

    advantage: Tensor  # (n,)
    scale: Tensor  # (n,): the group's standard deviation


def group_advantage(reward: Tensor, group: Tensor) -> GroupAdvantage:
    """``(reward - mean) / std`` within each group; 0 for a group's only path.

    Args:
        reward: ``(n,)``.
        group: the number of each path's group, ``(n,)``.
    """
    same = F.one_hot(group).to(reward)
    count = same.sum(0).clamp(min=1)
    centred = reward - same @ (reward @ same / count)
    scale = (same @ (centred.square() @ same / count)).sqrt().clamp(min=1e-6)
    return GroupAdvantage(centred / scale, scale)


class GRPO(DDPO):
    """Group-relative policy optimisation: DDPO with advantages of its own; see the module.

    Args:
        policy, env, learning_rate, n_trajectories, gradient_steps, batch_size, max_grad_norm,
        weight_decay: ``FineTuner``'s.
        clip_range: of the likelihood ratio of one step.
        advantage_bound: advantages are clamped to it, in the group's standard deviations.
        kl_price: of one nat in units of the normalised advantage, Flow-GRPO's beta; the
            problem's temperature over the group's standard deviation if absent, so that J is what
            is raised.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = (*DDPO.hyperparameters, "kl_price")
    table: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "DiffusersChain": {"batch_size": 50, "learning_rate": 3e-4, "anneal": False},  # DDPO's
    }

    def __init__(
        self,
        policy: str | type[StepPolicy] | None = None,
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_trajectories: int = 40,
        gradient_steps: int = 10,
        batch_size: int = 512,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        clip_range: float = 0.2,
        advantage_bound: float = 5.0,
        kl_price: float | None = None,
        **kwargs: Any,
    ) -> None:
        if kl_price is not None:
            check_positive("kl_price", kl_price)
        self.kl_price = kl_price
        common = (learning_rate, n_trajectories, gradient_steps, batch_size)
        limits = (max_grad_norm, weight_decay, clip_range, advantage_bound)
        super().__init__(policy, env, *common, *limits, **kwargs)

    def prepare(self, paths: Trajectories, inputs: Tensor) -> Steps:
        """The round's steps, each with the advantage of its path."""
        number = getattr(self.problem, "prompt_index", None)
        reward = paths.reward
        group = torch.zeros(len(reward), dtype=torch.long, device=reward.device)
        found = group_advantage(reward, number(paths.states[0]) if number else group)
        price = self.problem.temperature / found.scale
        if self.kl_price is not None:
            price = torch.full_like(price, self.kl_price)
        advantage = found.advantage.clamp(-self.advantage_bound, self.advantage_bound)
        return Steps.of(
            self.policy, paths, inputs, advantage.expand(len(inputs), len(reward)), price
        )
