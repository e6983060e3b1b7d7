"""Processes that end as processes do: by SIGKILL, at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_resume import ALWAYS, CASES, PLAN, Case, rows, same

from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.storage.records import RunFolder, read_record

ROOT = Path(__file__).parents[2]


def in_a_fork(case: Case, out: Path) -> int:
    """Start a run in a process of its own that has imported everything already; its id."""
    child = os.fork()
    if child:
        return child
    try:
        execute(case.spec(), out, saving=ALWAYS)
        os._exit(0)
    finally:
        os._exit(1)


def killed_until_it_ends(case: Case, out: Path, moments: random.Random, most: float) -> int:
    """Kill a run after up to ``most`` seconds until it has ended by itself; how often it was."""
    kills = 0
    while True:
        child, end = in_a_fork(case, out), time.monotonic() + moments.uniform(0.02, most)
        while time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG)[0]:
                return kills
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        most *= 1.1  # it ends some day on a busy machine too


@pytest.mark.slow  # every agent, 50 kills and more
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fifty_kills_of_all_agents_change_nothing(tmp_path: Path) -> None:
    moments, kills = random.Random(0), 0
    for name, case in CASES.items():
        whole, killed = tmp_path / name / "whole", tmp_path / name / "killed"
        start = time.monotonic()
        child = in_a_fork(case, whole)
        assert os.waitpid(child, 0)[1] == 0
        kills += killed_until_it_ends(case, killed, moments, time.monotonic() - start)
        assert RunFolder(killed, case.spec()).finished(), name
        same(case.spec(), whole, killed)
    assert kills >= 50


def command(case: Case, out: Path, *rest: str) -> list[str]:
    """A comparison of two seeds on the command line."""
    kwargs = [f"{key}={value}" for key, value in case.env_kwargs.items()]
    plan = {"points": PLAN.points, "paths": PLAN.paths, "final-paths": PLAN.final_paths}
    plan |= {"reference-paths": PLAN.reference_paths, "samples": PLAN.samples}
    numbers = [word for key, value in plan.items() for word in (f"--{key}", str(value))]
    return [
        *(sys.executable, str(ROOT / "train.py"), "compare", "--agents", case.agent, "--envs"),
        *(case.env, "--seeds", "1", "2", "--budget", str(case.budget), "--device", "cpu"),
        *("--out", str(out), "--env-kwargs", *kwargs, "--checkpoint-minutes", "1e-9"),
        *numbers,
        *rest,
    ]


@pytest.mark.slow  # processes that import everything
def test_a_killed_comparison_goes_on(tmp_path: Path) -> None:
    case = Case("dpok", {}, budget=400)
    settings = ("--workers", "1", "--agent-kwargs", "dpok.n_trajectories=10")
    spec = case.spec()
    spec = type(spec)(**{**vars(spec), "agent_kwargs": {"n_trajectories": 10}})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(case, whole, *settings), check=True, capture_output=True)
    kills = 0
    for share in (0.1, 0.5, 0.9):
        child: Any = subprocess.Popen(
            command(case, killed, *settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        checkpoint = spec.folder(killed) / "checkpoint"
        while child.poll() is None and not any(
            int(file.stem) >= share * 2000 for file in checkpoint.glob("*.zip")
        ):
            time.sleep(0.01)
        kills += child.poll() is None
        child.kill()
        child.wait()
        time.sleep(1)  # its worker ends with it
    assert kills == 3 and not RunFolder(killed, spec).finished()
    again = subprocess.run(command(case, killed, *settings), check=True, capture_output=True)
    assert b"2/2" in again.stderr
    for seed in (1, 2):
        one = type(spec)(**{**vars(spec), "seed": seed})
        same(one, whole, killed)
        assert read_record(one.folder(killed) / "record.json")["final"]["reward_queries"] == 400
        assert len(rows(one, killed)) == PLAN.points + 1
