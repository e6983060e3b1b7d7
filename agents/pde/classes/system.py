"""The linear system that a linear class solves: the variational inequality summed over the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..lookahead import FreshNoise, Lookahead
from ..replay import Replay, common
from ..variational import NEIGHBOURS, capped_exp, divergence
from .linear import LinearValue, Tangent


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
    others: float = 0.0,
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
        others: observations that the result is to be added to; heavy targets are cut off by the
            number of all up to theirs (see ``largest_gap``).
    """
    times, features = value.weights.shape
    if value.mixing is not None:
        features = len(value.mixing)
    system = _Sums(times, features, value.weights.device, others)
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
    """Accumulates blocks of raw features of space; those of time multiply many at once."""

    def __init__(self, times: int, features: int, device: torch.device, others: float) -> None:
        self.times, self.features = times, features
        self.observations = others
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
        self.observations += data.steps.numel()
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
        log_f = value.within(k, here.log_f)
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
            later = _later(value, data, lookahead, rows, (k, i), (later_k, j))
            gap, carried = gain + later.log_f - here.log_f, later.space
        excess = gap if risk_neutral else capped_exp(gap, self.observations)
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
        self.divergence += (weight * divergence(gap, self.observations)).sum()
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


def _later(
    value: LinearValue,
    data: Replay,
    lookahead: Lookahead,
    rows: Tensor,
    here: tuple[Any, Any],
    later: tuple[Any, Any],
) -> Tangent:
    """The class's next values; ``here`` and ``later`` are steps and visits, one or one a row."""
    (k, i), (later_k, j) = here, later
    if data.branches is None or data.log_ratios is None or not isinstance(lookahead, FreshNoise):
        return lookahead.tangent(value, k, data.states[rows, i], later_k, data.inputs[rows, j])
    branches, log_ratios = data.branches[rows, i], data.log_ratios[rows, i]
    return lookahead.tangent_of_branches(value, later_k, branches, log_ratios)


def _blocks(data: Replay, horizon: int, span: int, fresh: bool) -> Iterator[list[_Group]]:
    """All observations in groups, as many at once as are cheap to evaluate together.

    Terminal ones apart from the others.
    """
    visits, numbers = data.steps.shape[1], data.states[0, 0].numel()
    most = max(64, min(_AT_MOST, 2**18 // numbers))  # images are evaluated few at a time
    waiting: dict[bool, list[_Group]] = {False: [], True: []}
    steps = common(data.steps)
    for i in range(visits):
        j = min(i + span, visits - 1)
        for rows, k, later_k in _groups(steps[i], steps[j], data.steps):
            if k == later_k and not (i == visits - 1 and k == horizon):
                continue  # a repeated visit, or a last one before the horizon, says nothing
            if fresh and later_k > k + 1:
                raise ValueError(NEIGHBOURS.format(k, later_k))
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
    every = torch.tensor(numbers).repeat_interleave(torch.tensor(sizes))
    return every.to(rows.device, non_blocking=True)


def _groups(k: int | Tensor, later_k: int | Tensor, steps: Tensor) -> list[tuple[Tensor, int, int]]:
    """Rows of ``steps`` ``(n, S)`` that share both steps, with the steps."""
    if isinstance(k, int) and isinstance(later_k, int):
        return [(torch.arange(len(steps), device=steps.device), k, later_k)]
    k, later_k = (torch.as_tensor(one).to(steps).expand(len(steps)) for one in (k, later_k))
    base = int(later_k.max()) + 1
    codes, group = torch.unique(k * base + later_k, return_inverse=True)
    order = group.argsort(stable=True)
    parts = order.split(torch.bincount(group).tolist())
    return [
        (rows, int(code) // base, int(code) % base) for rows, code in zip(parts, codes, strict=True)
    ]
