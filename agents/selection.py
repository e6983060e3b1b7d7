"""Fitting linear classes, and choosing between settings by the variational residual on paths that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from .function_classes import LinearValue, Value
from .lookahead import Lookahead
from .replay import Replay, spans
from .variational import System, assemble, densities, divergence

#: Every fifth path is held out, up to this many.
_MOST_HELD = 1000


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

    def train(self, share: int = 5) -> Iterator[Replay]:
        """The parts without the paths held out."""
        for i, part in enumerate(self.parts):
            if i or self.held is None:
                yield part
            else:
                rows = torch.arange(part.n, device=part.steps.device)
                lent = (rows % share == share - 1) & (rows < share * self.held.n)
                yield part.at(rows[~lent])


@torch.no_grad()
def held_out_residual(value: Value, data: Replay, incumbent: Value, max_weight: float) -> float:
    """Mean weighted divergence between f and the exponentiated reward to go, over every visit of paths seen to their end.

    The target does not depend on f, so f itself minimises this in expectation, and any two classes can be compared.
    ``incumbent`` gives the weights, the same for all that are compared.
    """
    row = data.seen.nonzero()[:, 0]
    total, visits = 0.0, data.steps.shape[1]
    for visit in range(visits):
        here = torch.full_like(row, visit)
        batch = spans(data, row, here, torch.full_like(row, visits - 1), value.horizon)
        gap = batch.log_gain - value.bounded(batch.k, batch.x)
        total += float((densities(incumbent, batch, max_weight) * divergence(gap)).sum())
    return total / (len(row) * visits)


class Fit(NamedTuple):
    """A fitted linear class and how it was judged."""

    value: LinearValue
    ridge: float
    held_out: float  # nan where nothing was held out
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
    ridge, held_out = sorted(ridges)[len(ridges) // 2], float("nan")
    held = [] if split.held is None else [split.held]
    for i in range(passes):
        neutral = cold and i == 0
        train = assemble(value, split.train(), lookahead, max_weight, span, neutral)
        every = train.plus(assemble(value, held, lookahead, max_weight, span, neutral)) if held else train
        before = value.weights.clone()
        last = i == passes - 1
        if held and (last or (i == 1 and len(ridges) > 1)):  # judged by weights that saw only the rest
            scores = {}
            for candidate in ridges:
                _step(value, train, candidate, before)
                scores[candidate] = held_out_residual(value, held[0], incumbent, max_weight)
            # of those that can't be told apart, the least: what is held out is a noisy judge
            ridge = min(r for r, score in scores.items() if score <= indistinct * min(scores.values()))
            held_out = scores[ridge]
        _step(value, every, ridge, before)
    return Fit(value, ridge, held_out, every)


def _step(value: LinearValue, system: System, ridge: float, before: torch.Tensor) -> None:
    """One Gauss-Newton step from ``before``."""
    new = value.solve(system.matrix, system.residual + system.matrix @ before.flatten(), ridge)
    value.weights.copy_(value.project(new.view_as(before)))
