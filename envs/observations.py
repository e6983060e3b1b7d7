"""What an observation is: the state and the time, or the features that PDE and PI-FT make of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from .checks import check_one_of
from .features import Standardise, encode, time_features
from .problem import Problem, device_of

#: Observations are unbounded in effect; a finite number keeps every environment checker content,
#: and its square does not overflow in wrappers that normalise.
LARGE = 1e18
#: Uncontrolled paths whose states give the features' centre and scale; their rewards are not seen.
_PATHS, _SEED = 64, 12345


class Observation(ABC):
    """One kind of observation of a problem; call it with a step and states.

    Args:
        problem: whose states are seen.
    """

    name: ClassVar[str]

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def __call__(self, k: int, x: Tensor) -> Tensor:
        """Observations ``(n, size)`` in float32 of states ``(n, *state_shape)`` at step ``k``."""

    @property
    @abstractmethod
    def space(self) -> gym.spaces.Box:
        """The box of observations of one environment."""

    def of(self, problem: Problem) -> Observation:
        """The same observation, in the same units, of another copy of the problem."""
        other = copy.copy(self)
        other.problem = problem
        return other


class StateObservation(Observation):
    """The state, flattened, followed by the time ``k / T`` in [0, 1]."""

    name = "state"

    def __call__(self, k: int, x: Tensor) -> Tensor:
        """See Observation; ``(n, state size + 1)``."""
        return torch.constant_pad_nd(x.flatten(1).float(), (0, 1), k / self.problem.horizon)

    @property
    def space(self) -> gym.spaces.Box:
        """See Observation."""
        low = np.full(int(np.prod(self.problem.state_shape)) + 1, -LARGE, np.float32)
        low[-1] = 0.0
        high = -low
        high[-1] = 1.0
        return gym.spaces.Box(low, high, dtype=np.float32)


class FeatureObservation(Observation):
    """The terminal estimate where the problem offers one, else the state, standardised; and smooth
    features of the time. It is what PDE and PI-FT are given.

    Centre and scale come from 64 uncontrolled paths of a fixed seed: every learner of a problem
    sees the same, and no reward is asked for.
    """

    name = "features"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        generator = torch.Generator(device_of(problem)).manual_seed(_SEED)
        with torch.no_grad():
            states = uncontrolled_states(problem, _PATHS, generator)
            inputs = torch.cat([encode(problem, k, x).float() for k, x in enumerate(states)])
        self._standardise = Standardise(inputs.shape[1]).to(inputs.device)
        self._standardise.fit(inputs, apart=not hasattr(problem, "terminal_estimate"))

    @torch.no_grad()
    def __call__(self, k: int, x: Tensor) -> Tensor:
        """See Observation; ``(n, size of the estimate + 9)``."""
        inputs = encode(self.problem, k, x).float()
        time = torch.full((1,), k / self.problem.horizon, device=inputs.device)
        return torch.cat([self._standardise(inputs), time_features(time, len(inputs))], 1)

    @property
    def space(self) -> gym.spaces.Box:
        """See Observation."""
        size = len(self._standardise.centre) + time_features(torch.zeros(1), 1).shape[1]
        return gym.spaces.Box(-LARGE, LARGE, (size,), dtype=np.float32)


def uncontrolled_states(problem: Problem, n: int, generator: torch.Generator) -> Tensor:
    """States of ``n`` uncontrolled paths at steps 0 to T - 1, ``(T, n, *state_shape)``; no reward
    is asked for.
    """
    x = problem.initial(n, generator)
    states = [x]
    for k in range(problem.horizon - 1):
        shape = (n, *problem.noise_shape)
        z = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        x = problem.transition(k, x, z)
        states.append(x)
    return torch.stack(states)


#: By the name that environments take as ``observation``.
OBSERVATIONS: dict[str, type[Observation]] = {
    kind.name: kind for kind in (StateObservation, FeatureObservation)
}


def observation_of(name: str, problem: Problem) -> Observation:
    """The observation of that name.

    Raises:
        ValueError: an unknown name.
    """
    check_one_of("observation", name, OBSERVATIONS)
    return OBSERVATIONS[name](problem)
