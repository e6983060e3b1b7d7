"""What a score costs, in all environments of a comparison at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plots import name_of
from ..spec import base_of
from .tables import table

_TOLD = (
    "Until a learning curve is at a level, linear between two evaluations: median reward queries"
    " over the runs{calls}. A run that never is there counts as one that costs more than any other;"
    " where half of them or more are such, it says in how many queries they were not. The first"
    " evaluation at the level counts, though its noise may have lifted it."
)

_DRAWN = (
    "Dots are medians, lines reach from the cheapest run to the dearest, and a hollow triangle"
    " stands where a budget ended without the level: a large one for the median, small ones for"
    " single runs."
)


def told(summary: dict[str, Any]) -> list[str]:
    """Paragraphs, tables and the picture of ``report.report``'s summary, as Markdown; none where
    there is one environment, or no level was asked for.
    """
    environments = summary["environments"]
    if len(environments) < 2 or not (asked := environments[0].get("levels")):
        return []
    if not (agents := agents_of(environments)):
        return []
    units = units_of(environments)
    in_brackets = {"model_evaluations": "model evaluations", "cpu_seconds": "CPU seconds"}
    calls = " and ".join(in_brackets.get(unit, unit) for unit in units[1:])
    parts = ["## What a score costs", _TOLD.format(calls=f" (in brackets {calls})")]
    for name, path in summary.get("pictures", {}).items():
        parts += [f"![{name}]({path})", _DRAWN]
    heads = ["environment", *map(name_of, agents)]
    for at, line in enumerate(asked):
        rows = [
            [label, *(_cell(env, costs, agent, units) for agent in agents)]
            for label, env, costs in zip(
                labels(environments), environments, costs_of(environments, at), strict=True
            )
        ]
        parts += [f"### {level_of(environments, line['level'])}", table(heads, rows)]
    return parts


def agents_of(environments: Sequence[dict[str, Any]]) -> list[str]:
    """All that have a curve somewhere, in the order of the reports."""
    return list(
        dict.fromkeys(agent for env in environments for agent in env["levels"][0]["agents"])
    )


def units_of(environments: Sequence[dict[str, Any]]) -> list[str]:
    """Reward queries, and what else learning costs, as far as every run has counted it: seconds
    only where CPU seconds are not known.
    """
    known = [
        set(costs) for env in environments for costs in env["levels"][0]["agents"].values() if costs
    ]
    shared = set.intersection(*known) if known else set()
    seconds = "cpu_seconds" if "cpu_seconds" in shared else "seconds"
    return ["reward_queries", *(["model_evaluations"] * ("model_evaluations" in shared)), seconds]


def labels(environments: Sequence[dict[str, Any]]) -> list[str]:
    """Short names: notes alone, where that is all in which they differ."""
    names = [env["env"] for env in environments]
    alike = len({base_of(name) for name in names}) == 1
    return [
        name.partition("#")[2] if alike and "#" in name else name_of(name).removeprefix("girsanov/")
        for name in names
    ]


def quantity_of(environments: Sequence[dict[str, Any]]) -> str:
    """What the levels are of: of the objective where no environment has a score; else one without
    takes no part.
    """
    compared = {env["compared"] for env in environments}
    return compared.pop() if len(compared) == 1 else "score"


def costs_of(environments: Sequence[dict[str, Any]], at: int) -> list[dict[str, Any] | None]:
    """Of each environment that takes part what its agents spend until the level at that place."""
    quantity = quantity_of(environments)
    return [
        env["levels"][at]["agents"] if env["compared"] == quantity else None for env in environments
    ]


def level_of(environments: Sequence[dict[str, Any]], level: float) -> str:
    """A level in words."""
    return f"{quantity_of(environments).capitalize()} {level:g}"


def _cell(
    env: dict[str, Any], known: dict[str, Any] | None, agent: str, units: Sequence[str]
) -> str:
    """What an agent spends until one level, in words; nothing where it has no run."""
    if agent not in {line["agent"] for line in env["agents"]}:
        return ""
    if known is None:
        return "no score"
    costs = known.get(agent)
    if costs is None:
        return "no curve"
    queries, runs = costs["reward_queries"], len(costs["reward_queries"]["each"])
    if queries["median"] is None:
        text = f"never in {np.median(queries['ends']):,.0f}"
    else:
        calls = [f"{costs[unit]['median']:,.0f}" for unit in units[1:-1]]
        more = "; ".join([*calls, f"{costs[units[-1]]['median']:,.1f} s"])
        text = f"{queries['median']:,.0f} ({more})"
    reached = runs - queries["each"].count(None)
    return text if reached == runs else f"{text}: {reached} of {runs} runs reached it"
