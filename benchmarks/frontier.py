"""The question in the title as a picture: what does a good policy cost regression, and what does it
cost RL?

    python benchmarks/frontier.py --only ppo d2 --seeds 0 1
    python benchmarks/frontier.py report

What is measured, and how, is told in results/frontier/report.md.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import resumable as bench
from frontier_report import told
from learning import Curve
from mixture import Reference, Yardstick, mixture

from girsanov.baselines import hyperparameters as noise_form
from girsanov.baselines import hyperparameters_control as control_form
from girsanov.baselines.hyperparameters import settings_for

BETAS, REFERENCE_PATHS = (2.0, 0.5, 0.1), 1 << 17
#: Like PPO and SAC, PDE has a setting found at beta 0.5 in the plane: more gradient steps a round
#: than its default of 40.
_PDE = {"policy": "MlpPolicy", "gradient_steps": 150}
#: By their names here: the agent, its settings, and its reward queries.
AGENTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "pde": ("pde", _PDE, 2_000),
    "pde-off": ("pde", {**_PDE, "adaptive": False}, 2_000),
    "ppo-noise": ("ppo", {}, 4_000),
    "sac-noise": ("sac", {}, 1_000),
    "ppo": ("ppo-control", {}, 16_000),
    "sac": ("sac-control", {}, 4_000),
}
#: Whose settings are in tables.
TUNED = {"ppo": noise_form.PPO, "sac": noise_form.SAC}
TUNED |= {"ppo-control": control_form.PPO, "sac-control": control_form.SAC}


@dataclass(frozen=True)
class Job(bench.Job):
    """One agent with one seed in one cell of the grid."""

    form: ClassVar[str] = "beta{beta:g}-d{dimension}-{agent}-seed{seed}"
    agent: str  # a name of ``AGENTS``
    beta: float  # temperature
    dimension: int  # of the state
    seed: int  # of the agent
    queries: int  # budget in reward queries
    cpu_seconds: float = 300.0  # budget in CPU seconds of training
    paths: int = 512  # common noises behind each evaluation


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """The first seed of all cells first; 32 dimensions and the noise form have it alone."""
    if quick:
        small = {"pde": 100, "pde-off": 100, "ppo": 80, "sac": 20}
        return [Job(name, 0.5, 2, seed, n, paths=64) for seed in seeds for name, n in small.items()]
    return [
        Job(name, beta, d, seed, told[2])
        for seed, d, beta, (name, told) in itertools.product(seeds, (2, 32), BETAS, AGENTS.items())
        if (d == 2 and "noise" not in name) or seed == seeds[0]
    ]


def evaluation_points(budget: int) -> list[int]:
    """Reward queries to evaluate at: 0, then multiples of 50 (a round of PDE) in ratios of about
    1.25, then the budget.
    """
    last = math.ceil(math.log(max(budget, 50) / 50, 1.25))
    points = {50 * round(1.25**k) for k in range(last + 1)}
    return sorted({0, *(point for point in points if point < budget), budget})


def execute(job: Job, at: bench.Place) -> bench.Line:
    """Make one run: its evaluations, how it ended and what it was told."""
    problem, paths = mixture(job.beta, job.dimension), 256 if at.quick else REFERENCE_PATHS
    reference = Reference.kept(job.beta, job.dimension, paths, at.out)
    watched = (Yardstick(problem, reference, job.paths).measure, evaluation_points(job.queries))
    agent, settings, _ = AGENTS[job.agent]
    curve = Curve.of(agent, problem, job.seed, *watched, job.cpu_seconds, **settings)
    try:
        curve.learn(job.queries)
        outcome = "queries spent" if curve.in_time else "seconds spent"
    except ValueError as error:
        # SB3's distributions refuse NaN, a problem an infinite reward: the policy diverged
        outcome = f"diverged: {str(error).splitlines()[0][:100]}"
    settings = settings_for(TUNED[agent], problem) if agent in TUNED else settings
    return {"outcome": outcome, **curve.spent(), "hyperparameters": settings, "rows": curve.rows}


def words(line: bench.Line) -> str:
    """What one run came to."""
    return f"{line['queries']:,} queries, {line['seconds']:.0f} CPU s ({line['outcome']})"


main = bench.Benchmark(__doc__, "frontier", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
