"""benchmarks/rates.py: the regret identity against closed forms, slopes of known curves, what is
resumed, what is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import rates  # noqa: E402
import rates_report as rr  # noqa: E402
import torch
from torch import Tensor

from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import objective


def execute(job: rates.Job) -> dict[str, Any]:
    return rates.execute(job, quick=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def few_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure on few paths: a yardstick of its own for each test."""
    monkeypatch.setattr(rates, "PATHS", 512)
    rates.yardstick.cache_clear()
    yield
    rates.yardstick.cache_clear()


def chain(**kwargs: Any) -> LinearQuadratic:
    problem = make_problem("girsanov/LinearQuadratic-v0", **kwargs)
    assert isinstance(problem, LinearQuadratic)
    return problem


# --- the regret


@pytest.mark.parametrize(
    "kwargs", [{}, {"temperature": 2.0}, {"temperature": 1.0, "dimension": 2, "steps": 5}]
)
def test_regret_is_the_optimal_objective_less_the_objective(kwargs: dict[str, Any]) -> None:
    """Also for few and long steps, where C^T P C is no small part of S; a policy wrong in size and
    in direction.
    """
    problem = chain(**kwargs)

    def wrong(k: int, x: Tensor) -> Tensor:
        return 0.3 * problem.optimal_control(k, x).flip(1) + 0.2 * x.sin()

    found = rates.regret(problem, wrong, 20_000, generator(1))
    worth = objective(problem, wrong, 20_000, generator(2)).objective
    gap = problem.optimal_objective() - worth.mean
    assert abs(found.mean - gap) < 4 * math.hypot(found.stderr, worth.stderr)
    assert worth.stderr < 0.05 * gap  # the test is sharp
    near = rates.regret(
        problem, lambda k, x: 0.9 * problem.optimal_control(k, x), 20_000, generator(1)
    )
    assert (
        near.stderr < 0.02 * near.mean and near.stderr < 0.05 * worth.stderr
    )  # where differences would be noise


def test_regret_without_control_is_exact_where_it_is_known() -> None:
    """One step, no rewards but a linear one: a* = C^T q / beta and the regret of no control is |C^T
    q|^2 / (2 beta).
    """
    noise, slope = torch.tensor([[1.0, 0.5], [0.0, 2.0]]), torch.tensor([0.3, -0.4])
    problem = LinearQuadratic(
        drift_matrix=torch.eye(2),
        noise_matrix=noise,
        terminal_matrix=torch.zeros(2, 2),
        terminal_slope=slope,
        horizon=1,
        temperature=0.7,
    )
    found = rates.regret(problem, None, 16, generator())
    assert (
        found.mean == pytest.approx(float((noise.T @ slope).square().sum()) / 1.4, rel=1e-6)
        and found.stderr < 1e-6
    )
    assert rates.regret(problem, problem.optimal_control, 16, generator()).mean == pytest.approx(
        0.0, abs=1e-12
    )


def test_the_price_of_control_alone_is_not_its_regret(monkeypatch: pytest.MonkeyPatch) -> None:
    """S without ``C^T P C``, as in continuous time, would be off by more than ten standard errors
    at five steps.
    """
    problem = chain(steps=5)
    right = rates.regret(problem, None, 4096, generator())
    worth = objective(problem, None, 50_000, generator(2)).objective
    assert abs(right.mean - problem.optimal_objective() + worth.mean) < 4 * math.hypot(
        right.stderr, worth.stderr
    )
    eye = problem.temperature * torch.eye(4, dtype=torch.float64)
    monkeypatch.setattr(rates, "curvatures", lambda problem: eye.expand(problem.horizon, 4, 4))
    assert rates.regret(problem, None, 4096, generator()).mean < right.mean - 10 * math.hypot(
        right.stderr, worth.stderr
    )


def test_the_optimum_measures_as_nothing_and_no_control_as_all() -> None:
    ruler = rates.yardstick(2.0, 4)
    assert ruler.control(ruler.problem.optimal_control) == {
        "control": 0.0,
        "regret": 0.0,
        "regret_stderr": 0.0,
    }
    nothing = ruler.control(lambda k, x: torch.zeros_like(x))
    assert nothing["control"] == 1.0
    assert abs(nothing["regret"] - ruler.room) < 5 * nothing["regret_stderr"] < 0.5 * ruler.room


# --- slopes


def test_slope_of_a_power_law_and_its_interval() -> None:
    exact = rr.fit_slope({n: [3.0 * n**-0.5] * 3 for n in (100, 200, 400, 3000)})
    assert (
        exact.slope == pytest.approx(-0.5)
        and exact.low == pytest.approx(-0.5)
        and exact.high == pytest.approx(-0.5)
    )
    assert exact.meets("energy") and not exact.meets("regret")
    rng = np.random.default_rng(1)
    hits, widths = 0, []
    for _ in range(60):
        noisy = {
            n: list(n**-1.0 * np.exp(0.3 * rng.standard_normal(5)))
            for n in (100, 200, 400, 800, 1600)
        }
        found = rr.fit_slope(noisy, draws=300)
        assert found.low is not None and found.high is not None
        hits += found.low <= -1.0 <= found.high
        widths.append(found.high - found.low)
    assert hits >= 45  # five seeds: somewhat less than 95%
    assert 0.1 < np.median(widths) < 0.6


# --- jobs


def test_jobs_are_unlike_each_other_and_begin_with_every_line() -> None:
    for quick in (True, False):
        every = rates.jobs((0, 1, 2, 3, 4), quick)
        assert len({job.name for job in every}) == len(every)
    only = [job for job in every if job.study == "rates"]
    assert [job.seed > 0 for job in only] == sorted(job.seed > 0 for job in only)
    full = [
        j
        for j in only
        if (j.method, j.temperature, j.dimension) == ("polynomial", 2.0, 4) and j.seed == 0
    ]
    assert [j.n for j in full] == [500, 1000, 2000, 4000, 8000, 16_000, 32_000]


def test_more_trajectories_bring_the_known_model_near_the_truth() -> None:
    few, many = (
        execute(rates.Job("rates", 2.0, 4, "polynomial-fresh", n, 0))["rows"][0]
        for n in (100, 1000)
    )
    assert few["n"] == 100 and 0 < many["seconds"]
    for measure in ("energy", "integral", "control"):
        assert many[measure] < 0.5 * few[measure] < 0.1
    assert many["regret"] < 0.25 * few["regret"]


def test_the_same_job_gives_the_same_row_and_another_seed_another() -> None:
    rows = [
        execute(rates.Job("size", 2.0, 4, "times", 60, seed, 3))["rows"][0] for seed in (0, 0, 1)
    ]
    assert rows[0]["energy"] == rows[1]["energy"] != rows[2]["energy"]
    assert set(rows[0]) == {"n", "seconds", "energy", "integral"}


def test_rl_ends_when_its_seconds_or_its_trajectories_are_spent() -> None:
    rows = execute(rates.Job("rl", 2.0, 4, "ppo", 60, 0, cpu_seconds=60.0))["rows"]
    assert [row["n"] for row in rows] == [64] and rows[0]["regret"] > 0  # whole rounds of lanes
    rows = execute(rates.Job("rl", 2.0, 4, "sac", 10_000, 0, cpu_seconds=0.05))["rows"]
    assert rows[-1]["n"] < 60


# --- the report


def line(n: int, energy: float | None, method: str = "polynomial") -> dict[str, Any]:
    made = {
        "command": "c",
        "hardware": {"cpu": "x", "cores": 2, "system": "s"},
        "versions": {"torch": "2"},
    }
    rows = [{"n": n, "seconds": 30.0, "energy": energy, "regret": n**-0.6}]
    return {
        "job": asdict(rates.Job("rates", 2.0, 4, method, n, 0)),
        "rows": rows,
        "regret_without_control": 0.3,
        **made,
    }


def test_what_meets_its_target_is_bold_and_what_blew_up_is_said() -> None:
    lines = [line(100, 0.1), line(400, 0.05), line(1600, None)]
    found = rr.collect(lines)
    assert "**-0.50** | - | - | -0.60 |" in rr._slopes(found)
    assert "blew up" in rr._medians(found, "energy")
    drawn = rr.draw(found, 0.3).axes[0].lines[0]
    assert list(drawn.get_xdata()) == [100, 400] and "(-0.50)" in drawn.get_label()
