import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture
from girsanov.envs.problem import Problem
from girsanov.scoreboard.callback import ScoreCallback, Stopwatch
from girsanov.scoreboard.evaluation import reference_of
from girsanov.scoreboard.spec import Budget, EvaluationPlan

PLAN = EvaluationPlan(points=4, paths=20, final_paths=40, reference_paths=512)
PPO = {"n_envs": 4, "batch_size": 20, "n_epochs": 1}
BEFORE = "pre-trained"
SAC = {"n_envs": 4, "batch_size": 16, "gradient_steps": 1}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem("girsanov/GaussianMixture-v0", steps=5)


@pytest.fixture(scope="module")
def reference(problem: Problem) -> Any:
    return reference_of(problem, 512)


def learn(
    model: Any,
    problem: Problem,
    reference: Any,
    budget: Budget,
    folder: Path,
    plan: EvaluationPlan = PLAN,
) -> Any:
    callback = ScoreCallback(
        problem, reference, budget, plan, 0, folder / "progress.jsonl", folder / "tb"
    )
    length = getattr(model.get_env(), "episode_length", problem.horizon)
    model.learn(budget.timesteps(length, model.n_envs), callback=callback)
    callback.log_hyperparameters({"agent": type(model).__name__, "layers": [1]})
    callback.close()
    rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert callback.final == rows[-1]
    return rows


@pytest.mark.parametrize(
    ("amount", "unit"), [(200, "env_steps"), (40, "reward_queries"), (0.4, "seconds")]
)
def test_every_unit_ends_the_run(
    amount: float, unit: str, problem: Problem, reference: Any, tmp_path: Path
) -> None:
    rows = learn(
        make_ppo(problem, seed=0, device="cpu", **PPO),
        problem,
        reference,
        Budget(amount, unit),
        tmp_path,
    )
    assert rows[0]["env_steps"] == 0 and rows[0]["seconds"] == 0 and rows[0]["kl"] < 0.1
    assert amount <= rows[-1][unit] and (rows[-1][unit] < 1.5 * amount or unit == "seconds")
    assert (
        rows[-1]["paths"] == PLAN.final_paths
        and [row["paths"] for row in rows].count(PLAN.final_paths) == 1
    )
    assert len(rows) == PLAN.points + 1 or unit == "seconds"  # a slow machine may jump over points
    assert all(
        row["reward_queries"] == row["env_steps"] // 16 * 4 for row in rows
    )  # whole rounds of 4 lanes, 4 actions: the last step has no noise


def test_a_budget_in_counts_lets_the_last_batch_be_learnt_from(
    problem: Problem, reference: Any, tmp_path: Path
) -> None:
    model = make_ppo(problem, seed=0, device="cpu", **PPO)
    learn(model, problem, reference, Budget(8, "reward_queries"), tmp_path)
    assert model._n_updates == 2  # two rollouts of four lanes, an epoch each


def test_a_learner_that_does_not_stop_is_stopped(
    problem: Problem, reference: Any, tmp_path: Path
) -> None:
    model = make_ppo(problem, seed=0, device="cpu", **PPO)
    callback = ScoreCallback(
        problem,
        reference,
        Budget(40, "reward_queries"),
        PLAN,
        0,
        tmp_path / "progress.jsonl",
        tmp_path / "tb",
    )
    model.learn(100_000, callback=callback)
    callback.close()
    assert model.num_timesteps == 164  # one step of four lanes beyond the budget


def test_tags_are_the_same_for_every_agent(
    problem: Problem, reference: Any, tmp_path: Path
) -> None:
    tags = []
    for name, model in {
        "ppo": make_ppo(problem, seed=0, device="cpu", **PPO),
        "sac": make_sac(problem, seed=0, device="cpu", **SAC),
    }.items():
        (tmp_path / name).mkdir()
        rows = learn(model, problem, reference, Budget(40), tmp_path / name)
        events = EventAccumulator(str(tmp_path / name / "tb"))
        events.Reload()
        every = set(events.Tags()["scalars"])
        told = {tag for tag in every if tag.startswith(("train/", "rollout/"))}
        tags.append(every - told)
        for axis, unit in (
            ("eval", "reward_queries"),  # of the budget
            ("vs_reward_queries", "reward_queries"),
            ("vs_env_steps", "env_steps"),
        ):
            found = [(event.step, event.value) for event in events.Scalars(f"{axis}/score")]
            assert found == [(row[unit], pytest.approx(row["score"], rel=1e-5)) for row in rows]
        assert [e.step for e in events.Scalars("vs_milliseconds/kl")] == [
            round(1000 * r["seconds"]) for r in rows
        ]
        # the diagnostics of the learner, against the same steps, and none after the run
        loss = "train/value_loss" if name == "ppo" else "train/critic_loss"
        assert {loss, "train/learning_rate"} <= told
        steps = [event.step for event in events.Scalars(loss)]
        assert steps == sorted(steps) and 0 < steps[0] and steps[-1] <= rows[-1]["reward_queries"]
        assert not model.logger.output_formats
        settings = events.summary_metadata["_hparams_/session_start_info"]
        session = HParamsPluginData.FromString(settings.plugin_data.content).session_start_info
        known = {key: value.number_value for key, value in session.hparams.items()}
        assert known["gamma"] == 1 and known["batch_size"] == model.batch_size
        assert known["learning_rate"] == pytest.approx(model.lr_schedule(1.0))
        assert session.hparams["agent"].string_value == type(model).__name__
    assert tags[0] == tags[1]
    assert {
        f"eval/{name}" for name in ("objective", "objective_stderr", "reward", "kl", "score")
    } <= tags[0]
    assert {"time/env_steps", "time/reward_queries", "time/seconds", "final/score"} <= tags[0]


def test_evaluation_costs_no_training_time(
    problem: Problem, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from girsanov.scoreboard import callback as module

    honest = module.evaluate

    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return honest(*args)

    monkeypatch.setattr(module, "evaluate", slow)
    begin = time.perf_counter()
    rows = learn(
        make_ppo(problem, seed=0, device="cpu", **PPO), problem, reference, Budget(40), tmp_path
    )
    elapsed = time.perf_counter() - begin
    assert elapsed > 0.3 * len(rows)
    assert rows[-1]["seconds"] < elapsed - 0.3 * len(rows) + 1e-3


def test_evaluation_leaves_training_as_it_is(
    problem: Problem, reference: Any, tmp_path: Path
) -> None:
    watched, alone = (make_ppo(problem, seed=3, device="cpu", **PPO) for _ in range(2))
    alone.learn(200)
    watched = make_ppo(
        problem, seed=3, device="cpu", **PPO
    )  # SB3 seeds the global stream when a model is made
    learn(watched, problem, reference, Budget(200, "env_steps"), tmp_path)
    for mine, theirs in zip(watched.policy.parameters(), alone.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_the_past_of_a_loaded_model_is_not_counted(
    problem: Problem, reference: Any, tmp_path: Path
) -> None:
    model = make_ppo(problem, seed=0, device="cpu", **PPO)
    model.learn(64)
    callback = ScoreCallback(
        problem,
        reference,
        Budget(48, "env_steps"),
        PLAN,
        0,
        tmp_path / "progress.jsonl",
        tmp_path / "tb",
    )
    model.learn(48, callback=callback, reset_num_timesteps=False)
    callback.close()
    assert callback.final is not None
    assert (callback.final["env_steps"], model.num_timesteps) == (48, 112)


def test_stopwatch_stands_still() -> None:
    clock = Stopwatch(torch.device("cpu"))
    assert clock.seconds == 0
    clock.resume()
    time.sleep(0.02)
    clock.pause()
    seen = clock.seconds
    time.sleep(0.02)
    assert clock.seconds == seen >= 0.02


def test_pictures_of_the_same_noises_are_shown_at_every_look(
    reference: Any, tmp_path: Path
) -> None:
    class Pictures(GaussianMixture):
        def images(self, x: torch.Tensor) -> torch.Tensor:
            return x.clamp(0, 1).reshape(-1, 2, 1, 1)[:, :1]

        def prompts_of(self, x: torch.Tensor) -> list[str]:
            return ["left" if left else "right" for left in x[:, 0] < 0]

    mixture = make_problem("girsanov/GaussianMixture-v0", steps=5)
    mixture.__class__ = Pictures
    learn(
        make_ppo(mixture, seed=0, device="cpu", learning_rate=1e-9, **PPO),
        mixture,
        reference,
        Budget(40),
        tmp_path,
    )
    events = EventAccumulator(str(tmp_path / "tb"), {"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {
        f"images/{side}: {whose}" for side in ("left", "right") for whose in ("fine-tuned", BEFORE)
    }
    looks = events.Images("images/right: fine-tuned")
    assert [look.step for look in looks] == sorted({look.step for look in looks}) and len(
        looks
    ) == PLAN.points + 1
    assert (
        len({look.encoded_image_string for look in looks}) == 1
    )  # the policy does not move, and neither do the noises
    (before,) = events.Images(f"images/right: {BEFORE}")
    assert before.step == 0
