"""What our agents share: a stable-baselines3 algorithm whose policy is a control ``a(k, x)`` of a Problem.

The agents do not step ``env`` themselves: they find the Problem behind it and roll out batches of it on their own device.
``env`` serves SB3's own machinery (spaces, ``evaluate_policy``, callbacks).
"""

from __future__ import annotations

import io
import math
import os
import time
import warnings
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import check_for_correct_spaces, safe_mean, update_learning_rate
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor, nn

from ..envs.env import as_env, problem_of, unobserve
from ..envs.problem import Policy, Problem, Trajectories, check_positive, rollout
from . import checkpoint

SelfAgent = TypeVar("SelfAgent", bound="ProblemAgent")


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {allowed}; got {value!r}")


def descend(loss: Tensor, learner: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module, decay: float) -> None:
    """One clipped gradient step of ``learner``, which ``average`` then follows as ``decay average + (1 - decay) learner``."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), learner.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def _warn_of_wrappers(env: Any) -> None:
    """Say which wrappers change what ``predict`` is given or what it gives, while the agent learns the bare problem."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append("VecNormalize")
        env = env.venv
    lane = env.envs[0] if isinstance(env, DummyVecEnv) else None
    while isinstance(lane, gym.Wrapper):
        if isinstance(lane, (gym.ObservationWrapper, gym.ActionWrapper, gym.RewardWrapper, gym.wrappers.NormalizeReward)):
            found.append(type(lane).__name__)
        lane = lane.env
    if found:
        unseen = "the agent learns the problem behind the environment and does not see what these wrappers change"
        warnings.warn(f"{unseen}: {', '.join(found)}", stacklevel=3)


class ControlPolicy(BasePolicy):
    """An SB3 policy around a control; a subclass writes ``control`` and keeps its parameters as modules."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
    ) -> None:
        super().__init__(observation_space, action_space)
        # A list hides the problem from nn.Module: its networks are frozen and are not this policy's parameters.
        self._problem = [problem]
        self.action_bound = float(np.max(action_space.high))

    #: Whether a saved agent goes on exactly as if it had never stopped: nothing but networks and counters lives on.
    resumes: ClassVar[bool] = False
    #: Whether several processes may share the paths of each gradient.
    shares_paths: ClassVar[bool] = False

    @property
    def problem(self) -> Problem:
        """The problem that the control steers."""
        return self._problem[0]

    @problem.setter
    def problem(self, problem: Problem) -> None:
        self._problem = [problem]

    @abstractmethod
    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Controls ``(n, *noise_shape)`` in noise units, within the action bound; ``k`` an int or one step per row."""

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        k, x = unobserve(self.problem, observation.float())  # float64 is taken too, as SB3's own policies take it
        # At the horizon there is nothing left to steer; the last step's control is as good as any.
        return self.control(k.clamp(max=self.problem.horizon - 1), x).flatten(1).float()

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        """Same as ``_predict``."""
        return self._predict(observation, deterministic)


class _StepProgressBar(ProgressBarCallback):
    """SB3's bar counts ``env.num_envs`` steps a call; ours counts the steps that were really taken."""

    _seen = 0

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._seen)
        self._seen = self.num_timesteps
        return True

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._seen = self.num_timesteps


class ProblemAgent(BaseAlgorithm):
    """Base of PDE and PIFT: data collection, SB3's learning loop, checkpoints.

    Args:
        policy: name of the function class, or a ``ControlPolicy`` class.
        env: an environment, a vector environment (stable-baselines3's or Gymnasium's), a registered id, or a bare Problem.
            Wrappers that change observations, actions or rewards are not seen, and warned of.
        n_trajectories: paths collected in each iteration.
        learning_rate: of Adam; a number or an SB3 schedule of the remaining progress.
        anneal: let the learning rate fall linearly to zero over the budget of ``learn``.
        policy_kwargs: arguments of the function class.

    The remaining arguments are stable-baselines3's.
    """

    #: Constructor arguments that a checkpoint restores (besides policy, seed and policy_kwargs).
    hyperparameters: ClassVar[tuple[str, ...]] = ("n_trajectories", "learning_rate", "anneal")

    def __init__(
        self,
        policy: str | type[ControlPolicy],
        env: Any,
        learning_rate: Any,
        n_trajectories: int,
        anneal: bool = True,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_range("n_trajectories", n_trajectories, 2)
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(f"policy must be one of {sorted(self.policy_aliases)} or a class; got {policy!r}")
        if not isinstance(policy, str) and not (isinstance(policy, type) and issubclass(policy, ControlPolicy)):
            raise ValueError(f"policy must be one of {sorted(self.policy_aliases)} or a ControlPolicy class; got {policy!r}")
        if learning_rate is not None and not callable(learning_rate):
            check_positive("learning_rate", learning_rate)
        self.policy_name = policy if isinstance(policy, str) else policy.__name__
        super().__init__(
            policy,
            None if env is None else as_env(env),
            learning_rate,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=(spaces.Box,),
        )
        self.n_trajectories = n_trajectories
        self.anneal = anneal
        self.reward_queries = 0  # terminal rewards seen so far
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.problem = problem_of(self.env).to(self.device)
        _warn_of_wrappers(self.env)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int(np.random.randint(2**31)) if self.seed is None else self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.problem, **self.policy_kwargs).to(
            self.device
        )

    # --- learning ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def iterate(self) -> None:
        """One round: collect with ``self.collect``, improve ``self.policy``, record diagnostics with ``self.logger``."""

    def collect(self, policy: Policy | None, n: int | None = None) -> Trajectories:
        """Roll out fresh paths, counting env steps and reward queries and calling the callbacks after every step.

        Raises ``InterruptedError`` when a callback asks to stop.
        """
        n = self.n_trajectories if n is None else n

        def on_step(k: int) -> bool:
            self.num_timesteps += n * self.processes
            self.reward_queries += n * self.processes * (k == self.problem.horizon - 1)
            if self._callback is None:
                return True
            self._callback.update_locals({"dones": np.full(n, k == self.problem.horizon - 1)})  # SB3's callbacks count episodes
            return self._callback.on_step()

        with torch.no_grad():
            paths = rollout(self.problem, policy, n, self.generator, on_step=on_step)
        self._last_return = paths.reward - self.problem.temperature * paths.kl
        return paths

    processes = 1  #: that collect as much as this one at the same time, and whose paths count too
    _callback: BaseCallback | None = None
    _last_return: Tensor

    def learn(
        self: SelfAgent,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAgent:
        """Iterate until ``total_timesteps`` env steps have been taken (the last round is always finished).

        Args:
            total_timesteps: env steps; a path costs ``problem.horizon`` of them.
            callback: SB3 callback(s); ``on_step`` is called after every batched step.
            log_interval: rounds between log entries.
            tb_log_name: name of the TensorBoard run; the agent's name if absent.
            reset_num_timesteps: False continues the counters of an earlier call or of a loaded checkpoint.
            progress_bar: show SB3's progress bar.
        """
        if reset_num_timesteps:
            self.reward_queries = 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        self._callback = callback
        callback.on_training_start(locals(), globals())
        rounds = 0
        try:
            while self.num_timesteps < total_timesteps:
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                callback.on_rollout_start()
                self.iterate()
                callback.on_rollout_end()
                rounds += 1
                if log_interval and rounds % log_interval == 0:
                    self._dump_logs()
        except InterruptedError:
            pass  # a callback asked to stop; what was learned so far is kept
        callback.on_training_end()
        self._callback = None
        return self

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        bar = _StepProgressBar() if progress_bar else None
        given = super()._init_callback(callback, progress_bar=False)
        if bar is None:
            return given
        both = CallbackList([given, bar])
        both.init_callback(self)
        return both

    def _dump_logs(self) -> None:
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / seconds))
        self.logger.record("time/reward_queries", self.reward_queries)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("rollout/ep_rew_mean", float(self._last_return.mean()))
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        self.logger.dump(self.num_timesteps)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the present learning rate: the schedule's, falling linearly towards zero if ``anneal`` is on."""
        remaining = self._current_progress_remaining
        rate = self.lr_schedule(remaining) * (max(remaining, 0.02) if self.anneal else 1.0)
        self.logger.record("train/learning_rate", rate)
        update_learning_rate(optimizer, rate)

    @abstractmethod
    def forget(self) -> None:
        """Drop past paths: they belong to another problem."""

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Point the agent at another environment with the same spaces, shapes and horizon (say, another temperature)."""
        env = self._wrap_env(as_env(env), self.verbose)
        check_for_correct_spaces(env, self.observation_space, self.action_space)
        ours, theirs = (_signature(problem, env.action_space) for problem in (self.problem, problem_of(env)))
        for name in ("state_shape", "noise_shape", "horizon"):  # what networks and tables are made for
            if ours[name] != theirs[name]:
                raise ValueError(f"env must have the {name} that the agent was made for, {ours[name]}; got {theirs[name]}")
        _warn_of_wrappers(env)
        self.n_envs = env.num_envs  # the agent batches by itself: any number of lanes will do
        super().set_env(env, force_reset)
        self.problem = problem_of(env).to(self.device)
        self.policy.problem = self.problem  # type: ignore[assignment]
        self.forget()

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def networks(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint restores, by name; a subclass adds its optimizers and target networks."""
        return {"policy": self.policy}

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write parameters, optimizers, counters, random stream and settings as safetensors and JSON in one zip.

        Past paths are not saved: a loaded agent goes on from its networks with fresh ones. ``exclude`` and ``include`` are
        accepted for SB3's sake and ignored. A failed write leaves no file behind.
        """
        tensors = {"generator": self.generator.get_state()}
        for name, part in self.networks().items():
            tensors.update({f"{name}/{key}": value for key, value in _flatten(part.state_dict()).items()})
        settings = {
            "agent": type(self).__name__,
            "policy": self.policy_name,
            "policy_kwargs": self.policy_kwargs,
            "hyperparameters": {name: _plain(getattr(self, name), name) for name in self.hyperparameters},
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "reward_queries": self.reward_queries,
            "n_updates": self._n_updates,
            "problem": _signature(self.problem, self.action_space),
        }
        checkpoint.write(path, tensors, settings)

    @classmethod
    def load(
        cls: type[SelfAgent],
        path: str | os.PathLike[str] | io.BufferedIOBase,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAgent:
        """Read an agent that ``save`` wrote.

        Args:
            path: the file.
            env: what to act in; the control of a problem needs the problem itself, so unlike SB3's it cannot be absent.
            device: where to put the agent.
            custom_objects: ignored: nothing in a checkpoint is an object.
            print_system_info: ignored.
            force_reset: ignored: the agents keep no episode between calls.
            kwargs: constructor arguments that override the saved ones.

        Raises:
            ValueError: a corrupt, truncated or foreign file, one of a version that this one can't read, or a checkpoint from
                an environment of another shape.
        """
        tensors, settings = checkpoint.read(path, cls.__name__)
        if env is None:
            raise ValueError(f"env must be given to {cls.__name__}.load: the control of a problem needs the problem")
        env = cls._wrap_env(as_env(env))
        misfit = f"path must name a checkpoint of this version of {cls.__name__}; {str(path)!r} does not fit it"
        missing = {*_SETTINGS, "generator"} - {*settings, *tensors}
        unknown = settings.get("hyperparameters", {}).keys() - set(cls.hyperparameters)
        if missing or unknown:
            raise ValueError(f"{misfit} (missing: {sorted(missing)}, unknown: {sorted(unknown)})")
        ours, theirs = _signature(problem_of(env), env.action_space), settings["problem"]
        if ours != theirs:
            raise ValueError(f"env must be the kind that the checkpoint was trained on, {theirs}; got {ours}")
        arguments = {**settings["hyperparameters"], "seed": settings["seed"], "policy_kwargs": settings["policy_kwargs"]}
        agent = cls(settings["policy"], env, device=device, **{**arguments, **kwargs})
        stream = tensors.pop("generator")
        if stream.shape == agent.generator.get_state().shape:
            agent.generator.set_state(stream)
        else:  # the CPU's random streams are none of a GPU's: go on with another
            agent.generator.manual_seed((settings["seed"] or 0) + settings["num_timesteps"])
        for name, part in agent.networks().items():
            state = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            try:
                part.load_state_dict(_unflatten(state, part))
            except (RuntimeError, ValueError, KeyError) as error:  # torch's words for other names and shapes
                raise ValueError(f"{misfit} ({error})") from error
        agent.num_timesteps, agent.reward_queries = settings["num_timesteps"], settings["reward_queries"]
        agent._n_updates = settings["n_updates"]
        return agent


#: What ``load`` reads of a checkpoint's settings.
_SETTINGS = ("policy", "policy_kwargs", "hyperparameters", "seed", "num_timesteps", "reward_queries", "n_updates", "problem")


def _signature(problem: Problem, action_space: spaces.Space) -> dict[str, Any]:
    """What must agree between the environment of a checkpoint and the one that it is loaded into."""
    return {
        "problem": type(problem).__name__,
        "state_shape": list(problem.state_shape),
        "noise_shape": list(problem.noise_shape),
        "horizon": problem.horizon,
        "action_bound": float(np.max(action_space.high)),  # type: ignore[attr-defined]
    }


def _plain(value: Any, name: str) -> Any:
    if callable(value):
        raise ValueError(f"{name} must be a plain number to be saved; got {value!r}: a checkpoint holds no code")
    return value


def _flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    """A module's or an Adam optimizer's state as named tensors."""
    if "param_groups" not in state:
        return state
    return {f"{i}/{key}": torch.as_tensor(value) for i, slot in state["state"].items() for key, value in slot.items()}


def _unflatten(state: dict[str, Tensor], part: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    if isinstance(part, nn.Module):
        return state
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        i, name = key.split("/", 1)
        slots.setdefault(int(i), {})[name] = value
    return {"state": slots, "param_groups": part.state_dict()["param_groups"]}
