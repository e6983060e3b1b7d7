"""The how-to on other people's tools, run where they are installed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert list(SECTIONS) == ["sb3-contrib", "RL Zoo", "Weights & Biases", "Minari"]


@pytest.mark.slow
def test_sb3_contrib(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    (tmp_path / "my_tqc.py").write_text(_block("sb3-contrib", "python"), encoding="utf-8")
    command = ["-m", "girsanov.train", "run", "--agent", "my_tqc:make", "--budget", "30"]
    command += ["--env", "girsanov/GaussianMixture-v0", "--env-kwargs", "steps=5", "--out", "out"]
    _run(*command, "--paths", "32", "--reference-paths", "256", "--points", "2", where=tmp_path)
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["final"]["env_steps"] >= 150


@pytest.mark.slow
def test_rl_zoo(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    text = _smaller(_block("RL Zoo", "text"), ("100000", "300"), ("1000", "100"))
    (tmp_path / "zoo.yml").write_text(text, encoding="utf-8")
    (line,) = _block("RL Zoo", "bash").splitlines()
    _run(*shlex.split(line)[1:], "--eval-freq", "-1", where=tmp_path)
    assert list(tmp_path.glob("runs/zoo/tqc/*/girsanov-Pendulum-v0.zip"))


@pytest.mark.slow
def test_weights_and_biases(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    text = _smaller(_block("Weights & Biases", "python"), ("seed=0,", "seed=0, n_uncontrolled=20,"))
    (tmp_path / "runs").mkdir()
    _run("-c", text, where=tmp_path)
    (kept,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")
    assert b"train/learning_rate" in kept.read_bytes()


@pytest.mark.slow
def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("minari", "jax", "pyarrow"):
        pytest.importorskip(needed)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    text = _smaller(_block("Minari", "python"), ("range(100)", "range(5)"))
    said = _run("-c", text + "\nprint(agent.reward_queries)", where=tmp_path)
    assert said.split()[-1] == "5"
