"""PPO and SAC between two rounds: all from which they go on as if they had never stopped."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from ..agents.checkpoint import set_state_of, state_of
from .kl_policies import MeanPriced, PricedReplayBuffer, RatioKept
from .sb3_checkpoint import COUNTERS, buffer_rows, fill_buffer, loose_tensors, parts_of
from .vec_env import ProblemVecEnv

_COUNTERS = (*COUNTERS, "_current_progress_remaining")
_BUFFERS = (ReplayBuffer, NStepReplayBuffer, PricedReplayBuffer)
#: What the lanes said last.
_SEEN = ("_last_obs", "_last_episode_starts")
#: What is logged of the last episodes.
_EPISODES = ("ep_info_buffer", "ep_success_buffer")


def resumable(model: Any) -> bool:
    """Whether ``training_state`` holds all of a model: PPO or SAC on our lanes, explored by its
    policy alone.
    """
    if type(model) not in (PPO, SAC) or _lanes(model) is None or model.use_sde:
        return False
    usual = type(getattr(model, "replay_buffer", None)) in (type(None), *_BUFFERS)
    return usual and model.action_noise is None


def training_state(model: Any) -> dict[str, Any]:
    """As ``SavedAgent.training_state``, of a PPO or a SAC: networks, optimizers, counters, lanes,
    and past steps.
    """
    lanes = _lanes(model)
    assert lanes is not None
    state = {
        "networks": {name: state_of(part) for name, part in parts_of(model).items()},
        "loose": loose_tensors(model),
        "counters": {name: getattr(model, name) for name in _COUNTERS},
        "seen": {name: getattr(model, name) for name in _SEEN},
        "lanes": lanes.training_state(),
        "episodes": {name: list(getattr(model, name) or ()) for name in _EPISODES},
        "actions": model.action_space.np_random.bit_generator.state,
    }
    if isinstance(model, SAC):
        buffer: Any = model.replay_buffer
        place = {"pos": buffer.pos, "full": bool(buffer.full)}
        state["buffer"] = {"rows": buffer_rows(buffer), **place}
    return state


def set_training_state(model: Any, state: dict[str, Any]) -> None:
    """Take over what ``training_state`` gave, in a twin made by the same arguments.

    Raises:
        LookupError, RuntimeError, TypeError, ValueError: it is of another model.
    """
    lanes = _lanes(model)
    assert lanes is not None
    for name, part in parts_of(model).items():
        set_state_of(part, state["networks"][name])
    for name, held in loose_tensors(model).items():
        found: Tensor = state["loose"][name]
        if found.shape != held.shape:
            raise ValueError(f"{name} has the shape {tuple(found.shape)}")
        held.data.copy_(found)
    for name in _COUNTERS:
        setattr(model, name, state["counters"][name])
    for name in _SEEN:
        seen: np.ndarray = state["seen"][name]
        held = getattr(model, name)
        if held is not None and seen is not None and seen.shape != held.shape:
            raise ValueError(f"{name} has the shape {seen.shape}")
        setattr(model, name, seen)
    lanes.set_training_state(state["lanes"])
    for name in _EPISODES:
        setattr(model, name, deque(state["episodes"][name], maxlen=model._stats_window_size))
    model.action_space.np_random.bit_generator.state = state["actions"]
    if isinstance(model, SAC):
        fill_buffer(model.replay_buffer, **state["buffer"])


def _lanes(model: Any) -> ProblemVecEnv | None:
    """The lanes that a model learns in; None where something that we don't know is around them."""
    env = model.get_env()
    while isinstance(env, VecEnvWrapper) and type(env) in (MeanPriced, RatioKept):
        env = env.venv
    return env if type(env) is ProblemVecEnv else None
