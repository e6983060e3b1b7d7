"""Fitting linear classes, and choosing between settings by the variational residual on paths that were held out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .function_classes import Value
from .linear_classes import LinearValue
from .lookahead import Lookahead
from .replay import Replay, spans
from .variational import System, assemble, densities, divergence

#: Every fifth path is held out, up to this many.
_MOST_HELD = 1000
#: Paths that settings are compared by, at most.
_MOST_COMPARED = 500


class Split(NamedTuple):
    """Data in parts, the first of which lends some paths to judge by; iterate over it for the rest."""

    parts: Iterable[Replay]
    held: Replay | None

    @classmethod
    def of(cls, parts: Iterable[Replay], share: int = 5) -> Split:
        """Hold out every ``share``-th path of the first part, if that leaves enough to judge by."""
        first = next(iter(parts))
        held = torch.arange(first.n, device=first.steps.device)[share - 1 :: share][:_MOST_HELD]
        return cls(parts, first.at(held) if len(held) >= 4 and bool(first.seen[held].any()) else None)

    @classmethod
    def few(cls, first: Replay) -> Split:
        """Enough of ``first`` to compare settings by."""
        return cls.of([first.at(torch.arange(min(first.n, _MOST_COMPARED), device=first.steps.device))])

    def train(self, share: int = 5) -> Iterator[Replay]:
        """The parts without the paths held out."""
        for i, part in enumerate(self.parts):
            if i or self.held is None:
                yield part
            else:
                rows = torch.arange(part.n, device=part.steps.device)
                lent = (rows % share == share - 1) & (rows < share * self.held.n)
                yield part.at(rows[~lent])


class Judge:
    """Judges any class by its weighted divergence from the exponentiated reward to go, on paths seen to their end.

    The target does not depend on f, so f itself minimises the mean of this in expectation, and any two classes can be compared.

    Args:
        data: paths that no judged class was fitted to.
        incumbent: gives the weights, the same for all that are compared.
        max_weight: largest density ratio of one observation.
        rows: observations judged at once.
    """

    def __init__(self, data: Replay, incumbent: Value, max_weight: float, rows: int = 8192) -> None:
        self.paths, self.visits = int(data.seen.sum()), data.steps.shape[1]
        visit = torch.arange(self.visits, device=data.steps.device)
        pairs = torch.cartesian_prod(data.seen.nonzero()[:, 0], visit)
        self.parts = []
        for row, visit in (part.unbind(1) for part in pairs.split(rows)):
            part = spans(data, row, visit, torch.full_like(visit, self.visits - 1), incumbent.horizon)
            self.parts.append((part.k, part.x, part.log_gain, densities(incumbent, part, max_weight)))

    @torch.no_grad()
    def residuals(self, value: Value) -> Tensor:
        """Means over the visits of each path, ``(paths,)`` in float64; infinite where f is NaN."""
        found = [weight * divergence((log_gain - value.bounded(k, x)).double()) for k, x, log_gain, weight in self.parts]
        return torch.cat(found).view(self.paths, self.visits).mean(1).nan_to_num(nan=math.inf, posinf=math.inf)


def clearly_less(ours: Tensor, theirs: Tensor) -> bool:
    """Whether ``ours`` are less than ``theirs`` on the same paths by more than one standard error of the mean difference."""
    if not bool(ours.isfinite().all() and theirs.isfinite().all()):
        return bool(ours.isfinite().all())
    gain = theirs - ours
    return bool(gain.mean() > gain.std() / math.sqrt(len(gain)))


class Fit(NamedTuple):
    """A fitted linear class and how it was judged."""

    value: LinearValue
    ridge: float
    held_out: Tensor  # residuals (paths,); empty where nothing was held out
    system: System  # of the last pass, at the weights before it


def fit_linear(
    value: LinearValue,
    split: Split,
    lookahead: Lookahead,
    incumbent: Value,
    ridges: Sequence[float],
    max_weight: float,
    span: int = 1,
    passes: int = 4,
    cold: bool = True,
    indistinct: float = 1.01,
) -> Fit:
    """Solve the variational inequality over ``value``'s set, in place, by Gauss-Newton passes over the data.

    Args:
        value: placed and standardised; its present weights are the start.
        split: the data.
        lookahead: the form.
        incumbent: gives the weights of the held-out residual.
        ridges: shares of the matrix's mean diagonal, from which the held-out residual chooses.
        max_weight: largest density ratio of one observation.
        span: visits from an observation to its target.
        passes: over the data, at most; at least two.
        cold: start from the expected reward to go.
        indistinct: held-out residuals within this factor of the least count as equal, and the smallest ridge is taken.
    """
    judge = Judge(split.held, incumbent, max_weight) if split.held is not None else None
    ridge, held_out = sorted(ridges)[len(ridges) // 2], torch.zeros(0, dtype=torch.float64)
    held = [] if split.held is None else [split.held]
    for i in range(passes):
        neutral = cold and i == 0
        train = assemble(value, split.train(), lookahead, max_weight, span, neutral)
        every = train.plus(assemble(value, held, lookahead, max_weight, span, neutral)) if held else train
        before = value.weights.clone()
        last = i == passes - 1
        if judge is not None and (last or (cold and i == 1 and len(ridges) > 1)):  # judged by weights that saw only the rest
            scores = {}
            for candidate in ridges:
                _step(value, train, candidate, before)
                scores[candidate] = judge.residuals(value)
            # of those that can't be told apart, the least: what is held out is a noisy judge
            means = {candidate: float(score.mean()) for candidate, score in scores.items()}
            ridge = min(r for r, mean in means.items() if mean <= indistinct * min(means.values()))
            held_out = scores[ridge]
        _step(value, every, ridge, before)
    return Fit(value, ridge, held_out, every)


def _step(value: LinearValue, system: System, ridge: float, before: Tensor) -> None:
    """One Gauss-Newton step from ``before``."""
    value.weights.copy_(before)
    new = value.solve(system.matrix, system.residual + system.matrix @ before.flatten(), ridge)
    value.weights.copy_(value.project(new.view_as(before)))
