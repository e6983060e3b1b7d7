"""What the benchmarks share: jobs made once, each a line of JSON, and the command line.

A benchmark is a list of jobs, what executes one, and a report. Its folder holds ``runs.jsonl``,
``report.md`` and pictures. A line of ``runs.jsonl`` is a run: ``run``, ``job``, what was measured,
``command``, versions, hardware.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import reports
import torch
import tyro
from reports import Line

from girsanov.scoreboard.storage.records import check_writable, provenance

RESULTS = Path(__file__).parent / "results"
RUNS = "runs.jsonl"


@dataclass(frozen=True)
class Job:
    """One run; a benchmark's own has fields, and a ``form`` of them unlike any other job's."""

    form: ClassVar[str]

    @property
    def name(self) -> str:
        """Of its line."""
        return self.form.format(**asdict(self))


# --- lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line of JSON in a single write, so that two processes may share the file; end a torn
    one before it.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and file.seek(size - 1) >= 0 and file.read() != b"\n"
        file.write(b"\n" * torn + json.dumps(line, allow_nan=False).encode() + b"\n")


def read_lines(path: Path) -> list[Line]:
    """All lines of a file that need not be there; one torn by a kill is left out."""
    found = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return found


def runs_of(out: Path) -> dict[str, Line]:
    """Finished runs by name."""
    return {line["run"]: line for line in read_lines(out / RUNS) if "run" in line}


def lines_of(out: Path) -> list[Line]:
    """Finished runs; a ValueError where there is none."""
    found = list(runs_of(out).values())
    if not found:
        raise ValueError(f"out must hold finished runs ({RUNS}); found none in {str(out)!r}")
    return found


# --- jobs


def missing(jobs: Sequence[Job], out: Path) -> list[Job]:
    """Those that are not finished; a ValueError names one that is, with other settings."""
    done = runs_of(out)
    for job in jobs:
        asked = json.loads(json.dumps(asdict(job)))
        found = done[job.name]["job"] if job.name in done else asked
        differs = [f"{k} {found.get(k)}, not {v}" for k, v in asked.items() if found.get(k) != v]
        if differs:
            raise ValueError(
                f"{out / RUNS} holds {job.name} with other settings ({'; '.join(differs)}); use"
                " another --out"
            )
    return [job for job in jobs if job.name not in done]


def resume(
    jobs: Sequence[Job],
    execute: Callable[[Job], Line],
    words: Callable[[Line], str],
    out: Path,
    workers: int,
) -> None:
    """Make the jobs that are missing, each a line of ``runs.jsonl`` as soon as it is done."""
    todo = missing(jobs, out)
    print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are finished", flush=True)
    for number, (job, row) in enumerate(_executed(todo, execute, workers), 1):
        made = {"command": command(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        line = {"run": job.name, "job": asdict(job), **row, **made, **provenance()}
        append(out / RUNS, line)
        print(f"[{number}/{len(todo)}] {job.name}: {words(line)}", flush=True)


def _executed(
    todo: Sequence[Job], execute: Callable[[Job], Line], workers: int
) -> Iterator[tuple[Job, Line]]:
    torch.set_num_threads(1)
    if workers == 1:
        yield from ((job, execute(job)) for job in todo)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(execute, job): job for job in todo}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def command() -> str:
    """How this process was asked for."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


@dataclass(frozen=True)
class Benchmark:
    """A question, and how it is answered from the command line."""

    doc: str | None
    name: str  # of the folder of the committed results
    jobs: Callable[[Sequence[int], bool], Sequence[Job]]  # of these seeds, quick or not
    execute: Callable[[Any, bool], Line]  # quick or not
    words: Callable[[Line], str]  # of what was measured, to print
    told: Callable[[list[Line]], Mapping[str, Any]]  # tables and figures (``reports.write``)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    @property
    def here(self) -> Path:
        """Folder of the committed results."""
        return RESULTS / self.name

    def report(self, out: Path | None = None) -> None:
        """Write the report of the runs that are finished, in a folder."""
        out = out or self.here
        reports.write(self.here, out, self.told(lines_of(out)))

    def run(
        self,
        only: tuple[str, ...] = (),
        seeds: tuple[int, ...] | None = None,
        quick: bool = False,
        workers: int = 1,
        out: Path | None = None,
    ) -> None:
        """Make the runs that are missing, then the report.

        Args:
            only: runs whose names hold all of these words.
            seeds: of each; if absent, those of the committed results.
            quick: as little as shows that it works.
            workers: runs at a time, one thread each.
            out: folder; that of the committed results, or ``runs/<name>_quick`` if quick.
        """
        seeds = self.seeds if seeds is None else seeds
        out = out or (Path("runs") / f"{self.name}_quick" if quick else self.here)
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be from 0, each once, at least one; got {seeds}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1; got {workers}")
        every = self.jobs(seeds, quick)
        jobs = [job for job in every if all(word in job.name for word in only)]
        if not jobs:
            raise ValueError(f"only must be words of names of runs; none holds {only}")
        check_writable(out)
        resume(jobs, functools.partial(self.execute, quick=quick), self.words, out, workers)
        self.report(out)

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """``report``, or the arguments of ``run``; 2 with one line for what the caller can mend,
        130 for Ctrl-C.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        report = given[:1] == ["report"]
        try:
            asked: Any = self.report if report else self.run
            tyro.cli(asked, args=given[report:], prog=f"{self.name}.py", description=self.doc)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped; the same command goes on where this one was", file=sys.stderr)
            return 130
        return 0
