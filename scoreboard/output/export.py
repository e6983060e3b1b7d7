"""Finished runs as a flat table for spreadsheets and data frames: CSV or Parquet. Its scores are
those of the report.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...envs.extras import install_command
from ..storage import archive
from ..storage.files import write_whole
from ..storage.record_checks import told_of
from .scores import grouped, measured, refined

Line = dict[str, Any]
TABLES = ("runs", "curves")
#: Spreadsheets take a cell that begins so for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def export(
    out: Path,
    to: Path,
    table: str = "runs",
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Path:
    """Write the finished runs of a comparison as a table.

    Args:
        out: folder of the comparison, or of its archive.
        to: what to write; ``.csv``, or ``.parquet``, which needs ``girsanov[export]``.
        table: ``runs``, a line a run with its final evaluation; or ``curves``, a line an
            evaluation. Both begin with what the run was; its arguments are JSON. ``score`` is
            against the reference of the report: the bound, refined by the paths of the learnt
            policies, or the exact optimum. ``score_of_best`` is against the best J reached.
        on_stage: called with a word where the bound is refined first, as no report has done so.

    Returns:
        ``to``.

    Raises:
        ValueError: another suffix or table, no finished run, or no pyarrow for Parquet.
    """
    if to.suffix not in _WRITERS:
        raise ValueError(f"to (--to) must end in {' or '.join(_WRITERS)}; got {str(to)!r}")
    if table not in TABLES:
        raise ValueError(f"table must be one of {TABLES}; got {table!r}")
    records = archive.finished(out)
    if not records:
        raise ValueError(f"out must hold finished runs; found none under {str(out)!r}")
    with told_of(out):
        groups = grouped(records, "env")
        references = {env: refined(out, runs, True, on_stage) for env, runs in groups.items()}
        records = [measured(record, references[record["spec"]["env"]]) for record in records]
    lines = [
        {**_about(record), **row}
        for record in records
        for row in ([record["final"]] if table == "runs" else record["rows"])
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    write_whole(to, _WRITERS[to.suffix](columns, lines))
    return to


def _about(record: Line) -> Line:
    spec = record["spec"]
    return {
        "env": spec["env"],
        "agent": spec["agent"],
        "seed": spec["seed"],
        "budget": float(spec["budget"]["amount"]),
        "budget_unit": spec["budget"]["unit"],
        "temperature": record.get("temperature"),
        "horizon": record.get("horizon"),
        "access_class": record.get("access_class"),
        "env_kwargs": json.dumps(spec["env_kwargs"]),
        "agent_kwargs": json.dumps(spec["agent_kwargs"]),
    }


def _csv(columns: list[str], lines: list[Line]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows([{name: _cell(value) for name, value in line.items()} for line in lines])
    text = buffer.getvalue()
    # the mark tells spreadsheets what the bytes are, and disturbs others: only where it is needed
    return text.encode("utf-8" if text.isascii() else "utf-8-sig")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _parquet(columns: list[str], lines: list[Line]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            "to (--to) must end in .csv where pyarrow is not installed; for Parquet:"
            f" {install_command('export')}"
        ) from error
    found = {name: [line.get(name) for line in lines] for name in columns}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(found), buffer)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[list[str], list[Line]], bytes]] = {".csv": _csv, ".parquet": _parquet}
