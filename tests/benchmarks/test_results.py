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
import reports
import resumable as bench

from girsanov.scoreboard.report import report
from girsanov.scoreboard.storage import archive

#: Benchmarks with a report of their own.
OWN = ["betas", "control_literature", "convergence", "functional", "oracle", "rates", "scaling"]
#: Reports of scripts that are files of settings now: they stay as they were.
EARLIER = ["digits_fine_tuning", "image_rewards", "pde", "stable_diffusion"]
#: Comparisons of the scoreboard: their runs are kept, or the report alone.
ARCHIVED = ["robotics"]
#: Comparisons whose report is made anew here, to the byte.
REMADE = [
    *("attribution", "digits", "flow_guidance", "frontier", "mixture", "off_the_shelf"),
    "robotics_noise_form",
]
#: Scores whose cost a report tells.
LEVELS = {"frontier": (0.8, 0.9)}


class Blank:
    """Stands for every figure: a report's words do not wait for its pictures."""

    def savefig(self, file: Any, format: str) -> None:
        file.write(b"no picture")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reports without pictures."""
    for module in ("betas", "rates_report"):
        monkeypatch.setattr(f"{module}.draw", lambda *_: Blank())
    yield


@pytest.mark.parametrize("name", OWN)
def test_a_report_follows_from_its_runs(
    name: str, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, benchmark, copy = (
        bench.RESULTS / name,
        importlib.import_module(name).main,
        tmp_path / name,
    )
    copy.mkdir()
    for file in (bench.RUNS, "report.md"):
        shutil.copy(there / file, copy)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    benchmark.report()
    for file in there.iterdir():
        if file.suffix != ".png":
            assert file.read_bytes() == (copy / file.name).read_bytes(), file.name
    assert {path.name for path in there.iterdir()} == {path.name for path in copy.iterdir()}


@pytest.mark.parametrize("name", EARLIER)
def test_an_earlier_report_counts_its_runs(name: str) -> None:
    """And README says where the script is that made it."""
    there = bench.RESULTS / name
    found = bench.lines_of(there)
    assert reports.made_by(found) in (there / "report.md").read_text()
    assert f"results/{name}/report.md" in (there.parents[1] / "README.md").read_text()


@pytest.mark.parametrize("name", OWN)
def test_the_committed_runs_are_those_of_its_list(name: str) -> None:
    """The command without arguments goes on from them, and makes none of them again."""
    module = importlib.import_module(name)
    there = bench.RESULTS / name
    runs = bench.runs_of(there)
    assert all(module.Job(**line["job"]).name == line["run"] == run for run, line in runs.items())
    seeds = sorted({line["job"].get("seed", 0) for line in runs.values()})
    jobs = module.jobs(seeds, False)
    assert {job.name for job in jobs} >= runs.keys() and len(jobs) > 10
    assert bench.missing(jobs, there) == []


#: A run of each that is quick, by a word in its name.
QUICK = {
    "betas": "usual-beta0.3",
    "control_literature": "seconds PolynomialPolicy",
    "convergence": "quadratics d1 beta0.4",
    "functional": "beta2",
    "oracle": "whole size 20",
    "rates": "n 40",
    "scaling": "paths paths",
}


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_run_is_made_once_and_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(name).main
    asked = ["--quick", "--seeds", "0", "--only", QUICK[name], "--out", str(tmp_path)]
    assert main(asked) == 0
    made = (tmp_path / bench.RUNS).read_text()
    (line,) = bench.runs_of(tmp_path).values()
    assert QUICK[name] in line["run"] and line["versions"]["torch"] and line["command"]
    assert "Made in another folder" in (tmp_path / "report.md").read_text()
    (tmp_path / bench.RUNS).write_text(made + made[:40])  # torn by a kill
    capsys.readouterr()
    assert main(asked) == 0 and "1 of 1 runs are finished" in capsys.readouterr().out
    assert list(bench.runs_of(tmp_path)) == [line["run"]]


def test_the_robots_are_compared_by_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs, and no others, are the committed ones."""
    from girsanov import train
    from girsanov.scoreboard.spec import RunSpec

    asked: list[RunSpec] = []
    monkeypatch.setattr(
        "girsanov.scoreboard.compare.compare", lambda told: asked.extend(told.specs())
    )
    monkeypatch.setattr(train, "report", lambda out: None)
    for file in sorted((bench.RESULTS.parent / "configs" / "robotics").glob("*.json")):
        assert train.main(["compare", "--config", str(file)]) == 0
    runs = [RunSpec.from_json(run["spec"]) for run in archive.finished(bench.RESULTS / "robotics")]
    made = {(spec.env, spec.agent, spec.seed): spec.to_json() for spec in asked}
    assert len(made) == len(asked) == 220
    assert all(made[spec.env, spec.agent, spec.seed] == spec.to_json() for spec in runs)


def test_the_flow_is_fine_tuned_by_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every agent of the file was run as the file says; what is drawn cost no budget."""
    from girsanov import train
    from girsanov.scoreboard.spec import RunSpec

    asked: list[RunSpec] = []
    monkeypatch.setattr(
        "girsanov.scoreboard.compare.compare", lambda told: asked.extend(told.specs())
    )
    monkeypatch.setattr(train, "report", lambda out: None)
    file = bench.RESULTS.parent / "configs" / "text_to_image" / "flow_guidance.json"
    assert train.main(["compare", "--config", str(file)]) == 0
    runs = archive.finished(bench.RESULTS / "flow_guidance")
    made = {(spec.env, spec.agent, spec.seed): spec.to_json() for spec in asked}
    assert made == {
        tuple(run["spec"][k] for k in ("env", "agent", "seed")): run["spec"] for run in runs
    }
    gains: dict[str, list[float]] = {}
    for run in runs:
        final = run["final"]
        drawn = "sampling_reward_queries" in final
        for cost in ("reward_queries", "model_evaluations"):
            assert (final[cost] == 0) == drawn
        if drawn:
            assert final["objective"] > run["reference"]["uncontrolled"]["mean"]
        else:  # on the same 64 noises, before and after three fifths of the budget
            before, *_, after, _ = run["rows"]
            assert before["reward_queries"] == 0 and 275 <= after["reward_queries"] <= 300
            gain = after["objective"] - before["objective"]
            gains.setdefault(run["spec"]["agent"], []).append(gain)
    clear = {agent for agent, seeds in gains.items() if min(seeds) > 0.04}
    assert clear == {"pde", "pi-ft", "adjoint-matching", "draft"}
    assert all(abs(sum(gains[agent]) / 3) < 0.02 for agent in gains.keys() - clear)
    assert {agent for agent, seeds in gains.items() if max(seeds) < 0} == {"sac"}


@pytest.mark.parametrize("name", ARCHIVED)
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
    report(tmp_path, levels=LEVELS.get(name, ()))
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
