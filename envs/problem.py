"""The seam: a reference Markov chain whose noise can be steered, and what can be measured on it.

A problem is ``X_0 ~ rho_0, X_{k+1} = F_k(X_k, a_k + W_k), W_k ~ N(0, I)``. A policy ``a_k = pi(k,
X_k)``, in standard deviations of the noise, maximises

    J(pi) = E[ sum_k r_k(X_k) + y(X_T) ] - temperature * E[ sum_k |a_k|^2 / 2 ].

The last expectation is exactly KL(P^pi || P^0) (Girsanov in discrete time; Han et al. 2025, Lemma
2.5): the two processes differ only in the law N(a, I) against N(0, I) of the input of F, whatever F
is.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .checks import (
    check_device,
    check_dtype,
    check_generator,
    check_policy,
    check_shape,
    check_states,
    is_finite,
    shown,
)
from .checks import check_integer as check_integer
from .checks import check_positive as check_positive

#: A policy maps the step ``k`` (int) and states ``(n, *state_shape)`` to controls ``(n,
#: *noise_shape)`` in noise units.
Policy = Callable[[int, Tensor], Tensor]
AnyProblem = TypeVar("AnyProblem", bound="Problem")


class Problem(ABC):
    """One stochastic control problem, batched over its first dimension.

    A subclass sets the four attributes and writes three methods (``running_reward`` is zero unless
    overridden). Everything is torch, on the device and in the dtype of the states that ``initial``
    returns.

    Optional extras, found by their presence:

    * ``optimal_value(k, x)``, ``optimal_control(k, x)``, ``optimal_objective()``: the exact optimum
      of the discrete chain.
    * ``reference_value(k, x)``, ``reference_control(k, x)``: a closed form that holds up to the
      step size.
    * ``gaussian_kernel(k, x) -> (mean, scale)``: the transition is ``mean + scale * z``.
    * ``terminal_estimate(k, x)``: an estimate of X_T given X_k, such as a denoiser's prediction of
      the clean image.
    * ``images(x)``: states as pictures ``(n, channels, H, W)`` in 0..1; ``prompts_of(x)``: what
      each was asked to show.
    * ``reward_bound``: a number that no path's total reward exceeds.
    * ``success(x) -> bool (n,)``: whether a terminal state solves the task, in the words of its
      field.

    A transition or a reward is differentiable if autograd says so.
    """

    state_shape: tuple[int, ...]  #: shape of one state
    noise_shape: tuple[int, ...]  #: shape of one noise draw, hence of one control
    horizon: int  #: number of steps T
    temperature: float  #: beta > 0, the price of one nat of KL
    #: Methods ``(k, x, ...)`` each row of which is one evaluation of the model (see ``counting``).
    model_methods: ClassVar[tuple[str, ...]] = ("transition",)

    @abstractmethod
    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` initial states ``(n, *state_shape)`` on the generator's device."""

    @abstractmethod
    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """``F_k(x, z)``: next states for states ``x`` and noise-plus-control ``z``; ``k`` an int or
        one step per row.
        """

    @abstractmethod
    def terminal_reward(self, x: Tensor) -> Tensor:
        """``y(x)``, shape ``(n,)``."""

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``r_k(x)``, shape ``(n,)``; zero unless overridden."""
        return x.new_zeros(x.shape[0])

    def render(self, path: Tensor) -> Any:
        """An ``(H, W, 3)`` uint8 picture of one path ``(k + 1, *state_shape)`` from its start to
        the present.
        """
        from .rendering import trace

        return trace(path, self.horizon)

    def to(
        self: AnyProblem, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AnyProblem:
        """A copy whose tensors and networks live on ``device`` and, where they are floating, have
        ``dtype``.

        What is there already is shared, not copied: a problem's networks are frozen, and may be
        large.
        """
        if device is not None:
            check_device("device", device)
        if dtype is not None:
            check_dtype("dtype", dtype)
        moved = copy.copy(self)
        for name, value in vars(self).items():
            object.__setattr__(moved, name, _moved(value, device, dtype))
        return moved

    def validate(self) -> None:
        """Raise one clear ValueError if the attributes are wrong, or what the methods return at
        several numbers of paths and several steps; see ``validation``.
        """
        from .validation import validate

        validate(self, device_of(self))


def _moved(value: Any, device: Any, dtype: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, nn.Module):
        # the copy is made of moved tensors at once, so that no second one exists where it came from
        moved_tensors = {
            id(t): _moved_tensor(t, device, dtype) for t in (*value.parameters(), *value.buffers())
        }
        if all(id(t) == key for key, t in moved_tensors.items()):
            return value
        return copy.deepcopy(value, dict(moved_tensors))
    if isinstance(value, tuple):
        moved = (_moved(v, device, dtype) for v in value)
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


def _moved_tensor(tensor: Tensor, device: Any, dtype: Any) -> Tensor:
    moved = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    if moved is tensor or not isinstance(tensor, nn.Parameter):
        return moved
    return nn.Parameter(moved.detach(), requires_grad=tensor.requires_grad)


def check_problem(problem: Any) -> Problem:
    """``problem`` itself, or a ValueError if it is none."""
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be a Problem (not its class, or an id); got {shown(problem)}"
        )
    return problem


def at(table: Tensor, k: int | Tensor, like: Tensor) -> Tensor:
    """``table[k]``, shaped to broadcast over the states ``like`` when ``k`` holds one step per
    row.
    """
    value = table[k]
    return value if isinstance(k, int) else value.reshape(-1, *[1] * (like.dim() - 1))


def device_of(problem: Problem) -> torch.device:
    """The device that holds the problem's tensors; the CPU if it has none."""
    for value in vars(problem).values():
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, nn.Module):
            for parameter in value.parameters():
                return parameter.device
    return torch.device("cpu")


def dtype_of(problem: Problem) -> torch.dtype:
    """The type of the problem's states."""
    return problem.initial(1, torch.Generator(device_of(problem)).manual_seed(0)).dtype


#: Rows up to this long are summed column by column: several times as quick on a CPU, and the same
#: to the bit, as torch adds so few from left to right too.
_SHORT = 4


def row_sums(a: Tensor) -> Tensor:
    """Sum over every dimension but the first: ``(n, ...) -> (n,)``."""
    rows = a.flatten(1)
    if not (rows.is_cpu and 1 <= rows.shape[1] <= _SHORT):
        return rows.sum(1)
    first, *rest = rows.unbind(1)
    for column in rest:
        first = first + column
    return first


def squared_norm(a: Tensor) -> Tensor:
    """Sum of squares over every dimension but the first: ``(n, ...) -> (n,)``."""
    return row_sums(a.square())


def finite_rewards(reward: Tensor, what: str) -> Tensor:
    """``reward`` itself, or a ValueError that says how many of its entries are NaN or infinite."""
    if not is_finite(reward):
        bad = int((~torch.isfinite(reward)).sum())
        raise ValueError(
            f"{what} must be finite; got {bad} NaN or infinite of {reward.numel()} values"
        )
    return reward


class Trajectories(NamedTuple):
    """``n`` paths of ``T`` steps, time first; ``states[k + 1] = F_k(states[k], controls[k] +
    noises[k])``.
    """

    states: Tensor  # (T + 1, n, *state_shape)
    noises: Tensor  # (T, n, *noise_shape)
    controls: Tensor  # (T, n, *noise_shape)
    running_rewards: Tensor  # (T, n)
    terminal_reward: Tensor  # (n,)

    @property
    def reward(self) -> Tensor:
        """``sum_k r_k + y`` of each path, ``(n,)``."""
        return self.running_rewards.sum(0) + self.terminal_reward

    @property
    def kl(self) -> Tensor:
        """``sum_k |a_k|^2 / 2`` of each path, ``(n,)``; its mean is KL(P^pi || P^0)."""
        return 0.5 * self.controls.flatten(2).square().sum((0, 2))

    @property
    def log_ratios(self) -> Tensor:
        """``log dP^0/dP^pi`` of each step, ``-a.W - |a|^2/2``, ``(T, n)`` (Girsanov)."""
        return -(self.controls * (self.noises + 0.5 * self.controls)).flatten(2).sum(2)


def rollout(
    problem: Problem,
    policy: Policy | None,
    n: int,
    generator: torch.Generator,
    *,
    start: Tensor | None = None,
    noises: Tensor | None = None,
    on_step: Callable[[int], bool] | None = None,
) -> Trajectories:
    """Run ``n`` paths under ``policy`` (``None``: uncontrolled).

    ``start`` ``(n, *state_shape)`` takes the place of ``problem.initial``.
    ``noises`` ``(T, n, *noise_shape)`` lets two policies share one path. ``on_step(k)`` is called
    after every step; when it returns False, ``InterruptedError`` is raised. Gradients flow if
    autograd is on and the policy has parameters.

    Raises:
        ValueError: an argument of another kind or shape, or numbers that are not finite; then it
            says whose.
    """
    check_problem(problem)
    check_integer("n", n)
    check_generator("generator", generator)
    check_policy("policy", policy)
    x = problem.initial(n, generator) if start is None else start
    check_states("start", x, (n, *problem.state_shape))
    shape = (problem.horizon, n, *problem.noise_shape)
    if noises is None:
        noises = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    check_shape("noises", noises, shape)
    states, controls, rewards = [x], [], []
    for k in range(problem.horizon):
        a = torch.zeros_like(noises[k]) if policy is None else policy(k, x)
        check_shape("policy(k, x)", a, shape[1:])
        rewards.append(problem.running_reward(k, x))
        x = problem.transition(k, x, noises[k] + a)
        states.append(x)
        controls.append(a)
        if on_step is not None and not on_step(k):
            raise InterruptedError("the rollout was stopped by its callback")
    name, terminal = type(problem).__name__, problem.terminal_reward(x)
    check_shape(f"{name}.running_reward(k, x)", rewards[-1], (n,))
    check_shape(f"{name}.terminal_reward(x)", terminal, (n,))
    paths = Trajectories(
        torch.stack(states), noises, torch.stack(controls), torch.stack(rewards), terminal
    )
    if not (is_finite(paths.controls) and is_finite(x)):
        raise ValueError(_blame(name, paths))
    finite_rewards(paths.running_rewards, f"{name}.running_reward")
    finite_rewards(terminal, f"{name}.terminal_reward")
    return paths


def _blame(name: str, paths: Trajectories) -> str:
    """Whose numbers were the first that are not finite: the policy's or the problem's."""
    for k, (x, a) in enumerate(zip(paths.states[:-1], paths.controls, strict=True)):
        if not is_finite(x):
            return f"{name}.transition must return finite states; got NaN or infinity at step {k}"
        if not is_finite(a):
            return (
                f"the policy's controls must be finite; got NaN or infinity at step {k}: the agent"
                " has diverged (a smaller learning rate is the usual remedy)"
            )
    return f"{name}.transition must return finite states; got NaN or infinity at the end"


class Estimate(NamedTuple):
    """A Monte-Carlo mean and its standard error."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, samples: Tensor) -> Estimate:
        """Mean and standard error of independent samples ``(n,)``, n >= 2."""
        if not (isinstance(samples, Tensor) and samples.dim() == 1 and len(samples) >= 2):
            got = tuple(samples.shape) if isinstance(samples, Tensor) else shown(samples)
            raise ValueError(f"samples must be a tensor (n,) of at least two; got {got}")
        return cls(float(samples.mean()), float(samples.std() / math.sqrt(len(samples))))


class Objective(NamedTuple):
    """What a policy is worth: ``objective = reward - temperature * kl``, each estimated on the same
    fresh paths.
    """

    objective: Estimate
    reward: Estimate
    kl: Estimate


@torch.no_grad()
def objective(
    problem: Problem, policy: Policy | None, n: int, generator: torch.Generator
) -> Objective:
    """Estimate J(policy), its reward and its KL on ``n`` fresh paths, at least 2."""
    check_integer("n", n, 2)
    paths = rollout(problem, policy, n, generator)
    return Objective(
        Estimate.of(paths.reward - problem.temperature * paths.kl),
        Estimate.of(paths.reward),
        Estimate.of(paths.kl),
    )


class Slopes(NamedTuple):
    """What autograd can follow in a problem."""

    transition: bool  # F_k(x, z) in z
    reward: bool  # r_k or y in x


@torch.enable_grad()
def slopes_of(problem: Problem) -> Slopes:
    """Try it: one transition and the rewards of two states."""
    x = problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0)).detach()
    z = x.new_zeros(2, *problem.noise_shape).requires_grad_()
    follows = problem.transition(0, x, z).requires_grad
    x.requires_grad_()
    return Slopes(
        follows, (problem.running_reward(0, x) + problem.terminal_reward(x)).requires_grad
    )


def __getattr__(name: str) -> Any:
    """Certificates were here first, and documents say so."""
    if name in ("Certificate", "certificate", "certificate_by_start", "certificate_of"):
        return getattr(import_module(".certificates", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
