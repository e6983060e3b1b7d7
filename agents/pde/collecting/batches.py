"""Observations for the gradient steps of networks, drawn by what they count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...networks import Value
from ..replay import Replay, Spans, sample_spans
from ..variational import densities, every_density

#: Gradient steps after which the chances of being drawn, or the value of every start, are found
#: anew.
_REDRAWN = 25
#: Paths among which observations are drawn until then: to weigh all would take longer than the
#: steps.
_AT_ONCE = 2048
#: Share of a batch that is learnt from, where it is not drawn by weight.
_KEPT = 0.5


class Batches:
    """Draws observations in proportion to their weight in the loss.

    Either from all visits by their weights, found anew now and then, or half of a batch that is
    drawn alike, by the weights of that: the evaluations of all visits would take longer than the
    steps where few observations count as little.

    Args:
        data: all paths.
        size: observations in a batch.
        span: mean distance in visits to the target.
        horizon: of the problem.
        most: the largest weight.
        resamples: from all visits.
        generator: of the draws.
    """

    def __init__(
        self,
        data: Replay,
        size: int,
        span: float,
        horizon: int,
        most: float,
        resamples: bool,
        generator: torch.Generator,
    ) -> None:
        self.data, self.size, self.span, self.horizon = data, size, span, horizon
        self.most, self.resamples, self.generator = most, resamples, generator
        self._drawn, self._since = data, 0
        self._chances: Tensor | None = None
        self._starts: Tensor | None = None

    def draw(self, value: Value) -> tuple[Spans, Tensor, Replay]:
        """A batch, its weights, which are all the same, and the paths that its rows are of.

        Args:
            value: gives the weights.
        """
        anew = self._since % _REDRAWN == 0
        self._since += 1
        if self.resamples:
            if anew:
                self._weigh(value)
            batch = sample_spans(
                self._drawn, self.size, self.span, self.horizon, self.generator, self._chances
            )
            return batch, torch.ones_like(batch.log_gain), self._drawn
        if anew or self._starts is None:
            self._starts = starting_values(value, self.data)
        batch = sample_spans(self.data, self.size, self.span, self.horizon, self.generator)
        weight = densities(value, batch, self.most, self._starts)
        batch, weight = kept(batch, weight, math.ceil(_KEPT * self.size), self.generator)
        return batch, weight, self.data

    def _weigh(self, value: Value) -> None:
        if self.data.n > _AT_ONCE:
            device = self.data.steps.device
            order = torch.randperm(self.data.n, generator=self.generator, device=device)
            self._drawn = self.data.at(order[:_AT_ONCE])
        self._chances = every_density(value, self._drawn, self.most)


@torch.no_grad()
def starting_values(value: Value, data: Replay) -> Tensor:
    """``log f`` at the first visit of every path, ``(N,)``."""
    return value.bounded(data.steps[:, 0], data.inputs[:, 0])


def kept(batch: Spans, weight: Tensor, n: int, generator: torch.Generator) -> tuple[Spans, Tensor]:
    """``n`` observations drawn from a batch by their weight, which all have its mean from then on.

    Observations that hardly count are not learnt from. Means of weighted sums stay what they were.
    """
    chances = weight.nan_to_num(0.0).clamp(min=1e-30)
    rows = torch.multinomial(chances, n, replacement=True, generator=generator)
    return batch.at(rows), weight.mean().expand(n)
