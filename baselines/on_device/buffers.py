"""Stable-baselines3's buffers with tensors on the model's device in the place of NumPy's arrays.

Same rows, same random numbers, same batches: to the bit on a CPU. Batches are gathered where they
are, so that only their indices travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples
from torch import Tensor

from .lanes import tensor

_ROLLOUT = ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages")
#: What batches hold, in SB3's order.
_BATCH = ("observations", "actions", "values", "log_probs", "advantages", "returns")
_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class DeviceRolloutBuffer(RolloutBuffer):
    """PPO's rollout; ``held`` has its tensors ``(buffer_size, n_envs, ...)``."""

    held: dict[str, Tensor]

    def reset(self) -> None:
        """See RolloutBuffer."""
        shape, device = (self.buffer_size, self.n_envs), self.device
        self.held = {name: torch.zeros(shape, device=device) for name in _ROLLOUT}
        self.held["observations"] = torch.zeros((*shape, *self.obs_shape), device=device)
        self.held["actions"] = torch.zeros((*shape, self.action_dim), device=device)
        self.generator_ready = False
        BaseBuffer.reset(self)

    @property
    def values(self) -> np.ndarray:  # type: ignore[override]
        """For PPO's log, on the host."""
        return self.held["values"].cpu().numpy()

    @property
    def returns(self) -> np.ndarray:  # type: ignore[override]
        """For PPO's log, on the host."""
        return self.held["returns"].cpu().numpy()

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: Any,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """See RolloutBuffer; tensors and lanes' dicts are taken, too."""
        row = {"observations": obs, "actions": action, "rewards": reward, "values": value}
        row |= {"episode_starts": episode_start, "log_probs": log_prob}
        for name, part in row.items():
            place = self.held[name][self.pos]
            place.copy_(tensor(part, self.device).reshape(place.shape))
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """See RolloutBuffer."""
        held, last = self.held, last_values.detach().flatten()
        gained = torch.zeros_like(last)
        goes_on = 1.0 - tensor(dones, self.device).float()
        for step in reversed(range(self.buffer_size)):
            value = held["values"][step]
            delta = held["rewards"][step] + self.gamma * last * goes_on - value
            gained = delta + self.gamma * self.gae_lambda * goes_on * gained
            held["advantages"][step] = gained
            last, goes_on = value, 1.0 - held["episode_starts"][step]
        held["returns"] = held["advantages"] + held["values"]

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """See RolloutBuffer."""
        rows = self.buffer_size * self.n_envs
        order = tensor(np.random.permutation(rows), self.device)
        if not self.generator_ready:
            for name in _BATCH:
                self.held[name] = self.swap_and_flatten(self.held[name])  # type: ignore[arg-type,assignment]
            self.generator_ready = True
        for chosen in order.split(rows if batch_size is None else batch_size):
            observations, actions, *numbers = (self.held[name][chosen] for name in _BATCH)
            yield RolloutBufferSamples(observations, actions, *(n.flatten() for n in numbers))


class DeviceReplayBuffer(ReplayBuffer):
    """SAC's past steps, each kept by itself; its attributes are tensors.

    Args:
        args: of ReplayBuffer.
        kwargs: of ReplayBuffer; ``optimize_memory_usage`` must be off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.optimize_memory_usage:
            raise ValueError("optimize_memory_usage must be False on the device; got True")
        for name in _REPLAY:
            held: Any = torch.zeros(getattr(self, name).shape, device=self.device)
            setattr(self, name, held)

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: Any,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """See ReplayBuffer; tensors and lanes' dicts are taken, too."""
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        parts = (obs, next_obs, action, reward, done, cut)
        for name, part in zip(_REPLAY, parts, strict=True):
            place: Any = getattr(self, name)[self.pos]
            place.copy_(tensor(part, self.device).reshape(place.shape))
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> ReplayBufferSamples:
        if env is not None:
            raise ValueError("env must be None: what is kept on the device is not normalised")
        lanes = np.random.randint(0, high=self.n_envs, size=len(batch_inds))
        at = tensor(batch_inds, self.device), tensor(lanes, self.device)
        held: Any = [getattr(self, name)[at] for name in _REPLAY]
        observations, later, actions, rewards, dones, cut = held
        over = (dones * (1 - cut)).reshape(-1, 1)
        return ReplayBufferSamples(observations, actions, later, over, rewards.reshape(-1, 1))
