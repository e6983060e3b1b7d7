"""What held PPO and SAC back on Digits: the form of the action, or what they saw?

    python benchmarks/attribution.py                 # killed and started again it goes on
    python benchmarks/attribution.py --seeds 1 2 --agents ppo
    python benchmarks/attribution.py report

Four rows: neither (the action is the control, the observation the state), the noise as action
alone, the features as observation alone, and both, which is what ``ppo`` and ``sac`` mean. Each row
has the tuned settings of its form.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resumable as bench

from girsanov.scoreboard.intervals import interval
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec

HERE = bench.RESULTS / "attribution"
#: Row: the agent's suffix, and its observation.
ROWS = {
    "neither": ("-control", "state"),
    "noise": ("", "state"),
    "features": ("-control", "features"),
    "both": ("", "features"),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    row: str
    agent: str
    seed: int
    queries: int = 2000

    @property
    def name(self) -> str:
        """Unlike any other job's."""
        return f"{self.row}-{self.agent}-{self.queries}-seed{self.seed}"

    def spec(self) -> RunSpec:
        """What ``train.py run`` is given."""
        form, observation = ROWS[self.row]
        settings = {"observation": observation}
        plan = EvaluationPlan(5, 128, 1000, 8192)
        return RunSpec(
            "girsanov/Digits-v0",
            self.agent + form,
            self.seed,
            Budget(self.queries),
            {},
            settings,
            "cpu",
            plan,
        )


def make(job: Job) -> bench.Line:
    """One run, in a folder that is not kept: its final figures."""
    with tempfile.TemporaryDirectory() as folder:
        record = execute(job.spec(), Path(folder), bench.command())
    return {"final": record["final"], "reference": record["reference"]}


def run(
    agents: tuple[str, ...] = ("ppo", "sac"),
    rows: tuple[str, ...] = tuple(ROWS),
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104),
    queries: int = 2000,
    workers: int = 2,
    out: Path = HERE,
) -> None:
    """Make what is missing, and the report.

    Args:
        agents: ppo, sac or both.
        rows: any of neither, noise, features and both.
        seeds: of each agent in each row.
        queries: rewards that a run may ask for.
        workers: processes at a time.
        out: folder of everything.
    """
    bench.check("agents", agents, "ppo or sac", lambda name: name in ("ppo", "sac"))
    bench.check("rows", rows, f"any of {list(ROWS)}", lambda name: name in ROWS)
    bench.at_least(1, queries=queries, workers=workers)
    jobs = [Job(row, agent, seed, queries) for seed in seeds for agent in agents for row in rows]
    bench.resume(jobs, out, make, lambda line: f"score {line['final']['score']:.3f}", workers)
    report(out)


def report(out: Path = HERE) -> None:
    """Write ``report.md`` and ``report.json`` of the runs that are finished."""
    lines = list(bench.runs_of(out, some=True).values())
    summary = [
        {
            "row": row,
            "agent": agent,
            "score": _interval(found, "score"),
            "kl": _interval(found, "kl"),
        }
        for row in ROWS
        for agent in ("ppo", "sac")
        if (found := bench.chosen(lines, row=row, agent=agent))
    ]
    agents = [name for name in ("ppo", "sac") if any(line["agent"] == name for line in summary)]
    cells = {(line["row"], line["agent"]): line["score"] for line in summary}
    table = bench.table(
        ["", *(name.upper() for name in agents)],
        [
            [_WORDS[row], *(_cell(cells.get((row, name))) for name in agents)]
            for row in ROWS
            if any((row, name) in cells for name in agents)
        ],
    )
    notes = (
        "Scores on Digits at 2,000 reward queries: interquartile means over seeds, with bootstrap"
        " intervals of 95% in brackets and the number of seeds behind them."
    )
    parts = ["# What held PPO and SAC back", notes, table, bench.made_by(lines)]
    bench.write(out, parts, {"rows": summary})


_WORDS = {
    "neither": "neither: the control as action, the state as observation",
    "noise": "the noise as action",
    "features": "the features as observation",
    "both": "both (`ppo`, `sac`)",
}


def _interval(lines: list[bench.Line], name: str) -> dict[str, Any]:
    return interval([line["final"][name] for line in lines])._asdict()


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    ends = "" if score["low"] is None else f" [{score['low']:.2f}, {score['high']:.2f}]"
    return f"{score['iqm']:.2f}{ends}, {score['n']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("attribution.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
