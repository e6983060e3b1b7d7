"""What PPO and SAC consist of, and what they are between two rounds: all from which they go on as
if they had never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from ..agents.checkpoint import set_state_of, state_of
from .kl_policies import MeanPriced, PricedReplayBuffer, RatioKept
from .on_device.buffers import DeviceReplayBuffer
from .on_device.lanes import SEEN, DeviceVecEnv, tensor_of
from .vec_env import ProblemVecEnv

#: Optimizers by the name of what holds them, and tensors that are no module's.
_OPTIMIZERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "PPO": {"policy.optimizer": lambda model: model.policy.optimizer},
    "SAC": {
        "actor.optimizer": lambda model: model.actor.optimizer,
        "critic.optimizer": lambda model: model.critic.optimizer,
        "ent_coef_optimizer": lambda model: model.ent_coef_optimizer,
    },
}
_LOOSE = {"PPO": (), "SAC": ("log_ent_coef", "ent_coef_tensor")}
#: What both count.
COUNTERS = (
    *("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps"),
    "_num_timesteps_at_start",
)
_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_COUNTERS = (*COUNTERS, "_current_progress_remaining")
_BUFFERS = (ReplayBuffer, NStepReplayBuffer, PricedReplayBuffer, DeviceReplayBuffer)
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
        seen: Any = state["seen"][name]
        if name == "_last_obs" and isinstance(lanes, DeviceVecEnv):
            seen = {SEEN: seen[SEEN].to(model.device)}
        shown, held = tensor_of(seen), tensor_of(getattr(model, name))
        if held is not None and shown is not None and shown.shape != held.shape:
            raise ValueError(f"{name} has the shape {tuple(shown.shape)}")
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
    return env if type(env) in (ProblemVecEnv, DeviceVecEnv) else None


def buffer_rows(buffer: Any) -> dict[str, np.ndarray]:
    """SAC's past steps by what they hold, as far as its buffer is filled."""
    filled = buffer.buffer_size if buffer.full else buffer.pos
    held = {key: getattr(buffer, key)[:filled] for key in rows_of(buffer)}
    return {key: t.cpu().numpy() if isinstance(t, Tensor) else t for key, t in held.items()}


def fill_buffer(buffer: Any, rows: Mapping[str, np.ndarray], pos: Any, full: Any) -> None:
    """Put ``buffer_rows`` back, the next of them to ``pos``.

    Raises:
        ValueError: they are of another shape, or not filled to ``pos``.
    """
    filled = len(rows["rewards"])
    for key in rows_of(buffer):
        array, there = rows[key], getattr(buffer, key)
        if len(array) != filled or filled > len(there) or array.shape[1:] != there.shape[1:]:
            raise ValueError(f"buffer/{key} has the shape {array.shape}")
        there[:filled] = torch.from_numpy(array) if isinstance(there, Tensor) else array
    buffer.pos, buffer.full = whole("pos", pos), full is True
    if buffer.pos >= buffer.buffer_size or filled != (
        buffer.buffer_size if buffer.full else buffer.pos
    ):
        raise ValueError(
            f"buffer must be filled to its position; got {pos}, full {full}, and {filled} rows"
        )


def rows_of(buffer: Any) -> tuple[str, ...]:
    """What SAC's buffer holds of each step, by name."""
    return (*_BUFFER, "prices") if isinstance(buffer, PricedReplayBuffer) else _BUFFER


def parts_of(model: Any) -> dict[str, Any]:
    """A model's policy and its optimizers, by name."""
    found = {key: of(model) for key, of in _OPTIMIZERS[type(model).__name__].items()}
    optimizers = {key: optimizer for key, optimizer in found.items() if optimizer is not None}
    return {"policy": model.policy, **optimizers}


def loose_tensors(model: Any) -> dict[str, Tensor]:
    """A model's tensors that belong to no module, by name."""
    held = {key: getattr(model, key, None) for key in _LOOSE[type(model).__name__]}
    return {key: tensor for key, tensor in held.items() if tensor is not None}


def whole(name: str, value: Any) -> int:
    """``value`` itself; a ValueError unless it is a whole number."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number; got {str(value)[:100]}")
    return value
