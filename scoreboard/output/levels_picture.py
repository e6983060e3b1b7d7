"""The picture of what a score costs in all environments of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plots import COST_WORDS, colours_of, empty_figure, name_of, words
from ..spec import base_of
from .levels import agents_of, costs_of, labels, level_of, units_of

#: Who never is at a level: hollow, and points to where that would be.
_NEVER = {"marker": ">", "markerfacecolor": "white", "linestyle": ""}


def draw(environments: Sequence[dict[str, Any]]) -> Any | None:
    """A row of panels a level, a panel a cost, a line of each an environment: dots are medians over
    runs, thin lines reach from the cheapest run to the dearest. A hollow triangle stands where a
    budget ended without the level.

    Args:
        environments: of ``report.report``'s summary, with their ``levels``.

    Returns:
        The figure; None where no agent has a curve.
    """
    agents, units = agents_of(environments), units_of(environments)
    if not agents:
        return None
    asked = [line["level"] for line in environments[0]["levels"]]
    tall = 0.115 * (len(agents) + 1) * len(environments)
    figure = empty_figure(1.8 + 3.3 * len(units), 1.3 + len(asked) * (tall + 0.4))
    panels = figure.subplots(len(asked), len(units), sharex="col", sharey=True, squeeze=False)
    colours = colours_of(agents)
    for at, level in enumerate(asked):
        panels[at, 0].set_title(words(level_of(environments, level)), loc="left")
        for axes, unit in zip(panels[at], units, strict=True):
            for i, known in enumerate(costs_of(environments, at)):
                if i % 2:
                    axes.axhspan(i - 0.5, i + 0.5, color="0.5", alpha=0.08, linewidth=0)
                for j, agent in enumerate(agents):
                    costs = (known or {}).get(agent)
                    if costs is not None:
                        y = i + (j - (len(agents) - 1) / 2) * 0.8 / len(agents)
                        _one(axes, y, costs[unit], colours[agent])
            axes.grid(alpha=0.2, axis="x")
    for column, unit in zip(panels.T, units, strict=True):
        column[-1].set_xlabel(COST_WORDS[unit])
        _scale(column)
    first = panels[0, 0]
    first.set_yticks(range(len(environments)), [words(label) for label in labels(environments)])
    first.set_ylim(len(environments) - 0.5, -0.5)  # the first on top
    for agent in agents:
        first.plot([], [], "o", color=colours[agent], label=words(name_of(agent)))
    first.plot([], [], color="0.3", label="never within this", **_NEVER)
    handles, said = first.get_legend_handles_labels()
    figure.legend(handles, said, loc="outside lower center", ncols=min(6, len(said)))
    figure.suptitle(words(_title(environments)))
    return figure


def _one(axes: Any, y: float, costs: dict[str, Any], colour: str) -> None:
    """An agent in an environment, by one cost."""
    ends = np.array(costs["ends"])
    never = np.array([cost is None for cost in costs["each"]])
    spent = np.where(never, ends, [cost or 0.0 for cost in costs["each"]])
    axes.plot([spent.min(), spent.max()], [y, y], color=colour, linewidth=1.2, alpha=0.6)
    if costs["median"] is None:
        axes.plot([np.median(ends)], [y], color=colour, markersize=7, **_NEVER)
        return
    axes.plot(spent[never], np.full(never.sum(), y), color=colour, markersize=4, **_NEVER)
    axes.plot([costs["median"]], [y], "o", color=colour, markersize=6)


def _scale(column: Sequence[Any]) -> None:
    """Logarithmic, in plain numbers; who begins at the level has spent nothing."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = column[-1]  # whose scale is that of all
    ends = np.array([panel.dataLim.intervalx for panel in column])
    low, high = ends.min(), ends.max()
    if low <= 0:
        least = min(panel.dataLim.minposx for panel in column)
        axes.set_xscale("symlog", linthresh=least if least < high else 1.0)
        axes.set_xlim(left=0)
    else:
        axes.set_xscale("log")
        subs = (1, 2, 5) if high < 50 * low else (1, 3) if high < 1000 * low else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))


def _title(environments: Sequence[dict[str, Any]]) -> str:
    bases = {base_of(env["env"]) for env in environments}
    where = f"{bases.pop()}: what" if len(bases) == 1 else "What"
    return f"{where} a score costs (left is better)"
