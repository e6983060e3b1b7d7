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
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

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
        moved = copy.copy(self)
        for name, value in vars(self).items():
            object.__setattr__(moved, name, _moved(value, device, dtype))
        return moved

    def validate(self) -> None:
        """Raise one clear ValueError if the attributes or the shapes that the methods return are
        wrong.
        """
        name = type(self).__name__
        for attribute in ("state_shape", "noise_shape", "horizon", "temperature"):
            if not hasattr(self, attribute):
                raise ValueError(f"{name}.{attribute} must be set; it is missing")
        check_positive(f"{name}.temperature", self.temperature)
        check_integer(f"{name}.horizon", self.horizon)
        for attribute, plain in (
            ("horizon", int),
            ("temperature", float),
        ):  # numpy's numbers: records and shells want Python's
            if not isinstance(getattr(self, attribute), (int, float)):
                object.__setattr__(self, attribute, plain(getattr(self, attribute)))
        for attribute in ("state_shape", "noise_shape"):
            given = getattr(self, attribute)
            if not (
                isinstance(given, (tuple, list))
                and given
                and all(isinstance(d, int) and d >= 1 for d in given)
            ):
                raise ValueError(
                    f"{name}.{attribute} must be a tuple of at least one positive integer; got"
                    f" {given!r}"
                )
        device = device_of(self)
        generator = torch.Generator(device).manual_seed(0)
        x = self.initial(2, generator)
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{name}.initial(2, generator) must return a tensor of floating-point numbers; got"
                f" {kind}"
            )
        start = x.detach().clone()
        z = torch.randn(2, *self.noise_shape, generator=generator, device=device, dtype=x.dtype)
        per_row = torch.zeros(2, dtype=torch.long, device=device)
        shape, scalar = (2, *self.state_shape), (2,)
        transition, running = self.transition, self.running_reward
        calls: tuple[tuple[str, Callable[[], Any], tuple[int, ...]], ...] = (
            ("initial(2, generator)", lambda: x, shape),
            ("transition(0, x, z)", lambda: transition(0, x, z), shape),
            (
                "transition(LongTensor, x, z)",
                lambda: _per_row(f"{name}.transition", transition, per_row, x, z),
                shape,
            ),
            ("running_reward(0, x)", lambda: running(0, x), scalar),
            (
                "running_reward(LongTensor, x)",
                lambda: _per_row(f"{name}.running_reward", self.running_reward, per_row, x),
                scalar,
            ),
            ("terminal_reward(x)", lambda: self.terminal_reward(x), scalar),
        )
        for method, call, wanted in calls:
            value = call()
            if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name}.{method} must return a tensor of shape {wanted}; got {got}"
                )
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"{name}.{method} must return finite numbers; got {value.tolist()}"[:500]
                )
            if not torch.equal(x, start):  # paths keep the states that they were given
                raise ValueError(f"{name}.{method} must leave x as it is; it was changed in place")
        if not torch.equal(x, self.initial(2, torch.Generator(device).manual_seed(0))):
            raise ValueError(
                f"{name}.initial(n, generator) must draw by the generator alone; equal generators"
                " gave other states"
            )


def _per_row(name: str, method: Callable[..., Any], k: Tensor, *arguments: Tensor) -> Any:
    """``method`` at one step per row, which those who only thought of ``k`` as an int hear of in
    one line.
    """
    try:
        return method(k, *arguments)
    except (TypeError, RuntimeError, IndexError) as error:
        taking = (
            f"{name} must also take k as a LongTensor of one step per row (`problem.at` reads"
            " tables by it)"
        )
        raise ValueError(f"{taking}; got {type(error).__name__}: {error}"[:500]) from error


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


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is a finite number above zero."""
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number; got {value!r}")


def check_integer(name: str, value: int, low: int = 1) -> None:
    """Raise a ValueError unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not (isinstance(value, Integral) and value >= low):
        raise ValueError(f"{name} must be an integer of at least {low}; got {value!r}")


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


def squared_norm(a: Tensor) -> Tensor:
    """Sum of squares over every dimension but the first: ``(n, ...) -> (n,)``."""
    return a.flatten(1).square().sum(1)


def finite_rewards(reward: Tensor, what: str) -> Tensor:
    """``reward`` itself, or a ValueError that says how many of its entries are NaN or infinite."""
    if not torch.isfinite(reward).all():
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
    """
    x = problem.initial(n, generator) if start is None else start
    if noises is None:
        shape = (problem.horizon, n, *problem.noise_shape)
        noises = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    states, controls, rewards = [x], [], []
    for k in range(problem.horizon):
        a = torch.zeros_like(noises[k]) if policy is None else policy(k, x)
        rewards.append(problem.running_reward(k, x))
        x = problem.transition(k, x, noises[k] + a)
        states.append(x)
        controls.append(a)
        if on_step is not None and not on_step(k):
            raise InterruptedError("the rollout was stopped by its callback")
    name = type(problem).__name__
    return Trajectories(
        torch.stack(states),
        noises,
        torch.stack(controls),
        finite_rewards(torch.stack(rewards), f"{name}.running_reward"),
        finite_rewards(problem.terminal_reward(x), f"{name}.terminal_reward"),
    )


class Estimate(NamedTuple):
    """A Monte-Carlo mean and its standard error."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, samples: Tensor) -> Estimate:
        """Mean and standard error of independent samples ``(n,)``, n >= 2."""
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
    """Estimate J(policy), its reward and its KL on ``n`` fresh paths."""
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
