"""What the PDE agent reaches, and which of its ingredients bought what.

    python benchmarks/pde.py                  # every table, 5 seeds
    python benchmarks/pde.py --only digits beta0.3-1000
    python benchmarks/pde.py report

What is measured, and how, is told in results/pde/report.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import reports
import resumable as bench
import torch
from learning import Curve
from mixture import Reference, Yardstick, mixture

from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Policy, Problem, objective
from girsanov.scoreboard.evaluation import FINAL_SEED, evaluate, generator_on

TABLES = ("mixture", "steps", "dimensions", "digits", "ablation")
REFERENCE_PATHS = 1 << 16  # a quarter of them on Digits

_RAW = "states in place of clean estimates"
_SCALED = "control scaled by a factor chosen on 200 of the paths"
_FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1)
#: One ingredient changed at a time; the names say what is missing or added.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "observed next states, five visits ahead on average": {"lookahead": "observed"},
    "observed next states, one step ahead": {"lookahead": "observed", "mean_span": 1.0},
    "Monte-Carlo regression": {"lookahead": "observed", "mean_span": 1e6},
    "uncontrolled paths only (off-policy)": {"adaptive": False},
    "one network instead of two": {"policy_kwargs": {"members": 1}},
    "no averaging of the weights": {"averaging": 0.0},
    "constant learning rate": {"anneal": False},
    _RAW: {},
    "gradient penalty 0.01": {"gradient_penalty": 0.01},
    "gradient averaged over noise": {"policy_kwargs": {"draws": 2}},
    "control matched directly": {"policy": "NoisePolicy"},
    _SCALED: {},
}
_OFF = {"policy": "KernelPolicy", "adaptive": False}
#: From Mou's estimator to the default, each with one change more than the one before.
MOU = "Mou's estimator: uncontrolled paths at random times, f in a convex set, of the states"
FROM_MOU: dict[str, dict[str, Any]] = {
    MOU: {},
    "clean estimates in place of states": {},
    "paths seen at every step": {"visits": 50},
    "log f in place of f: a kernel's space, solved by Newton's steps": {
        **_OFF,
        "lookahead": "observed",
    },
    "fresh noise one step ahead": _OFF,
    "paths of the present policy": {"policy": "KernelPolicy"},
    "a network in place of the kernel: the default": {"policy": "MlpPolicy"},
}
#: Settings of a single row of another table.
_LONG = "200 gradient steps, gradient averaged over noise"
SETTINGS = {**VARIANTS, **FROM_MOU, _LONG: {"gradient_steps": 200, "policy_kwargs": {"draws": 2}}}
#: Variants that are other agents, with the settings of their table.
RL = {"PPO": "ppo-control", "SAC": "sac-control"}
AGENTS = {**RL, **dict.fromkeys(list(FROM_MOU)[:3], "pde-mou")}


@dataclass(frozen=True)
class Job(bench.Job):
    """One agent on one problem with one seed."""

    form: ClassVar[str] = (
        "{table}-{env}{dimension}-beta{beta:g}-{queries}-bound{action_bound:g}-{variant}-{seed}"
    )
    table: str  # where it is shown
    env: str  # ``mixture`` or ``digits``
    beta: float  # temperature
    queries: int  # reward queries
    seed: int  # of the agent
    dimension: int = 2  # of the state
    variant: str = "default"  # a name of ``SETTINGS`` or ``RL``
    action_bound: float = 1.0  # of the environment


def jobs(seeds: Sequence[int], quick: bool, done: Any) -> list[Job]:
    """The first seed of every row first; quick: one of each problem."""
    if quick:
        small = [Job("mixture", "mixture", 0.5, 120, seed) for seed in seeds]
        return [*small, *(Job("digits", "digits", 0.3, 40, s, 64, "PPO") for s in seeds)]
    made = []
    for seed in seeds:
        for beta, queries, bound in (
            *((0.5, 500, 1.0), (0.5, 1000, 1.0), (2.0, 1000, 1.0), (0.1, 1000, 1.0)),
            (0.1, 1000, 2.0),
        ):
            made.append(Job("mixture", "mixture", beta, queries, seed, action_bound=bound))
        made.append(Job("mixture", "mixture", 0.1, 1000, seed, 2, _LONG, 2.0))
        made += [Job("steps", "mixture", 0.5, 500, seed, variant=v) for v in FROM_MOU]
        made += [Job("dimensions", "mixture", 0.5, 1000, seed, d) for d in (2, 8, 32, 64)]
        for beta, queries in ((0.3, 1000), (0.3, 2000), (1.0, 1000)):
            made.append(Job("digits", "digits", beta, queries, seed, 64))
        made += [Job("digits", "digits", b, 4000, seed, 64, a) for a in RL for b in (0.3, 1.0)]
        made += [Job("ablation", "digits", 0.3, 1000, seed, 64, v) for v in VARIANTS]
    return made


def problem_of(job: Job) -> Problem:
    """On the CPU."""
    if job.env == "mixture":
        problem: Any = mixture(job.beta, job.dimension)
    else:
        problem = make_problem("girsanov/Digits-v0", temperature=job.beta)
    if job.variant in (_RAW, MOU):
        problem.terminal_estimate = None
    return problem


def scaled(problem: Problem, policy: Policy, paths: int, seed: int) -> Policy:
    """``policy`` times the factor that did best on fresh paths, all factors on the same noises."""

    def times(factor: float) -> Policy:
        return lambda k, x: factor * policy(k, x)

    def worth(factor: float) -> float:
        on = generator_on(problem, seed)
        return objective(problem, times(factor), paths, on).objective.mean

    with torch.no_grad():
        return times(max(_FACTORS, key=worth))


def execute(job: Job, at: bench.Place) -> bench.Line:
    """Learn, then measure on fresh paths."""
    problem, known = problem_of(job), 256 if at.quick else REFERENCE_PATHS
    env = ProblemEnv(problem, action_bound=job.action_bound)
    usual = {} if job.variant in AGENTS else {"policy": "MlpPolicy"}
    settings = {**usual, **SETTINGS.get(job.variant, {})}
    kept = 200 if job.variant == _SCALED else 0
    curve = Curve.of(AGENTS.get(job.variant, "pde"), env, job.seed, **settings)
    policy = curve.learn(job.queries - kept).policy
    if kept:
        policy = scaled(problem, policy, kept // len(_FACTORS), seed=10_000 + job.seed)
    if job.env == "mixture":
        reference = Reference.kept(job.beta, job.dimension, known, at.out)
        found: bench.Line = Yardstick(problem, reference, 4096).measure(policy)
        found["ceiling"] = reference.score(reference.closed_form.mean)
    else:
        bound = bench.bound_of(at.out, problem, job.env, job.beta, known // 4)
        value = evaluate(problem, policy, 2000, generator_on(problem, FINAL_SEED)).value
        score = bound.score(value.objective) or (None, None)
        found = {"objective": value.objective.mean, "kl": value.kl.mean}
        found |= dict(zip(("score", "score_stderr"), score, strict=True))
    return {**found, "seconds": curve.spent()["seconds"]}


def _title(job: bench.Line) -> str:
    """A row's name within its table."""
    table, variant = job["table"], job["variant"]
    if table in ("ablation", "steps"):
        return variant
    parts = {"dimensions": [f"d = {job['dimension']}"], "digits": [v for v in RL if v == variant]}
    parts = [*parts.get(table, []), f"beta {job['beta']:g}, {job['queries']:,} queries"]
    if table == "mixture":
        parts += [f"action bound {job['action_bound']:g}", *([variant] * (variant != "default"))]
    return ", ".join(parts)


def told(lines: list[bench.Line], out: Path) -> dict[str, str]:
    """Medians over seeds, and the worst and the best."""
    heads = "|score|ceiling|KL|CPU s|seeds"
    found = dict.fromkeys(TABLES, "")
    for name, here in reports.groups(lines, "table").items():
        rows = [_row(*row) for row in reports.groups(here, lambda x: _title(x["job"])).items()]
        found[name] = reports.table(heads, rows)
    return {**found, "made": reports.made_by(lines)}


def _row(name: str, group: list[bench.Line]) -> list[str]:
    scores = [x["score"] for x in group if x["score"] is not None]
    score = reports.spread(scores) if scores else "not certified"
    if len(scores) == 1:  # brackets of a single seed too
        score = f"{score} [{score}, {score}]"
    ceiling = f"{group[0]['ceiling']:.3f}" if "ceiling" in group[0] else ""
    cells = [reports.median(group, "kl"), reports.median(group, "seconds", ".0f"), str(len(group))]
    return [name, score, ceiling, *cells]


words = "score {score}, {seconds:.0f} CPU s".format_map
main = bench.Benchmark(__doc__, "pde", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
