"""The two Gymnasium shells around a Problem. They hold the only state: the present step, states and
random stream.

Observation: the state and the time, or the features that regression is given (``observations``).
Action: the control, or the noise itself (``actions``). Reward: ``r_k`` less the price of the
action, plus the terminal reward at the last step, so that an episode's undiscounted return is one
sample of the objective (for actions that are noise: of the objective without the policy's entropy).
Reaching the horizon is ``terminated``, never ``truncated``.
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

from .actions import Steered, Steering, action_form, compiled
from .checks import check_flag, check_integer, check_one_of, check_states, is_finite, shown
from .observations import StateObservation, observation_of
from .problem import Policy, Problem, check_problem, device_of

_CPU = torch.device("cpu")


def observe(problem: Problem, k: int, x: Tensor) -> Tensor:
    """Observations ``(n, state size + 1)`` in float32 of states ``x`` at step ``k``."""
    return StateObservation(problem)(k, x)


def unobserve(problem: Problem, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Steps ``(n,)`` and states ``(n, *state_shape)`` behind observations; the inverse of
    ``observe``.
    """
    size = int(np.prod(problem.state_shape)) + 1
    if observation.dim() != 2 or observation.shape[1] != size:
        raise ValueError(
            f"observation must hold the state and the time of each row, (n, {size}); got"
            f" {tuple(observation.shape)}"
        )
    k = (observation[:, -1] * problem.horizon).round().long()
    return k, observation[:, :-1].reshape(-1, *problem.state_shape)


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


def shell_of(env: Any) -> dict[str, Any]:
    """The arguments by which another shell shows a problem as ``env`` does, wrappers apart:
    ``actions``, ``action_bound`` and ``observation``.
    """
    shell = env.get_attr("unwrapped")[0] if hasattr(env, "env_method") else env.unwrapped
    return {
        "actions": shell.actions.name,
        "action_bound": shell.actions.bound,
        "observation": shell.observation.name,
    }


def _torch_seed(np_random: np.random.Generator) -> int:
    return int(np_random.integers(2**63 - 1))


def _check_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:  # in the usual order: torch takes no array that runs backwards
        array = np.asarray(action, dtype=np.float32, order="C")
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"action must be numbers of shape {shape}; got {shown(action)}") from error
    if array.shape != shape:
        raise ValueError(f"action must have shape {shape}; got {array.shape}")
    return array


class ProblemEnv(gym.Env[np.ndarray, np.ndarray]):
    """One copy of a Problem as a ``gymnasium.Env``.

    Args:
        problem: what to wrap; its tensors decide the device.
        action_bound: largest action in any coordinate, in standard deviations of the noise; larger
            actions are clipped. Absent: 1 for controls, 5 for noise.
        render_mode: ``None`` or ``"rgb_array"``.
        actions: ``"control"`` (the environment adds its noise to the action) or ``"noise"`` (the
            action is the noise); see ``actions``.
        observation: ``"state"`` (and the time) or ``"features"`` (what PDE and PI-FT make of them);
            see ``observations``.

    ``info`` holds ``task_reward`` (without the KL price), ``kl`` (what is charged, in nats),
    ``noise`` (z, float32, ``noise_shape``), ``log_ratio`` (log dP^0/dP^pi of the step; 0 where the
    policy alone knows it) and ``state`` (float32, ``state_shape``) of the step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        problem: Problem,
        action_bound: float | None = None,
        render_mode: str | None = None,
        actions: str = "control",
        observation: str = "state",
    ) -> None:
        _check_render_mode(render_mode)
        check_problem(problem).validate()
        self.problem = problem
        self.render_mode = render_mode
        self.actions = action_form(actions, problem, action_bound)
        self.observation = observation_of(observation, problem)
        self.action_bound = self.actions.bound
        self.observation_space, self.action_space = self.observation.space, self.actions.space
        self._steering = Steering(problem, self.actions)
        self.episode_length = self._steering.episode_length  #: actions until the horizon
        self._generator = torch.Generator(device_of(problem))
        self._shape = tuple(self.action_space.shape or ())
        self._k = problem.horizon  # nothing to step before the first reset
        self._x: Tensor | None = None
        self._path: list[Tensor] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw an initial state; ``seed`` fixes everything that follows."""
        seed = _reset_seed(seed, options)
        super().reset(seed=seed)
        if seed is not None or self._x is None:
            self._generator.manual_seed(_torch_seed(self.np_random))
        self._k = 0
        self._x = self.problem.initial(1, self._generator)
        check_states("initial states", self._x, (1, *self.problem.state_shape))
        self._path = [self._x]
        noise = np.zeros(self.problem.noise_shape, np.float32)
        info = {"task_reward": 0.0, "kl": 0.0, "noise": noise, "log_ratio": 0.0}
        return self._seen(), {**info, "state": _float32(self._x)[0]}

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Steer the noise of one transition by ``action``."""
        action = _check_action(action, self._shape)
        if self._x is None or self._k >= self.problem.horizon:
            raise gym.error.ResetNeeded(
                "call reset() before step(): the episode has not begun or is over"
            )
        problem, k = self.problem, self._k
        if np.isnan(action).any():
            raise ValueError(f"action must hold no NaN; got {action.tolist()} at step {k}")
        given = torch.from_numpy(action.reshape(1, *problem.noise_shape))
        self._k, states, reward, steered = self._steering.advance(
            k, self._x, given, self._generator
        )
        self._x = states[-1]
        earned, kl = reward.item(), steered.kl.item()
        if not math.isfinite(earned):
            raise ValueError(
                f"the reward of {type(problem).__name__} must be finite; got {earned} at step {k}"
            )
        if self.render_mode is not None:
            self._path.extend(states)
        info = {
            "task_reward": earned,
            "kl": kl,
            "noise": _float32(steered.noise)[0],
            "log_ratio": steered.log_ratio.item(),
            "state": _float32(self._x)[0],
        }
        over = self._k == problem.horizon
        return self._seen(), earned - problem.temperature * kl, over, False, info

    def render(self) -> Any:
        """The path so far as an ``(H, W, 3)`` uint8 picture; None unless
        ``render_mode="rgb_array"``.
        """
        if self.render_mode is None:
            return None
        if not self._path:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self.problem.render(torch.stack([x[0] for x in self._path]).cpu())

    def _seen(self) -> np.ndarray:
        assert self._x is not None
        observation = self.observation(self._k, self._x).to(_CPU)
        return finite_observation(self.problem, self._k, observation).detach().numpy()[0]


def _float32(x: Tensor) -> np.ndarray:
    """A copy on the CPU."""
    return x.detach().to(_CPU, torch.float32, copy=True).numpy()


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
        actions: as in ``ProblemEnv``.
        observation: as in ``ProblemEnv``.
        compile: let ``torch.compile`` make the transition, in seconds. Numbers change by rounding.
    """

    def __init__(
        self,
        problem: Problem,
        num_envs: int = 1,
        action_bound: float | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        tensors: bool = False,
        render_mode: str | None = None,
        actions: str = "control",
        observation: str = "state",
        compile: bool = False,
    ) -> None:
        _check_render_mode(render_mode)
        modes = {
            "next_step": AutoresetMode.NEXT_STEP,
            "same_step": AutoresetMode.SAME_STEP,
            "disabled": AutoresetMode.DISABLED,
        }
        if isinstance(autoreset_mode, AutoresetMode):
            autoreset_mode = autoreset_mode.name.lower()
        check_one_of("autoreset_mode", autoreset_mode, modes)
        check_integer("num_envs", num_envs)
        check_flag("tensors", tensors)
        check_flag("compile", compile)
        num_envs = int(num_envs)
        check_problem(problem).validate()
        self.problem = problem
        self.num_envs = num_envs
        self.tensors = tensors
        self.render_mode = render_mode
        self.metadata = {**ProblemEnv.metadata, "autoreset_mode": modes[autoreset_mode]}
        self.actions = action_form(actions, problem, action_bound)
        self.observation = observation_of(observation, problem)
        self.action_bound = self.actions.bound
        self.single_observation_space = self.observation.space
        self.single_action_space = self.actions.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        transition = compiled(problem, num_envs) if compile else None
        self._steering = Steering(problem, self.actions, transition)
        self.episode_length = self._steering.episode_length  #: actions until the horizon
        self._mode = modes[autoreset_mode]
        self._shape = (num_envs, *(self.single_action_space.shape or ()))
        self._noise_shape = (num_envs, *problem.noise_shape)
        self._generator = torch.Generator(device_of(problem))
        self._k = problem.horizon
        self._x: Tensor | None = None
        self._return: Tensor | float = 0.0
        self._path: list[Tensor] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw all lanes' initial states; one integer ``seed`` fixes everything that follows."""
        seed = _reset_seed(seed, options)
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise ValueError(
                "options['reset_mask'] must be true for every lane: all lanes end at the same step"
            )
        super().reset(seed=seed)
        if seed is not None or self._x is None:
            self._generator.manual_seed(_torch_seed(self.np_random))
        return self._restart(), {}

    @torch.no_grad()
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steer one transition of every lane; ``actions`` has shape ``(num_envs, noise size)``."""
        a = self._given(actions)
        if self._x is None or (
            self._k >= self.problem.horizon and self._mode is not AutoresetMode.NEXT_STEP
        ):
            raise gym.error.ResetNeeded(
                "call reset() before step(): the episode has not begun or is over"
            )
        if self._k >= self.problem.horizon:  # next-step autoreset: the action is ignored
            zero = self._x.new_zeros(self.num_envs)
            infos = self._infos(zero, Steered(a, zero, zero))
            return self._restart(), *self._out(zero, zero > 0, zero > 0), infos
        problem, k = self.problem, self._k
        self._k, states, reward, steered = self._steering.advance(k, self._x, a, self._generator)
        self._x = states[-1]
        if self.render_mode is not None:
            self._path.extend(states)
        ended = self._k == problem.horizon
        self._return = self._return + reward  # NaN and infinity stay in a sum
        if (ended or not self.tensors) and not is_finite(self._return):
            # looking would make a GPU wait
            raise ValueError(
                f"the reward of {type(problem).__name__} must be finite; got NaN or infinity at"
                f" step {k}"
            )
        infos = self._infos(reward, steered)
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=reward.device)
        over = torch.ones_like(never) if ended else torch.zeros_like(never)
        out = self._out(reward - problem.temperature * steered.kl, over, never)
        if ended and self._mode is AutoresetMode.SAME_STEP:
            infos["final_obs"] = self._seen()
            infos["final_info"] = {key: infos[key] for key in INFOS}
            infos["_final_obs"] = infos["_final_info"] = np.ones(self.num_envs, bool)
            return self._restart(), *out, infos
        return self._seen(), *out, infos

    def training_state(self) -> dict[str, Any]:
        """Where the lanes are between two steps, as tensors and numbers."""
        stream = self._generator.get_state()
        return {"k": self._k, "x": self._x, "return": self._return, "generator": stream}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """Go on from where lanes like these were."""
        x, device = state["x"], self._generator.device
        if tuple(x.shape) != (self.num_envs, *self.problem.state_shape):
            raise ValueError(f"the lanes' states have the shape {tuple(x.shape)}")
        self._k, self._x = state["k"], x.to(device)
        self._return, self._path = torch.as_tensor(state["return"], device=device), [self._x]
        self._generator.set_state(state["generator"])

    def render(self) -> tuple[Any, ...] | None:
        """One ``(H, W, 3)`` uint8 picture a lane; None unless ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            return None
        if not self._path:
            raise gym.error.ResetNeeded("call reset() before render()")
        return tuple(self.problem.render(path) for path in torch.stack(self._path, 1).cpu())

    def _given(self, actions: Any) -> Tensor:
        shape = self._shape
        if not isinstance(actions, Tensor):
            actions = torch.from_numpy(_check_action(actions, shape))
            # NaN stays in a sum, which is much quicker to look at
            if torch.isnan(actions.sum()) and (lanes := int(actions.isnan().any(1).sum())):
                raise ValueError(f"action must hold no NaN; got {lanes} lanes with some")
        elif tuple(actions.shape) != shape:
            raise ValueError(f"action must have shape {shape}; got {tuple(actions.shape)}")
        return actions.view(self._noise_shape)

    def _restart(self) -> Any:
        self._k, self._return = 0, 0.0
        self._x = self.problem.initial(self.num_envs, self._generator)
        check_states("initial states", self._x, (self.num_envs, *self.problem.state_shape))
        self._path = [self._x]
        return self._seen()

    def _seen(self) -> Any:
        assert self._x is not None
        observation = self.observation(self._k, self._x)
        if self.tensors:
            return observation
        return finite_observation(self.problem, self._k, observation).detach().cpu().numpy()

    def _out(self, *values: Tensor) -> list[Any]:
        if self.tensors:
            return list(values)
        return [
            v.cpu().numpy() if v.dtype == torch.bool else v.double().cpu().numpy() for v in values
        ]

    def _infos(self, reward: Tensor, steered: Steered) -> dict[str, Any]:
        assert self._x is not None
        numbers = self._out(reward, steered.kl, steered.log_ratio)
        arrays: list[Any] = [steered.noise, self._x]
        if not self.tensors:
            arrays = [_float32(x) for x in arrays]
        infos = dict(zip(INFOS, (*numbers, *arrays), strict=True))
        infos.update(dict.fromkeys(_SAID, np.ones(self.num_envs, bool)))
        return infos


#: What ``infos`` hold of every step, as ``ProblemEnv`` says.
INFOS = ("task_reward", "kl", "log_ratio", "noise", "state")
#: Where Gymnasium says which lanes they hold it of: of all.
_SAID = tuple(f"_{key}" for key in INFOS)


def _check_render_mode(render_mode: Any) -> None:
    if not (render_mode is None or isinstance(render_mode, str) and render_mode == "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array'; got {shown(render_mode)}")


def finite_observation(problem: Problem, k: int, observation: Tensor) -> Tensor:
    """``observation`` of step ``k`` itself, or a ValueError: no learner takes NaN."""
    if not is_finite(observation):
        raise ValueError(
            f"the states of {type(problem).__name__} must be finite; got NaN or infinity at step"
            f" {k}"
        )
    return observation


def _reset_seed(seed: Any, options: Any) -> int | None:
    if not (options is None or isinstance(options, dict)):
        raise ValueError(f"options must be a dict, or None; got {shown(options)}")
    if isinstance(seed, (list, tuple, np.ndarray)):
        raise ValueError(
            f"seed must be one integer for all lanes (they share a random stream); got"
            f" {shown(seed)}"
        )
    if seed is None:
        return None
    check_integer("seed", seed, 0, 2**128 - 1)
    return int(seed)


def as_env(env: Any, **kwargs: Any) -> Any:
    """What agents accept as ``env``, made an environment: an id, a bare Problem, or an environment
    as it is.

    Of Gymnasium's vector environments, which stable-baselines3 does not take, one copy is made.
    """
    if isinstance(env, gym.vector.VectorEnv):
        return ProblemEnv(problem_of(env), **{**shell_of(env), **kwargs})
    if isinstance(env, Problem):
        return ProblemEnv(env, **kwargs)
    if isinstance(env, str):
        if len(env) > 300 or not env.isprintable():
            raise ValueError(f"env must be a registered id; got {shown(env)}")
        try:
            return gym.make(env, **kwargs)
        except ModuleNotFoundError as error:  # "module:id" is looked for there
            raise ValueError(f"env must be a registered id; got {shown(env)} ({error})") from error
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
    "shell_of",
    "unobserve",
]
