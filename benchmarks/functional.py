"""Functional PI-FT (Algorithm 1 with fitted value functions) against the closed form, on
girsanov/GaussianMixture-v0.

    python benchmarks/functional.py             # three temperatures, 5 seeds; killed and started
        again it goes on
    python benchmarks/functional.py report

Both policies are measured on the same noises, with the closed form's value as a control variate
(see ``returns``). Scores are those of frontier.py: 0 without control, 1 the Donsker-Varadhan bound.
The closed form is optimal for infinitely many steps only, so that Algorithm 1, which knows the 50
steps as they are, may well pass it. At beta 0.1 the action bound is 2: the default of 1 clips the
closed form, which is unbounded here. Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import functools
import itertools
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frontier import Cell
from frontier import Reference as MixtureReference
from resumable import append, command_line, read_lines
from torch import Tensor

from girsanov.agents import PIFT
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Policy, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, generator_on
from girsanov.scoreboard.records import check_writable, provenance, write_whole

RESULTS = Path(__file__).parent / "results" / "functional"
#: Action bounds by temperature.
CELLS = {2.0: 1.0, 0.5: 1.0, 0.1: 2.0}
N_TRAJECTORIES, SWEEPS = 250, 1


def execute(
    beta: float, seed: int, out: Path, reference_paths: int, paths: int
) -> list[dict[str, Any]]:
    """Measure after every one of ``SWEEPS`` sweeps backwards through time."""
    torch.set_num_threads(1)
    problem: Any = Cell(beta, 2).problem()
    reference = MixtureReference.cached(Cell(beta, 2), reference_paths, out)
    env = ProblemEnv(problem, action_bound=CELLS[beta])
    agent = PIFT("FunctionalPolicy", env, seed=seed, device="cpu", n_trajectories=N_TRAJECTORIES)
    closed, closed_kl = closed_form(beta, paths)
    room = reference.bound.mean - reference.uncontrolled.mean
    rows, seconds = [], 0.0
    for sweep in range(1, SWEEPS + 1):
        began = time.process_time()
        agent.learn(2 * N_TRAJECTORIES * problem.horizon, reset_num_timesteps=False)
        seconds += time.process_time() - began
        ours, kl = returns(problem, agent.policy.control, paths)
        ahead = (ours - closed) / room
        rows.append(
            {
                "sweeps": sweep,
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
        )
    return rows


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
    z, weight = (
        torch.tensor(t, dtype=torch.float32) for t in np.polynomial.hermite_e.hermegauss(5)
    )
    noise, mass = (
        torch.cartesian_prod(z, z)[:, None],
        torch.cartesian_prod(weight, weight).prod(1) / (2 * math.pi),
    )
    total = problem.reference_value(0, found.states[0]).double()
    for k in range(problem.horizon):
        x, a = found.states[k], found.controls[k]
        later = problem.transition(k, x.repeat(len(noise), 1), (a + noise).flatten(0, 1))
        last = k + 1 == problem.horizon
        value = problem.terminal_reward(later) if last else problem.reference_value(k + 1, later)
        ahead = (mass[:, None] * value.view(len(noise), -1)).sum(0)
        total += (
            ahead - 0.5 * problem.temperature * a.square().sum(1) - problem.reference_value(k, x)
        ).double()
    return total, float(found.kl.mean())


def finished(out: Path) -> dict[tuple[float, int, int], dict[str, Any]]:
    """Measurements by temperature, seed and sweeps; a torn last line does not count."""
    return {
        (line["beta"], line["seed"], line["sweeps"]): line
        for line in read_lines(out / "runs.jsonl")
    }


def run(
    seeds: int = 5, reference_paths: int = 1 << 16, paths: int = 1 << 12, out: Path = RESULTS
) -> None:
    """Make every run that is not finished.

    Args:
        seeds: 0, 1, ... at each temperature.
        reference_paths: behind the bound.
        paths: fresh ones behind each score.
        out: folder of everything.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds}")
    check_writable(out)
    command = shlex.join(["python", "benchmarks/functional.py", *sys.argv[1:]])
    for seed in range(seeds):
        for beta in CELLS:
            if (beta, seed, SWEEPS) in finished(out):
                continue
            for row in execute(beta, seed, out, reference_paths, paths):
                append(
                    out / "runs.jsonl",
                    {"beta": beta, "seed": seed, **row, "command": command, **provenance()},
                )
                print(
                    f"beta {beta:g}, seed {seed}, sweep {row['sweeps']}: {row['ahead']:+.4f}",
                    flush=True,
                )


def report(out: Path = RESULTS) -> None:
    """Write ``report.md``: medians over seeds, and the least and the largest."""
    lines = list(finished(out).values())
    if not lines:
        raise ValueError(f"out must hold finished runs; got none in {out}")
    text = [
        "# Functional PI-FT against the closed form",
        "",
        "girsanov/GaussianMixture-v0. Medians over seeds; brackets hold the least and the largest.",
        "",
        (
            "| beta | sweeps | score | closed form | difference | s.e. | KL | closed form's | paths"
            " | queries | CPU s | seeds |"
        ),
        "|" + " --- |" * 12,
    ]
    for beta, sweeps in itertools.product(CELLS, range(1, SWEEPS + 1)):
        group = [line for line in lines if (line["beta"], line["sweeps"]) == (beta, sweeps)]
        if not group:
            continue

        def middle(name: str, group: list[dict[str, Any]] = group) -> float:
            return statistics.median(line[name] for line in group)

        ahead = [line["ahead"] for line in group]
        cells = [f"{beta:g}", f"{sweeps}", f"{middle('score'):.4f}", f"{middle('closed_form'):.4f}"]
        cells += [
            f"{middle('ahead'):+.4f} [{min(ahead):+.4f}, {max(ahead):+.4f}]",
            f"{middle('ahead_stderr'):.4f}",
        ]
        cells += [
            f"{middle('kl'):.2f}",
            f"{middle('closed_form_kl'):.2f}",
            f"{middle('paths'):,.0f}",
        ]
        cells += [f"{middle('reward_queries'):,.0f}", f"{middle('seconds'):.0f}", f"{len(group)}"]
        text.append(f"| {' | '.join(cells)} |")
    made = sorted(
        {
            f"`{x['command']}` (torch {x['versions']['torch']}, {x['hardware']['cpu']})"
            for x in lines
        }
    )
    write_whole(
        out / "report.md", "\n".join([*text, "", "Made by " + "; ".join(made) + ".", ""]).encode()
    )
    print(out / "report.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return command_line("functional.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
