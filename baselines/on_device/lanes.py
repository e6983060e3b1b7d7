"""Lanes whose observations and rewards stay tensors on the problem's device.

Stable-baselines3's loops turn arrays into tensors, but pass on a dict as it is. So what a learner
sees is a dict of one tensor here, ``{SEEN: (num_envs, size)}``, while its space is still the box of
that tensor. Nothing is copied to the host within an episode but what those loops copy themselves:
the actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import get_device
from torch import Tensor

from ...envs.env import device_of, finite_observation
from ..vec_env import ProblemVecEnv

#: The one key of what is seen.
SEEN = "seen"


def tensor_of(seen: Any) -> Any:
    """The tensor of what lanes on the device show; anything else as it is."""
    return seen[SEEN] if isinstance(seen, dict) else seen


class DeviceVecEnv(ProblemVecEnv):
    """A ``ProblemVecEnv`` for the policies in ``kl_policies`` and the buffers beside this module.

    Numbers are those of ``ProblemVecEnv``. States that are no numbers are found when the episode
    ends: to look at every step would make a GPU wait.
    """

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions to the device."""
        given = self._lanes._given(actions).flatten(1)
        self._actions = given.to(device_of(self.problem), non_blocking=True)

    def _shown(self, observation: Tensor) -> Any:
        return {SEEN: observation}

    def _paid(self, reward: Tensor) -> Any:
        return reward.float()

    def _look(self, observation: Tensor, last: Tensor | None) -> None:
        if last is not None:
            finite_observation(self.problem, self.problem.horizon, last)

    def _rows(self, observation: Tensor) -> list[Any]:
        return [{SEEN: row} for row in observation.unbind()]


def device_for(venv: ProblemVecEnv, device: torch.device | str) -> torch.device:
    """The device of the lanes' problem.

    Raises:
        ValueError: ``device``, where the networks are to be, is another one.
    """
    found = device_of(venv.problem)
    if str(device) != "auto" and get_device(device).type != found.type:
        wanted = f"device must be the problem's, {found}, with on_device=True"
        raise ValueError(f"{wanted}; got {device}")
    return found


def tensor(value: Any, device: torch.device) -> Tensor:
    """What a loop hands over, on the device: lanes' dicts, tensors and arrays."""
    value = tensor_of(value)
    if not isinstance(value, Tensor):
        value = torch.from_numpy(np.asarray(value))
    return value.detach().to(device, non_blocking=True)
