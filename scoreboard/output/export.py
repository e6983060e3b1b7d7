"""Finished runs as a flat table for spreadsheets and data frames: CSV or Parquet."""

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

Line = dict[str, Any]
TABLES = ("runs", "curves")
#: Spreadsheets take a cell that begins so for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def export(out: Path, path: Path, table: str = "runs") -> Path:
    """Write the finished runs of a comparison as a table.

    Args:
        out: folder of the comparison, or of its archive.
        path: what to write; ``.csv``, or ``.parquet``, which needs ``girsanov[export]``.
        table: ``runs``, a line a run with its final evaluation; or ``curves``, a line an
            evaluation. Both begin with what the run was; its arguments are JSON.

    Returns:
        ``path``.

    Raises:
        ValueError: another suffix or table, no finished run, or no pyarrow for Parquet.
    """
    if path.suffix not in _WRITERS:
        raise ValueError(f"path must end in {' or '.join(_WRITERS)}; got {str(path)!r}")
    if table not in TABLES:
        raise ValueError(f"table must be one of {TABLES}; got {table!r}")
    records = archive.finished(out)
    if not records:
        raise ValueError(f"out must hold finished runs; found none under {str(out)!r}")
    lines = [
        {**_about(record), **row}
        for record in records
        for row in ([record["final"]] if table == "runs" else record["rows"])
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    write_whole(path, _WRITERS[path.suffix](columns, lines))
    return path


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
            "path must end in .csv where pyarrow is not installed; for Parquet:"
            f" {install_command('export')}"
        ) from error
    found = {name: [line.get(name) for line in lines] for name in columns}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(found), buffer)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[list[str], list[Line]], bytes]] = {".csv": _csv, ".parquet": _parquet}
