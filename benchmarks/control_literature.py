"""PDE on test problems of the stochastic-control literature, whose optimal controls are known.

    python benchmarks/control_literature.py            --quick: a minute's worth
    python benchmarks/control_literature.py report

What is measured, and how, is told in results/control_literature/report.md.
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
from statistics import median
from typing import Any, ClassVar, NamedTuple

import reports
import resumable as bench
import torch

from girsanov.agents import PDE
from girsanov.agents.pde.norms import control_error
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, rollout
from girsanov.envs.recording import SimulatedPaths

#: Paths of the optimum behind an error.
PATHS = 1024
MILLION = 1_000_000


@dataclass(frozen=True)
class Case:
    """A problem, an agent and what is asked of it."""

    env: str  # registered name
    target: float  # largest error
    trajectories: int  # in all
    agent: dict[str, Any]  # arguments of PDE
    recorded: bool = False  # by ``fit``, from uncontrolled trajectories alone; else by ``learn``
    env_kwargs: dict[str, Any] = field(default_factory=dict)  # of the problem

    def problem(self) -> Problem:
        """On the CPU."""
        return make_problem(f"girsanov/{self.env}-v0", **self.env_kwargs)


_LINEAR = {"policy": "PolynomialPolicy"}
ADAPTIVE = {**_LINEAR, "n_uncontrolled": 1000, "n_trajectories": 1000}
NETWORK = {"policy": "MlpPolicy", "n_uncontrolled": 500, "n_trajectories": 500}
#: Sums of powers of single coordinates, each step's weights its own; the gradient's mean over
#: noise, as steps are coarse.
SEPARABLE = {"degree": 8, "interaction": 1, "times": None, "draws": 2, "iterations": 5}
EXPLORING = {**_LINEAR, "n_uncontrolled": 600, "n_trajectories": 600, "exploration": 1.0}
WELL = {**EXPLORING, "policy_kwargs": SEPARABLE}
_FINER = {**EXPLORING, "policy_kwargs": {**SEPARABLE, "draws": 4, "iterations": 6}}


def arbitrary(seed: int, dimension: int = 20) -> Case:
    """Matrices, initial law, costs and horizon, all drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    drift, control, running, terminal = torch.randn(4, dimension, dimension, **drawn)
    offset, target, mean = 0.5 * torch.randn(3, dimension, **drawn)
    eye = torch.eye(dimension, dtype=torch.float64)
    problem = {
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
    return Case("OrnsteinUhlenbeck", 1e-3, 5000, ADAPTIVE, env_kwargs=problem)


HARD = {"drift_matrix": 1.0, "running_matrix": 2.0, "terminal_matrix": 1.0}
CASES = {
    "chain, default": Case("LinearQuadratic", 1e-4, 10_000, _LINEAR, True),
    "quadratic, easy": Case("OrnsteinUhlenbeck", 1e-3, 5000, ADAPTIVE),
    "quadratic, hard": Case("OrnsteinUhlenbeck", 1e-3, 8000, ADAPTIVE, env_kwargs=HARD),
    **{f"quadratic, arbitrary {i}": arbitrary(i) for i in (1, 2, 3)},
    "linear": Case("LinearOrnsteinUhlenbeck", 1e-3, 5000, ADAPTIVE),
    "double well": Case("DoubleWell", 0.1, 2400, WELL),
    "double well, 4 pairs": Case("DoubleWell", 0.1, 2400, _FINER),
    "quadratic, easy, network": Case("OrnsteinUhlenbeck", 2e-2, 20_000, NETWORK),
}
CLASSES = ("PolynomialPolicy", "FourierPolicy", "KernelPolicy", "RadialPolicy")


@dataclass(frozen=True)
class Job(bench.Job):
    """One measurement."""

    form: ClassVar[str] = "{kind} {of} seed {seed}"
    kind: str  # ``error``, ``seconds`` or ``memory``
    of: str  # a case, or a class
    seed: int  # of data and agent


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """Every case's first seed, then the others."""
    errors = [Job("error", name, seed) for seed in seeds for name in CASES]
    seconds = [Job("seconds", name, seed) for name in CLASSES for seed in seeds]
    return [*errors, *seconds, Job("memory", "PolynomialPolicy", 0)]


def execute(job: Job, quick: bool) -> bench.Line:
    """What the job measures, quickly with 20 times fewer trajectories."""
    divide = 20 if quick else 1
    if job.kind == "memory":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
            return {"row": one.submit(peak_memory, job.of, MILLION // divide).result()}
    timed = job.kind == "seconds"
    case = CASES["chain, default" if timed else job.of]
    problem, arguments = case.problem(), {"policy": job.of} if timed else dict(case.agent)
    n = (2000 if timed else case.trajectories) // divide
    clock = time.perf_counter if timed else time.process_time
    torch.set_num_threads(2 if timed else 1)
    for name in arguments.keys() & {"n_uncontrolled", "n_trajectories"}:
        arguments[name] = max(2, arguments[name] // divide)
    env = ProblemEnv(problem, action_bound=2.5)
    model = functools.partial(PDE, env=env, seed=job.seed, device="cpu", **arguments)
    generator = torch.Generator().manual_seed(1_000_003 * (job.seed + 1))
    with torch.no_grad():
        paths = rollout(problem, None, n, generator) if case.recorded else None
    start = clock()
    learnt = model().learn(n * problem.horizon) if paths is None else model().fit(paths)
    seconds, policy = round(clock() - start, 2), learnt.policy
    torch.set_num_threads(1)
    optimum = problem.optimal_control  # type: ignore[attr-defined]
    with torch.no_grad():
        best = rollout(problem, optimum, PATHS, torch.Generator().manual_seed(2))
    error = control_error(problem, best, policy.control, optimum)
    return {"row": {"error": error, "seconds": seconds}}


def peak_memory(policy: str, n: int) -> dict[str, float]:
    """Largest resident set (MB) of this process, and CPU seconds, of a fit of ``n`` streamed
    trajectories of 10 steps.
    """
    torch.set_num_threads(1)
    start, problem = time.process_time(), LinearQuadratic.damped_rotation(2, steps=10)
    PDE(policy, problem, seed=0, device="cpu").fit(SimulatedPaths(problem, n, seed=1))
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"megabytes": round(megabytes), "seconds": round(time.process_time() - start, 1)}


class Kind(NamedTuple):
    """A table of the report; trajectories and target None: the case's."""

    measure: str
    unit: str = "CPU seconds"
    trajectories: int | None = None
    target: float | None = None


KINDS = {
    "error": Kind("error"),
    "seconds": Kind("seconds", "seconds", 2000, 5.0),
    "memory": Kind("megabytes", "CPU seconds", MILLION, 2000.0),
}


def told(lines: list[bench.Line]) -> dict[str, str]:
    """Medians and worst seeds, and whether the median is within its target."""
    tables = dict.fromkeys(KINDS, "")
    for kind, group in reports.groups(lines, "kind").items():
        asked, rows = KINDS[kind], []
        for name, found in reports.groups(group, "of").items():
            values = [line["row"][asked.measure] for line in found]
            target = asked.target or CASES[name].target
            seconds = median(line["row"]["seconds"] for line in found)
            numbers = (f"{asked.trajectories or CASES[name].trajectories:,}", str(len(found)))
            figures = (f"{target:g}", f"{median(values):.2g}", f"{max(values):.2g}")
            met = "yes" if median(values) <= target else "no"
            rows.append([name, *numbers, *figures, f"{seconds:.1f}", met])
        heads = f"|trajectories|seeds|target|median|worst|{asked.unit}|met"
        tables[kind] = reports.table(heads, rows)
    return {**tables, "made": reports.made_by(lines)}


def words(line: bench.Line) -> str:
    """What was measured."""
    return ", ".join(f"{name} {value:.3g}" for name, value in line["row"].items())


main = bench.Benchmark(__doc__, "control_literature", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
