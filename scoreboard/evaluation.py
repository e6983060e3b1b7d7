"""What a policy is worth, measured the same way for every agent, and what it is measured against.

    score(pi) = (J(pi) - J(0)) / (J_ref - J(0)):    0 is the pre-trained model, 1 is optimal.

``J_ref`` is the exact optimum where the problem offers one. Else it lies between the best J that
anybody reached and the Donsker-Varadhan bound, and so does the score between two values. Where too
few effective paths carry the bound, or a policy is worth more, there is no score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..baselines.guided_sampling import Sampler, Sampling
from ..baselines.sb3 import deterministic_policy
from ..envs.certificates import (
    Certificate,
    Pooled,
    SuccessRate,
    certificate_by_start,
    certificate_of,
    pooled_certificate,
    reward_bound_of,
)
from ..envs.certificates.success import joined, solved_of
from ..envs.counting import counted
from ..envs.env import device_of
from ..envs.problem import Estimate, Objective, Policy, Problem, rollout

#: Seeds of evaluation, far from those of training: one stream each for the reference, the curves,
#: the end, the pictures, and the paths that policies lend.
REFERENCE_SEED, CURVE_SEED, FINAL_SEED, SAMPLE_SEED, POOLED_SEED = (
    4_000_000_007,
    1_000_000_007,
    2_000_000_011,
    3_000_000_019,
    5_000_000_029,
)
#: Paths from each start of the closer certificate: uncontrolled ones alone; all proposals together.
_PATHS_OF_A_START, _POOLED_OF_A_START = 4096, 1024


def generator_on(problem: Problem, seed: int) -> torch.Generator:
    """A random stream on the problem's device."""
    return torch.Generator(device_of(problem)).manual_seed(seed)


def policy_of(model: Any, problem: Problem) -> Any:
    """What a model does without exploration, as a batched torch policy: our agents' ``control``, or
    that of an SB3 model; what draws whole samples is its own.
    """
    if hasattr(model, "draw"):
        return model
    return (
        model.policy.control
        if hasattr(model.policy, "control")
        else deterministic_policy(model, problem)
    )


class Evaluation(NamedTuple):
    """A policy on fresh paths."""

    value: Objective
    success: (
        Estimate | None
    )  # share of terminal states that solve the task, where the problem says which do
    states: Tensor  # terminal states (n, *state_shape)
    sampling: Sampling | None = None  # of a Sampler


@torch.no_grad()
def evaluate(
    problem: Problem,
    policy: Policy | Sampler | None,
    n: int,
    generator: torch.Generator,
    batch: int = 1024,
) -> Evaluation:
    """Run ``n`` fresh paths, ``batch`` at a time."""
    rewards, kls, ends = [], [], []
    acting: Any = policy
    draw = getattr(policy, "draw", None)
    twin, evaluations = (problem, None) if draw is None else counted(problem)
    queries, begun = 0, time.process_time()
    for start in range(0, n, batch):
        size = min(batch, n - start)
        if draw is None:
            paths = rollout(problem, acting, size, generator)
            ends.append(paths.states[-1].clone())
        else:
            paths = draw(twin, size, generator)
            ends.append(paths.states)
            queries += paths.values
        rewards.append(paths.reward)
        kls.append(paths.kl)
    sampling = None
    if evaluations is not None:
        sampling = Sampling(evaluations.count / n, queries / n, (time.process_time() - begun) / n)
    reward, kl, states = torch.cat(rewards).double(), torch.cat(kls).double(), torch.cat(ends)
    value = Objective(
        Estimate.of(reward - problem.temperature * kl), Estimate.of(reward), Estimate.of(kl)
    )
    success = getattr(problem, "success", None)
    return Evaluation(
        value, None if success is None else Estimate.of(success(states).double()), states, sampling
    )


class Reached(NamedTuple):
    """What somebody's policy is worth."""

    by: str  # an agent, or "closed form"
    objective: Estimate


class Reference(NamedTuple):
    """What scores are measured against; computed once for an environment, refined when its runs
    end.
    """

    uncontrolled: Estimate  # J(0)
    certificate: Certificate
    optimum: float | None  # exact, where the problem has optimal_objective()
    closed_form: Objective | None  # the problem's own optimal or reference control
    success: Estimate | None  # of the uncontrolled process
    by_start: Certificate | None = None  # the closer bound, where it was asked for
    pooled: Pooled | None = None  # both bounds with the paths of learnt policies
    best: Reached | None = None  # the most that anybody reached: J_ref is no less
    closed_form_success: Estimate | None = None

    @property
    def bounds(self) -> list[Certificate]:
        """The certificates that are certified and not refuted, the closest first."""
        pooled = self.pooled
        found = [self.by_start, self.certificate]
        if pooled is not None:
            ours = [pooled.by_start, pooled.certificate]
            found = ours if pooled.refutes else [ours[0], found[0], ours[1], found[1]]
        return [c for c in found if c is not None and c.certified and not self.is_refuted(c)]

    def is_refuted(self, certificate: Certificate) -> bool:
        """Whether somebody's policy is worth more than a bound, beyond 3 standard errors."""
        return self.best is not None and not _below(self.best.objective, certificate)

    @property
    def bound(self) -> Certificate:
        """The first of ``bounds``; where there is none, that of the uncontrolled paths."""
        return next(iter(self.bounds), self.certificate)

    @property
    def target(self) -> Estimate | None:
        """``J_ref``, or its upper end; None if there is no exact optimum and no bound stands."""
        if self.optimum is not None:
            return Estimate(self.optimum, 0.0)
        return Estimate(self.bound.bound, self.bound.stderr) if self.bounds else None

    @property
    def success_at_bound(self) -> SuccessRate | None:
        """How often the law that attains the closest bound solves the task, of the bounds that
        stand and tell it.
        """
        return next((c.success for c in self.bounds if c.success is not None), None)

    def score(self, objective: Estimate) -> Estimate | None:
        """The score and its standard error (delta method, the three estimates taken as
        independent); where J_ref is not exact, the lower end of the score.

        None without a ``target``, or when J_ref - J(0) is within 3 standard errors of zero: then
        there is nothing to gain.
        """
        return self._share(objective, self.target)

    def score_of_best(self, objective: Estimate) -> Estimate | None:
        """The upper end of the score: against the exact optimum, else the best J that anybody
        reached.
        """
        if self.optimum is not None:
            return self.score(objective)
        return self._share(objective, None if self.best is None else self.best.objective)

    def _share(self, objective: Estimate, target: Estimate | None) -> Estimate | None:
        if target is None:
            return None
        room = target.mean - self.uncontrolled.mean
        if not room > 3 * math.hypot(target.stderr, self.uncontrolled.stderr):
            return None
        score = (objective.mean - self.uncontrolled.mean) / room
        parts = objective.stderr, (1 - score) * self.uncontrolled.stderr, score * target.stderr
        return Estimate(score, math.hypot(*parts) / room)

    def holds(self, objective: Estimate) -> bool | None:
        """Whether ``J <= bound + 3 standard errors`` (of both estimates); None if the bound is not
        certified.
        """
        return _below(objective, self.bound) if self.bound.certified else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``from_json`` and for the reader."""
        closed, refined = self.closed_form, {}
        if self.pooled is not None:
            refined["pooled"] = self.pooled.to_json()
        if self.closed_form_success is not None:
            refined["closed_form_success"] = self.closed_form_success._asdict()
        if self.best is not None:
            refined["best"] = {"by": self.best.by, **self.best.objective._asdict()}
        return {
            "uncontrolled": self.uncontrolled._asdict(),
            "certificate": self.certificate.to_json(),
            "by_start": None if self.by_start is None else self.by_start.to_json(),
            "optimum": self.optimum,
            "closed_form": (
                None
                if closed is None
                else {name: part._asdict() for name, part in closed._asdict().items()}
            ),
            "success": None if self.success is None else self.success._asdict(),
            **refined,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Reference:
        """The inverse of ``to_json``."""
        closed, success, by_start = values["closed_form"], values["success"], values.get("by_start")
        pooled, best = values.get("pooled"), values.get("best")
        solved = values.get("closed_form_success")
        return cls(
            Estimate(**values["uncontrolled"]),
            Certificate.from_json(values["certificate"]),
            values["optimum"],
            (
                None
                if closed is None
                else Objective(**{name: Estimate(**part) for name, part in closed.items()})
            ),
            None if success is None else Estimate(**success),
            None if by_start is None else Certificate.from_json(by_start),
            None if pooled is None else Pooled.from_json(pooled),
            None if best is None else Reached(best["by"], Estimate(best["mean"], best["stderr"])),
            None if solved is None else Estimate(**solved),
        )


def _below(objective: Estimate, bound: Certificate) -> bool:
    return objective.mean <= bound.bound + 3 * math.hypot(objective.stderr, bound.stderr)


@torch.no_grad()
def reference_of(
    problem: Problem,
    n: int,
    seed: int = REFERENCE_SEED,
    closed_form_paths: int = 4096,
    starts: int = 0,
) -> Reference:
    """J(0) and the certificate from the same ``n`` uncontrolled paths, and what the problem knows
    of its optimum.

    ``starts`` adds the closer certificate over that many initial states, from 4,096 more paths of
    each.
    """
    generator = generator_on(problem, seed)
    returns, judged = list[Tensor](), list[Tensor | None]()
    for start in range(0, n, 4096):
        paths = rollout(problem, None, min(4096, n - start), generator)
        returns.append(paths.reward)
        judged.append(solved_of(problem, paths.states[-1]))
    reward, solved = torch.cat(returns).double(), joined(judged)
    bounded = reward_bound_of(problem)
    closed = _closed_form(problem, min(n, closed_form_paths), generator)
    return Reference(
        Estimate.of(reward),
        certificate_of(reward, problem.temperature, reward_bound=bounded, solved=solved),
        _optimum(problem),
        None if closed is None else closed.value,
        None if solved is None else Estimate.of(solved),
        certificate_by_start(problem, starts, _PATHS_OF_A_START, generator) if starts else None,
        closed_form_success=None if closed is None else closed.success,
    )


@torch.no_grad()
def pooled_reference(
    problem: Problem, policies: Mapping[str, Policy], n: int, starts: int = 0
) -> Pooled:
    """The certificates from about ``n`` paths, in equal shares uncontrolled and of each policy;
    with ``starts`` the closer one too, from 1,024 paths of each.
    """
    shares, generator = len(policies) + 1, generator_on(problem, POOLED_SEED)
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(POOLED_SEED)  # for policies that average over noise of their own
        pooled = pooled_certificate(problem, policies, max(64, n // shares), generator)
        if not starts:
            return pooled
        paths = max(8, _POOLED_OF_A_START // shares)
        closer = certificate_by_start(
            problem, starts, paths, generator, batch=2048, policies=policies
        )
    return pooled._replace(by_start=closer)


def _optimum(problem: Problem) -> float | None:
    return float(problem.optimal_objective()) if hasattr(problem, "optimal_objective") else None


def _closed_form(problem: Problem, n: int, generator: torch.Generator) -> Evaluation | None:
    control = getattr(problem, "optimal_control", None) or getattr(
        problem, "reference_control", None
    )
    if control is None:
        return None
    try:
        return evaluate(problem, control, n, generator)
    except ValueError:  # a closed form for other rewards than this problem's
        return None
