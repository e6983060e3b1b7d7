"""What agents check at the door: their arguments, and the wrappers of their environments."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless ``value`` is a number from ``low`` to ``high``."""
    _check(name, value, low, high, Real, "")


def check_whole(name: str, value: Any, low: int) -> None:
    """Raise a ValueError unless ``value`` is a whole number of at least ``low``."""
    _check(name, value, low, math.inf, Integral, "a whole number of ")


def _check(name: str, value: Any, low: float, high: float, kind: Any, noun: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {noun}{allowed}; got {value!r}")


def check_names(owner: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Raise a ValueError unless all names ``given`` are arguments that ``owner`` takes."""
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"arguments of {owner} must be among {', '.join(allowed)}; got {name!r}{hint}"
            )


def warn_of_temperature(path: Any, learnt: Any, given: float) -> None:
    """Say so where a saved agent learnt at another temperature than it is loaded into.

    Old files do not tell theirs.
    """
    if isinstance(learnt, (int, float)) and not math.isclose(learnt, given, rel_tol=1e-6):
        warnings.warn(
            f"{path} was learnt at temperature {learnt:g} and is loaded into {given:g}, at which"
            " another policy is optimal; more learning takes it there",
            UserWarning,
            stacklevel=3,
        )


def warn_of_wrappers(env: Any) -> None:
    """Name the wrappers that change what ``predict`` is given or gives.

    The agent learns the bare problem and does not see them.
    """
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append("VecNormalize")
        env = env.venv
    lane = env.envs[0] if isinstance(env, DummyVecEnv) else None
    while isinstance(lane, gym.Wrapper):
        if isinstance(
            lane,
            (
                gym.ObservationWrapper,
                gym.ActionWrapper,
                gym.RewardWrapper,
                gym.wrappers.NormalizeReward,
            ),
        ):
            found.append(type(lane).__name__)
        lane = lane.env
    if found:
        unseen = (
            "the agent learns the problem behind the environment and does not see what these"
            " wrappers change"
        )
        warnings.warn(f"{unseen}: {', '.join(found)}", stacklevel=3)
