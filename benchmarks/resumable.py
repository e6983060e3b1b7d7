"""What the benchmarks share: jobs made once, each a line of JSON; tables, pictures, the command
line.

A benchmark is a frozen dataclass of jobs with a ``name``, a function that executes one, and a
report. Its folder holds ``runs.jsonl``, ``report.md`` and pictures. A line of ``runs.jsonl`` is a
run (``run``, ``job``, what was measured, ``command``, versions, hardware), or what all runs of a
problem are measured against (``reference``, ``settings``, ``value``).
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from girsanov.envs.problem import Problem
from girsanov.scoreboard.evaluation import Reference, reference_of
from girsanov.scoreboard.spec import slug
from girsanov.scoreboard.storage.records import check_writable, provenance, write_json, write_whole

RESULTS = Path(__file__).parent / "results"
RUNS = "runs.jsonl"
Line = dict[str, Any]


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
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def runs_of(out: Path, some: bool = False) -> dict[str, Line]:
    """Finished runs by name; ``some``: a ValueError where there is none."""
    found = {line["run"]: line for line in read_lines(out / RUNS) if "run" in line}
    if some and not found:
        raise ValueError(f"out must hold finished runs ({RUNS}); found none in {str(out)!r}")
    return found


def references_of(out: Path) -> dict[str, Line]:
    """What runs are measured against, by name."""
    return {x["reference"]: x for x in read_lines(out / RUNS) if "reference" in x}


def kept(out: Path, name: str, settings: Line, make: Callable[[], Any]) -> Any:
    """The value of a reference, made and kept if it is not there; a ValueError names one that was
    made with other settings.
    """
    found = references_of(out).get(name)
    if found is None:
        value = make()
        line = {"reference": name, "settings": settings, "value": value}
        append(out / RUNS, {**line, **provenance()})
        return value
    if found["settings"] != settings:
        raise ValueError(
            f"{out / RUNS} holds the reference {name} made with {found['settings']}, not"
            f" {settings}; use another --out"
        )
    return found["value"]


def bound_of(out: Path, problem: Problem, env: str, beta: float, paths: int) -> Reference:
    """J(0) and the bound of a problem by the scoreboard, kept under its temperature."""
    settings = {"env": env, "beta": beta, "reference_paths": paths}
    make = lambda: reference_of(problem, paths).to_json()  # noqa: E731
    return Reference.from_json(kept(out, f"{slug(env)}-beta{beta:g}", settings, make))


def as_text(array: np.ndarray) -> Line:
    """An array as JSON, compressed."""
    packed = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
    return {"shape": list(array.shape), "type": str(array.dtype), "zlib": packed}


def as_array(text: Mapping[str, Any]) -> np.ndarray:
    """The inverse of ``as_text``."""
    packed = zlib.decompress(base64.b64decode(text["zlib"]))
    return np.frombuffer(packed, text["type"]).reshape(text["shape"])


# --- jobs


def resume(
    jobs: Sequence[Any],
    out: Path,
    execute: Callable[[Any], Line],
    words: Callable[[Line], str],
    workers: int = 1,
    before: Callable[[Sequence[Any]], None] = lambda todo: None,
) -> None:
    """Make the jobs that are missing; each is one line of ``runs.jsonl`` as soon as it is done.

    Args:
        jobs: frozen dataclasses with a ``name`` unlike any other's.
        out: folder of everything.
        execute: makes one; with several workers it must be picklable.
        words: of what was measured, to print.
        workers: processes at a time, one thread each.
        before: is told which jobs are missing.

    Raises:
        ValueError: a run of that name is there with other settings.
    """
    check_writable(out)
    done = runs_of(out)
    for job in jobs:
        asked = json.loads(json.dumps(asdict(job)))
        found = done[job.name]["job"] if job.name in done else asked
        if found != asked:
            differs = [
                f"{k} {found.get(k)}, not {v}" for k, v in asked.items() if found.get(k) != v
            ]
            raise ValueError(
                f"{out / RUNS} holds {job.name} with other settings ({'; '.join(differs)}); use"
                " another --out"
            )
    todo = [job for job in jobs if job.name not in done]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are finished", flush=True)
    torch.set_num_threads(1)
    before(todo)
    for number, (job, row) in enumerate(_executed(todo, execute, workers), 1):
        made = {"command": command(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        line = {"run": job.name, "job": asdict(job), **row, **made, **provenance()}
        append(out / RUNS, line)
        print(f"[{number}/{len(todo)}] {job.name}: {words(line)}", flush=True)


def _executed(
    todo: Sequence[Any], execute: Callable[[Any], Line], workers: int
) -> Iterator[tuple[Any, Line]]:
    if workers == 1:
        yield from ((job, execute(job)) for job in todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(execute, job): job for job in todo}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def command() -> str:
    """How this process was asked for."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def check(name: str, given: Sequence[Any], words: str, good: Callable[[Any], bool]) -> None:
    """One ValueError unless ``given`` holds good values, each once, at least one."""
    if not given or len(set(given)) < len(given) or not all(map(good, given)):
        got = " ".join(map(str, given)) or "none"
        raise ValueError(f"{name} must be {words}, each once, at least one; got {got}")


def at_least(least: int, **given: int) -> None:
    """One ValueError unless every value is ``least`` or more."""
    for name, value in given.items():
        if value < least:
            raise ValueError(f"{name.replace('_', '-')} must be at least {least}; got {value}")


def command_line(
    name: str,
    doc: str | None,
    run: Callable[..., Any],
    report: Callable[..., Any],
    arguments: Sequence[str] | None = None,
) -> int:
    """``report ...`` or the arguments of ``run``; returns 2 with one line for what the caller can
    mend, 130 for Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["report"]:
            tyro.cli(report, args=given[1:], prog=f"{name} report")
        else:
            tyro.cli(run, args=given, prog=name, description=doc)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


# --- reports


def write(out: Path, parts: Iterable[str], summary: Any = None, **figures: Any) -> None:
    """Write ``report.md``, its parts apart by empty lines; a summary as ``report.json``; figures as
    PNG.
    """
    check_writable(out)
    for name, picture in figures.items():
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png")
        write_whole(out / f"{name}.png", buffer.getvalue())
    if summary is not None:
        write_json(out / "report.json", summary)
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(out / "report.md", text.encode())
    print(out / "report.md")


def figure(width: float, height: float, dpi: int = 100) -> Any:
    """An empty figure that needs no screen; colours are matplotlib's cycle, C0 to C9, in the order
    of the methods.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def groups(lines: Iterable[Line], key: Callable[[Line], Any]) -> dict[Any, list[Line]]:
    """Lines by a key, in the order in which they come."""
    found: dict[Any, list[Line]] = {}
    for line in lines:
        found.setdefault(key(line), []).append(line)
    return found


def chosen(lines: Iterable[Line], **wanted: Any) -> list[Line]:
    """The lines whose jobs have all these values, by seed."""
    found = [x for x in lines if all(x["job"][key] == wish for key, wish in wanted.items())]
    return sorted(found, key=lambda line: line["job"]["seed"])


def median(lines: Iterable[Line], name: str) -> float:
    """Of a figure over lines."""
    return statistics.median(line[name] for line in lines)


def spread(values: Iterable[float], digits: int = 3, sign: str = "") -> str:
    """Median and, in brackets, the least and the largest."""
    values = list(values)
    low, middle, high = (
        f"{v:{sign}.{digits}f}" for v in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def distinct(values: Iterable[Any]) -> list[Any]:
    """JSON values without repetition, their keys sorted."""
    texts = dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)
    return [json.loads(text) for text in texts]


def made_by(lines: Iterable[Line]) -> str:
    """Commands, torch and processor in one line."""
    said = {
        f"`{x['command']}` (torch {x['versions']['torch']}, {x['hardware']['cpu']})" for x in lines
    }
    return f"Made by {'; '.join(sorted(said))}."


def made_with(
    commands: Iterable[str],
    hardware: Iterable[Line],
    versions: Iterable[Line],
    form: str = "{cpu}, {cores} cores, {system}; one thread",
    heads: tuple[str, str, str] = ("", "", ""),
) -> str:
    """A list of commands, machines and versions."""
    said = [f"- {heads[0]}`{text}`" for text in commands]
    said += [f"- {heads[1]}{form.format(**machine)}" for machine in hardware]
    joined = (", ".join(f"{name} {version}" for name, version in v.items()) for v in versions)
    return "\n".join([*said, *(f"- {heads[2]}{text}" for text in joined)])
