"""Whether a budget is enough for an agent that learns in rounds."""

from __future__ import annotations

import math
from typing import Any

from ..spec import RunSpec

#: The first has no policy to follow, and each of the others learns from those before.
LEAST_ROUNDS = 4


def rounds_of(model: Any, episodes: float) -> int | None:
    """Rounds in which an agent gathers so many episodes; None where it knows no rounds."""
    each = getattr(model, "n_trajectories", None)
    if each is None:
        return None
    return 1 + max(0, math.ceil((episodes - getattr(model, "n_uncontrolled", each)) / each))


def few_rounds(model: Any, spec: RunSpec) -> str:
    """What to say of a budget that gives an agent fewer than ``LEAST_ROUNDS``; nothing, if not."""
    if spec.budget.unit == "seconds" or not hasattr(model, "problem"):
        return ""
    episodes = spec.budget.amount
    if spec.budget.unit == "env_steps":
        episodes /= model.problem.horizon
    rounds = rounds_of(model, episodes)
    if rounds is None or rounds >= LEAST_ROUNDS:
        return ""
    each = model.n_trajectories
    first = getattr(model, "n_uncontrolled", each)
    return (
        f"warning: {episodes:,.0f} episodes are {rounds} round{'s' * (rounds != 1)} of"
        f" {spec.agent} ({first} episodes, then {each} each time): few to learn from. Take"
        f" {first + (LEAST_ROUNDS - 1) * each:,} or more, or a smaller n_trajectories"
    )
