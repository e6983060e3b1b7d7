"""TensorBoard's events, read back from their files."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from finished_runs import comparison
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from girsanov.agents import PDE
from girsanov.baselines.function_learner import CountedEnv, FunctionLearner
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.scoreboard.output.tensorboard import address, settings_of, told
from girsanov.scoreboard.report import report


def _events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_a_mean_run_of_every_agent_with_its_band(tmp_path: Path) -> None:
    comparison(tmp_path)
    for _ in range(2):  # the second report replaces the first
        report(tmp_path)
    events = _events(tmp_path / "Fake-v0" / "pde")
    mean, low, high = (
        events.Scalars(tag) for tag in ("eval/score", "interval/score_low", "interval/score_high")
    )
    assert [e.step for e in mean] == [e.step for e in low] == [e.step for e in high]
    assert [e.step for e in mean] == list(range(101))  # of a budget of 100 reward queries
    # scores of 0.4, 0.5 and 0.9 at the end; a quarter of three seeds is none, so nothing is cut
    assert mean[-1].value == pytest.approx(0.6) and mean[0].value == 0.0
    assert low[-1].value == pytest.approx(0.4) and high[-1].value == pytest.approx(0.9)
    assert mean[50].value == pytest.approx(0.5)  # half way: 0.3, 0.4 and 0.8
    assert events.Scalars("vs_env_steps/score")[-1].step == 5000
    assert events.Scalars("vs_milliseconds/score")[-1].step == 10_000
    assert "eval/success" not in events.Tags()["scalars"]  # which no row tells


def test_the_names_of_runs_have_no_needless_part_and_the_layout_opens_on_the_score(
    tmp_path: Path,
) -> None:
    report(comparison(tmp_path))
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    assert set(runs.Runs()) == {"Fake-v0", "Fake-v0/pde", "Fake-v0/ppo"}  # seeds made no events
    (kept,) = _events(tmp_path / "Fake-v0").Tensors("custom_scalars__config__")
    layout = Layout.FromString(kept.tensor_proto.string_val[0])
    opened = layout.category[0]
    # all of its charts, as TensorBoard does not keep their order
    assert opened.title == "score" and all("score" in chart.title for chart in opened.chart)
    first = opened.chart[0]
    assert first.title == "score: mean of seeds, 95% band"
    assert list(first.margin.series[0].DESCRIPTOR.fields_by_name) == ["value", "lower", "upper"]
    series = first.margin.series[0]
    assert (series.value, series.lower, series.upper) == (
        *("eval/score", "interval/score_low"),
        "interval/score_high",
    )


def test_settings_are_those_that_matter(tmp_path: Path) -> None:
    agent = PDE(env="girsanov/GaussianMixture-v0", device="cpu", seed=0, learning_rate=2e-3)
    settings = settings_of(agent)
    assert settings["learning_rate"] == 2e-3
    assert settings["n_trajectories"] == agent.n_trajectories
    assert not {"seed", "verbose", "device", "env"} & settings.keys()
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    agent.learning_rate = lambda remaining: remaining * np.float32(3.0)
    assert settings_of(agent)["learning_rate"] == 3.0


def test_only_finite_numbers_of_training_that_are_meant_for_it() -> None:
    values = {"train/loss": np.float32(0.5), "train/hole": float("nan"), "time/fps": 3}
    values |= {"rollout/ep_rew_mean": 2, "train/note": "x", "train/n_updates": 7}
    excluded = {"train/loss": (), "train/n_updates": ("tensorboard",)}
    assert told(values, excluded) == {"train/loss": 0.5, "rollout/ep_rew_mean": 2.0}


def test_a_functions_learner_has_no_settings_that_we_know() -> None:
    env = ProblemEnv(make_problem("girsanov/GaussianMixture-v0", steps=5))
    assert (
        settings_of(FunctionLearner(lambda observations: observations, CountedEnv(env), 1.0, 1.0))
        == {}
    )


def test_the_address_smooths_nothing_and_has_a_colour_for_each_agent() -> None:
    found = parse_qs(urlsplit(address()).query)
    pinned = json.loads(found.pop("pinnedCards")[0])
    assert pinned == [{"plugin": "scalars", "tag": "eval/score"}]
    assert found == {"smoothing": ["0"], "runColorGroup": ["regex:([^/]+/[^/]+)"]}
