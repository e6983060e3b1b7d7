"""Pages that people can read, and whose figures are those of the committed results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from girsanov.scoreboard.plots import name_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
sys.path.insert(0, str(DOCS))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_figures_are_those_of_the_committed_results(page: Path) -> None:
    """``python docs/generate.py`` mends it."""
    from generate import FIGURES, made

    text = page.read_text(encoding="utf-8")
    assert made(text, FIGURES) == text


def test_films_are_those_that_the_script_makes() -> None:
    from films import FILMS, KEPT

    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    assert list(kept) == list(FILMS)
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "environments").glob("*"))
    for name, film in FILMS.items():
        assert {field: kept[name][field] for field in film._fields} == film._asdict()
        words = f"steered by {name_of(film.agent)} after {film.episodes:,} episodes"
        assert f"![Without control, and {words}](../films/{name}.gif)" in text
        assert kept[name]["objective"][1] > kept[name]["objective"][0]
        with Image.open(DOCS / "films" / f"{name}.gif") as gif:
            assert gif.n_frames == 40 and gif.size == (600, 324)  # type: ignore[attr-defined]


@pytest.mark.slow  # makes every environment; .ci/run does it too
def test_what_is_generated_is_fresh() -> None:
    """Facts and arguments of environments, the gallery and the layout's picture with it."""
    for needed in ("mujoco", "diffusers"):
        pytest.importorskip(needed)
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"stale: {done.stdout}\n{done.stderr[-2000:]}"


def test_a_stale_figure_would_be_seen() -> None:
    from generate import made

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert made(readme) == readme
    table = readme[readme.index("<!-- table: digits -->") : readme.index("<!-- end -->")]
    figure = re.search(r"\d\.\d\d", table)
    assert figure is not None
    changed = readme.replace(table, table.replace(figure[0], "0.12", 1))
    assert changed != readme and made(changed) == readme


def test_an_unknown_block_is_an_error() -> None:
    from generate import made

    with pytest.raises(ValueError, match="a block must be one of .*; got <!-- tables: digits -->"):
        made("<!-- tables: digits -->\n<!-- end -->")


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_lines_are_short(page: Path) -> None:
    """Tables, commands and marks can't be broken; README's tables are short all the same."""
    text = without_code(page.read_text(encoding="utf-8"))
    free = ("<!--",) if page.name == "README.md" else ("<!--", "|")
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith(free)]
    assert long == []


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_installed_from_an_index_that_has_it_not(page: Path) -> None:
    """``pip install girsanov`` fails until there is a release: a checkout is installed."""
    assert not re.search(r"pip install \S*girsanov", page.read_text(encoding="utf-8"))


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_page_is_in_the_site() -> None:
    """Each folder's first page names the others in its table of contents."""
    for index in DOCS.rglob("index.md"):
        if "_build" in index.parts or index.parent == DOCS:
            continue
        named = "\n".join(re.findall(r"```\{toctree\}(.*?)```", index.read_text("utf-8"), re.S))
        pages = {p.stem for pattern in ("*.md", "*.rst") for p in index.parent.glob(pattern)}
        assert pages - {"index"} == pages & set(named.split())


def test_every_public_name_is_in_the_reference() -> None:
    import girsanov

    text = (DOCS / "reference" / "public.md").read_text(encoding="utf-8")
    assert [name for name in girsanov.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_every_card_has_its_picture_and_its_page() -> None:
    from gallery import GALLERY

    for family in GALLERY.values():
        for picture, page, _ in family.values():
            assert (DOCS / "films" / picture).is_file() and (
                DOCS / "environments" / f"{page}.md"
            ).is_file()
