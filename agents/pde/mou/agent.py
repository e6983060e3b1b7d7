"""Mou's estimator as an agent: the row that every step away from him is measured against."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ....envs.recording import Recording
from ...base import ProblemAgent
from ...checks import check_whole
from ...control import ControlPolicy
from ...trees import to
from ..policies import RadialPolicy
from ..replay import Replay
from .estimator import Inequality, observed, solve


class MouPDE(ProblemAgent):
    """Off-policy value function estimation by one variational inequality (Mou 2025).

    Independent uncontrolled paths, each seen at random times and at its end; a class that is convex
    in f itself (positive radial bases, weights projected to be non-negative); the inequality solved
    over it; the control is the gradient of log f through the transition. What ``PDE`` adds is
    absent: paths of the learnt control, densities, fresh noise, scales and ridges chosen on paths
    held out, networks.

    Args:
        policy: ``"RadialPolicy"``, or a class of policies whose value is a ``RadialValue``.
        env: an environment, a registered id, or a bare Problem whose transition is differentiable
            in its noise.
        learning_rate: not used: nothing is learnt in steps.
        n_trajectories: paths gathered before the inequality is solved anew, on all so far.
        visits: random times at which each path is seen beside its end; every step if the horizon
            has no more.
        kwargs: stable-baselines3's arguments, and ``policy_kwargs`` (``RadialValue``'s).

    Raises:
        ValueError: an unknown argument, or one that is not allowed.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"RadialPolicy": RadialPolicy}
    hyperparameters: ClassVar[tuple[str, ...]] = (*ProblemAgent.hyperparameters, "visits")
    policy: RadialPolicy

    def __init__(
        self,
        policy: str | type[ControlPolicy] = "RadialPolicy",
        env: Any = None,
        learning_rate: Any = 1.0,
        n_trajectories: int = 100,
        visits: int = 10,
        **kwargs: Any,
    ) -> None:
        check_whole("visits", visits, 1)
        self.visits = visits
        self._seen: Inequality | None = None
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    @classmethod
    def tuned(cls, env: Any, **kwargs: Any) -> MouPDE:
        """As the scoreboard makes it: the defaults."""
        return cls(kwargs.pop("policy", "RadialPolicy"), env, **kwargs)

    def iterate(self) -> None:
        """Observe more uncontrolled paths, and solve the inequality on all so far."""
        recording = Recording.of(self.collect(None))
        if self.visits < self.problem.horizon:
            recording = recording.at_random_times(self.visits, self.generator)
        data, value = Replay.of(self.problem, recording), self.policy.value
        if self._seen is None:
            value.standardise.fit(data.inputs.flatten(0, 1))
            returns = data.log_returns.double()
            value.offset.fill_(returns.logsumexp(0) - math.log(len(returns)))
            value.place(data.steps.flatten(), data.inputs.flatten(0, 1), self.generator)
        found = observed(value, data)
        self._seen = found if self._seen is None else self._seen.plus(found)
        solve(value, self._seen)
        self._n_updates += 1
        self.logger.record("train/active_weights", int((value.weights > 0).sum()))

    def training_state(self) -> dict[str, Any]:
        """See SavedAgent."""
        return {**super().training_state(), "seen": self._seen}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """See SavedAgent."""
        super().set_training_state(state)
        seen = state["seen"]
        self._seen = None if seen is None else Inequality(*to(seen, self.device))

    def forget(self) -> None:
        """See ProblemAgent."""
        self._seen = None
