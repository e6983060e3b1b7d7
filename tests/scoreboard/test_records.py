import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from girsanov.agents import archive
from girsanov.agents.trees import packed, unpacked
from girsanov.scoreboard.spec import Budget, RunSpec
from girsanov.scoreboard.storage import files
from girsanov.scoreboard.storage.checkpoints import Checkpoints, Saving
from girsanov.scoreboard.storage.records import (
    RunFolder,
    check_writable,
    cores,
    escaped,
    provenance,
    read_json,
    read_record,
    read_samples,
    write_json,
)

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
    (tmp_path / "checkpoint").mkdir()
    archive.write(tmp_path / "checkpoint" / "3.zip", {}, {"agent": "a run under way", "tree": {}})
    with pytest.raises(ValueError, match=r"3\.zip must hold the state of a run; .*; delete"):
        Checkpoints(tmp_path).latest()


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
        events = folder.tensorboard / "events.out.tfevents.1"
        events.write_text("old")
    (folder.path / "mine.txt").write_text("keep")
    with folder.begin():
        assert folder.rows() == [] and not events.exists()
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


# --- folders that come from anybody


def record_of(spec: RunSpec) -> dict[str, Any]:
    empty: dict[str, Any] = {name: {} for name in ("final", "reference", "versions", "hardware")}
    return {"spec": spec.to_json(), "command": "", "device": "cpu", "threads": 1, **empty}


@pytest.mark.parametrize(
    "changes",
    [
        *({"env": ".."}, {"env": "a/C-v0"}, {"agent": "out"}, {"agent": "."}, {"seed": 1}),
        *({"agent": "x" * 5000}, {"agent": {"a": "x" * 5000}}),
    ],
)
def test_a_record_speaks_of_its_own_folder_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    path = SPEC.folder(tmp_path) / "record.json"
    record = record_of(SPEC)
    write_json(path, record)
    assert read_record(path)["command"] == ""
    record["spec"].update(changes)
    write_json(path, record)
    words = r"record\.json must be the record of .*delete the run's"
    with pytest.raises(ValueError, match=words) as caught:
        read_record(path)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}",
        "\xff",
        "",
    ],
)
def test_json_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"x\.json is corrupt"):
        read_json(tmp_path / "x.json")


def test_a_file_too_large_and_a_pipe_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "JSON_LIMIT", 10)
    (tmp_path / "x.json").write_text("[" + 20 * " " + "]")
    with pytest.raises(ValueError, match="it has more than 10 bytes"):
        read_json(tmp_path / "x.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is no file"):
        read_json(tmp_path / "pipe")


STATE: dict[str, Any] = {"model": {}, "random": {}, "instrument": {}}


def test_a_checkpoint_speaks_of_its_own_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    checkpoints = Checkpoints(run)
    checkpoints.save(3, STATE)
    archive.write(elsewhere / "evil.zip", *packed({**STATE, "files": {}}))
    (run / "checkpoint" / "4.zip").symlink_to(elsewhere / "evil.zip")
    (run / "checkpoint" / "..5.zip").write_text("")
    state = checkpoints.latest()
    assert state is not None and state["number"] == 3
    assert "4.zip must lie in" in capsys.readouterr().err
    # and cuts off nothing elsewhere
    (elsewhere / "events").write_text("long")
    (run / "events.out.tfevents.1").symlink_to(elsewhere / "events")
    (run / "events.out.tfevents.2").write_text("later")
    (run / "progress.jsonl").write_text("{}\n{}\n")
    (tmp_path / "evil").write_text("mine")
    lengths = {
        "../evil": 0,
        str(tmp_path / "evil"): 0,
        "events.out.tfevents.1": 0,
        "progress.jsonl": 3,
    }
    checkpoints.cut({**state, "files": lengths})
    assert (elsewhere / "events").read_text() == "long" and (tmp_path / "evil").exists()
    assert (run / "progress.jsonl").read_text() == "{}\n"
    assert not (run / "events.out.tfevents.2").exists()
    assert not (run / "checkpoint" / "4.zip").exists()  # later ones go, the link and not the file
    assert (elsewhere / "evil.zip").exists()


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Saving(keep=3))
    for number in (1, 2, 10, 9, 11):
        checkpoints.save(number, STATE)
    kept = sorted(int(file.stem) for file in checkpoints.path.iterdir())
    assert kept == [9, 10, 11] and checkpoints.newest() == checkpoints.path / "11.zip"
    for wrong in ({"keep": 0}, {"minutes": 0.0}, {"minutes": float("nan")}):
        with pytest.raises(ValueError, match="_checkpoints must be|checkpoint_minutes must be"):
            Saving(**wrong)  # type: ignore[arg-type]


def test_trees_come_back_as_they_were() -> None:
    shared = torch.arange(3.0)
    tree = {
        "a": [shared, shared[1:], None, True, 2**80, "word"],
        "b": {"c": np.arange(4, dtype=np.int64), "d": 0.1 + 0.2, "e": np.float64(0.5)},
        "f": (torch.zeros(0), torch.tensor(float("inf")), torch.tensor(True)),
    }
    file = io.BytesIO()
    packing = packed(tree)
    archive.write(file, packing.tensors, {"agent": "x", **packing.settings})
    back = unpacked(archive.Checkpoint(*archive.read(file, "x")))
    assert back["a"][2:] == [None, True, 2**80, "word"] and back["b"]["d"] == 0.1 + 0.2
    assert torch.equal(back["a"][0], shared) and torch.equal(back["a"][1], shared[1:])
    np.testing.assert_array_equal(back["b"]["c"], tree["b"]["c"])  # type: ignore[call-overload]
    # where torch would have put them: from other addresses products of matrices are rounded
    # differently, and a resumed run would not be the same to the bit
    many = packed([torch.zeros(n) for n in range(1, 20)] + [np.zeros(3)])
    archive.write(file := io.BytesIO(), many.tensors, {"agent": "x", **many.settings})
    leaves = unpacked(archive.Checkpoint(*archive.read(file, "x")))
    assert {torch.as_tensor(leaf).data_ptr() % 64 for leaf in leaves} == {0}
    assert [t.tolist() for t in back["f"]] == [[], float("inf"), True]
    for bad, message in (
        ({"a": object()}, "must be a tensor or a plain value"),
        ({"a": float("nan")}, "must be a tensor or a plain value"),
        ({1: 2}, "keys must be words"),
        ({"$tensor": "a"}, "keys must be words"),
    ):
        with pytest.raises(ValueError, match=message):
            packed(bad)
    with pytest.raises(ValueError, match="it lacks the tensor 'b'"):
        unpacked(archive.Checkpoint({}, {"tree": {"a": {"$tensor": "b"}}}))


@pytest.mark.parametrize(
    "name", ["model.zip", "progress.jsonl", ".lock", "checkpoint", "record.json"]
)
def test_links_out_of_a_run_are_refused(name: str, tmp_path: Path) -> None:
    folder, elsewhere = RunFolder(tmp_path / "out", SPEC), tmp_path / "elsewhere"
    folder.path.mkdir(parents=True)
    elsewhere.mkdir()
    (folder.path / name).symlink_to(elsewhere / "x")
    with pytest.raises(ValueError, match=f"{name} must lie in .*; it leads to .*elsewhere"):
        folder.finished()
    assert list(elsewhere.iterdir()) == []


def test_a_run_finished_meanwhile_is_left_alone(tmp_path: Path) -> None:
    ours, theirs = RunFolder(tmp_path, SPEC), RunFolder(tmp_path, SPEC)
    assert not ours.finished()
    with theirs.begin() as begun:
        assert begun
        theirs.progress.write_text('{"a": 1}\n')
        write_json(theirs.record, {})
    with ours.begin() as begun:
        assert not begun
    assert ours.rows() == [{"a": 1}] and ours.record.is_file()


def test_samples_that_promise_more_than_there_is_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(2, 3))
    assert read_samples(tmp_path / "x.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    with open(tmp_path / "x.npy", "wb") as file:
        shape = (2_000_000_000, 1000)
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"x\.npy is corrupt"):
        read_samples(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes().replace(b"}", b" "))
    with pytest.raises(ValueError, match=r"x\.npy is corrupt"):
        read_samples(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"x\.npy is corrupt"):
        read_samples(tmp_path / "x.npy")


def test_what_a_record_holds_is_shown_as_words() -> None:
    assert escaped("pi_ft, 0.5") == "pi_ft, 0.5"
    assert escaped("<script>|`x`\n[a](b)*") == r"&lt;script&gt;\|\`x\` \[a\](b)\*"
    assert escaped("\x1b[31mred\u202e\x9b") == r" \[31mred  "


def test_the_cores_of_a_container(tmp_path: Path) -> None:
    free = cores(tmp_path)
    assert free == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores(tmp_path) == free
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(tmp_path) == free
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    assert cores(tmp_path) == 1
