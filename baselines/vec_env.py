"""A batch of Problems as the VecEnv that stable-baselines3 trains on.

Where ``DummyVecEnv`` steps its environments one by one, here all lanes are one batch of torch work.
Episode statistics are in the infos already, so no ``VecMonitor`` is needed around it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ..envs.checks import check_integer
from ..envs.env import (
    ProblemVectorEnv,
    as_env,
    device_of,
    finite_observation,
    problem_of,
    shell_of,
)


class ProblemVecEnv(VecEnv):
    """``num_envs`` copies of a Problem for stable-baselines3.

    The infos of a lane are empty until its episode ends; then they hold ``terminal_observation``,
    ``TimeLimit.truncated`` (False: the horizon is a true end) and ``episode``: return ``r``, length
    ``l``, seconds ``t`` as ``Monitor`` counts them, and the return's two parts, ``reward`` and
    ``kl`` (``r = reward - temperature * kl``).

    Args:
        env: a Problem, a registered id, or an environment, whose problem and action bound are taken
            (wrappers around it are not).
        num_envs: number of lanes.
        action_bound: largest action in any coordinate; the environment's own if absent (the form's,
            if another form of actions is asked for).
        render_mode: ``None`` or ``"rgb_array"`` (all lanes tiled into one picture); the
            environment's own if absent.
        actions: ``"control"`` or ``"noise"``; the environment's own if absent.
        observation: ``"state"`` or ``"features"``; the environment's own if absent.
    """

    _actions: Any
    _reward: Tensor | float
    _kl: Tensor | float
    _return: Tensor | float

    def __init__(
        self,
        env: Any,
        num_envs: int = 16,
        action_bound: float | None = None,
        render_mode: str | None = None,
        actions: str | None = None,
        observation: str | None = None,
    ) -> None:
        env = as_env(env)
        self.problem = problem_of(env)
        shell = env.get_attr("unwrapped")[0] if isinstance(env, VecEnv) else env.unwrapped
        own = shell_of(env)
        if action_bound is None and actions in (None, own["actions"]):
            action_bound = own["action_bound"]
        self._lanes = ProblemVectorEnv(
            self.problem,
            num_envs,
            action_bound,
            autoreset_mode="same_step",
            tensors=True,
            render_mode=shell.render_mode if render_mode is None else render_mode,
            actions=own["actions"] if actions is None else actions,
            observation=own["observation"] if observation is None else observation,
        )
        self.episode_length = self._lanes.episode_length  #: actions until the horizon
        self.reward_queries = 0  #: terminal rewards asked for so far
        self.last_kl: Tensor  #: (num_envs,) what was charged for the last actions, in nats
        self._actions = None
        self._start = time.perf_counter()
        self._clear()
        super().__init__(
            self._lanes.num_envs,
            self._lanes.single_observation_space,
            self._lanes.single_action_space,
        )

    def _clear(self) -> None:
        """Forget the statistics of the present episode."""
        self._reward = self._kl = self._return = 0.0

    def reset(self) -> np.ndarray:
        """First observations ``(num_envs, state size + 1)``; the seed given to ``seed`` is used
        once.
        """
        observation, _ = self._lanes.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._clear()
        return self._shown(observation)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Fix what the next ``reset`` draws; None: by chance."""
        if seed is not None:
            check_integer("seed", seed, 0)
        return super().seed(None if seed is None else int(seed))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards and dones, all fresh float32 arrays (SB3 writes into rewards), and
        one info dict a lane.
        """
        observation, reward, _, _, info = self._lanes.step(self._actions)
        # not in place: SB3 and the infos may hold the tensors that these sums began with
        self._return = self._return + reward
        self._reward = self._reward + info["task_reward"]
        self._kl = self._kl + info["kl"]
        self.last_kl = info["kl"]
        last = info.get("final_obs")  # all lanes end together
        if last is not None:
            self.reward_queries += self.num_envs
            infos = self._final_infos(last)
            self._clear()
        else:
            infos = [{} for _ in range(self.num_envs)]
        self._look(observation, last)
        over = np.full(self.num_envs, last is not None)
        return self._shown(observation), self._paid(reward), over, infos

    def _shown(self, observation: Tensor) -> Any:
        """What the learner is given of an observation."""
        return _numpy(observation)

    def _paid(self, reward: Tensor) -> Any:
        """What the learner is given of a reward: it may write into it."""
        return reward.to("cpu", torch.float32, copy=True).numpy()

    def _look(self, observation: Tensor, last: Tensor | None) -> None:
        """A ValueError where an observation is no number; ``last``: of the episode that ended."""
        finite_observation(self.problem, self._lanes._k, observation.cpu())

    def _rows(self, observation: Tensor) -> list[Any]:
        """What the learner is given of one observation, a lane."""
        return list(_numpy(observation))

    def _final_infos(self, last: Tensor) -> list[dict[str, Any]]:
        """One info dict a lane at the end of the episode, whose last observations are ``last``."""
        seconds = round(time.perf_counter() - self._start, 6)
        length = self.episode_length
        sums = (torch.stack([self._return, self._reward, self._kl]).double().cpu().T).tolist()  # type: ignore[list-item]
        return [
            {
                "terminal_observation": observation,
                "TimeLimit.truncated": False,
                "episode": {"r": total, "l": length, "t": seconds, "reward": reward, "kl": kl},
            }
            for observation, (total, reward, kl) in zip(self._rows(last), sums, strict=True)
        ]

    def training_state(self) -> dict[str, Any]:
        """Where the lanes are between two steps, as tensors and numbers."""
        sums = {"return": self._return, "reward": self._reward, "kl": self._kl}
        return {
            "lanes": self._lanes.training_state(),
            "sums": sums,
            "reward_queries": self.reward_queries,
        }

    def set_training_state(self, state: dict[str, Any]) -> None:
        """Go on from where lanes like these were."""
        self._lanes.set_training_state(state["lanes"])
        sums, device = state["sums"], device_of(self.problem)
        self._return, self._reward, self._kl = (
            torch.as_tensor(sums[name], device=device) for name in ("return", "reward", "kl")
        )
        self.reward_queries = state["reward_queries"]

    def close(self) -> None:
        """Nothing is held open."""
        self._lanes.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture a lane."""
        return self._lanes.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of the lanes, which share everything, once for each index."""
        return [getattr(self._lanes, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all lanes; they share it, so ``indices`` must name every lane or be
        absent.
        """
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError(
                f"indices must be None: the {self.num_envs} lanes share their attributes; got"
                f" {indices!r}"
            )
        setattr(self._lanes, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batch once; its result is listed once for each index."""
        result = getattr(self._lanes, method_name)(*method_args, **method_kwargs)
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """True for ``Monitor`` alone: its episode statistics are in the infos, as SB3's evaluation
        wants to know.
        """
        return [wrapper_class is Monitor] * len(list(self._get_indices(indices)))


def _numpy(value: Tensor) -> np.ndarray:
    return value.cpu().numpy()
