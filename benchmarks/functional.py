"""Functional PI-FT (Algorithm 1 with fitted value functions) against the closed form.

    python benchmarks/functional.py             # three temperatures, 5 seeds
    python benchmarks/functional.py report

What is measured, and how, is told in results/functional/report.md.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import reports
import resumable as bench
import torch
from learning import Curve
from torch import Tensor

from girsanov.envs import make_problem
from girsanov.envs.certificates import pooled_certificate
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Policy, objective, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, REFERENCE_SEED, generator_on

#: Action bounds by temperature.
CELLS = {2.0: 1.0, 0.5: 1.0, 0.1: 2.0}


@dataclass(frozen=True)
class Job(bench.Job):
    """One temperature with one seed: one sweep backwards through time."""

    form: ClassVar[str] = "beta{beta:g}-seed{seed}"
    beta: float
    seed: int


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """Every temperature, seed by seed."""
    return [Job(beta, seed) for seed in seeds for beta in CELLS]


def execute(job: Job, quick: bool) -> bench.Line:
    """Sweep and measure."""
    trajectories, paths, known = (20, 64, 256) if quick else (250, 1 << 12, 1 << 16)
    problem, (least, bound) = mixture(job.beta), levels(job.beta, known)
    env = ProblemEnv(problem, action_bound=CELLS[job.beta])
    settings = {"policy": "FunctionalPolicy", "n_trajectories": trajectories}
    curve = Curve("pi-ft", env, job.seed, **settings).learn(2 * trajectories)
    closed, closed_kl = closed_form(job.beta, paths)
    ours, kl = returns(problem, curve.policy, paths)
    room = bound - least
    ahead = (ours - closed) / room
    return {
        "sweeps": 1,
        "score": (float(ours.mean()) - least) / room,
        "closed_form": (float(closed.mean()) - least) / room,
        "ahead": float(ahead.mean()),
        "ahead_stderr": float(ahead.std()) / paths**0.5,
        "kl": kl,
        "closed_form_kl": closed_kl,
        "reward_queries": curve.spent()["queries"],
        "paths": curve.spent()["env_steps"] // problem.horizon,
        "seconds": curve.spent()["seconds"],
    }


def mixture(beta: float) -> Any:
    """The problem, on the CPU."""
    return make_problem("girsanov/GaussianMixture-v0", temperature=beta)


@functools.cache
def levels(beta: float, paths: int) -> tuple[float, float]:
    """J of no control, and the Donsker-Varadhan bound from paths of it and of the closed form."""
    problem = mixture(beta)
    drawn, lent = generator_on(problem, REFERENCE_SEED), {"closed form": problem.reference_control}
    with torch.no_grad():
        free = objective(problem, None, paths, drawn).objective.mean
        found = pooled_certificate(problem, lent, paths, drawn, batch=4096)
    return free, found.certificate.bound


@functools.cache
def closed_form(beta: float, paths: int) -> tuple[Tensor, float]:
    """``returns`` of the closed form, which no seed changes."""
    problem = mixture(beta)
    return returns(problem, problem.reference_control, paths)


@torch.no_grad()
def returns(problem: Any, policy: Policy, paths: int) -> tuple[Tensor, float]:
    """Unbiased samples of the objective ``(paths,)`` on noises that are the same for all, and the
    KL.

    With V the closed form's value, ``J = E V_0(X_0) + E sum_k [E_W V_{k+1}(F_k(X_k, a_k + W)) -
    beta |a_k|^2 / 2 - V_k(X_k)]`` for any policy: the sum telescopes. The inner expectation is a
    quadrature, and what is left of each bracket is small.
    """
    found = rollout(problem, policy, paths, generator_on(problem, FINAL_SEED))
    rule = np.polynomial.hermite_e.hermegauss(5)
    z, weight = (torch.tensor(t, dtype=torch.float32) for t in rule)
    noise = torch.cartesian_prod(z, z)[:, None]
    mass = torch.cartesian_prod(weight, weight).prod(1) / (2 * math.pi)
    total = problem.reference_value(0, found.states[0]).double()
    for k in range(problem.horizon):
        x, a = found.states[k], found.controls[k]
        later = problem.transition(k, x.repeat(len(noise), 1), (a + noise).flatten(0, 1))
        last = k + 1 == problem.horizon
        value = problem.terminal_reward(later) if last else problem.reference_value(k + 1, later)
        ahead = (mass[:, None] * value.view(len(noise), -1)).sum(0)
        price = 0.5 * problem.temperature * a.square().sum(1)
        total += (ahead - price - problem.reference_value(k, x)).double()
    return total, float(found.kl.mean())


#: Columns of the report, and how their medians are written.
COLUMNS = {"kl": ".2f", "closed_form_kl": ".2f", "paths": ",.0f", "reward_queries": ",.0f"}
COLUMNS |= {"seconds": ".0f"}


def told(lines: list[bench.Line]) -> dict[str, str]:
    """Medians over seeds, and the least and the largest."""
    found = reports.groups(lines, "beta")
    rows = [
        [
            *(f"{beta:g}", "1", *(reports.median(g, n, ".4f") for n in ("score", "closed_form"))),
            reports.spread([line["ahead"] for line in g], "+.4f"),
            reports.median(g, "ahead_stderr", ".4f"),
            *(reports.median(g, name, form) for name, form in COLUMNS.items()),
            str(len(g)),
        ]
        for beta, g in sorted(found.items(), reverse=True)
    ]
    heads = "beta|sweeps|score|closed form|difference|s.e.|KL|closed form's|paths|queries|CPU s"
    scores = reports.table(f"{heads}|seeds", rows)
    return {"scores": scores, "made": reports.made_by(lines)}


words = "{ahead:+.4f}".format_map
main = bench.Benchmark(__doc__, "functional", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
