"""The report as a page: all of it in one file, and nothing from records but words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from finished_runs import comparison
from matplotlib.colors import to_rgb
from PIL import Image

from girsanov.scoreboard.output.html_report import page
from girsanov.scoreboard.plots import colours_of
from girsanov.scoreboard.report import report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:x) `b` **c** | d"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return comparison(tmp_path)


def test_tables_curves_samples_and_the_certificates_words_are_in_one_file(finished: Path) -> None:
    report(finished)
    found = _Page((finished / "report.html").read_text(encoding="utf-8"))
    words = " ".join("".join(found.words).split())
    assert "No policy is worth more than -1.000 (95% interval -1.200 to -0.800" in words
    assert "0.600 to 0.667 [0.400, 1.000]" in words and "PDE (3 seeds)" in words
    assert found.count("table") == 4 and found.count("figure") == 2 and found.count("svg") == 2
    assert [attrs["aria-label"] for tag, attrs in found.tags if tag == "svg"] == [
        *("learning curves", "samples")
    ]
    assert ("a", {"href": "#part0"}) in found.tags and "girsanov/Fake-v0" in words


def test_it_asks_for_nothing_and_runs_only_its_sorting(finished: Path) -> None:
    report(finished)
    text = (finished / "report.html").read_text(encoding="utf-8")
    found = _Page(text)
    for tag, attrs in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href"):
            where = attrs.get(name) or "#"
            assert where.startswith(("#", "data:image/png;base64,")), (tag, where)
        assert not any(name.startswith("on") for name in attrs)
    assert "@import" not in text and "url(http" not in text
    assert found.count("script") == 1
    (policy,) = (a["content"] for _, a in found.tags if "Security" in str(a.get("http-equiv")))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_drawings_share_no_names(finished: Path) -> None:
    report(finished)
    text = (finished / "report.html").read_text(encoding="utf-8")
    first, second = (set(re.findall(r'\bid="([^"]+)"', svg)) for svg in _drawings(text))
    assert len(first) > 50 and len(second) > 10 and not first & second
    for svg, names in zip(_drawings(text), (first, second), strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= names


def _drawings(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def test_what_records_say_is_text(finished: Path) -> None:
    for path in finished.rglob("record.json"):
        record = json.loads(path.read_text())
        record["command"] = record["access"] = record["access_class"] = EVIL
        record["hardware"]["cpu"] = record["versions"]["numpy"] = EVIL
        record["spec"]["env_kwargs"] = {EVIL: EVIL}
        (path.parent / "spec.json").write_text(json.dumps(record["spec"]))
        path.write_text(json.dumps(record))
    (finished / "Fake-v0" / "ppo" / "seed9").mkdir()
    (finished / "Fake-v0" / "ppo" / "seed9" / "error.txt").write_text("x")
    text = report(finished).read_text(encoding="utf-8")
    found = _Page((finished / "report.html").read_text(encoding="utf-8"))
    assert found.count("script") == 1 and found.count("img") == 0
    assert not [attrs for _, attrs in found.tags if "onerror" in attrs]
    assert all((a.get("href") or "#").startswith("#") for tag, a in found.tags if tag == "a")
    words = "".join(found.words)
    assert words.count("<script>alert(1)</script>") >= 5
    assert "<script>" not in text.replace("`train.py", "").split("- Command: ")[0]


def test_a_picture_that_is_not_there_is_left_out() -> None:
    text = "# Report\n\n![curves](a%2BX/b.png)\n"
    assert "<figure" not in page(text, {}) and "<figure" not in page(text, {"a%2BX/b.png": "<svg>"})
    assert "<figure" in page(text, {"a+X/b.png": "<svg></svg>"})
    assert '<h2 id="part0">a &amp; <code>b</code></h2>' in page("## a & `b`", {})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here")
def test_a_browser_runs_its_sorting_and_shows_its_curves(finished: Path, tmp_path: Path) -> None:
    report(finished)
    url = (finished / "report.html").as_uri()
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    shown = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True)
    heads = re.findall(r"<th\b[^>]*>", shown.stdout)
    assert heads and all('tabindex="0"' in head for head in heads)  # its script is let in
    picture = tmp_path / "page.png"
    shot = [f"--screenshot={picture}", "--window-size=1400,2600", url]
    subprocess.run([*command, *shot], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for agent in ("pde", "ppo"):
        colour = (np.array(to_rgb(colours_of([agent])[agent])) * 255).round()
        assert (np.abs(pixels - colour).max(1) < 3).sum() > 100, agent
