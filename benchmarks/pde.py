"""What the PDE agent reaches, and which of its ingredients bought what.

    python benchmarks/pde.py                  # every table, 5 seeds; killed and started again it
        goes on
    python benchmarks/pde.py --tables digits
    python benchmarks/pde.py report

Four tables. ``mixture``: girsanov/GaussianMixture-v0 in the plane at three temperatures.
``dimensions``: the same problem in 2 to 64 dimensions. ``digits``: girsanov/Digits-v0 at two
temperatures, and PPO and SAC there with four times the reward queries. ``ablation``: Digits-v0 with
one ingredient changed at a time.

Scores on the mixture are measured as in frontier.py: against the Donsker-Varadhan bound, estimated
by importance sampling; the closed form's score on the same scale is the ceiling. Scores on Digits
are measured as in ``train.py compare``, against the bound estimated from uncontrolled paths.
Seconds are CPU seconds of one thread, learning alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import resumable as bench
import torch
from frontier import Cell, Yardstick
from frontier import Reference as MixtureReference

from girsanov.agents import PDE
from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Policy, Problem, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, evaluate, generator_on, policy_of

HERE = bench.RESULTS / "pde"
Table = Literal["mixture", "dimensions", "digits", "ablation"]

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
    "states in place of clean estimates": {},
    "gradient penalty 0.01": {"gradient_penalty": 0.01},
    "gradient averaged over noise": {"policy_kwargs": {"draws": 2}},
    "control matched directly": {"policy": "NoisePolicy"},
    "control scaled by a factor chosen on 200 of the paths": {},
}
#: Settings of single rows of the other tables.
_LONG = "200 gradient steps, gradient averaged over noise"
SETTINGS = {**VARIANTS, _LONG: {"gradient_steps": 200, "policy_kwargs": {"draws": 2}}}
_RAW = "states in place of clean estimates"
_SCALED = "control scaled by a factor chosen on 200 of the paths"
_FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1)
#: Variants that are other agents, with the settings of ``baselines/hyperparameters.py``.
_RL: dict[str, Callable[..., Any]] = {"PPO": make_ppo, "SAC": make_sac}


@dataclass(frozen=True)
class Run:
    """One agent on one problem with one seed.

    Args:
        table: where it is shown.
        env: ``mixture`` or ``digits``.
        beta: temperature.
        queries: reward queries.
        seed: of the agent.
        dimension: of the mixture.
        variant: a name of ``VARIANTS``, or another agent's.
        action_bound: of the environment.
    """

    table: str
    env: str
    beta: float
    queries: int
    seed: int
    dimension: int = 2
    variant: str = "default"
    action_bound: float = 1.0

    @property
    def name(self) -> str:
        """Unlike any other run's."""
        cell = f"{self.env}{self.dimension}-beta{self.beta:g}-{self.queries}"
        cell = f"{cell}-bound{self.action_bound:g}"
        return f"{self.table}-{cell}-{self.variant}-{self.seed}"


def runs(tables: Sequence[str], seeds: int) -> list[Run]:
    """All of them, the first seed of every row first."""
    mixtures = [(0.5, 500, 1.0), (0.5, 1000, 1.0), (2.0, 1000, 1.0), (0.1, 1000, 1.0)]
    mixtures += [(0.1, 1000, 2.0)]
    digits = [(0.3, 1000), (0.3, 2000), (1.0, 1000)]
    made = []
    for seed in range(seeds):
        made += [Run("mixture", "mixture", b, q, seed, 2, "default", to) for b, q, to in mixtures]
        made += [Run("mixture", "mixture", 0.1, 1000, seed, 2, _LONG, 2.0)]
        made += [Run("dimensions", "mixture", 0.5, 1000, seed, d) for d in (2, 8, 32, 64)]
        made += [Run("digits", "digits", beta, q, seed, 64) for beta, q in digits]
        made += [Run("digits", "digits", b, 4000, seed, 64, a) for a in _RL for b in (0.3, 1.0)]
        made += [Run("ablation", "digits", 0.3, 1000, seed, 64, v) for v in VARIANTS]
    return [run for run in made if run.table in tables]


def problem_of(run: Run) -> Problem:
    """On the CPU."""
    if run.env == "mixture":
        return Cell(run.beta, run.dimension).problem()
    problem = make_problem("girsanov/Digits-v0", temperature=run.beta)
    if run.variant == _RAW:
        problem.terminal_estimate = None  # type: ignore[attr-defined]
    return problem


def scaled(problem: Problem, policy: Policy, paths: int, seed: int) -> Policy:
    """``policy`` times the factor that did best on fresh paths, all factors on the same noises."""

    def objective(factor: float) -> float:
        found = rollout(
            problem, lambda k, x: factor * policy(k, x), paths, generator_on(problem, seed)
        )
        return float((found.reward - problem.temperature * found.kl).mean())

    with torch.no_grad():
        best = max(_FACTORS, key=objective)
    return lambda k, x: best * policy(k, x)


def execute(run: Run, out: Path, reference_paths: int) -> dict[str, Any]:
    """Learn, then measure on fresh paths."""
    torch.set_num_threads(1)
    problem = problem_of(run)
    env = ProblemEnv(problem, action_bound=run.action_bound)
    if run.variant in _RL:
        agent: Any = _RL[run.variant](env, seed=run.seed, device="cpu")
    else:
        settings = {"policy": "MlpPolicy", **SETTINGS[run.variant]}
        agent = PDE(env=env, seed=run.seed, device="cpu", **settings)
    began = time.process_time()
    chosen = 200 if run.variant == _SCALED else 0
    agent.learn((run.queries - chosen) * problem.horizon)
    policy: Policy = policy_of(agent, problem)
    if chosen:
        policy = scaled(problem, policy, chosen // len(_FACTORS), seed=10_000 + run.seed)
    seconds = time.process_time() - began
    if run.env == "mixture":
        reference = MixtureReference.cached(Cell(run.beta, run.dimension), reference_paths, out)
        found = Yardstick(problem, reference, 4096).measure(policy)
        found["ceiling"] = reference.score(reference.closed_form.mean)
    else:
        known = bench.bound_of(out, problem, run.env, run.beta, reference_paths // 4)
        value = evaluate(problem, policy, 2000, generator_on(problem, FINAL_SEED)).value
        score = known.score(value.objective)
        mean, stderr = (None, None) if score is None else score
        found = {"objective": value.objective.mean, "kl": value.kl.mean}
        found |= {"score": mean, "score_stderr": stderr}
    return {**found, "seconds": round(seconds, 2)}


def run(
    tables: tuple[Table, ...] = ("mixture", "dimensions", "digits", "ablation"),
    seeds: int = 5,
    reference_paths: int = 1 << 16,
    only: str = "",
    out: Path = HERE,
) -> None:
    """Make every run that is not finished.

    Args:
        tables: which.
        seeds: 0, 1, ... of each row.
        reference_paths: behind the bound of each problem; a quarter of them on Digits.
        only: runs whose name holds this, such as ``beta0.3-1000`` or ``SAC``.
        out: folder of everything.
    """
    bench.at_least(1, seeds=seeds)
    bench.resume(
        [run for run in runs(tables, seeds) if only in run.name],
        out,
        lambda one: execute(one, out, reference_paths),
        lambda line: f"score {line['score']}, {line['seconds']:.0f} CPU s",
    )


def _title(job: bench.Line) -> str:
    """A row's name within its table."""
    if job["table"] == "ablation":
        return job["variant"]
    words = f"beta {job['beta']:g}, {job['queries']:,} queries"
    if job["table"] == "dimensions":
        return f"d = {job['dimension']}, {words}"
    if job["table"] == "digits":
        return f"{job['variant']}, {words}" if job["variant"] in _RL else words
    rest = f", {job['variant']}" if job["variant"] != "default" else ""
    return f"{words}, action bound {job['action_bound']:g}{rest}"


def report(out: Path = HERE) -> None:
    """Write ``report.md``: medians over seeds, and the worst."""
    lines = list(bench.runs_of(out, some=True).values())
    text = [
        "# What the PDE agent reaches",
        "Medians over seeds; brackets hold the worst and the best seed. The ceiling is the closed"
        " form's score, clipped to an action bound of 1. Each row of the ablation changes one thing"
        " and leaves the rest as it is: with settings of their own, observed next states five"
        " visits ahead reach 0.91 (docs/pde.md).",
    ]
    for name in ("mixture", "dimensions", "digits", "ablation"):
        here = [line for line in lines if line["job"]["table"] == name]
        rows = [_row(*row) for row in bench.groups(here, lambda x: _title(x["job"])).items()]
        if rows:
            text.append(f"## {name.capitalize()}")
            text.append(bench.table(["", "score", "ceiling", "KL", "CPU s", "seeds"], rows))
    bench.write(out, [*text, bench.made_by(lines)])


def _row(name: str, group: list[bench.Line]) -> list[str]:
    scores = [x["score"] for x in group if x["score"] is not None]
    # brackets always, of a single seed too
    low, high = (f"{f(scores):.3f}" for f in (min, max)) if scores else ("", "")
    score = f"{statistics.median(scores):.3f} [{low}, {high}]" if scores else "not certified"
    ceiling = f"{group[0]['ceiling']:.3f}" if "ceiling" in group[0] else ""
    kl, seconds = (bench.median(group, key) for key in ("kl", "seconds"))
    return [name, score, ceiling, f"{kl:.2f}", f"{seconds:.0f}", str(len(group))]


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("pde.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
