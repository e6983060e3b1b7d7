"""Intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean over seeds and its two-sided confidence interval; infinite bounds are None (a single
    seed has no interval).
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values."""
    sample = np.asarray(values, dtype=float)
    n, mean = len(sample), float(np.mean(sample))
    if n < 2:
        return Interval(mean, None, None, n)
    from scipy.stats import t

    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(
    first: dict[int, float], second: dict[int, float], confidence: float = 0.95
) -> Interval | None:
    """The interval of ``first - second`` over the seeds that both have (their evaluation noise is
    shared); None if none.
    """
    seeds = sorted(first.keys() & second.keys())
    return interval([first[s] - second[s] for s in seeds], confidence) if seeds else None
