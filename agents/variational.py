"""The empirical variational inequality of Mou (2025), for networks and for linear classes, and the norms of its theory.

With ``f = exp(v)`` the present estimate, test functions are taken relative to it, ``g = tau / f`` with ``tau = d log f``, and
every observation is weighted by the estimated density ``dP*/dP`` of the optimal process: errors of log f then count where the
optimal policy goes, scales of many orders of magnitude are harmless, and the form stays coercive (it is that of the optimal
process). With the gap ``log target - log f`` of an observation the equation reads

    E[ dP*/dP  tau (exp(gap) - 1) ] = 0.

A network follows it as a semi-gradient. Linear classes solve ``A dw = residual``: where f is linear in w,
``A = E[ dP*/dP tau (tau - exp(gap) tau')^T ]``, which is exactly LSTD with a terminal regression; where log f is,
``A = E[ dP*/dP exp(gap) tau (tau - tau')^T ]``, Newton's step on the tangent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.problem import Policy, Problem, Trajectories
from .function_classes import NetworkValue, Value
from .linear_classes import LinearValue
from .lookahead import Lookahead
from .replay import Replay, Spans

_NEIGHBOURS = "lookahead must be 'observed' for paths that were not seen at every step; got steps {} and {} in a row"
#: Gaps above this count linearly: one heavy target cannot throw the fit.
_CAP = 1.5


def capped_exp(gap: Tensor) -> Tensor:
    """``exp(gap) - 1``, constant beyond the cap."""
    return torch.expm1(gap.clamp(max=_CAP))


def divergence(gap: Tensor) -> Tensor:
    """``exp(gap) - gap - 1`` (Poisson, or Kullback-Leibler, relative to f), continued by its tangent beyond the cap."""
    capped = gap.clamp(max=_CAP)
    return capped.exp() * (1 + gap - capped) - gap - 1


@torch.no_grad()
def log_targets(value: Value, batch: Spans, data: Replay, lookahead: Lookahead) -> Tensor:
    """``log`` of the right-hand side of each observation, ``(B,)``, with ``value`` in place of the later f.

    Fresh noise is drawn anew, or is one antithetic pair of the branches that the data carry: f, not log f, is averaged over
    the rest by the loss.
    """
    if not lookahead.fresh:
        later = lookahead.log_value(value, batch.k, batch.x, batch.later_k, batch.later_x)
        return batch.log_gain + torch.where(batch.terminal, 0.0, later)
    if bool((batch.later_k > batch.k + 1).any()):
        wide = int((batch.later_k - batch.k).argmax())
        raise ValueError(_NEIGHBOURS.format(int(batch.k[wide]), int(batch.later_k[wide])))
    # what remains for visits that are their own target: the reward at the horizon, and nothing new before it
    log_target = torch.where(batch.terminal, data.log_terminal[batch.row], value.bounded(batch.k, batch.x).float())
    inside = (batch.later_k == batch.k + 1).nonzero()[:, 0]
    if not len(inside):
        return log_target
    row, visit, k = batch.row[inside], batch.visit[inside], batch.k[inside]
    gain = data.log_reward[row, visit + 1] - data.log_reward[row, visit]
    if data.branches is None:
        expected = lookahead.log_value(value, k, data.states[row, visit], k + 1, batch.later_x[inside])
    else:
        pairs = data.branches.shape[2] // 2
        one = torch.randint(pairs, (len(row),), generator=lookahead.generator, device=row.device)
        pair = torch.stack([data.branches[row, visit, one], data.branches[row, visit, one + pairs]])
        log_f = value.bounded((k + 1).repeat(2), pair.flatten(0, 1)).view(2, len(row))
        expected = log_f.logsumexp(0) - math.log(2)
    log_target[inside] = gain + expected.float()
    return log_target


@torch.no_grad()
def densities(value: Value, batch: Spans, max_weight: float) -> Tensor:
    """Estimated ``dP*/dP`` of each path up to the observation, from its first visit on, times its precision, ``(B,)``."""
    here, start = value.bounded(batch.k, batch.x), value.bounded(batch.first_k, batch.first_x)
    return torch.exp(batch.log_weight + here - start).clamp(max=max_weight) * batch.precision


def relative_residual_loss(value: NetworkValue, batch: Spans, log_target: Tensor, weight: Tensor) -> Tensor:
    """Semi-gradient loss whose stationary points solve the variational equation, one number.

    For uncontrolled data and true weights this is the Poisson (Kullback-Leibler) divergence between f and its target.
    """
    return (weight * divergence(log_target - value.members(batch.k, batch.x))).mean()


class System(NamedTuple):
    """Sums over observations; ``A dw = residual`` is one Gauss-Newton step."""

    matrix: Tensor  # (M, M): sum of weight * tau (tau - exp(gap) tau')^T
    residual: Tensor  # (M,): sum of weight * tau (exp(gap) - 1)
    divergence: Tensor  # (): sum of weight * (exp(gap) - gap - 1)
    total: Tensor  # (): number of observations

    def plus(self, other: System) -> System:
        """Both data sets together."""
        return System(*(a + b for a, b in zip(self, other, strict=True)))


@torch.no_grad()
def assemble(
    value: LinearValue,
    stream: Iterable[Replay],
    lookahead: Lookahead,
    max_weight: float,
    span: int = 1,
    risk_neutral: bool = False,
) -> System:
    """Matrix of B_n and residual of the variational equation at ``value``, in float64.

    Streams over the data: memory is O(M^2), whatever their number.

    Args:
        value: the present estimate.
        stream: the data in parts.
        lookahead: the form: trajectory, fresh noise or generator.
        max_weight: largest density ratio of one observation.
        span: visits from an observation to its target; as many as a path has give Monte-Carlo regression.
        risk_neutral: take ``gap`` for ``exp(gap) - 1``: log f is then the expected reward to go, a start without exponentials.
    """
    times, features = value.weights.shape
    device = value.weights.device
    system = _Sums(times, features, device)
    for data in stream:
        system.paths(value, data, lookahead, max_weight, span, risk_neutral)
    return system.result()


class _Sums:
    """Accumulates blocks of space features; those of time multiply many at once, in one product."""

    def __init__(self, times: int, features: int, device: torch.device) -> None:
        self.times, self.features = times, features
        self.matrix = torch.zeros(times * times, features * features, dtype=torch.float64, device=device)
        self.residual = torch.zeros(times, features, dtype=torch.float64, device=device)
        self.divergence = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def paths(
        self, value: LinearValue, data: Replay, lookahead: Lookahead, max_weight: float, span: int, risk_neutral: bool
    ) -> None:
        visits = data.steps.shape[1]
        start = value.bounded(data.steps[:, 0], data.inputs[:, 0])
        for i in range(visits):
            j = min(i + (1 if lookahead.fresh else span), visits - 1)
            for rows, k, later_k in _groups(data.steps[:, i], data.steps[:, j]):
                if k == later_k and not (i == visits - 1 and k == value.horizon):
                    continue  # a repeated visit, or a last one before the horizon, says nothing
                if lookahead.fresh and later_k > k + 1:
                    raise ValueError(_NEIGHBOURS.format(k, later_k))
                if len(rows):
                    self._block(value, data, rows, i, j, k, later_k, start[rows], lookahead, max_weight, risk_neutral)
        self._flush()

    def _block(
        self,
        value: LinearValue,
        data: Replay,
        rows: Tensor,
        i: int,
        j: int,
        k: int,
        later_k: int,
        start: Tensor,
        lookahead: Lookahead,
        max_weight: float,
        risk_neutral: bool,
    ) -> None:
        here = value.tangent(k, data.inputs[rows, i])
        log_f = here.log_f.clamp(value.bounds[0], value.bounds[1])
        weight = torch.exp(data.log_weight[rows, i] + log_f - start).clamp(max=max_weight) * data.precision[rows]
        time = value.time_table[k]
        before = data.log_reward if lookahead.fresh else data.log_weight
        gain = (before[rows, j] - before[rows, i]).double()
        terminal = later_k == value.horizon and not (lookahead.fresh and k < later_k)
        if terminal:
            gap = gain + data.log_terminal[rows] - here.log_f
        else:
            later = lookahead.tangent(value, k, data.states[rows, i], later_k, data.inputs[rows, j])
            gap = gain + later.log_f - here.log_f
        excess = gap if risk_neutral else capped_exp(gap)
        tested = here.space * weight[:, None]
        self.residual += torch.outer(time, tested.T @ excess)
        if not risk_neutral and not value.linear_in_weights:
            tested = tested * (1 + excess)[:, None]
        self._add(torch.outer(time, time), tested.T @ here.space)
        if not terminal:
            exact = value.linear_in_weights and not risk_neutral
            carried = later.space * (1 + excess)[:, None] if exact else later.space
            self._add(-torch.outer(time, value.time_table[later_k]), tested.T @ carried)
        self.divergence += (weight * divergence(gap)).sum()
        self.total += len(rows)

    def _add(self, time: Tensor, space: Tensor) -> None:
        self.pending.append((time.flatten(), space.flatten()))
        if len(self.pending) >= 128:
            self._flush()

    def _flush(self) -> None:
        if self.pending:
            time, space = (torch.stack(part) for part in zip(*self.pending, strict=True))
            self.matrix.addmm_(time.T, space)
            self.pending.clear()

    def result(self) -> System:
        t, m = self.times, self.features
        matrix = self.matrix.view(t, t, m, m).transpose(1, 2).reshape(t * m, t * m)
        return System(matrix, self.residual.flatten(), self.divergence, self.total)


def _groups(k: Tensor, later_k: Tensor) -> list[tuple[Tensor, int, int]]:
    """Rows that share both steps, with the steps."""
    every = torch.arange(len(k), device=k.device)
    if bool((k == k[0]).all()) and bool((later_k == later_k[0]).all()):
        return [(every, int(k[0]), int(later_k[0]))]
    base = int(later_k.max()) + 1
    codes, group = torch.unique(k * base + later_k, return_inverse=True)
    order = group.argsort(stable=True)
    parts = order.split(torch.bincount(group).tolist())
    return [(rows, int(code) // base, int(code) % base) for rows, code in zip(parts, codes, strict=True)]


class SobolevErrors(NamedTuple):
    """Relative errors of an estimate of f under the uncontrolled process, and of the control under the optimal one."""

    energy: float  #: ``|fhat - f|_E / |f|_E``
    integral: float  #: ``|fhat - f|_V / |f|_V``


def sobolev_errors(
    problem: Problem,
    paths: Trajectories,
    log_f: Policy,
    log_truth: Policy,
) -> SobolevErrors:
    """Distance to a known f in the two norms of MATH section 3 (our reading of the two that Mou's abstract names).

        |f|_E^2 = E f_0^2 / 2 + E f_T^2 / 2 + sum_k E |D f_k|^2 / 2,      |f|_V^2 = sum_k E[ f_k^2 / T + |D f_k|^2 ]

    with ``D f = J_z^T grad f``, the gradient in standard deviations of one step's noise: its squares sum to the integral of
    ``|Lambda^{1/2} grad f|^2`` over time.

    Args:
        problem: whose transition is differentiable in its noise.
        paths: uncontrolled.
        log_f: ``(k, x) -> (n,)``, the estimate of log f.
        log_truth: the same of the truth.
    """
    total = torch.zeros(2, 2, dtype=torch.float64)  # (error, truth) x (E, V)
    scale = None
    for k in range(problem.horizon + 1):
        with torch.enable_grad():
            if k == 0:
                x = paths.states[0]
                pair = (log_f(0, x), log_truth(0, x))
                slopes = None
            else:
                before = paths.states[k - 1]
                z = (paths.noises[k - 1] + paths.controls[k - 1]).detach().requires_grad_()
                x = problem.transition(k - 1, before, z)
                pair = (log_f(k, x), log_truth(k, x))
                slopes = [torch.autograd.grad(v.sum(), z, retain_graph=True)[0].flatten(1).double() for v in pair]
        mine, truth = (v.detach().double() for v in pair)
        if scale is None:
            scale = truth.mean()
        f, g = (mine - scale).exp(), (truth - scale).exp()
        squares = torch.stack([(f - g).square().mean(), g.square().mean()])
        ends = 0.5 * (k in (0, problem.horizon))
        total[:, 0] += ends * squares
        total[:, 1] += squares / problem.horizon
        if slopes is not None:
            df, dg = f[:, None] * slopes[0], g[:, None] * slopes[1]
            squares = torch.stack([(df - dg).square().sum(1).mean(), dg.square().sum(1).mean()])
            total[:, 0] += 0.5 * squares
            total[:, 1] += squares
    energy, integral = (total[0] / total[1].clamp(min=1e-300)).sqrt().tolist()
    return SobolevErrors(energy, integral)


@torch.no_grad()
def control_error(problem: Problem, paths: Trajectories, policy: Policy, optimum: Policy) -> float:
    """``sum_k E |a_k - a*_k|^2 / sum_k E |a*_k|^2`` along ``paths``, which are best those of the optimum."""
    off = size = 0.0
    for k in range(problem.horizon):
        a, best = policy(k, paths.states[k]), optimum(k, paths.states[k])
        off += float((a - best).double().square().sum())
        size += float(best.double().square().sum())
    return off / size if size else off
