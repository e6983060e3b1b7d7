"""Runs as tables for other programs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from finished_runs import comparison

from girsanov.envs.certificates import Certificate, Pooled
from girsanov.envs.problem import Estimate
from girsanov.scoreboard.output.export import export
from girsanov.scoreboard.report import report
from girsanov.scoreboard.storage import archive
from girsanov.train import main


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return comparison(tmp_path / "runs")


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_line_a_run(finished: Path, tmp_path: Path) -> None:
    lines = _read(export(finished, tmp_path / "runs.csv"))
    assert [(line["agent"], line["seed"]) for line in lines] == [
        (agent, seed) for agent in ("pde", "ppo") for seed in "012"
    ]
    first = lines[0]
    assert first["env"] == "girsanov/Fake-v0" and json.loads(first["env_kwargs"]) == {"steps": 50}
    assert float(first["score"]) == pytest.approx(0.4) and int(first["reward_queries"]) == 100
    assert first["success"] == ""  # not known
    assert (first["budget"], first["budget_unit"]) == ("100.0", "reward_queries")


def test_a_line_an_evaluation_from_an_archive_too(finished: Path, tmp_path: Path) -> None:
    lines = _read(export(finished, tmp_path / "curves.csv", "curves"))
    scores = [float(line["score"]) for line in lines[:3]]
    assert len(lines) == 18 and scores == pytest.approx([0, 0.3, 0.4])
    archive.pack(finished, tmp_path)
    assert _read(export(tmp_path, tmp_path / "again.csv", "curves")) == lines


def test_scores_are_those_of_the_report(finished: Path, tmp_path: Path) -> None:
    """Against a bound of -1.2 from the policies' paths, where the runs knew one of -1."""
    first, closer = (Certificate(b, 0.1, b, b, 200.0, 1000) for b in (-1.0, -1.2))
    pooled = Pooled(closer, first, Estimate(-0.2, 0.01), {})
    runs = [
        [r["spec"]["agent"], r["spec"]["seed"], r["final"]["objective"]]
        for r in archive.finished(finished)
    ]
    (finished / "Fake-v0" / "pooled.json").write_text(
        json.dumps({"runs": runs, "pooled": pooled.to_json()})
    )
    lines = _read(export(finished, tmp_path / "runs.csv"))
    report(finished)
    (env,) = json.loads((finished / "report.json").read_text())["environments"]
    told = [final for agent in env["agents"] for final in agent["runs"]]
    for name in ("score", "score_stderr", "score_of_best"):
        assert [float(line[name]) for line in lines] == [final[name] for final in told]
    assert float(lines[0]["score"]) == pytest.approx(1.2 / 2.8)
    assert float(lines[0]["score_of_best"]) == pytest.approx(1.2 / 2.7)


def test_a_spreadsheet_runs_no_formula_and_knows_the_bytes(finished: Path, tmp_path: Path) -> None:
    assert not export(finished, tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    for path in finished.rglob("record.json"):
        record = json.loads(path.read_text())
        record["access_class"] = '=HYPERLINK("http://x";"é")'
        path.write_text(json.dumps(record))
    path = export(finished, tmp_path / "b.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(path, newline="", encoding="utf-8-sig") as file:
        assert next(csv.DictReader(file))["access_class"] == '\'=HYPERLINK("http://x";"é")'


def test_parquet(finished: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export(finished, tmp_path / "runs.parquet")).to_pydict()
    assert table["agent"] == ["pde"] * 3 + ["ppo"] * 3
    assert table["score"][0] == pytest.approx(0.4)
    assert table["success"] == [None] * 6 and table["env_steps"] == [5000] * 6


def test_the_command_and_its_errors(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to = tmp_path / "deep" / "x.csv"
    assert main(["export", "--out", str(finished), "--to", str(to), "--table", "curves"]) == 0
    assert len(_read(to)) == 18 and f"written: {to}" in capsys.readouterr().out
    assert main(["export", "--out", str(finished), "--to", str(tmp_path / "x.xls")]) == 2
    assert "error: to (--to) must end in .csv or .parquet; got" in capsys.readouterr().err
    assert main(["export", "--out", str(tmp_path / "deep"), "--to", str(to)]) == 2
    assert "must hold finished runs" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pyarrow is not installed; for Parquet: pip install"):
        export(finished, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="table must be one of"):
        export(finished, to, "rows")
