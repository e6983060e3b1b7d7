import json
from dataclasses import replace
from pathlib import Path

import pytest

from girsanov.scoreboard.records import (
    Checkpoints,
    RunFolder,
    check_writable,
    provenance,
    read_json,
    read_record,
    write_json,
)
from girsanov.scoreboard.spec import Budget, RunSpec

SPEC = RunSpec("a/B-v0", "ppo", budget=Budget(10))


def test_a_file_is_there_in_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": 1})
    for bad in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, bad)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, 2)
    assert read_json(path) == 1 and len(list(tmp_path.iterdir())) == 1


def test_foreign_records_and_states_are_named(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"record\.json must be the record of a finished run; it lacks \['command'"
    ):
        read_record(tmp_path / "record.json")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json must be the state of a checkpoint; delete"):
        Checkpoints(tmp_path, 1.0).state()


def test_corrupt_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is corrupt"):
        read_json(tmp_path / "x.json")


def test_an_output_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a folder that can be written to"):
        check_writable(tmp_path / "file" / "below")
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_finished_means_that_the_record_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SPEC)
    assert not folder.finished()
    with folder.begin():
        assert not folder.finished()
        write_json(folder.record, {})
    assert folder.finished()


def test_a_run_from_before_a_setting_was_there_is_still_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SPEC)
    folder.path.mkdir(parents=True)
    old = SPEC.to_json()
    del old["plan"]["reference_starts"]
    (folder.path / "spec.json").write_text(json.dumps(old))
    write_json(folder.record, {})
    assert folder.finished()


@pytest.mark.parametrize(
    "other", [replace(SPEC, budget=Budget(20)), replace(SPEC, env_kwargs={"steps": 3})]
)
def test_other_settings_in_the_same_folder_are_an_error(other: RunSpec, tmp_path: Path) -> None:
    with RunFolder(tmp_path, SPEC).begin():
        pass
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path}.*seed0 holds a run with other settings \((budget|env_kwargs): ",
    ):
        RunFolder(tmp_path, other).finished()


def test_what_an_interrupted_run_left_is_cleared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SPEC)
    with folder.begin():
        folder.progress.write_text('{"a": 1}\n')
        folder.tensorboard.mkdir()
        (folder.tensorboard / "events").write_text("old")
    (folder.path / "mine.txt").write_text("keep")
    with folder.begin():
        assert folder.rows() == [] and not folder.tensorboard.exists()
        assert (folder.path / "mine.txt").read_text() == "keep"


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SPEC)
    with pytest.raises(RuntimeError), folder.begin():
        folder.progress.write_text("x")
        raise RuntimeError
    assert not folder.path.exists()


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SPEC)
    with folder.begin():
        folder.progress.write_text('{"a": 1}\n')
        with (
            pytest.raises(ValueError, match="is being written by another process"),
            RunFolder(tmp_path, SPEC).begin(),
        ):
            pass
        assert folder.rows() == [{"a": 1}]


def test_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SPEC)
    folder.path.mkdir(parents=True)
    folder.progress.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert folder.rows() == [{"a": 1}, {"a": 2}]
    folder.progress.write_text('{"a": 1}\nnoise\n')
    with pytest.raises(ValueError, match="progress.jsonl is corrupt"):
        folder.rows()


def test_provenance_is_plain_json() -> None:
    found = json.loads(json.dumps(provenance()))
    assert found["versions"]["torch"] and found["hardware"]["cores"] >= 1
