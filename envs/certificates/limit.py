"""The bound that holds for finitely many paths, where rewards are bounded."""

from __future__ import annotations

import math

from torch import Tensor

from ..checks import check_share
from ..problem import Problem
from .confidence import CONFIDENCE


def finite_sample_limit(
    returns: Tensor, temperature: float, reward_bound: float, confidence: float = CONFIDENCE
) -> float:
    """What ``beta log E^0[exp(return / beta)]`` does not exceed with probability ``confidence``.

    The empirical Bernstein bound of Maurer and Pontil (2009, Theorem 4) for ``exp((return -
    reward_bound) / beta)``, which lies in [0, 1]. It holds for any n, modes that no path met
    included. ValueError: a return above ``reward_bound``.
    """
    check_share("confidence", confidence)
    n, highest = len(returns), float(returns.max())
    if highest > reward_bound + 1e-5 * max(1.0, abs(reward_bound)):
        raise ValueError(
            f"reward_bound must be at least every return; got {reward_bound} and a return of"
            f" {highest}"
        )
    u = ((returns.double() - reward_bound) / temperature).clamp(max=0).exp()
    log_odds = math.log(2 / (1 - confidence))
    mean = float(u.mean()) + math.sqrt(2 * float(u.var()) * log_odds / n)
    return reward_bound + temperature * math.log(min(1.0, mean + 7 * log_odds / (3 * (n - 1))))


def reward_bound_of(problem: Problem) -> float | None:
    """The problem's ``reward_bound``, where it offers one."""
    return getattr(problem, "reward_bound", None)
