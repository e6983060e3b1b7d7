"""Every command and code block of README and docs runs, or says in a comment why it does not."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|file): (?P<note>[^\n]*?) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.S | re.M,
)
#: Directives and drawings: nothing in them could run.
_NO_CODE = ("text", "{toctree}", "{include}", "{note}", "{eval-rst}")
_FEW = (
    " --seeds 0 --points 1 --paths 16 --final-paths 32 --reference-paths 500 --workers 1"
    " --out runs/"
)
_QUICK_PDE = " --agent-kwargs pde.gradient_steps=5" + _FEW
#: What makes a page's blocks small enough for a test. Whatever is not found any more is an error.
SMALLER: dict[str, list[tuple[str, str]]] = {
    "README.md": [
        ("1000 * 50, progress_bar=True", "1"),
        ("env, seed=0,", "env, seed=0, n_uncontrolled=4, gradient_steps=2,"),
        ("--budget 1000 --out runs/", "--budget 40" + _QUICK_PDE),
    ],
    "docs/tutorials/own_problem.md": [
        ("--budget 1000 --seeds 0 1 2 --out runs/", "--budget 40 --agents pde ppo" + _QUICK_PDE),
        ("seed=0).learn(200 * 50)", "seed=0, n_uncontrolled=4, gradient_steps=2).learn(1)"),
    ],
    "docs/tutorials/own_robot.md": [
        (
            "my_arm:arm --budget 500 --seeds 0 1 2 --out runs/",
            "my_arm:arm --budget 64 --agents pde ppo" + _QUICK_PDE,
        ),
        (
            "my_cart:cart --budget 500 --seeds 0 1 2 --out runs/",
            "my_cart:cart --budget 30 --agents pde" + _QUICK_PDE,
        ),
    ],
    "docs/tutorials/own_diffusion_model.md": [
        ("seed=0).learn(30 * 10 * 10)", "seed=0, n_trajectories=2).learn(1)"),
        (
            "--budget 100 --seeds 0 --reference-paths 1000 --samples 32 --out runs/",
            "--budget 2 --samples 16" + _FEW,
        ),
    ],
    "docs/how_to/other_libraries.md": [
        ("learn(10_000)", "learn(1_700)"),
        ("learn(50_000)", "learn(120)"),
        ("learn(5_000)", "learn(100)"),
        ("seed=0)\nmodel.learn(100 * 50)", "seed=0)\nmodel.learn(50)"),
    ],
    "docs/how_to/own_agent.md": [("--budget 500 --out runs/", "--budget 20" + _QUICK_PDE)],
    "docs/how_to/long_runs.md": [
        ("--budget 500 --workers 2 --out runs/", "--budget 20 --agents pde ppo" + _QUICK_PDE)
    ],
    "docs/explanation/pi_ft.md": [("learn(20 * 10 * 50)", "learn(50)")],
}
#: They start a process for each run of a comparison.
SLOW = {
    "docs/tutorials/own_problem.md",
    "docs/tutorials/own_robot.md",
    "docs/tutorials/own_diffusion_model.md",
    "docs/how_to/own_agent.md",
    "docs/how_to/long_runs.md",
}


class Block(NamedTuple):
    """A fenced block, and what the comment before it says."""

    language: str
    code: str
    mark: str
    note: str

    @property
    def notebook(self) -> bool:
        """A cell of a page that the site's build runs."""
        return self.language.startswith("{code-cell}")


def blocks(text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        if not match["language"].startswith(_NO_CODE):
            yield Block(match["language"], match["code"], match["mark"] or "", match["note"] or "")


def pages() -> dict[str, str]:
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}
    return {name: text for name, text in texts.items() if "_build" not in name}


PAGES = pages()
RUN = {
    name
    for name, text in PAGES.items()
    if any(b.mark != "not run" and not b.notebook for b in blocks(text))
}


def reports_of(folder: Path, where: str) -> list[str]:
    records = (json.loads(path.read_text()) for path in folder.glob(f"{where}/**/record.json"))
    return sorted(record["spec"]["agent"] for record in records)


def after_readme(folder: Path, said: str) -> None:
    assert (folder / "seven.zip").exists()
    assert reports_of(folder, "runs/double_well") == ["pde", "pi-ft", "ppo", "sac"]
    assert (folder / "runs/double_well/report.md").exists()


def after_own_robot(folder: Path, said: str) -> None:
    found = re.search(r"worth more than (\S+) \((\d+) of 8000", said)
    assert found is not None and int(found[2]) >= 50, said  # the task is one that can be certified
    solved = re.search(r"success at the bound: (\d+)%", said)
    assert solved is not None and int(solved[1]) >= 60, said  # and a score near 1 shows
    assert reports_of(folder, "runs/my_arm") == ["pde", "ppo"]
    film = folder / "runs/my_arm/my_arm.arm/pde/seed0/behaviour.gif"
    assert 0 < film.stat().st_size < 300_000
    assert (folder / "runs/my_cart/report.md").is_file()


def after_own_problem(folder: Path, said: str) -> None:
    solved = re.search(r"success at the bound: (\d+)%", said)
    assert solved is not None and int(solved[1]) >= 60, said
    text = (folder / "runs/double_well/report.md").read_text()
    assert "- Success at the bound: " in text and "| at the bound | " in text


def after_own_agent(folder: Path, said: str) -> None:
    assert reports_of(folder, "runs/mine") == ["my_agent:make", "pde", "random_search:train"]


#: What must be there when a page has run.
AFTER: dict[str, Callable[[Path, str], None]] = {
    "README.md": after_readme,
    "docs/tutorials/own_problem.md": after_own_problem,
    "docs/tutorials/own_robot.md": after_own_robot,
    "docs/how_to/own_agent.md": after_own_agent,
}


def shell(line: str, folder: Path) -> str:
    """Run one line as a reader would, who has the package installed."""
    for start, instead in {
        "girsanov ": "-m girsanov.train ",
        "python train.py ": "-m girsanov.train ",
        ".venv/bin/python train.py ": "-m girsanov.train ",
        "python ": "",
    }.items():
        if line.startswith(start):
            command = [sys.executable, *shlex.split(instead + line.removeprefix(start))]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
            assert done.returncode == 0, done.stderr[-2000:]
            return done.stdout
    raise AssertionError(f"the test can't run {line!r}: teach it, or mark the block as not run")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_not(page: str) -> None:
    for block in blocks(PAGES[page]):
        assert block.language in ("python", "bash", "xml") or block.notebook, block
        if block.mark == "not run":
            assert len(block.note) > 8, block
        elif block.language == "xml":
            assert block.mark == "file", block
    if any(block.notebook for block in blocks(PAGES[page])):
        assert PAGES[page].startswith("---\njupytext:"), "only such a page is run by the site"
    fences = len(re.findall(r"^```[^`\n]+$", PAGES[page], re.M))
    assert fences == len(_BLOCK.findall(PAGES[page]))  # none escapes the pattern


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in sorted(RUN)]
)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.endswith(("own_robot.md", "mujoco.md")):
        pytest.importorskip("mujoco")
    if page.endswith("own_diffusion_model.md"):
        pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text, said = PAGES[page], ""
    for old, new in SMALLER.get(page, []):
        assert old in text, f"{page} no longer holds {old!r}"
        text = text.replace(old, new)
    space: dict[str, object] = {"__name__": "page"}
    for block in blocks(text):
        if block.mark == "not run" or block.notebook:
            continue
        if block.mark == "file":
            (tmp_path / block.note).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, page, "exec"), space)
        else:
            said += "".join(shell(line, tmp_path) for line in block.code.splitlines())
    if page in AFTER:
        AFTER[page](tmp_path, said)
    for name in [p.stem for p in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)
