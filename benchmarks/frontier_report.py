"""What ``frontier.py`` left on disk, as tables and a picture; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import reports
import resumable as bench

from girsanov.scoreboard.plots import empty_figure

THRESHOLD = 0.9
#: Scores whose cost the report tells.
LEVELS = (0.5, 0.8, THRESHOLD, 0.95, 0.98)
#: Agents in their order everywhere, as they are called in the report.
NAMES = {
    "pde": "PDE (adaptive)",
    "pde-off": "PDE (off-policy)",
    "ppo-noise": "PPO",
    "sac-noise": "SAC",
    "ppo": "PPO, control form",
    "sac": "SAC, control form",
}
SIDES = {"PDE": ("pde", "pde-off"), "RL": ("ppo-noise", "sac-noise", "ppo", "sac")}
UNITS = {"queries": "reward queries", "seconds": "CPU seconds"}
#: Runs of one cell, by agent; cells by dimension and beta.
Agents = Mapping[str, Sequence[bench.Line]]
Grid = Mapping[tuple[int, float], Agents]


def crossing(scores: Sequence[float], level: float = THRESHOLD) -> int | None:
    """Index of the first evaluation whose mean with its two neighbours is at least ``level``; None
    if there is none.

    On a line that mean is the evaluation itself, so that it is not late as a trailing mean would
    be. An evaluation without a neighbour on either side, the first and the last, never counts.
    """
    running = np.convolve(scores, np.full(3, 1 / 3), "valid") if len(scores) >= 3 else np.empty(0)
    reached = np.flatnonzero(running >= level - 1e-9)  # a mean of three 0.9 is rounded
    return int(reached[0]) + 1 if len(reached) else None


class Cost(NamedTuple):
    """Of a score in one unit, for the runs of one agent in one cell."""

    each: list[float]  # until a run is there; infinite: it never was
    spent: list[float]  # in all

    @classmethod
    def of(cls, runs: Sequence[bench.Line], unit: str, level: float = THRESHOLD) -> Cost:
        """Read off the curves of the runs."""
        at = [(run, crossing([row["score"] for row in run["rows"]], level)) for run in runs]
        each = [math.inf if i is None else float(run["rows"][i][unit]) for run, i in at]
        return cls(each, [float(run[unit]) for run in runs])

    @property
    def never(self) -> bool:
        """Whether half the runs or more were never there."""
        return math.isinf(median(self.each))

    @property
    def at_least(self) -> float:
        """The median, or the least that the runs have spent without it."""
        return min(self.spent) if self.never else median(self.each)

    def told(self, unit: str) -> str:
        """In words, with the range."""
        middle = ("never in " if self.never else "") + _amount(self.at_least, unit)
        low, high = min(self.each), max(self.each)
        return middle if low == high else f"{middle} [{_amount(low, unit)}, {_amount(high, unit)}]"


class Ratio(NamedTuple):
    """What RL spends over what PDE does; a side that never got there gives a bound."""

    sign: str
    value: float

    @classmethod
    def of(cls, pde: Cost, rl: Cost) -> Ratio | None:
        """None where neither got there."""
        if pde.never and rl.never:
            return None
        sign = "over " if rl.never else "under " if pde.never else ""
        return cls(sign, rl.at_least / pde.at_least)

    @property
    def winner(self) -> str | None:
        """Who was stopped before the other side got there is not beaten."""
        if self.value > 1 and self.sign != "under ":
            return "PDE"
        return "RL" if self.value < 1 and self.sign != "over " else None

    def __str__(self) -> str:
        return f"{self.sign}{self.value:.{0 if self.value >= 10 else 1}f} times"


def _amount(value: float, unit: str) -> str:
    if math.isinf(value):
        return "never"
    if unit == "queries" or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def cheapest(agents: Agents, side: str, unit: str, level: float) -> Cost | None:
    """Of a side's agents; who was stopped first might have been there next."""
    costs = [Cost.of(agents[name], unit, level) for name in SIDES[side] if name in agents]
    return min(costs, key=lambda cost: cost.at_least, default=None)


def ratio(agents: Agents, unit: str, level: float = THRESHOLD) -> Ratio | None:
    """Of the cheapest of each side, where there are runs of both."""
    pde, rl = (cheapest(agents, side, unit, level) for side in SIDES)
    return None if pde is None or rl is None else Ratio.of(pde, rl)


def grid_of(runs: Sequence[bench.Line]) -> Grid:
    """Runs by cell and agent, in the order of the report."""
    cells = reports.groups(runs, lambda run: (run["job"]["dimension"], run["job"]["beta"]))
    order = sorted(cells, key=lambda cell: (cell[0], -cell[1]))
    return {
        cell: {name: found for name in NAMES if (found := reports.chosen(cells[cell], agent=name))}
        for cell in order
    }


def told(runs: Sequence[bench.Line], out: Path) -> dict[str, Any]:
    """Tables, and the picture."""
    grid = grid_of(runs)
    return {
        "won": "\n".join(_won(grid, unit) for unit in UNITS),
        "costs": _costs(grid),
        "levels": _levels(grid),
        "references": _references(grid, bench.references_of(out)),
        "made": reports.made_by(runs),
        "frontier": draw(grid),
    }


def _won(grid: Grid, unit: str) -> str:
    """Cells won, in one unit."""
    both = [agents for agents in grid.values() if all(set(s) & set(agents) for s in SIDES.values())]
    found = [ratio(agents, unit) for agents in both]
    won = [None if one is None else one.winner for one in found]
    nobody = found.count(None)
    return (
        f"In {UNITS[unit]} PDE wins {won.count('PDE')} of {len(both)} cells, RL {won.count('RL')};"
        f" {won.count(None) - nobody} are undecided, {nobody} reached by nobody."
    )


def _costs(grid: Grid) -> str:
    rows = []
    for (d, beta), agents in grid.items():
        for name, runs in agents.items():
            costs = {unit: Cost.of(runs, unit) for unit in UNITS}
            reached = sum(map(math.isfinite, costs["queries"].each))
            curves = [[row["score"] for row in run["rows"]] or [-math.inf] for run in runs]
            scores = [median(curve[-1] for curve in curves), median(map(max, curves))]
            cells = [f"{beta:g}", str(d), NAMES[name], f"{reached} of {len(runs)}"]
            cells += [cost.told(unit) for unit, cost in costs.items()]
            cells += [f"{score:.2f}" if math.isfinite(score) else "diverged" for score in scores]
            rows.append([*cells, ", ".join(dict.fromkeys(run["outcome"] for run in runs))])
    heads = "beta|d|agent|reached by|reward queries|CPU seconds|last score|best score|outcomes"
    return reports.table(heads, rows)


def _levels(grid: Grid) -> str:
    rows = []
    for (d, beta), agents in grid.items():
        for level in LEVELS:
            cells, there = [str(d), f"{beta:g}", f"{level:g}"], False
            for unit in UNITS:
                costs = [cheapest(agents, side, unit, level) for side in SIDES]
                cells += ["" if cost is None else cost.told(unit) for cost in costs]
                found = ratio(agents, unit, level)
                there = there or found is not None
                cells.append("" if found is None else str(found))
            rows += [cells] if there else []
    sides = (*SIDES, "RL / PDE")
    heads = ["d", "beta", "score", *(f"{s}: {word}" for word in UNITS.values() for s in sides)]
    return reports.table(heads, rows)


def _references(grid: Grid, known: Mapping[str, bench.Line]) -> str:
    rows = []
    for d, beta in grid:
        found = known[f"beta{beta:g}-d{d}"]["value"]
        free, bound = (found[name] for name in ("uncontrolled", "bound"))
        room = bound["mean"] - free["mean"]
        ceiling = (found["closed_form"]["mean"] - free["mean"]) / room
        values = [reports.pm(x["mean"], x["stderr"], ".4f") for x in (free, bound)]
        rows.append([f"{beta:g}", str(d), *values, f"{found['ess_share']:.0%}", f"{ceiling:.3f}"])
    heads = "beta|d|J(0)|J_ref|effective share of paths behind J_ref|ceiling"
    return reports.table(heads, rows)


# --- picture

_NEVER: bench.Line = {"marker": "^", "markersize": 9, "markerfacecolor": "none"}
_COLOURS = {name: f"C{i}" for i, name in enumerate(NAMES)}


def draw(grid: Grid) -> Any:
    """Reward queries above, CPU seconds below, a column for each dimension; what was never reached
    has open triangles.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator

    dimensions = sorted({d for d, _ in grid})
    agents = [name for name in NAMES if any(name in cell for cell in grid.values())]
    figure = empty_figure(max(8.0, 2.0 + 3.7 * len(dimensions)), 7.5, 110)
    panels = figure.subplots(2, len(dimensions), sharex=True, sharey="row", squeeze=False)
    for row, unit in zip(panels, UNITS, strict=True):
        for axes, d in zip(row, dimensions, strict=True):
            cells = {1 / beta: cell for (other, beta), cell in grid.items() if other == d}
            for i, name in enumerate(agents):
                # aside, so that equal figures do not hide each other
                aside = 1.06 ** (i - (len(agents) - 1) / 2)
                costs = {aside * x: Cost.of(c[name], unit) for x, c in cells.items() if name in c}
                _draw_agent(axes, costs, _COLOURS[name])
            axes.set(xscale="log", yscale="log", title=f"d = {d}" if unit == "queries" else "")
            axes.set_xticks(sorted(cells), [f"{x:g}" for x in sorted(cells)])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.12g}"))
            axes.grid(alpha=0.2)
        row[0].set_ylabel(f"{UNITS[unit]} to score {THRESHOLD:g}")
    for axes in panels[-1]:
        axes.set_xlabel("reward strength 1/beta")
    handles = [Line2D([], [], color=_COLOURS[n], marker="o", label=NAMES[n]) for n in agents]
    handles.append(Line2D([], [], color="0.3", linestyle="", label="never within this", **_NEVER))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    goal = f"what a score of {THRESHOLD:g} costs (lower is better)"
    figure.suptitle(f"girsanov/GaussianMixture-v0: {goal}")
    return figure


def _draw_agent(axes: Any, costs: Mapping[float, Cost], colour: str) -> None:
    """Medians joined by a line; ranges over the seeds that got there; open triangles where the
    median seed did not.
    """
    heights = {x: max(costs[x].at_least, 1e-3) for x in sorted(costs)}
    axes.plot(list(heights), list(heights.values()), color=colour, linewidth=1.2, alpha=0.5)
    for x, height in heights.items():
        style = _NEVER if costs[x].never else {"marker": "o", "markersize": 6}
        axes.plot([x], [height], color=colour, linestyle="", **style)
        reached = [max(value, 1e-3) for value in costs[x].each if math.isfinite(value)]
        if reached and len(costs[x].each) > 1:
            high = max([*reached, height])
            axes.vlines(x, min(reached), high, color=colour, linewidth=2, alpha=0.6)
