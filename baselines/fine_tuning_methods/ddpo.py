"""DDPO-IS: PPO with one denoising step as one action (Black et al. 2023, "Training diffusion models
with RL"), in noise units.

The advantage of a step is the path's return, centred over the round's paths (of several prompts,
over those with its own), scaled and clamped; there is no value network. One scale serves all steps
and prompts: they keep their weights in J (the paper scales each prompt by its own spread).
The paper has no KL term and early stopping instead. Here the price of KL is paid as in J, in the
units of the normalised advantage, so that all agents are after the same objective; ``temperature ->
0`` is the paper's algorithm.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...envs.problem import Trajectories, check_positive
from ..fine_tuning import FineTuner, Steps, move, returns_to_go
from ..hyperparameters import DDPO as TUNED
from ..step_policies import StepPolicy


def ddpo_loss(policy: StepPolicy, steps: Steps, clip_range: float) -> Tensor:
    """PPO's clipped loss of each step plus the KL's price, ``(N,)``."""
    ratio, kl = move(policy, steps)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return steps.price * kl - torch.minimum(steps.advantage * ratio, steps.advantage * clipped)


class DDPO(FineTuner):
    """Policy gradient with importance sampling over denoising steps; see the module.

    Args:
        policy: ``FineTuner``'s, as are env, learning_rate, n_trajectories, gradient_steps,
            batch_size, max_grad_norm and weight_decay.
        clip_range: of the likelihood ratio of one transition.
        advantage_bound: advantages are clamped to it, in standard deviations of the return; the
            paper's code has 5.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = (
        *FineTuner.hyperparameters,
        "clip_range",
        "advantage_bound",
    )
    table = TUNED

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
        **kwargs: Any,
    ) -> None:
        check_positive("clip_range", clip_range)
        check_positive("advantage_bound", advantage_bound)
        self.clip_range = clip_range
        self.advantage_bound = advantage_bound
        common = (learning_rate, n_trajectories, gradient_steps, batch_size)
        super().__init__(policy, env, *common, max_grad_norm, weight_decay, **kwargs)

    def prepare(self, paths: Trajectories, inputs: Tensor) -> Steps:
        """The round's steps with normalised advantages."""
        beta = self.problem.temperature
        centred = self.centred(returns_to_go(paths, beta), paths.states[0])
        scale = centred[0].std().clamp(min=1e-6)
        advantage = (centred / scale).clamp(-self.advantage_bound, self.advantage_bound)
        return Steps.of(self.policy, paths, inputs, advantage, beta / scale)

    def centred(self, to_go: Tensor, initial: Tensor) -> Tensor:
        """``to_go`` ``(T, n)`` less its mean over the paths with the same prompt; over all for a
        prompt's only path.
        """
        prompt_index = getattr(self.problem, "prompt_index", None)
        mean = to_go.mean(1, keepdim=True)
        if prompt_index is None:
            return to_go - mean
        same = F.one_hot(prompt_index(initial)).to(to_go)  # (n, prompts)
        count = same.sum(0)
        means = torch.where(count > 1, to_go @ same / count.clamp(min=1), mean)  # (T, prompts)
        return to_go - means @ same.T

    def loss(self, rows: Steps) -> Tensor:
        """See ``ddpo_loss``."""
        return ddpo_loss(self.policy, rows, self.clip_range)
