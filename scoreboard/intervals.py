"""What runs say together: figures over seeds, differences, and results at equal cost.

There is one kind of interval in every table and curve: interquartile mean and stratified bootstrap.

Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice", whose
package rliable does the same: a quarter of the values is cut off at each end, and the interval is
that of 95% of the means over seeds drawn anew, task by task. The draws are always the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .spec import UNITS

Rows = list[dict[str, Any]]
Groups = Mapping[str, list[dict[str, Any]]]
#: What learning costs, in every unit that a row of progress may tell; old rows lack the last two.
COSTS = (*UNITS, "model_evaluations", "cpu_seconds")
_DRAWS = 2_000
#: Seeds below which a difference is told, but nobody wins by it: a bootstrap of three values spans
#: no more than these.
FEWEST = 5


class Interval(NamedTuple):
    """An interquartile mean over seeds and its two-sided interval; a single seed has none."""

    iqm: float
    low: float | None
    high: float | None
    n: int  # seeds

    def __format__(self, form: str) -> str:
        form = form or ".3f"
        if self.low is None or self.high is None:
            return f"{self.iqm:{form}}"
        return f"{self.iqm:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def __str__(self) -> str:
        return f"{self:.3f}"


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last dimension without the lowest and the highest quarter, each rounded
    down: of five values the middle three.
    """
    cut = values.shape[-1] // 4
    ordered = np.sort(values, -1)
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def band(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean over all of ``(tasks, seeds, ...)``, and the two ends of its interval,
    each ``(...)``.
    """
    tasks, seeds, *shape = values.shape
    generator = np.random.default_rng(0)
    by_point = values.reshape(tasks, seeds, -1).transpose(0, 2, 1)
    drawn = [task[:, generator.integers(0, seeds, (_DRAWS, seeds))] for task in by_point]
    means = interquartile_mean(np.concatenate(drawn, -1))  # (points, draws)
    tail = 50 * (1 - confidence)
    middle = interquartile_mean(np.concatenate(list(by_point), -1))
    low, high = np.percentile(means, [tail, 100 - tail], axis=1)
    return middle.reshape(shape), low.reshape(shape), high.reshape(shape)


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Of independent values, one a seed."""
    return stratified([values], confidence)


def stratified(tasks: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """Of values by task and seed; every task has as many seeds."""
    values = np.asarray(tasks, dtype=float)
    n = values.shape[1]
    if n < 2:
        return Interval(float(interquartile_mean(values.ravel())), None, None, n)
    middle, low, high = band(values, confidence)
    return Interval(float(middle), float(low), float(high), n)


def paired(
    first: dict[int, float], second: dict[int, float], confidence: float = 0.95
) -> Interval | None:
    """The interval of ``first - second`` over the seeds that both have (their evaluation noise is
    shared); None if none.
    """
    seeds = sorted(first.keys() & second.keys())
    return interval([first[s] - second[s] for s in seeds], confidence) if seeds else None


def known_costs(runs: Sequence[Rows]) -> list[str]:
    """The units of cost that every row tells."""
    return [unit for unit in COSTS if all(row.get(unit) is not None for r in runs for row in r)]


def curve(rows: Rows, unit: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """``x`` and ``y`` of one run against one unit of cost, the final evaluation included."""
    x, y = np.array([(row[unit], row[quantity]) for row in rows], dtype=float).T
    return x, y


def has_curve(runs: Sequence[Rows]) -> bool:
    """Whether every run was measured between its begin and its end: two points are no curve, and
    nothing is read off the line between them.
    """
    return all(len(rows) > 2 for rows in runs)


def mean_curve(
    runs: Sequence[Rows], unit: str, quantity: str, points: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """A grid ``(points,)`` up to the end of the shortest run, and every run's curve on it, ``(runs,
    points)``.
    """
    curves = [curve(rows, unit, quantity) for rows in runs]
    grid = np.linspace(0.0, min(x[-1] for x, _ in curves), points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def differences(agents: Groups, quantity: str) -> list[dict[str, Any]]:
    """Every pair of agents, by the seeds that both have."""
    values = {
        agent: {r["spec"]["seed"]: r["final"][quantity] for r in group}
        for agent, group in agents.items()
    }
    out = []
    for first, second in itertools.combinations(values, 2):
        difference = paired(values[first], values[second])
        if difference is not None:
            out.append({"first": first, "second": second, **difference._asdict()})
    return out


def wins(agent: str, agents: Groups, differences: list[dict[str, Any]]) -> bool:
    """Whether an agent is clearly better, pair by pair and by ``FEWEST`` seeds or more, than every
    other of its access class; there must be one.
    """
    classes = {name: group[0].get("access_class") for name, group in agents.items()}
    rivals = {name for name, other in classes.items() if name != agent and other == classes[agent]}
    enough = [d for d in differences if d["n"] >= FEWEST]
    beaten = {d["second"] for d in enough if d["first"] == agent and (d["low"] or 0) > 0}
    beaten |= {d["first"] for d in enough if d["second"] == agent and (d["high"] or 0) < 0}
    return classes[agent] is not None and bool(rivals) and rivals <= beaten


def overall(environments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Agents over all environments, where there are several and every one has scores from as many
    seeds.
    """
    if len(environments) < 2 or any(env["compared"] != "score" for env in environments):
        return []
    tasks = [{agent["agent"]: agent["runs"] for agent in env["agents"]} for env in environments]
    out = []
    for name in tasks[0]:
        runs = [task.get(name, []) for task in tasks]
        if len({len(finals) for finals in runs}) == 1:
            scores = [[final["score"] for final in finals] for finals in runs]
            out.append({"agent": name, "tasks": len(runs), **stratified(scores)._asdict()})
    return out


def equal_cost(rows: Mapping[str, list[Rows]], quantity: str) -> list[dict[str, Any]]:
    """Every agent, and its success, where the cheapest run stops, in each unit, read off the
    learning curves.

    An agent without a curve has no part in what is the cheapest, and is None unless it had ended by
    then. Empty, where none has a curve.
    """
    curves = {agent: seeds for agent, seeds in rows.items() if has_curve(seeds)}
    known = all(run[0].get("success") is not None for seeds in rows.values() for run in seeds)
    out = []
    for unit in known_costs([run for seeds in rows.values() for run in seeds]) if curves else []:
        amount = min(run[-1][unit] for seeds in curves.values() for run in seeds)

        def at(name: str, unit: str = unit, amount: float = amount) -> dict[str, Any]:
            def of(seeds: list[Rows]) -> dict[str, Any] | None:
                if not has_curve(seeds) and any(run[-1][unit] > amount for run in seeds):
                    return None
                values = [float(np.interp(amount, *curve(run, unit, name))) for run in seeds]
                return interval(values)._asdict()

            return {agent: of(seeds) for agent, seeds in rows.items()}

        out.append(
            {
                "unit": unit,
                "amount": amount,
                "agents": at(quantity),
                "success": at("success") if known else None,
            }
        )
    return out


def cost_of_equals(
    rows: Mapping[str, list[Rows]], quantity: str, levels: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """What each agent with a curve, median over its seeds, spends until it is as good as another
    ends, or as a level, whose ``agent`` is None; None: it never is.
    """
    out, units = [], known_costs([run for seeds in rows.values() for run in seeds])
    curves = {agent: seeds for agent, seeds in rows.items() if has_curve(seeds)}
    ends = [(goal, np.median([run[-1][quantity] for run in seeds])) for goal, seeds in rows.items()]
    for goal, target in [*ends, *((None, level) for level in levels)]:
        spent = {
            agent: {
                unit: _finite(np.median(_spent(runs, unit, quantity, target))) for unit in units
            }
            for agent, runs in curves.items()
        }
        out.append({"agent": goal, "target": float(target), "spent": spent})
    return out


def cost_of_levels(
    rows: Mapping[str, list[Rows]], quantity: str, levels: Sequence[float]
) -> list[dict[str, Any]]:
    """What each agent with a curve spends until it is at a level, a dict a level.

    Of each agent and unit: ``each`` run's cost, None where it never is there; their ``median``, for
    which these are infinite; and where the runs' budgets end, ``ends``.
    """
    units = known_costs([run for seeds in rows.values() for run in seeds])

    def of(runs: list[Rows], unit: str, level: float) -> dict[str, Any]:
        spent = _spent(runs, unit, quantity, level)
        return {
            "median": _finite(np.median(spent)),
            "each": [_finite(cost) for cost in spent],
            "ends": [float(run[-1][unit]) for run in runs],
        }

    return [
        {
            "level": float(level),
            "agents": {
                agent: {unit: of(runs, unit, level) for unit in units}
                for agent, runs in rows.items()
                if has_curve(runs)
            },
        }
        for level in levels
    ]


def _spent(runs: list[Rows], unit: str, quantity: str, target: float) -> list[float]:
    """Of each run, until its curve is at the target."""
    return [_first(*curve(run, unit, quantity), target) for run in runs]


def _first(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """Where a curve first is at the target, linear between its points; infinity if it never is."""
    reached = np.flatnonzero(y >= target)
    if not len(reached):
        return float("inf")
    i = reached[0]
    return float(x[i] if i == 0 else np.interp(target, y[i - 1 : i + 1], x[i - 1 : i + 1]))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
