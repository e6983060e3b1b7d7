"""What a policy is worth, measured the same way for every agent, and what it is measured against.

    score(pi) = (J(pi) - J(0)) / (J_ref - J(0)):    0 is the pre-trained model, 1 is optimal.

``J_ref`` is the exact optimum where the problem offers one, else the Donsker-Varadhan bound. Where
neither can be had (too few effective paths carry the bound) there is no score.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..baselines.sb3 import deterministic_policy
from ..envs.certificates import Certificate, certificate_by_start, certificate_of
from ..envs.env import device_of
from ..envs.problem import Estimate, Objective, Policy, Problem, rollout
from .records import read_json, write_json

#: Seeds of evaluation, far from those of training: one stream each for the reference, the curves,
#: the end, the pictures.
REFERENCE_SEED, CURVE_SEED, FINAL_SEED, SAMPLE_SEED = (
    4_000_000_007,
    1_000_000_007,
    2_000_000_011,
    3_000_000_019,
)
#: Uncontrolled paths from each start of the closer certificate.
_PATHS_OF_A_START = 4096


def generator_on(problem: Problem, seed: int) -> torch.Generator:
    """A random stream on the problem's device."""
    return torch.Generator(device_of(problem)).manual_seed(seed)


def policy_of(model: Any, problem: Problem) -> Policy:
    """What a model does without exploration, as a batched torch policy: our agents' ``control``, or
    that of an SB3 model.
    """
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


@torch.no_grad()
def evaluate(
    problem: Problem, policy: Policy | None, n: int, generator: torch.Generator, batch: int = 1024
) -> Evaluation:
    """Run ``n`` fresh paths, ``batch`` at a time."""
    rewards, kls, ends = [], [], []
    for start in range(0, n, batch):
        paths = rollout(problem, policy, min(batch, n - start), generator)
        rewards.append(paths.reward)
        kls.append(paths.kl)
        ends.append(paths.states[-1].clone())
    reward, kl, states = torch.cat(rewards).double(), torch.cat(kls).double(), torch.cat(ends)
    value = Objective(
        Estimate.of(reward - problem.temperature * kl), Estimate.of(reward), Estimate.of(kl)
    )
    success = getattr(problem, "success", None)
    return Evaluation(
        value, None if success is None else Estimate.of(success(states).double()), states
    )


class Reference(NamedTuple):
    """What scores are measured against; computed once for an environment."""

    uncontrolled: Estimate  # J(0)
    certificate: Certificate
    optimum: float | None  # exact, where the problem has optimal_objective()
    closed_form: Objective | None  # the problem's own optimal or reference control
    success: Estimate | None  # of the uncontrolled process
    by_start: Certificate | None = None  # the closer bound, where it was asked for

    @property
    def bound(self) -> Certificate:
        """The closest certificate that is certified."""
        return (
            self.by_start
            if self.by_start is not None and self.by_start.certified
            else self.certificate
        )

    @property
    def target(self) -> Estimate | None:
        """``J_ref``; None if there is no exact optimum and no bound is certified."""
        if self.optimum is not None:
            return Estimate(self.optimum, 0.0)
        return Estimate(self.bound.bound, self.bound.stderr) if self.bound.certified else None

    def score(self, objective: Estimate) -> Estimate | None:
        """The score and its standard error (delta method, the three estimates taken as
        independent).

        None without a ``target``, or when J_ref - J(0) is within 3 standard errors of zero: then
        there is nothing to gain.
        """
        if self.target is None:
            return None
        room = self.target.mean - self.uncontrolled.mean
        if not room > 3 * math.hypot(self.target.stderr, self.uncontrolled.stderr):
            return None
        score = (objective.mean - self.uncontrolled.mean) / room
        parts = objective.stderr, (1 - score) * self.uncontrolled.stderr, score * self.target.stderr
        return Estimate(score, math.hypot(*parts) / room)

    def holds(self, objective: Estimate) -> bool | None:
        """Whether ``J <= bound + 3 standard errors`` (of both estimates); None if the bound is not
        certified.
        """
        if not self.bound.certified:
            return None
        return objective.mean <= self.bound.bound + 3 * math.hypot(
            objective.stderr, self.bound.stderr
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``from_json`` and for the reader."""
        closed = self.closed_form
        return {
            "uncontrolled": self.uncontrolled._asdict(),
            "certificate": _plain(self.certificate),
            "by_start": None if self.by_start is None else _plain(self.by_start),
            "optimum": self.optimum,
            "closed_form": (
                None
                if closed is None
                else {name: part._asdict() for name, part in closed._asdict().items()}
            ),
            "success": None if self.success is None else self.success._asdict(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Reference:
        """The inverse of ``to_json``."""
        closed, success, by_start = values["closed_form"], values["success"], values.get("by_start")
        return cls(
            Estimate(**values["uncontrolled"]),
            _certificate(values["certificate"]),
            values["optimum"],
            (
                None
                if closed is None
                else Objective(**{name: Estimate(**part) for name, part in closed.items()})
            ),
            None if success is None else Estimate(**success),
            None if by_start is None else _certificate(by_start),
        )


def _plain(certificate: Certificate) -> dict[str, Any]:
    return {**certificate._asdict(), "certified": certificate.certified}


def _certificate(values: dict[str, Any]) -> Certificate:
    return Certificate(**{key: value for key, value in values.items() if key != "certified"})


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
    returns, solved = [], []
    for start in range(0, n, 4096):
        paths = rollout(problem, None, min(4096, n - start), generator)
        returns.append(paths.reward)
        if hasattr(problem, "success"):
            solved.append(problem.success(paths.states[-1]).double())
    reward = torch.cat(returns).double()
    return Reference(
        Estimate.of(reward),
        certificate_of(reward, problem.temperature),
        _optimum(problem),
        _closed_form(problem, min(n, closed_form_paths), generator),
        Estimate.of(torch.cat(solved)) if solved else None,
        certificate_by_start(problem, starts, _PATHS_OF_A_START, generator) if starts else None,
    )


def _optimum(problem: Problem) -> float | None:
    return float(problem.optimal_objective()) if hasattr(problem, "optimal_objective") else None


def _closed_form(problem: Problem, n: int, generator: torch.Generator) -> Objective | None:
    control = getattr(problem, "optimal_control", None) or getattr(
        problem, "reference_control", None
    )
    if control is None:
        return None
    try:
        return evaluate(problem, control, n, generator).value
    except ValueError:  # a closed form for other rewards than this problem's
        return None


def cached_reference(problem: Problem, settings: dict[str, Any], path: Path) -> Reference:
    """The reference of an environment from the file ``path``, computed and written if it is not
    there.

    ``settings`` (id, keyword arguments, ``reference_paths``, ``reference_starts`` if any) must be
    those of the file, or ValueError names it.
    """
    if path.is_file():
        found = read_json(path)
        try:
            made_with, reference = found["settings"], Reference.from_json(found["reference"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} holds no reference; delete it, or use another output folder ({error!r})"
            ) from error
        asked = settings.get("fingerprint")
        if made_with.get("fingerprint", asked) != asked:
            raise ValueError(
                f"{path} belongs to another problem: its code, weights or model file have changed"
                f" since; use another output folder, or delete {path.parent} to begin again"
            )
        if {**made_with, "fingerprint": asked} != {**settings, "fingerprint": asked}:
            raise ValueError(
                f"{path} was computed with {made_with}, not {settings}; use another output folder"
            )
        return reference
    reference = reference_of(
        problem, settings["reference_paths"], starts=settings.get("reference_starts", 0)
    )
    write_json(path, {"settings": settings, "reference": reference.to_json()})
    return reference
