"""The empirical variational inequality of Mou (2025), for networks and for linear classes, and the
norms of its theory.

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
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...envs.problem import Policy, Problem, Trajectories
from ..networks import NetworkValue, Value
from .classes.linear import LinearValue
from .lookahead import Lookahead
from .replay import Replay, Spans

_NEIGHBOURS = (
    "lookahead must be 'observed' for paths that were not seen at every step; got steps {} and {}"
    " in a row"
)
#: Gaps above this count linearly: one heavy target cannot throw the fit.
_CAP = 1.5


def capped_exp(gap: Tensor) -> Tensor:
    """``exp(gap) - 1``, constant beyond the cap."""
    return torch.expm1(gap.clamp(max=_CAP))


def divergence(gap: Tensor) -> Tensor:
    """``exp(gap) - gap - 1`` (Poisson, or Kullback-Leibler, relative to f), continued by its
    tangent beyond the cap.
    """
    capped = gap.clamp(max=_CAP)
    return capped.exp() * (1 + gap - capped) - gap - 1


@torch.no_grad()
def log_targets(value: Value, batch: Spans, data: Replay, lookahead: Lookahead) -> Tensor:
    """``log`` of the right-hand side of each observation, ``(B,)``, with ``value`` in place of the
    later f.

    Fresh noise is drawn anew, or is one antithetic pair of the branches that the data carry: f, not
    log f, is averaged over the rest by the loss.
    """
    if not lookahead.fresh:
        later = lookahead.log_value(value, batch.k, batch.x, batch.later_k, batch.later_x)
        return batch.log_gain + torch.where(batch.terminal, 0.0, later)
    if bool((batch.later_k > batch.k + 1).any()):
        wide = int((batch.later_k - batch.k).argmax())
        raise ValueError(_NEIGHBOURS.format(int(batch.k[wide]), int(batch.later_k[wide])))
    # what remains for visits that are their own target: the reward at the horizon, and nothing new
    # before it
    log_target = torch.where(
        batch.terminal, data.log_terminal[batch.row], value.bounded(batch.k, batch.x).float()
    )
    inside = (batch.later_k == batch.k + 1).nonzero()[:, 0]
    if not len(inside):
        return log_target
    row, visit, k = batch.row[inside], batch.visit[inside], batch.k[inside]
    gain = data.log_reward[row, visit + 1] - data.log_reward[row, visit]
    if data.branches is None:
        expected = lookahead.log_value(
            value, k, data.states[row, visit], k + 1, batch.later_x[inside]
        )
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
    """Estimated ``dP*/dP`` of each path up to the observation, from its first visit on, times its
    precision, ``(B,)``.
    """
    here, start = value.bounded(batch.k, batch.x), value.bounded(batch.first_k, batch.first_x)
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
    """``density`` to the largest power up to 1 whose effective sample size is ``least`` of all;
    chances to be drawn.
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
    value: NetworkValue, batch: Spans, log_target: Tensor, weight: Tensor
) -> Tensor:
    """Semi-gradient loss whose stationary points solve the variational equation, one number.

    For uncontrolled data and true weights this is the Poisson (Kullback-Leibler) divergence between
    f and its target.
    """
    return (weight * divergence(log_target - value.members(batch.k, batch.x))).mean()


class System(NamedTuple):
    """Sums over observations; ``A dw = residual`` is one Gauss-Newton step."""

    matrix: Tensor  # (M, M): sum of weight * tau (tau - exp(gap) tau')^T
    gram: Tensor  # (M, M): its first part, that of tau tau^T, which is positive semi-definite
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
        span: visits from an observation to its target; as many as a path has give Monte-Carlo
            regression.
        risk_neutral: take ``gap`` for ``exp(gap) - 1``: log f is then the expected reward to go, a
            start without exponentials.
    """
    times, features = value.weights.shape
    if value.mixing is not None:
        features = len(value.mixing)
    system = _Sums(times, features, value.weights.device)
    for data in stream:
        system.paths(value, data, lookahead, max_weight, span, risk_neutral)
    return system.result(value.mixing)


#: Observations that are evaluated at once: few enough for the caches, enough to make calls cheap.
_AT_ONCE, _AT_MOST = 512, 1024


class _Group(NamedTuple):
    """Observations that share both steps."""

    rows: Tensor
    visit: int
    later: int
    k: int
    later_k: int


class _Sums:
    """Accumulates blocks of raw features of space; those of time multiply many at once, in one
    product.
    """

    def __init__(self, times: int, features: int, device: torch.device) -> None:
        self.times, self.features = times, features
        # of tau tau^T and of tau tau'^T
        self.gram, self.carry = torch.zeros(
            2, times * times, features * features, dtype=torch.float64, device=device
        )
        self.residual = torch.zeros(times, features, dtype=torch.float64, device=device)
        self.divergence = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.pending: dict[Tensor, list[tuple[Tensor, Tensor]]] = {self.gram: [], self.carry: []}

    def paths(
        self,
        value: LinearValue,
        data: Replay,
        lookahead: Lookahead,
        max_weight: float,
        span: int,
        risk_neutral: bool,
    ) -> None:
        start = value.bounded(data.steps[:, 0], data.inputs[:, 0])
        for groups in _blocks(data, value.horizon, 1 if lookahead.fresh else span, lookahead.fresh):
            self._block(value, data, groups, start, lookahead, max_weight, risk_neutral)
        self._flush()

    def _block(
        self,
        value: LinearValue,
        data: Replay,
        groups: list[_Group],
        start: Tensor,
        lookahead: Lookahead,
        max_weight: float,
        risk_neutral: bool,
    ) -> None:
        sizes = [len(group.rows) for group in groups]
        rows = torch.cat([group.rows for group in groups])
        numbers: list[list[int]] = [
            [group.k, group.later_k, group.visit, group.later] for group in groups
        ]
        k, later_k, i, j = (
            _each(list(column), sizes, rows) for column in zip(*numbers, strict=True)
        )
        here = value.tangent(k, data.inputs[rows, i])
        log_f = here.log_f.clamp(value.bounds[0], value.bounds[1])
        weight = (
            torch.exp(data.log_weight[rows, i] + log_f - start[rows]).clamp(max=max_weight)
            * data.precision[rows]
        )
        before = data.log_reward if lookahead.fresh else data.log_weight
        gain = (before[rows, j] - before[rows, i]).double()
        carried = None
        if _terminal(groups[0], value.horizon, lookahead.fresh):
            gap = gain + data.log_terminal[rows] - here.log_f
        else:
            later = lookahead.tangent(value, k, data.states[rows, i], later_k, data.inputs[rows, j])
            gap, carried = gain + later.log_f - here.log_f, later.space
        excess = gap if risk_neutral else capped_exp(gap)
        growth = 1 if risk_neutral else 1 + excess
        tested = here.space * (weight if value.linear_in_weights else weight * growth)[:, None]
        push = weight * excess
        if carried is not None and value.linear_in_weights and not risk_neutral:
            carried = carried * (1 + excess)[:, None]
        at = 0
        for group, size in zip(groups, sizes, strict=True):
            one = slice(at, at + size)
            at += size
            time = value.time_table[group.k]
            self.residual += torch.outer(time, push[one] @ here.space[one])
            self._add(self.gram, time, time, tested[one], here.space[one])
            if carried is not None:
                self._add(
                    self.carry, time, value.time_table[group.later_k], tested[one], carried[one]
                )
        self.divergence += (weight * divergence(gap)).sum()
        self.total += len(rows)

    def _add(
        self, total: Tensor, time: Tensor, other: Tensor, tested: Tensor, space: Tensor
    ) -> None:
        self.pending[total].append(
            (torch.outer(time, other).flatten(), (tested.T @ space).flatten())
        )
        if len(self.pending[total]) >= 64:
            self._flush()

    def _flush(self) -> None:
        for total, parts in self.pending.items():
            if parts:
                time, space = (torch.stack(part) for part in zip(*parts, strict=True))
                total.addmm_(time.T, space)
                parts.clear()

    def result(self, mixing: Tensor | None) -> System:
        residual = self.residual if mixing is None else self.residual @ mixing
        gram, carry = self._whole(self.gram, mixing), self._whole(self.carry, mixing)
        return System(gram - carry, gram, residual.flatten(), self.divergence, self.total)

    def _whole(self, blocks: Tensor, mixing: Tensor | None) -> Tensor:
        t, m = self.times, self.features
        blocks = blocks.view(t, t, m, m)
        blocks = blocks if mixing is None else mixing.T @ blocks @ mixing
        return blocks.transpose(1, 2).reshape(t * blocks.shape[2], t * blocks.shape[3])


def _blocks(data: Replay, horizon: int, span: int, fresh: bool) -> Iterator[list[_Group]]:
    """All observations in groups, as many at once as are cheap to evaluate together; terminal ones
    apart from the others.
    """
    visits, numbers = data.steps.shape[1], data.states[0, 0].numel()
    most = max(64, min(_AT_MOST, 2**18 // numbers))  # images are evaluated few at a time
    waiting: dict[bool, list[_Group]] = {False: [], True: []}
    for i in range(visits):
        j = min(i + span, visits - 1)
        for rows, k, later_k in _groups(data.steps[:, i], data.steps[:, j]):
            if k == later_k and not (i == visits - 1 and k == horizon):
                continue  # a repeated visit, or a last one before the horizon, says nothing
            if fresh and later_k > k + 1:
                raise ValueError(_NEIGHBOURS.format(k, later_k))
            for part in rows.split(most):
                group = _Group(part, i, j, k, later_k)
                block = waiting[_terminal(group, horizon, fresh)]
                if block and sum(len(g.rows) for g in block) + len(part) > min(most, _AT_ONCE):
                    yield block[:]
                    block.clear()
                block.append(group)
    yield from (block for block in waiting.values() if block)


def _terminal(group: _Group, horizon: int, fresh: bool) -> bool:
    """Whether the target is the terminal reward."""
    return group.later_k == horizon and not (fresh and group.k < group.later_k)


def _each(numbers: list[int], sizes: list[int], rows: Tensor) -> Any:
    """One number for all rows where groups share it (problems are faster then), else one a row."""
    if len(set(numbers)) == 1:
        return numbers[0]
    return torch.tensor(numbers, device=rows.device).repeat_interleave(
        torch.tensor(sizes, device=rows.device)
    )


def _groups(k: Tensor, later_k: Tensor) -> list[tuple[Tensor, int, int]]:
    """Rows that share both steps, with the steps."""
    every = torch.arange(len(k), device=k.device)
    if bool((k == k[0]).all()) and bool((later_k == later_k[0]).all()):
        return [(every, int(k[0]), int(later_k[0]))]
    base = int(later_k.max()) + 1
    codes, group = torch.unique(k * base + later_k, return_inverse=True)
    order = group.argsort(stable=True)
    parts = order.split(torch.bincount(group).tolist())
    return [
        (rows, int(code) // base, int(code) % base) for rows, code in zip(parts, codes, strict=True)
    ]


class SobolevErrors(NamedTuple):
    """Relative errors of an estimate of f under the uncontrolled process, and of the control under
    the optimal one.
    """

    energy: float  #: ``|fhat - f|_E / |f|_E``
    integral: float  #: ``|fhat - f|_V / |f|_V``


def sobolev_errors(
    problem: Problem,
    paths: Trajectories,
    log_f: Policy,
    log_truth: Policy,
) -> SobolevErrors:
    """Distance to a known f in the two norms of MATH section 3 (our reading of the two that Mou's
    abstract names).

        |f|_E^2 = E f_0^2 / 2 + E f_T^2 / 2 + sum_k E |D f_k|^2 / 2,      |f|_V^2 = sum_k E[ f_k^2 /
            T + |D f_k|^2 ]

    with ``D f = J_z^T grad f``, the gradient in standard deviations of one step's noise: its
    squares sum to the integral of ``|Lambda^{1/2} grad f|^2`` over time.

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
                slopes = [
                    torch.autograd.grad(v.sum(), z, retain_graph=True)[0].flatten(1).double()
                    for v in pair
                ]
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
def energy_error(
    data: Replay, horizon: int, policy: Policy, optimum: Policy, most: int = 64
) -> float:
    """Relative error of ``log f`` in the energy seminorm of MATH section 3, under the law of the
    data.

    ``(sum_k E |D(log fhat - log f)|^2 / sum_k E |D log f|^2)^(1/2)``. ``D log f = J_z^T grad log
    f`` is the control that f makes, so it is taken between controls, as they act (clipped, say). 0
    is the optimum, 1 no control; the absolute error where the optimum is none.

    Args:
        data: regression data; all their visits before the horizon.
        horizon: of the problem.
        policy: the estimate's control.
        optimum: the truth's.
        most: paths, evenly chosen, as an estimate is enough.
    """
    rows = torch.linspace(0, data.n - 1, min(data.n, most), device=data.steps.device).long()
    off = size = 0.0
    for k, x in zip(data.steps[rows].unbind(1), data.states[rows].unbind(1), strict=True):
        k, x = k[k < horizon], x[k < horizon]
        if len(k):
            step: Any = int(k[0]) if bool((k == k[0]).all()) else k
            best = optimum(step, x).double()
            off += float((policy(step, x) - best).square().sum())
            size += float(best.square().sum())
    return math.sqrt(off / size) if size else math.sqrt(off)


@torch.no_grad()
def control_error(problem: Problem, paths: Trajectories, policy: Policy, optimum: Policy) -> float:
    """``sum_k E |a_k - a*_k|^2 / sum_k E |a*_k|^2`` along ``paths``, which are best those of the
    optimum.
    """
    off = size = 0.0
    for k in range(problem.horizon):
        a, best = policy(k, paths.states[k]), optimum(k, paths.states[k])
        off += float((a - best).double().square().sum())
        size += float(best.double().square().sum())
    return off / size if size else off
