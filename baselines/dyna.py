"""Dyna (Sutton 1991): PPO on paths that are simulated, with rewards learnt from those seen.

It may use what PDE's imagined paths use: the transition, as often as it likes, and a black-box
reward, each answer of which is counted. A round gathers real paths under the present policy, fits
networks to all rewards seen so far, and lets stable-baselines3's PPO go on learning on imagined
paths. Those cost model evaluations, which are counted as such, and no reward.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3 import PPO
from torch import Tensor, nn

from ..agents.base import ProblemAgent
from ..agents.checks import check_whole
from ..agents.control import ControlPolicy
from ..agents.pde.learned_rewards import ImaginedProblem, LearnedRewards
from ..agents.pde.replay import Replay
from ..agents.trees import to
from ..envs.env import as_env, problem_of
from ..envs.features import encode
from ..envs.problem import Policy, Problem
from ..envs.recording import Recording
from . import hyperparameters, sb3_state
from .hyperparameters import settings_for
from .sb3 import make_ppo

#: Gradient steps of the rewards' networks in a round.
_REWARD_STEPS = 400


class DynaPolicy(ControlPolicy):
    """The mean of the dreaming PPO's policy as a control."""

    actor: nn.Module

    def dream(self, dreamer: PPO) -> None:
        """Act as ``dreamer`` does without exploration."""
        self.actor = dreamer.policy
        # a list hides what belongs to the problem from nn.Module
        self._seen = [dreamer.get_env().get_attr("observation")[0].of(self.problem)]  # type: ignore[union-attr]

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy; ``k`` an int or one step per row."""
        if isinstance(k, int):
            return self._mean(self._seen[0](k, x), x)
        out = x.new_zeros(len(x), *self.problem.noise_shape)
        for step in k.unique().tolist():
            row = k == step
            out[row] = self._mean(self._seen[0](step, x[row]), x[row])
        return out

    @torch.no_grad()
    def _mean(self, observation: Tensor, x: Tensor) -> Tensor:
        actor: Any = self.actor
        mean = actor._predict(observation, deterministic=True)
        return mean.view(len(x), *self.problem.noise_shape).to(x.dtype)


class Dreamt(ImaginedProblem):
    """The imagined problem, with what the real one offers to observations and actions."""

    def __getattr__(self, name: str) -> Any:
        if name in ("terminal_estimate", "gaussian_kernel"):
            return getattr(self.__dict__["problem"], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Dyna(ProblemAgent):
    """PPO in a model whose rewards are learnt.

    Args:
        policy: ``"MlpPolicy"``.
        env: an environment, a vector environment, a registered id, or a bare Problem.
        learning_rate: of PPO.
        n_trajectories: real paths in a round.
        imagined: imagined paths in a round.
        policy_kwargs: none.
        kwargs: ``ProblemAgent``'s; what else ``make_ppo`` takes goes to the dreaming PPO as
            ``ppo``, a dict.
        ppo: settings of the dreaming PPO.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": DynaPolicy}
    policy: DynaPolicy
    seen: list[Replay]  #: real paths, a round each
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("imagined", "ppo"),
    )

    def __init__(
        self,
        policy: str | type[DynaPolicy] = "MlpPolicy",
        env: Any = None,
        learning_rate: Any = 3e-3,
        n_trajectories: int = 50,
        imagined: int = 1000,
        ppo: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_whole("imagined", imagined, 1)
        self.imagined = imagined
        self.ppo = dict(ppo or {})
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    @classmethod
    def tuned(cls, env: Any, **overrides: Any) -> Dyna:
        """Dyna with the settings of ``hyperparameters.DYNA`` for the problem behind ``env``, and
        ``overrides`` on top; those that are PPO's go there.
        """
        env = as_env(env)
        own = {*cls.hyperparameters, "policy", "seed", "device", "tensorboard_log", "verbose"}
        settings = {**settings_for(hyperparameters.DYNA, problem_of(env)), **overrides}
        ppo = {**settings.pop("ppo", {}), **{k: v for k, v in settings.items() if k not in own}}
        return cls(env=env, ppo=ppo, **{k: v for k, v in settings.items() if k in own})

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rewards = self._networks(self.problem)
        self._dream()
        self.forget()

    def _networks(self, problem: Problem) -> LearnedRewards:
        with torch.no_grad():
            some = encode(
                problem, 0, problem.initial(2, torch.Generator(self.device).manual_seed(0))
            )
        return LearnedRewards(some.shape[1], problem.horizon).to(self.device)

    def _dream(self) -> None:
        imagined = Dreamt(self.problem, self.rewards)
        seed = int(torch.randint(2**31, (1,), generator=self.generator, device=self.device))
        settings = {"anneal": False, **self.ppo}
        self.dreamer = make_ppo(imagined, seed, self.device, learning_rate=1.0, **settings)
        self.dreamer.set_logger(self._silent())
        self.policy.dream(self.dreamer)

    @staticmethod
    def _silent() -> Any:
        from stable_baselines3.common.logger import Logger

        return Logger(folder=None, output_formats=[])

    def networks(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """See ProblemAgent."""
        return {
            **super().networks(),
            **{"rewards": self.rewards, "rewards_optimizer": self.rewards.optimizer},
            "optimizer": self.dreamer.policy.optimizer,
        }

    def training_state(self) -> dict[str, Any]:
        """See SavedAgent."""
        past = {"dreamer": sb3_state.training_state(self.dreamer), "seen": self.seen}
        return {**super().training_state(), **past}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """See SavedAgent."""
        super().set_training_state(state)
        sb3_state.set_training_state(self.dreamer, state["dreamer"])
        self.seen = [Replay(*to(parts, self.device)) for parts in state["seen"]]

    def forget(self) -> None:
        """See ProblemAgent."""
        self.seen = []

    def iterate(self) -> None:
        """Real paths, rewards, dreams."""
        acting: Policy | None = self.policy.control if self.seen or self._n_updates else None
        paths = self.collect(acting)
        self.seen.append(Replay.of(self.problem, Recording.of(paths)))
        running, terminal = self.rewards.regress(
            Replay.joined(self.seen), _REWARD_STEPS, self.generator
        )
        self.logger.record("train/running_reward_loss", running)
        self.logger.record("train/terminal_reward_loss", terminal)
        remaining = self._current_progress_remaining
        rate = self.lr_schedule(remaining) * (max(remaining, 0.02) if self.anneal else 1.0)
        self.dreamer.lr_schedule = lambda _: rate
        length = self.dreamer.get_env().episode_length  # type: ignore[union-attr]
        self.dreamer.learn(self.imagined * length, reset_num_timesteps=False)
        self._n_updates = self.dreamer._n_updates
