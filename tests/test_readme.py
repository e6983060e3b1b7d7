"""What the README shows is what runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(containing: str) -> str:
    (found,) = [b for b in re.findall(r"```\w+\n(.*?)```", README, re.S) if containing in b]
    return found


def test_ci_runs_the_readmes_test_command():
    assert block("pytest").strip() in (ROOT / ".ci" / "run").read_text()


def test_every_file_it_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_users_own_problem_is_about_30_lines_and_goes_through_all_four_agents(tmp_path):
    code = block("class DoubleWell")
    assert len(code.splitlines()) <= 35
    (tmp_path / "double_well.py").write_text(code)
    command = re.search(r"train\.py (compare --envs double_well:DoubleWell .*)", README)
    assert command is not None
    arguments = re.sub(r"--budget \d+", "--budget 40", command[1]).split()
    small = [
        "--seeds",
        "0",
        "--points",
        "2",
        "--paths",
        "50",
        "--final-paths",
        "100",
        "--reference-paths",
        "2000",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "girsanov.train", *arguments, *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = [
        json.loads(path.read_text()) for path in tmp_path.glob("runs/double_well/**/record.json")
    ]
    assert sorted(r["spec"]["agent"] for r in records) == ["pde", "pi-ft", "ppo", "sac"]
    assert (tmp_path / "runs/double_well/report.md").exists()


def test_the_python_example(tmp_path, monkeypatch):
    code = block('PDE("MlpPolicy", env, seed=0')
    shorter = code.replace("50 * 1000", "1").replace("progress_bar=True", "progress_bar=False")
    assert shorter != code
    monkeypatch.chdir(tmp_path)
    exec(
        compile(
            shorter.replace("seed=0,", "seed=0, n_uncontrolled=4, gradient_steps=2,"),
            "README.md",
            "exec",
        ),
        {},
    )
    assert (tmp_path / "seven.zip").exists()
