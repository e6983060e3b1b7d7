"""The files that CI reads: what they call is there, and what they promise is what is declared."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [ROOT / ".ci" / name for name in ("lowest", "nightly", "run", "typecheck")]


def read(path: Path) -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def commands(workflow: dict[Any, Any]) -> list[str]:
    return [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]


def test_there_are_workflows_to_read() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_jobs_are_whole(path: Path) -> None:
    workflow = read(path)
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    known = {"if", "runs-on", "timeout-minutes", "strategy", "steps", "needs", "environment"}
    for name, job in workflow["jobs"].items():
        assert set(job) <= {*known, "permissions"} and job["runs-on"] == "ubuntu-latest", name
        assert {job.get("needs", name)} <= set(workflow["jobs"]), name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            assert set(step) <= {"name", "run", "uses", "with"}, step
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_expressions_name_what_there_is(path: Path) -> None:
    workflow, text = read(path), path.read_text(encoding="utf-8")
    axes = [job.get("strategy", {}).get("matrix", {}) for job in workflow["jobs"].values()]
    known = {f"matrix.{axis}" for matrix in axes for axis in matrix}
    assert set(re.findall(r"\$\{\{ (.*?) \}\}", text)) <= known
    events = set(workflow[True])
    for job in workflow["jobs"].values():
        compared = re.fullmatch(r"github\.event_name [!=]= '(\w+)'", job.get("if", "")) or None
        assert "if" not in job or (compared is not None and compared[1] in events)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_what_is_called_is_there(path: Path) -> None:
    called = commands(read(path))
    files = {file for line in called for file in re.findall(r"(?<![\w/])\.ci/[\w.]+", line)}
    files |= set(re.findall(r"-c (\S+\.txt)", "\n".join(called)))
    assert files and all((ROOT / file).is_file() for file in files), files
    for line in called:
        assert subprocess.run(["bash", "-n"], input=line, text=True).returncode == 0, line


def test_ci_runs_every_script_on_every_python_that_is_promised() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: Python :: 3." in c]
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == promised
    following = int(promised[-1].removeprefix("3.")) + 1
    assert project["requires-python"] == f">={promised[0]},<3.{following}"
    run = {line.split()[-1] for line in commands(workflow)}
    assert {".ci/run", ".ci/lowest", ".ci/nightly"} <= run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_name_files_that_are_there(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    for file in re.findall(r"(?<![\w/.])(?:tests|docs|\.ci)/[\w./]+", text):
        assert (ROOT / file).exists() or file.startswith("docs/_build"), file


def test_extras_that_the_lowest_versions_are_tried_with_are_declared() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r"\$\{root\}\[([\w,]+)\]", (ROOT / ".ci" / "lowest").read_text("utf-8"))
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
