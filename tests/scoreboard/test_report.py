import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import comparison
from finished_runs import row as _row
from finished_runs import run as _run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from girsanov.envs.certificates import Certificate
from girsanov.scoreboard import intervals, plots
from girsanov.scoreboard.report import report
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage.files import printable
from girsanov.scoreboard.storage.records import RunFolder


def words_of(path: Path) -> str:
    """A report whose prose is not broken into lines."""
    return re.sub(r"(?<=\S)\n(?:  )?(?=[^\s|#!*-])", " ", path.read_text())


def test_a_closer_certificate_is_told(finished: Path) -> None:
    for path in finished.rglob("record.json"):
        record = json.loads(path.read_text())
        closer = Certificate(-1.2, 0.05, -1.3, -1.1, 70.0, 4 * 4096, 4)
        record["reference"]["by_start"] = {**closer._asdict(), "certified": True}
        path.write_text(json.dumps(record))
    text = words_of(report(finished))
    assert (
        "From given starts, which no policy chooses, no more than -1.200 (-1.300 to -1.100; 4"
        " starts, 70 of 4,096" in text
    )


def _cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return comparison(tmp_path)


def test_table_and_differences(finished: Path) -> None:
    text = words_of(report(finished))
    pde = _cells(text, "PDE (")
    assert pde[0] == "PDE (3 seeds)"
    # against the bound -1, and against the best J of -1.3: 0.6 / 0.9
    assert pde[1] == "0.600 to 0.667 [0.400, 1.000] (best)"
    assert text.count("(best)") == 2 and "1.000 for the best run whatever it is worth" in text
    assert pde[5:] == ["3 of 3", "5,000", "100", "10.0", "what pde needs"]
    assert _cells(text, "pre-trained")[:3] == ["pre-trained", "0.000", "-4.000"]
    assert _cells(text, "PDE - PPO") == [
        "PDE - PPO",
        "0.200 [0.200, 0.200]",  # the seeds' spread is shared
        "too few seeds",
    ]
    assert "-1.000 (95% interval -1.200 to -0.800; 200 of 1000 uncontrolled paths, 20.0%" in text
    assert (
        "Budget: 100 reward queries for each run" in text and "Command: `train.py compare`" in text
    )


def test_one_core_is_no_cores(finished: Path) -> None:
    for cores, words in ((1, ", 1 core, "), (2, ", 2 cores, ")):
        for path in finished.rglob("record.json"):
            record = json.loads(path.read_text())
            record["hardware"] |= {"cores": cores, "gpu": None}
            path.write_text(json.dumps(record))
        assert words in words_of(report(finished))


def test_equal_cost_is_read_off_the_curves(finished: Path) -> None:
    report(finished)
    (env,) = json.loads((finished / "report.json").read_text())["environments"]
    seconds = next(line for line in env["equal_cost"] if line["unit"] == "seconds")
    assert seconds["amount"] == 10.0
    assert seconds["agents"]["pde"]["iqm"] == pytest.approx(0.6)
    assert seconds["agents"]["ppo"]["iqm"] == pytest.approx(
        (0.05 + 0.1 + 0.3) / 3
    )  # half way to its second point


def test_success_at_equal_cost(finished: Path) -> None:
    for path in finished.rglob("progress.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["success"] = row["reward_queries"] / 200
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = words_of(report(finished))
    assert [cell.split("; ")[1] for cell in _cells(text, "10.0 seconds")[1:]] == [
        "50% succeed",
        "12% succeed",
    ]
    assert _cells(text, "5,000 env steps")[2].startswith("0.400 [") and _cells(
        text, "5,000 env steps"
    )[2].endswith("; 50% succeed")


def test_success_at_the_bound_stands_beside_that_of_the_agents(finished: Path) -> None:
    def reference(**changes: Any) -> None:
        for path in finished.rglob("record.json"):
            record = json.loads(path.read_text())
            record["reference"] |= {"success": {"mean": 0.1, "stderr": 0.01}}
            record["reference"]["certificate"] |= changes
            record["final"] |= {"success": 0.5, "success_stderr": 0.01}
            path.write_text(json.dumps(record))

    assert "uccess" not in words_of(report(finished))  # the problem has no word for it
    reference(success={"mean": 0.925, "low": 0.881, "high": 0.95})
    text = words_of(report(finished))
    assert "- Success at the bound: 92.5% (95% interval 88.1% to 95.0%)" in text
    assert _cells(text, "pre-trained")[5] == "0.100"
    at_the_bound = ["at the bound", "1.000", "-1.000", "", "", "0.925 [0.881, 0.950]"]
    assert _cells(text, "at the bound")[:6] == at_the_bound
    assert _cells(text, "PDE (")[5] == "0.500 [0.500, 0.500]"
    reference(success=None)  # of before
    text = words_of(report(finished))
    assert "at the bound" not in text and _cells(text, "pre-trained")[5] == "0.100"
    reference(ess=12.0)
    text = words_of(report(finished))
    assert "- Success at the bound is not known, as no bound stands that would tell it." in text
    assert "| at the bound" not in text


def test_nothing_is_read_off_a_line_between_two_points(finished: Path) -> None:
    for seed in range(3):  # cheaper than the others, and dearer
        _run(finished, "quick:train", seed, [0.0, 0.35], 5.0, 200.0, (1, 2, 2))
        _run(finished, "slow:train", seed, [0.0, 0.9], 100.0, 200.0, (1, 2, 2))
    text = words_of(report(finished))
    (heads,) = [line for line in text.splitlines() if line.startswith("| at |")]
    assert heads == "| at | PDE | PPO | quick:train | slow:train |"
    assert _cells(text, "10.0 seconds")[3:] == ["0.350 [0.350, 0.350]", "no curve"]
    assert "quick:train, slow:train: no curve, as it was measured before and after" in text
    assert "| to be as good as | PDE | PPO |\n" in text
    assert _cells(text, "quick:train: 0.350")[1:] == ["2,187; 4.4 s", "never"]


def test_without_any_curve_there_are_no_such_tables(tmp_path: Path) -> None:
    _run(tmp_path, "quick:train", 0, [0.0, 0.35], 5.0, 200.0, (1, 2, 2))
    _run(tmp_path, "slow:train", 0, [0.0, 0.9], 100.0, 200.0, (1, 2, 2))
    text = words_of(report(tmp_path))
    assert "at equal cost" not in text and "as good as" not in text


def test_a_learner_without_a_curve_is_a_diamond_and_the_first_evaluation_has_a_band() -> None:
    rows = [_row(x, score, x) for x, score in ((0, 0.0), (5, 0.4), (10, 0.5))]
    runs = {"pde": [rows], "own:train": [[rows[0], rows[2]]]}
    axes = plots.learning_curves(runs, "score", "t", {"pre-trained": 0.1}).axes[0]
    (alone,) = [line for line in axes.lines if line.get_label() == "own:train"]
    assert alone.get_marker() == "D" and alone.get_xydata().tolist() == [[500.0, 0.5]]
    (band,) = axes.patches
    low = band.get_y() if hasattr(band, "get_y") else band.get_xy()[:, 1].min()
    assert low == pytest.approx(0.1 - 1.96 * 0.01)
    assert not plots.learning_curves(runs, "score", "t").axes[0].patches


def test_the_cost_of_anothers_score_is_a_median_over_seeds(finished: Path) -> None:
    text = words_of(report(finished))
    # pde's three seeds are at 0.3, the median end of ppo's, after 50, 37.5 and 18.75 episodes; of
    # ppo's own one never is
    assert _cells(text, "PPO: 0.300") == ["PPO: 0.300", "1,875; 3.8 s", "5,000; 40.0 s"]
    assert _cells(text, "PDE: 0.500") == ["PDE: 0.500", "5,000; 10.0 s", "never"]
    assert "score 0." not in text


def test_the_cost_of_a_score_is_told_if_asked_for(finished: Path) -> None:
    text = words_of(report(finished, levels=(0.24, 0.99)))
    # the median seeds: 0.4 after 50 episodes; 0.2 after 50 and 0.3 after 100
    assert _cells(text, "score 0.240")[1:] == ["1,500; 3.0 s", "3,500; 28.0 s"]
    assert _cells(text, "score 0.990")[1:] == ["never", "never"]
    for wrong in ("0.9", (float("nan"),), ("half",)):
        with pytest.raises(ValueError, match="levels must be"):
            report(finished, levels=wrong)


def test_pictures_are_drawn_and_logged(finished: Path) -> None:
    for _ in range(2):  # a second report replaces the first
        report(finished)
    for name in ("learning_curves", "samples"):
        assert (finished / "Fake-v0" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (finished / "Fake-v0" / f"{name}.svg").read_bytes()
    events = EventAccumulator(str(finished / "Fake-v0"))
    events.Reload()
    assert events.Tags()["images"] == ["report/learning_curves", "report/samples"]
    assert len(list((finished / "Fake-v0").glob("events*"))) == 1


def test_nothing_uncertified_looks_certified(tmp_path: Path) -> None:
    _run(tmp_path, "sac", 0, [None, None, None], 10.0, 12.0, (3,))
    text = words_of(report(tmp_path))
    assert (
        "**Not certified**: only 12.0 of 1000" in text
        and "no policy is worth more than" not in text
    )
    assert (
        _cells(text, "SAC (")[1] == "not certified; at most 1.000"
        and _cells(text, "SAC (")[5] == "not certified"
    )
    assert _cells(text, "pre-trained")[1] == ""
    assert "### Objective at equal cost" in text
    assert not (tmp_path / "Fake-v0" / "samples.png").exists()  # three numbers are no picture


def test_a_certified_bound_that_leaves_nothing_to_gain_is_not_called_uncertified(
    tmp_path: Path,
) -> None:
    _run(tmp_path, "sac", 0, [None, None], 10.0, 200.0, (1, 2, 2))
    (path,) = tmp_path.rglob("record.json")
    record = json.loads(path.read_text())
    record["reference"]["certificate"] |= {"bound": -3.9, "low": -4.1, "high": -3.7}
    record["final"]["objective"] = -3.95
    path.write_text(json.dumps(record))
    assert _cells(words_of(report(tmp_path)), "SAC (")[1] == "nothing to gain"


def test_a_policy_above_the_bound_refutes_it_and_no_score_exceeds_one(finished: Path) -> None:
    _run(finished, "pi-ft", 0, [0.0, 1.5], 10.0, 200.0, (1, 2, 2))  # J = 0.5, the bound -1
    text = words_of(report(finished))
    assert "**Refuted**: PI-FT is worth 0.500 (s.e. 0.010), more than 3 standard errors" in text
    assert "**No bound stands**" in text
    assert _cells(text, "PI-FT (")[1] == "refuted; at most 1.000"
    assert _cells(text, "PDE (")[1] == "refuted; at most 0.400 [0.267, 0.600]"  # 1.8 of 4.5
    (env,) = json.loads((finished / "report.json").read_text())["environments"]
    assert env["compared"] == "objective"


def test_the_winner_of_an_access_class_is_bold_and_costs_are_told_where_known(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "FEWEST", 3)
    text = words_of(report(finished))
    assert "**0.6" not in text and "access class |" not in text  # records of before
    for path in finished.rglob("record.json"):
        record = json.loads(path.read_text())
        record["access_class"] = "interaction"
        record["final"] |= {"model_evaluations": 7000, "cpu_seconds": 12.5}
        path.write_text(json.dumps(record))
    for path in finished.rglob("progress.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row |= {
                "model_evaluations": row["seconds"] ** 2,
                "cpu_seconds": 2 * row["seconds"] ** 1.5,
            }
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = words_of(report(finished))
    pde = _cells(text, "PDE (")
    assert pde[1:3] == ["interaction", "**0.600 to 0.667 [0.400, 1.000] (best)**"]
    assert pde[-3:-1] == ["7,000", "12.5"] and "| model evaluations | CPU seconds |" in text
    assert _cells(text, "PPO (")[2] == "0.400 to 0.444 [0.200, 0.778]"
    assert _cells(text, "100 model evaluations")[1].startswith("0.600 [")
    assert _cells(text, "PDE - PPO")[3] == "same"


def test_policies_lend_their_paths_once(tmp_path: Path) -> None:
    """From a saved model to a refined reference, which is taken from its file the next time."""
    spec = RunSpec(
        "girsanov/LinearQuadratic-v0",
        "pde",
        0,
        Budget(32),
        {"steps": 4},
        device="cpu",
        plan=EvaluationPlan(points=1, paths=8, final_paths=8, reference_paths=256, samples=4),
    )
    execute(spec, tmp_path)
    told: list[str] = []
    text = words_of(report(tmp_path, on_stage=told.append))
    assert told[0].startswith("girsanov/LinearQuadratic-v0: the bound, anew from 256 paths")
    assert told[1] == "girsanov/LinearQuadratic-v0: tables and pictures"
    assert "paths, in equal parts uncontrolled and of PDE" in text
    file = tmp_path / "LinearQuadratic-v0" / "pooled.json"
    kept = json.loads(file.read_text())
    assert kept["pooled"]["certificate"]["n"] == 256 and kept["runs"][0][:2] == ["pde", 0]
    kept["pooled"]["certificate"]["bound"] = 7.25
    file.write_text(json.dumps(kept))
    RunFolder(tmp_path, spec).model.write_bytes(b"no model")
    assert "7.250" in words_of(report(tmp_path))
    file.write_text(json.dumps({**kept, "runs": []}))  # other runs: not theirs, and none can lend
    text = words_of(report(tmp_path))
    assert "7.250" not in text and "in equal parts" not in text


def test_what_is_missing_is_named(finished: Path) -> None:
    with RunFolder(
        finished, RunSpec("girsanov/Fake-v0", "pde", 9, Budget(100), {"steps": 50})
    ).begin():
        pass
    assert "**Not finished** (the same command continues): Fake-v0/pde/seed9." in words_of(
        report(finished)
    )


def test_a_failed_run_is_told_with_its_error(finished: Path) -> None:
    for seed, said in (
        (7, "Traceback\n  x.py\nRuntimeError: no <b>"),
        (8, "\n"),
        (9, "error: x" + 500 * "y"),
    ):
        path = finished / "Fake-v0" / "pde" / f"seed{seed}"
        path.mkdir()
        (path / "error.txt").write_text(said + "\n")
    text = words_of(report(finished))
    assert "- Fake-v0/pde/seed7: RuntimeError: no &lt;b&gt;\n" in text
    assert f"- Fake-v0/pde/seed9: x{299 * 'y'}..." in text and 300 * "y" not in text
    assert "(the same command continues): Fake-v0/pde/seed8." in text  # killed without a word
    summary = json.loads((finished / "report.json").read_text())
    assert summary["failed"][0] == {"run": "Fake-v0/pde/seed7", "error": "RuntimeError: no <b>"}
    assert summary["unfinished"] == ["Fake-v0/pde/seed8"]
    spec = RunSpec("girsanov/Fake-v0", "pde", 7, Budget(100), {"steps": 50})
    with RunFolder(finished, spec).begin():  # begun again: it fails no more
        assert "Fake-v0/pde/seed7, Fake-v0/pde/seed8." in words_of(report(finished))


def test_report_needs_finished_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out must hold finished runs"):
        report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_image_grid() -> None:
    images = np.stack([np.full((1, 2, 3), v) for v in (-1.0, 1.0, 5.0)])
    grid = plots.grid_of(images, rows=4, columns=2)
    assert grid.shape == (5, 7, 3)  # two rows of two, a line between
    assert (grid[:2, :3] == 0).all() and (grid[:2, 4:] == 1).all() and (grid[3:, :3] == 1).all()
    assert (grid[2] == 0.5).all() and (grid[:, 3] == 0.5).all()
    assert plots.grid_of(np.zeros((40, 3, 2, 2))).shape == (11, 23, 3)


def test_what_records_hold_is_words_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names, versions and commands may come from anybody: no markup, no formula, no terminal."""
    evil = "<script>alert(1)</script>|[x](http://y) `z` \x1b[31m $\\frac\n# head"
    _run(tmp_path, "mine:a$b_c", 0, [0.0, 1.0], 1.0, 500.0, (2,))
    path = next(tmp_path.glob("*/*/seed0/record.json"))
    record = json.loads(path.read_text())
    record["spec"]["env_kwargs"] = {"steps": evil, evil: 1}
    record |= {"command": evil, "access": evil, "versions": {evil: evil}}
    record["hardware"]["cpu"] = evil
    path.write_text(json.dumps(record))
    text = words_of(report(tmp_path))
    command = next(line for line in text.splitlines() if line.startswith("- Command: `"))
    assert command.count("`") == 2 and command.endswith("`")  # nothing in code is markup
    text = text.replace(command, "")
    assert "<script>" not in text and "\x1b" not in text and "\n# head" not in text
    assert "](http" not in text.replace("\\](http", "") and "| `" not in text
    assert text.count("&lt;script&gt;") >= 5 and "mine:a$b_c" in text
    table = next(line for line in text.splitlines() if line.startswith("| mine"))
    heads = next(line for line in text.splitlines() if line.startswith("| agent"))
    assert table.replace("\\|", "").count("|") == heads.count("|")
    print(printable(f"a\tb\n\x1b]0;owned\x07\u202e{evil}"))
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown) and shown.startswith("a\tb\n ]0;owned")
