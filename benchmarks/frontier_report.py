"""What ``frontier.py`` left on disk, as a table, a sentence for each cell and a picture; runs
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import resumable as bench

HERE = bench.RESULTS / "frontier"
THRESHOLD = 0.9
#: Scores that the report also gives the cost of.
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98)
#: Agents in their order everywhere, as they are called in the report.
NAMES = {"pde": "PDE (adaptive)", "pde-off": "PDE (off-policy)", "ppo": "PPO", "sac": "SAC"}
REGRESSION, RL = ("pde", "pde-off"), ("ppo", "sac")
UNITS = {"queries": "reward queries", "seconds": "CPU seconds"}
#: How one unit of one cell may end, and how a sentence about it begins.
VERDICTS = {
    "PDE": "PDE wins",
    "RL": "**RL wins**",
    "level": "PDE and RL are level",
    "only PDE": "Only PDE gets there, after RL was stopped,",
    "only RL": "**Only RL gets there**, after PDE was stopped,",
    "nobody": "Nobody gets there",
    None: "Only one side has run",
}


def crossing(scores: Sequence[float], threshold: float = THRESHOLD) -> int | None:
    """Index of the first evaluation whose mean with its two neighbours is at least ``threshold``;
    None if there is none.

    On a line that mean is the evaluation itself, so that it is not late as a trailing mean would
    be. An evaluation without a neighbour on either side, the first and the last, never counts.
    """
    running = np.convolve(scores, np.full(3, 1 / 3), "valid") if len(scores) >= 3 else np.empty(0)
    reached = np.flatnonzero(running >= threshold - 1e-9)  # a mean of three 0.9 is rounded
    return int(reached[0]) + 1 if len(reached) else None


def report(out: Path = HERE, threshold: float = THRESHOLD) -> None:
    """Write frontier.png, report.md and report.json for the finished runs.

    Args:
        out: folder that ``frontier.py`` filled.
        threshold: the score to reach.
    """
    if not (math.isfinite(threshold) and 0 < threshold < 1):
        raise ValueError(f"threshold must be between 0 and 1; got {threshold}")
    summary = summarise(out, list(bench.runs_of(out, some=True).values()), threshold)
    bench.write(out, markdown(summary), summary, frontier=draw(summary))


# --- figures


def summarise(out: Path, runs: Sequence[bench.Line], threshold: float) -> bench.Line:
    """Everything that the report says, as plain JSON values."""
    by_cell = bench.groups(runs, lambda run: (run["job"]["dimension"], run["job"]["beta"]))
    grid = {key: by_cell[key] for key in sorted(by_cell, key=lambda c: (c[0], -c[1]))}
    known = {name: line["value"] for name, line in bench.references_of(out).items()}
    cells = [_cell(known[f"beta{b:g}-d{d}"], r, b, d, threshold) for (d, b), r in grid.items()]
    return {
        "threshold": threshold,
        "cells": cells,
        "wins": {unit: [cell[unit]["winner"] for cell in cells] for unit in UNITS},
        "levels": [row for level in LEVELS for row in _levels(grid, level)],
        "commands": bench.distinct(run["command"] for run in runs),
        "hardware": bench.distinct(run["hardware"] for run in runs),
        "versions": bench.distinct(run["versions"] for run in runs),
    }


def _by_agent(runs: Sequence[bench.Line], threshold: float) -> bench.Line:
    found = bench.groups(runs, lambda run: run["job"]["agent"])
    return {name: _agent(found[name], threshold) for name in NAMES if name in found}


def _cell(
    found: bench.Line, runs: Sequence[bench.Line], beta: float, d: int, threshold: float
) -> bench.Line:
    agents = _by_agent(runs, threshold)
    low = found["uncontrolled"]["mean"]
    figures = {
        "beta": beta,
        "dimension": d,
        **{name: found[name] for name in ("uncontrolled", "bound", "ess_share")},
        "ceiling": (found["closed_form"]["mean"] - low) / (found["bound"]["mean"] - low),
        "agents": agents,
    }
    verdicts = {unit: _verdict(agents, unit) for unit in UNITS}
    words = [_sentence(agents, unit, verdicts[unit]["winner"], threshold) for unit in UNITS]
    return {**figures, **verdicts, "words": " ".join(words)}


def _agent(group: Sequence[bench.Line], threshold: float) -> bench.Line:
    """Medians and ranges over the seeds of one agent in one cell; None is never."""
    group = sorted(group, key=lambda run: run["job"]["seed"])
    scores = [[row["score"] for row in run["rows"]] for run in group]
    at = [crossing(curve, threshold) for curve in scores]
    out: bench.Line = {
        "seeds": [run["job"]["seed"] for run in group],
        "reached": sum(i is not None for i in at),
        "last_score": _finite(median(curve[-1] if curve else -math.inf for curve in scores)),
        "best_score": _finite(median(max(curve, default=-math.inf) for curve in scores)),
        "outcomes": [run["outcome"] for run in group],
    }
    for unit in UNITS:
        reached = zip(at, group, strict=True)
        each = [math.inf if i is None else float(run["rows"][i][unit]) for i, run in reached]
        out[unit] = {
            **{n: _finite(f(each)) for n, f in (("median", median), ("low", min), ("high", max))},
            "each": [_finite(value) for value in each],
            # what a run that never got there has used
            "spent": [float(run[unit]) for run in group],
        }
    return out


def _at_least(figure: Mapping[str, Any]) -> float:
    """Until an agent gets there: its median, or the least that its runs have spent without it."""
    return min(figure["spent"]) if figure["median"] is None else figure["median"]


def _levels(grid: Mapping[tuple[int, float], Sequence[bench.Line]], level: float) -> list[Any]:
    """The cheaper of each side's agents to ``level`` in every cell that either side reaches, and
    their ratio.
    """
    rows = []
    for (d, beta), runs in grid.items():
        agents = _by_agent(runs, level)
        row: bench.Line = {"beta": beta, "dimension": d, "level": level}
        for unit in UNITS:
            for side, names in (("PDE", REGRESSION), ("RL", RL)):
                figures = [agents[name][unit] for name in names if name in agents]
                # who was stopped first might have been there next
                row[f"{side} {unit}"] = min(figures, key=_at_least, default=None)
        sides = [row[f"{side} {unit}"] for unit in UNITS for side in ("PDE", "RL")]
        if all(sides) and any(figure["median"] is not None for figure in sides):
            ratios = {f"ratio {u}": _ratio(row[f"RL {u}"], row[f"PDE {u}"]) for u in UNITS}
            rows.append({**row, **ratios})
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdict(agents: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Who wins in one unit, a key of ``VERDICTS`` (None where one side has no run), and every ratio
    RL / PDE.

    Who was stopped before the other side got there is not beaten: that the other side alone got
    there is all one can say.
    """
    pairs = [(rl, pde) for rl in RL for pde in REGRESSION if rl in agents and pde in agents]
    ratios = {f"{a}/{b}": _ratio(agents[a][unit], agents[b][unit]) for a, b in pairs}
    sides = [[agents[name][unit] for name in side if name in agents] for side in (REGRESSION, RL)]
    if not all(sides):
        return {"winner": None, "ratios": ratios}
    reached = [min(math.inf if f["median"] is None else f["median"] for f in s) for s in sides]
    at_least = [min(map(_at_least, side)) for side in sides]
    if reached[0] == reached[1]:
        winner = "nobody" if reached[0] == math.inf else "level"
    else:
        first = reached.index(min(reached))  # 0 regression, 1 RL
        winner = ("" if reached[first] <= at_least[1 - first] else "only ") + ("PDE", "RL")[first]
    return {"winner": winner, "ratios": ratios}


def _ratio(over: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any] | None:
    """Median over median; a side that never got there gives a bound, from the least that its runs
    have spent.
    """
    top, bottom = over["median"], under["median"]
    if top is None and bottom is None:
        return None
    bound = "equals" if None not in (top, bottom) else "at least" if top is None else "at most"
    return {"bound": bound, "ratio": _at_least(over) / _at_least(under)}


# --- words


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "never"
    if unit == "queries" or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _sentence(agents: Mapping[str, Any], unit: str, winner: str | None, threshold: float) -> str:
    """One unit of one cell in words: who wins, and everybody's figure against the winner's."""
    middle = {name: agents[name][unit]["median"] for name in agents}
    order = sorted(agents, key=lambda a: math.inf if middle[a] is None else middle[a])
    best = agents[order[0]][unit]
    if best["median"] is None:
        tried = ", ".join(f"{NAMES[a]} {_score(agents[a]['best_score'])}" for a in order)
        return f"In {UNITS[unit]} nobody reaches {threshold:g} (best scores: {tried})."
    parts = [f"{NAMES[order[0]]} {_amount(best['median'], unit)}"]
    for name in order[1:]:
        figure, reached = agents[name][unit], agents[name]["reached"]
        ratio = _at_least(figure) / best["median"]
        if figure["median"] is None:
            some = f", but {reached} of {len(agents[name]['seeds'])} seeds did" if reached else ""
            over = f" (over {_times(ratio)})" if ratio > 1 else ""
            within = _amount(min(figure["spent"]), unit)
            parts.append(f"{NAMES[name]} never within {within}{some}{over}")
        else:
            parts.append(f"{NAMES[name]} {_amount(figure['median'], unit)} ({_times(ratio)})")
    return f"{VERDICTS[winner]} in {UNITS[unit]}: {'; '.join(parts)}."


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _score(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2f}"


def markdown(summary: Mapping[str, Any]) -> list[str]:
    """The whole report, in parts."""
    goal = f"{summary['threshold']:g}"
    return [
        f"# What a score of {goal} costs",
        (
            "Reward queries (terminal rewards seen) and CPU seconds of training until the score of"
            f" the deterministic policy is {goal}, on girsanov/GaussianMixture-v0 with reward"
            " strength 1/beta in d dimensions. Score 0 is the pre-trained model, 1 the"
            " Donsker-Varadhan bound, which no policy exceeds; the ceiling is the score of the"
            " closed-form control. Medians over seeds, ranges in brackets. An evaluation counts"
            " when its mean with those before and after it is high enough. How it was measured:"
            " `benchmarks/frontier.py`."
        ),
        "![frontier](frontier.png)",
        _overall(summary),
        "## Cell by cell",
        "\n".join(f"- {_cell_name(cell)}: {cell['words']}" for cell in summary["cells"]),
        "## Figures",
        _table(summary),
        (
            "Reached by: seeds that got there. Never: half of them or more did not, within the"
            " least that any of them spent. Last score: median of the evaluations at the end of the"
            " budget; a run may have left its best policy behind."
        ),
        (
            "PPO and SAC have one table of settings for all cells, found at beta 0.5 and d 2"
            " (`baselines/TUNING.md`); PDE has its defaults. What an agent was told to spend"
            " belongs to its curve: PDE anneals its learning rate over its budget. Below 100 reward"
            " queries PDE is not evaluated: it begins with that many uncontrolled paths."
        ),
        "## Other scores",
        (
            "The cheaper of the two PDE agents, and of PPO and SAC (or whoever of them was stopped"
            " before the other got there, which bounds the ratio), medians over seeds. Cells that"
            " neither side reaches are left out."
        ),
        _level_table(summary),
        "## References",
        _references(summary),
        "## Made with",
        bench.made_with(
            *(summary[name] for name in ("commands", "hardware", "versions")),
            "{cpu}, {cores} cores; {system}",
            ("Command: ", "Hardware: ", "Versions: "),
        ),
    ]


def _cell_name(cell: Mapping[str, Any]) -> str:
    low = cell["ceiling"]
    return f"beta {cell['beta']:g}, d {cell['dimension']} (ceiling {low:.3f})"


def _overall(summary: Mapping[str, Any]) -> str:
    """Cells won, in each unit."""
    lines = []
    more = {"only PDE": "reached by PDE alone", "only RL": "reached by RL alone"}
    more |= {"level": "level", "nobody": "reached by nobody"}
    for unit, winners in summary["wins"].items():
        judged = [winner for winner in winners if winner is not None]
        if not judged:
            continue
        won = {side: judged.count(side) for side in ("PDE", "RL", *more)}
        line = f"In {UNITS[unit]} PDE wins {won['PDE']} of {len(judged)} cells, RL {won['RL']}"
        line += "".join(f", {won[key]} {word}" for key, word in more.items() if won[key])
        cells = zip(summary["cells"], winners, strict=True)
        ahead = [cell for cell, winner in cells if winner in ("RL", "only RL")]
        where = "; ".join(f"beta {cell['beta']:g}, d {cell['dimension']}" for cell in ahead)
        lines.append(f"{line}{f'. RL is ahead at {where}' if where else ''}.")
    return " ".join(lines) or "Only one side has run yet: there is nothing to compare."


def _place(cell: Mapping[str, Any]) -> list[str]:
    return [f"{cell['beta']:g}", str(cell["dimension"])]


def _table(summary: Mapping[str, Any]) -> str:
    heads = "beta|d|agent|reached by|reward queries|CPU seconds|last score|best score|outcomes"
    rows = []
    for cell in summary["cells"]:
        for name, agent in cell["agents"].items():
            reached = f"{agent['reached']} of {len(agent['seeds'])}"
            figures = [_figure(agent[unit], unit) for unit in UNITS]
            scores = [_score(agent["last_score"]), _score(agent["best_score"])]
            outcomes = ", ".join(dict.fromkeys(agent["outcomes"]))
            rows.append([*_place(cell), NAMES[name], reached, *figures, *scores, outcomes])
    return bench.table(heads.split("|"), rows)


def _level_table(summary: Mapping[str, Any]) -> str:
    sides = ("PDE", "RL", "RL / PDE")
    heads = ["d", "beta", "score", *(f"{s}: {word}" for word in UNITS.values() for s in sides)]
    rows = []
    signs = {"equals": "", "at least": "over ", "at most": "under "}
    for row in sorted(summary["levels"], key=lambda r: (r["dimension"], -r["beta"], r["level"])):
        line = [str(row["dimension"]), f"{row['beta']:g}", f"{row['level']:g}"]
        for unit in UNITS:
            ratio = row[f"ratio {unit}"]
            line += [_figure(row[f"{side} {unit}"], unit) for side in ("PDE", "RL")]
            line.append(f"{signs[ratio['bound']]}{_times(ratio['ratio'])}" if ratio else "")
        rows.append(line)
    return bench.table(heads, rows)


def _figure(figure: Mapping[str, Any], unit: str) -> str:
    never = figure["median"] is None
    middle = ("never in " if never else "") + _amount(_at_least(figure), unit)
    if figure["low"] == figure["high"]:
        return middle
    return f"{middle} [{_amount(figure['low'], unit)}, {_amount(figure['high'], unit)}]"


def _references(summary: Mapping[str, Any]) -> str:
    heads = ["beta", "d", "J(0)", "J_ref", "effective share of paths behind J_ref", "ceiling"]
    rows = []
    for cell in summary["cells"]:
        known = (cell["uncontrolled"], cell["bound"])
        values = [f"{value['mean']:.4f} +- {value['stderr']:.4f}" for value in known]
        rows.append([*_place(cell), *values, f"{cell['ess_share']:.0%}", f"{cell['ceiling']:.3f}"])
    return bench.table(heads, rows)


# --- picture


def draw(summary: Mapping[str, Any]) -> Any:
    """Reward queries above, CPU seconds below, a column for each dimension; what was never reached
    has open triangles.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator

    dimensions = sorted({cell["dimension"] for cell in summary["cells"]})
    agents = [name for name in NAMES if any(name in cell["agents"] for cell in summary["cells"])]
    figure = bench.figure(max(8.0, 2.0 + 3.7 * len(dimensions)), 7.5, 110)
    panels = figure.subplots(2, len(dimensions), sharex=True, sharey="row", squeeze=False)
    for row, unit in zip(panels, UNITS, strict=True):
        for axes, d in zip(row, dimensions, strict=True):
            cells = [cell for cell in summary["cells"] if cell["dimension"] == d]
            for i, name in enumerate(agents):
                here = [c for c in cells if name in c["agents"]]
                # aside, so that equal figures do not hide each other
                aside = 1.06 ** (i - (len(agents) - 1) / 2)
                points = [(aside / c["beta"], c["agents"][name][unit]) for c in here]
                _draw_agent(axes, points, name)
            strengths = sorted(1 / cell["beta"] for cell in cells)
            axes.set(xscale="log", yscale="log", title=f"d = {d}" if unit == "queries" else "")
            axes.set_xticks(strengths, [f"{x:g}" for x in strengths])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.12g}"))
            axes.grid(alpha=0.2)
        row[0].set_ylabel(f"{UNITS[unit]} to score {summary['threshold']:g}")
    for axes in panels[-1]:
        axes.set_xlabel("reward strength 1/beta")
    handles = [Line2D([], [], color=_colour(n), marker="o", label=NAMES[n]) for n in agents]
    handles.append(Line2D([], [], color="0.3", linestyle="", label="never within this", **_NEVER))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    goal = f"what a score of {summary['threshold']:g} costs (lower is better)"
    figure.suptitle(f"girsanov/GaussianMixture-v0: {goal}")
    return figure


_NEVER: bench.Line = {"marker": "^", "markersize": 9, "markerfacecolor": "none"}


def _colour(name: str) -> str:
    return f"C{list(NAMES).index(name)}"


def _draw_agent(axes: Any, points: Sequence[tuple[float, Mapping[str, Any]]], name: str) -> None:
    """Medians joined by a line; ranges over the seeds that got there; open triangles where the
    median seed did not.
    """
    points, colour = sorted(points, key=lambda point: point[0]), _colour(name)
    heights = [max(_at_least(f), 1e-3) for _, f in points]
    axes.plot([x for x, _ in points], heights, color=colour, linewidth=1.2, alpha=0.5)
    for (x, figure), height in zip(points, heights, strict=True):
        never = figure["median"] is None
        style = _NEVER if never else {"marker": "o", "markersize": 6}
        label = "never" if never else "reached"
        axes.plot([x], [height], color=colour, linestyle="", label=label, **style)
        reached = [max(value, 1e-3) for value in figure["each"] if value is not None]
        if reached and len(figure["each"]) > 1:
            high = max([*reached, height])
            axes.vlines(x, min(reached), high, color=colour, linewidth=2, alpha=0.6)
