"""What benchmarks share that go on where they were killed: one JSON line a finished piece, and the
command line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line of JSON in a single write, so that two processes may share the file; end a torn
    one before it.
    """
    with path.open("a+b") as file:
        torn = (
            file.seek(0, os.SEEK_END) > 0
            and file.seek(-1, os.SEEK_END) >= 0
            and file.read() != b"\n"
        )
        file.write(
            b"\n" * torn + json.dumps(line, allow_nan=False).encode() + b"\n"
        )  # one write: shorter than the buffer


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file that need not be there; one torn by a kill is left out."""
    found = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def command_line(
    name: str,
    doc: str | None,
    run: Callable[..., Any],
    report: Callable[..., Any],
    arguments: Sequence[str] | None,
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
