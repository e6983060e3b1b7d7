"""The empirical variational inequality of Mou (2025), for networks and for linear classes.

With ``f = exp(v)`` the present estimate, test functions are taken relative to it, ``g = tau / f``
with ``tau = d log f``, and every observation is weighted by the estimated density ``dP*/dP`` of the
optimal process: errors of log f then count where the optimal policy goes, scales of many orders of
magnitude are harmless, and the form stays coercive (it is that of the optimal process). With the
gap ``log target - log f`` of an observation the equation reads

    E[ dP*/dP  tau (exp(gap) - 1) ] = 0.

A network follows it as a semi-gradient. Linear classes solve ``A dw = residual``: where f is linear
in w, ``A = E[ dP*/dP tau (tau - exp(gap) tau')^T ]``, which is exactly LSTD with a terminal
regression; where log f is, ``A = E[ dP*/dP exp(gap) tau (tau - tau')^T ]``, Newton's step on the
tangent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..networks import NetworkValue, Value
from .lookahead import Lookahead
from .replay import Replay, Spans

NEIGHBOURS = (
    "lookahead must be 'observed' for paths that were not seen at every step; got steps {} and {}"
    " in a row"
)


def largest_gap(observations: float) -> float:
    """The largest gap that counts in full among so many observations, ``log(1 + sqrt(n))``.

    The mean excess ``exp(gap) - 1`` is cut off at ``sqrt(n)``, so no single observation moves it by
    more than ``1 / sqrt(n)``, what it is uncertain by anyway. What is lost,

        E[ excess; excess > sqrt(n) ] <= E[ excess^2; excess > sqrt(n) ] / sqrt(n) = o(1 / sqrt(n)),

    vanishes faster than that wherever the excess has a variance, so the equation stays consistent,
    however cold the problem. A fixed limit does not: a mean is elicited by losses alone that are
    linear in the target (Savage 1971), and any that bounds every target's pull elicits another.
    """
    return math.log1p(math.sqrt(observations))


def capped_exp(gap: Tensor, observations: float) -> Tensor:
    """``exp(gap) - 1``, constant beyond the ``largest_gap`` of so many observations."""
    return torch.expm1(gap.clamp(max=largest_gap(observations)))


def divergence(gap: Tensor, observations: float) -> Tensor:
    """``exp(gap) - gap - 1``, continued by its tangent beyond the ``largest_gap``.

    The Poisson (Kullback-Leibler) divergence relative to f.
    """
    capped = gap.clamp(max=largest_gap(observations))
    return capped.exp() * (1 + gap - capped) - gap - 1


def check_neighbours(data: Replay, lookahead: Lookahead) -> None:
    """A ValueError where a path was not seen at every step: no fresh form can fill its gaps."""
    wide = data.steps.diff(dim=1) > 1
    if lookahead.fresh and bool(wide.any()):
        row, visit = wide.nonzero()[0].tolist()
        raise ValueError(NEIGHBOURS.format(*data.steps[row, visit : visit + 2].tolist()))


def counted(mask: Tensor) -> Tensor:
    """Rows that hold all those of ``mask`` ``(n,)``: these alone on a CPU.

    A GPU would be waited for to know their number, so there it is every row, and what is computed
    of the others is left out by ``mask``.
    """
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0]
    return torch.arange(len(mask), device=mask.device)


@torch.no_grad()
def log_targets(value: Value, batch: Spans, data: Replay, lookahead: Lookahead) -> Tensor:
    """``log`` of the right-hand side of each observation, ``(B,)``.

    With ``value`` in place of the later f. Fresh noise is drawn anew, or is what the data carry:
    networks take one antithetic pair of it, as f, not log f, is averaged over the rest by the loss.
    Paths must have no gaps (``check_neighbours``).
    """
    if not lookahead.fresh:
        later = lookahead.log_value(value, batch.k, batch.x, batch.later_k, batch.later_x)
        return batch.log_gain + torch.where(batch.terminal, 0.0, later)
    neighbours = batch.later_k == batch.k + 1
    stays = ~batch.terminal & (batch.later_k == batch.k)
    # what remains for visits that are their own target: the reward at the horizon, and nothing new
    # before it
    log_target = data.log_terminal[batch.row]
    last, inside = counted(stays), counted(neighbours)
    if len(last):
        here = value.bounded(batch.k[last], batch.x[last]).float()
        log_target[last] = torch.where(stays[last], here, log_target[last])
    if not len(inside):
        return log_target
    row, k = batch.row[inside], batch.k[inside].clamp(max=value.horizon - 1)
    visit = batch.visit[inside].clamp(max=data.steps.shape[1] - 2)
    gain = data.log_reward[row, visit + 1] - data.log_reward[row, visit]
    if data.branches is None or data.log_ratios is None:
        expected = lookahead.log_value(
            value, k, data.states[row, visit], k + 1, batch.later_x[inside]
        )
    else:
        some = _branches(value, data, len(row), lookahead)
        drawn, log_ratio = data.branches[row, visit, some], data.log_ratios[row, visit, some]
        steps, shape = (k + 1).repeat(len(some)), log_ratio.shape
        log_f = value.bounded(steps, drawn.flatten(0, 1)).view(shape) + log_ratio
        expected = value.within(k + 1, log_f.logsumexp(0) - math.log(len(some)))
    found = gain + expected.float()
    log_target[inside] = torch.where(neighbours[inside], found, log_target[inside])
    return log_target


def _branches(value: Value, data: Replay, n: int, lookahead: Lookahead) -> Tensor:
    """Which branches of each of ``n`` visits are looked at, ``(number, n)``."""
    assert data.branches is not None
    count, device = data.branches.shape[2], data.branches.device
    if not isinstance(value, NetworkValue):  # is solved, not sampled
        return torch.arange(count, device=device)[:, None].expand(count, n)
    one = torch.randint(count // 2, (n,), generator=lookahead.generator, device=device)
    return torch.stack([one, one + count // 2])


@torch.no_grad()
def densities(
    value: Value, batch: Spans, max_weight: float, starts: Tensor | None = None
) -> Tensor:
    """Estimated ``dP*/dP`` of each path up to the observation, ``(B,)``.

    From its first visit on, times its precision.

    Args:
        value: of which they are estimated.
        batch: the observations.
        max_weight: the largest that counts.
        starts: ``log f`` at the first visit of every path, where it is known already.
    """
    here = value.bounded(batch.k, batch.x)
    if starts is None:
        start = value.bounded(batch.first_k, batch.first_x)
    else:
        start = starts[batch.row]
    return torch.exp(batch.log_weight + here - start).clamp(max=max_weight) * batch.precision


@torch.no_grad()
def every_density(value: Value, data: Replay, max_weight: float, rows: int = 8192) -> Tensor:
    """The same of every visit, ``(N, S)``; at least one is above 0."""
    k, x = data.steps.flatten(), data.inputs.flatten(0, 1)
    log_f = torch.cat(
        [value.bounded(*part) for part in zip(k.split(rows), x.split(rows), strict=True)]
    ).view_as(data.steps)
    log_density = (data.log_weight + log_f - log_f[:, :1]).clamp(max=math.log(max_weight))
    return torch.exp(log_density - log_density.max().clamp(max=0)) * data.precision[:, None]


def tempered(density: Tensor, least: float) -> Tensor:
    """``density`` to the largest power up to 1 whose effective sample size is ``least`` of all.

    Chances to be drawn.
    """
    log_density = density.double().log()
    low, high = 0.0, 1.0

    def share(power: float) -> float:
        scaled = torch.where(log_density.isfinite(), power * log_density, -torch.inf).flatten()
        return (
            float(torch.exp(2 * scaled.logsumexp(0) - (2 * scaled).logsumexp(0))) / scaled.numel()
        )

    if share(1.0) >= least:
        return density
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= least else (low, middle)
    return density.double().pow(low)


def relative_residual_loss(
    value: NetworkValue, batch: Spans, log_target: Tensor, weight: Tensor, observations: float
) -> Tensor:
    """Semi-gradient loss whose stationary points solve the variational equation, one number.

    For uncontrolled data and true weights this is the Poisson (Kullback-Leibler) divergence between
    f and its target. The batch is drawn from so many ``observations``.
    """
    gap = log_target - value.members(batch.k, batch.x)
    return (weight * divergence(gap, observations)).mean()
