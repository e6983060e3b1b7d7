"""How often the task is solved under the law that attains the bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Estimate, Problem
from .confidence import quantile


class SuccessRate(NamedTuple):
    """The share of paths that solve the task under the law that attains the bound, estimated by
    weighted paths.

    That law is ``dP* / dP^0 ~ exp(return / beta)`` (Donsker and Varadhan). Policies, which move the
    noise and leave its shape, come the nearer to it the finer the steps. It may choose its starts,
    where they differ; from given starts it may not.
    """

    mean: float
    low: float  # 95% confidence interval
    high: float

    @classmethod
    def of(cls, share: Estimate, n: float, confidence: float) -> SuccessRate:
        """With the interval of Wilson (1927) for the number of equal draws that would be as sure:
        ``n`` at most, fewer where ``share.stderr`` is larger than theirs.

        So an interval is never empty, not even where every path succeeds.
        """
        share = share._replace(mean=min(1.0, max(0.0, share.mean)))
        variance, square = share.mean * (1 - share.mean), quantile(confidence) ** 2
        if variance < n * share.stderr**2:
            n = variance / share.stderr**2
        middle = (share.mean + square / (2 * n)) / (1 + square / n)
        half = math.sqrt(square * (variance / n + square / (4 * n**2))) / (1 + square / n)
        return cls(share.mean, max(0.0, middle - half), min(1.0, middle + half))


def solved_of(problem: Problem, ends: Tensor) -> Tensor | None:
    """Which terminal states ``(n, *state_shape)`` solve the task, in double precision ``(n,)``;
    None where the problem has no word for it.
    """
    success = getattr(problem, "success", None)
    return None if success is None else success(ends).double()


def weighted_shares(log_weight: Tensor, solved: Tensor) -> tuple[Tensor, Tensor]:
    """The self-normalised mean of ``solved`` under weights, both ``(..., strata, n)``, and its
    variance by the delta method; results ``(...)``.
    """
    weight = log_weight.flatten(-2).softmax(-1)
    solved = solved.flatten(-2)
    share = (weight * solved).sum(-1)
    return share, (weight * (solved - share[..., None])).square().sum(-1)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The parts that ``solved_of`` gave, one after the other."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
