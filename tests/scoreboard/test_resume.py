"""A killed run goes on from its last checkpoint and ends where the uninterrupted one does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from girsanov.agents import PDE, PIFT
from girsanov.agents.archive import read
from girsanov.agents.pde import agent as pde
from girsanov.baselines import dyna
from girsanov.scoreboard import callback
from girsanov.scoreboard.registry import AGENTS, make_env
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage import resuming
from girsanov.scoreboard.storage.checkpoints import Saving
from girsanov.train import main

PLAN = EvaluationPlan(points=3, paths=4, final_paths=8, reference_paths=16, samples=2)
#: After every round, and after evaluations alone.
ALWAYS, SELDOM = Saving(minutes=1e-9), Saving(minutes=1e9, keep=1)
NET = {"hidden": [8]}
ROUNDS = {"n_trajectories": 8, "policy_kwargs": NET}
FINE = {**ROUNDS, "gradient_steps": 2, "batch_size": 16}
PDE_ROUNDS = {"n_uncontrolled": 8, "n_trajectories": 8, "gradient_steps": 2}
PPO = {"n_envs": 4, "batch_size": 20, "n_epochs": 2, "net_arch": [8]}
SAC = {"n_envs": 4, "batch_size": 16, "net_arch": [8], "learning_starts": 16}


class Case(NamedTuple):
    """An agent, small enough to be learnt in a moment."""

    agent: str
    agent_kwargs: dict[str, Any]
    env: str = "girsanov/GaussianMixture-v0"
    env_kwargs: dict[str, Any] = {"steps": 5}  # noqa: RUF012
    budget: int = 32

    def spec(self) -> RunSpec:
        return RunSpec(
            self.env, self.agent, 1, Budget(self.budget), self.env_kwargs, self.agent_kwargs,
            "cpu", PLAN,
        )  # fmt: skip


def _pde(policy: str, **kwargs: Any) -> Case:
    return Case("pde", {"policy": policy, **PDE_ROUNDS, **kwargs})


def _form(policy: str, **kwargs: Any) -> Case:
    return Case("pi-ft", {"policy": policy, **FINE, **kwargs})


LINE = ("girsanov/LinearQuadratic-v0", {"steps": 4, "dimension": 2})
CASES = {
    "pde": _pde("MlpPolicy", policy_kwargs=NET),
    "pde, chosen class": _pde("PolynomialPolicy"),
    "pde, kernels": _pde("KernelPolicy", policy_kwargs={"centres": 5}),
    "pde, noise": _pde("NoisePolicy", policy_kwargs=NET),
    "pde, model": _pde("ModelPolicy", policy_kwargs={**NET, "model_hidden": [8], "model_steps": 3}),
    "pde, imagined": _pde("MlpPolicy", policy_kwargs=NET, imagined=8),
    "pde-mou": Case("pde-mou", {"n_trajectories": 8, "policy_kwargs": {"centres": 5}}),
    "pi-ft": _form("MlpPolicy"),
    "pi-ft, values": _form("ValuePolicy"),
    "pi-ft, pathwise": _form("PathwisePolicy"),
    "pi-ft, score": _form("ScorePolicy"),
    "pi-ft, fitted": _form("FittedPolicy"),
    "pi-ft, functional": _form("FunctionalPolicy", policy_kwargs={**NET, "draws": 1})._replace(
        budget=700
    ),
    "pi-ft-algorithm1": Case(
        "pi-ft-algorithm1", {**FINE, "policy_kwargs": {**NET, "draws": 1}}, budget=700
    ),
    "pi-ft, linear": _form("LinearPolicy", policy_kwargs={}),
    "pi-ft, exact": Case("pi-ft", {"policy": "ExactPolicy", "n_trajectories": 8}, *LINE),
    "ppo": Case("ppo", PPO),
    "ppo-control": Case("ppo-control", PPO),
    "ppo, on the device": Case("ppo", {**PPO, "on_device": True}),
    "sac": Case("sac", SAC),
    "sac, on the device": Case("sac", {**SAC, "on_device": True}),
    "sac-control": Case("sac-control", SAC),
    "dyna": Case("dyna", {"n_trajectories": 8, "imagined": 8, "ppo": PPO}),
    "dpok": Case("dpok", {**FINE, "critic_steps": 2, "critic_hidden": [8]}),
    "ddpo": Case("ddpo", FINE),
    "adjoint-matching": Case("adjoint-matching", FINE),
    "grpo": Case("grpo", FINE),
    "draft": Case("draft", ROUNDS),
    "log-variance": Case("log-variance", {**ROUNDS, "group_size": 4}),
}


def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def rows(spec: RunSpec, out: Path) -> list[dict[str, Any]]:
    lines = (spec.folder(out) / "progress.jsonl").read_text().splitlines()
    return without_clocks([json.loads(line) for line in lines])


def points(spec: RunSpec, out: Path) -> dict[str, list[Any]]:
    """TensorBoard's scalars, but for those that clocks decide."""
    events = EventAccumulator(str(spec.folder(out)))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "seconds" not in tag]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in sorted(tags)}


def same(spec: RunSpec, one: Path, other: Path) -> None:
    """All that two runs have left is the same, but for clocks."""
    for read_of in (rows, points):
        assert read_of(spec, one) == read_of(spec, other)
    folders = [spec.folder(out) for out in (one, other)]
    samples = [np.load(folder / "samples.npy") for folder in folders]
    np.testing.assert_array_equal(*samples)
    name = {"ppo": "PPO", "sac": "SAC", "pde": "PDE", "pi-ft": "PIFT", "dyna": "Dyna"}
    name |= {"pde-mou": "MouPDE", "pi-ft-algorithm1": "PIFT"}
    kind = name.get(spec.agent.removesuffix("-control"))
    methods = ("DPOK", "DDPO", "AdjointMatching", "GRPO", "DRaFT", "LogVariance")
    kinds = [kind] if kind else methods
    models = [read(folder / "model.zip", kinds) for folder in folders]
    assert models[0].settings == models[1].settings
    assert models[0].tensors.keys() == models[1].tensors.keys()
    for key, tensor in models[0].tensors.items():
        assert torch.equal(tensor, models[1].tensors[key]), key


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Any:
    """Let the process die at a step of the environment, as at a signal."""
    goes_on, seen = callback.BudgetCallback._on_step, []

    def on_step(self: Any) -> bool:
        seen.append(1)
        if len(seen) == step:
            raise KeyboardInterrupt
        return goes_on(self)

    monkeypatch.setattr(callback.BudgetCallback, "_on_step", on_step)
    return seen


def test_the_table_holds_every_agent() -> None:
    nothing_to_lose = {"best-of-n", "feynman-kac", "posterior-guidance"}  # they learn nothing
    assert {case.agent for case in CASES.values()} == set(AGENTS) - nothing_to_lose
    forms = {case.agent_kwargs["policy"] for case in CASES.values() if case.agent == "pi-ft"}
    lora = {name for name in PIFT.policy_aliases if name.startswith("Lora")}
    assert forms == set(PIFT.policy_aliases) - lora


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::girsanov.agents.pi_ft.regularity.RegularityWarning")
def test_a_killed_run_goes_on_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, whole, killed = CASES[name].spec(), tmp_path / "whole", tmp_path / "killed"
    for module in (dyna, pde):
        monkeypatch.setattr(module, "_REWARD_STEPS", 5)
    with monkeypatch.context() as patch:
        steps = killed_at(patch, 0)
        wanted = execute(spec, whole, saving=SELDOM)["final"]
    last = len(steps)
    moment = random.Random(name).randint(last // 2, last)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, moment)
        execute(spec, killed, saving=ALWAYS)
    kept = sorted(int(file.stem) for file in (spec.folder(killed) / "checkpoint").iterdir())
    assert 1 <= len(kept) <= 2 and kept[-1] > 0
    with monkeypatch.context() as patch:
        steps = killed_at(patch, 0)
        again = execute(spec, killed, saving=SELDOM)["final"]
    assert len(steps) <= last - moment + 1 + 2 * last // 5  # little was learnt twice
    assert without_clocks([again]) == without_clocks([wanted]) and again["seconds"] > 0
    same(spec, whole, killed)
    assert not (spec.folder(killed) / "checkpoint").exists()


def test_what_cannot_be_saved_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "resumable", lambda model: False)
    monkeypatch.setattr(callback, "resumable", lambda model: False)
    spec = CASES["pi-ft"].spec()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, 18)
        execute(spec, tmp_path, saving=ALWAYS)
    assert not (spec.folder(tmp_path) / "checkpoint").exists()
    with monkeypatch.context() as patch:
        steps = killed_at(patch, 0)
        assert execute(spec, tmp_path)["final"]["reward_queries"] == 32
    assert len(steps) == 20  # all four rounds


@pytest.mark.parametrize(("step", "budget"), [(27, 160), (43, 400), (42, 160)])
@pytest.mark.filterwarnings("ignore:.*the learnt control reaches")
def test_a_contest_of_classes_goes_on(
    step: int, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second round of two, in its third, and after a class has won."""
    settings = {**PDE_ROUNDS, "policy": "auto", "policy_kwargs": NET}
    spec = Case("pde", settings, budget=budget).spec()
    with monkeypatch.context() as patch:
        steps = killed_at(patch, 0)
        execute(spec, tmp_path / "whole", saving=SELDOM)
    last = len(steps)
    interrupted(spec, tmp_path / "killed", monkeypatch, step)
    with monkeypatch.context() as patch:
        steps = killed_at(patch, 0)
        execute(spec, tmp_path / "killed", saving=SELDOM)
    assert len(steps) < last  # not from the beginning
    same(spec, tmp_path / "whole", tmp_path / "killed")


def test_only_what_can_be_saved_resumes() -> None:
    env = make_env("girsanov/GaussianMixture-v0", {"steps": 5})
    assert resuming.resumable(PDE("auto", env, device="cpu"))
    assert resuming.resumable(PDE("MlpPolicy", env, device="cpu"))
    assert not resuming.resumable(object())


def interrupted(spec: RunSpec, out: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """A run killed at a step of its environment; its checkpoints."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, step)
        execute(spec, out, saving=ALWAYS)
    return spec.folder(out) / "checkpoint"


def test_the_newest_that_can_be_read_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = CASES["pi-ft"].spec()
    path = interrupted(spec, tmp_path / "killed", monkeypatch, 19)
    kept = sorted(path.iterdir(), key=lambda file: int(file.stem))
    assert [int(file.stem) for file in kept] == [80, 120]
    kept[1].write_bytes(kept[1].read_bytes()[:1000])  # as after a power cut
    execute(spec, tmp_path / "whole")
    execute(spec, tmp_path / "killed", saving=SELDOM)
    assert "120.zip' is corrupt or truncated" in capsys.readouterr().err
    same(spec, tmp_path / "whole", tmp_path / "killed")


def test_bad_checkpoints_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = CASES["ddpo"].spec()
    path = interrupted(spec, tmp_path, monkeypatch, 19)
    files = sorted(path.iterdir(), key=lambda file: int(file.stem))
    for file in files:
        file.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"corrupt or truncated .* delete .*checkpoint to begin"):
        execute(spec, tmp_path)
    other = CASES["grpo"].spec()
    path = interrupted(other, tmp_path, monkeypatch, 19)
    for file in path.iterdir():
        file.rename(files[0].with_name(file.name))  # of another agent
    with pytest.raises(ValueError, match="must be of the same agent .* does not fit .*'DDPO'"):
        execute(spec, tmp_path)


def test_the_command_line_on_a_diffusers_pipeline(
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
            "--checkpoint-minutes",
            "1e-9",
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
