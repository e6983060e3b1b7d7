"""What the benchmarks' reports share: tables and pictures out of lines."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from girsanov.scoreboard.output import tables
from girsanov.scoreboard.storage.records import write_whole

Line = dict[str, Any]

_BLOCK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.S)


def write(here: Path, out: Path, told: Mapping[str, Any]) -> None:
    """Write the report to ``out``: the one in ``here``, prose by hand, with its blocks ``<!--
    table: NAME -->`` to ``<!-- end -->`` made anew of the texts, and figures as PNG.
    """
    text = (here / "report.md").read_text()
    blocks = {name: value for name, value in told.items() if isinstance(value, str)}
    if lost := blocks.keys() ^ set(_BLOCK.findall(text)):
        raise ValueError(f"{here / 'report.md'} must have a block for each table; not {lost}")
    for name in told.keys() - blocks.keys():
        buffer = io.BytesIO()
        told[name].savefig(buffer, format="png")
        write_whole(out / f"{name}.png", buffer.getvalue())

    def block(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n\n{blocks[found[1]] or 'None yet.'}\n\n<!-- end -->"

    text = _BLOCK.sub(block, text)
    if out.resolve() != here.resolve():
        elsewhere = (
            "Made in another folder: its tables are told by the prose of the committed ones."
        )
        text = f"*{elsewhere}*\n\n{text}"
    write_whole(out / "report.md", text.encode())
    print(out / "report.md")


# --- lines


def groups(lines: Iterable[Line], field: str) -> dict[Any, list[Line]]:
    """Lines by a field of their jobs, in the order in which they come."""
    found: dict[Any, list[Line]] = {}
    for line in lines:
        found.setdefault(line["job"][field], []).append(line)
    return found


# --- words


def table(heads: str | Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, ``heads`` apart by bars; nothing without rows."""
    rows = list(rows)
    heads = heads.split("|") if isinstance(heads, str) else heads
    return tables.table(heads, rows) if rows else ""


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Median and, in brackets, the least and the largest."""
    values = list(values)
    ends = (min(values), statistics.median(values), max(values))
    low, middle, high = (f"{value:{form}}" for value in ends)
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def median(lines: Iterable[Line], name: str, form: str = ".2f") -> str:
    """Of a figure over lines."""
    return f"{statistics.median(line[name] for line in lines):{form}}"


def made_by(lines: Sequence[Line]) -> str:
    """How many runs, and on what."""
    torch = " and ".join(sorted({line["versions"]["torch"] for line in lines}))
    machines = " and ".join(sorted({line["hardware"]["cpu"] for line in lines}))
    return (
        f"{len(lines)} runs by torch {torch} on {machines}. The command, the versions and the\n"
        "seconds of each are in its line of `runs.jsonl`."
    )
