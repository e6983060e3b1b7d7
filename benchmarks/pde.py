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

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from frontier import Cell, Yardstick
from frontier import Reference as MixtureReference
from resumable import append, command_line, read_lines

from girsanov.agents import PDE
from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Policy, Problem, rollout
from girsanov.scoreboard.evaluation import (
    FINAL_SEED,
    cached_reference,
    evaluate,
    generator_on,
    policy_of,
)
from girsanov.scoreboard.records import check_writable, provenance, write_whole

RESULTS = Path(__file__).parent / "results" / "pde"
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
SETTINGS: dict[str, dict[str, Any]] = {
    "200 gradient steps, gradient averaged over noise": {
        "gradient_steps": 200,
        "policy_kwargs": {"draws": 2},
    },
}
_RAW, _SCALED = (
    "states in place of clean estimates",
    "control scaled by a factor chosen on 200 of the paths",
)
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

    @property
    def row(self) -> str:
        """What its seeds share."""
        return self.name.rsplit("-", 1)[0]


def runs(tables: Sequence[str], seeds: int) -> list[Run]:
    """All of them, the first seed of every row first."""
    made = []
    for seed in range(seeds):
        if "mixture" in tables:
            cells = [
                (0.5, 500, 1.0),
                (0.5, 1000, 1.0),
                (2.0, 1000, 1.0),
                (0.1, 1000, 1.0),
                (0.1, 1000, 2.0),
            ]
            made += [
                Run("mixture", "mixture", b, q, seed, action_bound=bound) for b, q, bound in cells
            ]
            made.append(
                Run(
                    "mixture",
                    "mixture",
                    0.1,
                    1000,
                    seed,
                    variant="200 gradient steps, gradient averaged over noise",
                    action_bound=2.0,
                )
            )
        if "dimensions" in tables:
            made += [Run("dimensions", "mixture", 0.5, 1000, seed, d) for d in (2, 8, 32, 64)]
        if "digits" in tables:
            made += [
                Run("digits", "digits", beta, q, seed, 64)
                for beta, q in ((0.3, 1000), (0.3, 2000), (1.0, 1000))
            ]
            made += [
                Run("digits", "digits", beta, 4000, seed, 64, name)
                for name in _RL
                for beta in (0.3, 1.0)
            ]
        if "ablation" in tables:
            made += [Run("ablation", "digits", 0.3, 1000, seed, 64, v) for v in VARIANTS]
    return made


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
        settings = {"policy": "MlpPolicy", **{**VARIANTS, **SETTINGS}[run.variant]}
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
        identity = {"env": run.env, "beta": run.beta, "reference_paths": reference_paths // 4}
        known = cached_reference(problem, identity, out / "cells" / f"digits-beta{run.beta:g}.json")
        value = evaluate(problem, policy, 2000, generator_on(problem, FINAL_SEED)).value
        score = known.score(value.objective)
        found = {"objective": value.objective.mean, "kl": value.kl.mean}
        found |= {
            "score": None if score is None else score.mean,
            "score_stderr": None if score is None else score.stderr,
        }
    return {**found, "seconds": round(seconds, 2)}


def done(out: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by name; a torn last line does not count."""
    return {line["run"]: line for line in read_lines(out / "runs.jsonl")}


def run(
    tables: tuple[Table, ...] = ("mixture", "dimensions", "digits", "ablation"),
    seeds: int = 5,
    reference_paths: int = 1 << 16,
    only: str = "",
    out: Path = RESULTS,
) -> None:
    """Make every run that is not finished.

    Args:
        tables: which.
        seeds: 0, 1, ... of each row.
        reference_paths: behind the bound of each problem; a quarter of them on Digits.
        only: runs whose name holds this, such as ``beta0.3-1000`` or ``SAC``.
        out: folder of everything.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds}")
    check_writable(out)
    todo = [run for run in runs(tables, seeds) if only in run.name and run.name not in done(out)]
    command = shlex.join(["python", "benchmarks/pde.py", *sys.argv[1:]])
    for number, one in enumerate(todo, 1):
        found = execute(one, out, reference_paths)
        append(
            out / "runs.jsonl",
            {"run": one.name, **asdict(one), **found, "command": command, **provenance()},
        )
        print(
            f"[{number}/{len(todo)}] {one.name}: score {found['score']}, {found['seconds']:.0f}"
            " CPU s",
            flush=True,
        )


def report(out: Path = RESULTS) -> None:
    """Write ``report.md``: medians over seeds, and the worst."""
    lines = list(done(out).values())
    if not lines:
        raise ValueError(f"out must hold finished runs; got none in {out}")
    text = [
        "# What the PDE agent reaches\n",
        (
            "Medians over seeds; brackets hold the worst and the best seed. The ceiling is the"
            " closed form's score, clipped to an action bound of 1. Each row of the ablation"
            " changes one thing and leaves the rest as it is: with settings of their own, observed"
            " next states five visits ahead reach 0.91 (docs/pde.md).\n"
        ),
    ]
    heads: dict[str, Callable[[dict[str, Any]], str]] = {
        "mixture": lambda x: (
            f"beta {x['beta']:g}, {x['queries']:,} queries, action bound {x['action_bound']:g}"
            + (f", {x['variant']}" if x["variant"] != "default" else "")
        ),
        "dimensions": lambda x: (
            f"d = {x['dimension']}, beta {x['beta']:g}, {x['queries']:,} queries"
        ),
        "digits": lambda x: (
            (f"{x['variant']}, " if x["variant"] in _RL else "")
            + f"beta {x['beta']:g}, {x['queries']:,} queries"
        ),
        "ablation": lambda x: x["variant"],
    }
    for table, head in heads.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if line["table"] == table:
                groups.setdefault(head(line), []).append(line)
        if groups:
            text += [
                f"\n## {table.capitalize()}\n",
                "| | score | ceiling | KL | CPU s | seeds |",
                "| " + "--- | " * 6,
            ]
            text += [_row(name, group) for name, group in groups.items()]
    made = sorted(
        {
            f"`{x['command']}` (torch {x['versions']['torch']}, {x['hardware']['cpu']})"
            for x in lines
        }
    )
    text += ["\nMade by " + "; ".join(made) + ".\n"]
    write_whole(out / "report.md", "\n".join(text).encode())
    print(out / "report.md")


def _row(name: str, group: list[dict[str, Any]]) -> str:
    scores = [x["score"] for x in group if x["score"] is not None]
    score = (
        f"{statistics.median(scores):.3f} [{min(scores):.3f}, {max(scores):.3f}]"
        if scores
        else "not certified"
    )
    ceiling = f"{group[0]['ceiling']:.3f}" if "ceiling" in group[0] else ""
    kl, seconds = (statistics.median(x[key] for x in group) for key in ("kl", "seconds"))
    return f"| {name} | {score} | {ceiling} | {kl:.2f} | {seconds:.0f} | {len(group)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return command_line("pde.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
