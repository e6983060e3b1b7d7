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

import multiprocessing
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rates_report import ROWS
from resumable import append, command_line, read_lines

from girsanov.agents import PDE
from girsanov.agents.pde.norms import control_error
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, rollout
from girsanov.envs.recording import SimulatedPaths
from girsanov.scoreboard.records import check_writable, provenance, write_json, write_whole

RESULTS = Path(__file__).parent / "results" / "control_literature"
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
FINER = {"policy_kwargs": {**SEPARABLE, "draws": 4, "iterations": 6}}
CASES: dict[str, Case] = {
    "chain, observed": Case(
        "LinearQuadratic",
        1e-4,
        10_000,
        {"policy": "PolynomialPolicy", "lookahead": "observed"},
        recorded=True,
    ),
    "chain, default": Case(
        "LinearQuadratic", 1e-4, 10_000, {"policy": "PolynomialPolicy"}, recorded=True
    ),
    "chain, fresh, 4 pairs": Case(
        "LinearQuadratic",
        1e-4,
        10_000,
        {"policy": "PolynomialPolicy", "lookahead": "fresh", "draws": 4},
        recorded=True,
    ),
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
    "double well, 4 pairs": Case("DoubleWell", 0.1, 2400, {**EXPLORING, **FINER}),
    "double well, ridge given, 4 pairs": Case(
        "DoubleWell", 0.1, 2400, {**EXPLORING, **FINER, "ridge": 1e-6}
    ),
    "quadratic, easy, network": Case("OrnsteinUhlenbeck", 2e-2, 20_000, NETWORK),
}
CLASSES = ("PolynomialPolicy", "FourierPolicy", "KernelPolicy", "RadialPolicy")


@dataclass(frozen=True)
class Job:
    """One measurement.

    Args:
        kind: ``error``, ``seconds`` or ``memory``.
        name: of a case, or of a class.
        seed: of data and agent.
    """

    kind: str
    name: str
    seed: int


def jobs(seeds: int = 5) -> list[Job]:
    """Every case's first seed, then the others."""
    out = [Job("error", name, seed) for seed in range(seeds) for name in CASES]
    return (
        out
        + [Job("seconds", name, seed) for name in CLASSES for seed in range(seeds)]
        + [Job("memory", "PolynomialPolicy", 0)]
    )


def execute(job: Job, divide: int = 1) -> dict[str, float]:
    """What the job measures, with ``divide`` times fewer trajectories."""
    if job.kind == "memory":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
            return one.submit(peak_memory, job.name, MILLION // divide).result()
    case = CASES["chain, default"] if job.kind == "seconds" else CASES[job.name]
    problem = case.problem()
    arguments = {"policy": job.name} if job.kind == "seconds" else case.agent
    n = (2000 if job.kind == "seconds" else case.trajectories) // divide
    clock, threads = (time.perf_counter, 2) if job.kind == "seconds" else (time.process_time, 1)
    torch.set_num_threads(threads)
    start = clock()
    if case.recorded:
        with torch.no_grad():
            paths = rollout(
                problem, None, n, torch.Generator().manual_seed(1_000_003 * (job.seed + 1))
            )
        start = clock()
        model = PDE(env=wide(problem), seed=job.seed, device="cpu", **arguments).fit(paths)
    else:
        sizes = {
            name: max(2, arguments[name] // divide) for name in ("n_uncontrolled", "n_trajectories")
        }
        model = PDE(env=wide(problem), seed=job.seed, device="cpu", **{**arguments, **sizes}).learn(
            n * problem.horizon
        )
    seconds = round(clock() - start, 2)
    torch.set_num_threads(1)
    with torch.no_grad():
        best = rollout(problem, problem.optimal_control, PATHS, torch.Generator().manual_seed(2))  # type: ignore[attr-defined]
    error = control_error(problem, best, model.policy.control, problem.optimal_control)  # type: ignore[attr-defined]
    return {"error": error, "seconds": seconds}


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
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds!r}")
    out = out or (QUICK if quick else RESULTS)
    check_writable(out)
    done = {tuple(sorted(line["job"].items())) for line in read_lines(out / ROWS)}
    wanted = [job for job in jobs(1 if quick else seeds) if not names or job.name in names]
    todo = [job for job in wanted if tuple(sorted(vars(job).items())) not in done]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} jobs are finished", flush=True)
    command = f"python benchmarks/control_literature.py {shlex.join(sys.argv[1:])}".strip()
    for number, job in enumerate(todo, 1):
        row = execute(job, 20 if quick else 1)
        made = {
            "command": command,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **provenance(),
        }
        append(out / ROWS, {"job": vars(job), "row": row, **made})
        figures = ", ".join(f"{name} {value:.3g}" for name, value in row.items())
        print(
            f"[{number}/{len(todo)}] {job.kind} {job.name} seed {job.seed}: {figures}", flush=True
        )


# --- report


def summarise(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and worst seeds of the finished jobs, and whether the median is within its target."""
    targets = {"seconds": 5.0, "megabytes": 2000.0}
    entries = []
    for kind, name in dict.fromkeys((line["job"]["kind"], line["job"]["name"]) for line in lines):
        rows = [
            line["row"]
            for line in lines
            if (line["job"]["kind"], line["job"]["name"]) == (kind, name)
        ]
        measure = "megabytes" if kind == "memory" else kind
        values = [row[measure] for row in rows]
        target = CASES[name].target if kind == "error" else targets[measure]
        entries.append(
            {
                "kind": kind,
                "name": name,
                "seeds": len(rows),
                "trajectories": (
                    CASES[name].trajectories
                    if kind == "error"
                    else MILLION
                    if kind == "memory"
                    else 2000
                ),
                "target": target,
                "median": statistics.median(values),
                "worst": max(values),
                "cpu_seconds": statistics.median(row["seconds"] for row in rows),
                "met": statistics.median(values) <= target,
            }
        )
    commands = sorted({line["command"] for line in lines})
    return {
        "entries": entries,
        "commands": commands,
        "versions": lines[-1]["versions"],
        "hardware": lines[-1]["hardware"],
    }


def markdown(summary: dict[str, Any]) -> str:
    """The tables."""
    titles = {
        "error": "Relative squared error of the control along paths of the optimum (no control: 1)",
        "seconds": (
            "Wall-clock seconds of two threads for 2,000 recorded trajectories of 50 steps, model"
            " selection included"
        ),
        "memory": "Peak memory (MB), trajectories of 10 steps streamed",
    }
    text = ["# Test problems of the stochastic-control literature", ""]
    for kind, title in titles.items():
        entries = [entry for entry in summary["entries"] if entry["kind"] == kind]
        if entries:
            text += [
                f"{title}:",
                "",
                (
                    "| | trajectories | seeds | target | median | worst |"
                    f" {'' if kind == 'seconds' else 'CPU '}seconds | met |"
                ),
                "| --- " * 8 + "|",
            ]
            for e in entries:
                numbers = (
                    f"{e['target']:g} | {e['median']:.2g} | {e['worst']:.2g} |"
                    f" {e['cpu_seconds']:.1f}"
                )
                text.append(
                    f"| {e['name']} | {e['trajectories']:,} | {e['seeds']} | {numbers} |"
                    f" {'yes' if e['met'] else 'no'} |"
                )
            text.append("")
    text += ["Made by " + ", ".join(f"`{command}`" for command in summary["commands"]) + ".", ""]
    return "\n".join(text)


def report(out: Path = RESULTS) -> None:
    """Write report.md and report.json for the finished jobs.

    Args:
        out: folder that ``run`` filled.
    """
    lines = read_lines(out / ROWS)
    if not lines:
        raise ValueError(f"out must hold finished jobs ({ROWS}); found none in {str(out)!r}")
    check_writable(out)
    summary = summarise(lines)
    write_json(out / "report.json", summary)
    write_whole(out / "report.md", markdown(summary).encode())
    print(f"{markdown(summary)}\nwritten: {out / 'report.md'}, {out / 'report.json'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return command_line("control_literature.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
