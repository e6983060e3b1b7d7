"""DPOK: online policy gradient with KL regularisation (Fan et al. 2023, "DPOK", Algorithm 1), in
noise units.

A round samples paths of the present policy; rounds stay in a buffer for a while. A gradient step
takes single transitions from it and descends

    - (to_go - V_k(x)) clamp(ratio, 1 - clip_range, 1 + clip_range) / temperature + |a_k(x)|^2 / 2,

where V is a network fitted to the returns to go. The KL of the step is in the loss, that of later
steps in the return, which together is the gradient of J; the paper's own estimator leaves the
latter out (``kl_in_reward=False``). The KL is exact, as in the paper; its public code takes the
unweighted square error of the noise prediction instead, and averages log likelihoods over
dimensions, which is why its clip range is 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...agents.checks import check_whole
from ...agents.networks import EnsembleMLP
from ...agents.trees import to
from ...envs.problem import Trajectories, check_positive
from ..fine_tuning import FineTuner, Steps, move, returns_to_go
from ..hyperparameters import DPOK as TUNED
from ..step_policies import StepPolicy


def dpok_loss(policy: StepPolicy, steps: Steps, clip_range: float) -> Tensor:
    """The loss of each step, ``(N,)``; at ``ratio = 1`` its summed gradient is that of ``-J``, in
    the advantage's units.
    """
    ratio, kl = move(policy, steps)
    return steps.price * kl - steps.advantage * ratio.clamp(1 - clip_range, 1 + clip_range)


class Critic(nn.Module):
    """``V_k``: the return to go by the control's features, in units of the first round's returns.

    Args:
        n_features: of the control's network.
        hidden: widths of the hidden layers.
    """

    def __init__(self, n_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = EnsembleMLP(n_features, 1, hidden, members=1)
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.centre: Tensor
        self.scale: Tensor

    def fit_units(self, returns: Tensor) -> None:
        """Take centre and scale from returns of any shape."""
        self.centre.copy_(returns.mean())
        self.scale.copy_(returns.std().clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """``(N, q) -> (N,)``."""
        return self.centre + self.scale * self.network(features)[0, :, 0]


class DPOK(FineTuner):
    """Online fine-tuning by clipped importance weights, a value baseline and a KL price; see the
    module.

    Args:
        policy: ``FineTuner``'s, as are env, learning_rate, n_trajectories, gradient_steps,
            batch_size, max_grad_norm and weight_decay;
            the defaults of ``n_trajectories``, ``gradient_steps`` and ``memory`` are the public
            code's.
        memory: rounds in the buffer.
        clip_range: of the likelihood ratio of one transition.
        kl_in_reward: price later steps' KL in the return.
        critic_steps: gradient steps of V in a round; 0 does without it.
        critic_batch_size: rows in each of them.
        critic_learning_rate: of V's AdamW.
        critic_hidden: widths of V's hidden layers.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = (
        *FineTuner.hyperparameters,
        *("memory", "clip_range", "kl_in_reward"),
        *("critic_steps", "critic_batch_size", "critic_learning_rate", "critic_hidden"),
    )
    table = TUNED

    def __init__(
        self,
        policy: str | type[StepPolicy] | None = None,
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_trajectories: int = 10,
        gradient_steps: int = 10,
        batch_size: int = 256,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        memory: int = 2,
        clip_range: float = 0.2,
        kl_in_reward: bool = True,
        critic_steps: int = 10,
        critic_batch_size: int = 256,
        critic_learning_rate: float = 1e-3,
        critic_hidden: Sequence[int] = (64, 64),
        **kwargs: Any,
    ) -> None:
        check_whole("memory", memory, 1)
        check_positive("clip_range", clip_range)
        check_whole("critic_steps", critic_steps, 0)
        check_whole("critic_batch_size", critic_batch_size, 1)
        check_positive("critic_learning_rate", critic_learning_rate)
        self.memory = memory
        self.clip_range = clip_range
        self.kl_in_reward = kl_in_reward
        self.critic_steps = critic_steps
        self.critic_batch_size = critic_batch_size
        self.critic_learning_rate = critic_learning_rate
        self.critic_hidden = list(critic_hidden)
        self.rounds: list[Steps] = []
        common = (learning_rate, n_trajectories, gradient_steps, batch_size)
        super().__init__(policy, env, *common, max_grad_norm, weight_decay, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.critic = Critic(self.policy.n_features, self.critic_hidden).to(self.device)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), self.critic_learning_rate, weight_decay=0.0
        )

    def networks(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """See ProblemAgent."""
        return {
            **super().networks(),
            "critic": self.critic,
            "critic_optimizer": self.critic_optimizer,
        }

    def forget(self) -> None:
        """See ProblemAgent."""
        super().forget()
        self.rounds = []

    def training_state(self) -> dict[str, Any]:
        """See SavedAgent."""
        return {**super().training_state(), "rounds": self.rounds}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """See SavedAgent."""
        super().set_training_state(state)
        self.rounds = [Steps(*to(parts, self.device)) for parts in state["rounds"]]

    def prepare(self, paths: Trajectories, inputs: Tensor) -> Steps:
        """The buffer with the new round in it; each row's return to go becomes its advantage over
        the freshly fitted critic.
        """
        beta = self.problem.temperature
        to_go = returns_to_go(paths, beta, self.kl_in_reward)
        price = torch.ones((), device=inputs.device)
        self.rounds = [*self.rounds, Steps.of(self.policy, paths, inputs, to_go / beta, price)][
            -self.memory :
        ]
        every = Steps(*(torch.cat(parts) for parts in zip(*self.rounds, strict=True)))
        if not self.critic_steps:
            return every._replace(advantage=every.advantage - every.advantage.mean())
        with torch.no_grad():
            features = self.policy.features(every.k, every.inputs)
        if self._n_updates == 0:
            self.critic.fit_units(every.advantage)
        self.fit_critic(features, every.advantage)
        with torch.no_grad():
            return every._replace(advantage=every.advantage - self.critic(features))

    def fit_critic(self, features: Tensor, returns: Tensor) -> None:
        """Regress V on returns ``(N,)`` at ``(N, q)``."""
        for _ in range(self.critic_steps):
            row = torch.randint(
                len(returns),
                (self.critic_batch_size,),
                generator=self.generator,
                device=self.device,
            )
            loss = ((self.critic(features[row]) - returns[row]) / self.critic.scale).square().mean()
            self.critic_optimizer.zero_grad()
            loss.backward()
            self.critic_optimizer.step()
        self.logger.record("train/value_loss", float(loss.detach()))

    def loss(self, rows: Steps) -> Tensor:
        """See ``dpok_loss``."""
        return dpok_loss(self.policy, rows, self.clip_range)
