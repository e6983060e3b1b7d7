"""The how-to on other people's tools, run where they are installed."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov import Budget, EvaluationPlan, ProblemVecEnv, RunSpec, make_problem
from girsanov.baselines.sb3 import deterministic_policy
from girsanov.envs import NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS
from girsanov.scoreboard.runner import execute

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "tools.md"
SECTIONS = dict(re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.S | re.M))


def _block(section: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.S | re.M)
    return found


def _smaller(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, f"the page no longer holds {old!r}"
        text = text.replace(old, new)
    return text


def _run(*words: str, where: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_page_has_these_tools() -> None:
    tools = ["sb3-contrib", "RL Zoo", "Weights & Biases", "MLflow", "Minari"]
    assert list(SECTIONS) == tools


def _blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.S | re.M)


@pytest.fixture
def contrib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds the page's file, and from which it is imported."""
    pytest.importorskip("sb3_contrib")
    (tmp_path / "contrib.py").write_text(_block("sb3-contrib", "python"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("contrib", None)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["tqc", "trpo"])
@pytest.mark.parametrize("env_id", sorted(PROBLEMS))
def test_sb3_contrib_runs_on_every_id(env_id: str, agent: str, contrib: Path) -> None:
    """What ``girsanov run`` does, in this process."""
    if env_id in NEED_MUJOCO:
        pytest.importorskip("mujoco")
    settings: dict[str, Any] = {}
    if env_id in NEED_WEIGHTS:
        pytest.importorskip("diffusers")
        settings = {"model": "latent-digits", "reward": "digit-prompt", "prompts": "a green six"}
        settings["steps"] = 3
    horizon = make_problem(env_id, **settings).horizon
    steps = 10 * min(horizon, 15) if agent == "tqc" else 10 * horizon
    budget = Budget(steps, "env_steps")
    plan = EvaluationPlan(1, 8, 8, 64, 4)
    spec = RunSpec(env_id, f"contrib:{agent}", 0, budget, settings, {}, "cpu", plan)
    final = execute(spec, contrib / "out", cache=False)["final"]
    assert final["env_steps"] >= steps
    assert math.isfinite(final["objective"]) and final["kl"] > 0


@pytest.mark.slow
def test_sb3_contrib_by_the_page_s_commands(contrib: Path) -> None:
    several, one = _blocks("sb3-contrib", "bash")
    few = " --paths 16 --final-paths 32 --reference-paths 256 --points 1 --out runs/contrib"
    several = _smaller(
        several,
        ("contrib:trpo", "contrib:trpo contrib:crossq contrib:recurrent_ppo"),
        ("--budget 500 --out runs/contrib", "--budget 20 --seeds 0 --env-kwargs steps=4" + few),
        ("--agents pde", "--agent-kwargs pde.gradient_steps=2 --agents pde"),
    )
    one = _smaller(one, ("--budget 100", "--budget 10" + few), ('green six"', 'green six" steps=2'))
    for line in (several, one):
        _run("-m", "girsanov.train", *shlex.split(line)[1:], where=contrib)
    found = {json.loads(p.read_text())["spec"]["agent"] for p in contrib.rglob("record.json")}
    assert found == {"pde", *(f"contrib:{name}" for name in ("tqc", "trpo", "crossq"))} | {
        "contrib:recurrent_ppo"
    }


def test_a_recurrent_policy_forgets_between_batches_and_follows_whole_paths() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    problem = make_problem("girsanov/GaussianMixture-v0", steps=4)
    lanes = ProblemVecEnv(problem, num_envs=2)
    model = contrib.RecurrentPPO("MlpLstmPolicy", lanes, seed=0, device="cpu")
    policy = deterministic_policy(model, problem)
    x = problem.initial(3, torch.Generator().manual_seed(0))
    first, second = policy(0, x), policy(1, x)
    assert torch.equal(policy(0, x), first) and torch.equal(policy(1, x), second)
    policy(0, x)
    policy(1, -x)
    assert not torch.equal(policy(2, x), policy(2, x))  # it remembers
    with pytest.raises(ValueError, match="k must be one step"):
        policy(torch.zeros(3, dtype=torch.long), x)


@pytest.mark.slow
def test_rl_zoo(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    text = _smaller(_block("RL Zoo", "text"), ("100000", "300"), ("1000", "100"))
    (tmp_path / "zoo.yml").write_text(text, encoding="utf-8")
    lines = _block("RL Zoo", "bash").splitlines()
    for line in lines:
        _run(*shlex.split(line)[1:], "--eval-freq", "-1", where=tmp_path)
    found = {path.stem for path in tmp_path.glob("runs/zoo/*/*/girsanov-*.zip")}
    assert found == {"girsanov-Pendulum-v0", "girsanov-GaussianMixture-v0"}


@pytest.mark.slow
def test_weights_and_biases(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    text = _smaller(_block("Weights & Biases", "python"), ("seed=0,", "seed=0, n_uncontrolled=20,"))
    (tmp_path / "runs").mkdir()
    _run("-c", text, where=tmp_path)
    (kept,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")
    assert b"train/learning_rate" in kept.read_bytes()


@pytest.mark.slow
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    text = _smaller(_block("MLflow", "python"), ("seed=0)", "seed=0, n_uncontrolled=20)"))
    (tmp_path / "runs").mkdir()
    _run("-c", text, where=tmp_path)
    client = mlflow.MlflowClient(str(tmp_path / "runs" / "mlflow"))
    (experiment,) = [e for e in client.search_experiments() if e.name == "girsanov"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["n_uncontrolled"] == "20"
    history = client.get_metric_history(run.info.run_id, "train/learning_rate")
    assert len(history) > 1 and [m.step for m in history] == sorted(m.step for m in history)


@pytest.mark.slow
def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("minari", "jax", "pyarrow"):
        pytest.importorskip(needed)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    text = _smaller(_block("Minari", "python"), ("range(100)", "range(5)"))
    said = _run("-c", text + "\nprint(agent.reward_queries)", where=tmp_path)
    assert said.split()[-1] == "5"
