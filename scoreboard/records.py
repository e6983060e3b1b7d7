"""The folder of one run on disk, such that a run killed at any moment is either finished or can be
begun again.

spec.json        what was asked, written first
progress.jsonl   one row an evaluation
tb/              TensorBoard events
samples.npy      terminal states, float32
model.zip        the learnt model
checkpoint/      of a run that is under way, where the agent can go on exactly: the model and the
instrument's state record.json      the result, written last and atomically: where it is, the run is
finished
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .spec import RunSpec

_PARTIAL = ("progress.jsonl", "tb", "samples.npy", "model.zip", "error.txt", "checkpoint")
#: What every record holds, and every checkpoint's state.
_OF_RECORDS = {"spec", "final", "reference", "command", "device", "threads", "versions", "hardware"}
_OF_STATES = {"model", "rows", "env_steps"}
CHECKPOINT_SECONDS = 300.0  # of training between two checkpoints


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
    """Read JSON; a ValueError names a file that is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from error


def read_record(path: Path) -> dict[str, Any]:
    """Read what a finished run left; a ValueError names a file that is no such record."""
    record = read_json(path)
    missing = sorted(_OF_RECORDS - set(record)) if isinstance(record, dict) else sorted(_OF_RECORDS)
    if missing:
        raise ValueError(f"{path} must be the record of a finished run; it lacks {missing}")
    return record


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


class Checkpoints:
    """The last checkpoint of a run under way, in whole or not at all.

    Args:
        path: a folder of its own.
        every: seconds of training between two of them.
    """

    def __init__(self, path: Path, every: float) -> None:
        self.path, self.every = path, every

    def save(self, model: Any, state: dict[str, Any]) -> None:
        """Replace the checkpoint: the new model, then the state that names it, then away with the
        old model.
        """
        name = f"{state['env_steps']}.zip"
        model.save(self.path / name)
        write_json(self.path / "state.json", {**state, "model": name})
        for other in self.path.glob("*.zip"):
            if other.name != name:
                other.unlink()

    def state(self) -> dict[str, Any] | None:
        """The state saved last, its ``model`` a path; None if there is none."""
        file = self.path / "state.json"
        if not file.is_file():
            return None
        state = read_json(file)
        if not (isinstance(state, dict) and state.keys() >= _OF_STATES):
            raise ValueError(
                f"{file} must be the state of a checkpoint; delete {self.path} to begin the run"
                " again"
            )
        return {**state, "model": self.path / state["model"]}

    def clear(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)


class RunFolder:
    """One run on disk."""

    def __init__(self, out: Path, spec: RunSpec) -> None:
        self.spec = spec
        self.path = spec.folder(out)
        self.record = self.path / "record.json"
        self.progress = self.path / "progress.jsonl"
        self.model = self.path / "model.zip"
        self.samples = self.path / "samples.npy"
        self.tensorboard = self.path / "tb"
        self.error = self.path / "error.txt"
        self.checkpoints = Checkpoints(self.path / "checkpoint", CHECKPOINT_SECONDS)

    def finished(self) -> bool:
        """True when the result is there. A ValueError names the folder if it belongs to a run with
        other settings.
        """
        asked, path = self.spec.to_json(), self.path / "spec.json"
        if path.is_file():
            found = read_json(path)
            with contextlib.suppress(
                TypeError, KeyError, AttributeError
            ):  # settings that came later have their defaults
                found = RunSpec.from_json(found).to_json()
            differs = sorted(
                name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name)
            )
            if differs:
                detail = "; ".join(
                    f"{name}: {found.get(name)} there, {asked.get(name)} asked" for name in differs
                )
                raise ValueError(
                    f"{self.path} holds a run with other settings ({detail}); use another --out or"
                    " delete it"
                )
        return self.record.is_file()

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """Hold the folder against other processes; clear what an interrupted run left, and clear it
        again on an error.

        With a checkpoint nothing is cleared, but the rows that were written after it.
        """
        fresh = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path / ".lock"):
            state = self.checkpoints.state()
            if state is None:
                self._clear()
            else:
                kept = self.rows()[: state["rows"]]
                write_whole(self.progress, "".join(json.dumps(row) + "\n" for row in kept).encode())
            write_json(self.path / "spec.json", self.spec.to_json())
            try:
                yield
            except Exception:
                if self.checkpoints.state() is not None:
                    raise
                self._clear()
                if fresh:
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    def _clear(self) -> None:
        for name in _PARTIAL:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        for partial in self.path.glob(".*.partial"):
            partial.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of progress so far; a last line cut off by a kill is left out."""
        if not self.progress.is_file():
            return []
        lines = self.progress.read_text().split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{self.progress} is corrupt: {error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock that dies with the process, where the system has them."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path.parent} is being written by another process") from None
        yield


def provenance() -> dict[str, Any]:
    """What a result was made with: versions and hardware."""
    from importlib import metadata

    import torch

    from .. import __version__

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "absent"

    packages = ("torch", "gymnasium", "stable-baselines3", "numpy", "diffusers")
    return {
        "versions": {
            "girsanov": __version__,
            "python": platform.python_version(),
            **{p: version(p) for p in packages},
        },
        "hardware": {
            "system": platform.platform(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
