"""The checkpoints of a run under way: each one file, there in whole or not at all, and read without
running code.

A checkpoint holds what the model, the process's random streams and the instrument are between two
rounds, the length of ``progress.jsonl`` and the lengths of TensorBoard's files: what a killed run
has written after its last checkpoint is cut off, so that nothing is there twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...agents import archive
from ...agents.archive import Checkpoint
from ...agents.trees import packed, unpacked
from ...envs.problem import check_integer, check_positive
from .files import inside

#: What every state of a run holds.
_PARTS = ("model", "random", "instrument", "files")
_KIND = "a run under way"


@dataclass(frozen=True)
class Saving:
    """How often a run under way is saved.

    Args:
        minutes: between two checkpoints at most; a round that takes longer is finished first. One
            is made after every evaluation, too.
        keep: the newest so many are kept.
    """

    minutes: float = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_positive("checkpoint_minutes", self.minutes)
        check_integer("keep_checkpoints", self.keep, 1)


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


class Checkpoints:
    """The last checkpoints of a run.

    Args:
        folder: of the run.
        saving: how many are kept.
    """

    def __init__(self, folder: Path, saving: Saving | None = None) -> None:
        self.folder, self.path = folder, folder / "checkpoint"
        self.saving = Saving() if saving is None else saving
        self.stopping = False  #: the next one is the last: the run is asked to end

    def save(self, number: int, state: dict[str, Any]) -> None:
        """Write one more, and remove those that are too old.

        Args:
            number: of env steps so far.
            state: a tree of tensors and plain values: ``model``, ``random`` and ``instrument``.

        Raises:
            OSError: it can't be written; what was there stays.
            Terminated: it has been, and the run is asked to end.
        """
        tensors, tree = packed({**state, "files": self._lengths()})
        archive.write(self.path / f"{number}.zip", tensors, {"agent": _KIND, **tree})
        self.prune()
        if self.stopping:
            raise Terminated("the run has ended at a checkpoint, as it was asked to")

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, None if there is no checkpoint.

        Raises:
            ValueError: none of them can be read.
        """
        complaint = None
        for file in self._files():
            try:
                state = self._read(file)
            except ValueError as error:
                complaint = complaint or error
                continue
            if complaint is not None:
                print(f"{complaint}; going on from the one before, {file}", file=sys.stderr)
            return state
        if complaint is not None:
            raise ValueError(f"{complaint}; delete {self.path} to begin the run again")
        return None

    def _read(self, file: Path) -> dict[str, Any]:
        state = unpacked(Checkpoint(*archive.read(inside(self.path, file), _KIND)))
        if not (isinstance(state, dict) and all(isinstance(state.get(p), dict) for p in _PARTS)):
            raise ValueError(f"{file} must hold the state of a run; it lacks some of {_PARTS}")
        return {**state, "number": int(file.stem)}

    def cut(self, state: dict[str, Any]) -> None:
        """Take away what the run has written after ``state``, later checkpoints among it."""
        lengths = state["files"]
        for other in self._files():
            if int(other.stem) > state["number"]:
                other.unlink(missing_ok=True)
        for file in self._written():
            length = lengths.get(file.name)
            if type(length) is not int or length < 0:
                file.unlink()
            elif length < file.stat().st_size:
                os.truncate(file, length)

    def newest(self) -> Path | None:
        """Its file; None if there is none."""
        return next(iter(self._files()), None)

    def prune(self) -> None:
        """Remove those that are too old."""
        for old in self._files()[self.saving.keep :]:
            old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> list[Path]:
        """The newest first."""
        found = self.path.glob("*.zip")
        named = [file for file in found if re.fullmatch(r"\d{1,18}", file.stem)]
        return sorted(named, key=lambda file: int(file.stem), reverse=True)

    def _written(self) -> list[Path]:
        """What a run writes bit by bit."""
        found = [self.folder / "progress.jsonl", *self.folder.glob("events.out.tfevents.*")]
        return [file for file in found if file.is_file() and not file.is_symlink()]

    def _lengths(self) -> dict[str, int]:
        lengths = {}
        for file in self._written():
            with contextlib.suppress(OSError):
                lengths[file.name] = file.stat().st_size
        return lengths
