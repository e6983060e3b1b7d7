"""How seconds and memory grow with paths, horizon, dimension and runs.

    python benchmarks/scaling.py               # a quarter of an hour on one core
    python benchmarks/scaling.py report

What is measured, and how, is told in results/scaling/report.md.
"""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import reports
import resumable as bench
import torch
from scipy.optimize import nnls

from girsanov.agents import PDE, PIFT
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout
from girsanov.envs.recording import SimulatedPaths
from girsanov.scoreboard.plots import empty_figure

#: Where the others stay while one grows.
USUAL = {"paths": 10_000, "horizon": 20, "dimension": 2}
SIZES = {
    "paths": (10_000, 100_000, 1_000_000),
    "horizon": (20, 80, 320),
    "dimension": (2, 8, 32),
    "runs": (1, 2, 4),
}
#: Megabytes in what ``getrusage`` counts.
UNIT = 2**20 if sys.platform == "darwin" else 2**10


@dataclass(frozen=True)
class Job(bench.Job):
    """One cost at one size."""

    form: ClassVar[str] = "{what} {axis} {size} seed {seed}"
    what: str
    axis: str
    size: int
    seed: int


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """From small to large."""
    pairs = [(what, axis) for axis in USUAL for what in COSTS] + [("comparison", "runs")]
    few = 1 if quick else None
    return [Job(*pair, n, seed) for seed in seeds for pair in pairs for n in SIZES[pair[1]][:few]]


def _paths(problem: LinearQuadratic, n: int, seed: int) -> None:
    with torch.no_grad():
        rollout(problem, None, n, torch.Generator().manual_seed(seed))


def _fit(problem: LinearQuadratic, n: int, seed: int) -> None:
    model = PDE("PolynomialPolicy", problem, seed=seed, device="cpu")
    model.fit(SimulatedPaths(problem, n, seed))


def _pde(problem: LinearQuadratic, n: int, seed: int) -> None:
    model = PDE("MlpPolicy", problem, seed=seed, device="cpu", n_uncontrolled=n)
    model.learn(n * problem.horizon)


def _pi_ft(problem: LinearQuadratic, n: int, seed: int) -> None:
    model = PIFT("MlpPolicy", problem, seed=seed, device="cpu", n_trajectories=n)
    model.learn(n * problem.horizon)


#: What is paid for, by name.
COSTS: dict[str, Callable[[LinearQuadratic, int, int], None]] = {
    "paths": _paths,
    "PDE, linear class": _fit,
    "PDE, a network's round": _pde,
    "PI-FT, a round": _pi_ft,
}


def alone(job: Job, paths: int) -> dict[str, float]:
    """CPU seconds, and by how many MB memory rose, in this process, which has made a small one."""
    torch.set_num_threads(1)
    size = {**USUAL, job.axis: job.size}
    COSTS[job.what](LinearQuadratic.damped_rotation(2, steps=3), 100, 0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    problem = LinearQuadratic.damped_rotation(size["dimension"], steps=size["horizon"])
    COSTS[job.what](problem, paths, job.seed)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "MB": (after.ru_maxrss - before.ru_maxrss) / UNIT,
    }


def compared(job: Job) -> dict[str, float]:
    """CPU seconds of a comparison of so many short runs, all its processes, and the largest."""
    seeds = [str(job.seed + i) for i in range(job.size)]
    words = ["--agents", "pde", "--envs", "girsanov/LinearQuadratic-v0", "--seeds", *seeds]
    words += ["--budget", "300", "--points", "2", "--workers", "1", "--no-cache", "--out"]
    train = Path(__file__).parents[1] / "train.py"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as out:
        asked = [sys.executable, str(train), "compare", *words, out, "--device", "cpu"]
        subprocess.run(asked, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": spent, "MB": after.ru_maxrss / UNIT}


def execute(job: Job, quick: bool) -> bench.Line:
    """Each in a process of its own, as memory never falls."""
    paths = 200 if quick else job.size if job.axis == "paths" else USUAL["paths"]
    call, args = (compared, (job,)) if job.axis == "runs" else (alone, (job, paths))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
        return {"row": one.submit(call, *args).result()}  # type: ignore[arg-type]


def growth(sizes: Sequence[int], costs: Sequence[float]) -> tuple[float, float]:
    """The a and b of ``a + b size`` that fit costs best in ratio, neither below 0."""
    x, y = np.array(sizes, float), np.array(costs, float)
    (a, b), _ = nnls(np.stack([1 / y, x / y], 1), np.ones(len(y)))
    return float(a), float(b)


def told(lines: list[bench.Line]) -> dict[str, Any]:
    """Medians over seeds, the lines through them, and a figure."""
    drawn, tables = empty_figure(12, 5.5, 100), {"seconds": "", "MB": ""}
    panels = drawn.subplots(2, len(SIZES))
    for name, row in zip(tables, panels, strict=True):
        rows = []
        for axis, axes in zip(SIZES, row, strict=True):
            axes.set(xlabel=axis, ylabel=name)
            if axis != "runs":
                axes.set(xscale="log", yscale="log")
            axes.set_xticks(SIZES[axis], [f"{n:,}" for n in SIZES[axis]], minor=False)
            axes.xaxis.minorticks_off()
            own = reports.groups(lines, "axis").get(axis, [])
            for i, (what, some) in enumerate(reports.groups(own, "what").items()):
                sized = sorted(reports.groups(some, "size").items())
                sizes = [size for size, _ in sized]
                costs = [max(median(x["row"][name] for x in group), 1e-2) for _, group in sized]
                a, b = growth(sizes, costs)
                axes.plot(sizes, costs, "o", color=f"C{i}", label=what)
                axes.plot(sizes, a + b * np.array(sizes), color=f"C{i}", linewidth=1)
                cells = [f"{y:,.3g} at {x:,}" for x, y in zip(sizes, costs, strict=True)]
                rows.append([what, axis, *cells, *[""] * (3 - len(cells)), f"{a:.2g} + {b:.2g} x"])
            if axis == "runs":
                axes.set_ylim(0, 1.1 * max(costs))
        tables[name] = reports.table("|x|smallest||largest|line", rows)
    drawn.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return {**tables, "made": reports.made_by(lines), "scaling": drawn}


words = "{row[seconds]:.2f} s, {row[MB]:.0f} MB".format_map
main = bench.Benchmark(__doc__, "scaling", jobs, execute, words, told, seeds=(0,))

if __name__ == "__main__":
    sys.exit(main())
