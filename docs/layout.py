"""The picture of the layout, drawn from the folders: who may import whom."""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Left edge, top and width of each folder's box; arrows go down.
_BOXES = {
    "scoreboard": (300, 90, 360),
    "baselines": (40, 190, 420),
    "agents": (500, 190, 420),
    "envs": (40, 0, 880),  # below whatever is above it
}
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
    bottoms: dict[str, int] = {}
    for name, (x, y, width) in _BOXES.items():
        y = y or max(bottoms.values()) + _BELOW
        lines = [_summary(ROOT / name), *_rooms(ROOT / name)]
        height = 34 + _LINE * len(lines)
        bottoms[name] = y + height
        parts.append(_box(x, y, width, f"{name}/", lines, height))
    floor = max(bottoms["baselines"], bottoms["agents"]) + _BELOW - 2
    parts += [
        _arrow(480, 68, 480, 88),
        _arrow(400, bottoms["scoreboard"], 250, 188),
        _arrow(560, bottoms["scoreboard"], 710, 188),
        _arrow(460, 220, 498, 220),
        _arrow(250, bottoms["baselines"], 250, floor),
        _arrow(710, bottoms["agents"], 710, floor),
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
    first = " ".join((text or "").split("\n\n")[0].split())
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
