"""Anybody's learner: a function from an environment to a policy, in the place of an SB3 algorithm.

    def train(env, seed, total_timesteps):         # any of these names, and keyword arguments
        ...                                        # a CleanRL-like script, or a fixed controller
        return policy                              # observations (n, d) -> actions (n, m)

The environment counts what is used of the budget. Evaluation sees no control before training, and
the policy after it: such a learner has no curve in between.
"""

from __future__ import annotations

import inspect
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from ..agents.control import ControlPolicy
from ..envs.env import ProblemEnv, observe


class CountedEnv(ProblemEnv):
    """A ``ProblemEnv`` that counts its steps, and ends a learner that takes more than it has.

    Args:
        env: whose problem and action bound to take.
        limit: steps that it gives; None: no end.
    """

    def __init__(self, env: ProblemEnv, limit: int | None = None) -> None:
        super().__init__(env.problem, env.action_bound)
        self.limit = limit
        self.steps = 0  #: taken so far
        self.episodes = 0  #: finished so far, each of which has seen one terminal reward

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As in ``ProblemEnv``; a ValueError when the budget is spent."""
        if self.limit is not None and self.steps >= self.limit:
            raise ValueError(
                f"the learner must stop by itself at total_timesteps={self.limit}, which it can ask"
                " for by an argument of that name; it took another step"
            )
        result = super().step(action)
        self.steps += 1
        self.episodes += int(result[2])
        return result


class FunctionPolicy(ControlPolicy):
    """A policy that was returned by a function, as a control.

    Args:
        env: that it acts in.
        policy: takes a batch of observations ``(n, d)``, numpy float32, and returns actions ``(n,
            m)``; or has ``predict(observations, deterministic=True)`` as SB3's do; or is a torch
            module, which gets and returns tensors. None: no control.
    """

    def __init__(self, env: ProblemEnv, policy: Any = None) -> None:
        super().__init__(env.observation_space, env.action_space, env.problem)  # type: ignore[arg-type]
        self.acts = [policy]  # a list hides a module from this one's parameters

    @torch.no_grad()
    def control(self, k: Any, x: Tensor) -> Tensor:
        """The policy's actions on the observations of ``x``, clipped to the action bound."""
        (policy,), observations = self.acts, observe(self.problem, k, x).cpu()
        shape = (len(x), int(np.prod(self.problem.noise_shape)))
        if policy is None:
            return x.new_zeros(len(x), *self.problem.noise_shape)
        if hasattr(policy, "predict"):
            actions = policy.predict(observations.numpy(), deterministic=True)[0]
        else:
            actions = policy(
                observations if isinstance(policy, nn.Module) else observations.numpy()
            )
        actions = torch.as_tensor(np.asarray(actions) if not torch.is_tensor(actions) else actions)
        if actions.shape != shape:
            raise ValueError(
                "the policy must return one action for each observation of a batch,"
                f" {shape}; got {tuple(actions.shape)}"
            )
        bound = self.action_bound
        return actions.to(x).clamp(-bound, bound).reshape(len(x), *self.problem.noise_shape)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        raise NotImplementedError("evaluation asks for the control")


class FunctionLearner:
    """What such a function has learned, with as much of an SB3 algorithm as measuring it needs.

    Args:
        policy: what the function returned.
        env: that it had.
        seconds: that it took.
        cpu_seconds: of this process in them.
    """

    n_envs = 1
    device = torch.device("cpu")
    logger = None

    def __init__(self, policy: Any, env: CountedEnv, seconds: float, cpu_seconds: float) -> None:
        self._learned, self._env = policy, env
        self._seconds, self._cpu_seconds = seconds, cpu_seconds
        self.policy = FunctionPolicy(env)
        self.num_timesteps = self.reward_queries = 0
        #: of training that no callback saw
        self.seconds_outside = self.cpu_seconds_outside = 0.0

    def get_env(self) -> CountedEnv:
        """The environment."""
        return self._env

    def learn(
        self, total_timesteps: int, callback: BaseCallback, reset_num_timesteps: bool = True
    ) -> FunctionLearner:
        """Show the callback what has happened: nothing yet, and all."""
        callback.init_callback(self)  # type: ignore[arg-type]
        callback.on_training_start({}, {})
        self.policy = FunctionPolicy(self._env, self._learned)
        self.num_timesteps, self.reward_queries = self._env.steps, self._env.episodes
        self.seconds_outside, self.cpu_seconds_outside = self._seconds, self._cpu_seconds
        callback.on_training_end()
        return self

    def save(self, path: str) -> None:
        """Write a file that says what it can't hold."""
        with zipfile.ZipFile(path, "w") as file:
            about = "the policy of a function; the function can be called again"
            file.writestr("learner.json", json.dumps({"about": about}))


def is_policy(found: Any) -> bool:
    """Whether what a function returned can act."""
    return callable(found) or hasattr(found, "predict")


def call(
    make: Callable[..., Any], env: CountedEnv, given: Mapping[str, Any], **offered: Any
) -> Any:
    """``make(env, **given)`` with what it takes of the ``offered``, and the result as a learner.

    Returns:
        An SB3 algorithm as it is, a policy as a ``FunctionLearner``, anything else as it is.
    """
    since, worked = time.perf_counter(), time.process_time()
    found = make(env, **taken(make, given, offered))
    if hasattr(found, "learn"):
        env.limit = None
        return found
    if not is_policy(found):
        return found
    return FunctionLearner(found, env, time.perf_counter() - since, time.process_time() - worked)


def taken(
    make: Callable[..., Any], given: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
    """All that was ``given``, and of what is ``offered`` that which the function takes.

    Raises:
        TypeError: it does not take what was given.
    """
    try:
        signature = inspect.signature(make)
    except ValueError:  # of C
        return dict(given)
    parameters = signature.parameters.values()
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    # who takes anything passes it on, to a constructor that knows no total_timesteps
    fitting = {
        name: value
        for name, value in offered.items()
        if name in names or (anything and name in ("seed", "device"))
    }
    arguments = {**fitting, **given}
    signature.bind(None, **arguments)
    return arguments
