"""A checkpoint may come from anybody: one ValueError names the file, and nothing large is made."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from girsanov.agents import PDE
from girsanov.agents.archive import _SETTINGS, _TENSORS, read, write

TENSORS = {"w": torch.arange(6.0)}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write(tmp_path / "good.zip", TENSORS, {"agent": "x", "number": 1})
    return tmp_path / "good.zip"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(path: Path, held: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", [_SETTINGS, _TENSORS])
def test_what_would_unpack_to_more_is_not_unpacked(name: str, good: Path) -> None:
    bomb = put(good.with_name("bomb.zip"), {**members(good), name: bytes(2**27)}, 8)
    assert bomb.stat().st_size < 2**18
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.zip' is corrupt or truncated"):
            read(bomb, "x")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def lying(content: bytes, size: int) -> bytes:
    """With another size of the first member in the directory, both as stored and as unpacked."""
    at = content.index(b"PK\x01\x02")
    return content[: at + 20] + struct.pack("<II", size, size) + content[at + 28 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: {_SETTINGS: bytes(2**20 + 1)}, "must have at most 1048576 bytes"),
        (lambda held: {_SETTINGS: b"[" * 100_000}, "it is nested too deeply"),
        (lambda held: {_SETTINGS: b'{"agent": "x", "n": NaN}'}, "numbers must be finite; got NaN"),
        (lambda held: {_SETTINGS: b'{"agent": "x", "n": 1e999}'}, "must be finite; got 1e999"),
        (lambda held: {_SETTINGS: b"[1, 2]"}, "was written by another program"),
        (lambda held: {_SETTINGS: b'{"agent": "y"}'}, "holds a 'y'"),
        (lambda held: {_SETTINGS: b"{}"}, "holds a 'None'"),
        (lambda held: {"more.pkl": b"x"}, r"must hold .* alone; got .*more\.pkl"),
        (lambda held: {_TENSORS: held[_TENSORS][:-4]}, "corrupt or truncated"),
        (lambda held: {_TENSORS: struct.pack("<Q", 2**62) + b"{}"}, "corrupt or truncated"),
    ],
)
def test_what_it_must_not_hold(
    change: Callable[[dict[str, bytes]], dict[str, bytes]], message: str, good: Path
) -> None:
    held = members(good)
    with pytest.raises(ValueError, match=message) as caught:
        read(put(good.with_name("bad.zip"), {**held, **change(held)}), "x")
    assert "bad.zip" in str(caught.value) and "path must name a checkpoint" in str(caught.value)


def test_a_directory_that_lies_is_not_believed(good: Path) -> None:
    good.write_bytes(lying(good.read_bytes(), 2**31))
    with pytest.raises(ValueError, match=r"members must not be longer than the file"):
        read(good, "x")


@pytest.mark.parametrize("header", [b"PK\x03\x04", b"PK\x01\x02"])
@pytest.mark.parametrize("bit", range(16))
def test_every_flag_flipped(bit: int, header: bytes, good: Path) -> None:
    """It is read as it was, or refused by its name: none is asked for a password."""
    content = bytearray(good.read_bytes())
    at = content.index(header) + (6 if header == b"PK\x03\x04" else 8) + bit // 8
    content[at] ^= 1 << bit % 8
    good.write_bytes(content)
    try:
        found = read(good, "x")
    except ValueError as error:
        assert "good.zip' is corrupt or truncated" in str(error)
    else:
        assert torch.equal(found.tensors["w"], TENSORS["w"]) and found.settings["number"] == 1


def test_what_a_bad_header_holds_is_not_repeated_in_full(tmp_path: Path) -> None:
    write(tmp_path / "long.zip", {"w": torch.zeros(20_000)}, {"agent": "x"})
    content = bytearray((tmp_path / "long.zip").read_bytes())
    at = content.index(b"PK\x03\x04") + 26  # the length of its name
    content[at : at + 2] = struct.pack("<H", 60_000)
    (tmp_path / "long.zip").write_bytes(content)
    with pytest.raises(ValueError, match="File name in directory 'settings.json' and") as caught:
        read(tmp_path / "long.zip", "x")
    assert len(str(caught.value)) < 500 + 3 * len(str(tmp_path))


def test_settings_that_ask_for_networks_of_gigabytes(tmp_path: Path) -> None:
    env = "girsanov/GaussianMixture-v0"
    PDE("MlpPolicy", env, seed=0, policy_kwargs={"hidden": [4]}).save(tmp_path / "model")
    held = members(tmp_path / "model.zip")
    settings = json.loads(held[_SETTINGS])
    text = json.dumps(settings).replace('"hidden": [4]', '"hidden": [90000, 90000]')
    assert "90000" in text
    put(tmp_path / "model.zip", {**held, _SETTINGS: text.encode()})
    with pytest.raises(ValueError, match="must ask for at most 1 GiB of networks"):
        PDE.load(tmp_path / "model", env=env)
