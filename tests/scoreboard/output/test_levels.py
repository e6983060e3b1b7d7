"""What a score costs in all environments: each cell of the table, each mark of the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finished_runs import row, run
from matplotlib.colors import to_hex

from girsanov.scoreboard.intervals import cost_of_levels
from girsanov.scoreboard.output import levels, levels_picture
from girsanov.scoreboard.plots import colours_of
from girsanov.scoreboard.report import report
from girsanov.train import main

EASY, HARD = "girsanov/Fake-v0#d 2, beta 2", "girsanov/Fake-v0#d 10, beta 2"


def _line(text: str, start: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Three runs of PDE and of PPO where it is easy; where it is hard, one of SAC, too."""
    for seed, end in enumerate((1.0, 1.0, 0.4)):  # at half of it after 50 queries
        run(tmp_path, "pde", seed, [0.0, end / 2, end], 10.0, 200.0, (3,), EASY)
        run(tmp_path, "ppo", seed, [0.0, 0.8, 0.8], 40.0, 200.0, (3,), EASY)
        run(tmp_path, "pde", seed, [0.0, end / 10, end / 4], 10.0, 200.0, (3,), HARD)
        run(tmp_path, "ppo", seed, [0.0, 0.6 * end, 0.9 * end], 40.0, 200.0, (3,), HARD)
    run(tmp_path, "sac", 0, [0.0, 0.9], 5.0, 200.0, (3,), HARD)
    return tmp_path


def test_a_table_a_level_over_all_environments(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--out", str(finished), "--levels", "0.5", "0.8"]) == 0
    text = capsys.readouterr().out
    assert text.index("## What a score costs") < text.index("### Score 0.5")
    assert text.index("### Score 0.5") < text.index("### Score 0.8") < text.index("## girsanov/F")
    assert text.count("| environment | PDE | PPO |") == 2  # SAC has no curve anywhere
    easy, hard = _line(text, "d 2, beta 2"), _line(text, "d 10, beta 2")
    never = "never in 100: 0 of 3 runs reached it"
    assert easy == [
        ["d 2, beta 2", "50 (5.0 s): 2 of 3 runs reached it", "31 (12.5 s)"],
        ["d 2, beta 2", "80 (8.0 s): 2 of 3 runs reached it", "50 (20.0 s)"],
    ]
    assert hard == [
        ["d 10, beta 2", never, "42 (16.7 s): 2 of 3 runs reached it"],
        ["d 10, beta 2", never, "83 (33.3 s): 2 of 3 runs reached it"],
    ]
    summary = json.loads((finished / "report.json").read_text())
    assert summary["pictures"] == {"levels": "levels.png"}
    (costs, _) = summary["environments"][0]["levels"]
    assert costs["level"] == 0.5
    assert costs["agents"]["pde"]["reward_queries"] == {
        "median": 50.0,
        "each": [50.0, 50.0, None],
        "ends": [100.0, 100.0, 100.0],
    }
    assert "![levels](levels.png)" in text
    assert (finished / "levels.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert 'aria-label="levels"' in page and "</svg>" in (finished / "levels.svg").read_text()
    assert ">What a score costs</a>" in page


def test_nothing_of_it_where_it_was_not_asked_for_or_there_is_one_environment(
    finished: Path, tmp_path: Path
) -> None:
    text = report(finished).read_text()
    assert "What a score costs" not in text and not (finished / "levels.png").exists()
    assert '"levels"' not in (finished / "report.json").read_text()
    alone = tmp_path / "alone"
    run(alone, "pde", 0, [0.0, 0.5, 1.0], 10.0, 200.0, (3,))
    assert "What a score costs" not in report(alone, levels=(0.5,)).read_text()
    assert not (alone / "levels.png").exists()


def test_without_any_curve_there_is_no_picture(tmp_path: Path) -> None:
    for env in (EASY, HARD):
        run(tmp_path, "sac", 0, [0.0, 0.9], 5.0, 200.0, (3,), env)
    text = report(tmp_path, levels=(0.5,)).read_text()
    assert "What a score costs" not in text and not (tmp_path / "levels.png").exists()


def _environments(**compared: str) -> list[dict[str, Any]]:
    """Two with every cost; an agent that is in one of them alone."""

    def rows(*scores: float) -> list[dict[str, Any]]:
        spent = {"model_evaluations": 1000, "cpu_seconds": 2}
        xs = [100 * i / (len(scores) - 1) for i in range(len(scores))]
        return [
            row(x, score, x) | {name: by * x for name, by in spent.items()}
            for x, score in zip(xs, scores, strict=True)
        ]

    there = {
        "mine:A": {"pde": [rows(0, 0.5, 1), rows(0, 0.3, 0.4), rows(0, 1, 1)]},
        "girsanov/B-v0": {"pde": [rows(0, 0.1, 0.2)], "sac": [rows(0.6, 0.7, 0.8)]},
    }
    return [
        {
            "env": env,
            "compared": compared.get(env, "score"),
            "agents": [{"agent": agent} for agent in runs],
            "levels": cost_of_levels(runs, "score", (0.5, 0.9)),
        }
        for env, runs in there.items()
    ]


def test_every_cost_that_is_known_is_told() -> None:
    text = "\n".join(levels.told({"environments": _environments()}))
    assert "(in brackets model evaluations and CPU seconds)" in text
    assert _line(text, "mine:A")[0][1:] == ["50 (50,000; 100.0 s): 2 of 3 runs reached it", ""]
    assert _line(text, "B-v0")[0][1:] == ["never in 100: 0 of 1 runs reached it", "0 (0; 0.0 s)"]


def test_a_level_is_of_one_quantity() -> None:
    mixed = _environments(**{"mine:A": "objective"})
    text = "\n".join(levels.told({"environments": mixed}))
    assert "### Score 0.9" in text and _line(text, "mine:A")[0][1:] == ["no score", ""]
    assert _line(text, "B-v0")[0][1:] == ["never in 100: 0 of 1 runs reached it", "0 (0; 0.0 s)"]
    figure = levels_picture.draw(mixed)
    assert figure is not None
    drawn = [y for axes in figure.axes for line in axes.lines for y in line.get_ydata()]
    assert drawn and min(drawn) > 0.5  # nothing of the first
    alike = _environments(**{"mine:A": "objective", "girsanov/B-v0": "objective"})
    text = "\n".join(levels.told({"environments": alike}))
    assert "### Objective 0.9" in text
    assert _line(text, "mine:A")[0][1:] == ["50 (50,000; 100.0 s): 2 of 3 runs reached it", ""]


def test_the_picture_shows_medians_ranges_and_who_never_is_there() -> None:
    environments = _environments()
    figure = levels_picture.draw(environments)
    assert figure is not None and len(figure.axes) == 6  # two levels by three costs
    figure.canvas.draw()
    names = [axes.get_xlabel() for axes in figure.axes[3:]]
    assert names == ["reward queries", "model evaluations", "CPU seconds of training"]
    assert [axes.get_title("left") for axes in figure.axes[::3]] == ["Score 0.5", "Score 0.9"]
    first = figure.axes[0]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["mine:A", "B-v0"]
    colours = colours_of(["pde", "sac"])

    def marks(axes: Any, marker: str) -> list[tuple[str, float, int, float]]:
        return [
            (to_hex(line.get_color()).upper(), float(x), round(float(y)), line.get_markersize())
            for line in axes.lines
            if line.get_marker() == marker
            for x, y in line.get_xydata()
        ]

    assert marks(first, "o") == [(colours["pde"], 50.0, 0, 6.0), (colours["sac"], 0.0, 1, 6.0)]
    # the run of A that never is there, and PDE in B
    assert marks(first, ">") == [(colours["pde"], 100.0, 0, 4.0), (colours["pde"], 100.0, 1, 7.0)]
    lines = [line.get_xdata().tolist() for line in first.lines if line.get_marker() == "None"]
    assert lines == [[25.0, 100.0], [100.0, 100.0], [0.0, 0.0]]
    hollow = [line for line in first.lines if line.get_marker() == ">"]
    assert {line.get_markerfacecolor() for line in hollow} == {"white"}
    # who is there from the start has spent nothing, which a logarithm can not show
    assert first.get_xscale() == "symlog" and first.get_xlim()[0] == 0
    dear = figure.axes[5]
    assert (
        marks(dear, "o") == [(colours["pde"], 90.0 * 2, 0, 6.0)] and dear.get_xscale() != "linear"
    )
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["PDE", "SAC", "never within this"]
