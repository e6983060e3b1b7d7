"""PI-FT at five temperatures on real digits: Figure 3 of Han, Razaviyayn and Xu (2025).

    python benchmarks/betas.py                   # goes on if killed
    python benchmarks/betas.py --only many --seeds 0 1
    python benchmarks/betas.py report

Its parts, and when a run of them has converged, are told in results/betas/report.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import reports
import resumable as bench
from learning import Curve

from girsanov.envs import make_problem
from girsanov.envs.problem import Policy, Problem
from girsanov.scoreboard.evaluation import CURVE_SEED, FINAL_SEED, evaluate, generator_on
from girsanov.scoreboard.plots import empty_figure

BETAS = (1.0, 0.3, 0.1, 0.03, 0.01)
#: The paper's neural form of PI-FT, at a constant learning rate.
PATHWISE = {"policy": "PathwisePolicy", "anneal": False}


class Sweep(NamedTuple):
    """Runs at every temperature."""

    iterations: int = 150
    paths: int = 10
    apart: int = 10  # iterations between evaluations
    settings: Mapping[str, Any] = {}


SWEEPS = {
    "usual": Sweep(),
    "slow": Sweep(settings={"learning_rate": 5e-4}),  # PathwisePolicy has 2e-3
    "many": Sweep(100, 50, 4, {"n_trajectories": 50}),
}


@dataclass(frozen=True)
class Job(bench.Job):
    """One temperature with one seed."""

    form: ClassVar[str] = "{part}-beta{beta:g}-{iterations}-{seed}"
    part: str  # a key of ``SWEEPS``
    beta: float  # temperature
    iterations: int  # each one gradient step
    seed: int  # of the agent


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """Part by part, seed by seed."""
    return [
        Job(part, beta, 2 if quick else sweep.iterations, seed)
        for part, sweep in SWEEPS.items()
        for seed in seeds
        for beta in BETAS
    ]


def measure(
    policy: Policy, problem: Problem, paths: int, seed: int = CURVE_SEED
) -> dict[str, float]:
    """Objective, reward and KL."""
    value = evaluate(problem, policy, paths, generator_on(problem, seed)).value
    return {name: float(f"{found.mean:.5g}") for name, found in value._asdict().items()}


def execute(job: Job, quick: bool) -> bench.Line:
    """Learn, then measure on fresh paths."""
    problem, sweep = make_problem("girsanov/Digits-v0", temperature=job.beta), SWEEPS[job.part]
    queries, apart = job.iterations * sweep.paths, sweep.apart * sweep.paths
    look = functools.partial(measure, problem=problem, paths=16 if quick else 128)
    watched = look, [*range(0, queries, apart), queries]
    settings = {**PATHWISE, **sweep.settings}
    curve = Curve("pi-ft", problem, job.seed, *watched, **settings).learn(queries)
    final = measure(curve.policy, problem, 64 if quick else 2000, FINAL_SEED)
    return {**curve.spent(), **final, "curve": curve.rows, "gradient_norms": curve.norms}


# --- report


def settled(
    values: Sequence[float], share: float = 0.0, within: float = 0.0, window: int = 3
) -> int:
    """Index from which running means stay within ``share`` of the total change of the last one, or
    ``within`` of it.
    """
    means = np.array([np.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))])
    off = np.abs(means - means[-1]) > max(within, share * abs(means[-1] - values[0]))
    return int(np.flatnonzero(off).max(initial=-1)) + 1


def _at(line: bench.Line) -> list[float]:
    """Iterations at which a run was measured."""
    return [row["queries"] // SWEEPS[line["job"]["part"]].paths for row in line["curve"]]


def _column(line: bench.Line, name: str) -> list[float]:
    return [row[name] for row in line["curve"]]


def convergence(line: bench.Line) -> dict[str, float]:
    """Iterations until a run has converged, by all three answers."""
    at, kl = _at(line), _column(line, "kl")
    policy = max(settled(_column(line, "reward"), 0.1), settled(kl, 0.1))
    worth = settled(_column(line, "objective"), 0.05)
    return {"policy": at[policy], "objective": at[worth], "nat": at[settled(kl, within=1.0)]}


def table(lines: Sequence[bench.Line]) -> str:
    """When runs have converged, and to what, by temperature."""
    heads = "beta|converged as a policy|in its worth|KL within a nat|KL|reward|objective|seeds"
    rows = []
    for beta, group in sorted(reports.groups(lines, "beta").items()):
        when = [convergence(line) for line in group]
        cells = [reports.spread([w[name] for w in when], ".0f") for name in when[0]]
        final = ("kl", "reward", "objective")
        cells += [reports.spread([line[name] for line in group], ".2f") for name in final]
        rows.append([f"{beta:g}", *cells, str(len(group))])
    return reports.table(heads, rows)


def draw(lines: Sequence[bench.Line]) -> Any:
    """Gradient norms, rewards and KL, medians over seeds, one colour a temperature."""
    figure = empty_figure(12, 3.8, 100)
    panels = dict(zip(("gradient_norms", "reward", "kl"), figure.subplots(1, 3), strict=True))
    titles = ("gradient norm (running median of 20)", "reward", "KL (nats)")
    for i, (beta, group) in enumerate(sorted(reports.groups(lines, "beta").items())):
        norms = np.median([line["gradient_norms"] for line in group], 0)
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(norms, min(20, len(norms))), 1)
        curves = {"gradient_norms": (np.arange(len(smooth)) + 20, smooth)}
        for name in ("reward", "kl"):
            curves[name] = (_at(group[0]), np.median([_column(x, name) for x in group], 0))
        for name, (x, y) in curves.items():
            panels[name].plot(x, y, color=f"C{i}", label=f"beta {beta:g}")
    for axes, title in zip(panels.values(), titles, strict=True):
        axes.set(xlabel="iterations", title=title)
        axes.grid(alpha=0.2)
    panels["gradient_norms"].set_yscale("log")
    panels["kl"].set_yscale("symlog", linthresh=1)
    panels["kl"].legend(fontsize=8)
    return figure


def told(lines: list[bench.Line]) -> dict[str, Any]:
    """A table and a figure each part: medians over seeds, and the worst and the best."""
    parts = reports.groups(lines, "part")
    tables = {part: table(parts.get(part, [])) for part in SWEEPS}
    figures = {f"figure3_{part}": draw(group) for part, group in parts.items()}
    return {**tables, **figures, "made": reports.made_by(lines)}


words = "J {objective:.3f}, KL {kl:.2f}, {seconds:.0f} CPU s".format_map
main = bench.Benchmark(__doc__, "betas", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
