"""How often a problem's model is asked: the cost that neither reward queries nor env steps show."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from .problem import AnyProblem


class Evaluations:
    """A count of model evaluations: rows of states of which the transition, or the denoiser behind
    it, was computed. An answer from memory costs nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self._stopped = False

    @contextmanager
    def of(self, rows: int) -> Iterator[None]:
        """Count ``rows`` more, and nothing of what is asked inside."""
        if not self._stopped:
            self.count += rows
        with self.paused():
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is counted: for evaluation, which costs no budget."""
        before, self._stopped = self._stopped, True
        try:
            yield
        finally:
            self._stopped = before


def counted(problem: AnyProblem) -> tuple[AnyProblem, Evaluations]:
    """A copy of ``problem`` that counts, and its count, which copies of the copy share.

    What is counted are calls of the methods that the problem's class names in ``model_methods``.
    """
    kind, evaluations = type(problem), Evaluations()
    methods: dict[str, Any] = {
        name: _counting(getattr(kind, name), evaluations) for name in kind.model_methods
    }
    methods["validate"] = _uncounted(kind.validate, evaluations)
    twin = copy.copy(problem)
    # a subclass, so that copies on other devices go on counting
    object.__setattr__(twin, "__class__", type(kind.__name__, (kind,), methods))
    return twin, evaluations


def _counting(method: Callable[..., Any], evaluations: Evaluations) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, k: Any, x: Any, *rest: Any, **named: Any) -> Any:
        with evaluations.of(len(x)):  # methods may call each other: the outermost counts
            return method(self, k, x, *rest, **named)

    return call


def _uncounted(method: Callable[..., Any], evaluations: Evaluations) -> Callable[..., Any]:
    """A look at the door costs no budget."""

    @wraps(method)
    def call(self: Any) -> Any:
        with evaluations.paused():
            return method(self)

    return call
