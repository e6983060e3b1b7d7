"""The same command line for problems that can be differentiated and for those that can't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from girsanov.baselines.sb3_checkpoint import save_model
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import slopes_of
from girsanov.scoreboard.registry import find_agent, resolve_device
from girsanov.train import main


@pytest.mark.parametrize(
    ("device", "found", "message"),
    [
        ("gpu", 1, "device must be auto, cpu, cuda or cuda:N; got 'gpu'"),
        ("cuda:x", 1, "device must be auto, cpu, cuda or cuda:N; got 'cuda:x'"),
        (1, 1, "device must be auto, cpu, cuda or cuda:N; got 1"),
        ("cuda", 0, "device 'cuda' was asked for, but torch finds no CUDA device; use auto or cpu"),
        (
            "cuda:0",
            0,
            "device 'cuda:0' was asked for, but torch finds no CUDA device; use auto or cpu",
        ),
        ("cuda:2", 2, "device 'cuda:2' was asked for, but torch finds 2 of them; use auto or cpu"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    device: Any, found: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: found > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    with pytest.raises(ValueError, match=message):
        resolve_device(device)


def test_devices_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [resolve_device(d) for d in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda",
        "cpu",
        "cuda",
        "cuda:1",
    ]


def test_what_autograd_can_follow_is_found_by_trying() -> None:
    pytest.importorskip("mujoco")
    assert slopes_of(make_problem("girsanov/Pendulum-v0")) == (True, True)
    assert not slopes_of(make_problem("girsanov/Reacher-v0")).transition


@pytest.mark.parametrize(
    ("env_id", "pde", "pi_ft"),
    [("Pendulum", "MlpPolicy", "MlpPolicy"), ("Reacher", "ModelPolicy", "ScorePolicy")],
)
def test_the_policy_that_suits_the_problem(env_id: str, pde: str, pi_ft: str) -> None:
    pytest.importorskip("mujoco")
    env = ProblemEnv(make_problem(f"girsanov/{env_id}-v0"))
    for name, wanted in (("pde", pde), ("pi-ft", pi_ft)):
        agent = find_agent(name).make(env, seed=0, device="cpu")
        assert agent.policy_name == type(agent.policy).__name__ == wanted
    assert (
        find_agent("pde").make(env, seed=0, device="cpu", policy="NoisePolicy").policy_name
        == "NoisePolicy"
    )


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_models_with_a_box_of_actions_of_their_own_can_be_loaded(name: str, tmp_path: Path) -> None:
    """As SAC's on Digits are: its table has ``action_bound`` 0.1."""
    env = ProblemEnv(make_problem("girsanov/GaussianMixture-v0", steps=4))
    agent = find_agent(name)
    assert agent.load is not None
    save_model(agent.make(env, seed=0, device="cpu", action_bound=0.1), tmp_path / "model")
    again = agent.load(str(tmp_path / "model.zip"), env, "cpu")
    assert (
        again.action_space.high.max() == again.get_env().action_space.high.max() == np.float32(0.1)
    )


class Evil:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_stable_baselines3_s_own_file_needs_trust(name: str, tmp_path: Path) -> None:
    env = ProblemEnv(make_problem("girsanov/GaussianMixture-v0", steps=4))
    agent = find_agent(name)
    assert agent.load is not None and agent.load_pickled is not None
    model = agent.make(env, seed=0, device="cpu")
    model.evil = Evil(tmp_path / "ran")
    model.save(tmp_path / "theirs.zip")
    with pytest.raises(ValueError, match="run code when they are read: give --trust-pickle if you"):
        agent.load(str(tmp_path / "theirs.zip"), env, "cpu")
    assert not (tmp_path / "ran").exists()
    again = agent.load_pickled(str(tmp_path / "theirs.zip"), env, "cpu")
    assert (tmp_path / "ran").exists()  # it does run, for those who trust it
    save_model(again, tmp_path / "ours.zip")
    for load in (agent.load, agent.load_pickled):
        third = load(str(tmp_path / "ours.zip"), env, "cpu")
        for p, q in zip(third.policy.parameters(), model.policy.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("agent", ["pde", "pi-ft", "ppo"])
def test_mujoco_by_the_same_command_line(agent: str, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    words = [
        "run",
        "--agent",
        agent,
        "--env",
        "girsanov/InvertedPendulum-v0",
        "--budget",
        "60",
        "--points",
        "1",
        "--paths",
        "8",
    ]
    words += [
        "--final-paths",
        "16",
        "--reference-paths",
        "64",
        "--out",
        str(tmp_path),
        "--env-kwargs",
        "steps=10",
        "action_bound=2",
    ]
    assert main([*words, "--device", "cpu"]) == 0
    record = json.loads(
        (tmp_path / "InvertedPendulum-v0" / agent / "seed0" / "record.json").read_text()
    )
    assert record["final"]["success"] is not None
    estimate = "; pre-trained estimate as input" if agent == "ppo" else ""
    assert record["access"] == "black-box reward; interaction with the noise seen" + estimate
    assert record["access_class"] == "noise seen"


@pytest.mark.parametrize("name", ["pde", "pi-ft"])
def test_the_class_of_every_form_follows_its_access(name: str) -> None:
    from girsanov import PDE, PIFT
    from girsanov.scoreboard.learners import ACCESS_CLASSES

    agent, forms = find_agent(name), {"pde": PDE, "pi-ft": PIFT}[name].policy_aliases
    words = {
        "interaction with the noise seen": "noise seen",
        "pre-trained transition, differentiable in its noise": "transition differentiable",
        "reward's gradient; pre-trained transition, differentiable": "reward gradient",
    }
    found = {}
    for form in forms.values():
        access = getattr(form, "access", agent.access).removeprefix("black-box reward; ")
        found[form.__name__] = getattr(form, "access_class", agent.access_class)
        assert found[form.__name__] == words[access] and words[access] in ACCESS_CLASSES
    less = {"ModelPolicy", "NoisePolicy", "ScorePolicy", "LoraScorePolicy"}
    assert {form for form in found if found[form] == "noise seen"} == less & set(found)
