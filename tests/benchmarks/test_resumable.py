"""benchmarks/resumable.py and learning.py: what is made once, what is refused at the door, and that
looking changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import convergence
import functional
import pytest
import resumable as bench
import torch
from learning import Curve
from resumable import RUNS, runs_of

from girsanov.envs import make_problem
from girsanov.envs.problem import Policy, objective
from girsanov.scoreboard.evaluation import FINAL_SEED, generator_on

ONE, ALL = "quadratics d1 beta0.4", ["quadratics", "d1"]


# --- runs


def test_what_is_missing_is_made_and_nothing_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--out", str(tmp_path)]
    assert convergence.main(["--only", *ONE.split(), *where]) == 0
    before = (tmp_path / RUNS).read_text()
    (tmp_path / RUNS).write_text(before + before[:100])  # as a kill leaves it
    assert convergence.main(["--only", *ALL, *where]) == 0
    after = (tmp_path / RUNS).read_text()
    assert after.startswith(before) and after.count('"run": ') == 5  # the torn one, too
    assert "1 of 4 runs are finished" in capsys.readouterr().out
    runs = runs_of(tmp_path)
    assert list(runs)[0] == ONE and len(runs) == 4
    assert all(run["versions"]["torch"] and run["command"] for run in runs.values())
    assert convergence.main(["--only", *ALL, *where]) == 0
    assert (tmp_path / RUNS).read_text() == after
    assert convergence.main(["report", *where]) == 0
    assert "| d1 beta0.4 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "convergence.png").read_bytes()[:4] == b"\x89PNG"


@dataclass(frozen=True)
class Job(bench.Job):
    form: ClassVar[str] = "{of}"
    of: str
    seed: int


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    bench.append(tmp_path / RUNS, {"run": "one", "job": {"of": "one", "seed": 0}})
    assert bench.missing([Job("one", 0), Job("two", 0)], tmp_path) == [Job("two", 0)]
    with pytest.raises(ValueError, match=r"one with other settings \(seed 0, not 1\); use another"):
        bench.missing([Job("one", 1)], tmp_path)


@pytest.mark.slow
def test_two_workers_share_one_file(tmp_path: Path) -> None:
    asked = ["--only", *ALL, "--workers", "2", "--out", str(tmp_path)]
    assert convergence.main(asked) == 0
    betas = {run["row"]["temperature"] for run in runs_of(tmp_path).values()}
    assert betas == {0.4, 0.8, 1.6, 3.2}


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
    assert convergence.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert convergence.main(["--only", *ALL, "--out", str(tmp_path / "file" / "x")]) == 2
    assert "out must be a folder that can be written to" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]


# --- learning


def test_the_same_seed_gives_the_same_curve_however_often_it_is_looked_at() -> None:
    problem: Any = make_problem("girsanov/GaussianMixture-v0", temperature=0.5)

    def measure(policy: Policy) -> dict[str, float]:
        return {"kl": objective(problem, policy, 32, generator_on(problem, 0)).kl.mean}

    last = []
    for points in ([8], [0, 4, 8]):
        curve = Curve("sac-control", problem, 3, measure, points, n_envs=4).learn(8)
        assert [row["queries"] for row in curve.rows] == points
        last.append(curve.rows[-1]["kl"])
    assert last[0] == last[1] > 0


# --- Algorithm 1


def test_the_telescoped_objective_is_the_objective() -> None:
    """For a policy that is wrong, and with a quarter of the plain error for the closed form."""
    problem = functional.mixture(0.5)

    def wrong(k: Any, x: torch.Tensor) -> torch.Tensor:
        return 0.2 + 0.5 * problem.reference_control(k, x)

    for policy, sharper in ((wrong, 1.0), (problem.reference_control, 0.25)):
        ours, kl = functional.returns(problem, policy, 1024)
        stderr = float(ours.std()) / 1024**0.5
        with torch.no_grad():
            plain = objective(problem, policy, 1024, generator_on(problem, FINAL_SEED))
        assert abs(float(ours.mean()) - plain.objective.mean) < 4 * plain.objective.stderr
        assert stderr < sharper * plain.objective.stderr
        assert kl == pytest.approx(plain.kl.mean, rel=1e-6)


def test_the_bound_is_the_one_that_the_committed_scores_are_of() -> None:
    known = {
        line["reference"]: line["value"]
        for line in bench.read_lines(bench.RESULTS / "functional" / RUNS)
        if "reference" in line
    }
    for beta in functional.CELLS:
        free, bound = functional.levels(beta, 4096)
        told = known[f"beta{beta:g}-d2"]
        assert free == pytest.approx(told["uncontrolled"]["mean"], abs=0.15)
        assert bound == pytest.approx(told["bound"]["mean"], abs=0.02)
    assert free < bound < 0
