"""benchmarks/frontier.py: when a curve counts as there, what is resumed, what never is said to be,
and a fair reference.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import frontier  # noqa: E402
import frontier_report as fr  # noqa: E402
import pytest
import resumable as bench  # noqa: E402
import torch
from learning import Curve  # noqa: E402
from mixture import Reference, Yardstick, closed_form, mixture  # noqa: E402
from resumable import RUNS, runs_of  # noqa: E402

TINY = ["--quick", "--seeds", "0"]


# --- when a curve is there


def test_crossing_of_a_straight_line_is_where_the_line_crosses() -> None:
    assert (
        fr.crossing([0.1 * i for i in range(12)]) == 9
    )  # 0.8, 0.9, 1.0 average 0.9 up to rounding
    assert fr.crossing([0.1 * i for i in range(12)], 0.45) == 5


def test_one_lucky_evaluation_does_not_count() -> None:
    spike = [0.0, 0.5, 0.8, 1.0, 0.8, 0.8, 0.81]
    assert max(spike) >= 0.9 and fr.crossing(spike) is None
    assert fr.crossing([*spike, 0.9, 0.95, 0.95]) == 8


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
def test_the_first_and_the_last_evaluation_never_count(scores: list[float]) -> None:
    assert fr.crossing(scores) is None


def test_a_step_counts_from_its_second_evaluation_and_a_later_fall_does_not_undo_it() -> None:
    assert fr.crossing([0.0, 0.95, 0.95, 0.95]) == 2
    assert fr.crossing([0.0, 0.95, 0.95, 0.95, -3.0, -3.0]) == 2


def test_evaluation_points_are_geometric_multiples_of_fifty() -> None:
    points = frontier.evaluation_points(4_000)
    assert points[:6] == [0, 50, 100, 150, 200, 250] and points[-1] == 4_000
    assert all(point % 50 == 0 for point in points)
    assert all(1.0 < b / a < 1.4 for a, b in zip(points[5:], points[6:], strict=False))
    assert frontier.evaluation_points(20) == [0, 20]


# --- what is measured


def test_the_reference_bounds_the_discrete_chain_where_the_closed_form_value_does_not() -> None:
    problem = mixture(2.0, 32)
    reference = Reference.of(problem, 8192)
    assert 0.92 < reference.score(reference.closed_form.mean) < 1.0
    assert reference.ess_share > 0.85
    x = problem.initial(4096, torch.Generator().manual_seed(0))
    value = float(problem.reference_value(0, x).mean())
    assert (
        reference.closed_form.mean > value + 0.4
    )  # E V_0(X_0) is exceeded by a policy: no bound with 50 steps


def test_importance_sampling_agrees_with_the_plain_certificate_where_that_is_certified() -> None:
    from girsanov.envs.certificates import certificate

    problem = mixture(2.0)
    plain = certificate(problem, 16384, torch.Generator().manual_seed(1))
    ours = Reference.of(problem, 8192).bound
    assert plain.certified and ours.stderr < plain.stderr
    assert abs(ours.mean - plain.bound) < 4 * (ours.stderr + plain.stderr)


def test_control_variates_are_exact_for_the_policies_they_know_and_help_between() -> None:
    problem = mixture(2.0)
    reference = Reference.of(problem, 1024)
    yardstick = Yardstick(problem, reference, 256)
    control = closed_form(problem)
    for policy, mean in (
        (None, reference.uncontrolled.mean),
        (control, reference.closed_form.mean),
    ):
        found = yardstick.measure(policy)
        assert (
            found["objective"] == pytest.approx(mean, abs=1e-6) and found["objective_stderr"] < 1e-6
        )
    half = yardstick.measure(lambda k, x: 0.7 * control(k, x))
    plain, _ = yardstick.run(lambda k, x: 0.7 * control(k, x))
    assert 0 < half["objective_stderr"] < 0.5 * float(plain.std()) / 256**0.5
    assert half["kl"] > 0 and half["score"] == pytest.approx(reference.score(half["objective"]))


# --- runs


def test_every_agent_runs_is_resumed_and_never_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frontier.main([*TINY, "--only", "ppo", "--out", str(tmp_path)]) == 0
    before = (tmp_path / RUNS).read_text()
    (tmp_path / RUNS).write_text(before + before[-300:-1][:100])  # as a kill leaves it
    assert frontier.main([*TINY, "--out", str(tmp_path)]) == 0
    after = (tmp_path / RUNS).read_text()
    assert after.startswith(before) and after.count('"run": ') == 4
    assert "1 of 4 runs are finished" in capsys.readouterr().out
    runs = runs_of(tmp_path)
    assert [name.split("-", 2)[2] for name in runs] == [
        "ppo-seed0",
        "pde-seed0",
        "pde-off-seed0",
        "sac-seed0",
    ]
    # the control form acts at all 50 steps
    for run, queries, steps in zip(
        runs.values(), (80, 100, 100, 20), (50, 50, 50, 50), strict=True
    ):
        rows = run["rows"]
        assert [row["queries"] for row in rows][:: len(rows) - 1] == [0, queries]
        assert run["outcome"] == "queries spent"
        assert rows[-1]["env_steps"] == steps * queries
        assert 0 < rows[-1]["seconds"] <= run["seconds"]
        assert run["versions"]["torch"] and run["hyperparameters"] and abs(rows[0]["score"]) < 0.2
    assert frontier.main([*TINY, "--out", str(tmp_path)]) == 0
    assert (tmp_path / RUNS).read_text() == after

    assert frontier.main(["report", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "In reward queries PDE wins 0 of 1 cells, RL 0; 0 are undecided, 1 reached by" in text
    assert "never in 80" in text and (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"

    other = [frontier.Job("sac", 0.5, 2, 0, 30, paths=64)]
    with pytest.raises(ValueError, match=r"beta0.5-d2-sac-seed0 with other settings \(queries 20"):
        bench.missing(other, tmp_path)


def test_a_run_ends_when_its_seconds_are_spent(tmp_path: Path) -> None:
    for agent in ("ppo", "sac"):
        job = frontier.Job(agent, 0.5, 2, 0, 80, cpu_seconds=1e-6, paths=64)
        run = frontier.execute(job, bench.Place(tmp_path, quick=True))
        assert run["outcome"] == "seconds spent" and run["queries"] < job.queries
        assert [row["queries"] for row in run["rows"]] == [0]


def test_the_same_seed_gives_the_same_curve_however_often_it_is_looked_at() -> None:
    problem = mixture(0.5)
    yardstick = Yardstick(problem, Reference.of(problem, 256), 32)
    last = []
    for points in ([8], [0, 4, 8]):
        curve = Curve.of("sac-control", problem, 3, yardstick.measure, points, n_envs=4).learn(8)
        assert [row["queries"] for row in curve.rows] == points
        last.append(curve.rows[-1]["score"])
    assert last[0] == last[1]


def test_a_diverged_run_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Curve, queries: int) -> None:
        raise ValueError("Expected parameter loc to satisfy Real(), found nan")

    monkeypatch.setattr(Curve, "learn", broken)
    job = frontier.Job("ppo", 0.5, 2, 0, 80, paths=64)
    found = frontier.execute(job, bench.Place(tmp_path, quick=True))
    said = "Expected parameter loc to satisfy Real(), found nan"
    assert found["outcome"] == f"diverged: {said}" and found["rows"] == []


@pytest.mark.slow
def test_two_workers_share_one_file(tmp_path: Path) -> None:
    asked = ["--quick", "--only", "sac", "--seeds", "0", "1", "--workers", "2"]
    assert frontier.main([*asked, "--out", str(tmp_path)]) == 0
    runs = runs_of(tmp_path)
    assert len(runs) == 2 and all(len(run["rows"]) == 2 for run in runs.values())


# --- the door


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0", "0"], "seeds must be from 0, each once, at least one; got (0, 0)"),
        (["--seeds"], "seeds must be from 0, each once"),
        (["--workers", "0"], "workers must be at least 1; got 0"),
        (["--only", "dreams"], "only must be words of names of runs; none holds ('dreams',)"),
        (["report"], "out must hold finished runs"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frontier.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert frontier.main([*TINY, "--out", str(tmp_path / "file" / "x")]) == 2
    assert "out must be a folder that can be written to" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]


def test_a_reference_made_from_other_paths_is_refused(tmp_path: Path) -> None:
    first = Reference.kept(0.5, 2, 64, tmp_path)
    assert Reference.kept(0.5, 2, 64, tmp_path) == first
    with pytest.raises(
        ValueError, match=r"beta0.5-d2 made with .*: 64}, not .*: 128}; use another --out"
    ):
        Reference.kept(0.5, 2, 128, tmp_path)


# --- the report, on curves whose answer is known


def finished(
    agent: str, seed: int, queries: list[int], scores: list[float], seconds: float = 1.0
) -> dict[str, Any]:
    """A run that evaluates at ``queries`` with ``scores``, at ``seconds`` for 100 queries."""
    job = {"agent": agent, "beta": 0.5, "dimension": 2, "seed": seed}
    made = {
        "command": "c",
        "hardware": {"cpu": "x", "cores": 2, "system": "s"},
        "versions": {"torch": "2"},
    }
    rows = [
        {"queries": q, "seconds": q * seconds / 100, "score": s}
        for q, s in zip(queries, scores, strict=True)
    ]
    spent = {"queries": queries[-1], "seconds": queries[-1] * seconds / 100}
    return {"job": job, "outcome": "queries spent", **spent, **made, "rows": rows}


RISE = [0.0, 0.5, 0.9, 0.9, 0.9, 0.9]  # there at the fourth evaluation
FLAT = [0.0, 0.5, 0.8, 0.8, 0.99, 0.8]


def grid_of(*runs: dict[str, Any]) -> Any:
    return fr.grid_of(runs)


GRID = [0, 100, 200, 400, 800, 1600]


def test_ratios_and_words_of_known_curves() -> None:
    grid = grid_of(
        *(finished("pde", seed, GRID, RISE, seconds=8.0) for seed in (0, 1)),
        finished("ppo", 0, [2 * q for q in GRID], RISE),
        finished("ppo", 1, [3 * q for q in GRID], RISE),
        finished("sac", 0, GRID, RISE),
        finished("sac", 1, GRID, FLAT),
    )
    ((_, agents),) = grid.items()
    cost = {name: fr.Cost.of(runs, "queries") for name, runs in agents.items()}
    assert cost["pde"].each == [400.0, 400.0]
    assert cost["ppo"].at_least == 1000.0  # of 800 and 1,200
    assert cost["sac"].never and cost["sac"].each == [400.0, math.inf]
    assert fr.Ratio.of(cost["pde"], cost["ppo"]) == ("", 2.5)
    assert str(fr.Ratio.of(cost["pde"], cost["sac"])) == "over 4.0 times"
    assert fr.ratio(agents, "queries").winner == "PDE"
    assert fr.ratio(agents, "seconds").winner == "RL"  # 32 s against 10 s
    assert fr._won(grid, "seconds").startswith("In CPU seconds PDE wins 0 of 1 cells, RL 1;")
    assert "| never in 1,600 [400, never] |" in fr._costs(grid)


def test_the_cost_of_other_scores() -> None:
    """SAC, stopped after 1,600 queries, may have been there before PPO, which took 3,200: the ratio
    is a bound.
    """
    grid = grid_of(
        finished("pde", 0, GRID, RISE),
        finished("ppo", 0, [8 * q for q in GRID], RISE),
        finished("sac", 0, GRID, [0.0, 0.6, 0.6, 0.6, 0.6, 0.6]),
    )
    text = fr._levels(grid)
    assert "| 2 | 0.5 | 0.5 | 200 | 200 | 1.0 times |" in text  # SAC's
    assert "| 2 | 0.5 | 0.8 | 400 | never in 1,600 | over 4.0 times |" in text
    assert [row.split("|")[3].strip() for row in text.splitlines()[2:]] == ["0.5", "0.8", "0.9"]


def test_who_was_stopped_early_is_not_called_beaten() -> None:
    late = [4 * q for q in GRID]  # there at 1,600, when regression had been stopped at 800
    stopped = grid_of(
        finished("pde", 0, GRID[:5], FLAT[:4] + [0.8]), finished("ppo", 0, late, RISE)
    )
    ((_, agents),) = stopped.items()
    found = fr.ratio(agents, "queries")
    assert str(found) == "under 2.0 times" and found.winner is None
    ((_, agents),) = grid_of(finished("pde", 0, GRID, FLAT), finished("ppo", 0, GRID, RISE)).items()
    assert fr.ratio(agents, "queries") == ("under ", 0.25)
    assert fr.ratio(agents, "queries").winner == "RL"


def test_one_side_alone_is_not_judged() -> None:
    grid = grid_of(finished("ppo", 0, [0, 40, 80, 120, 160, 200], RISE))
    assert "of 0 cells" in fr._won(grid, "queries")


def test_open_triangles_where_it_was_never_reached() -> None:
    figure = fr.draw(grid_of(finished("pde", 0, GRID, RISE), finished("ppo", 0, GRID, FLAT)))
    queries, seconds = figure.axes
    marks = {line.get_marker(): line for line in queries.lines if line.get_linestyle() == "None"}
    assert marks["o"].get_ydata()[0] == 400.0
    assert marks["^"].get_ydata()[0] == 1600.0 and marks["^"].get_markerfacecolor() == "none"
    assert queries.get_xscale() == queries.get_yscale() == seconds.get_yscale() == "log"
    assert "never within this" in [text.get_text() for text in figure.legends[0].get_texts()]
