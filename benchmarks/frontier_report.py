"""What ``frontier.py`` left on disk, as a table, a sentence for each cell and a picture; runs
nothing.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from resumable import read_lines

from girsanov.scoreboard.records import check_writable, read_json, write_json, write_whole

RESULTS = Path(__file__).parent / "results" / "frontier"
CURVES = "curves.jsonl"
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

Rows = list[dict[str, Any]]
Finished = tuple[dict[str, Any], Rows]


def read(out: Path) -> dict[str, Finished]:
    """Finished runs by name: their last line and their evaluations. Rows of attempts that were
    killed are left out.
    """
    every = read_lines(out / CURVES)
    ends = {line["run"]: line for line in every if line["kind"] == "end"}
    rows: dict[tuple[str, str], Rows] = {}
    for line in every:
        if line["kind"] == "row":
            rows.setdefault((line["run"], line["attempt"]), []).append(line)
    return {name: (end, rows.get((name, end["attempt"]), [])) for name, end in ends.items()}


def crossing(scores: Sequence[float], threshold: float = THRESHOLD) -> int | None:
    """Index of the first evaluation whose mean with its two neighbours is at least ``threshold``;
    None if there is none.

    On a line that mean is the evaluation itself, so that it is not late as a trailing mean would
    be. An evaluation without a neighbour on either side, the first and the last, never counts.
    """
    running = np.convolve(scores, np.full(3, 1 / 3), "valid") if len(scores) >= 3 else np.empty(0)
    reached = np.flatnonzero(running >= threshold - 1e-9)  # a mean of three 0.9 is rounded
    return int(reached[0]) + 1 if len(reached) else None


def report(out: Path = RESULTS, threshold: float = THRESHOLD) -> None:
    """Write frontier.png, report.md and report.json for the finished runs.

    Args:
        out: folder that ``frontier.py`` filled.
        threshold: the score to reach.
    """
    if not (math.isfinite(threshold) and 0 < threshold < 1):
        raise ValueError(f"threshold must be between 0 and 1; got {threshold}")
    runs = read(out)
    if not runs:
        raise ValueError(f"out must hold finished runs ({CURVES}); found none in {str(out)!r}")
    check_writable(out)
    summary = summarise(out, list(runs.values()), threshold)
    write_json(out / "report.json", summary)
    write_whole(out / "report.md", markdown(summary).encode())
    picture = io.BytesIO()
    draw(summary).savefig(picture, format="png")
    write_whole(out / "frontier.png", picture.getvalue())
    print(
        f"{markdown(summary)}\nwritten: {out / 'report.md'}, {out / 'report.json'},"
        f" {out / 'frontier.png'}"
    )


# --- figures


def summarise(out: Path, runs: Sequence[Finished], threshold: float) -> dict[str, Any]:
    """Everything that the report says, as plain JSON values."""
    grid = sorted(
        {(end["settings"]["dimension"], end["settings"]["beta"]) for end, _ in runs},
        key=lambda c: (c[0], -c[1]),
    )
    cells = [_cell(out, runs, beta, d, threshold) for d, beta in grid]
    return {
        "threshold": threshold,
        "cells": cells,
        "wins": {unit: [cell[unit]["winner"] for cell in cells] for unit in UNITS},
        "levels": [row for level in LEVELS for row in _levels(runs, grid, level)],
        "commands": _distinct(end["command"] for end, _ in runs),
        "hardware": _distinct(end["hardware"] for end, _ in runs),
        "versions": _distinct(end["versions"] for end, _ in runs),
    }


def _cell(
    out: Path, runs: Sequence[Finished], beta: float, d: int, threshold: float
) -> dict[str, Any]:
    here = [
        run
        for run in runs
        if (run[0]["settings"]["beta"], run[0]["settings"]["dimension"]) == (beta, d)
    ]
    agents = {}
    for agent in NAMES:
        group = sorted(
            (r for r in here if r[0]["settings"]["agent"] == agent),
            key=lambda r: r[0]["settings"]["seed"],
        )
        if group:
            agents[agent] = _agent(group, threshold)
    found = read_json(out / "cells" / f"beta{beta:g}-d{d}.json")
    room = found["bound"]["mean"] - found["uncontrolled"]["mean"]
    ceiling = (found["closed_form"]["mean"] - found["uncontrolled"]["mean"]) / room
    figures = {
        "beta": beta,
        "dimension": d,
        "uncontrolled": found["uncontrolled"],
        "bound": found["bound"],
        "ess_share": found["ess_share"],
        "ceiling": ceiling,
        "agents": agents,
    }
    verdicts = {unit: _verdict(agents, unit) for unit in UNITS}
    words = [_sentence(agents, unit, verdicts[unit]["winner"], threshold) for unit in UNITS]
    return {**figures, **verdicts, "words": " ".join(words)}


def _agent(group: Sequence[Finished], threshold: float) -> dict[str, Any]:
    """Medians and ranges over the seeds of one agent in one cell; None is never."""
    at = [crossing([row["score"] for row in rows], threshold) for _, rows in group]
    out: dict[str, Any] = {
        "seeds": [end["settings"]["seed"] for end, _ in group],
        "reached": sum(i is not None for i in at),
        "last_score": median(rows[-1]["score"] if rows else -math.inf for _, rows in group),
        "best_score": median(
            max((row["score"] for row in rows), default=-math.inf) for _, rows in group
        ),
        "outcomes": [end["outcome"] for end, _ in group],
    }
    for name in ("last_score", "best_score"):
        out[name] = _finite(out[name])
    for unit in UNITS:
        each = [
            math.inf if i is None else float(rows[i][unit])
            for i, (_, rows) in zip(at, group, strict=True)
        ]
        out[unit] = {
            "median": _finite(median(each)),
            "low": _finite(min(each)),
            "high": _finite(max(each)),
            "each": [_finite(value) for value in each],
            "spent": [
                float(end[unit]) for end, _ in group
            ],  # what a run that never got there has used
        }
    return out


def _levels(
    runs: Sequence[Finished], grid: Sequence[tuple[int, float]], level: float
) -> list[dict[str, Any]]:
    """The cheaper of each side's agents to ``level`` in every cell that either side reaches, and
    their ratio.
    """
    rows = []
    for d, beta in grid:
        here = [
            r
            for r in runs
            if (r[0]["settings"]["beta"], r[0]["settings"]["dimension"]) == (beta, d)
        ]
        groups = {
            name: [run for run in here if run[0]["settings"]["agent"] == name] for name in NAMES
        }
        agents = {name: _agent(group, level) for name, group in groups.items() if group}
        row: dict[str, Any] = {"beta": beta, "dimension": d, "level": level}
        for unit in UNITS:
            for side, names in (("PDE", REGRESSION), ("RL", RL)):
                figures = [agents[name][unit] for name in names if name in agents]
                # who was stopped first might have been there next
                best = min(
                    figures,
                    key=lambda f: min(f["spent"]) if f["median"] is None else f["median"],
                    default=None,
                )
                row[f"{side} {unit}"] = best
        sides = [row[f"{side} {unit}"] for unit in UNITS for side in ("PDE", "RL")]
        if all(sides) and any(figure["median"] is not None for figure in sides):
            rows.append(
                {**row, **{f"ratio {u}": _ratio(row[f"RL {u}"], row[f"PDE {u}"]) for u in UNITS}}
            )
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdict(agents: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Who wins in one unit, a key of ``VERDICTS`` (None where one side has no run), and every ratio
    RL / PDE.

    Who was stopped before the other side got there is not beaten: that the other side alone got
    there is all one can say.
    """
    ratios = {
        f"{rl}/{pde}": _ratio(agents[rl][unit], agents[pde][unit])
        for rl in RL
        for pde in REGRESSION
        if rl in agents and pde in agents
    }
    sides = [[agents[name][unit] for name in side if name in agents] for side in (REGRESSION, RL)]
    if not all(sides):
        return {"winner": None, "ratios": ratios}
    reached = [
        min(math.inf if f["median"] is None else f["median"] for f in side) for side in sides
    ]
    at_least = [
        min(min(f["spent"]) if f["median"] is None else f["median"] for f in side) for side in sides
    ]
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
    top = min(over["spent"]) if top is None else top
    bottom = min(under["spent"]) if bottom is None else bottom
    return {"bound": bound, "ratio": top / bottom}


# --- words


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "never"
    return (
        f"{value:,.0f}"
        if unit == "queries" or value >= 100
        else f"{value:.1f}"
        if value >= 1
        else f"{value:.2f}"
    )


def _sentence(agents: Mapping[str, Any], unit: str, winner: str | None, threshold: float) -> str:
    """One unit of one cell in words: who wins, and everybody's figure against the winner's."""
    order = sorted(
        agents, key=lambda a: math.inf if (m := agents[a][unit]["median"]) is None else m
    )
    best = agents[order[0]][unit]
    if best["median"] is None:
        tried = ", ".join(f"{NAMES[a]} {_score(agents[a]['best_score'])}" for a in order)
        return f"In {UNITS[unit]} nobody reaches {threshold:g} (best scores: {tried})."
    parts = [f"{NAMES[order[0]]} {_amount(best['median'], unit)}"]
    for name in order[1:]:
        figure, ratio = agents[name][unit], _ratio(agents[name][unit], best)
        assert ratio is not None
        if figure["median"] is None:
            within = f"never within {_amount(min(figure['spent']), unit)}"
            some = (
                f", but {agents[name]['reached']} of {len(agents[name]['seeds'])} seeds did"
                if agents[name]["reached"]
                else ""
            )
            over = f" (over {_times(ratio['ratio'])})" if ratio["ratio"] > 1 else ""
            parts.append(f"{NAMES[name]} {within}{some}{over}")
        else:
            parts.append(
                f"{NAMES[name]} {_amount(figure['median'], unit)} ({_times(ratio['ratio'])})"
            )
    return f"{VERDICTS[winner]} in {UNITS[unit]}: {'; '.join(parts)}."


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _score(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2f}"


def markdown(summary: Mapping[str, Any]) -> str:
    """The whole report."""
    goal = f"{summary['threshold']:g}"
    parts = [
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
        _made_with(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell_name(cell: Mapping[str, Any]) -> str:
    low = cell["ceiling"]
    return f"beta {cell['beta']:g}, d {cell['dimension']} (ceiling {low:.3f})"


def _overall(summary: Mapping[str, Any]) -> str:
    """Cells won, in each unit."""
    lines = []
    for unit, winners in summary["wins"].items():
        judged = [winner for winner in winners if winner is not None]
        if not judged:
            continue
        words = {
            "only PDE": "reached by PDE alone",
            "only RL": "reached by RL alone",
            "level": "level",
            "nobody": "reached by nobody",
        }
        line = (
            f"In {UNITS[unit]} PDE wins {judged.count('PDE')} of {len(judged)} cells, RL"
            f" {judged.count('RL')}"
        )
        line += "".join(
            f", {judged.count(key)} {word}" for key, word in words.items() if key in judged
        )
        cells = [
            cell
            for cell, winner in zip(summary["cells"], winners, strict=True)
            if winner in ("RL", "only RL")
        ]
        where = "; ".join(f"beta {cell['beta']:g}, d {cell['dimension']}" for cell in cells)
        lines.append(f"{line}{f'. RL is ahead at {where}' if where else ''}.")
    return " ".join(lines) or "Only one side has run yet: there is nothing to compare."


def _table(summary: Mapping[str, Any]) -> str:
    heads = [
        "beta",
        "d",
        "agent",
        "reached by",
        "reward queries",
        "CPU seconds",
        "last score",
        "best score",
        "outcomes",
    ]
    lines = [heads, ["---"] * len(heads)]
    for cell in summary["cells"]:
        for name, agent in cell["agents"].items():
            reached = f"{agent['reached']} of {len(agent['seeds'])}"
            figures = [_figure(agent[unit], unit) for unit in UNITS]
            scores = [_score(agent["last_score"]), _score(agent["best_score"])]
            outcomes = ", ".join(dict.fromkeys(agent["outcomes"]))
            lines.append(
                [
                    f"{cell['beta']:g}",
                    str(cell["dimension"]),
                    NAMES[name],
                    reached,
                    *figures,
                    *scores,
                    outcomes,
                ]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _level_table(summary: Mapping[str, Any]) -> str:
    heads = [
        "d",
        "beta",
        "score",
        *(f"{side}: {word}" for word in UNITS.values() for side in ("PDE", "RL", "RL / PDE")),
    ]
    lines = [heads, ["---"] * len(heads)]
    signs = {"equals": "", "at least": "over ", "at most": "under "}
    for row in sorted(summary["levels"], key=lambda r: (r["dimension"], -r["beta"], r["level"])):
        line = [str(row["dimension"]), f"{row['beta']:g}", f"{row['level']:g}"]
        for unit in UNITS:
            ratio = row[f"ratio {unit}"]
            line += [_figure(row[f"{side} {unit}"], unit) for side in ("PDE", "RL")]
            line.append(f"{signs[ratio['bound']]}{_times(ratio['ratio'])}" if ratio else "")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(figure: Mapping[str, Any], unit: str) -> str:
    within = f"never in {_amount(min(figure['spent']), unit)}"
    middle = within if figure["median"] is None else _amount(figure["median"], unit)
    if figure["low"] == figure["high"]:
        return middle
    return f"{middle} [{_amount(figure['low'], unit)}, {_amount(figure['high'], unit)}]"


def _references(summary: Mapping[str, Any]) -> str:
    heads = ["beta", "d", "J(0)", "J_ref", "effective share of paths behind J_ref", "ceiling"]
    lines = [heads, ["---"] * len(heads)]
    for cell in summary["cells"]:
        values = [
            f"{cell[name]['mean']:.4f} +- {cell[name]['stderr']:.4f}"
            for name in ("uncontrolled", "bound")
        ]
        cells = [
            f"{cell['beta']:g}",
            str(cell["dimension"]),
            *values,
            f"{cell['ess_share']:.0%}",
            f"{cell['ceiling']:.3f}",
        ]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _made_with(summary: Mapping[str, Any]) -> str:
    lines = ["## Made with", ""]
    lines += [f"- Command: `{command}`" for command in summary["commands"]]
    lines += [
        f"- Hardware: {found['cpu']}, {found['cores']} cores; {found['system']}"
        for found in summary["hardware"]
    ]
    for versions in summary["versions"]:
        lines.append(
            "- Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())
        )
    return "\n".join(lines)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return [
        json.loads(text)
        for text in dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)
    ]


# --- picture


def draw(summary: Mapping[str, Any]) -> Any:
    """Reward queries above, CPU seconds below, a column for each dimension; what was never reached
    has open triangles.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator

    dimensions = sorted({cell["dimension"] for cell in summary["cells"]})
    agents = [name for name in NAMES if any(name in cell["agents"] for cell in summary["cells"])]
    figure = Figure(
        figsize=(max(8.0, 2.0 + 3.7 * len(dimensions)), 7.5), dpi=110, layout="constrained"
    )
    panels = figure.subplots(2, len(dimensions), sharex=True, sharey="row", squeeze=False)
    for row, unit in zip(panels, UNITS, strict=True):
        for axes, d in zip(row, dimensions, strict=True):
            cells = [cell for cell in summary["cells"] if cell["dimension"] == d]
            for i, name in enumerate(agents):
                aside = 1.06 ** (
                    i - (len(agents) - 1) / 2
                )  # so that equal figures do not hide each other
                _draw_agent(
                    axes,
                    [
                        (aside / c["beta"], c["agents"][name][unit])
                        for c in cells
                        if name in c["agents"]
                    ],
                    name,
                )
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
    handles = [
        Line2D([], [], color=_colour(name), marker="o", label=NAMES[name]) for name in agents
    ]
    never = Line2D(
        [],
        [],
        color="0.3",
        marker="^",
        markersize=9,
        markerfacecolor="none",
        linestyle="",
        label="never within this",
    )
    figure.legend(
        handles=[*handles, never], loc="outside lower center", ncols=len(handles) + 1, fontsize=9
    )
    figure.suptitle(
        f"girsanov/GaussianMixture-v0: what a score of {summary['threshold']:g} costs (lower is"
        " better)"
    )
    return figure


def _colour(name: str) -> str:
    return f"C{list(NAMES).index(name)}"


def _draw_agent(axes: Any, points: Sequence[tuple[float, Mapping[str, Any]]], name: str) -> None:
    """Medians joined by a line; ranges over the seeds that got there; open triangles where the
    median seed did not.
    """
    points = sorted(points, key=lambda point: point[0])
    heights = [
        max(min(f["spent"]) if f["median"] is None else f["median"], 1e-3) for _, f in points
    ]
    axes.plot([x for x, _ in points], heights, color=_colour(name), linewidth=1.2, alpha=0.5)
    for (x, figure), height in zip(points, heights, strict=True):
        never = figure["median"] is None
        style = (
            {"marker": "^", "markersize": 9, "markerfacecolor": "none"}
            if never
            else {"marker": "o", "markersize": 6}
        )
        axes.plot(
            [x],
            [height],
            color=_colour(name),
            linestyle="",
            label="never" if never else "reached",
            **style,
        )
        reached = [max(value, 1e-3) for value in figure["each"] if value is not None]
        if reached and len(figure["each"]) > 1:
            axes.vlines(
                x,
                min(reached),
                max([*reached, height]),
                color=_colour(name),
                linewidth=2,
                alpha=0.6,
            )
