from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from girsanov.scoreboard.intervals import interval, paired
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec, Spent, slug


@pytest.mark.parametrize(("unit", "wanted"), [("env_steps", 0.5), ("reward_queries", 0.1), ("seconds", 0.025)])
def test_each_unit_counts_its_own_cost(unit: str, wanted: float) -> None:
    assert Budget(100, unit).fraction(Spent(50, 10, 2.5)) == pytest.approx(wanted)


def test_steps_that_a_budget_buys() -> None:
    assert Budget(7, "reward_queries").timesteps(50) == 350
    assert Budget(7, "reward_queries").timesteps(50, lanes=4) == 400  # lanes end together: two rounds of four
    assert Budget(99.5, "env_steps").timesteps(50) == 100
    assert Budget(1, "seconds").timesteps(50) > 1e9


@pytest.mark.parametrize("amount", [0, -1, float("nan"), float("inf"), "3"])
def test_a_budget_must_be_positive(amount: float) -> None:
    with pytest.raises(ValueError, match="budget must be a positive number of reward_queries; got"):
        Budget(amount)


def test_a_budget_must_have_a_known_unit() -> None:
    with pytest.raises(ValueError, match="budget unit must be one of"):
        Budget(1, "hours")


def test_spec_survives_json_and_names_its_folder() -> None:
    spec = RunSpec(
        "a/B-v0", "m:make", 3, Budget(5, "seconds"), {"steps": 7}, {"net_arch": [8]}, "cpu", EvaluationPlan(points=2)
    )
    assert RunSpec.from_json(spec.to_json()) == spec
    assert spec.folder(Path("o")) == Path("o/B-v0/m.make/seed3")
    assert slug("my_problem:make") == "my_problem.make"


def test_evaluation_points_begin_at_zero_and_stop_before_the_end() -> None:
    fractions = EvaluationPlan(points=15).fractions()
    assert len(fractions) == 15 and fractions[0] == 0 and fractions[-1] < 1
    assert (np.diff(fractions) > 0).all()
    with pytest.raises(ValueError, match="paths must be at least 2; got 1"):
        EvaluationPlan(paths=1)


def test_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    found = interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert interval([1.0]) == (1.0, None, None, 1)


def test_pairing_removes_what_seeds_share() -> None:
    shared = {0: 10.0, 1: -5.0, 2: 3.0}
    difference = paired({k: v + 1 + 0.01 * k for k, v in shared.items()}, {**shared, 7: 99.0})
    assert difference is not None and difference.n == 3
    assert difference.low is not None and difference.low > 0.9
    assert paired({0: 1.0}, {1: 1.0}) is None
