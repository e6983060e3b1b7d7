"""How fast does regression learn? Errors and regret against the number of uncontrolled
trajectories, the truth in closed form.

    python benchmarks/rates.py            about 20 CPU minutes on one core; --quick: less than one
    python benchmarks/rates.py report

Mou (2025) proves ``|fhat - f| <~ inf over the class |g - f| + complexity / sqrt(n)`` in Sobolev
norms. For a class that holds f this is n^-1/2, and since the regret is quadratic in the error of
the control, n^-1 there. Three studies:

* ``rates``: a class that holds f (quadratics in the state, 8 Chebyshev polynomials of time: f is
  smooth in time, and the distance of the class to it below 1e-3), from recorded paths alone and
  with fresh draws of the known transition; a kernel class and a network, from recorded paths alone.
* ``size``: the two terms of the inequality. Features of time of the quadratics, centres of the
  kernel class: with few f is not in the class, with many the data do not suffice.
* ``rl``: the regret of PPO and SAC (the ``default`` entries of their tables) against the
  trajectories that they used.

Everything is measured on ``girsanov/LinearQuadratic-v0``, whose f is known to 1e-10:

* ``energy`` and ``integral``, relative errors of f in the norms of ``variational.sobolev_errors``,
  on one set of fresh uncontrolled paths for all, so that its noise is common to all estimates;
* ``control``, root of ``variational.control_error`` on paths of the optimum;
* ``regret`` J* - J(pi), from the performance-difference identity. With the Bellman equation of
  ``linear_quadratic``, ``Q_k(x, a) = r_k + E_W V_{k+1}(m + C (a + W)) - beta |a|^2 / 2`` is
  quadratic in a with Hessian ``-S_k``, ``S_k = beta I + C_k^T P_{k+1} C_k``, and its largest value,
  at a*, is V_k(x). So ``V_k - Q_k = (a - a*)^T S_k (a - a*) / 2``; summed along paths of pi the V
  telescope: ``J* - J(pi) = E^pi sum_k (a_k - a*_k)^T S_k (a_k - a*_k) / 2``, exactly. This is a
  mean of non-negative numbers, known to some percent of itself, where the difference of two
  estimates of J would be noise.

Which temperature: errors of f are measured under the uncontrolled process, where the mean of f^2
must not hang on a few paths. At the default temperature 0.5 the effective share of paths behind ``E
f_T^2`` is 4%, at 1 15%, at 2 42%. So 2 is the main problem; the default and 8 dimensions stand
beside it. f is bounded (rewards are at most 0): every moment is finite.

The quadratics are fitted with a fixed ridge of 1e-8 to all data (``select=False``): only n changes
along their lines.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import resumable as bench
import torch
from rates_report import HERE, report
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.networks import encode
from girsanov.agents.pde.norms import control_error, sobolev_errors
from girsanov.baselines.sb3 import deterministic_policy, make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Estimate, Policy, Trajectories, rollout

Study = Literal["rates", "size", "rl"]
QUICK = Path("runs") / "rates_quick"
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
RL: dict[str, Callable[..., Any]] = {"ppo": make_ppo, "sac": make_sac}


@dataclass(frozen=True)
class Job:
    """One fit, or one run of PPO or SAC.

    Args:
        study: which.
        temperature: of the problem.
        dimension: of the problem.
        method: of ``METHODS`` or ``RL``.
        n: uncontrolled trajectories; of RL the most that are used.
        seed: of data and agent.
        size: of the class, where that is studied.
        cpu_seconds: limit of RL.
    """

    study: str
    temperature: float
    dimension: int
    method: str
    n: int
    seed: int
    size: int = 0
    cpu_seconds: float = 0.0

    @property
    def name(self) -> str:
        """Unlike any other's."""
        where = f"{self.study} {self.method} beta {self.temperature:g} d {self.dimension}"
        return f"{where} n {self.n} size {self.size} seed {self.seed}"


def jobs(studies: Sequence[str], quick: bool = False) -> list[Job]:
    """The whole benchmark, of each study the first seed of every line, then the others line by
    line.
    """
    ns = [500 * 2**i for i in range(7)]
    lines = [  # temperature, dimension, method, numbers of trajectories, seeds
        (2.0, 4, "polynomial", ns, 5),
        (0.5, 4, "polynomial", ns, 5),
        (2.0, 4, "polynomial-fresh", ns, 5),
        (2.0, 8, "polynomial", ns, 3),
        (2.0, 4, "kernel", ns[:6], 5),
        (2.0, 4, "network", ns, 3),
    ]
    sizes = [("times", 0.5, (1, 2, 3, 4, 6, 8, 12, 16, 24), 3)]
    sizes += [("centres", 2.0, (10, 20, 40, 80, 160), 2)]
    many, rl_n, rl_seeds, seconds = (500, 8000), 20_000, 2, 60.0
    if quick:
        lines = [(2.0, 4, "polynomial", [200, 400, 800], 2), (2.0, 4, "kernel", [200, 400], 2)]
        sizes, many, rl_n, rl_seeds, seconds = (
            [("times", 0.5, (2, 4, 8), 1)],
            (200, 800),
            200,
            1,
            5.0,
        )
    fits = [Job("rates", b, d, m, n, s) for b, d, m, ns, k in lines for n in ns for s in range(k)]
    every = {
        "rates": fits,
        "size": [
            Job("size", b, 4, m, n, s, z)
            for m, b, grid, count in sizes
            for z in grid
            for n in many
            for s in range(count)
        ],
        "rl": [Job("rl", 2.0, 4, m, rl_n, s, 0, seconds) for m in RL for s in range(rl_seeds)],
    }
    first: Callable[[Job], bool] = lambda job: job.study != "rl" and job.seed > 0  # noqa: E731
    return [job for study in every if study in studies for job in sorted(every[study], key=first)]


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

    def log_truth(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``log f_k``, ``(n,)``."""
        return self.problem.log_moment_value(k, x) / self.problem.temperature

    def control(self, policy: Policy) -> dict[str, float]:
        """Error and regret of a control."""
        error = control_error(self.problem, self.optimal, policy, self.problem.optimal_control)
        loss = regret(self.problem, policy, PATHS // 4, torch.Generator().manual_seed(3))
        return {"control": math.sqrt(error), "regret": loss.mean, "regret_stderr": loss.stderr}

    def value(self, agent: PDE) -> dict[str, float]:
        """Errors of f."""
        value = agent.policy.value
        errors = sobolev_errors(
            self.problem,
            self.uncontrolled,
            lambda k, x: value(k, encode(self.problem, k, x).float()),
            self.log_truth,
        )
        return errors._asdict()


@cache
def yardstick(temperature: float, dimension: int) -> Yardstick:
    """The problem and its paths, the same in every run."""
    problem = make_problem(
        "girsanov/LinearQuadratic-v0", temperature=temperature, dimension=dimension
    )
    assert isinstance(problem, LinearQuadratic)
    drawn = [torch.Generator().manual_seed(seed) for seed in (1, 2, 4)]
    with torch.no_grad():
        free = rollout(problem, None, PATHS, drawn[0])
        best = rollout(problem, problem.optimal_control, PATHS // 4, drawn[1])
    return Yardstick(problem, free, best, regret(problem, None, 4 * PATHS, drawn[2]).mean)


# --- jobs


def fit(job: Job) -> PDE:
    """Uncontrolled paths, fresh ones for every seed and number, and the agent that learnt from them
    alone.
    """
    problem = yardstick(job.temperature, job.dimension).problem
    arguments = dict(METHODS[job.method])
    if job.study == "size":
        arguments["policy_kwargs"] = {**arguments["policy_kwargs"], job.method: job.size}
    generator = torch.Generator().manual_seed(1_000_003 * (job.seed + 1) + job.n)
    with torch.no_grad():
        paths = rollout(problem, None, job.n, generator)
    return PDE(env=problem, seed=job.seed, device="cpu", **arguments).fit(paths)


class RegretCurve(BaseCallback):
    """Measures the policy after about 50, 100, 200, ... trajectories, and ends the run when its CPU
    seconds are spent.
    """

    def __init__(
        self, measure: Callable[[Any], dict[str, float]], horizon: int, cpu_seconds: float
    ) -> None:
        super().__init__()
        self.measure, self.horizon, self.limit = measure, horizon, cpu_seconds
        self.rows: list[dict[str, float]] = []
        self._due, self._before, self._since = 50.0, 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return self._before + time.process_time() - self._since

    def _on_training_start(self) -> None:
        self._since = time.process_time()

    def _on_rollout_start(self) -> None:
        used = self.model.num_timesteps // self.horizon
        if used >= self._due:
            self._look(used)

    def _on_step(self) -> bool:
        return self.seconds < self.limit

    def _on_training_end(self) -> None:
        used = self.model.num_timesteps // self.horizon
        if not self.rows or used > self.rows[-1]["n"]:
            self._look(used)

    def _look(self, used: int) -> None:
        self._before, training = self.seconds, self.model.policy.training
        with torch.random.fork_rng([]):  # training goes on as if nobody had looked
            self.rows.append(
                {"n": used, "seconds": round(self._before, 3), **self.measure(self.model)}
            )
        self.model.policy.set_training_mode(training)
        self._due = 2.0 * max(used, self._due)
        self._since = time.process_time()


def execute(job: Job) -> bench.Line:
    """Rows of one job, one of a fit, one a look of RL; what blew up is null."""
    ruler = yardstick(job.temperature, job.dimension)
    if job.study == "rl":
        model = RL[job.method](ruler.problem, seed=job.seed, device="cpu")
        horizon = ruler.problem.horizon
        policy: Any = lambda m: deterministic_policy(m, ruler.problem)  # noqa: E731
        curve = RegretCurve(lambda m: ruler.control(policy(m)), horizon, job.cpu_seconds)
        model.learn(job.n * horizon, curve)
        rows = curve.rows
    else:
        start = time.process_time()
        agent = fit(job)
        seconds = round(time.process_time() - start, 3)
        control = ruler.control(agent.policy.control) if job.study == "rates" else {}
        rows = [{"n": job.n, "seconds": seconds, **ruler.value(agent), **control}]
    finite = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows]
    return {"rows": finite, "regret_without_control": ruler.room}


def run(
    studies: tuple[Study, ...] = ("rates", "size", "rl"),
    quick: bool = False,
    out: Path | None = None,
) -> None:
    """Make the jobs that are missing; each is one line of ``runs.jsonl`` as soon as it is done.

    Args:
        studies: which.
        quick: a minute's worth, to see that it works.
        out: folder; ``benchmarks/results/rates``, or ``runs/rates_quick`` if quick.
    """
    bench.check("studies", studies, "names", lambda study: True)

    def words(line: bench.Line) -> str:
        last = line["rows"][-1].items()
        return ", ".join(f"{name} {value:.3g}" for name, value in last if value is not None)

    bench.resume(jobs(studies, quick), out or (QUICK if quick else HERE), execute, words)


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("rates.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
