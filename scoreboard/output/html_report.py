"""The report as one HTML file that opens anywhere: tables that sort, the curves, the samples.

It asks for no other file and no network. The only code that a browser runs in it is the sorting
below: whatever a record says is text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 75rem; }
nav a { margin-right: 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #8886; padding: 0.3rem 0.7rem; text-align: left; }
td { white-space: nowrap; }
td:last-child { min-width: 18rem; white-space: normal; }
th { cursor: pointer; white-space: nowrap; }
th::after { content: " \\2195"; opacity: 0.4; }
th[aria-sort=ascending]::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending]::after { content: " \\2193"; opacity: 1; }
tbody tr:hover { background: #8882; }
figure { margin: 1.5rem 0; }
figure svg { background: white; height: auto; max-width: 100%; }
code { overflow-wrap: anywhere; }
"""
#: A click, or Enter, on a head sorts the table by the first number of each cell, else by its words.
_SCRIPT = """
const number = text => {
  const found = text.replaceAll(",", "").match(/^\\s*(-?\\d+(\\.\\d+)?(e[+-]?\\d+)?)/i);
  return found ? parseFloat(found[1]) : null;
};
const sort = head => {
  const table = head.closest("table"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map(row => [row.cells[column].textContent, row]);
  rows.sort(([a], [b]) => {
    const x = number(a), y = number(b);
    if (x === null && y === null) return (down ? -1 : 1) * a.localeCompare(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return down ? y - x : x - y;
  });
  for (const [, row] of rows) table.tBodies[0].append(row);
};
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(head); });
}
"""


def page(markdown: str, pictures: Mapping[str, str]) -> str:
    """The Markdown of a report as a page.

    Args:
        markdown: as ``markdown_report.markdown`` writes it.
        pictures: SVG by the path that the Markdown names it by; a picture that is not here is left
            out.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens, sections = parser.parse(markdown), list[str]()
    for token, following in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open" and token.tag == "h2":
            token.attrSet("id", f"part{len(sections)}")
            sections.append(_words(following.content))
    drawn: list[str] = []

    def image(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        svg = pictures.get(unquote(str(tokens[index].attrGet("src"))))
        if svg is None:
            return ""
        drawn.append(svg)
        return f"<figure>{_inline(svg, f'figure{len(drawn)}-', tokens[index].content)}</figure>"

    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    body = parser.renderer.render(tokens, parser.options, {})
    links = "\n".join(f'<a href="#part{i}">{escape(words)}</a>' for i, words in enumerate(sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<title>Report</title>
<style>{_STYLE}</style>
</head>
<body>
<nav>{links}</nav>
<main>
{body}</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _policy() -> str:
    """No code but ours, nothing from elsewhere."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'"
    )


def _words(text: str) -> str:
    """A heading without its marks of Markdown."""
    inline = MarkdownIt("commonmark", {"html": False}).parseInline(text)[0].children or []
    return "".join(token.content for token in inline)


def _inline(svg: str, prefix: str, label: str) -> str:
    """A drawing as an element of the page: without what belongs to a file of its own, and with
    names that no other drawing has.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def drawings(out: Path, pictures: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The pictures as SVG, by the paths that the report names them by."""
    paths = [path for named in pictures for path in named.values()]
    return {path: (out / path).with_suffix(".svg").read_text(encoding="utf-8") for path in paths}
