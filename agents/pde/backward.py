"""Linear classes with weights of their own at every step, fitted backwards in time.

Where one set of features of time serves all steps, Newton's step solves for all of them at once,
and it needs a form that is coercive: that of a process near the optimal one. From data far from it
(a well that no uncontrolled path reaches) the form is indefinite, and the steps diverge. With
weights of its own at every step, the variational equation at step k,

    E[ phi (target / f_k - 1) ] = 0,      target = exp(r_k / beta) E_W f_{k+1}(F_k(x, W)),

knows ``f_{k+1}`` already: it is the minimum of a convex divergence, whatever process the paths come
from. So all visits count alike, those of exploring paths too, and the ridge draws the weights to
those of the step after.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..least_squares import least_squares
from ..networks import Value
from .classes.linear import ExponentialValue
from .classes.system import System
from .lookahead import Lookahead
from .replay import Replay, spans
from .selection import MOST_HELD, Fit, Judge, Split
from .variational import capped_exp, divergence, log_targets

#: Ridges to choose from, at every step.
STEPWISE_RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
#: One-step residuals that need no rescue, and by what factor a rescue must lower larger ones.
_GOOD, _FAR_BETTER = 1e-2, 0.1
#: Paths that judge a rescue, at most.
_WITNESSES = 200
#: Newton's steps at every step of time; the first is least squares of log f.
_NEWTON = 3
#: Least curvature of an observation, as a share of its curvature at the solution: targets far below
#: f would have none.
_CURVATURE = 0.05
#: Every fifth path of the first part is held out (see Split).
_SHARE = 5


def fit_backward(
    value: ExponentialValue,
    split: Split,
    lookahead: Lookahead,
    incumbent: Value,
    ridges: Sequence[float],
    max_weight: float,
    indistinct: float = 1.01,
) -> Fit:
    """Fit ``value``, in place, from the last step back to the first.

    Once without the paths held out, which choose the ridge of each step, and once with them. Holds
    all data at once, unlike ``fit_linear``.

    Args:
        value: stepwise, placed and standardised.
        split: the data.
        lookahead: the form.
        incumbent: gives the weights of the held-out residual.
        ridges: shares of each matrix's mean diagonal, from which the held-out residual chooses.
        max_weight: largest density ratio of one observation, in the held-out residual only.
        indistinct: held-out residuals within this factor of the least count as equal, and the
            smallest ridge is taken.

    Raises:
        ValueError: paths that were not seen at every step.
    """
    apart = [split.held] if split.held is not None and not split.lent else []
    every = Replay.joined([*split.parts, *apart])
    whole = every.steps.shape[1] == value.horizon + 1 and bool((every.steps.diff(dim=1) == 1).all())
    if not whole:
        raise ValueError(
            "times must be a whole number (not None) for paths that were not seen at every step"
        )
    lent = torch.zeros(every.n, dtype=torch.bool, device=every.steps.device)
    if apart:
        lent[-apart[0].n :] = True
    elif split.held is not None:
        lent[torch.arange(split.held.n, device=lent.device) * _SHARE + _SHARE - 1] = True
    chosen = [sorted(ridges)[len(ridges) // 2]] * (value.horizon + 1)
    held_out = torch.zeros(0, dtype=torch.float64)
    if split.held is not None and len(ridges) > 1:
        for k in range(value.horizon, -1, -1):
            chosen[k] = _Step(value, every, lookahead, k).choose(lent, sorted(ridges), indistinct)
        held_out = Judge(split.held, incumbent, max_weight).residuals(value)
    total = torch.zeros((), dtype=torch.float64, device=every.steps.device)
    for k in range(value.horizon, -1, -1):
        step = _Step(value, every, lookahead, k)
        value.weights[k] = step.solve(step.precision, chosen[k])
        total += step.loss(value.weights[k], step.precision)
    observations = torch.tensor(float(every.steps.numel()), dtype=torch.float64)
    empty = value.weights.new_zeros(0)
    return Fit(value, max(chosen), held_out, System(empty, empty, empty, total, observations))


def rescue(value: ExponentialValue, data: Replay, lookahead: Lookahead, max_weight: float) -> bool:
    """Replace weights that serve all steps where a fit step by step does far better.

    That fit is smoothed over time. Where f varies by many orders of magnitude Newton's step for all
    times at once has no good start, and the path weights of uncontrolled data leave next to nothing
    to learn from, or to judge by. The fit step by step needs no path weights; but it extrapolates
    worse, so it must be better by far. Both are judged by ``one_step_residuals`` of paths that the
    latter did not see.

    Args:
        value: fitted, standardised.
        data: paths; at most the first 5,000 are used.
        lookahead: the form, best one of little noise: that of its targets is in the residuals.
        max_weight: largest density ratio of one observation; it matters to nothing but the log.

    Returns:
        Whether the weights were replaced; never where paths were not seen at every step, or are too
        few.
    """
    if data.steps.shape[1] != value.horizon + 1 or not bool((data.steps.diff(dim=1) == 1).all()):
        return False
    split = Split.of(
        [data.at(torch.arange(min(data.n, _SHARE * MOST_HELD), device=data.steps.device))]
    )
    if split.held is None:
        return False
    witnesses = split.held.at(torch.arange(min(split.held.n, _WITNESSES), device=data.steps.device))
    residual = float(one_step_residuals(value, witnesses, lookahead).mean())
    if residual < _GOOD:
        return False
    free, size = copy.deepcopy(value), value.horizon + 1
    free.stepwise = True
    free.weights = value.weights.new_zeros(size, value.weights.shape[1])
    free.time_table = torch.eye(size, dtype=free.weights.dtype, device=free.weights.device)
    fit_backward(
        free, Split.of([next(split.train())]), lookahead, value, STEPWISE_RIDGES, max_weight
    )
    before = value.weights.clone()
    value.weights.copy_(value.project(least_squares(value.time_table, free.weights)))
    better = float(one_step_residuals(value, witnesses, lookahead).mean()) < _FAR_BETTER * residual
    if not better:
        value.weights.copy_(before)
    return better


@torch.no_grad()
def one_step_residuals(
    value: Value, data: Replay, lookahead: Lookahead, rows: int = 1024
) -> Tensor:
    """Mean divergence of f from its one-step targets over a path's visits, ``(paths,)``.

    In float64. Every visit counts alike. ``rows`` are evaluated at once.
    """
    visits = data.steps.shape[1]
    row, visit = torch.cartesian_prod(
        *(torch.arange(n, device=data.steps.device) for n in data.steps.shape)
    ).unbind(1)
    found = []
    for r, i in zip(row.split(rows), visit.split(rows), strict=True):
        batch = spans(data, r, i, (i + 1).clamp(max=visits - 1), value.horizon)
        found.append(
            divergence(
                (
                    log_targets(value, batch, data, lookahead) - value.bounded(batch.k, batch.x)
                ).double(),
                len(row),
            )
        )
    return torch.cat(found).view(data.n, visits).mean(1).nan_to_num(nan=torch.inf, posinf=torch.inf)


class _Step:
    """The regression at step k: features, and targets that come from the step after."""

    @torch.no_grad()
    def __init__(self, value: ExponentialValue, data: Replay, lookahead: Lookahead, k: int) -> None:
        row = torch.arange(data.n, device=data.steps.device)
        visit = torch.full_like(row, k)
        batch = spans(data, row, visit, (visit + 1).clamp(max=value.horizon), value.horizon)
        self.space = value.space(k, batch.x)
        self.target = log_targets(value, batch, data, lookahead).double() - value.offset[k]
        self.precision = batch.precision.double()
        later = min(k + 1, value.horizon)
        self.prior = (
            value.weights[later].clone() if later > k else torch.zeros_like(value.weights[k])
        )
        self.penalty = value.penalties()[k]
        self.value, self.k = value, k

    def solve(self, weight: Tensor, ridge: float) -> Tensor:
        """Weights ``(M,)`` within the ball that minimise the divergence plus the ridge."""
        (w,) = self.least_squares(weight, [ridge])
        for _ in range(_NEWTON - 1):
            excess = capped_exp(self.target - self.space @ w, len(self.target))
            matrix = self._gram(weight * (1 + excess).clamp(min=_CURVATURE))
            w = self._moved(w, matrix, self.space.T @ (weight * excess), ridge)
        return w

    def least_squares(self, weight: Tensor, ridges: Sequence[float]) -> list[Tensor]:
        """The same for the weighted squares of the gaps, one result a ridge."""
        matrix, slope = (
            self._gram(weight),
            self.space.T @ (weight * (self.target - self.space @ self.prior)),
        )
        return [self._moved(self.prior, matrix, slope, ridge) for ridge in ridges]

    def _gram(self, weight: Tensor) -> Tensor:
        return self.space.T @ (self.space * weight[:, None])

    def _moved(self, w: Tensor, matrix: Tensor, slope: Tensor, ridge: float) -> Tensor:
        pull = ridge * matrix.diagonal().mean() * self.penalty
        change, failed = torch.linalg.solve_ex(
            matrix + torch.diag(pull), slope - pull * (w - self.prior)
        )
        solved = (failed == 0) & change.isfinite().all()
        return torch.where(solved, self.value.project(w + change), w)

    def loss(self, w: Tensor, weight: Tensor) -> Tensor:
        """Sum of the weighted divergences."""
        return (weight * divergence(self.target - self.space @ w, len(self.target))).sum()

    def choose(self, lent: Tensor, ridges: Sequence[float], indistinct: float) -> float:
        """The ridge that does best on the paths ``lent``.

        The weights fitted to the others with it are left in the value.
        """
        rest = self.precision * ~lent
        found = self.least_squares(rest, ridges)
        judged = [self.loss(w, self.precision * lent) for w in found]
        losses = [float(loss.nan_to_num(nan=torch.inf)) for loss in judged]
        # rounding takes the least of a perfect fit below 0
        enough = indistinct * max(min(losses), 0.0)
        best = next(r for r, loss in zip(ridges, losses, strict=True) if loss <= enough)
        self.value.weights[self.k] = self.solve(rest, best)
        return best
