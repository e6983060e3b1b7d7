"""The seam between PIFT and its forms: a control that can do one policy iteration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.problem import Policy, Problem, Trajectories, check_positive, device_of
from ..control import ControlPolicy
from ..networks import EnsembleMLP, Standardise, encode, time_features


class Iteration(Protocol):
    """What a form may ask of the agent that iterates it; ``PIFT`` says what the settings mean."""

    n_trajectories: int
    memory: int
    damping: float
    max_gradient: float
    gradient_steps: int
    batch_size: int
    lr_schedule: Callable[[float], float]
    learner: nn.Module
    generator: torch.Generator
    device: torch.device
    reward_queries: int
    processes: int
    _n_updates: int
    _current_progress_remaining: float

    @property
    def logger(self) -> Any:
        """Where diagnostics are recorded."""

    @property
    def n_updates(self) -> int:
        """Gradient steps taken so far."""

    def collect(self, policy: Policy | None, n: int | None = None) -> Trajectories:
        """Fresh paths, counted."""

    def descend(self, loss: Tensor) -> None:
        """One step of the learner down a loss."""

    def ascend(self, gradient: Sequence[Tensor]) -> None:
        """One step of the policy's network up a gradient of the objective."""


class IterationPolicy(ControlPolicy):
    """A form of PI-FT: a control and its improvement.

    What a checkpoint must hold belongs in parameters and buffers.

    Args:
        observation_space: of the environment.
        action_space: of the environment; its bound is the control's.
        problem: what the control steers.
        temperatures: price of one nat of KL at each step, the paper's beta_k: the form then
            maximises ``E[sum_k r_k + y] - E[sum_k beta_k |a_k|^2 / 2]``, while environment and
            scores go on with the problem's own temperature. One number or ``horizon`` of them; the
            problem's own if absent.

    Raises:
        ValueError: ``temperatures`` are not one or ``horizon`` positive numbers.
    """

    #: Whether the acting network is the average of the one that gradient steps move, or that one
    #: itself.
    averaged: ClassVar[bool] = False
    n_trajectories: ClassVar[int] = 50  #: the agent's, unless it is told otherwise
    learning_rate: ClassVar[float] = 2e-3  #: likewise
    anneal: ClassVar[bool] = True  #: likewise

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        temperatures: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        self.temperatures = temperatures
        if len(self.betas) != problem.horizon:
            raise ValueError(
                f"temperatures must be one number or {problem.horizon}, one a step; got"
                f" {len(self.betas)}"
            )
        for beta in self.betas:
            check_positive("temperatures", beta)
        #: The module that gradient steps train, if the form has one (see ``PIFT.descend`` and
        #: ``PIFT.ascend``).
        self.network: Any = None

    @property
    def betas(self) -> list[float]:
        """The price of one nat at every step, ``horizon`` numbers."""
        beta = self.problem.temperature if self.temperatures is None else self.temperatures
        return [beta] * self.problem.horizon if isinstance(beta, (int, float)) else list(beta)

    def prices(self, like: Trajectories) -> Tensor:
        """``betas``, shaped to multiply the controls of paths."""
        return like.controls.new_tensor(self.betas).view(-1, *[1] * (like.controls.dim() - 1))

    @abstractmethod
    def improve(self, agent: Iteration) -> None:
        """One policy iteration: collect, improve this control, record.

        With ``agent.collect`` and ``agent.logger``.
        """

    def forget(self) -> None:
        """Drop what belongs to another problem; the agent calls it when its environment changes."""


def some_states(problem: Problem) -> Tensor:
    """Two initial states, ``(2, *state_shape)``, for their shape and type."""
    return problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))


class NetworkControl(IterationPolicy):
    """The control as a network of the encoded state and the time.

    The terminal estimate is the encoded state where the problem offers one.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: what the control steers.
        hidden: widths of the hidden layers.
        temperatures: see IterationPolicy.
        rest: of the class that this one is mixed into.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (256, 256),
        temperatures: float | Sequence[float] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(observation_space, action_space, problem, temperatures, **rest)
        with torch.no_grad():
            n_inputs = self.inputs(0, some_states(problem)).shape[1]
        n_time = time_features(torch.zeros(1), 1).shape[1]
        self.standardise = Standardise(n_inputs)
        self.network = EnsembleMLP(
            n_inputs + n_time, torch.Size(problem.noise_shape).numel(), hidden, members=1
        )

    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The encoded state, ``(n, p)``."""
        return encode(self.problem, k, x).float()

    def output(self, network: Any, k: int | Tensor, inputs: Tensor) -> Tensor:
        """The control that ``network`` gives at encoded states ``(n, p)``.

        Before its bound, ``(n, noise size)``.
        """
        time = time_features(torch.as_tensor(k / self.problem.horizon).to(inputs), len(inputs))
        return network(torch.cat([self.standardise(inputs), time], 1))[0]

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        a = self.output(self.network, k, self.inputs(k, x)).view(len(x), *self.problem.noise_shape)
        return a.clamp(-self.action_bound, self.action_bound).to(x.dtype)
