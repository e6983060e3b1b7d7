"""One run in several processes, as accelerate launches them: the first keeps the records, the
others share the paths.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.agents import PIFT
from girsanov.agents.pi_ft import lora
from girsanov.scoreboard import runner
from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.registry import make_env
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage.checkpoints import Checkpoints, Terminated
from girsanov.scoreboard.storage.records import read_json

PLAN = EvaluationPlan(points=2, paths=2, final_paths=2, reference_paths=4, samples=2)


class Team:
    """What accelerate's state tells of this process, alone in the test."""

    def wait_for_everyone(self) -> None:
        pass


def test_whose_gradients_cannot_be_shared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "processes", lambda device: Team())
    spec = RunSpec(
        "girsanov/GaussianMixture-v0", "pi-ft", budget=Budget(10), device="cpu", plan=PLAN
    )
    for begin in (runner.execute, runner.assist):
        with pytest.raises(
            ValueError,
            match="agent must learn by a LoRA policy of PI-FT to share in several processes",
        ):
            begin(spec, tmp_path)
    assert not spec.folder(tmp_path).exists()


def test_seconds_differ_between_processes(
    tmp_path: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "processes", lambda device: Team())
    kwargs = {"model": str(sd_folder), "reward": "brightness", "steps": 2}
    spec = RunSpec(
        "girsanov/StableDiffusion-v0",
        "pi-ft",
        0,
        Budget(1, "seconds"),
        kwargs,
        device="cpu",
        plan=PLAN,
    )
    with pytest.raises(
        ValueError,
        match="budget_unit must be env_steps or reward_queries with several processes; got seconds",
    ):
        runner.execute(spec, tmp_path)


def test_a_comparison_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match="compare must be one process, which starts its own; got 2"
    ):
        compare(
            Comparison(("pi-ft",), ("girsanov/GaussianMixture-v0",), (0,), Budget(10), tmp_path)
        )


def test_who_assists(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size, rank in (("1", "1"), ("2", "0"), ("2", "1")):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", rank)
        found.append(runner.assists())
    assert found == [False, False, True]


@pytest.mark.slow  # three launches of two processes that import everything
def test_a_launched_run_killed_and_resumed_equals_one_that_was_not(
    sd_folder: Path, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    start = (
        "import sys\n"
        "from girsanov.agents import PIFT; from girsanov.train import main\n"
        "improve, rounds = PIFT.iterate, []\n"
        "def iterate(self):\n"
        "    rounds.append(1)\n"
        "    if len(rounds) > int(sys.argv[1]): raise KeyboardInterrupt\n"
        "    improve(self)\n"
        "PIFT.iterate = iterate\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    (tmp_path / "start.py").write_text(start)

    def launch(out: str, stop_after: int) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        arguments = [
            *(
                "run",
                "--agent",
                "pi-ft",
                "--env",
                "girsanov/StableDiffusion-v0",
                "--budget",
                "12",
                "--device",
                "cpu",
            ),
            *(
                "--out",
                str(tmp_path / out),
                "--env-kwargs",
                f"model={sd_folder}",
                "reward=brightness",
                "steps=2",
            ),
            *(
                "--agent-kwargs",
                "n_trajectories=4",
                "--points",
                "2",
                "--paths",
                "2",
                "--final-paths",
                "2",
            ),
            *("--reference-paths", "4", "--checkpoint-minutes", "1e-9"),
        ]
        team = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        workers = [
            subprocess.Popen(
                [sys.executable, str(tmp_path / "start.py"), str(stop_after), *arguments],
                env={**os.environ, **team, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=root,
            )
            for rank in range(2)
        ]  # fmt: skip
        return [worker.wait(timeout=500) for worker in workers]

    assert launch("whole", 99) == [0, 0]
    assert launch("killed", 2) == [130, 130]
    assert launch("killed", 99) == [0, 0]
    folders = [
        tmp_path / out / "StableDiffusion-v0" / "pi-ft" / "seed0" for out in ("whole", "killed")
    ]
    whole, killed = (read_json(folder / "record.json") for folder in folders)
    assert whole["final"]["reward_queries"] == killed["final"]["reward_queries"] == 12
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
        assert [row["reward_queries"] for row in rows] == [0, 8, 12]
    env = make_env(
        "girsanov/StableDiffusion-v0",
        {"model": str(sd_folder), "reward": "brightness", "steps": 2},
        "cpu",
    )
    models = [PIFT.load(folder / "model.zip", env, "cpu").policy for folder in folders]
    for p, q in zip(*(list(model.parameters()) for model in models), strict=True):
        assert torch.equal(p, q)


class Resumable:
    """What ``terminable`` sees of a model that can be saved."""

    def training_state(self) -> dict[str, Any]:
        return {}

    def set_training_state(self, state: dict[str, Any]) -> None:
        pass


STATE: dict[str, Any] = {"model": {}, "random": {}, "instrument": {}}


def test_sigterm_ends_a_run_at_its_next_checkpoint(tmp_path: Path) -> None:
    checkpoints, before = Checkpoints(tmp_path), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), runner.terminable(checkpoints, Resumable()):
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoints.stopping  # the next round begins with a checkpoint
        checkpoints.save(7, STATE)
        raise AssertionError("it went on")
    state = Checkpoints(tmp_path).latest()
    assert state is not None and state["number"] == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_does_not_wait_for_ever(tmp_path: Path) -> None:
    for model, grace, low, high in ((Resumable(), 0.2, 0.2, 5.0), (object(), 60.0, 0.0, 5.0)):
        start = time.monotonic()
        with pytest.raises(Terminated), runner.terminable(Checkpoints(tmp_path), model, grace):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        assert low <= time.monotonic() - start < high


def test_sigterm_in_a_run_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    spec = RunSpec(
        "girsanov/GaussianMixture-v0",
        "pi-ft",
        budget=Budget(40),
        device="cpu",
        plan=PLAN,
        env_kwargs={"steps": 10},
        agent_kwargs={"policy": "PathwisePolicy", "policy_kwargs": {"hidden": [8]}},
    )
    rows: list[dict[str, Any]] = []

    def on_row(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        runner.execute(spec, tmp_path, on_row=on_row)
    folder = spec.folder(tmp_path)
    assert list((folder / "checkpoint").iterdir()) and len(rows) == 2
    assert not (folder / "record.json").exists()
    again = runner.execute(spec, tmp_path)["final"]
    wanted = runner.execute(spec, tmp_path / "whole")["final"]
    clocks = {"seconds": 0, "cpu_seconds": 0}
    assert {**again, **clocks} == {**wanted, **clocks}
