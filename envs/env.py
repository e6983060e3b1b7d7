"""The two Gymnasium shells around a Problem. They hold the only state: the present step, states and
random stream.

Observation: the state, flattened, followed by the time ``k / T`` in [0, 1]; float32. Action: the
control in standard deviations of the noise, in ``[-action_bound, action_bound]``. Reward: ``r_k -
temperature * |a|^2 / 2``, plus the terminal reward at the last step, so that an episode's
undiscounted return is one sample of the objective. Reaching the horizon is ``terminated``, never
``truncated``.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .problem import Policy, Problem, check_integer, check_positive, device_of

#: Observations are unbounded in effect; a finite number keeps every environment checker content.
_LARGE = float(np.finfo(np.float32).max)
_CPU = torch.device("cpu")


def observe(problem: Problem, k: int, x: Tensor) -> Tensor:
    """Observations ``(n, state size + 1)`` in float32 of states ``x`` at step ``k``."""
    flat = x.reshape(x.shape[0], -1).float()
    return torch.cat([flat, flat.new_full((x.shape[0], 1), k / problem.horizon)], 1)


def unobserve(problem: Problem, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Steps ``(n,)`` and states ``(n, *state_shape)`` behind observations; the inverse of
    ``observe``.
    """
    k = (observation[:, -1] * problem.horizon).round().long()
    return k, observation[:, :-1].reshape(-1, *problem.state_shape)


def spaces_of(problem: Problem, action_bound: float) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """The observation and action space of one environment."""
    check_positive("action_bound", action_bound)
    size = int(np.prod(problem.state_shape))
    low = np.full(size + 1, -_LARGE, np.float32)
    low[-1] = 0.0
    high = -low
    high[-1] = 1.0
    actions = int(np.prod(problem.noise_shape))
    return (
        gym.spaces.Box(low, high, dtype=np.float32),
        gym.spaces.Box(-action_bound, action_bound, (actions,), dtype=np.float32),
    )


def problem_of(env: Any) -> Problem:
    """The Problem behind an environment, a (wrapped) vector environment, an SB3 VecEnv, or a
    Problem itself.
    """
    if isinstance(env, Problem):
        return env
    try:
        found = (
            env.get_attr("problem")[0]
            if hasattr(env, "get_attr")
            else env.get_wrapper_attr("problem")
        )
    except AttributeError:
        found = getattr(getattr(env, "unwrapped", env), "problem", None)
    if not isinstance(found, Problem):
        raise ValueError(
            f"env must be a girsanov environment (one whose `problem` is a Problem); got {env!r}"
        )
    return found


def _torch_seed(np_random: np.random.Generator) -> int:
    return int(np_random.integers(2**63 - 1))


def _check_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(action, dtype=np.float32)
    if array.shape != shape:
        raise ValueError(f"action must have shape {shape}; got {array.shape}")
    return array


class ProblemEnv(gym.Env[np.ndarray, np.ndarray]):
    """One copy of a Problem as a ``gymnasium.Env``.

    Args:
        problem: what to wrap; its tensors decide the device.
        action_bound: largest control in any coordinate, in standard deviations of the noise; larger
            actions are clipped.
        render_mode: ``None`` or ``"rgb_array"``.

    ``info`` holds ``reward`` (without the KL price), ``kl`` and ``state`` (float32,
    ``state_shape``) of the step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, problem: Problem, action_bound: float = 1.0, render_mode: str | None = None
    ) -> None:
        _check_render_mode(render_mode)
        problem.validate()
        self.problem = problem
        self.action_bound = action_bound
        self.render_mode = render_mode
        self.observation_space, self.action_space = spaces_of(problem, action_bound)
        self._generator = torch.Generator(device_of(problem))
        self._shape = tuple(self.action_space.shape or ())
        self._noise_shape = (1, *problem.noise_shape)
        self._has_running_reward = (
            getattr(problem.running_reward, "__func__", None) is not Problem.running_reward
        )
        self._k = problem.horizon  # nothing to step before the first reset
        self._x: Tensor | None = None
        self._path: list[Tensor] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw an initial state; ``seed`` fixes everything that follows."""
        super().reset(seed=seed)
        if seed is not None or self._x is None:
            self._generator.manual_seed(_torch_seed(self.np_random))
        self._k = 0
        self._x = self.problem.initial(1, self._generator)
        self._path = [self._x]
        observation, state = self._seen()
        return observation, {"reward": 0.0, "kl": 0.0, "state": state}

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Steer the noise of one transition by ``action``."""
        action = _check_action(action, self._shape)
        if self._x is None or self._k >= self.problem.horizon:
            raise gym.error.ResetNeeded(
                "call reset() before step(): the episode has not begun or is over"
            )
        problem, k, x = self.problem, self._k, self._x
        action = action.clip(-self.action_bound, self.action_bound)
        kl = 0.5 * float(action.dot(action))
        if math.isnan(kl):
            raise ValueError(f"action must hold no NaN; got {action.tolist()} at step {k}")
        z = torch.randn(
            self._noise_shape, generator=self._generator, device=x.device, dtype=x.dtype
        )
        z += torch.from_numpy(action.reshape(self._noise_shape)).to(x)
        reward = problem.running_reward(k, x).item() if self._has_running_reward else 0.0
        self._x = problem.transition(k, x, z)
        self._k = k + 1
        terminated = self._k == problem.horizon
        if terminated:
            reward += problem.terminal_reward(self._x).item()
        if not math.isfinite(reward):
            raise ValueError(
                f"the reward of {type(problem).__name__} must be finite; got {reward} at step {k}"
            )
        if self.render_mode is not None:
            self._path.append(self._x)
        observation, state = self._seen()
        info = {"reward": reward, "kl": kl, "state": state}
        return observation, reward - problem.temperature * kl, terminated, False, info

    def render(self) -> Any:
        """The path so far as an ``(H, W, 3)`` uint8 picture; None unless
        ``render_mode="rgb_array"``.
        """
        if self.render_mode is None:
            return None
        if not self._path:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self.problem.render(torch.stack([x[0] for x in self._path]).cpu())

    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        """The observation and the state, in memory of their own."""
        assert self._x is not None
        state = self._x.to(_CPU, torch.float32).numpy()
        observation = np.empty(state.size + 1, np.float32)
        observation[:-1] = state.reshape(-1)
        observation[-1] = self._k / self.problem.horizon
        return observation, state[0].copy()


class ProblemVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """``num_envs`` copies of a Problem, stepped together in one batch.

    The horizon is fixed, so all lanes are always at the same step and end together.

    Args:
        problem: what to wrap; its tensors decide the device.
        num_envs: number of lanes.
        action_bound: as in ``ProblemEnv``.
        autoreset_mode: ``"next_step"`` (Gymnasium's wrappers), ``"same_step"`` (SB3; the last
            observation is ``infos["final_obs"]``, dense) or ``"disabled"`` (the caller resets); or
            Gymnasium's ``AutoresetMode``.
        tensors: return torch tensors on the problem's device instead of numpy arrays, and take them
            as actions.
        render_mode: ``None`` or ``"rgb_array"`` (one picture a lane).
    """

    def __init__(
        self,
        problem: Problem,
        num_envs: int = 1,
        action_bound: float = 1.0,
        autoreset_mode: str | AutoresetMode = "next_step",
        tensors: bool = False,
        render_mode: str | None = None,
    ) -> None:
        _check_render_mode(render_mode)
        modes = {
            "next_step": AutoresetMode.NEXT_STEP,
            "same_step": AutoresetMode.SAME_STEP,
            "disabled": AutoresetMode.DISABLED,
        }
        if isinstance(autoreset_mode, AutoresetMode):
            autoreset_mode = autoreset_mode.name.lower()
        if autoreset_mode not in modes:
            raise ValueError(
                f"autoreset_mode must be one of {sorted(modes)}; got {autoreset_mode!r}"
            )
        check_integer("num_envs", num_envs)
        problem.validate()
        self.problem = problem
        self.num_envs = num_envs
        self.action_bound = action_bound
        self.tensors = tensors
        self.render_mode = render_mode
        self.metadata = {**ProblemEnv.metadata, "autoreset_mode": modes[autoreset_mode]}
        self.single_observation_space, self.single_action_space = spaces_of(problem, action_bound)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._mode = modes[autoreset_mode]
        self._generator = torch.Generator(device_of(problem))
        self._k = problem.horizon
        self._x: Tensor | None = None
        self._return: Tensor | float = 0.0
        self._path: list[Tensor] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw all lanes' initial states; one integer ``seed`` fixes everything that follows."""
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise ValueError(
                f"seed must be one integer for all lanes (they share a random stream); got {seed!r}"
            )
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise ValueError(
                "options['reset_mask'] must be true for every lane: all lanes end at the same step"
            )
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None or self._x is None:
            self._generator.manual_seed(_torch_seed(self.np_random))
        return self._restart(), {}

    @torch.no_grad()
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steer one transition of every lane; ``actions`` has shape ``(num_envs, noise size)``."""
        a = self._controls(actions)
        if self._x is None or (
            self._k >= self.problem.horizon and self._mode is not AutoresetMode.NEXT_STEP
        ):
            raise gym.error.ResetNeeded(
                "call reset() before step(): the episode has not begun or is over"
            )
        if self._k >= self.problem.horizon:  # next-step autoreset: the action is ignored
            zero = self._x.new_zeros(self.num_envs)
            return self._restart(), *self._out(zero, zero > 0, zero > 0), self._infos(zero, zero)
        problem, k, x = self.problem, self._k, self._x
        reward = problem.running_reward(k, x)
        z = torch.randn(a.shape, generator=self._generator, device=x.device, dtype=x.dtype).add_(a)
        self._x = problem.transition(k, x, z)
        self._k = k + 1
        if self.render_mode is not None:
            self._path.append(self._x)
        ended = self._k == problem.horizon
        if ended:
            reward = reward + problem.terminal_reward(self._x)
        self._return = self._return + reward  # NaN and infinity stay in a sum
        if (ended or not self.tensors) and not torch.isfinite(
            self._return
        ).all():  # looking would make a GPU wait
            raise ValueError(
                f"the reward of {type(problem).__name__} must be finite; got NaN or infinity at"
                f" step {k}"
            )
        kl = 0.5 * a.flatten(1).square().sum(1)
        infos = self._infos(reward, kl)
        truncated = torch.zeros(self.num_envs, dtype=torch.bool, device=x.device)
        out = self._out(reward - problem.temperature * kl, truncated | ended, truncated)
        if ended and self._mode is AutoresetMode.SAME_STEP:
            infos["final_obs"] = self._observation()
            infos["final_info"] = {key: infos[key] for key in ("reward", "kl", "state")}
            infos["_final_obs"] = infos["_final_info"] = np.ones(self.num_envs, bool)
            return self._restart(), *out, infos
        return self._observation(), *out, infos

    def render(self) -> tuple[Any, ...] | None:
        """One ``(H, W, 3)`` uint8 picture a lane; None unless ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            return None
        if not self._path:
            raise gym.error.ResetNeeded("call reset() before render()")
        return tuple(self.problem.render(path) for path in torch.stack(self._path, 1).cpu())

    def _controls(self, actions: Any) -> Tensor:
        shape = (self.num_envs, *(self.single_action_space.shape or ()))
        if not isinstance(actions, Tensor):
            actions = torch.from_numpy(_check_action(actions, shape))
            if actions.isnan().any():
                raise ValueError(
                    f"action must hold no NaN; got {int(actions.isnan().any(1).sum())} lanes with"
                    " some"
                )
        elif tuple(actions.shape) != shape:
            raise ValueError(f"action must have shape {shape}; got {tuple(actions.shape)}")
        if self._x is not None:
            actions = actions.to(self._x)
        return actions.clamp(-self.action_bound, self.action_bound).view(
            self.num_envs, *self.problem.noise_shape
        )

    def _restart(self) -> Any:
        self._k, self._return = 0, 0.0
        self._x = self.problem.initial(self.num_envs, self._generator)
        self._path = [self._x]
        return self._observation()

    def _observation(self) -> Any:
        assert self._x is not None
        observation = observe(self.problem, self._k, self._x)
        return observation if self.tensors else observation.cpu().numpy()

    def _out(self, *values: Tensor) -> list[Any]:
        if self.tensors:
            return list(values)
        return [
            v.cpu().numpy() if v.dtype == torch.bool else v.double().cpu().numpy() for v in values
        ]

    def _infos(self, reward: Tensor, kl: Tensor) -> dict[str, Any]:
        assert self._x is not None
        reward, kl = self._out(reward, kl)
        state = self._x if self.tensors else self._x.float().cpu().numpy().copy()
        every = np.ones(self.num_envs, bool)
        return {
            "reward": reward,
            "_reward": every,
            "kl": kl,
            "_kl": every.copy(),
            "state": state,
            "_state": every.copy(),
        }


def _check_render_mode(render_mode: str | None) -> None:
    if render_mode not in (None, *ProblemEnv.metadata["render_modes"]):
        raise ValueError(f"render_mode must be None or 'rgb_array'; got {render_mode!r}")


def as_env(env: Any, **kwargs: Any) -> Any:
    """What agents accept as ``env``, made an environment: an id, a bare Problem, or an environment
    as it is.

    Of Gymnasium's vector environments, which stable-baselines3 does not take, one copy is made:
    problem and action bound.
    """
    if isinstance(env, gym.vector.VectorEnv):
        return ProblemEnv(
            problem_of(env),
            **{"action_bound": float(np.max(env.single_action_space.high)), **kwargs},
        )  # type: ignore[attr-defined]
    if isinstance(env, Problem):
        return ProblemEnv(env, **kwargs)
    if isinstance(env, str):
        return gym.make(env, **kwargs)
    if isinstance(env, type) or not (env is None or hasattr(env, "reset")):
        raise ValueError(
            f"env must be an environment, a registered id or a Problem (not its class); got {env!r}"
        )
    return env


__all__ = [
    "Policy",
    "ProblemEnv",
    "ProblemVectorEnv",
    "as_env",
    "device_of",
    "observe",
    "problem_of",
    "spaces_of",
    "unobserve",
]
