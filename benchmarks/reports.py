"""What the benchmarks' reports share: tables and pictures out of lines."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from girsanov.scoreboard.storage.records import check_writable, write_json, write_whole

Line = dict[str, Any]

_BLOCK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.S)


def filled(here: Path, out: Path, **tables: str) -> str:
    """The report for ``out``: the committed one in ``here``, prose by hand, with its blocks
    ``<!-- table: NAME -->`` to ``<!-- end -->`` made anew.
    """

    def block(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n\n{tables[found[1]] or 'None yet.'}\n\n<!-- end -->"

    text = _BLOCK.sub(block, (here / "report.md").read_text())
    elsewhere = "*Made in another folder: its tables are told by the prose of the committed ones.*"
    return text if out.resolve() == here.resolve() else f"{elsewhere}\n\n{text}"


def write(out: Path, text: str, summary: Any = None, **figures: Any) -> None:
    """Write ``report.md``, figures as PNG, a summary as ``report.json``."""
    check_writable(out)
    for name, picture in figures.items():
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png")
        write_whole(out / f"{name}.png", buffer.getvalue())
    if summary is not None:
        write_json(out / "report.json", summary)
    write_whole(out / "report.md", text.encode())
    print(out / "report.md")


def figure(width: float, height: float, dpi: int = 100) -> Any:
    """An empty figure that needs no screen; colours are matplotlib's cycle, C0 to C9, in the order
    of the methods.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def draw_by_beta(curves: Mapping[float, Mapping[str, tuple[Any, Any]]], across: str) -> Any:
    """The paper's Figure 3: ``x`` and ``y`` of gradient norms, rewards and KL, one colour a
    temperature.
    """
    drawn = figure(12, 3.8)
    panels = drawn.subplots(1, 3)
    for i, (beta, found) in enumerate(curves.items()):
        for axes, (title, (x, y)) in zip(panels, found.items(), strict=True):
            axes.plot(x, y, color=f"C{i}", label=f"beta {beta:g}")
            axes.set(xlabel=across, title=title)
            axes.grid(alpha=0.2)
    panels[0].set_yscale("log")
    panels[2].set_yscale("symlog", linthresh=1)
    panels[2].legend(fontsize=8)
    return drawn


def table(heads: str | Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, ``heads`` apart by bars; nothing without rows."""
    heads = heads.split("|") if isinstance(heads, str) else heads
    lines = [list(row) for row in rows]
    both = [heads, ["---"] * len(heads), *lines] if lines else []
    return "\n".join("| " + " | ".join(line) + " |" for line in both)


def groups(lines: Iterable[Line], key: str | Callable[[Line], Any]) -> dict[Any, list[Line]]:
    """Lines by a field of their jobs or another key, in the order in which they come."""
    found: dict[Any, list[Line]] = {}
    for line in lines:
        found.setdefault(line["job"][key] if isinstance(key, str) else key(line), []).append(line)
    return found


def chosen(lines: Iterable[Line], **wanted: Any) -> list[Line]:
    """The lines whose jobs have all these values, by seed."""
    found = [x for x in lines if all(x["job"][key] == wish for key, wish in wanted.items())]
    return sorted(found, key=lambda line: line["job"]["seed"])


def median(lines: Iterable[Line], name: str, form: str = ".2f") -> str:
    """Of a figure over lines."""
    return f"{statistics.median(line[name] for line in lines):{form}}"


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Median and, in brackets, the least and the largest."""
    values = list(values)
    low, middle, high = (
        f"{v:{form}}" for v in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def pm(mean: float, error: float, form: str = "+.3f") -> str:
    """An estimate and its standard error."""
    return f"{mean:{form}} +- {error:{form.lstrip('+')}}"


def made_by(lines: Sequence[Line]) -> str:
    """How many runs, and on what."""
    torch = " and ".join(sorted({line["versions"]["torch"] for line in lines}))
    machines = " and ".join(sorted({line["hardware"]["cpu"] for line in lines}))
    return (
        f"{len(lines)} runs by torch {torch} on {machines}. The command, the versions and the\n"
        "seconds of each are in its line of `runs.jsonl`."
    )


def paired(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """Mean of ``one`` less ``two`` ``(seeds, paths)``, both on the same noises, and its standard
    error, which counts paths and seeds.
    """
    gaps = one - two
    seeds = gaps.mean(1).var(ddof=1) / len(gaps) if len(gaps) > 1 else 0.0
    mean = gaps.mean(0)
    return float(mean.mean()), float(np.sqrt(mean.var(ddof=1) / len(mean) + seeds))
