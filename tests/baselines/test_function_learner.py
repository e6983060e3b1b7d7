"""Anybody's learner: a function from an environment to a policy, measured as the others are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from girsanov.baselines.function_learner import CountedEnv, FunctionPolicy, call
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv, observe
from girsanov.train import main

MIXTURE = "girsanov/GaussianMixture-v0"
LEARNERS = """
import time

import numpy as np


def controller(env):
    '''A fixed controller: no step is taken.'''
    return lambda observations: np.full((len(observations), 2), 0.3)


def script(env, seed, total_timesteps, spread=1.0):
    '''CleanRL's form: a loop over steps that keeps the best of random constant actions.'''
    rng, best, size = np.random.default_rng(seed), (-np.inf, None), env.action_space.shape
    action, earned = rng.normal(0, spread, size), 0.0
    env.reset(seed=seed)
    for _ in range(total_timesteps):
        _, reward, terminated, truncated, _ = env.step(action)
        earned += reward
        if terminated or truncated:
            best = max(best, (earned, tuple(action)))
            action, earned = rng.normal(0, spread, size), 0.0
            env.reset()
    return lambda observations: np.tile(best[1], (len(observations), 1))


def required(env, seed, total_timesteps):
    '''The documented form: no default.'''
    return script(env, seed, total_timesteps)


def sleeper(env):
    '''Waits, and does not work.'''
    time.sleep(0.5)
    return controller(env)


def greedy(env):
    '''Takes more than its budget.'''
    env.reset()
    while True:
        if env.step(np.zeros(2))[2]:
            env.reset()


def nothing(env):
    return 3
"""


@pytest.fixture
def env() -> ProblemEnv:
    return ProblemEnv(make_problem(MIXTURE, steps=5))


@pytest.fixture
def learners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "learners.py").write_text(LEARNERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "learners", raising=False)
    return tmp_path


RUN = ["--env", MIXTURE, "--env-kwargs", "steps=5", "--budget", "8", "--points", "2"]
RUN += ["--paths", "20", "--final-paths", "40", "--reference-paths", "256", "--device", "cpu"]


def record(out: Path, name: str) -> dict:  # type: ignore[type-arg]
    return json.loads((out / "GaussianMixture-v0" / name / "seed0" / "record.json").read_text())


def test_a_fixed_controller_and_a_script_are_run(learners: Path) -> None:
    out = learners / "out"
    assert main(["run", "--agent", "learners:controller", *RUN, "--out", str(out)]) == 0
    final = record(out, "learners.controller")["final"]
    assert final["env_steps"] == final["reward_queries"] == 0
    assert final["kl"] == pytest.approx(5 * 2 * 0.3**2 / 2)  # five steps of (0.3, 0.3), exactly

    assert main(["run", "--agent", "learners:script", *RUN, "--out", str(out)]) == 0
    final = record(out, "learners.script")["final"]
    assert final["env_steps"] == 40 and final["reward_queries"] == 8 and final["seconds"] > 0
    rows = out / "GaussianMixture-v0" / "learners.script" / "seed0" / "progress.jsonl"
    first, last = (json.loads(line) for line in rows.read_text().splitlines())
    assert first["kl"] == first["env_steps"] == 0 and last == final


def test_the_documented_form_without_defaults_passes_the_check_before_the_run(
    learners: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--agents", "learners:required", "--envs", MIXTURE, "--seeds", "0", "--dry-run"]
    assert main(["compare", *names, *RUN[2:]]) == 0
    assert "1 of 1 runs to do" in capsys.readouterr().out
    assert main(["run", "--agent", "learners:required", *RUN, "--out", "out"]) == 0
    assert record(learners / "out", "learners.required")["final"]["env_steps"] == 40


def test_nothing_is_spent_at_the_first_evaluation(learners: Path) -> None:
    small = [word for word in RUN if word not in (MIXTURE, "--env", "--env-kwargs", "steps=5")]
    names = ["--agent", "learners:script", "--env", "girsanov/Pendulum-v0"]
    assert main(["run", *names, *small, "--out", "out"]) == 0
    rows = (learners / "out/Pendulum-v0/learners.script/seed0/progress.jsonl").read_text()
    first, last = (json.loads(line) for line in rows.splitlines())
    for cost in ("env_steps", "reward_queries", "model_evaluations"):
        assert first[cost] == 0 < last[cost]
    assert last["model_evaluations"] >= last["env_steps"]


def test_cpu_seconds_are_those_of_the_process(learners: Path) -> None:
    assert main(["run", "--agent", "learners:sleeper", *RUN, "--out", "out"]) == 0
    final = record(learners / "out", "learners.sleeper")["final"]
    assert final["seconds"] >= 0.5 and final["cpu_seconds"] < 0.25


@pytest.mark.parametrize(
    ("agent", "kwargs", "message"),
    [
        ("greedy", [], "the learner must stop by itself at total_timesteps=40"),
        ("nothing", [], "must return a stable-baselines3 algorithm or a policy; got 3"),
        ("script", ["spraed=1"], "unexpected keyword argument 'spraed'"),
    ],
)
def test_what_goes_wrong_is_one_line(
    agent: str, kwargs: list[str], message: str, learners: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--agent-kwargs", *kwargs] if kwargs else []
    arguments = ["run", "--agent", f"learners:{agent}", *RUN, *more, "--out", "out"]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err and not (learners / "out").exists()


def test_every_form_of_a_policy_gives_the_same_control(env: ProblemEnv) -> None:
    linear = nn.Linear(3, 2)

    class Predicts:
        def predict(self, observations: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
            assert deterministic
            return linear(torch.from_numpy(observations)).detach().numpy(), None

    forms = [
        linear,
        Predicts(),
        lambda seen: linear(torch.from_numpy(seen)).detach().numpy(),
    ]
    x = torch.randn(7, 2)
    expected = linear(observe(env.problem, 2, x)).clamp(-1, 1).detach()
    for form in forms:
        torch.testing.assert_close(FunctionPolicy(env, form).control(2, x), expected)
    assert not list(FunctionPolicy(env, linear).parameters())  # its own stay its own


def test_a_policy_for_single_observations_is_refused(env: ProblemEnv) -> None:
    policy = FunctionPolicy(env, lambda observation: np.zeros(2))
    with pytest.raises(ValueError, match=r"one action for each observation.*\(7, 2\); got \(2,\)"):
        policy.control(0, torch.zeros(7, 2))


def test_an_sb3_algorithm_keeps_its_own_budget(env: ProblemEnv) -> None:
    from stable_baselines3 import PPO

    counted = CountedEnv(env, 10)

    def make(env: ProblemEnv, seed: int) -> PPO:
        return PPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=seed, device="cpu")

    model = call(make, counted, {}, seed=0, total_timesteps=10)
    assert isinstance(model, PPO) and counted.limit is None
    model.learn(16)
    assert counted.steps == 16 and counted.episodes == 3
