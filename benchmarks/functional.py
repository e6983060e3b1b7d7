"""Functional PI-FT (Algorithm 1 with fitted value functions) against the closed form, on
girsanov/GaussianMixture-v0.

    python benchmarks/functional.py             # three temperatures, 5 seeds; goes on if killed
    python benchmarks/functional.py report

Both policies are measured on the same noises, with the closed form's value as a control variate
(see ``returns``). Scores are those of frontier.py: 0 without control, 1 the Donsker-Varadhan bound.
The closed form is optimal for infinitely many steps only, so that Algorithm 1, which knows the 50
steps as they are, may well pass it. At beta 0.1 the action bound is 2: the default of 1 clips the
closed form, which is unbounded here. Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resumable as bench
import torch
from frontier import Cell
from frontier import Reference as MixtureReference
from torch import Tensor

from girsanov.agents import PIFT
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Policy, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, generator_on

HERE = bench.RESULTS / "functional"
#: Action bounds by temperature.
CELLS = {2.0: 1.0, 0.5: 1.0, 0.1: 2.0}
N_TRAJECTORIES = 250


@dataclass(frozen=True)
class Run:
    """One temperature with one seed: one sweep backwards through time."""

    beta: float
    seed: int

    @property
    def name(self) -> str:
        """Unlike any other's."""
        return f"beta{self.beta:g}-seed{self.seed}"


def execute(run: Run, out: Path, reference_paths: int, paths: int) -> bench.Line:
    """Sweep and measure."""
    problem: Any = Cell(run.beta, 2).problem()
    reference = MixtureReference.cached(Cell(run.beta, 2), reference_paths, out)
    env = ProblemEnv(problem, action_bound=CELLS[run.beta])
    agent = PIFT(
        "FunctionalPolicy", env, seed=run.seed, device="cpu", n_trajectories=N_TRAJECTORIES
    )
    closed, closed_kl = closed_form(run.beta, paths)
    began = time.process_time()
    agent.learn(2 * N_TRAJECTORIES * problem.horizon, reset_num_timesteps=False)
    seconds = time.process_time() - began
    ours, kl = returns(problem, agent.policy.control, paths)
    ahead = (ours - closed) / (reference.bound.mean - reference.uncontrolled.mean)
    return {
        "sweeps": 1,
        "score": reference.score(float(ours.mean())),
        "closed_form": reference.score(float(closed.mean())),
        "ahead": float(ahead.mean()),
        "ahead_stderr": float(ahead.std()) / paths**0.5,
        "kl": kl,
        "closed_form_kl": closed_kl,
        "reward_queries": agent.reward_queries,
        "paths": agent.num_timesteps // problem.horizon,
        "seconds": round(seconds, 2),
    }


@functools.cache
def closed_form(beta: float, paths: int) -> tuple[Tensor, float]:
    """``returns`` of the closed form, which no seed changes."""
    problem: Any = Cell(beta, 2).problem()
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


def run(
    seeds: int = 5, reference_paths: int = 1 << 16, paths: int = 1 << 12, out: Path = HERE
) -> None:
    """Make every run that is not finished.

    Args:
        seeds: 0, 1, ... at each temperature.
        reference_paths: behind the bound.
        paths: fresh ones behind each score.
        out: folder of everything.
    """
    bench.at_least(1, seeds=seeds)
    bench.resume(
        [Run(beta, seed) for seed in range(seeds) for beta in CELLS],
        out,
        lambda one: execute(one, out, reference_paths, paths),
        lambda line: f"{line['ahead']:+.4f}",
    )


def report(out: Path = HERE) -> None:
    """Write ``report.md``: medians over seeds, and the least and the largest."""
    lines = list(bench.runs_of(out, some=True).values())
    rows = []
    for beta in CELLS:
        group = [line for line in lines if line["job"]["beta"] == beta]
        if group:
            forms = ("score", "closed_form")
            cells = [f"{beta:g}", "1", *(f"{bench.median(group, name):.4f}" for name in forms)]
            cells += [bench.spread([x["ahead"] for x in group], 4, "+")]
            cells += [f"{bench.median(group, 'ahead_stderr'):.4f}"]
            cells += [f"{bench.median(group, name):.2f}" for name in ("kl", "closed_form_kl")]
            cells += [f"{bench.median(group, name):,.0f}" for name in ("paths", "reward_queries")]
            rows.append([*cells, f"{bench.median(group, 'seconds'):.0f}", f"{len(group)}"])
    heads = "beta|sweeps|score|closed form|difference|s.e.|KL|closed form's|paths|queries|CPU s"
    bench.write(
        out,
        [
            "# Functional PI-FT against the closed form",
            "girsanov/GaussianMixture-v0. Medians over seeds; brackets hold the least and the"
            " largest.",
            bench.table([*heads.split("|"), "seeds"], rows),
            bench.made_by(lines),
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("functional.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
