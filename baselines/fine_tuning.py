"""What DPOK, DDPO and adjoint matching share: a network of the control, sampled on its own paths, and gradient steps.

All three fine-tune the Gaussian steps of a diffusion model. In noise units (MATH.md section 1) a step ``N(mean, sigma^2)`` is
the law ``N(a, I)`` of ``z = a + W``, whatever the transition makes of z, so they run on every Problem. In the papers' terms,
the network moves the mean of step k by ``sigma_k a``, and

    log p(z | x) / p_old(z | x) = (a - a_old) . W - |a - a_old|^2 / 2    (z = a_old + W),    KL to the pre-trained = |a|^2 / 2,

both exact sums over dimensions; the papers' public codes average them, so their clip ranges are not these.

This is the one place where ``baselines`` uses ``agents``: SB3's interface, checkpoints and counters (``agents.base``) and the
control's network and inputs (``agents.function_classes``) are the agents' own, so that a difference in score is a difference
of algorithm. No learner is imported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..agents.base import ControlPolicy, ProblemAgent, check_range
from ..agents.function_classes import EnsembleMLP, Standardise, encode, time_features
from ..envs.env import as_env, problem_of
from ..envs.problem import Problem, Trajectories, check_positive, device_of
from .hyperparameters import settings_for

SelfTuner = TypeVar("SelfTuner", bound="FineTuner")


def steered_steps(problem: Problem) -> Tensor:
    """Which steps carry noise, ``(T,)`` bool: a denoiser's last may have none, and then neither control, KL nor likelihood."""
    kernel = getattr(problem, "gaussian_kernel", None)
    if kernel is None:
        return torch.ones(problem.horizon, dtype=torch.bool, device=device_of(problem))
    with torch.no_grad():
        x = problem.initial(problem.horizon, torch.Generator(device_of(problem)).manual_seed(0))
        mean, scale = kernel(torch.arange(problem.horizon, device=x.device), x)
        return (torch.zeros_like(mean) + scale).flatten(1).ne(0).any(1)


class MlpPolicy(ControlPolicy):
    """The control as a network of the encoded state and the time, smoothly within the action bound.

    It begins at zero: the pre-trained model. At steps without noise it stays there.

    Args:
        hidden: widths of the hidden layers.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        with torch.no_grad():
            two = problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))
            n_inputs = self.inputs(0, two).shape[1]
        self.standardise = Standardise(n_inputs)
        n_features = n_inputs + time_features(torch.zeros(1), 1).shape[1]
        self.network = EnsembleMLP(n_features, int(torch.Size(problem.noise_shape).numel()), hidden, members=1)
        self.register_buffer("steered", steered_steps(problem))
        self.steered: Tensor

    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The encoded state ``(n, p)``: the terminal estimate where the problem offers one, else the state."""
        return encode(self.problem, k, x).float()

    def features(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """What networks take: standardised inputs and features of the time, ``(n, q)``."""
        time = time_features(torch.as_tensor(k / self.problem.horizon).to(inputs), len(inputs))
        return torch.cat([self.standardise(inputs), time], 1)

    def output(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Controls ``(n, noise size)`` of encoded states; the only way to the parameters."""
        raw = self.network(self.features(k, inputs))[0]
        return self.action_bound * torch.tanh(raw / self.action_bound) * self.steered[k].reshape(-1, 1)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        return self.output(k, self.inputs(k, x)).view(len(x), *self.problem.noise_shape).to(x.dtype)


class Steps(NamedTuple):
    """Steps of sampled paths, one row each; those without noise left out."""

    k: Tensor  # (N,)
    inputs: Tensor  # (N, p): encoded states
    noise: Tensor  # (N, m): W
    control: Tensor  # (N, m): a of the policy that sampled
    advantage: Tensor  # (N,): what the algorithm weighs the step's likelihood by
    price: Tensor  # (N,): of one nat of this step's KL, in the advantage's units

    @classmethod
    def of(cls, policy: MlpPolicy, paths: Trajectories, inputs: Tensor, advantage: Tensor, price: Tensor) -> Steps:
        """Rows of ``n`` paths of T steps; ``inputs`` ``(T, n, p)``, ``advantage`` ``(T, n)``, ``price`` a number."""
        horizon, n = advantage.shape
        steps = torch.arange(horizon, device=inputs.device)
        columns = (
            *(steps[:, None].expand(horizon, n), inputs, paths.noises.flatten(2), paths.controls.flatten(2)),
            *(advantage, price.expand(horizon, n)),
        )
        rows = (column[policy.steered].flatten(0, 1) for column in columns)
        return cls(*(row.float() if row.is_floating_point() else row for row in rows))


class Move(NamedTuple):
    """A policy against the one that sampled, on rows of ``Steps``."""

    ratio: Tensor  # (N,): p(z | x) / p_old(z | x)
    kl: Tensor  # (N,): to the pre-trained model, |a|^2 / 2


def move(policy: MlpPolicy, steps: Steps) -> Move:
    """The likelihood ratio and the KL of the module's docstring, differentiable in the policy's parameters."""
    a = policy.output(steps.k, steps.inputs)
    change = a - steps.control
    return Move((change * (steps.noise - 0.5 * change)).sum(1).exp(), 0.5 * a.square().sum(1))


def returns_to_go(paths: Trajectories, temperature: float, kl_in_reward: bool = True) -> Tensor:
    """What is still to be earned from step k on, ``(T, n)``: rewards, less the price of the KL of LATER steps.

    The KL of step k itself is a function of the parameters, not of the noise, and is differentiated as such. With it,
    ``E sum_k [ grad log p(z_k | x_k) to_go_k - temperature grad |a_k|^2 / 2 ]`` is the gradient of J (the policy gradient
    theorem). ``kl_in_reward=False`` leaves later KL out: DPOK's estimator, which is blind to how a step changes it.
    """
    earned = paths.running_rewards.flip(0).cumsum(0).flip(0) + paths.terminal_reward
    if not kl_in_reward:
        return earned
    kl = 0.5 * paths.controls.flatten(2).square().sum(2)
    return earned - temperature * (kl.flip(0).cumsum(0).flip(0) - kl)


class FineTuner(ProblemAgent):
    """Base of DPOK, DDPO and adjoint matching: sample paths of the present policy, make rows of them, take gradient steps.

    Args:
        policy: ``"MlpPolicy"``, or a subclass of it.
        env: an environment, a vector environment, a registered id, or a bare Problem.
        n_trajectories: paths in a round.
        gradient_steps: in a round.
        batch_size: rows (steps of paths) in a gradient step.
        max_grad_norm: gradients are clipped to it.
        weight_decay: of AdamW.
        learning_rate: of AdamW; a number or an SB3 schedule.

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MlpPolicy}
    policy: MlpPolicy
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("gradient_steps", "batch_size", "max_grad_norm", "weight_decay"),
    )
    #: Tuned settings by problem (``baselines/hyperparameters.py``), used by ``tuned``.
    table: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: Any,
        learning_rate: Any,
        n_trajectories: int,
        gradient_steps: int,
        batch_size: int,
        max_grad_norm: float,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_range("gradient_steps", gradient_steps, 1)
        check_range("batch_size", batch_size, 1)
        check_positive("max_grad_norm", max_grad_norm)
        check_range("weight_decay", weight_decay, 0)
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.max_grad_norm = max_grad_norm
        self.weight_decay = weight_decay
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    @classmethod
    def tuned(cls: type[SelfTuner], env: Any, **overrides: Any) -> SelfTuner:
        """The algorithm with the settings of ``table`` for the problem behind ``env``, and ``overrides`` on top."""
        env = as_env(env)
        return cls(env=env, **{**settings_for(cls.table, problem_of(env)), **overrides})

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.policy, MlpPolicy):
            raise ValueError(f"policy must be 'MlpPolicy' or a subclass of its class; got {self.policy_name}")
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), weight_decay=self.weight_decay)

    def networks(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """See ProblemAgent."""
        return {**super().networks(), "optimizer": self.optimizer}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.policy.steered.copy_(steered_steps(self.problem))

    @abstractmethod
    def prepare(self, paths: Trajectories, inputs: Tensor) -> Any:
        """Rows to learn from, a NamedTuple of tensors ``(N, ...)``, of fresh paths and their encoded states ``(T, n, p)``."""

    @abstractmethod
    def loss(self, rows: Any) -> Tensor:
        """The loss of each row, ``(N,)``."""

    def iterate(self) -> None:
        """One round."""
        self.set_learning_rate(self.optimizer)
        data = self.prepare(*self.sample())
        losses = []
        for _ in range(self.gradient_steps):
            row = torch.randint(len(data[0]), (self.batch_size,), generator=self.generator, device=self.device)
            loss = self.loss(type(data)(*(column[row] for column in data))).mean()
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.optimizer.step()
            self._n_updates += 1
            losses.append(loss.detach())
        self.logger.record("train/loss", float(torch.stack(losses).mean()))
        self.logger.record("train/gradient_norm", float(norm))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def sample(self) -> tuple[Trajectories, Tensor]:
        """Fresh paths of the policy, and their encoded states ``(T, n, p)``, computed once."""
        inputs: list[Tensor] = []

        def act(k: int, x: Tensor) -> Tensor:
            inputs.append(self.policy.inputs(k, x))
            return self.policy.output(k, inputs[-1]).view(len(x), *self.problem.noise_shape).to(x.dtype)

        paths = self.collect(act)
        if self._n_updates == 0:
            self.policy.standardise.fit(torch.cat(inputs))  # the last layer is zero still: the paths stay the policy's own
        self.logger.record("train/kl", float(paths.kl.mean()))
        return paths, torch.stack(inputs)
