"""What held PPO and SAC back on Digits: the form of the action, or what they saw?

    python benchmarks/attribution.py                 # killed and started again it goes on
    python benchmarks/attribution.py --only ppo --seeds 1 2
    python benchmarks/attribution.py report

Four rows: neither (the action is the control, the observation the state), the noise as action
alone, the features as observation alone, and both, which is what ``ppo`` and ``sac`` mean. Each row
has the tuned settings of its form. A run is one of ``train.py run``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import reports
import resumable as bench

from girsanov.scoreboard.intervals import interval
from girsanov.scoreboard.runner import execute as execute_run
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec

HERE = bench.RESULTS / "attribution"
AGENTS = ("ppo", "sac")
#: Row: the agent's suffix, its observation, and words for it.
ROWS = {
    "neither": ("-control", "state", "neither: the control as action, the state as observation"),
    "noise": ("", "state", "the noise as action"),
    "features": ("-control", "features", "the features as observation"),
    "both": ("", "features", "both (`ppo`, `sac`)"),
}


@dataclass(frozen=True)
class Job(bench.Job):
    """One run."""

    form: ClassVar[str] = "{row}-{agent}-{queries}-seed{seed}"
    row: str
    agent: str
    seed: int
    queries: int = 2000


def jobs(seeds: Sequence[int], quick: bool, done: Any) -> list[Job]:
    """Every row, seed by seed."""
    queries = 40 if quick else 2000
    return [Job(row, agent, seed, queries) for seed in seeds for agent in AGENTS for row in ROWS]


def execute(job: Job, at: bench.Place) -> bench.Line:
    """One run, in a folder that is not kept: its final figures."""
    form, observation, _ = ROWS[job.row]
    plan = EvaluationPlan(1, 16, 32, 1024) if at.quick else EvaluationPlan(5, 128, 1000, 8192)
    given: Any = {"agent_kwargs": {"observation": observation}, "device": "cpu", "plan": plan}
    spec = RunSpec("girsanov/Digits-v0", job.agent + form, job.seed, Budget(job.queries), **given)
    with tempfile.TemporaryDirectory() as folder:
        record = execute_run(spec, Path(folder), bench.command())
    return {"final": record["final"], "reference": record["reference"]}


def report(out: Path = HERE) -> None:
    """Write ``report.md`` and ``report.json`` of the runs that are finished."""
    lines = bench.lines_of(out)
    agents = [name for name in AGENTS if reports.chosen(lines, agent=name)]
    found = {
        (row, agent): group
        for row in ROWS
        for agent in agents
        if (group := reports.chosen(lines, row=row, agent=agent))
    }
    summary = [
        {"row": row, "agent": agent}
        | {name: interval([x["final"][name] for x in group])._asdict() for name in ("score", "kl")}
        for (row, agent), group in found.items()
    ]
    cells = {(line["row"], line["agent"]): _cell(line["score"]) for line in summary}
    rows = [
        [told[-1], *(cells.get((row, agent), "") for agent in agents)]
        for row, told in ROWS.items()
        if any((row, agent) in cells for agent in agents)
    ]
    text = [
        "# What held PPO and SAC back",
        "Scores on Digits at 2,000 reward queries: interquartile means over seeds, with bootstrap"
        " intervals of 95% in brackets and the number of seeds behind them.",
        reports.table(["", *map(str.upper, agents)], rows),
        reports.made_by(lines),
    ]
    reports.write(out, "\n\n".join(text) + "\n", {"rows": summary})


def _cell(score: dict[str, Any]) -> str:
    ends = "" if score["low"] is None else f" [{score['low']:.2f}, {score['high']:.2f}]"
    return f"{score['iqm']:.2f}{ends}, {score['n']}"


words = "score {final[score]:.3f}".format_map
SEEDS = (100, 101, 102, 103, 104)
main = bench.Benchmark(__doc__, HERE, jobs, execute, words, report, SEEDS).main

if __name__ == "__main__":
    sys.exit(main())
