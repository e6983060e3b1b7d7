"""Fitting linear classes, and choosing between settings on paths that were held out.

They are judged by the variational residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..networks import Value
from .classes.linear import LinearValue
from .classes.system import System, assemble
from .lookahead import Lookahead
from .replay import Replay, common, spans
from .variational import densities, divergence

#: Every fifth path is held out, up to this many.
MOST_HELD = 1000
#: Paths that settings are fitted to in order to be compared, at most.
_MOST_COMPARED = 300
#: Paths that lead near the solution before all are used: at least so many, or the share below of
#: the first part.
_FIRST, _FIRST_SHARE = 500, 0.25
#: Observations for each weight that are plenty.
_PLENTY = 20
#: Held-out residuals within this factor of the least count as equal: where observations are plenty,
#: and where they are few.
_INDISTINCT, _FEW_INDISTINCT = 1.002, 1.01
#: By what factor a step may worsen the residual, which is a noisy judge: where observations are
#: plenty, and where they are few.
_WORSE, _FEW_WORSE = 1.2, 1.02


class Split(NamedTuple):
    """Data in parts, the first of which lends some paths to judge by.

    Iterate over it for the rest.
    """

    parts: Iterable[Replay]
    held: Replay | None
    # whether the first part holds the paths held out, which are to be learnt from in the end
    lent: bool = True

    @classmethod
    def of(cls, parts: Iterable[Replay], share: int = 5) -> Split:
        """Hold out every ``share``-th path of the first part, if that leaves enough to judge by."""
        first = next(iter(parts))
        held = torch.arange(first.n, device=first.steps.device)[share - 1 :: share][:MOST_HELD]
        return cls(
            parts, first.at(held) if len(held) >= 4 and bool(first.seen[held].any()) else None
        )

    @classmethod
    def few(cls, first: Replay) -> Split:
        """Enough of ``first`` to compare settings by.

        They are judged on all that may be held out, as that is cheap.
        """
        every = cls.of([first])
        rest = next(every.train())
        return cls(
            [rest.at(torch.arange(min(rest.n, _MOST_COMPARED), device=rest.steps.device))],
            every.held,
            False,
        )

    @property
    def several(self) -> bool:
        """Whether there is more than one part."""
        parts = iter(self.parts)
        next(parts)
        return next(parts, None) is not None

    def witnesses(self) -> Replay:
        """Some paths of the first part, held out or not."""
        first = next(iter(self.parts))
        seen = first.seen.nonzero()[:, 0]
        return first.at(seen[:_MOST_COMPARED])

    def some(self) -> list[Replay]:
        """Paths of the first part that were not held out, enough to come near the solution."""
        first = next(self.train())
        most = max(_FIRST, round(_FIRST_SHARE * first.n))
        return [first.at(torch.arange(min(first.n, most), device=first.steps.device))]

    def train(self, share: int = 5) -> Iterator[Replay]:
        """The parts without the paths held out."""
        for i, part in enumerate(self.parts):
            if i or self.held is None or not self.lent:
                yield part
            else:
                rows = torch.arange(part.n, device=part.steps.device)
                lent = (rows % share == share - 1) & (rows < share * self.held.n)
                yield part.at(rows[~lent])


class Judge:
    """Judges any class on paths seen to their end.

    By its weighted divergence from the exponentiated reward to go. The target does not depend on f,
    so f itself minimises the mean of this in expectation, and any two classes can be compared.

    Args:
        data: paths that no judged class was fitted to.
        incumbent: gives the weights, the same for all that are compared.
        max_weight: largest density ratio of one observation.
        rows: paths judged at once.
    """

    def __init__(self, data: Replay, incumbent: Value, max_weight: float, rows: int = 1024) -> None:
        visits = data.steps.shape[1]
        last = torch.full((rows,), visits - 1, device=data.steps.device)
        self.paths = data.seen.nonzero()[:, 0].split(rows)
        self.observations = sum(len(row) for row in self.paths) * visits
        self.parts = []
        for row in self.paths:
            # by visit: features of time are then often one row
            for i, k in enumerate(common(data.steps[row])):
                part = spans(
                    data, row, torch.full_like(row, i), last[: len(row)], incumbent.horizon
                )
                self.parts.append(
                    (k, part.x, part.log_gain, densities(incumbent, part, max_weight))
                )

    @torch.no_grad()
    def residuals(self, value: Value) -> Tensor:
        """Means over the visits of each path, ``(paths,)`` in float64; infinite where f is NaN."""
        return self._means(
            [
                weight * self._missed(log_gain, value.bounded(k, x))
                for k, x, log_gain, weight in self.parts
            ]
        )

    @torch.no_grad()
    def compare(self, value: LinearValue, candidates: Sequence[Tensor]) -> list[Tensor]:
        """The same of a linear class with each of several weights; features are evaluated once."""
        found: list[list[Tensor]] = [[] for _ in candidates]
        for k, x, log_gain, weight in self.parts:
            raw = value.raw(k, x)
            for column, weights in zip(found, candidates, strict=True):
                log_f = value.within(k, value.evaluate(k, raw, weights))
                column.append(weight * self._missed(log_gain, log_f))
        return [self._means(column) for column in found]

    def _means(self, parts: list[Tensor]) -> Tensor:
        visits = len(parts) // max(1, len(self.paths))
        means = [
            torch.stack(parts[i : i + visits]).mean(0) for i in range(0, len(parts), max(1, visits))
        ]
        every = torch.cat(means) if means else torch.zeros(0, dtype=torch.float64)
        return every.nan_to_num(nan=math.inf, posinf=math.inf)

    def _missed(self, log_gain: Tensor, log_f: Tensor) -> Tensor:
        return divergence((log_gain - log_f).double(), self.observations)


def clearly_less(ours: Tensor, theirs: Tensor) -> bool:
    """Whether ``ours`` are less than ``theirs`` by more than one standard error.

    Of the mean difference, on the same paths.
    """
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
    thin: bool = False,
) -> Fit:
    """Solve the variational inequality over ``value``'s set, in place.

    By Gauss-Newton passes over the data. What is held out chooses the ridge of the first steps and
    that of the last, from which it learns all the same once the ridge is chosen; a step that
    worsens the residual of the paths at large is shortened.

    Args:
        value: placed and standardised; its present weights are the start.
        split: the data.
        lookahead: the form.
        incumbent: gives the weights of the held-out residual.
        ridges: shares of the matrix's mean diagonal, from which the held-out residual chooses: the
            smallest that the best does not clearly beat, or, where observations are few for the
            weights, the largest within one per cent of it.
        max_weight: largest density ratio of one observation.
        span: visits from an observation to its target.
        passes: over the data, at most; at least two.
        cold: start from the expected reward to go.
        thin: take some of the first part for the passes before the last (the last two, if there is
            more than one part).
    """
    judge = Judge(split.held, incumbent, max_weight) if split.held is not None else None
    guard = Judge(split.witnesses(), incumbent, max_weight)
    held = [split.held] if split.held is not None and split.lent else []
    some = split.some() if thin else None
    ridge, held_out, length = (
        sorted(ridges)[len(ridges) // 2],
        torch.zeros(0, dtype=torch.float64),
        1.0,
    )
    for i in range(passes):
        neutral, left = cold and i == 0, passes - 1 - i
        if left and not length:
            continue  # no step helps; whether one does on all data is still to be seen
        near = some is not None and left > split.several  # a pass that leads near the solution only
        data: Iterable[Replay] = some if near and some is not None else split.train()
        form = lookahead.rough() if near or neutral else lookahead
        train = assemble(value, data, form, max_weight, span, neutral)
        whole = not held or near
        every = (
            train
            if whole
            else train.plus(
                assemble(value, held, form, max_weight, span, neutral, float(train.total))
            )
        )
        before = value.weights.clone()
        few = float(train.total) < _PLENTY * value.weights.numel()
        if (
            judge is not None and not neutral and (not len(held_out) or not left)
        ):  # judged by weights that saw only the rest
            order = sorted(ridges, reverse=few)
            scores = judge.compare(value, _step(value, train, order, before))
            best = _first_good(scores, few)
            ridge, held_out = order[best], scores[best]
        (step,) = _step(value, every, [ridge], before)
        if neutral:  # a start, which may be worse than none where exponentials count
            value.weights.copy_(step)
        else:
            length = _longest(value, guard, before, step, _FEW_WORSE if few else _WORSE)
            value.weights.copy_(before + length * (step - before))
    return Fit(value, ridge, held_out, every)


def _first_good(scores: Sequence[Tensor], few: bool) -> int:
    """The first candidate that the best does not beat.

    Their difference may be small, or uncertain.
    """
    means = [float(score.mean()) for score in scores]
    least = min(range(len(means)), key=means.__getitem__)
    limit = means[least] * (_FEW_INDISTINCT if few else _INDISTINCT)
    return next(
        j
        for j, score in enumerate(scores)
        if not means[j] > limit or not (few or clearly_less(scores[least], score))
    )


def _longest(value: LinearValue, guard: Judge, before: Tensor, step: Tensor, worse: float) -> float:
    """The largest share of a step that does not worsen the residual by ``worse``.

    A factor; 0 if there is none.
    """
    lengths = (1.0, 0.3, 0.1)
    stay, *moved = guard.compare(
        value, [before, *(before + share * (step - before) for share in lengths)]
    )
    limit = worse * float(stay.mean())
    return next(
        (
            share
            for share, score in zip(lengths, moved, strict=True)
            if float(score.mean()) <= limit
        ),
        0.0,
    )


def _step(
    value: LinearValue, system: System, ridges: Sequence[float], before: Tensor
) -> list[Tensor]:
    """Weights after one Gauss-Newton step, with each ridge.

    From ``before``, which are the value's present ones.
    """
    found = value.solve(
        system.matrix, system.gram, system.residual + system.matrix @ before.flatten(), ridges
    )
    return [value.project(new.view_as(before)) for new in found]
