"""What an action is: the control on top of a hidden noise, or the noise itself.

Both forms are the same problem with the same objective J (see ``problem``); they differ in what a
learner is given to explore with.

* ``control``: the action is a, the environment adds W ~ N(0, I) to it and charges
  ``temperature * |a|^2 / 2``. A learner that explores by noise of its own pays for that noise too.
* ``noise``: the action is z = a + W itself, and the next state ``F_k(x, z)`` is deterministic given
  it. The environment charges ``temperature * (|z|^2 - m) / 2``, which is minus
  ``temperature * log N(z; 0, I)`` up to the constant that makes it zero on average without control.
  A policy N(a, S) that is paid ``temperature`` times its entropy on top maximises J exactly, since
  KL(N(a, S) || N(0, I)) is ``(|a|^2 + tr S - m - log det S) / 2`` (Todorov 2009; Levine 2018): so
  maximum-entropy methods with that fixed coefficient solve the problem through plain ``gym.make``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from .checks import check_one_of, check_positive, check_shape
from .problem import Problem, device_of, row_sums, squared_norm

#: Of an action: its square is a number of float32.
LARGEST_BOUND = 1e18


def steered_steps(problem: Problem) -> Tensor:
    """Which steps carry noise, ``(T,)`` bool: a denoiser's last may have none, and then neither
    control, KL nor likelihood.
    """
    kernel = getattr(problem, "gaussian_kernel", None)
    if kernel is None:
        return torch.ones(problem.horizon, dtype=torch.bool, device=device_of(problem))
    with torch.no_grad():
        x = problem.initial(problem.horizon, torch.Generator(device_of(problem)).manual_seed(0))
        mean, scale = kernel(torch.arange(problem.horizon, device=x.device), x)
        return (torch.zeros_like(mean) + scale).flatten(1).ne(0).any(1)


class Steered(NamedTuple):
    """What an action comes to."""

    noise: Tensor  # (n, *noise_shape): z = a + W, what the transition is given
    kl: Tensor  # (n,): what is charged for it, in nats
    log_ratio: Tensor  # (n,): log dP^0/dP^pi of the step; zero where the policy alone knows it


class ActionForm(ABC):
    """One form of action for a problem.

    Args:
        problem: what is steered.
        bound: largest action in any coordinate; the form's own if absent.
    """

    name: ClassVar[str]
    default_bound: ClassVar[float]

    def __init__(self, problem: Problem, bound: float | None = None) -> None:
        self.bound = self.default_bound if bound is None else bound
        check_positive("action_bound", self.bound)
        if self.bound > LARGEST_BOUND:
            raise ValueError(f"action_bound must be at most {LARGEST_BOUND:g}; got {bound!r}")
        self.bound = float(self.bound)
        self.size = int(np.prod(problem.noise_shape))

    @property
    def space(self) -> gym.spaces.Box:
        """The box of actions of one environment."""
        return gym.spaces.Box(-self.bound, self.bound, (self.size,), dtype=np.float32)

    def lengths(self, problem: Problem) -> list[int]:
        """How many steps of the chain each action carries on; their sum is the horizon."""
        return [1] * problem.horizon

    @abstractmethod
    def steer(self, action: Tensor, generator: torch.Generator) -> Steered:
        """Noise and price of actions ``(n, *noise_shape)`` within the bound."""


class ControlActions(ActionForm):
    """The action is the control; the noise is the environment's."""

    name = "control"
    default_bound = 1.0

    def steer(self, action: Tensor, generator: torch.Generator) -> Steered:
        """See ActionForm."""
        noise = torch.randn(
            action.shape, generator=generator, device=action.device, dtype=action.dtype
        ).add_(action)
        kl = 0.5 * squared_norm(action)
        return Steered(noise, kl, kl - row_sums(action * noise))


class NoiseActions(ActionForm):
    """The action is the noise; the policy's own randomness is the chain's.

    A step without noise is no step of the agent's: it is carried out with the one before.
    """

    name = "noise"
    default_bound = 5.0

    def steer(self, action: Tensor, generator: torch.Generator) -> Steered:
        """See ActionForm."""
        kl = 0.5 * (squared_norm(action) - self.size)
        return Steered(action, kl, torch.zeros_like(kl))

    def lengths(self, problem: Problem) -> list[int]:
        """See ActionForm."""
        lengths: list[int] = []
        for steered in steered_steps(problem).tolist():
            if steered or not lengths:
                lengths.append(1)
            else:
                lengths[-1] += 1
        return lengths


#: By the name that environments take as ``actions``.
ACTIONS: dict[str, type[ActionForm]] = {form.name: form for form in (ControlActions, NoiseActions)}


def action_form(name: str, problem: Problem, bound: float | None = None) -> ActionForm:
    """The form of that name.

    Raises:
        ValueError: an unknown name, or a bound that is not positive.
    """
    check_one_of("actions", name, ACTIONS)
    return ACTIONS[name](problem, bound)


#: ``F_k(x, z)`` by ``k``, ``x`` and ``z``.
Transition = Callable[[int, Tensor, Tensor], Tensor]


def compiled(problem: Problem, n: int) -> Transition:
    """The transition of ``n`` states as ``torch.compile`` makes it, equal up to rounding.

    Raises:
        ValueError: it can't be compiled here.
    """
    found = torch.compile(problem.transition)
    x = problem.initial(n, torch.Generator(device_of(problem)).manual_seed(0))
    z = x.new_zeros(n, *problem.noise_shape)
    try:
        with torch.no_grad():
            for k in range(min(2, problem.horizon)):  # the second time for all steps
                found(k, x, z)
    except (ImportError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        name = type(problem).__name__
        raise ValueError(f"compile must be False for {name} here; got True ({said})") from error
    return found


class Advance(NamedTuple):
    """What one action of a learner leads to."""

    k: int  # the step of the chain that is reached
    states: list[
        Tensor
    ]  # (n, *state_shape) each: the states on the way there, the last one reached
    reward: Tensor  # (n,): running rewards, and the terminal one at the horizon; no price in it
    steered: Steered


class Steering:
    """The chain as learners step it: one action at a time, whatever the form of the action.

    Args:
        problem: the chain.
        form: of the actions.
        transition: of the problem, to be used in its place (see ``compiled``).
    """

    def __init__(
        self, problem: Problem, form: ActionForm, transition: Transition | None = None
    ) -> None:
        self.problem, self.form, self._transition = problem, form, transition
        self._shape = tuple(problem.state_shape)
        lengths = form.lengths(problem)
        self.episode_length = len(lengths)  #: actions in an episode
        self._lengths = dict(zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False))
        self._paid_on_the_way = (
            getattr(problem.running_reward, "__func__", None) is not Problem.running_reward
        )

    def advance(self, k: int, x: Tensor, action: Tensor, generator: torch.Generator) -> Advance:
        """Carry ``n`` states at step ``k`` on by one action each, ``(n, *noise_shape)``."""
        problem, transition = self.problem, self._transition or self.problem.transition
        action = action.to(x).clamp(-self.form.bound, self.form.bound)
        steered = self.form.steer(action, generator)
        reward, z, states = x.new_zeros(len(x)), steered.noise, []
        for left in range(self._lengths[k], 0, -1):
            if self._paid_on_the_way:
                reward = reward + problem.running_reward(k, x)
            x = transition(k, x, z)
            states.append(x)
            k += 1
            if left > 1:  # what follows in the same action has no noise
                z = torch.zeros_like(z)
        if k == problem.horizon:
            reward = reward + problem.terminal_reward(x)
        name = type(problem).__name__
        check_shape(f"the state of {name} at step {k}", x, (len(action), *self._shape))
        check_shape(f"the reward of {name}", reward, (len(action),))
        return Advance(k, states, reward, steered)
