"""The folder of one run on disk, such that a run killed at any moment is either finished or can be
begun again.

spec.json        what was asked, written first
progress.jsonl   one row an evaluation
events.out...    TensorBoard events
samples.npy      terminal states, float32
model.zip        the learnt model
checkpoint/      of a run that is under way: the last states to go on from, each in a file
warnings.txt     what a worker of ``compare`` has said though it succeeded
record.json      the result, written last and atomically: where it is, the run is finished

A folder may come from anybody: what its files say is checked before it is used, and no name in them
leads out of it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...agents.archive import parse_json
from ...envs.checks import shown, words_of
from ..spec import RunSpec
from .checkpoints import Checkpoints, Saving
from .files import check_writable as check_writable
from .files import content_of, inside, read_json, write_json
from .files import escaped as escaped
from .files import read_samples as read_samples
from .files import write_whole as write_whole

_PARTIAL = (
    *("progress.jsonl", "samples.npy", "model.zip", "error.txt", "warnings.txt"),
    "checkpoint",
)
#: What every record holds and of which type.
_OF_RECORDS: dict[str, type] = {
    **{"spec": dict, "final": dict, "reference": dict, "command": str, "device": str},
    **{"threads": int, "versions": dict, "hardware": dict},
}


def read_record(path: Path) -> dict[str, Any]:
    """Read what a finished run left.

    Raises:
        ValueError: it is no such record, or lies where another run belongs: what is made of a
            record goes to the folders that its names say.
    """
    record = _checked(read_json(path), _OF_RECORDS)
    remedy = "delete the run's folder to make it again"
    if isinstance(record, str):
        raise ValueError(f"{path} must be the record of a finished run; it {record}; {remedy}")
    try:
        spec = RunSpec.from_json(record["spec"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} must be the record of a finished run; its spec is none"
            f" ({type(error).__name__}: {words_of(error)}); {remedy}"
        ) from error
    inside(path.parents[3] if len(path.parents) > 3 else path.parent, path)
    here, said = path.absolute().parent.parts[-3:], spec.folder(Path()).parts
    if here != said:
        raise ValueError(
            f"{path} must be the record of the run that its folder is for; it is of"
            f" {shown('/'.join(said))}; {remedy}"
        )
    return record


def _checked(value: Any, types: dict[str, type]) -> Any:
    """``value``, or what is wrong with it, in words."""
    found = value if isinstance(value, dict) else {}
    missing = sorted(types.keys() - found.keys())
    if missing:
        return f"lacks {missing}"
    wrong = sorted(
        name
        for name, kind in types.items()
        if not isinstance(found[name], kind)
        or (kind is int and (isinstance(found[name], bool) or found[name] < 0))
    )
    return f"has something else for {wrong}" if wrong else found


class RunFolder:
    """One run on disk."""

    def __init__(self, out: Path, spec: RunSpec, saving: Saving | None = None) -> None:
        self.out, self.spec = out, spec
        self.path = spec.folder(out)
        self.record = self.path / "record.json"
        self.progress = self.path / "progress.jsonl"
        self.model = self.path / "model.zip"
        self.samples = self.path / "samples.npy"
        self.tensorboard = self.path  # the name of the run is that of its folder
        self.error = self.path / "error.txt"
        self.warnings = self.path / "warnings.txt"
        self.checkpoints = Checkpoints(self.path, saving)

    def finished(self) -> bool:
        """True when the result is there. A ValueError names the folder if it belongs to a run with
        other settings, or if links lead out of it.
        """
        for name in (*_PARTIAL, "spec.json", "record.json", ".lock", "../../reference.json"):
            inside(self.out, self.path / name)
        path = self.path / "spec.json"
        if path.is_file():
            found = read_json(path)
            if not isinstance(found, dict):
                raise ValueError(f"{path} must hold the settings of a run; delete {self.path}")
            self.check_same(found)
        return self.record.is_file()

    def check_same(self, found: dict[str, Any]) -> None:
        """A ValueError that names the folder unless the settings ``found`` are those of the run."""
        with contextlib.suppress(
            TypeError, KeyError, AttributeError, ValueError
        ):  # settings that came later have their defaults
            found = RunSpec.from_json(found).to_json()
        asked = self.spec.to_json()
        differs = sorted(
            name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name)
        )
        if differs:
            detail = "; ".join(
                f"{name}: {str(found.get(name))[:500]} there, {asked.get(name)} asked"
                for name in differs
            )
            raise ValueError(
                f"{self.path} holds a run with other settings ({detail}); use another --out or"
                " delete it"
            )

    @contextlib.contextmanager
    def begin(self, resumed: dict[str, Any] | None = None) -> Iterator[bool]:
        """Hold the folder against other processes; clear what an interrupted run left, and clear it
        again on an error.

        Args:
            resumed: the checkpoint that the run goes on from. Then nothing is cleared but what was
                written after it.

        Yields:
            False: another process has finished the run meanwhile, and nothing is touched.

        Raises:
            ValueError: another process writes here.
        """
        fresh = not self.path.exists()
        with self.held():
            if self.finished():  # asked again, now that nobody else can write
                yield False
                return
            if resumed is None:
                self.clear()
            else:
                self.checkpoints.cut(resumed)
                self.error.unlink(missing_ok=True)  # it is being mended
            write_json(self.path / "spec.json", self.spec.to_json())
            try:
                yield True
            except Exception:
                if self.checkpoints.newest() is not None:
                    raise
                self.clear()
                if fresh:
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other processes; a ValueError if one holds it already."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path / ".lock"):
            yield

    def clear(self) -> None:
        """Remove what an unfinished run has left."""
        for name in _PARTIAL:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        for pattern in (".*.partial", "events.out.tfevents.*"):
            for partial in self.path.glob(pattern):
                partial.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of progress so far; a last line cut off by a kill is left out."""
        if not self.progress.is_file():
            return []
        try:
            lines = content_of(self.progress).split("\n")[:-1]
            rows = [parse_json(line) for line in lines]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("every line must be a JSON object")
            return rows
        except ValueError as error:
            raise ValueError(f"{self.progress} is corrupt: {error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that dies with the process."""
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{path.parent} is being written by another process") from None
    try:
        yield
    finally:
        lock.release()


def provenance() -> dict[str, Any]:
    """What a result was made with: versions and hardware."""
    from importlib import metadata

    import torch

    from ... import __version__

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
            "cores": cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: of its affinity, and of its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    found = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for quota in (_quota_of("cpu.max", cgroup), _quota_of("cpu/cpu.cfs_quota_us", cgroup)):
        if quota is not None:
            found = min(found, max(1, int(quota)))
    return found


def _quota_of(name: str, cgroup: Path) -> float | None:
    """Cores of a quota: version 2 writes it and its period in one file, version 1 in two."""
    try:
        words = (cgroup / name).read_text().split()
        if len(words) == 1:
            words += (cgroup / name).with_name("cpu.cfs_period_us").read_text().split()
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):  # no such file; "max": no quota
        return None
    return quota / period if quota > 0 and period > 0 else None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
