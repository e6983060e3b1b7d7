"""Linear classes and the network on the test problems of the stochastic-control literature, whose
optimal controls are known.

    python benchmarks/control_literature.py            --quick: a minute's worth, to see that it
        works
    python benchmarks/control_literature.py report

Measured is ``control_error``, ``sum_k E|a_k - a*_k|^2 / sum_k E|a*_k|^2`` along paths of the
optimum: 0 is the optimum, 1 no control at all. Beside it: CPU seconds of one thread, simulation
included; wall-clock seconds of two threads that each linear class takes for 2,000 recorded
trajectories of 50 steps, model selection included (an upper bound where the machine does other
things); and the peak memory of a fit of a million streamed trajectories. Every agent acts in a box
of 2.5 standard deviations, which holds every optimal control (the default, 1, does not in the
double well).

Killed and started again, it makes what is missing and repeats no finished job.
"""

from __future__ import annotations

import functools
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import resumable as bench
import torch

from girsanov.agents import PDE
from girsanov.agents.pde.norms import control_error
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, rollout
from girsanov.envs.recording import SimulatedPaths

HERE = bench.RESULTS / "control_literature"
QUICK = Path("runs") / "control_literature_quick"
#: Paths of the optimum behind an error.
PATHS = 1024
MILLION = 1_000_000


@dataclass(frozen=True)
class Case:
    """A problem, an agent and what is asked of it.

    Args:
        env: registered name.
        target: largest error.
        trajectories: in all.
        agent: arguments of PDE.
        recorded: learn from uncontrolled trajectories alone, by ``fit``; else by ``learn``.
        env_kwargs: of the problem.
    """

    env: str
    target: float
    trajectories: int
    agent: dict[str, Any]
    recorded: bool = False
    env_kwargs: dict[str, Any] = field(default_factory=dict)

    def problem(self) -> Problem:
        """On the CPU."""
        return make_problem(f"girsanov/{self.env}-v0", **self.env_kwargs)


def arbitrary(seed: int, dimension: int = 20) -> dict[str, Any]:
    """Arguments of ``LinearQuadratic.ornstein_uhlenbeck``: matrices, initial law, costs and
    horizon, all drawn by ``seed``.
    """
    generator = torch.Generator().manual_seed(seed)
    drift, control, running, terminal = torch.randn(
        4, dimension, dimension, generator=generator, dtype=torch.float64
    )
    offset, target, mean = 0.5 * torch.randn(3, dimension, generator=generator, dtype=torch.float64)
    eye = torch.eye(dimension, dtype=torch.float64)
    return {
        "dimension": dimension,
        "drift_matrix": 0.5 * drift / dimension**0.5,
        "control_matrix": eye + 0.1 * control,
        "running_matrix": 0.4 * running @ running.T / dimension,
        "terminal_matrix": 0.4 * terminal @ terminal.T / dimension,
        "offset": offset,
        "target": target,
        "initial_mean": mean,
        "initial_covariance": 0.2 * float(torch.rand(1, generator=generator)),
        "steps": int(torch.randint(25, 80, (1,), generator=generator)),
    }


HARD = {"drift_matrix": 1.0, "running_matrix": 2.0, "terminal_matrix": 1.0}
ADAPTIVE = {"policy": "PolynomialPolicy", "n_uncontrolled": 1000, "n_trajectories": 1000}
NETWORK = {"policy": "MlpPolicy", "n_uncontrolled": 500, "n_trajectories": 500}
#: Sums of powers of single coordinates, each step's weights its own; the gradient's mean over
#: noise, as steps are coarse.
SEPARABLE = {"degree": 8, "interaction": 1, "times": None, "draws": 2, "iterations": 5}
EXPLORING = {
    "policy": "PolynomialPolicy",
    "n_uncontrolled": 600,
    "n_trajectories": 600,
    "exploration": 1.0,
    "policy_kwargs": SEPARABLE,
}
_OBSERVED = {"policy": "PolynomialPolicy", "lookahead": "observed"}
_FRESH = {"policy": "PolynomialPolicy", "lookahead": "fresh", "draws": 4}
_FINER = {**EXPLORING, "policy_kwargs": {**SEPARABLE, "draws": 4, "iterations": 6}}
CASES = {
    "chain, observed": Case("LinearQuadratic", 1e-4, 10_000, _OBSERVED, True),
    "chain, default": Case("LinearQuadratic", 1e-4, 10_000, {"policy": "PolynomialPolicy"}, True),
    "chain, fresh, 4 pairs": Case("LinearQuadratic", 1e-4, 10_000, _FRESH, True),
    "quadratic, easy": Case("OrnsteinUhlenbeck", 1e-3, 5000, ADAPTIVE),
    "quadratic, hard": Case("OrnsteinUhlenbeck", 1e-3, 8000, ADAPTIVE, env_kwargs=HARD),
    **{
        f"quadratic, arbitrary {i}": Case(
            "OrnsteinUhlenbeck", 1e-3, 5000, ADAPTIVE, env_kwargs=arbitrary(i)
        )
        for i in (1, 2, 3)
    },
    "linear": Case("LinearOrnsteinUhlenbeck", 1e-3, 5000, ADAPTIVE),
    "double well": Case("DoubleWell", 0.1, 2400, EXPLORING),
    "double well, 4 pairs": Case("DoubleWell", 0.1, 2400, _FINER),
    "double well, ridge given, 4 pairs": Case("DoubleWell", 0.1, 2400, {**_FINER, "ridge": 1e-6}),
    "quadratic, easy, network": Case("OrnsteinUhlenbeck", 2e-2, 20_000, NETWORK),
}
CLASSES = ("PolynomialPolicy", "FourierPolicy", "KernelPolicy", "RadialPolicy")


@dataclass(frozen=True)
class Job:
    """One measurement.

    Args:
        kind: ``error``, ``seconds`` or ``memory``.
        of: a case, or a class.
        seed: of data and agent.
    """

    kind: str
    of: str
    seed: int

    @property
    def name(self) -> str:
        """Unlike any other's."""
        return f"{self.kind} {self.of} seed {self.seed}"


def jobs(seeds: int = 5) -> list[Job]:
    """Every case's first seed, then the others."""
    errors = [Job("error", name, seed) for seed in range(seeds) for name in CASES]
    seconds = [Job("seconds", name, seed) for name in CLASSES for seed in range(seeds)]
    return [*errors, *seconds, Job("memory", "PolynomialPolicy", 0)]


def execute(job: Job, divide: int = 1) -> bench.Line:
    """What the job measures, with ``divide`` times fewer trajectories."""
    if job.kind == "memory":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
            return {"row": one.submit(peak_memory, job.of, MILLION // divide).result()}
    timed = job.kind == "seconds"
    case = CASES["chain, default" if timed else job.of]
    problem, arguments = case.problem(), {"policy": job.of} if timed else dict(case.agent)
    n = (2000 if timed else case.trajectories) // divide
    clock = time.perf_counter if timed else time.process_time
    torch.set_num_threads(2 if timed else 1)
    for name in ("n_uncontrolled", "n_trajectories"):
        if name in arguments:
            arguments[name] = max(2, arguments[name] // divide)
    start = clock()
    model = functools.partial(PDE, env=wide(problem), seed=job.seed, device="cpu", **arguments)
    if case.recorded:
        generator = torch.Generator().manual_seed(1_000_003 * (job.seed + 1))
        with torch.no_grad():
            paths = rollout(problem, None, n, generator)
        start = clock()
        policy = model().fit(paths).policy
    else:
        policy = model().learn(n * problem.horizon).policy
    seconds = round(clock() - start, 2)
    torch.set_num_threads(1)
    optimum = problem.optimal_control  # type: ignore[attr-defined]
    with torch.no_grad():
        best = rollout(problem, optimum, PATHS, torch.Generator().manual_seed(2))
    error = control_error(problem, best, policy.control, optimum)
    return {"row": {"error": error, "seconds": seconds}}


def wide(problem: Problem) -> ProblemEnv:
    """The problem behind an action box that holds every optimal control."""
    return ProblemEnv(problem, action_bound=2.5)


def peak_memory(policy: str, n: int) -> dict[str, float]:
    """Largest resident set (MB) of this process, and CPU seconds, of a fit of ``n`` streamed
    trajectories of 10 steps.
    """
    torch.set_num_threads(1)
    start, problem = time.process_time(), LinearQuadratic.damped_rotation(2, steps=10)
    PDE(policy, problem, seed=0, device="cpu").fit(SimulatedPaths(problem, n, seed=1))
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"megabytes": round(megabytes), "seconds": round(time.process_time() - start, 1)}


def run(
    names: tuple[str, ...] = (), seeds: int = 5, quick: bool = False, out: Path | None = None
) -> None:
    """Make the jobs that are missing; each is one line of ``rows.jsonl`` as soon as it is done.

    Args:
        names: of cases and classes; all if absent.
        seeds: of each.
        quick: 20 times fewer trajectories, one seed.
        out: folder; ``benchmarks/results/control_literature``, or ``runs/control_literature_quick``
            if quick.
    """
    unknown = sorted(set(names) - set(CASES) - set(CLASSES))
    if unknown:
        raise ValueError(f"names must be among {sorted([*CASES, *CLASSES])}; got {unknown}")
    bench.at_least(1, seeds=seeds)
    bench.resume(
        [job for job in jobs(1 if quick else seeds) if not names or job.of in names],
        out or (QUICK if quick else HERE),
        lambda job: execute(job, 20 if quick else 1),
        lambda x: ", ".join(f"{name} {value:.3g}" for name, value in x["row"].items()),
    )


# --- report

#: Of each kind: the table's title, its measure, trajectories and target (None: the case's).
KINDS: dict[str, tuple[str, str, int | None, float | None]] = {
    "error": (
        "Relative squared error of the control along paths of the optimum (no control: 1)",
        "error",
        None,
        None,
    ),
    "seconds": (
        "Wall-clock seconds of two threads for 2,000 recorded trajectories of 50 steps, model"
        " selection included",
        "seconds",
        2000,
        5.0,
    ),
    "memory": (
        "Peak memory (MB), trajectories of 10 steps streamed",
        "megabytes",
        MILLION,
        2000.0,
    ),
}


def summarise(lines: Sequence[bench.Line]) -> bench.Line:
    """Medians and worst seeds of the finished jobs, and whether the median is within its target."""
    entries = []
    found = bench.groups(lines, lambda line: (line["job"]["kind"], line["job"]["of"]))
    for (kind, name), group in found.items():
        _, measure, trajectories, target = KINDS[kind]
        rows = [line["row"] for line in group]
        target = CASES[name].target if target is None else target
        median = bench.median(rows, measure)
        entries.append(
            {
                "kind": kind,
                "name": name,
                "seeds": len(rows),
                "trajectories": trajectories or CASES[name].trajectories,
                "target": target,
                "median": median,
                "worst": max(row[measure] for row in rows),
                "cpu_seconds": bench.median(rows, "seconds"),
                "met": median <= target,
            }
        )
    made = {name: lines[-1][name] for name in ("versions", "hardware")}
    return {"entries": entries, "commands": sorted({x["command"] for x in lines}), **made}


def markdown(summary: bench.Line) -> list[str]:
    """The tables."""
    text = ["# Test problems of the stochastic-control literature"]
    for kind, (title, *_) in KINDS.items():
        unit = "seconds" if kind == "seconds" else "CPU seconds"
        heads = ["", "trajectories", "seeds", "target", "median", "worst", unit, "met"]
        rows = [
            [
                *(e["name"], f"{e['trajectories']:,}", str(e["seeds"]), f"{e['target']:g}"),
                *(f"{e['median']:.2g}", f"{e['worst']:.2g}", f"{e['cpu_seconds']:.1f}"),
                "yes" if e["met"] else "no",
            ]
            for e in summary["entries"]
            if e["kind"] == kind
        ]
        text += [f"{title}:", bench.table(heads, rows)] if rows else []
    made = ", ".join(f"`{command}`" for command in summary["commands"])
    return [*text, f"Made by {made}."]


def report(out: Path = HERE) -> None:
    """Write report.md and report.json for the finished jobs.

    Args:
        out: folder that ``run`` filled.
    """
    summary = summarise(list(bench.runs_of(out, some=True).values()))
    bench.write(out, markdown(summary), summary)


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("control_literature.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
