"""A finished comparison in one file, ``runs.jsonl``: small enough to keep beside its report.

A line a run, which holds its whole record and its rows of progress, and a line an environment's
reference. Models, samples and TensorBoard events stay in the folders of the runs. The report reads
both, and a run that is in a folder counts before the same one in the file; ``restore`` writes a run
back into its folder, so that a comparison goes on from an archive as it does from folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ...agents.archive import parse_json
from ...envs.checks import shown, words_of
from ..spec import RunSpec, slug
from .files import content_of, read_json, write_json, write_whole
from .record_checks import check_run
from .records import RunFolder, read_record

FILE = "runs.jsonl"
Line = dict[str, Any]


class Archive(NamedTuple):
    """What the lines of a file hold: records with their ``rows``, references, and certificates
    pooled from the runs' policies, each by its folder, relative to that of the comparison.
    """

    runs: dict[Path, Line]
    references: dict[Path, Line]
    pooled: dict[Path, Line]


def read(out: Path) -> Archive:
    """The archive of a folder; empty if it has none.

    Raises:
        ValueError: a line that is no run and no reference, or whose names lead out of the folder.
    """
    archive, path = Archive({}, {}, {}), out / FILE
    try:
        lines = content_of(path).splitlines() if path.is_file() else []
    except ValueError as error:
        raise ValueError(f"{path} must hold runs and references; {error}") from error
    for number, text in enumerate(lines, 1):
        try:
            line = parse_json(text)
            kind = line.pop("kind")
            if kind == "reference":
                archive.references[_inside(line["settings"]["env"])] = line
            elif kind == "pooled" and line["runs"]:
                archive.pooled[_inside(line.pop("env"))] = line
            elif kind == "run" and line["rows"]:
                RunSpec.from_json(line["spec"])
                check_run("the record", line)
                archive.runs[_folder(line["spec"])] = line
            else:
                raise ValueError(f"kind {shown(kind)}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} must hold runs and references; line {number} does not"
                f" ({type(error).__name__}: {words_of(error)})"
            ) from error
    return archive


def finished(out: Path) -> list[Line]:
    """The records of all finished runs, each with its ``rows``, ordered by folder."""
    return [run for _, run in sorted({**read(out).runs, **_in_folders(out)}.items())]


def pack(folder: Path, out: Path | None = None) -> Path:
    """Write the finished runs of a comparison, and its references, as ``runs.jsonl``.

    Args:
        folder: of the comparison; what its own archive holds is kept.
        out: where to write; ``folder`` if absent.

    Raises:
        ValueError: no finished run there.
    """
    runs = finished(folder)
    if not runs:
        raise ValueError(f"folder must hold finished runs; got none in {str(folder)!r}")
    references = dict(read(folder).references)
    for path in folder.glob("*/reference.json"):
        references[path.parent.relative_to(folder)] = read_json(path)
    pooled = dict(read(folder).pooled)
    for path in folder.glob("*/pooled.json"):
        pooled[path.parent.relative_to(folder)] = read_json(path)
    lines = [{"kind": "reference", **line} for _, line in sorted(references.items())]
    lines += [{"kind": "pooled", "env": str(env), **line} for env, line in sorted(pooled.items())]
    lines += [{"kind": "run", **run} for run in runs]
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    path = (folder if out is None else out) / FILE
    write_whole(path, text.encode())
    return path


def restore(specs: Iterable[RunSpec], out: Path) -> None:
    """Write runs that are in the archive alone, and their environments' references, back into their
    folders: each record last.
    """
    archive = read(out)
    for spec in specs:
        run = RunFolder(out, spec)
        reference = archive.references.get(spec.env_folder(Path()))
        file = spec.env_folder(out) / "reference.json"
        if reference is not None and not file.exists():
            write_json(file, reference)
        line = archive.runs.get(spec.folder(Path()))
        if line is not None and not run.path.exists():
            rows = "".join(json.dumps(row) + "\n" for row in line.pop("rows"))
            write_whole(run.progress, rows.encode())
            write_json(run.path / "spec.json", line["spec"])
            write_json(run.record, line)


def missing(specs: Iterable[RunSpec], out: Path) -> list[RunSpec]:
    """The runs that are finished neither in their folders nor in the archive; nothing is written.

    Raises:
        ValueError: what is there has other settings.
    """
    kept, found = read(out).runs, []
    for spec in specs:
        run, line = RunFolder(out, spec), kept.get(spec.folder(Path()))
        if line is not None and not run.path.exists():
            run.check_same(line["spec"])
        elif not run.finished():
            found.append(spec)
    return found


def _in_folders(out: Path) -> dict[Path, Line]:
    found = {}
    for path in out.glob("*/*/seed*/record.json"):
        record = read_record(path)
        rows = RunFolder(out, RunSpec.from_json(record["spec"])).rows()
        run = {**record, "rows": rows}
        check_run(f"{path} (delete the run's folder to make it again): it", run)
        found[path.parent.relative_to(out)] = run
    return found


def _folder(spec: Line) -> Path:
    if type(spec["seed"]) is not int:
        raise ValueError(f"seed must be an integer; got {shown(spec['seed'])}")
    return _inside(spec["env"]) / _inside(spec["agent"]) / f"seed{spec['seed']}"


def _inside(name: str) -> Path:
    """The folder of an environment or an agent: one plain name."""
    folder = slug(name)
    if folder in ("", ".", "..") or "\\" in folder or "\0" in folder:
        raise ValueError(f"names must be of environments and agents; got {shown(name)}")
    return Path(folder)
