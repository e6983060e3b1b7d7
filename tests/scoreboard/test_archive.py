"""A comparison in one file: the same report, the same runs to go on from, and no name leads out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.report import report
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan
from girsanov.scoreboard.storage import archive

PLAN = EvaluationPlan(2, 8, 16, 64, 4)
ENV = "girsanov/GaussianMixture-v0"


def comparison(out: Path, seeds: tuple[int, ...] = (0, 1)) -> Comparison:
    return Comparison(
        ("pde",), (ENV,), seeds, Budget(110), out, env_kwargs={"steps": 4}, device="cpu", plan=PLAN
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs and their report."""
    out = tmp_path_factory.mktemp("runs")
    for spec in comparison(out).specs():
        execute(spec, out)
    report(out)
    return out


def test_the_report_of_an_archive_is_that_of_the_folders(folder: Path, tmp_path: Path) -> None:
    path = archive.pack(folder, tmp_path)
    assert path == tmp_path / "runs.jsonl"
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["reference", "pooled", "run", "run"]
    whole = report(folder).read_text()
    words = report(tmp_path).read_text()
    assert words == "".join(  # samples are in folders alone
        line for line in whole.splitlines(True) if not line.startswith("![samples]")
    ).replace("curves.png)\n\n\n", "curves.png)\n\n")
    ours, theirs = (json.loads((at / "report.json").read_text()) for at in (tmp_path, folder))
    for summary in (ours, theirs):
        del summary["environments"][0]["pictures"]
    assert ours == theirs
    assert archive.finished(tmp_path) == archive.finished(folder)
    picture = "GaussianMixture-v0/learning_curves.png"
    assert (tmp_path / picture).read_bytes() == (folder / picture).read_bytes()


def test_packing_again_keeps_what_the_archive_holds(folder: Path, tmp_path: Path) -> None:
    first = archive.pack(folder, tmp_path).read_bytes()
    assert archive.pack(tmp_path).read_bytes() == first
    copy = tmp_path / "GaussianMixture-v0" / "pde" / "seed1"
    shutil.copytree(folder / "GaussianMixture-v0" / "pde" / "seed1", copy)
    record = json.loads((copy / "record.json").read_text())
    (copy / "record.json").write_text(json.dumps({**record, "command": "a newer one"}))
    archive.pack(tmp_path)
    assert [run["command"] for run in archive.finished(tmp_path)] == ["", "a newer one"]


def test_a_comparison_goes_on_from_an_archive(folder: Path, tmp_path: Path) -> None:
    archive.pack(folder, tmp_path)
    paths = compare(comparison(tmp_path), progress=False)  # nothing is run: no model is there
    for path in paths:
        there = folder / path.relative_to(tmp_path)
        for name in ("spec.json", "record.json", "progress.jsonl"):
            assert (path / name).read_bytes() == (there / name).read_bytes()
        assert not (path / "model.zip").exists()
    name = "GaussianMixture-v0/reference.json"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    other = Comparison(("pde",), (ENV,), (0,), Budget(240), tmp_path, device="cpu", plan=PLAN)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        compare(other, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"env": ".."},
        {"env": "girsanov/.."},
        {"agent": ""},
        {"seed": "0/../../../x"},
        {"seed": True},
    ],
)
def test_no_name_leads_out_of_the_folder(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = archive.pack(folder, tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["spec"] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"runs.jsonl must hold runs and references; line 3 does"):
        archive.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"kind": "model"}', '{"kind": "run"}'),
        *(f'{{"kind": "{"x" * 9000}"}}', '{"kind": "\\u001b[31mred"}'),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.jsonl").write_text(text + "\n")
    words = "must hold runs and references; line 1 does not"
    with pytest.raises(ValueError, match=words) as caught:
        report(tmp_path)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder must hold finished runs; got none in"):
        archive.pack(tmp_path)
    assert list(tmp_path.iterdir()) == []
