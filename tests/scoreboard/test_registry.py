"""The same command line for problems that can be differentiated and for those that can't."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import slopes_of
from girsanov.scoreboard.registry import find_agent
from girsanov.train import main


def test_what_autograd_can_follow_is_found_by_trying() -> None:
    pytest.importorskip("mujoco")
    assert slopes_of(make_problem("girsanov/Pendulum-v0")) == (True, True)
    assert not slopes_of(make_problem("girsanov/Reacher-v0")).transition


@pytest.mark.parametrize(
    ("env_id", "pde", "pi_ft"), [("Pendulum", "MlpPolicy", "MlpPolicy"), ("Reacher", "ModelPolicy", "ScorePolicy")]
)
def test_the_policy_that_suits_the_problem(env_id: str, pde: str, pi_ft: str) -> None:
    pytest.importorskip("mujoco")
    env = ProblemEnv(make_problem(f"girsanov/{env_id}-v0"))
    for name, wanted in (("pde", pde), ("pi-ft", pi_ft)):
        agent = find_agent(name).make(env, seed=0, device="cpu")
        assert agent.policy_name == type(agent.policy).__name__ == wanted
    assert find_agent("pde").make(env, seed=0, device="cpu", policy="NoisePolicy").policy_name == "NoisePolicy"


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_models_with_a_box_of_actions_of_their_own_can_be_loaded(name: str, tmp_path: Path) -> None:
    """As SAC's on Digits are: its table has ``action_bound`` 0.1."""
    env = ProblemEnv(make_problem("girsanov/GaussianMixture-v0", steps=4))
    agent = find_agent(name)
    assert agent.load is not None
    agent.make(env, seed=0, device="cpu", action_bound=0.1).save(tmp_path / "model")
    again = agent.load(str(tmp_path / "model.zip"), env, "cpu")
    assert again.action_space.high.max() == again.get_env().action_space.high.max() == np.float32(0.1)


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
    record = json.loads((tmp_path / "InvertedPendulum-v0" / agent / "seed0" / "record.json").read_text())
    assert record["final"]["success"] is not None
    assert record["access"] == "black-box reward; interaction" + ("" if agent == "ppo" else " with the noise seen")
