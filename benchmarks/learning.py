"""Agents by name that learn while their CPU seconds are told, looked at after given rewards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from girsanov.envs.env import as_env, problem_of
from girsanov.envs.problem import Policy
from girsanov.scoreboard.callback import episode_length, reward_queries
from girsanov.scoreboard.evaluation import policy_of
from girsanov.scoreboard.registry import find_agent
from girsanov.scoreboard.spec import Budget
from girsanov.scoreboard.stopwatch import Stopwatch


class Curve(BaseCallback):
    """An agent that learns on the CPU, and what it is worth on the way. Looking costs no seconds
    and changes nothing.

    Args:
        agent: of the scoreboard's registry.
        env: an environment, or a bare Problem.
        seed: of the agent.
        measure: of a policy.
        points: reward queries to look after, ascending; at the end it is looked at anyhow.
        cpu_seconds: limit of training.
        settings: of the agent.
    """

    def __init__(
        self,
        agent: str,
        env: Any,
        seed: int,
        measure: Callable[[Policy], dict[str, Any]] = lambda policy: {},
        points: Sequence[int] = (),
        cpu_seconds: float = math.inf,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.learner = find_agent(agent).make(as_env(env), seed=seed, device="cpu", **settings)
        self.problem = problem_of(self.learner.get_env())
        self.measure, self.due, self.limit = measure, list(points), cpu_seconds
        self.rows: list[dict[str, Any]] = []
        self.norms: list[float] = []  # of the gradients, a round each, where they are told
        self._clock = Stopwatch(torch.device("cpu"), clock=time.process_time)

    def learn(self, queries: int) -> Curve:
        """Until that many rewards are seen, or the seconds spent."""
        length, lanes = episode_length(self.learner, self.problem), self.learner.n_envs
        self.learner.learn(Budget(queries).timesteps(length, lanes), self)
        return self

    @property
    def policy(self) -> Policy:
        """What was learnt, without exploration."""
        return policy_of(self.learner, self.problem)

    def spent(self) -> dict[str, float]:
        """All three units of cost; seconds are CPU seconds of training."""
        return {
            "queries": reward_queries(self.learner, self.problem),
            "env_steps": self.learner.num_timesteps,
            "seconds": round(self._clock.seconds, 3),
        }

    def _on_training_start(self) -> None:
        self._clock.resume()

    def _on_rollout_start(self) -> None:  # the model has just been trained on all that it has seen
        if self.due and self.spent()["queries"] >= self.due[0]:
            self._look()

    def _on_rollout_end(self) -> None:
        if norm := self.model.logger.name_to_value.get("train/gradient_norm"):
            self.norms.append(float(f"{norm:.4g}"))

    def _on_step(self) -> bool:
        return self._clock.seconds < self.limit

    def _on_training_end(self) -> None:
        if not self.rows or self.spent()["queries"] > self.rows[-1]["queries"]:
            self._look()
        self._clock.pause()

    def _look(self) -> None:
        self._clock.pause()
        spent, training = self.spent(), self.model.policy.training
        self.due = [point for point in self.due if point > spent["queries"]]
        self.model.policy.set_training_mode(False)
        with torch.random.fork_rng([]):
            found = self.measure(self.policy)
        self.model.policy.set_training_mode(training)
        self.rows.append({**spent, **found})
        self._clock.resume()
