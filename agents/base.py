"""What our agents share: an SB3 algorithm whose policy is a control ``a(k, x)`` of a Problem.

The agents do not step ``env`` themselves: they find the Problem behind it and roll out batches of
it on their own device. ``env`` serves SB3's own machinery (spaces, ``evaluate_policy``, callbacks).
"""

from __future__ import annotations

import time
from abc import abstractmethod
from inspect import signature as signature_of
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import check_for_correct_spaces, safe_mean, update_learning_rate
from torch import Tensor, nn

from ..envs.checks import check_integer, check_policy
from ..envs.env import as_env, problem_of
from ..envs.problem import Policy, Trajectories, check_positive, rollout
from .callbacks import StepCalls, StepProgressBar, StoppedByCallback
from .checkpoint import SavedAgent, signature
from .checks import check_learning, check_names, check_shared, seen
from .control import ControlPolicy

SelfAgent = TypeVar("SelfAgent", bound="ProblemAgent")


def descend(
    loss: Tensor,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module,
    decay: float,
) -> None:
    """One clipped gradient step of ``learner``; ``average`` follows it.

    It becomes ``decay average + (1 - decay) learner``.
    """
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), learner.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


class ProblemAgent(SavedAgent):
    """Base of PDE and PIFT: data collection and SB3's learning loop.

    Args:
        policy: name of the function class, or a ``ControlPolicy`` class.
        env: an environment, a vector environment (stable-baselines3's or Gymnasium's), a registered
            id, or a bare Problem. Wrappers that change observations, actions or rewards are not
            seen, and warned of.
        n_trajectories: paths collected in each iteration.
        learning_rate: of Adam; a number or an SB3 schedule of the remaining progress.
        anneal: let the learning rate fall linearly to zero over the budget of ``learn``.
        policy_kwargs: arguments of the function class.

    The remaining arguments are stable-baselines3's.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("n_trajectories", "learning_rate", "anneal")
    gamma: ClassVar[float] = 1.0  #: undiscounted; stable-baselines3's recipe for HParams asks

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
        stats_window_size: int = 100,
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        check_names(type(self).__name__, unknown, self.arguments())
        check_shared(n_trajectories, anneal, policy_kwargs, tensorboard_log, verbose, seed, device)
        check_integer("stats_window_size", stats_window_size)
        named = isinstance(policy, str) and policy in self.policy_aliases
        if not named and not (isinstance(policy, type) and issubclass(policy, ControlPolicy)):
            raise ValueError(
                f"policy must be one of {sorted(self.policy_aliases)} or a ControlPolicy class; got"
                f" {policy!r}"
            )
        if learning_rate is not None and not callable(learning_rate):
            check_positive("learning_rate", learning_rate)
            learning_rate = float(learning_rate)
        self.policy_name = policy if isinstance(policy, str) else policy.__name__
        super().__init__(
            policy,
            None if env is None else as_env(seen(env)),
            learning_rate,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            stats_window_size=int(stats_window_size),
            support_multi_env=True,
            seed=None if seed is None else int(seed),
            supported_action_spaces=(spaces.Box,),
        )
        self.n_trajectories = int(n_trajectories)
        self.anneal = bool(anneal)
        self.reward_queries = 0  # terminal rewards seen so far
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def arguments(cls) -> list[str]:
        """Names of the constructor's arguments."""
        inits = (vars(c).get("__init__") for c in cls.__mro__ if issubclass(c, ProblemAgent))
        every = [p for init in inits if init for p in signature_of(init).parameters.values()]
        named = {p.name for p in every if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        return sorted(name for name in named - {"self"} if not name.startswith("_"))

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.problem = problem_of(self.env).to(self.device)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(
            int(np.random.randint(2**31)) if self.seed is None else self.seed
        )
        self.policy = self.policy_class(
            self.observation_space, self.action_space, self.problem, **self.policy_kwargs
        ).to(self.device)

    # --- learning

    @abstractmethod
    def iterate(self) -> None:
        """One round: ``self.collect`` paths, improve ``self.policy``, tell ``self.logger``."""

    def collect(
        self, policy: Policy | None, n: int | None = None, start: Tensor | None = None
    ) -> Trajectories:
        """Roll out ``n`` fresh paths, from ``start`` if it is given; steps and reward queries are
        counted and the callbacks called.

        Raises:
            StoppedByCallback: a callback asked to stop.
            ValueError: the policy's controls are no numbers, or the rewards are none.
        """
        n = self.n_trajectories if n is None else n
        check_integer("n", n)
        check_policy("policy", policy)
        stopped, lost = [], torch.zeros((), dtype=torch.bool, device=self.device)

        def checked(k: int, x: Tensor) -> Tensor:
            assert policy is not None
            a = policy(k, x)
            if isinstance(a, Tensor):  # else the rollout says so
                lost.logical_or_(~a.isfinite().all())  # looked at afterwards: no wait for a GPU
            return a

        def on_step(k: int) -> bool:
            taken, last = n * self.processes, k == self.problem.horizon - 1
            self.num_timesteps += taken
            self.reward_queries += taken * last
            if self._calls is not None and not self._calls(taken, last):
                stopped.append(k)
            return not stopped

        try:
            with torch.no_grad():
                actor = None if policy is None else checked
                paths = rollout(
                    self.problem, actor, n, self.generator, start=start, on_step=on_step
                )
        except InterruptedError as error:
            if stopped:
                raise StoppedByCallback from error
            raise  # a reward's or a transition's own
        except ValueError as error:
            raise (self._diverged() if bool(lost) else error) from None
        if bool(lost):
            raise self._diverged()
        self._last_return = paths.reward - self.problem.temperature * paths.kl
        return paths

    def _diverged(self) -> ValueError:
        return ValueError(
            "learning_rate must be small enough for the agent to converge; it diverged: after"
            f" {self._n_updates} updates its controls are NaN or infinite; got"
            f" {self.learning_rate!r}"
        )

    processes = 1  #: that collect as much as this one at the same time, and whose paths count too
    _calls: StepCalls | None = None
    _last_return: Tensor | None = None

    def learn(
        self: SelfAgent,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAgent:
        """Iterate until ``total_timesteps`` env steps have been taken.

        The last round is always finished.

        Args:
            total_timesteps: env steps; a path costs ``problem.horizon`` of them.
            callback: SB3 callback(s); ``on_step`` is called once for every environment step, so
                their frequencies (``eval_freq``, ``save_freq``) count environment steps.
            log_interval: rounds between log entries.
            tb_log_name: name of the TensorBoard run; the agent's name if absent.
            reset_num_timesteps: False continues the counters of an earlier call or of a loaded
                checkpoint.
            progress_bar: show SB3's progress bar.
        """
        total_timesteps = check_learning(
            total_timesteps, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
        if reset_num_timesteps:
            self.reward_queries = 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps,
            callback,
            reset_num_timesteps,
            tb_log_name or type(self).__name__,
            progress_bar,
        )
        self._calls = StepCalls(callback)
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
                    self.dump_logs()
        except StoppedByCallback:
            pass  # what was learned so far is kept
        callback.on_training_end()
        self._calls = None
        return self

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        bar = StepProgressBar() if progress_bar else None
        given = super()._init_callback(callback, progress_bar=False)
        if bar is None:
            return given
        both = CallbackList([given, bar])
        both.init_callback(self)
        return both

    def dump_logs(self) -> None:
        """Write what was recorded so far; SB3's ``LogEveryNTimesteps`` asks for it, too."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record(
            "time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / seconds)
        )
        self.logger.record("time/reward_queries", self.reward_queries)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        if self._last_return is not None:
            self.logger.record("rollout/ep_rew_mean", float(self._last_return.mean()))
        if self.ep_info_buffer:
            self.logger.record(
                "rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer])
            )
        self.logger.dump(self.num_timesteps)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the present learning rate.

        The schedule's, falling linearly towards zero if ``anneal`` is on.
        """
        remaining = self._current_progress_remaining
        rate = self.lr_schedule(remaining) * (max(remaining, 0.02) if self.anneal else 1.0)
        self.logger.record("train/learning_rate", rate)
        update_learning_rate(optimizer, rate)

    @abstractmethod
    def forget(self) -> None:
        """Drop past paths: they belong to another problem."""

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Point the agent at another environment, at another temperature, say.

        Spaces, shapes and horizon must be the same.
        """
        env = self._wrap_env(as_env(seen(env)), self.verbose)
        check_for_correct_spaces(env, self.observation_space, self.action_space)
        ours, theirs = (
            signature(problem, env.action_space) for problem in (self.problem, problem_of(env))
        )
        for name in (
            "state_shape",
            "noise_shape",
            "horizon",
        ):  # what networks and tables are made for
            if ours[name] != theirs[name]:
                raise ValueError(
                    f"env must have the {name} that the agent was made for, {ours[name]}; got"
                    f" {theirs[name]}"
                )
        self.n_envs = env.num_envs  # the agent batches by itself: any number of lanes will do
        super().set_env(env, force_reset)
        self.problem = problem_of(env).to(self.device)
        self.policy.problem = self.problem  # type: ignore[assignment]
        self.forget()
