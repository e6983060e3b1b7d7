"""Runs on the machines of a Ray cluster, which share no disk.

Each run is a task of its own with its CPUs and GPUs: the process that a local comparison would
start, in a folder of its machine. What it leaves comes back as bytes: rows as they are made,
each new checkpoint, and all of it at the end. So the comparison's folder is what it would be on one
machine, and any engine goes on from it. Where a machine is lost, its run goes on from the last
checkpoint that came back. Needs ``girsanov[ray]``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...envs.problem import check_integer
from ..spec import RunSpec
from ..storage.files import inside, write_whole
from ..storage.records import RunFolder
from .engine import Job, Lost, drive
from .local import Worker

Files = dict[str, bytes]


@dataclass(frozen=True)
class RayCluster:
    """As many runs at a time as the cluster has room for.

    Args:
        address: of the cluster, as ``ray.init`` takes it (``auto``: the one that this machine
            belongs to); absent: the one that ``RAY_ADDRESS`` names, else one is started here.
        cpus_per_run: cores of each run, which are its threads.
        gpus_per_run: GPUs of each run; 0.25 lets four runs share one.
        losses: times that a run may lose its machine before it is given up.

    Raises:
        ValueError: a number that is not allowed.
    """

    address: str | None = None
    cpus_per_run: int = 1
    gpus_per_run: float = 0.0
    losses: int = 5

    def __post_init__(self) -> None:
        check_integer("losses", self.losses, 0)
        check_integer("cpus_per_run", self.cpus_per_run, 1)
        if not 0 <= self.gpus_per_run < float("inf"):
            raise ValueError(f"gpus_per_run must be at least 0; got {self.gpus_per_run!r}")

    def run(self, missing: list[RunSpec], job: Job, bar: Any) -> list[str]:
        """See Engine."""
        with self._connected() as ray:
            host = ray.remote(**self._share)(Host)
            left: dict[Path, int] = {spec.folder(job.out): self.losses for spec in missing}

            def begin(spec: RunSpec) -> _Remote:
                return _Remote(ray, host, spec, job, self.cpus_per_run, left)

            return drive(missing, begin, lambda: self._room(ray), bar)

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """See Engine; all at once, each again where its machine is lost."""
        with self._connected() as ray:
            task = ray.remote(**self._share, max_retries=self.losses)(function)
            return ray.get([task.remote(*call) for call in calls])

    @property
    def _share(self) -> dict[str, Any]:
        return {"num_cpus": self.cpus_per_run, "num_gpus": self.gpus_per_run}

    def _room(self, ray: Any) -> int:
        there = ray.cluster_resources()
        room = there.get("CPU", 0) // self.cpus_per_run
        if self.gpus_per_run:
            room = min(room, there.get("GPU", 0) // self.gpus_per_run)
        return max(1, int(room))  # one waits even where there is no room: a cluster may grow

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "engine ray needs the package ray: pip install 'girsanov[ray]'"
            ) from error
        if ray.is_initialized():
            yield ray
            return
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:
            said = str(error).strip().splitlines()[0]
            raise ValueError(
                f"address must be a Ray cluster's; got {self.address!r} ({said})"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


class Report(NamedTuple):
    """What a machine tells of its run."""

    ended: bool
    complaint: str | None  # once it has ended; None: it is finished
    files: Files  # that are new, relative to the run's folder


class Host:
    """One run on a machine of the cluster.

    Args:
        spec: the run, as JSON.
        before: files of the environment and of the run, relative to the comparison's folder.
        job: what all runs share; the folder is this machine's own.
        threads: of the run.
    """

    def __init__(self, spec: dict[str, Any], before: Files, job: Job, threads: int) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="girsanov-")
        out = Path(self._place.name)
        for name, content in before.items():
            write_whole(out / name, content)
        made = RunSpec.from_json(spec)
        self.worker = Worker(made, job._replace(out=out), threads, _own_path())
        self._sent: dict[str, tuple[int, int]] = {}
        self._ended: Report | None = None

    def poll(self) -> Report:
        """How it goes, and what is new."""
        if not self.worker.ended():
            return Report(False, None, self._news())
        return self._last()

    def stop(self) -> Report:
        """End it at a checkpoint; what it leaves."""
        self.worker.stop()
        return self._last(asked=True)

    def _last(self, asked: bool = False) -> Report:
        if self._ended is not None:
            return self._ended
        complaint = None if asked else self.worker.complaint()
        folder = self.worker.folder.path
        files = [file for file in folder.rglob("*") if file.is_file()]
        last = {str(f.relative_to(folder)): f.read_bytes() for f in files if f.name != ".lock"}
        self._ended = Report(True, complaint and complaint.replace(self._place.name, "..."), last)
        self._place.cleanup()
        return self._ended

    def _news(self) -> Files:
        """Rows, and a new checkpoint with what belongs to it."""
        folder, found = self.worker.folder, [self.worker.folder.progress]
        newest = folder.checkpoints.newest()
        if newest is not None and str(newest.relative_to(folder.path)) not in self._sent:
            found += [*folder.tensorboard.glob("*"), folder.path / "spec.json", newest]
        news = {}
        for file in found:
            with contextlib.suppress(OSError):  # not there yet, or replaced just now
                stat, name = file.stat(), str(file.relative_to(folder.path))
                if self._sent.get(name) != (stamp := (stat.st_mtime_ns, stat.st_size)):
                    news[name], self._sent[name] = file.read_bytes(), stamp
        return news


def _own_path() -> list[str]:
    """Where this process finds modules that come neither with Python nor with a package."""
    installed = [Path(place) for place in sysconfig.get_paths().values()]
    given = [Path(place).resolve() for place in sys.path if place]
    return [str(p) for p in given if not any(p.is_relative_to(place) for place in installed)]


class _Remote:
    """A run on another machine, seen from here; its folder here is held meanwhile."""

    def __init__(
        self, ray: Any, host: Any, spec: RunSpec, job: Job, threads: int, left: dict[Path, int]
    ) -> None:
        self.spec, self.folder = spec, RunFolder(job.out, spec, job.saving)
        self._ray, self._left = ray, left
        self._report = Report(False, None, {})
        self._actor: Any = None
        self._begun = False  #: a machine has been found, and has reported
        self._held = contextlib.ExitStack()
        try:
            self._held.enter_context(self.folder.held())
            if self.folder.finished():
                self._report = Report(True, None, {})
                return
            before = self._before(job.out)
        except ValueError as error:  # another process makes it, or its checkpoint can't be read
            self._report = Report(True, str(error), {})
            return
        self._actor = host.remote(spec.to_json(), before, job, threads)
        self._asked = self._actor.poll.remote()

    def _before(self, out: Path) -> Files:
        """What the other machine needs: the environment's reference, and what there is of the
        run.
        """
        if self.folder.checkpoints.latest() is None:
            self.folder.clear()
        files = [f for f in self.spec.env_folder(out).glob("*") if f.is_file()]
        files += [f for f in self.folder.path.rglob("*") if f.is_file() and f.name != ".lock"]
        return {str(inside(out, f).relative_to(out)): f.read_bytes() for f in files}

    def ended(self) -> bool:
        """See Running."""
        if not self._report.ended and self._ray.wait([self._asked], timeout=0)[0]:
            self._take(self._asked)
            if not self._report.ended:
                self._asked = self._actor.poll.remote()
        return self._report.ended

    def complaint(self) -> str | None:
        """See Running."""
        self._leave()
        return self._report.complaint

    def terminate(self) -> None:
        """See Running."""
        if self._begun and not self._report.ended:
            self._asked = self._actor.stop.remote()

    def stop(self) -> None:
        """See Running."""
        if self._begun and not self._report.ended:
            with contextlib.suppress(Lost, OSError, self._ray.exceptions.GetTimeoutError):
                self._take(self._asked, timeout=60)
        self._leave()

    def _take(self, asked: Any, timeout: float | None = None) -> None:
        """Write down what has come back."""
        errors = self._ray.exceptions
        try:
            report: Report = self._ray.get(asked, timeout=timeout)
        except errors.ActorUnavailableError:
            return
        except errors.GetTimeoutError:
            raise
        except errors.RayError as error:
            self._leave()
            lost = isinstance(error, errors.RayActorError)
            if not lost or getattr(error, "actor_init_failed", False):
                self._report = Report(True, str(error).strip().splitlines()[-1], {})
                return
            self._left[self.folder.path] -= 1
            if self._left[self.folder.path] < 0:
                self._report = Report(True, "its machine was lost too often", {})
                return
            raise Lost("its machine was lost; it goes on from its last checkpoint") from None
        if report.ended:  # all of it has come
            self.folder.clear()
        for name, content in sorted(report.files.items(), key=lambda f: f[0] == "record.json"):
            write_whole(inside(self.folder.path, self.folder.path / name), content)
        self.folder.checkpoints.prune()
        self._report, self._begun = report, True

    def _leave(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._held.close()
