"""How fast does regression learn? Errors and regret against the number of uncontrolled
trajectories, the truth in closed form.

    python benchmarks/rates.py            about 20 CPU minutes on one core; --quick: less than one
    python benchmarks/rates.py report

Three studies, ``rates``, ``size`` and ``rl``, and what they measure are told in
results/rates/report.md.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import resumable as bench
import torch
from learning import Curve
from rates_report import told
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.networks import encode
from girsanov.agents.pde.norms import control_error, sobolev_errors
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Estimate, Policy, Trajectories, rollout

RECORDED = {"lookahead": "observed"}  # nothing but the recorded paths
PARAMETRIC = {"policy": "PolynomialPolicy", "ridge": 1e-8, "select": False, **RECORDED}
#: Arguments of PDE by method; ``policy_kwargs`` of those of the size study hold what their size
#: counts.
_EIGHT = {**PARAMETRIC, "policy_kwargs": {"times": 8}}
_KERNEL = {"policy": "KernelPolicy", **RECORDED}
METHODS: dict[str, dict[str, Any]] = {
    "polynomial": _EIGHT,
    "polynomial-fresh": {**_EIGHT, "lookahead": "fresh", "draws": 2},
    "kernel": {**_KERNEL, "policy_kwargs": {"centres": 40, "length": 2.0}},
    "network": {"policy": "MlpPolicy", "policy_kwargs": {"hidden": (64, 64)}, **RECORDED},
    "times": {**PARAMETRIC, "policy_kwargs": {}},
    "centres": {**_KERNEL, "ridge": 1e-6, "select": False, "policy_kwargs": {"times": 6}},
}
#: Uncontrolled paths behind errors of f; a quarter as many of the optimum behind errors of the
#: control, and behind a regret.
PATHS = 4096
RL = {"ppo": "ppo-control", "sac": "sac-control"}


@dataclass(frozen=True)
class Job(bench.Job):
    """One fit, or one run of PPO or SAC."""

    form: ClassVar[str] = (
        "{study} {method} beta {temperature:g} d {dimension} n {n} size {size} seed {seed}"
    )
    study: str  # which
    temperature: float  # of the problem
    dimension: int  # of the problem
    method: str  # of ``METHODS`` or ``RL``
    n: int  # uncontrolled trajectories; of RL the most that are used
    seed: int  # of data and agent
    size: int = 0  # of the class, where that is studied
    cpu_seconds: float = 0.0  # limit of RL


_NS = [500 * 2**i for i in range(7)]
#: Temperature, dimension, method, numbers of trajectories, the most seeds.
LINES = [
    (2.0, 4, "polynomial", _NS, 5),
    (0.5, 4, "polynomial", _NS, 5),
    (2.0, 4, "polynomial-fresh", _NS, 5),
    (2.0, 8, "polynomial", _NS, 3),
    (2.0, 4, "kernel", _NS[:6], 5),
    (2.0, 4, "network", _NS, 3),
]
#: Method, temperature, sizes, the most seeds.
SIZES = [("times", 0.5, (1, 2, 3, 4, 6, 8, 12, 16, 24), 3)]
SIZES += [("centres", 2.0, (10, 20, 40, 80, 160), 2)]


def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    """Of each study the first seed of every line, then the others line by line."""
    if quick:
        made = [Job("rates", 2.0, 4, "polynomial", n, s) for n in (40, 80) for s in seeds]
        made += [Job("size", 2.0, 4, "times", 60, s, size) for size in (2, 4) for s in seeds]
        return [*made, *(Job("rl", 2.0, 4, "ppo", 32, s, cpu_seconds=1.0) for s in seeds)]
    rates = [Job("rates", b, d, m, n, s) for b, d, m, ns, k in LINES for n in ns for s in seeds[:k]]
    sizes = [
        Job("size", b, 4, m, n, s, z)
        for m, b, grid, most in SIZES
        for z in grid
        for n in (500, 8000)
        for s in seeds[:most]
    ]
    first = lambda job: job.seed != seeds[0]  # noqa: E731
    rl = [Job("rl", 2.0, 4, m, 20_000, s, 0, 60.0) for m in RL for s in seeds[:2]]
    return [*sorted(rates, key=first), *sorted(sizes, key=first), *rl]


# --- measuring


def curvatures(problem: LinearQuadratic) -> Tensor:
    """``S_k = beta I + C_k^T P_{k+1} C_k``, ``(T, m, m)``, float64."""
    noise, value = problem.noise_matrix.double(), problem.solution.matrix[1:].double()
    eye = torch.eye(noise.shape[-1], dtype=torch.float64)
    return problem.temperature * eye + noise.mT @ value @ noise


@torch.no_grad()
def regret(
    problem: LinearQuadratic, policy: Policy | None, n: int, generator: torch.Generator
) -> Estimate:
    """``J* - J(policy)`` by the performance-difference identity, from ``n`` paths of ``policy``
    (None: no control).
    """
    paths = rollout(problem, policy, n, generator)
    total = torch.zeros(n, dtype=torch.float64)
    for k, curvature in enumerate(curvatures(problem)):
        off = (paths.controls[k] - problem.optimal_control(k, paths.states[k])).double()
        total += 0.5 * ((off @ curvature) * off).sum(1)
    return Estimate.of(total)


class Yardstick(NamedTuple):
    """A problem, the paths that all its policies are measured on, and the regret of no control at
    all.
    """

    problem: LinearQuadratic
    uncontrolled: Trajectories
    optimal: Trajectories
    room: float

    def control(self, policy: Policy) -> dict[str, float]:
        """Error and regret of a control."""
        error = control_error(self.problem, self.optimal, policy, self.problem.optimal_control)
        loss = regret(self.problem, policy, PATHS // 4, torch.Generator().manual_seed(3))
        return {"control": math.sqrt(error), "regret": loss.mean, "regret_stderr": loss.stderr}

    def value(self, agent: PDE) -> dict[str, float]:
        """Errors of f."""
        problem, value = self.problem, agent.policy.value
        errors = sobolev_errors(
            problem,
            self.uncontrolled,
            lambda k, x: value(k, encode(problem, k, x).float()),
            lambda k, x: problem.log_moment_value(k, x) / problem.temperature,
        )
        return errors._asdict()


@cache
def yardstick(temperature: float, dimension: int) -> Yardstick:
    """The problem and its paths, the same in every run."""
    problem: Any = make_problem(
        "girsanov/LinearQuadratic-v0", temperature=temperature, dimension=dimension
    )
    drawn = [torch.Generator().manual_seed(seed) for seed in (1, 2, 4)]
    with torch.no_grad():
        free = rollout(problem, None, PATHS, drawn[0])
        best = rollout(problem, problem.optimal_control, PATHS // 4, drawn[1])
    return Yardstick(problem, free, best, regret(problem, None, 4 * PATHS, drawn[2]).mean)


# --- jobs


def fit(job: Job) -> tuple[PDE, float]:
    """The agent that learnt from uncontrolled paths alone, fresh ones for every seed and number,
    and the CPU seconds of all that.
    """
    problem = yardstick(job.temperature, job.dimension).problem
    start, arguments = time.process_time(), dict(METHODS[job.method])
    if job.study == "size":
        arguments["policy_kwargs"] = {**arguments["policy_kwargs"], job.method: job.size}
    generator = torch.Generator().manual_seed(1_000_003 * (job.seed + 1) + job.n)
    with torch.no_grad():
        paths = rollout(problem, None, job.n, generator)
    agent = PDE(env=problem, seed=job.seed, device="cpu", **arguments).fit(paths)
    return agent, round(time.process_time() - start, 3)


def execute(job: Job, quick: bool) -> bench.Line:
    """Rows of one job, one of a fit, one a look of RL; what blew up is null."""
    ruler = yardstick(job.temperature, job.dimension)
    if job.study == "rl":
        points = [50 * 2**i for i in range(20)]
        watched = (ruler.control, points, job.cpu_seconds)
        curve = Curve(RL[job.method], ruler.problem, job.seed, *watched).learn(job.n)
        rows = [{"n": row.pop("queries"), **row} for row in curve.rows]
    else:
        agent, seconds = fit(job)
        control = ruler.control(agent.policy.control) if job.study == "rates" else {}
        rows = [{"n": job.n, "seconds": seconds, **ruler.value(agent), **control}]
    finite = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows]
    return {"rows": finite, "regret_without_control": ruler.room}


def words(line: bench.Line) -> str:
    """The last row."""
    last = line["rows"][-1].items()
    return ", ".join(f"{name} {value:.3g}" for name, value in last if value is not None)


main = bench.Benchmark(__doc__, "rates", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
