from typing import Any

import numpy as np
import pytest
from scipy import stats

from girsanov.scoreboard.intervals import (
    band,
    interquartile_mean,
    interval,
    mean_curve,
    overall,
    paired,
    stratified,
    wins,
)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 10, 11])
def test_the_interquartile_mean_is_scipys_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(3, n))
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))


def test_of_five_seeds_the_middle_three_count() -> None:
    found = interval([100.0, 1.0, 2.0, 3.0, -100.0])
    assert found.iqm == 2.0 and found.n == 5
    assert found == interval([100.0, 1.0, 2.0, 3.0, -100.0])  # the draws are always the same
    assert str(interval([0.5])) == "0.500"
    assert interval([0.5]) == (0.5, None, None, 1)
    assert interval([0.5, 0.5]) == (0.5, 0.5, 0.5, 2)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=12)
    found = interval(list(values))
    wanted = stats.bootstrap(
        (values,),
        lambda v, axis: interquartile_mean(np.moveaxis(v, axis, -1)),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.05 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.05 * width)


def test_seeds_are_drawn_within_their_task() -> None:
    """What separates tasks is no uncertainty: were tasks mixed, the interval would be 10 wide."""
    tasks = [[0.0, 0.1, 0.2, 0.1, 0.0], [10.0, 10.1, 10.2, 10.1, 10.0]]
    found = stratified(tasks)
    assert found.low is not None and found.high is not None
    assert found.n == 5 and found.high - found.low < 0.5 and 4.8 < found.iqm < 5.4


def test_a_band_is_an_interval_at_every_point() -> None:
    values = np.random.default_rng(0).normal(size=(1, 6, 3))
    middle, low, high = band(values)
    for i in range(3):
        found = interval(list(values[0, :, i]))
        assert (middle[i], low[i], high[i]) == pytest.approx(found[:3])


def test_pairing_removes_what_seeds_share() -> None:
    shared = {0: 10.0, 1: -5.0, 2: 3.0}
    difference = paired({k: v + 1 + 0.01 * k for k, v in shared.items()}, {**shared, 7: 99.0})
    assert difference is not None and difference.n == 3
    assert difference.low is not None and difference.low > 0.9
    assert paired({0: 1.0}, {1: 1.0}) is None


def _differs(first: str, second: str, low: float, high: float, n: int = 5) -> dict[str, Any]:
    return {"first": first, "second": second, "low": low, "high": high, "n": n}


def test_a_win_is_within_an_access_class_and_against_all_of_it() -> None:
    agents = {
        name: [{"access_class": access}]
        for name, access in {"a": "one", "b": "one", "c": "two", "d": "one"}.items()
    }
    clear = [_differs("a", "b", 0.1, 0.2), _differs("d", "a", -0.3, -0.1)]
    assert wins("a", agents, [*clear, _differs("a", "c", 0.5, 0.6)])
    assert not wins("a", agents, clear[:1])  # not against d
    few = [_differs("a", "b", 0.1, 0.2, n=4), clear[1]]
    assert not wins("a", agents, few)
    assert not wins("d", agents, clear)
    assert not wins("c", agents, [_differs("c", "a", 0.5, 0.6)])  # alone in its class
    unknown = {name: [{}] for name in "ab"}  # records of before
    assert not wins("a", unknown, clear)


def test_all_environments_together() -> None:
    def env(**scores: list[float]) -> dict[str, Any]:
        agents = [
            {"agent": name, "runs": [{"score": s} for s in of]} for name, of in scores.items()
        ]
        return {"compared": "score", "agents": agents}

    (line,) = overall([env(a=[0.1, 0.2], b=[0.3, 0.3]), env(a=[0.5, 0.6], c=[1.0, 1.0])])
    assert line["agent"] == "a" and line["tasks"] == 2 and line["iqm"] == pytest.approx(0.35)
    assert overall([env(a=[0.1])]) == []
    assert overall([env(a=[0.1]), {**env(a=[0.1]), "compared": "objective"}]) == []


def test_mean_curve_ends_with_the_shortest_run() -> None:
    runs = [
        [{"seconds": 0.0, "score": 0.0}, {"seconds": end, "score": score}]
        for end, score in ((4.0, 1.0), (8.0, 0.5))
    ]
    grid, values = mean_curve(runs, "seconds", "score", points=5)
    assert grid[-1] == 4.0 and values[:, -1] == pytest.approx([1.0, 0.25])
