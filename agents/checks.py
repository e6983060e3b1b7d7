"""What agents check at the door: their arguments, and the wrappers of their environments."""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecVideoRecorder,
)
from torch import Tensor

from ..envs.checks import (
    check_device,
    check_flag,
    check_integer,
    check_keywords,
    check_seed,
    shown,
)
from ..envs.checks import check_range as check_range
from ..envs.checks import check_whole as check_whole
from ..envs.env import problem_of


def check_learning(
    total_timesteps: Any, log_interval: Any, name: Any, reset: Any, progress_bar: Any
) -> int:
    """``learn``'s total as an int, or a ValueError: 1e5 is a number of steps, NaN and 1e30 are
    none.
    """
    if isinstance(total_timesteps, float) and total_timesteps.is_integer():
        total_timesteps = int(total_timesteps)
    check_integer("total_timesteps", total_timesteps, 0)
    if log_interval is not None:
        check_integer("log_interval", log_interval, 0)
    if not (name is None or isinstance(name, str)):
        raise ValueError(f"tb_log_name must be a name, or None; got {shown(name)}")
    check_flag("reset_num_timesteps", reset)
    check_flag("progress_bar", progress_bar)
    return int(total_timesteps)


def check_shared(
    n_trajectories: Any,
    anneal: Any,
    policy_kwargs: Any,
    tensorboard_log: Any,
    verbose: Any,
    seed: Any,
    device: Any,
) -> None:
    """Raise a ValueError unless these are what every agent takes."""
    check_whole("n_trajectories", n_trajectories, 2)
    check_flag("anneal", anneal)
    check_keywords("policy_kwargs", policy_kwargs)
    if not (tensorboard_log is None or isinstance(tensorboard_log, (str, os.PathLike))):
        raise ValueError(f"tensorboard_log must be a folder, or None; got {shown(tensorboard_log)}")
    check_whole("verbose", verbose, 0)
    check_seed("seed", seed)
    check_device("device", device, auto=True)


def check_rounds(
    n_uncontrolled: Any, gradient_steps: Any, adaptive: Any, policy_kwargs: Any
) -> None:
    """Raise a ValueError unless these are what rounds of PDE take."""
    check_whole("n_uncontrolled", n_uncontrolled, 2)
    check_whole("gradient_steps", gradient_steps, 1)
    check_flag("adaptive", adaptive)
    check_keywords("policy_kwargs", policy_kwargs)


def check_fit(gradient_steps: Any, progress_bar: Any) -> None:
    """Raise a ValueError unless these are what ``PDE.fit`` takes."""
    check_whole("gradient_steps", gradient_steps, 1)
    check_flag("progress_bar", progress_bar)


def finite(name: str, values: Tensor) -> Tensor:
    """``values`` themselves, or a ValueError: of NaN nothing can be predicted."""
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{name} must be finite; got {bad} NaN or infinite of {values.numel()} values"
        )
    return values


def check_names(owner: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Raise a ValueError unless all names ``given`` are arguments that ``owner`` takes."""
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"arguments of {owner} must be among {', '.join(allowed)}; got {name!r}{hint}"
            )


#: Wrappers that watch, and change nothing.
_VEC_HARMLESS = (VecMonitor, VecCheckNan, VecVideoRecorder)
_HARMLESS = (
    *(Monitor, gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker),
    *(gym.wrappers.RecordEpisodeStatistics, gym.wrappers.RecordVideo, gym.wrappers.Autoreset),
    *(gym.wrappers.RenderCollection, gym.wrappers.HumanRendering),
    gym.wrappers.vector.RecordEpisodeStatistics,
    *([gym.wrappers.vector.RecordVideo] if hasattr(gym.wrappers.vector, "RecordVideo") else []),
)


def seen(env: Any) -> Any:
    """``env`` itself, its wrappers told of once it is one of ours."""
    if isinstance(env, (gym.Env, gym.vector.VectorEnv, VecEnv)):
        problem_of(env)
        warn_of_wrappers(env)
    return env


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
        if not isinstance(env, _VEC_HARMLESS):
            found.append(type(env).__name__)
        env = env.venv
    lane = env.envs[0] if isinstance(env, DummyVecEnv) else env
    while isinstance(lane, (gym.Wrapper, gym.vector.VectorWrapper)):
        if not isinstance(lane, _HARMLESS):
            found.append(type(lane).__name__)
        lane = lane.env
    if found:
        unseen = (
            "the agent learns the problem behind the environment and does not see what these"
            " wrappers change"
        )
        warnings.warn(f"{unseen}: {', '.join(found)}", stacklevel=4)
