"""Four agents on every robotics environment, at equal budgets.

    python benchmarks/robotics.py                  # killed and started again it goes on
    python benchmarks/robotics.py --envs girsanov/Pendulum-v0 girsanov/Reacher-v0 --seeds 1
    python benchmarks/robotics.py report

Each run is one of ``train.py run``: the same curves and judges. All of them
in one file, ``runs.jsonl``, is what is committed; the report is made from it. Seeds come before
environments and the cheap environments before the dear ones, so that every table fills evenly. One
thread; the seconds are wall clock, and so upper bounds on a machine that does other things.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import resumable as bench
import torch

from girsanov.scoreboard.report import report as write_report
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage import archive
from girsanov.scoreboard.storage.records import check_writable

HERE = bench.RESULTS / "robotics"


@dataclass(frozen=True)
class Task:
    """What one environment is given.

    Args:
        queries: episodes for each agent.
        env_kwargs: of the problem and its environment.
        agent_kwargs: of agents, by name. PPO's and SAC's are in ``baselines/hyperparameters.py``.
        reference_paths: behind the bound; few move scores by some percent.
        reference_starts: for the closer bound, where starts are random and paths cheap.
    """

    queries: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    agent_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference_paths: int = 8192
    reference_starts: int = 0

    @property
    def plan(self) -> EvaluationPlan:
        """How runs are watched."""
        return EvaluationPlan(
            5, 100, 1000, self.reference_paths, reference_starts=self.reference_starts
        )

    def spec(self, env: str, agent: str, seed: int) -> RunSpec:
        """One run on the CPU."""
        given = self.agent_kwargs.get(agent, {})
        budget = Budget(self.queries)
        return RunSpec(env, agent, seed, budget, self.env_kwargs, given, "cpu", self.plan)


#: Where the equations of motion are known; chosen on the arm with seed 0, the same for all.
_IMAGINED = {"imagined": 600, "gradient_steps": 200}
_ANALYTIC = Task(1000, {}, {"pde": _IMAGINED}, 131_072, 1024)
#: In half steps, where no policy that only shifts the noise comes within 7% of the bound in whole
#: ones (docs/pde.md).
_FINE = replace(_ANALYTIC, env_kwargs={"refine": 2})
#: Cheapest first. The action bound of the inverted pendulums is what a linear regulator needs to
#: keep them up (docs/mujoco.md).
TASKS = {
    "girsanov/DoubleIntegratorNavigation-v0": _ANALYTIC,
    "girsanov/UnicycleNavigation-v0": _ANALYTIC,
    "girsanov/Pendulum-v0": _ANALYTIC,
    "girsanov/CartPoleSwingUp-v0": replace(
        _FINE, agent_kwargs={"pde": {**_IMAGINED, "mean_span": 20}}
    ),
    "girsanov/TwoLinkArm-v0": _FINE,
    "girsanov/PlanarQuadrotor-v0": _ANALYTIC,
    "girsanov/Reacher-v0": Task(500),
    "girsanov/InvertedPendulum-v0": Task(500, {"action_bound": 2.0}),
    "girsanov/InvertedDoublePendulum-v0": Task(500, {"action_bound": 5.0}),
    "girsanov/Hopper-v0": Task(500),
    "girsanov/HalfCheetah-v0": Task(500),
}


def run(
    envs: tuple[str, ...] = tuple(TASKS),
    agents: tuple[str, ...] = ("pde", "pi-ft", "ppo", "sac"),
    seeds: int = 5,
    out: Path = HERE,
) -> None:
    """Make every run that is not finished, then write the report.

    Args:
        envs: any of the table's.
        agents: names, as in ``train.py compare``.
        seeds: 0, 1, ... of each agent on each environment.
        out: folder of everything.
    """
    unknown = sorted(set(envs) - set(TASKS))
    if unknown:
        raise ValueError(f"envs must be any of {list(TASKS)}; got {unknown}")
    bench.at_least(1, seeds=seeds)
    check_writable(out)
    torch.set_num_threads(1)
    specs = [TASKS[env].spec(env, a, seed) for seed in range(seeds) for env in envs for a in agents]
    for number, spec in enumerate(specs, 1):
        final = execute(spec, out, bench.command())["final"]
        score = "not certified" if final["score"] is None else f"{final['score']:.3f}"
        words = f"score {score}, J {final['objective']:.2f}, success {final['success']:.1%}"
        name = spec.folder(out).relative_to(out)
        print(f"[{number}/{len(specs)}] {name}: {words}, {final['seconds']:.0f} s", flush=True)
    archive.pack(out)
    report(out)


def report(out: Path = HERE) -> None:
    """Write ``report.md`` and the learning curves of the runs that are finished."""
    print(write_report(out))


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("robotics.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
