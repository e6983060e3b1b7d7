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


def told(lines: list[bench.Line], out: Path) -> dict[str, Any]:
    """A row a form, a column an agent, and the same figures as JSON."""
    agents = [name for name in AGENTS if reports.chosen(lines, agent=name)]
    summary, rows = [], []
    for row, (*_, words_of_it) in ROWS.items():
        cells = []
        for agent in agents:
            group = [x["final"] for x in reports.chosen(lines, row=row, agent=agent)]
            found = {n: interval([x[n] for x in group]) for n in ("score", "kl") if group}
            cells.append(f"{found['score']:.2f}, {len(group)}" if group else "")
            named = {name: value._asdict() for name, value in found.items()}
            summary += [{"row": row, "agent": agent, **named}] if group else []
        rows += [[words_of_it, *cells]] if any(cells) else []
    table = reports.table(["", *map(str.upper, agents)], rows)
    return {"scores": table, "made": reports.made_by(lines), "report": {"rows": summary}}


words = "score {final[score]:.3f}".format_map
SEEDS = (100, 101, 102, 103, 104)
main = bench.Benchmark(__doc__, "attribution", jobs, execute, words, told, SEEDS)

if __name__ == "__main__":
    sys.exit(main())
