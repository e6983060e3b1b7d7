"""PI-FT: policy iteration for KL-regularised fine-tuning (Han, Razaviyayn and Xu 2025).

The reward and the transition are known and differentiable. One iteration evaluates the gradient of the present policy's value
along its own paths and improves the control by the paper's fixed-point update (their eq. 35, in noise units),

    a_k(x) <- (1 / beta) E_W[ J_z^T grad V_{k+1}( F_k(x, a_k(x) + W) ) ],

damped where the temperature is too low for the full step to contract.

What is a function there is a network here, fitted by regression over (k, x): the control itself (``MlpPolicy``; the
regression is the expectation), or the value function, whose gradient then gives the control (``ValuePolicy``).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..envs.problem import Problem, Trajectories, device_of
from .base import ControlPolicy, ProblemAgent, check_range, descend
from .function_classes import EnsembleMLP, NeuralValue, Standardise, encode, time_features


class ValueGradients(NamedTuple):
    """Derivatives of the return-to-go along sampled paths, from the adjoint recursion; both unbiased for the policy's own."""

    by_noise: Tensor  # (T, n, *noise_shape): J_z^T grad V_{k+1}
    by_state: Tensor  # (T + 1, n, *state_shape): grad V_k


def value_gradients(problem: Problem, policy: ControlPolicy, paths: Trajectories) -> ValueGradients:
    """Differentiate each path's return with respect to its noises and states.

    One step is differentiated at a time, so memory does not grow with the horizon.

    Raises:
        ValueError: the reward or the transition cannot be differentiated.
    """
    name = type(problem).__name__
    with torch.enable_grad():
        x = paths.states[-1].detach().requires_grad_()
        reward = problem.terminal_reward(x)
        if not reward.requires_grad:
            raise ValueError(f"PIFT needs the gradient of the reward; {name}.terminal_reward returned a detached tensor")
        (adjoint,) = torch.autograd.grad(reward.sum(), x)
    by_noise, by_state = [], [adjoint]
    for k in reversed(range(problem.horizon)):
        with torch.enable_grad():
            x = paths.states[k].detach().requires_grad_()
            a = policy.control(k, x)
            z = paths.noises[k] + a
            if not z.requires_grad:
                z.requires_grad_()
            ahead = (adjoint * problem.transition(k, x, z)).sum()
            noise = None
            if ahead.requires_grad:
                (noise,) = torch.autograd.grad(ahead, z, retain_graph=True, allow_unused=True)
            if noise is None:
                raise ValueError(f"PIFT needs a transition that autograd can follow; {name}'s is not")
            here = problem.running_reward(k, x).sum() - 0.5 * problem.temperature * a.square().sum()
            (adjoint,) = torch.autograd.grad(ahead + here, x)
        by_noise.append(noise)
        by_state.append(adjoint)
    return ValueGradients(torch.stack(by_noise[::-1]), torch.stack(by_state[::-1]))


class Evaluation(NamedTuple):
    """Regression data from one iteration, one row an observed (k, x); everything in units of the temperature."""

    k: Tensor  # (N,) from 0 to T
    inputs: Tensor  # (N, p): what the policy's network takes
    improved: Tensor  # (N, noise size): sampled right-hand side of the fixed-point update; zero at k = T
    value: Tensor  # (N,): sampled return-to-go
    gradient: Tensor  # (N, state size): its sampled gradient


class FittedPolicy(ControlPolicy):
    """A control that comes from one fitted network; a subclass says what is fitted."""

    network: Any  # a module, whose class the subclass chooses

    @abstractmethod
    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What the network takes, ``(n, p)``."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Evaluation) -> Tensor:
        """The regression loss of ``network`` on ``batch``."""

    @abstractmethod
    def start(self, data: Evaluation) -> None:
        """Take units from the first data."""


class MlpPolicy(FittedPolicy):
    """The control as a network of the encoded state (the terminal estimate, where the problem offers one) and the time.

    Args:
        hidden: widths of the hidden layers.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        with torch.no_grad():
            n_inputs = self.inputs(0, _some_states(problem)).shape[1]
        n_time = time_features(torch.zeros(1), 1).shape[1]
        self.standardise = Standardise(n_inputs)
        self.network = EnsembleMLP(n_inputs + n_time, int(torch.Size(problem.noise_shape).numel()), hidden, members=1)

    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The encoded state."""
        return encode(self.problem, k, x).float()

    def start(self, data: Evaluation) -> None:
        """Take units from the first data."""
        self.standardise.fit(data.inputs)

    def _output(self, network: nn.Module, k: int | Tensor, inputs: Tensor) -> Tensor:
        time = time_features(torch.as_tensor(k / self.problem.horizon).to(inputs), len(inputs))
        return network(torch.cat([self.standardise(inputs), time], 1))[0]

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        a = self._output(self.network, k, self.inputs(k, x)).view(len(x), *self.problem.noise_shape)
        return a.clamp(-self.action_bound, self.action_bound).to(x.dtype)

    def loss(self, network: nn.Module, batch: Evaluation) -> Tensor:
        """Mean square distance to the sampled update; its minimiser is the update's expectation."""
        inside = (batch.k < self.problem.horizon).float()
        error = (self._output(network, batch.k, batch.inputs) - batch.improved).square().sum(1)
        return (inside * error).mean()


class ValuePolicy(FittedPolicy):
    """The value function as a network, fitted to sampled returns and their gradients (Algorithm 1 with fitted values).

    The control is ``iterations`` rounds of the fixed-point update from zero, the expectation over antithetic noise pairs.

    Args:
        hidden: widths of the hidden layers.
        iterations: the paper's m_k.
        draws: antithetic pairs of noise; 0 takes the update at ``W = 0``.
        gradient_weight: of the gradients' square error against the values'.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (128, 128),
        iterations: int = 2,
        draws: int = 2,
        gradient_weight: float = 1.0,
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        self.network = NeuralValue(int(torch.Size(problem.state_shape).numel()), problem.horizon, hidden, members=1)
        self.iterations, self.gradient_weight = iterations, gradient_weight
        # fixed and the same for every state: the policy is a function, and costs no random numbers
        half = torch.randn(draws, *problem.noise_shape, generator=torch.Generator().manual_seed(1))
        noise = torch.cat([half, -half]) if draws else torch.zeros(1, *problem.noise_shape)
        self.register_buffer("noise", noise)
        self.noise: Tensor

    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The flattened state: the fit needs the gradient with respect to it."""
        return x.flatten(1).float()

    def start(self, data: Evaluation) -> None:
        """Take units from the first data."""
        self.network.standardise.fit(data.inputs)
        self.network.offset.copy_(data.value.mean())

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See the class."""
        n, copies = len(x), len(self.noise)
        steps = k if isinstance(k, int) else k.repeat(copies)
        many = x.repeat(copies, *[1] * (x.dim() - 1))
        noise = self.noise.to(x).repeat_interleave(n, 0)
        a = x.new_zeros(n, *self.problem.noise_shape)
        grad = torch.is_grad_enabled()
        for _ in range(self.iterations):
            with torch.enable_grad():
                z = a.repeat(copies, *[1] * (a.dim() - 1)) + noise
                if not z.requires_grad:
                    z.requires_grad_()
                value = self.network(steps + 1, self.inputs(steps + 1, self.problem.transition(steps, many, z)))
                (update,) = torch.autograd.grad(value.sum(), z, create_graph=grad and x.requires_grad)
            a = update.view(copies, *a.shape).mean(0).clamp(-self.action_bound, self.action_bound)
        return a

    def loss(self, network: nn.Module, batch: Evaluation) -> Tensor:
        """Square error of the value and of its gradient: a regression in the Sobolev norm."""
        with torch.enable_grad():
            x = batch.inputs.detach().requires_grad_()
            value = network(batch.k, x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        scale = self.network.standardise.scale
        error = ((gradient - batch.gradient) * scale).square().sum(1)
        return ((value - batch.value).square() + self.gradient_weight * error).mean()


def _some_states(problem: Problem) -> Tensor:
    return problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))


class PIFT(ProblemAgent):
    """Policy iteration by value gradients along the policy's own paths.

    Args:
        policy: ``"MlpPolicy"`` fits the control, ``"ValuePolicy"`` the value function; or a ``FittedPolicy`` class.
        env: an environment, a vector environment, a registered id, or a bare Problem whose transition and reward are
            differentiable.
        n_trajectories: paths of the current policy in each iteration.
        memory: iterations whose paths are kept for the regression.
        damping: share of the way from the present control to the fixed-point update that one iteration goes. The full step
            contracts only above a temperature of sigma^2 Lip(grad V); below it the damped one still does.
        max_gradient: longest sampled update at one step, in noise units.
        gradient_steps: of the regression, in each iteration.
        batch_size: observations in a gradient step.
        averaging: decay of the averaged network, which is the policy.
        weight_decay: of AdamW.
        learning_rate: of AdamW; a number or an SB3 schedule.

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MlpPolicy, "ValuePolicy": ValuePolicy}
    policy: FittedPolicy
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("memory", "damping", "max_gradient", "gradient_steps", "batch_size", "averaging", "weight_decay"),
    )

    def __init__(
        self,
        policy: str | type[ControlPolicy] = "MlpPolicy",
        env: Any = None,
        learning_rate: Any = 2e-3,
        n_trajectories: int = 50,
        memory: int = 2,
        damping: float = 0.2,
        max_gradient: float = 10.0,
        gradient_steps: int = 20,
        batch_size: int = 512,
        averaging: float = 0.97,
        weight_decay: float = 1e-2,
        **kwargs: Any,
    ) -> None:
        check_range("memory", memory, 1)
        check_range("damping", damping, 0, 1)
        check_range("gradient_steps", gradient_steps, 1)
        check_range("batch_size", batch_size, 1)
        check_range("averaging", averaging, 0, 1)
        self.memory = memory
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.averaging = averaging
        self.weight_decay = weight_decay
        self.max_gradient = max_gradient
        self.damping = damping
        self.recent: list[Evaluation] = []
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.learner = copy.deepcopy(self.policy.network)  # what gradients move; the policy holds its average
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), weight_decay=self.weight_decay)

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        return {**super().networks(), "learner": self.learner, "optimizer": self.optimizer}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.recent = []

    def iterate(self) -> None:
        """One iteration: sample, evaluate, improve."""
        paths = self.collect(self.policy.control)
        gradients = value_gradients(self.problem, self.policy, paths)
        data = self.evaluate(paths, gradients)
        if self._n_updates == 0:
            self.policy.start(data)
            self.learner.load_state_dict(self.policy.network.state_dict())
        self.recent = [*self.recent, data][-self.memory :]
        step = gradients.by_noise - self.problem.temperature * paths.controls
        self.logger.record("train/gradient_norm", float(step.mean(1).square().sum().sqrt()))
        clipped = (paths.controls.abs() >= self.policy.action_bound).float().mean()
        self.logger.record("train/clipped_share", float(clipped))
        self._fit(Evaluation(*(torch.cat(parts) for parts in zip(*self.recent, strict=True))))

    def evaluate(self, paths: Trajectories, gradients: ValueGradients) -> Evaluation:
        """Paths and their value gradients as regression data."""
        beta, horizon, n = self.problem.temperature, self.problem.horizon, paths.states.shape[1]
        with torch.no_grad():
            inputs = torch.cat([self.policy.inputs(k, x) for k, x in enumerate(paths.states)])
        control = paths.controls.flatten(0, 1).flatten(1)
        update = (gradients.by_noise / beta).flatten(0, 1).flatten(1)
        update = update * (self.max_gradient / update.norm(dim=1, keepdim=True)).clamp(max=1)
        improved = control + self.damping * (update - control)
        gain = paths.running_rewards - 0.5 * beta * paths.controls.flatten(2).square().sum(2)
        to_go = torch.cat([gain, paths.terminal_reward[None]]).flip(0).cumsum(0).flip(0)
        return Evaluation(
            torch.arange(horizon + 1, device=inputs.device).repeat_interleave(n),
            inputs,
            torch.cat([improved, improved.new_zeros(n, improved.shape[1])]).float(),
            (to_go / beta).flatten().float(),
            (gradients.by_state / beta).flatten(0, 1).flatten(1).float(),
        )

    def _fit(self, data: Evaluation) -> None:
        self.set_learning_rate(self.optimizer)
        total = torch.zeros((), device=self.device)
        for _ in range(self.gradient_steps):
            row = torch.randint(len(data.k), (self.batch_size,), generator=self.generator, device=self.device)
            loss = self.policy.loss(self.learner, Evaluation(*(part[row] for part in data)))
            descend(loss, self.learner, self.optimizer, self.policy.network, self.averaging)
            total += loss.detach()
        self._n_updates += self.gradient_steps
        self.logger.record("train/loss", float(total) / self.gradient_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
