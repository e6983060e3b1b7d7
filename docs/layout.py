"""The picture of the layout, drawn from the folders: who may import whom."""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Rows of folders from above, each with its box's left edge and width; arrows go down.
_ROWS = [
    {"scoreboard": (300, 360)},
    {"baselines": (40, 420), "agents": (500, 420)},
    {"envs": (40, 880)},
]
_BELOW = 34
_LINE = 18
_BESIDE = [
    "tests/: mirrors the folders",
    "benchmarks/: scripts, and results/",
    "docs/: this site",
    ".ci/: what a change must pass",
]


def picture() -> str:
    """The whole picture as SVG."""
    parts = [
        _box(300, 20, 360, "train.py", ["the command line and nothing else"], 48),
        _box(690, 20, 230, "beside the package", _BESIDE, 112),
    ]
    tops: dict[str, int] = {}
    bottoms: dict[str, int] = {}
    y = 102
    for row in _ROWS:
        for name, (x, width) in row.items():
            lines = [_summary(ROOT / name), *_rooms(ROOT / name)]
            height = 34 + _LINE * len(lines)
            tops[name], bottoms[name] = y, y + height
            parts.append(_box(x, y, width, f"{name}/", lines, height))
        y = max(bottoms.values()) + _BELOW
    parts += [
        _arrow(480, 68, 480, tops["scoreboard"] - 2),
        _arrow(400, bottoms["scoreboard"], 250, tops["baselines"] - 2),
        _arrow(560, bottoms["scoreboard"], 710, tops["agents"] - 2),
        _arrow(460, tops["agents"] + 30, 498, tops["agents"] + 30),
        _arrow(250, bottoms["baselines"], 250, tops["envs"] - 2),
        _arrow(710, bottoms["agents"], 710, tops["envs"] - 2),
    ]
    height = bottoms["envs"] + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}"'
            ' font-family="sans-serif" font-size="13">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
            f'<rect width="960" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _rooms(folder: Path) -> list[str]:
    rooms = sorted(path.parent for path in folder.glob("*/__init__.py"))
    return [f"{room.name}/: {_summary(room)}" for room in rooms]


def _summary(folder: Path) -> str:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    first = " ".join((text or "").split("\n\n")[0].replace("``", "").split())
    first = first.split(". ")[0].split(": ")[0].rstrip(".")
    return first if len(first) < 72 else first[:70].rsplit(" ", 1)[0] + " ..."


def _box(x: int, y: int, width: int, title: str, lines: list[str], height: int) -> str:
    texts = [f'<text x="{x + 12}" y="{y + 21}" font-weight="bold">{escape(title)}</text>']
    for i, line in enumerate(lines):
        texts.append(
            f'<text x="{x + 12}" y="{y + 41 + _LINE * i}" fill="#333" font-size="12">'
            f"{escape(line)}</text>"
        )
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#eef3fb"'
    return "\n".join([f'{frame} stroke="#5578a8"/>', *texts])


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#555" stroke-width="1.5"'
    return f'{line} marker-end="url(#tip)"/>'
