"""PI-FT: policy iteration for KL-regularised fine-tuning (Han, Razaviyayn and Xu 2025).

The reward and the transition are known and differentiable. One iteration evaluates the gradient of the present policy's value
along its own paths and improves the control by the paper's fixed-point update (their eq. 35, in noise units),

    a_k(x) <- (1 / beta) E_W[ J_z^T grad V_{k+1}( F_k(x, a_k(x) + W) ) ],

the expectation being what a regression of the sampled right-hand side on (k, x) learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..envs.env import device_of
from ..envs.problem import Problem, Trajectories
from .base import ControlPolicy, ProblemAgent
from .function_classes import EnsembleMLP, Standardise, encode, time_features


class MlpPolicy(ControlPolicy):
    """The control as a network of the state, its terminal estimate (where the problem offers one) and the time.

    Args:
        hidden: widths of the hidden layers.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (256, 256),
        members: int = 1,
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        with torch.no_grad():
            n_inputs = self._inputs(0, problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))).shape[1]
        outputs = int(torch.Size(problem.noise_shape).numel())
        self.standardise = Standardise(n_inputs)
        n_time = time_features(0, 1, 1, torch.zeros(1)).shape[1]
        self.network = EnsembleMLP(n_inputs + n_time, outputs, hidden, members)

    def _inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        state = x.flatten(1)
        if hasattr(self.problem, "terminal_estimate"):
            state = torch.cat([state, encode(self.problem, k, x)], 1)
        return state.float()

    def raw(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The network's output before clipping, ``(n, noise size)``."""
        time = time_features(k, self.problem.horizon, len(inputs), inputs)
        return self.network(torch.cat([self.standardise(inputs), time], 1)).mean(0)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        a = self.raw(k, self._inputs(k, x)).view(len(x), *self.problem.noise_shape)
        return a.clamp(-self.action_bound, self.action_bound).to(x.dtype)


class Improvement(NamedTuple):
    """Regression data of one iteration: where the control was and what the fixed-point update makes of it."""

    k: Tensor  # (N,)
    inputs: Tensor  # (N, p)
    target: Tensor  # (N, noise size)


def value_gradients(problem: Problem, policy: ControlPolicy, paths: Trajectories, through_policy: bool = True) -> list[Tensor]:
    """``J_z^T grad V_{k+1}`` along the paths, k = 0..T-1, each ``(n, *noise_shape)``: the pathwise adjoint recursion.

    One step is differentiated at a time, so memory does not grow with the horizon.
    """
    with torch.enable_grad():
        x = paths.states[-1].detach().requires_grad_()
        reward = problem.terminal_reward(x)
        if not reward.requires_grad:
            raise ValueError(
                f"PIFT needs the gradient of the reward; {type(problem).__name__}.terminal_reward returned a detached tensor"
            )
        (adjoint,) = torch.autograd.grad(reward.sum(), x)
    out = []
    for k in reversed(range(problem.horizon)):
        with torch.enable_grad():
            x = paths.states[k].detach().requires_grad_()
            a = policy.control(k, x) if through_policy else paths.controls[k].detach()
            z = paths.noises[k] + a
            if not z.requires_grad:
                z.requires_grad_()
            later = problem.transition(k, x, z)
            gain = (adjoint * later).sum()
            total = gain + problem.running_reward(k, x).sum() - 0.5 * problem.temperature * a.square().sum()
            if not later.requires_grad:
                raise ValueError(f"PIFT needs a transition that autograd can follow; {type(problem).__name__}'s is not")
            by_noise, adjoint = torch.autograd.grad(total, (z, x))
        out.append(by_noise)
    return out[::-1]


class PIFT(ProblemAgent):
    """Policy iteration by pathwise value gradients."""

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MlpPolicy}
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("gradient_steps", "batch_size", "memory", "averaging", "weight_decay", "through_policy"),
    )

    def __init__(
        self,
        policy: str | type[ControlPolicy] = "MlpPolicy",
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_trajectories: int = 50,
        gradient_steps: int = 100,
        batch_size: int = 512,
        memory: int = 5,
        averaging: float = 0.98,
        weight_decay: float = 1e-2,
        through_policy: bool = True,
        clip: float = 3.0,
        **kwargs: Any,
    ) -> None:
        self.clip = clip
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.memory = memory
        self.averaging = averaging
        self.weight_decay = weight_decay
        self.through_policy = through_policy
        self.recent: list[Improvement] = []
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        import copy
        self.learner = copy.deepcopy(self.policy.network)
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), weight_decay=self.weight_decay)

    def networks(self) -> dict[str, Any]:
        return {**super().networks(), "learner": self.learner, "optimizer": self.optimizer}

    def iterate(self) -> None:
        paths = self.collect(self.policy.control)
        gradients = value_gradients(self.problem, self.policy, paths, self.through_policy)
        n, T = paths.states.shape[1], self.problem.horizon
        with torch.no_grad():
            inputs = torch.cat([self.policy._inputs(k, paths.states[k]) for k in range(T)])
        if not self.recent:
            self.policy.standardise.fit(inputs)
        k = torch.arange(T, device=inputs.device).repeat_interleave(n)
        target = torch.cat(gradients).flatten(1).float() / self.problem.temperature
        self.recent = [*self.recent, Improvement(k, inputs, target)][-self.memory :]
        data = Improvement(*(torch.cat(parts) for parts in zip(*self.recent)))
        self.set_learning_rate(self.optimizer)
        total = 0.0
        for _ in range(self.gradient_steps):
            row = torch.randint(len(data.k), (self.batch_size,), generator=self.generator, device=self.device)
            time = time_features(data.k[row], T, len(row), data.inputs)
            out = self.learner(torch.cat([self.policy.standardise(data.inputs[row]), time], 1)).mean(0)
            loss = (out - data.target[row].clamp(-self.clip, self.clip)).square().sum(1).mean()
            self.optimizer.zero_grad(); loss.backward()
            torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
            self.optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(self.policy.network.parameters(), self.learner.parameters(), strict=True):
                    slow.lerp_(fast, 1 - self.averaging)
        self._n_updates += self.gradient_steps
