"""The planar mixture in any dimension, and what a policy is worth there, measured closely.

Scores are told in results/frontier/report.md: against the Donsker-Varadhan bound, estimated from
paths of the closed-form control with their Girsanov weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import resumable as bench
import torch
from torch import Tensor

from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate_of
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Estimate, Policy, rollout
from girsanov.scoreboard.evaluation import CURVE_SEED, REFERENCE_SEED, generator_on


def mixture(beta: float, dimension: int = 2) -> Any:
    """The problem, on the CPU."""
    return make_problem("girsanov/GaussianMixture-v0", temperature=beta, dimension=dimension)


def closed_form(problem: Any) -> Policy:
    """The problem's closed-form control within the action bound of its environment."""
    bound = ProblemEnv(problem).action_bound
    return lambda k, x: problem.reference_control(k, x).clamp(-bound, bound)


def _returns(problem: Any, paths: Any) -> Tensor:
    return (paths.reward - problem.temperature * paths.kl).double()


class Reference(NamedTuple):
    """What the scores of a problem are measured against."""

    uncontrolled: Estimate  # J(0)
    bound: Estimate  # J_ref
    closed_form: Estimate  # J of the closed-form control, clipped to the action bound
    ess_share: float  # of the paths behind the bound
    paths: int

    @property
    def room(self) -> float:
        """J_ref - J(0)."""
        return self.bound.mean - self.uncontrolled.mean

    def score(self, objective: float) -> float:
        """0 the pre-trained model, 1 out of reach."""
        return (objective - self.uncontrolled.mean) / self.room

    @classmethod
    @torch.no_grad()
    def of(cls, problem: Any, paths: int, batch: int = 4096) -> Reference:
        """Estimate all of it from ``paths`` uncontrolled and as many controlled paths."""
        beta, generator = problem.temperature, generator_on(problem, REFERENCE_SEED)
        parts = []
        for start in range(0, paths, batch):
            n = min(batch, paths - start)
            free = rollout(problem, None, n, generator).reward.double()
            found = rollout(problem, closed_form(problem), n, generator)
            weighed = (found.reward + beta * found.log_ratios.sum(0)).double()
            parts.append((free, _returns(problem, found), weighed))
        nothing, controlled, weighed = map(torch.cat, zip(*parts, strict=True))
        found = certificate_of(weighed, beta)
        bound, share = Estimate(found.bound, found.stderr), found.ess / paths
        return cls(Estimate.of(nothing), bound, Estimate.of(controlled), share, paths)

    @classmethod
    def kept(cls, beta: float, dimension: int, paths: int, out: Path) -> Reference:
        """The line in ``out``, made if it is not there; a ValueError names one that was made from
        other numbers.
        """

        def make() -> bench.Line:
            values = cls.of(mixture(beta, dimension), paths)._asdict().items()
            return {name: v._asdict() if isinstance(v, Estimate) else v for name, v in values}

        found = bench.kept(out, f"beta{beta:g}-d{dimension}", {"reference_paths": paths}, make)
        return cls(**{k: Estimate(**v) if isinstance(v, dict) else v for k, v in found.items()})


class Yardstick:
    """Measures policies on ``paths`` noises that are the same for all of them.

    The returns of no control and of the closed form on them, whose means are known from many more
    paths, are control variates in a regression: at beta 2 that takes the standard error of a score
    near 0.9 from 0.06 to 0.01 to 0.02.
    """

    def __init__(self, problem: Any, reference: Reference, paths: int) -> None:
        self.problem, self.reference, self.paths = problem, reference, paths
        known = {None: reference.uncontrolled, closed_form(problem): reference.closed_form}
        controls = [self.run(policy)[0] - value.mean for policy, value in known.items()]
        self._design = torch.stack([torch.ones_like(controls[0]), *controls], 1)
        self._inverse = torch.linalg.inv(self._design.T @ self._design)

    @torch.no_grad()
    def run(self, policy: Policy | None) -> tuple[Tensor, float]:
        """Returns path by path, and the mean KL."""
        paths = rollout(self.problem, policy, self.paths, generator_on(self.problem, CURVE_SEED))
        return _returns(self.problem, paths), float(paths.kl.mean())

    def measure(self, policy: Policy | None) -> dict[str, float]:
        """Objective and score with their standard errors (the reference taken as exact: it is the
        same for all), and KL.
        """
        returns, kl = self.run(policy)
        coefficients = self._inverse @ (self._design.T @ returns)
        residual = returns - self._design @ coefficients
        variance = residual.square().sum() / (self.paths - len(coefficients)) * self._inverse[0, 0]
        mean, stderr = float(coefficients[0]), math.sqrt(float(variance))
        return {
            "objective": mean,
            "objective_stderr": stderr,
            "kl": kl,
            "score": self.reference.score(mean),
            "score_stderr": stderr / self.reference.room,
        }
