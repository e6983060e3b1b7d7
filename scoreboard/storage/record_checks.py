"""What the record of a finished run must hold before anything is made of it, as it may come from
anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...envs.checks import words_of

_NUMBERS = (
    *("objective", "objective_stderr", "reward", "reward_stderr", "kl", "kl_stderr"),
    *("env_steps", "reward_queries", "seconds"),
)
_COUNTS = ("env_steps", "reward_queries", "seconds", "model_evaluations", "cpu_seconds")
_SAMPLING = tuple(
    f"sampling_{name}" for name in ("model_evaluations", "reward_queries", "cpu_seconds")
)
#: Numbers that are absent, or null, where they are not known.
_MAYBE = (*_COUNTS[3:], *_SAMPLING, "score", "score_stderr", "success", "success_stderr")
_LARGEST = 1e15  #: of anything that is added up and drawn


def check_run(place: str, run: Any) -> None:
    """Raise a ValueError that says what is wrong with a record with its ``rows``.

    Args:
        place: where it was found, with the remedy.
        run: the record.
    """
    wrong = [
        *(f"final: {words}" for words in _row(run.get("final"))),
        *(f"rows: {words}" for row in run.get("rows", ()) for words in _row(row)),
        *_wrong(run, ("temperature", "horizon", "threads"), _is_positive),
        *_wrong(run, ("device", "command", "access"), _is_text),
    ]
    wrong += [
        name
        for name in ("access_class", "note", "choice")
        if not isinstance(run.get(name), (str, type(None)))
    ]
    hardware, versions = run.get("hardware"), run.get("versions")
    if not isinstance(hardware, dict) or not {"cpu", "cores", "gpu", "system"} <= hardware.keys():
        wrong.append("hardware")
    if not isinstance(versions, dict):
        wrong.append("versions")
    if wrong:
        raise ValueError(f"{place} must be a finished run's; wrong: {', '.join(wrong[:3])}"[:500])


def _row(row: Any) -> list[str]:
    if not isinstance(row, dict):
        return [f"{row!r}"[:100]]
    known = [name for name in _MAYBE if row.get(name) is not None]
    return [
        *_wrong(row, (*_NUMBERS, *known), _is_number),
        *_wrong(row, [name for name in _COUNTS if row.get(name) is not None], _is_count),
    ]


def _wrong(values: dict[str, Any], names: Any, fits: Callable[[Any], bool]) -> list[str]:
    return [f"{name} ({values.get(name)!r})"[:100] for name in names if not fits(values.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _small(value)


def _small(value: float) -> bool:
    return -_LARGEST <= value <= _LARGEST  # NaN is not


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """Surprises at what files hold become one ValueError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{folder} must hold what runs have left; no report can be made of it"
            f" ({type(error).__name__}: {words_of(error)}): delete what was changed in it"
        ) from error
