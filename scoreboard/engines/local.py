"""Runs in processes of this machine, which share nothing but files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..spec import RunSpec
from ..storage.records import RunFolder, cores
from .engine import Job, drive

_RUNNER = f"{__package__}".rpartition(".")[0] + ".runner"


@dataclass(frozen=True)
class LocalProcesses:
    """As many processes as there are ``workers``; the machine's cores are shared out evenly.

    Args:
        workers: runs at a time.
    """

    workers: int = 1

    def run(self, missing: list[RunSpec], job: Job, bar: Any) -> list[str]:
        """See Engine."""
        threads = threads_of(self.workers)
        return drive(missing, lambda spec: Worker(spec, job, threads), lambda: self.workers, bar)

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """See Engine; one after the other, here."""
        return [function(*call) for call in calls]


class Worker:
    """One run in its process.

    Args:
        spec: what to run.
        job: where.
        threads: of the process.
        path: where it looks for modules that are found nowhere else.
    """

    def __init__(self, spec: RunSpec, job: Job, threads: int, path: Sequence[str] = ()) -> None:
        self.spec, self.folder = spec, RunFolder(job.out, spec)
        request = {
            "spec": spec.to_json(),
            "out": str(job.out),
            "command": job.command,
            "threads": threads,
            "saving": asdict(job.saving),
            "path": list(path),
        }
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", _RUNNER, json.dumps(request)],
            stdin=subprocess.PIPE,  # its end of file tells the worker that we are gone
            stdout=self._errors,
            stderr=self._errors,
            env={**os.environ, **environment},
        )

    def ended(self) -> bool:
        """See Running."""
        return self.process.poll() is not None

    def terminate(self) -> None:
        """See Running."""
        self.process.terminate()

    def stop(self) -> None:
        """End the process and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()  # it stops at a checkpoint
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def complaint(self) -> str | None:
        """See Running; the whole of what was said is kept in ``error.txt``, or in ``warnings.txt``
        though all went well.
        """
        self.stop()
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", errors="replace").strip()
        self._errors.close()
        if self.process.returncode == 0 and self.folder.finished():
            if text:
                _write(self.folder.warnings, text)
            return None
        lines = text.splitlines() or [f"the process ended with code {self.process.returncode}"]
        kept = _write(self.folder.error, text)
        if self.process.returncode == 2:
            return lines[-1].removeprefix("error: ")
        return f"{lines[-1]} (all of it: {self.folder.error})" if kept else lines[-1]


def _write(path: Path, text: str) -> bool:
    """Keep what a worker has said, where there is room for it."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        return True
    return False


def threads_of(workers: int) -> int:
    """Threads of each of so many workers: its share of the cores that this process may use, and no
    more than OMP_NUM_THREADS where it is set.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    most = int(asked) if asked.isdecimal() and int(asked) > 0 else cores()
    return max(1, min(most, cores() // workers))
