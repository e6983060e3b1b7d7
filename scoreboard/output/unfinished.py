"""The runs of a comparison that a report lacks: those that failed, and those that are under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..storage.files import content_of, inside

#: Characters of an error that a report quotes at most.
_LONGEST = 300


def missing_from(out: Path) -> dict[str, list[Any]]:
    """Folders without a record: ``unfinished`` ones by name, and ``failed`` ones as a dict of
    ``run`` and ``error``, the last line of what its process has said (``error.txt``).
    """
    unfinished, failed = [], []
    for path in sorted(out.glob("*/*/seed*")):
        signs = [name for name in ("spec.json", "error.txt") if (path / name).is_file()]
        if (path / "record.json").is_file() or not signs:
            continue
        name = str(path.relative_to(out))
        if words := _last_words(inside(out, path / "error.txt")):
            failed.append({"run": name, "error": words})
        else:
            unfinished.append(name)
    return {"unfinished": unfinished, **({"failed": failed} if failed else {})}


def told(summary: dict[str, Any]) -> list[str]:
    """A paragraph of Markdown on each kind; none where no run is missing."""
    parts = []
    if failed := summary.get("failed"):
        lines = [f"- {run['run']}: {run['error']}" for run in failed]
        head = "**Failed** (the same command tries again; `error.txt` in the folder holds all):"
        parts.append("\n".join([head, "", *lines]))
    if summary["unfinished"]:
        names = ", ".join(summary["unfinished"])
        parts.append(f"**Not finished** (the same command continues): {names}.")
    return parts


def _last_words(path: Path) -> str:
    """The last line of a file, cut; nothing, where there is none or it says nothing."""
    try:
        lines = content_of(path).split("\n")
    except (ValueError, OSError):  # no file; no text
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    last = last.removeprefix("error: ")
    return last if len(last) <= _LONGEST else f"{last[:_LONGEST]}..."
