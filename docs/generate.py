"""Make again what pages hold between ``<!-- table: digits -->`` and ``<!-- end -->``.

    python docs/generate.py            # rewrite README.md and docs/ in place
    python docs/generate.py --check    # say which are stale, change nothing

Figures come from committed results (``tables.py``), facts about environments from the registry
and the docstrings (``gallery.py``), the picture of the layout from the folders (``layout.py``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import gallery  # noqa: E402
import layout  # noqa: E402
import tables  # noqa: E402

ROOT = DOCS.parent
PICTURE = DOCS / "layout.svg"
MAKERS: dict[str, Callable[..., str]] = {
    "table": tables.table,
    "attribution": tables.attribution,
    "forms": tables.forms,
    "by_hand": tables.by_hand,
    "known": tables.known,
    "robots": tables.robots,
    "films": tables.films,
    "environment": gallery.facts,
    "arguments": gallery.arguments,
    "gallery": gallery.cards,
}
_BLOCK = re.compile(r"(<!-- (\w+)(?:: ([^\n]+?))? -->\n).*?(<!-- end -->)", re.S)


def pages() -> list[Path]:
    """README.md, TUNING.md and every page of the site."""
    found = (p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
    return [ROOT / "README.md", ROOT / "baselines" / "TUNING.md", *sorted(found)]


#: What needs no environment, only committed files.
FIGURES = ("table", "attribution", "forms", "by_hand", "known", "robots", "films")


def made(text: str, only: Collection[str] = tuple(MAKERS)) -> str:
    """A page with its blocks made anew: all of them, or those of some makers."""

    def block(match: re.Match[str]) -> str:
        opening, maker, names, closing = match.groups()
        if maker not in MAKERS:
            raise ValueError(f"a block must be one of {sorted(MAKERS)}; got {opening.strip()}")
        if maker not in only:
            return match[0]
        return f"{opening}\n{MAKERS[maker](*(names.split() if names else ()))}\n\n{closing}"

    return _BLOCK.sub(block, text)


def main() -> int:
    """Rewrite, or with ``--check`` only tell."""
    fresh = {page: made(page.read_text(encoding="utf-8")) for page in pages()}
    fresh[PICTURE] = layout.picture()
    stale = [
        page
        for page, text in fresh.items()
        if not page.exists() or page.read_text(encoding="utf-8") != text
    ]
    for page in stale:
        print(page.relative_to(ROOT))
        if "--check" not in sys.argv:
            page.write_text(fresh[page], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
