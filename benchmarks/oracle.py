"""The oracle inequality of Mou's estimator: its error beside the best approximation of its class.

    python benchmarks/oracle.py                # five seeds; minutes on one core
    python benchmarks/oracle.py report

What is measured, and how, is told in results/oracle/report.md.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import reports
import resumable as bench
import torch
from torch import Tensor

from girsanov.agents.pde.classes.length_scale import RadialValue
from girsanov.agents.pde.mou.estimator import observed, solve
from girsanov.agents.pde.norms import SobolevErrors, sobolev_errors
from girsanov.agents.pde.replay import Replay
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Trajectories, rollout
from girsanov.envs.recording import Recording
from girsanov.scoreboard.plots import empty_figure

NORMS = SobolevErrors._fields
SIZES, NS, STEPS, VISITS = (20, 80, 320), (100, 400, 1600, 6400), 20, 5
PROBLEM = LinearQuadratic.damped_rotation(2, steps=STEPS, temperature=2.0).to(dtype=torch.float64)


@dataclass(frozen=True)
class Job(bench.Job):
    """One class and one set of paths; all numbers of paths are its first ones."""

    form: ClassVar[str] = "{data} size {size} seed {seed}"
    size: int  # bumps
    data: str  # ``whole``: seen at every step; ``random``: at few random times and the end
    seed: int  # of the class and of the paths


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """Seed by seed."""
    kinds = [(m, data) for m in SIZES[: 1 if quick else None] for data in ("whole", "random")]
    return [Job(m, data, seed) for seed in seeds for m, data in kinds]


def log_truth(k: int | Tensor, x: Tensor) -> Tensor:
    """``log f``."""
    return PROBLEM.log_moment_value(k, x) / PROBLEM.temperature


@torch.no_grad()
def free(n: int, seed: int) -> Trajectories:
    """Uncontrolled paths."""
    return rollout(PROBLEM, None, n, torch.Generator().manual_seed(seed))


def best(value: RadialValue, judges: Trajectories, energy: bool) -> None:
    """Put ``value`` at the nearest member of its class to f in one of the norms, along judges."""
    eye, total = torch.eye(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def both(k: int, z: Tensor) -> Tensor:  # the bumps and f less the floor
        x = PROBLEM.transition(k - 1, judges.states[k - 1], z) if k else judges.states[0]
        rest = (log_truth(k, x) - value.offset[0]).exp() - value.floor
        return torch.cat([value.raw(k, x), rest[:, None]], 1)

    for k in range(STEPS + 1):
        z, at = judges.noises[max(k - 1, 0)], functools.partial(both, k)
        slopes = [torch.func.jvp(at, (z,), (e.expand_as(z),))[1] for e in eye] if k else []
        ends, inside = (0.5 * (k in (0, STEPS)), 0.5) if energy else (1 / STEPS, 1.0)
        total = total + ends * at(z).T @ at(z) + inside * sum(d.T @ d for d in slopes)
    gram = total[:-1, :-1]
    value.weights.copy_(value.solve(gram, gram, total[:-1, -1], [1e-10])[0][None])


def execute(job: Job, quick: bool) -> bench.Line:
    """The best of the class in either norm, and the estimate from every number of paths."""
    ns, judging = (NS[:2], 50) if quick else (NS, 1000)
    judges, pilot = free(judging, 10**6), Replay.of(PROBLEM, Recording.of(free(500, 10**7)))
    value = RadialValue(2, STEPS, centres=job.size, width=1.5, span=0.3)
    value.standardise.fit(pilot.inputs.flatten(0, 1))
    generator = torch.Generator().manual_seed(job.seed)
    value.place(pilot.steps.flatten(), pilot.inputs.flatten(0, 1), generator)
    returns = pilot.log_returns.double()
    value.offset.fill_(float(returns.logsumexp(0)) - math.log(len(returns)))
    error = lambda: sobolev_errors(PROBLEM, judges, value, log_truth)._asdict()  # noqa: E731
    found: bench.Line = {"best": {}, "rows": []}
    for norm in NORMS:
        best(value, judges, norm == "energy")
        found["best"][norm] = error()[norm]
    seen = Recording.of(free(max(ns), job.seed))
    seen = seen.at_random_times(VISITS, generator) if job.data == "random" else seen
    data = Replay.of(PROBLEM, seen)
    for n in ns:
        value.weights.fill_(1.0)  # a solution is sought near the present weights
        solve(value, observed(value, data.at(torch.arange(n))))
        found["rows"].append({"n": n, **error()})
    return found


def told(lines: list[bench.Line]) -> dict[str, Any]:
    """Medians over seeds, as a table and a figure."""
    drawn, rows = empty_figure(9, 3.8, 100), []
    panels = drawn.subplots(1, 2)
    for norm, axes in zip(NORMS, panels, strict=True):
        axes.set(xlabel="paths", ylabel="relative error", title=f"{norm} norm")
        for i, (size, own) in enumerate(sorted(reports.groups(lines, "size").items())):
            least = median(x["best"][norm] for x in own)
            axes.axhline(least, color=f"C{i}", linestyle=":")
            for data, group in reports.groups(own, "data").items():
                every = [[row[norm] for row in x["rows"]] for x in group]
                errors = [median(column) for column in zip(*every, strict=True)]
                ns, style = NS[: len(errors)], "-o" if data == "whole" else "--s"
                axes.loglog(ns, errors, style, color=f"C{i}", label=f"{size} bumps, {data}")
                cells = (f"{e:.3f} ({e / least:.1f})" for e in errors)
                rows.append([norm, str(size), data, f"{least:.3f}", *cells])
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    heads = ["norm", "bumps", "data", "best of the class", *(f"n = {n:,}" for n in NS)]
    table = reports.table(heads, rows)
    return {"errors": table, "made": reports.made_by(lines), "oracle": drawn}


words = "energy norm {rows[0][energy]:.3f} to {rows[1][energy]:.3f}".format_map
main = bench.Benchmark(__doc__, "oracle", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
