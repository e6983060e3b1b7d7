"""The policy of our agents: a control ``a(k, x)`` of a Problem in stable-baselines3's clothes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from ..envs.env import unobserve
from ..envs.problem import Problem, dtype_of
from .checks import finite


class ControlPolicy(BasePolicy):
    """An SB3 policy around a control.

    A subclass writes ``control`` and keeps its parameters as modules.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
    ) -> None:
        super().__init__(observation_space, action_space)
        # A list hides the problem from nn.Module: its networks are frozen and are not this policy's
        # parameters.
        self._problem = [problem]
        self._dtype: torch.dtype | None = None
        self.action_bound = float(np.max(action_space.high))

    #: Whether several processes may share the paths of each gradient.
    shares_paths: ClassVar[bool] = False

    @property
    def problem(self) -> Problem:
        """The problem that the control steers."""
        return self._problem[0]

    @problem.setter
    def problem(self, problem: Problem) -> None:
        self._problem, self._dtype = [problem], None

    @abstractmethod
    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Controls ``(n, *noise_shape)`` in noise units, within the action bound.

        ``k`` an int or one step per row.
        """

    def training_state(self) -> dict[str, Any]:
        """What lives on from round to round beside parameters and buffers (``trees``)."""
        return {}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """Take over what ``training_state`` gave."""

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        # float64 is taken too, as SB3's own policies take it
        k, x = unobserve(self.problem, finite("observation", observation).float())
        x = x.to(self._state_dtype())
        # At the horizon there is nothing left to steer; the last step's control is as good as any.
        a = self.control(k.clamp(max=self.problem.horizon - 1), x)
        return finite("control (the agent has diverged?)", a).flatten(1).float()

    def _state_dtype(self) -> torch.dtype:
        """Of the problem's states, which observations are not: they are float32."""
        if self._dtype is None:
            self._dtype = dtype_of(self.problem)
        return self._dtype

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        """Same as ``_predict``."""
        return self._predict(observation, deterministic)
