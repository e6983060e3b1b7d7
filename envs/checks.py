"""Arguments at the door: one ValueError that says the argument, what is allowed, and what came."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
R = TypeVar("R")

#: Numbers of steps, paths and the like at most: what a counter holds, and a float exactly.
MOST = 2**53
#: Seeds at most: numpy's old generator, which stable-baselines3 seeds too, takes 32 bits.
LARGEST_SEED = 2**32 - 1


def shown(value: Any) -> str:
    """``repr`` of what came, of a length that can be read."""
    try:
        words = repr(value)
    except Exception:  # an integer of more digits than Python writes, or an object that can't say
        words = f"a {type(value).__name__}"
    return words if len(words) <= 200 else f"{words[:197]}..."


def words_of(error: BaseException, most: int = 500) -> str:
    """What an error says, on one line that can be read: others' may hold whole files, and signs
    that would colour a terminal.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return words if len(words) <= most else f"{words[: most - 3]}..."


def _is_number(value: Any, kind: Any) -> bool:
    """Whether it is a finite number of that kind; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def check_positive(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is a finite number above zero."""
    if not (_is_number(value, Real) and value > 0):
        raise ValueError(f"{name} must be a positive number; got {shown(value)}")


def check_integer(name: str, value: Any, low: int = 1, high: int = MOST) -> None:
    """Raise a ValueError unless ``value`` is an integer from ``low`` to ``high``; numpy's are
    integers too.
    """
    if not (_is_number(value, Integral) and low <= value <= high):
        most = f" and at most {high}" if _is_number(value, Integral) and value > high else ""
        raise ValueError(f"{name} must be an integer of at least {low}{most}; got {shown(value)}")


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless ``value`` is a finite number from ``low`` to ``high``."""
    _check_between(name, value, low, high, Real, "")


def check_whole(name: str, value: Any, low: int) -> None:
    """Raise a ValueError unless ``value`` is a whole number of at least ``low``."""
    _check_between(name, value, low, math.inf, Integral, "a whole number of ")


def _check_between(name: str, value: Any, low: float, high: float, kind: Any, noun: str) -> None:
    if not (_is_number(value, kind) and low <= value <= min(high, 1e300)):
        allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {noun}{allowed}; got {shown(value)}")


def check_share(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is strictly between 0 and 1, as a confidence is."""
    if not (_is_number(value, Real) and 0 < value < 1):
        raise ValueError(f"{name} must be a number between 0 and 1, both excluded; got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is True or False: text such as "no" would count as
    True.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False; got {shown(value)}")


def check_seed(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is None or a seed: an integer of at least 0, in 32
    bits.
    """
    if value is not None:
        check_integer(name, value, 0, LARGEST_SEED)


def check_one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise a ValueError unless ``value`` is one of the ``allowed`` names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {sorted(allowed)}; got {shown(value)}")


def check_keywords(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is None or a dict of keyword arguments."""
    if value is not None and not (
        isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    ):
        raise ValueError(f"{name} must be a dict of arguments, or None; got {shown(value)}")


def check_device(name: str, value: Any, auto: bool = False) -> None:
    """Raise a ValueError unless ``value`` names a device that torch knows, or is ``"auto"`` where
    that is allowed.
    """
    if auto and isinstance(value, str) and value == "auto":
        return
    try:
        if not isinstance(value, (str, torch.device)):
            raise ValueError("a number names no device")
        torch.device(value)
    except (RuntimeError, ValueError, TypeError) as error:
        allowed = "'auto', " if auto else ""
        raise ValueError(
            f"{name} must be {allowed}'cpu', 'cuda', 'cuda:N' or a torch.device; got {shown(value)}"
        ) from error


def check_dtype(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is a floating-point ``torch.dtype``."""
    if not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise ValueError(
            f"{name} must be a floating-point torch.dtype, such as torch.float32; got"
            f" {shown(value)}"
        )


def check_policy(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` can be a control, or is None: none at all."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        raise ValueError(f"{name} must be a function of (k, x), or None; got {shown(value)}")


def check_generator(name: str, value: Any) -> None:
    """Raise a ValueError unless ``value`` is a ``torch.Generator``."""
    if not isinstance(value, torch.Generator):
        raise ValueError(
            f"{name} must be a torch.Generator on the problem's device; got {shown(value)}"
        )


def check_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless ``value`` is a tensor of that shape."""
    if not isinstance(value, torch.Tensor) or value.shape != shape:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else shown(value)
        raise ValueError(f"{name} must be a tensor of shape {tuple(shape)}; got {got}")


def check_states(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless ``value`` is a tensor of that shape, of floating-point numbers."""
    check_shape(name, value, shape)
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating-point numbers; got {value.dtype}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Look at arguments that are annotated as plain numbers, flags or dtypes before the function
    runs: a decorator for constructors. Ranges are theirs.

    Raises:
        ValueError: another kind came, or a number that is not finite. It tells the range, too,
            where the function refuses ``-MOST`` in words of its own.
    """
    signature = inspect.signature(function)
    doors = {
        name: (check, parameter.default)
        for name, parameter in signature.parameters.items()
        if (check := _PLAIN.get(str(parameter.annotation).removesuffix(" | None")))
    }

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # an argument too few or too many, which Python says itself
            return function(*args, **kwargs)
        for name, (check, default) in doors.items():
            value = given.get(name, default)
            if value is not default:
                try:
                    check(name, value)
                except ValueError as error:
                    raise ValueError(_with_range(function, given, name, error)) from None
        return function(*args, **kwargs)

    return call


def _with_range(
    function: Callable[..., Any], given: Mapping[str, Any], name: str, error: ValueError
) -> str:
    """What a function says of a number that it can't allow, said of what came; else ``error``."""
    bound, value = inspect.signature(function).bind_partial(), given[name]
    kind = str(bound.signature.parameters[name].annotation).removesuffix(" | None")
    if kind not in ("int", "float") or (kind == "float" and isinstance(value, float)):
        return str(error)  # NaN and infinity are told as what they are
    bound.arguments = {**given, name: -MOST}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*bound.args, **bound.kwargs)
    except Exception as refusal:
        said, _, _ = str(refusal).partition("; got")
        if isinstance(refusal, ValueError) and said.startswith(f"{name} must be "):
            return f"{said}; got {shown(value)}"
    return str(error)


def _check_any_integer(name: str, value: Any) -> None:
    if not (_is_number(value, Integral) and abs(value) <= MOST):
        raise ValueError(f"{name} must be an integer; got {shown(value)}")


def _check_any_number(name: str, value: Any) -> None:
    if not _is_number(value, Real):
        raise ValueError(f"{name} must be a finite number; got {shown(value)}")


_PLAIN: dict[str, Callable[[str, Any], None]] = {
    "int": _check_any_integer,
    "float": _check_any_number,
    "bool": check_flag,
    "torch.dtype": check_dtype,
}


def is_finite(values: torch.Tensor) -> bool:
    """Whether all are: NaN and infinity stay in a sum, which is much quicker to look at."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
