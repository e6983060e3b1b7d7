"""Forms of PI-FT that fit a network to one iteration's paths.

To the improved control, or to the value function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.problem import Problem, Trajectories
from ..networks import NeuralValue
from ..trees import to
from .form import Iteration, IterationPolicy, NetworkControl
from .value_gradients import ValueGradients, gains, value_gradients


class Evaluation(NamedTuple):
    """Regression data from one iteration, one row an observed (k, x).

    Everything in units of the temperature.
    """

    k: Tensor  # (N,) from 0 to T
    inputs: Tensor  # (N, p): what the policy's network takes
    # (N, noise size): sampled right-hand side of the fixed-point update; zero at k = T
    improved: Tensor
    value: Tensor  # (N,): sampled return-to-go
    gradient: Tensor  # (N, state size): its sampled gradient


class FittedPolicy(IterationPolicy):
    """A control that comes from one fitted network; a subclass says what is fitted."""

    averaged = True
    recent: Sequence[Evaluation] = ()

    @abstractmethod
    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What the network takes, ``(n, p)``."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Evaluation) -> Tensor:
        """The regression loss of ``network`` on ``batch``."""

    @abstractmethod
    def start(self, data: Evaluation) -> None:
        """Take units from the first data."""

    def forget(self) -> None:
        """See IterationPolicy."""
        self.recent = ()

    def training_state(self) -> dict[str, Any]:
        """See ControlPolicy."""
        return {"recent": list(self.recent)}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """See ControlPolicy."""
        device = self.device
        self.recent = [Evaluation(*to(parts, device)) for parts in state["recent"]]

    def improve(self, agent: Iteration) -> None:
        """Sample, evaluate, and regress on the paths of the last ``agent.memory`` iterations."""
        # states of the present policy, and (36) along them: sampled V and grad V
        paths = agent.collect(self.control)
        gradients = value_gradients(self, paths)
        data = self.evaluate(agent, paths, gradients)
        if agent.n_updates == 0:
            self.start(data)
            agent.learner.load_state_dict(self.network.state_dict())
        self.recent = [*self.recent, data][-agent.memory :]
        price = self.prices(paths)
        step = gradients.by_noise - price * paths.controls
        agent.logger.record("train/gradient_norm", float(step.mean(1).square().sum().sqrt()))
        # (35): its expectation is what regression finds, of the update itself or of V and grad V
        every = Evaluation(*(torch.cat(parts) for parts in zip(*self.recent, strict=True)))
        for _ in range(agent.gradient_steps):
            row = torch.randint(
                len(every.k), (agent.batch_size,), generator=agent.generator, device=agent.device
            )
            agent.descend(self.loss(agent.learner, Evaluation(*(part[row] for part in every))))

    def evaluate(
        self, agent: Iteration, paths: Trajectories, gradients: ValueGradients
    ) -> Evaluation:
        """Paths and their value gradients as regression data."""
        horizon, n = self.problem.horizon, paths.states.shape[1]
        with torch.no_grad():
            inputs = torch.cat([self.inputs(k, x) for k, x in enumerate(paths.states)])
        control = paths.controls.flatten(0, 1).flatten(1)
        update = (gradients.by_noise / self.prices(paths)).flatten(0, 1).flatten(1)
        update = update * (agent.max_gradient / update.norm(dim=1, keepdim=True)).clamp(max=1)
        improved = control + agent.damping * (update - control)
        to_go = (
            torch.cat([gains(paths, self.betas), paths.terminal_reward[None]])
            .flip(0)
            .cumsum(0)
            .flip(0)
        )
        beta = self.problem.temperature
        return Evaluation(
            torch.arange(horizon + 1, device=inputs.device).repeat_interleave(n),
            inputs,
            torch.cat([improved, improved.new_zeros(n, improved.shape[1])]).float(),
            (to_go / beta).flatten().float(),
            (gradients.by_state / beta).flatten(0, 1).flatten(1).float(),
        )


class MlpPolicy(NetworkControl, FittedPolicy):
    """The control as a network, fitted to the damped fixed-point update.

    Arguments: ``NetworkControl``'s.
    """

    def start(self, data: Evaluation) -> None:
        """Take units from the first data."""
        self.standardise.fit(data.inputs)

    def loss(self, network: nn.Module, batch: Evaluation) -> Tensor:
        """Mean square distance to the sampled update; its minimiser is the update's expectation."""
        inside = (batch.k < self.problem.horizon).float()
        error = (self.output(network, batch.k, batch.inputs) - batch.improved).square().sum(1)
        return (inside * error).mean()


class ValuePolicy(FittedPolicy):
    """The value function as a network, fitted to sampled returns and their gradients.

    Algorithm 1 with fitted values. The control is ``iterations`` rounds of the fixed-point update
    from zero, the expectation over antithetic noise pairs.

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
        self.network = NeuralValue(
            torch.Size(problem.state_shape).numel(), problem.horizon, hidden, members=1
        )
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
                value = self.network(
                    steps + 1, self.inputs(steps + 1, self.problem.transition(steps, many, z))
                )
                (update,) = torch.autograd.grad(
                    value.sum(), z, create_graph=grad and x.requires_grad
                )
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
