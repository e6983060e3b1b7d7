"""What a problem's methods return, tried once at the door: three states, one state, several steps
and the end.

A walk of five calls finds what a run would find too late: methods that change their arguments at
some step only, that squeeze a batch of one, that ignore the number of states, that are NaN midway,
or that draw noise of their own. It costs eight rows of transitions at most (three at the first
step, one at the second, the middle and the last, two with one step per row), as many of running
rewards and four of terminal ones; nothing is counted, and random streams are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import check_integer, check_positive, shown

#: Values for an int ``k`` and for one step per row may differ by this share of the largest.
_ROUNDING = 0.01
#: Temperature at least; one over it, at most.
_COLDEST = 1e-30
#: What code says of arguments that it did not think of.
_SURPRISES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def validate(problem: Any, device: torch.device) -> None:
    """Raise one clear ValueError if an attribute is wrong, or what a method returns."""
    _check_attributes(problem)
    name, last = type(problem).__name__, problem.horizon - 1
    x, one = _starts(problem, 3, device), _starts(problem, 1, device)
    if not torch.equal(x, _starts(problem, 3, device)):
        raise ValueError(
            f"{name}.initial(n, generator) must draw by the generator alone; equal generators gave"
            " other states"
        )
    generator = torch.Generator(device).manual_seed(0)
    asked = _Asked(problem, generator)
    with torch.no_grad():
        first = asked.step(0, x)
        asked.end(x)
        path = one if last == 0 else first.after[:1].clone()
        for k in sorted({min(1, last), problem.horizon // 2, last}):
            final = asked.step(k, path)
            path = final.after
        asked.end(path)
        asked.rows(torch.tensor([0, last], device=device), first, final)


class _Step:
    """What an int ``k`` gave."""

    def __init__(self, x: Tensor, z: Tensor, reward: Tensor, after: Tensor) -> None:
        self.x, self.z, self.reward, self.after = x, z, reward, after


class _Asked:
    """A problem, asked as a run asks it, whose answers are looked at."""

    def __init__(self, problem: Any, generator: torch.Generator) -> None:
        self.problem, self.name, self.generator = problem, type(problem).__name__, generator

    def step(self, k: int, x: Tensor) -> _Step:
        """The reward and the transition of one step."""
        z = torch.randn(
            len(x),
            *self.problem.noise_shape,
            generator=self.generator,
            device=x.device,
            dtype=x.dtype,
        )
        reward = self._ask("running_reward", f"{k}, x", (len(x),), k, x)
        after = self._ask("transition", f"{k}, x, z", tuple(x.shape), k, x, z)
        return _Step(x, z, reward, after)

    def end(self, x: Tensor) -> None:
        """What is asked of terminal states."""
        self._ask("terminal_reward", "x", (len(x),), x)
        if getattr(self.problem, "success", None) is None:
            return
        won = self._call("success", "x", x)
        if not (isinstance(won, Tensor) and won.dtype == torch.bool and won.shape == (len(x),)):
            raise ValueError(
                f"{self.name}.success(x) must return a bool tensor of shape {(len(x),)}; got"
                f" {_kind(won)}"
            )

    def rows(self, k: Tensor, first: _Step, last: _Step) -> None:
        """The first row of ``first`` and that of ``last`` at one step per row."""
        x, z, reward, after = (
            torch.cat([getattr(first, part)[:1], getattr(last, part)[:1]])
            for part in ("x", "z", "reward", "after")
        )
        for method, rest, words, known in (
            ("transition", (z,), "LongTensor, x, z", after),
            ("running_reward", (), "LongTensor, x", reward),
        ):
            try:
                got = self._ask(method, words, tuple(known.shape), k, x, *rest)
            except _Surprise as error:
                raise ValueError(
                    f"{self.name}.{method} must also take k as a LongTensor of one step per row"
                    f" (`problem.at` reads tables by it); got {error.words}"[:500]
                ) from error.__cause__
            apart = float((got - known).abs().max())
            if apart > _ROUNDING * float(known.abs().max()) + 1e-6:
                raise ValueError(
                    f"{self.name}.{method} must depend on its arguments alone, and take one step"
                    f" per row; equal ones gave values that differ by {apart:.3g}"
                )

    def _ask(self, method: str, words: str, shape: tuple[int, ...], *arguments: Any) -> Tensor:
        before = [given.clone() if isinstance(given, Tensor) else given for given in arguments]
        value = self._call(method, words, *arguments)
        said = f"{self.name}.{method}({words})"
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{said} must return a tensor of shape {shape}; got {got}")
        if not value.is_floating_point():
            raise ValueError(f"{said} must return floating-point numbers; got {value.dtype}")
        if value.requires_grad:  # under no_grad: by its own decision
            raise ValueError(f"{said} must return numbers without gradient; got requires_grad=True")
        if not torch.isfinite(value).all():
            raise ValueError(f"{said} must return finite numbers; got {value.tolist()}"[:500])
        # paths keep what they were given
        for changed, old, new in zip(words.split(", "), before, arguments, strict=True):
            if isinstance(new, Tensor) and not torch.equal(old, new):
                raise ValueError(f"{said} must leave {changed} as it is; it was changed in place")
        return value.detach()

    def _call(self, method: str, words: str, *arguments: Any) -> Any:
        try:
            call: Callable[..., Any] = getattr(self.problem, method)
            return call(*arguments)
        except _SURPRISES as error:
            raise _Surprise(f"{self.name}.{method}({words})", len(arguments[-1]), error) from error


class _Surprise(ValueError):
    """A method that could not take its arguments."""

    def __init__(self, said: str, n: int, error: Exception) -> None:
        self.words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        super().__init__(f"{said} must take {n} states at once; got {self.words}"[:500])


def _starts(problem: Any, n: int, device: torch.device) -> Tensor:
    said = f"{type(problem).__name__}.initial({n}, generator)"
    x = problem.initial(n, torch.Generator(device).manual_seed(0))
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        raise ValueError(
            f"{said} must return a tensor of floating-point numbers; got"
            f" {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
        )
    wanted = (n, *problem.state_shape)
    if tuple(x.shape) != wanted:
        raise ValueError(f"{said} must return a tensor of shape {wanted}; got {tuple(x.shape)}")
    if x.requires_grad:
        raise ValueError(f"{said} must return states without gradient; got requires_grad=True")
    if not torch.isfinite(x).all():
        raise ValueError(f"{said} must return finite numbers; got {x.tolist()}"[:500])
    return x


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def _check_attributes(problem: Any) -> None:
    name = type(problem).__name__
    for attribute in ("state_shape", "noise_shape", "horizon", "temperature"):
        if not hasattr(problem, attribute):
            raise ValueError(f"{name}.{attribute} must be set; it is missing")
    check_positive(f"{name}.temperature", problem.temperature)
    if not _COLDEST <= problem.temperature <= 1 / _COLDEST:
        raise ValueError(
            f"{name}.temperature must be between {_COLDEST:g} and {1 / _COLDEST:g}, which float32"
            f" can count with; got {problem.temperature!r}"
        )
    check_integer(f"{name}.horizon", problem.horizon)
    for attribute, plain in (("horizon", int), ("temperature", float)):
        # numpy's numbers: records and shells want Python's
        if not isinstance(getattr(problem, attribute), (int, float)):
            object.__setattr__(problem, attribute, plain(getattr(problem, attribute)))
    for attribute in ("state_shape", "noise_shape"):
        given = getattr(problem, attribute)
        if not (
            isinstance(given, (tuple, list))
            and given
            and all(isinstance(d, int) and not isinstance(d, bool) and d >= 1 for d in given)
        ):
            raise ValueError(
                f"{name}.{attribute} must be a tuple of at least one positive integer; got"
                f" {shown(given)}"
            )
