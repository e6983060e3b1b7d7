"""What is committed under benchmarks/results: every figure of a report follows from its runs."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resumable as bench

from girsanov.scoreboard.report import report
from girsanov.scoreboard.storage import archive

#: Benchmarks that write their own report; two of them need diffusers.
OWN = ["control_literature", "convergence", "digits_fine_tuning", "frontier", "functional"]
OWN += ["image_rewards", "pde", "rates", "stable_diffusion"]
#: Comparisons of the scoreboard: their runs are kept, or the report alone.
ARCHIVED = ["robotics", "robotics_equal_seconds"]
REPORTED = ["digits_pi_ft_3000", "mixture"]
#: Comparisons whose report is made anew here, to the byte.
REMADE = ["digits"]


class Blank:
    """Stands for every figure: a report's words do not wait for its pictures."""

    def savefig(self, file: Any, format: str) -> None:
        file.write(b"no picture")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reports without pictures."""
    names = ["draw", "draw_betas", "draw_curves", "draw_samples"]
    names += ["bars", "pictures", "curves", "beta_pictures"]
    for module in ("frontier_report", "rates_report", "stable_diffusion_report"):
        for name in names:
            monkeypatch.setattr(f"{module}.{name}", lambda *_: Blank(), raising=False)
    for name in names:
        monkeypatch.setattr(f"digits_fine_tuning.{name}", lambda *_: Blank(), raising=False)
    yield


@pytest.mark.parametrize("name", OWN)
def test_a_report_follows_from_its_runs(name: str, undrawn: None, tmp_path: Path) -> None:
    if name in ("image_rewards", "stable_diffusion"):
        pytest.importorskip("diffusers")
    there = bench.RESULTS / name
    shutil.copy(there / bench.RUNS, tmp_path)
    importlib.import_module(name).report(tmp_path)
    for file in ("report.md", "report.json"):
        assert (there / file).is_file() == (tmp_path / file).is_file()
        if (there / file).is_file():
            assert (tmp_path / file).read_bytes() == (there / file).read_bytes(), file
    assert {path.name for path in there.iterdir()} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["digits_fine_tuning", "frontier", "functional", "pde", "rates"])
def test_runs_are_named_by_their_jobs(name: str) -> None:
    module = importlib.import_module(name)
    job = getattr(module, "Job", None) or module.Run
    runs = bench.runs_of(bench.RESULTS / name)
    assert len(runs) > 10
    assert all(job(**line["job"]).name == line["run"] == run for run, line in runs.items())


@pytest.mark.parametrize("name", [*ARCHIVED, *REPORTED])
def test_a_scoreboard_follows_from_its_runs(name: str) -> None:
    """Means and references, worked out here, not by the code that wrote the report."""
    there = bench.RESULTS / name
    summary = json.loads((there / "report.json").read_text())
    runs = {
        (run["spec"]["env"], run["spec"]["agent"], run["spec"]["seed"]): run
        for run in archive.finished(there)
    }
    assert bool(runs) == (name in ARCHIVED)
    seen = set()
    for env in summary["environments"]:
        for agent in env["agents"]:
            keys = [(env["env"], agent["agent"], seed) for seed in agent["seeds"]]
            seen |= set(keys)
            if runs:
                assert agent["runs"] == [runs[key]["final"] for key in keys]
                for key in keys:
                    final, last = runs[key]["final"], runs[key]["rows"][-1]
                    assert last["objective"] == final["objective"]
                    known = runs[key]["reference"]
                    told = env["reference"]["certificate"]
                    assert known["certificate"].items() <= told.items()
            for quantity in ("score", "objective", "kl", "seconds"):
                values = [final[quantity] for final in agent["runs"]]
                if None not in values:
                    assert agent[quantity]["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert not runs or seen == set(runs)
    assert len(archive.read(there).references) == (len(summary["environments"]) if runs else 0)
    for picture in (path for env in summary["environments"] for path in env["pictures"].values()):
        assert (there / picture).is_file()


@pytest.mark.parametrize("name", REMADE)
def test_the_scoreboards_report_follows_from_its_runs(name: str, tmp_path: Path) -> None:
    there = bench.RESULTS / name
    shutil.copy(there / bench.RUNS, tmp_path)
    report(tmp_path)
    for file in ("report.md", "report.json"):
        assert (tmp_path / file).read_bytes() == (there / file).read_bytes(), file


def test_no_other_record_is_committed() -> None:
    """One runs file a benchmark, one report, its pictures; studies keep Optuna's journals."""
    for folder in bench.RESULTS.iterdir():
        if folder.name == "tuning":
            continue
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        names = {path.name for path in files if path.suffix not in (".png", ".svg")}
        assert names <= {"runs.jsonl", "report.md", "report.json"}, folder
