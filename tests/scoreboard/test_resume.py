"""A killed run of an agent that can go on exactly ends where the uninterrupted one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.agents import PIFT
from girsanov.scoreboard.registry import make_env
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage import records
from girsanov.train import main

PLAN = EvaluationPlan(points=3, paths=4, final_paths=8, reference_paths=16, samples=2)
MIXTURE = RunSpec(
    "girsanov/GaussianMixture-v0",
    "pi-ft",
    seed=1,
    budget=Budget(40),
    device="cpu",
    plan=PLAN,
    env_kwargs={"steps": 10},
    agent_kwargs={"policy": "PathwisePolicy", "policy_kwargs": {"hidden": [8]}},
)


def kill_at(row: int) -> Any:
    """What is called with every row, and dies at one of them as at a signal."""
    seen = []

    def on_row(values: dict[str, Any]) -> None:
        seen.append(values)
        if len(seen) == row:
            raise KeyboardInterrupt

    return on_row


def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def rows(spec: RunSpec, out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (spec.folder(out) / "progress.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("row", [3, 4])  # while learning, and at the final look
def test_a_killed_run_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = execute(MIXTURE, whole)[
        "final"
    ]  # without checkpoints: it takes less than five minutes
    monkeypatch.setattr(records, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        execute(MIXTURE, killed, on_row=kill_at(row))
    folder = MIXTURE.folder(killed)
    (saved,) = (folder / "checkpoint").glob("*.zip")
    steps = int(saved.stem)
    assert 0 < steps <= 400 and not (folder / "record.json").exists()
    learnt: list[int] = []
    iterate = PIFT.iterate
    monkeypatch.setattr(
        PIFT, "iterate", lambda self: (learnt.append(self.num_timesteps), iterate(self))[1]
    )
    again = execute(MIXTURE, killed)["final"]
    assert learnt == list(range(steps, 400, 100))  # nothing was learnt twice
    assert without_clocks([again]) == without_clocks([wanted]) and again["seconds"] > 0
    assert without_clocks(rows(MIXTURE, killed)) == without_clocks(rows(MIXTURE, whole))
    assert not (folder / "checkpoint").exists()
    models = [
        PIFT.load(MIXTURE.folder(out) / "model.zip", make_env(MIXTURE.env, MIXTURE.env_kwargs))
        for out in (whole, killed)
    ]
    for p, q in zip(*(model.policy.parameters() for model in models), strict=True):
        assert torch.equal(p, q)


def test_other_agents_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec(
        MIXTURE.env,
        "pi-ft",
        budget=Budget(40),
        device="cpu",
        plan=PLAN,
        env_kwargs={"steps": 10},
        agent_kwargs={"gradient_steps": 2, "n_trajectories": 10, "policy_kwargs": {"hidden": [8]}},
    )
    monkeypatch.setattr(records, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        execute(spec, tmp_path, on_row=kill_at(3))
    assert not (spec.folder(tmp_path) / "checkpoint").exists()
    assert execute(spec, tmp_path)["final"]["reward_queries"] == 40


def test_the_command_line_on_a_diffusers_pipeline(
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(records, "CHECKPOINT_SECONDS", 0.0)
    arguments = [
        *(
            "run",
            "--agent",
            "pi-ft",
            "--env",
            "girsanov/StableDiffusion-v0",
            "--budget",
            "6",
            "--out",
            str(tmp_path),
        ),
        *(
            "--env-kwargs",
            f"model={sd_folder}",
            "reward=brightness",
            "steps=2",
            "--agent-kwargs",
            "n_trajectories=2",
        ),
        *(
            "--points",
            "2",
            "--paths",
            "2",
            "--final-paths",
            "2",
            "--reference-paths",
            "4",
            "--device",
            "cpu",
        ),
    ]
    improve, rounds = PIFT.iterate, []

    def iterate(self: PIFT) -> None:
        rounds.append(self.policy_name)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        improve(self)

    monkeypatch.setattr(PIFT, "iterate", iterate)
    assert main(arguments) == 130
    assert main(arguments) == 0
    assert rounds == ["LoraPolicy"] * 4  # two, one killed, and the third again
    record = json.loads(
        (tmp_path / "StableDiffusion-v0" / "pi-ft" / "seed0" / "record.json").read_text()
    )
    assert record["final"]["reward_queries"] == 6 and "J " in capsys.readouterr().out
