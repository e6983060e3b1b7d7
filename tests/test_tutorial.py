"""The tutorial's files and commands are what runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = (ROOT / "docs" / "tutorials" / "own_robot.md").read_text()


def block(containing: str) -> str:
    (found,) = [b for b in re.findall(r"```\w+\n(.*?)```", TUTORIAL, re.S) if containing in b]
    return found


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_links_lead_somewhere() -> None:
    links = [
        link for link in re.findall(r"\]\(([^)#]+)\)", TUTORIAL) if not link.startswith("http")
    ]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_from_a_model_to_a_comparison_and_a_film(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    for name, mark in (
        ("arm.xml", "<mujoco"),
        ("my_arm.py", "MujocoProblem("),
        ("look.py", "certificate(problem"),
    ):
        (tmp_path / name).write_text(block(mark))
    seen = run(["look.py"], tmp_path)
    found = re.search(r"worth more than (\S+) \((\d+) of 8000", seen)
    assert found is not None and int(found[2]) >= 50, seen  # the task is one that can be certified
    commands = [
        re.sub(r"--budget \d+ --seeds 0 1 2", "--budget 64 --seeds 0", c)
        for c in block("compare").splitlines()
    ]
    small = [
        "--points",
        "1",
        "--paths",
        "16",
        "--final-paths",
        "32",
        "--reference-paths",
        "500",
        "--workers",
        "1",
    ]
    agents = ["--agents", "pde", "ppo"]
    run(["-m", "girsanov.train", *commands[0].split()[1:], *agents, *small], tmp_path)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/my_arm/**/record.json")]
    assert sorted(r["spec"]["agent"] for r in records) == ["pde", "ppo"]
    run(block("scoreboard.animation").split()[1:], tmp_path)
    assert (tmp_path / "runs/my_arm/my_arm.arm/pde/seed0/behaviour.gif").stat().st_size < 300_000


def test_from_equations(tmp_path: Path) -> None:
    (tmp_path / "my_cart.py").write_text(block("ControlAffine("))
    command = re.sub(
        r"--budget \d+ --seeds 0 1 2", "--budget 30 --seeds 0", block("compare").splitlines()[1]
    )
    small = [
        "--points",
        "1",
        "--paths",
        "16",
        "--final-paths",
        "32",
        "--reference-paths",
        "500",
        "--agents",
        "pde",
    ]
    run(["-m", "girsanov.train", *command.split()[1:], *small], tmp_path)
    assert (tmp_path / "runs/my_cart/report.md").is_file()
