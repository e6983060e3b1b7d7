"""What samples cost of those that learn nothing and pay when they draw, in words."""

from __future__ import annotations

from typing import Any

from ..intervals import interval
from ..plots import name_of

_HEAD = "Drawn, not learnt, with a KL that is no less than the true one. A sample costs:"


def told(agents: list[dict[str, Any]]) -> list[str]:
    """A paragraph of Markdown on those agents of a report that are drawn; none, if none is."""
    lines = []
    for agent in agents:
        runs = agent["runs"]
        if not all("sampling_model_evaluations" in run for run in runs):
            continue
        calls, queries, seconds = (
            interval([run[f"sampling_{unit}"] for run in runs]).iqm
            for unit in ("model_evaluations", "reward_queries", "cpu_seconds")
        )
        lines.append(
            f"- {name_of(agent['agent'])}: {calls:,.0f} model evaluations, {queries:,.0f} reward"
            f" queries, {1000 * seconds:,.1f} CPU milliseconds."
        )
    return ["\n".join([_HEAD, "", *lines])] if lines else []
