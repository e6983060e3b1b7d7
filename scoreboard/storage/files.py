"""Files that are there in whole or not at all, and files that may come from anybody."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...agents.archive import parse_json
from ...envs.checks import words_of

#: Bytes of a JSON file, or of the rows of a run, at most.
JSON_LIMIT = 64 * 2**20


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there in whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) in whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> Any:
    """Read strict JSON; a ValueError names a file that is none, or one that is too large."""
    try:
        return parse_json(content_of(path))
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from error


def content_of(path: Path) -> str:
    """The text of a file of ordinary size, or a ValueError that says what it is instead."""
    if not path.is_file():  # a pipe, say, would be waited for
        raise ValueError("it is no file")
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"it has more than {JSON_LIMIT} bytes")
    return path.read_text(encoding="utf-8")


def inside(root: Path, path: Path) -> Path:
    """``path``, unless links lead from it out of ``root``: then a ValueError."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} must lie in {root}; it leads to {path.resolve()}")
    return path


def read_samples(path: Path) -> np.ndarray:
    """Terminal states that a run kept; a ValueError names a file that holds none."""
    try:  # mapped, not read: a header may promise more than there is
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python, and says so in many words
        said = words_of(error)
        raise ValueError(f"{path} is corrupt: {said}; delete the run's folder") from error


#: Terminals obey these; those of the second half reverse the direction of reading.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKUP = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{c: f"\\{c}" for c in "\\|`[]*"}}
)


def escaped(text: Any) -> str:
    """What a record holds as plain words of Markdown and HTML, on one line."""
    return _CONTROL.sub(" ", str(text)).translate(_MARKUP)


def escaped_within(value: Any) -> Any:
    """``escaped`` texts in nested lists and dicts, names and values alike."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {escaped_within(name): escaped_within(part) for name, part in value.items()}
    return [escaped_within(part) for part in value] if isinstance(value, (list, tuple)) else value


def printable(text: Any) -> str:
    """A text as a terminal may show it: lines and tabs stay, what it would obey goes."""
    return "".join(c if c in "\n\t" else _CONTROL.sub(" ", c) for c in str(text))


def check_writable(out: Path) -> None:
    """Make the folder ``out`` if need be and write to it, or raise one ValueError, before anything
    takes long.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written to; got {str(out)!r} ({error.strerror})"
        ) from error
