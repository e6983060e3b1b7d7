"""SB3's callbacks with our agents: frequencies in environment steps, stops, and what is no stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    LogEveryNTimesteps,
)
from stable_baselines3.common.monitor import Monitor
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.callbacks import BatchCallback
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv, observe

STEPS = 10


def _problem(**kwargs: Any) -> Any:
    return make_problem("girsanov/GaussianMixture-v0", steps=STEPS, **kwargs)


def _agent(**kwargs: Any) -> PDE:
    small = {"n_uncontrolled": 100, "n_trajectories": 50, "gradient_steps": 2, "batch_size": 16}
    return PDE("MlpPolicy", _problem(), seed=0, device="cpu", **{**small, **kwargs})


def test_frequencies_count_environment_steps(tmp_path: Path) -> None:
    look = EvalCallback(
        Monitor(ProblemEnv(_problem())), eval_freq=500, n_eval_episodes=1, verbose=0, warn=False
    )
    save = CheckpointCallback(1000, str(tmp_path))
    model = _agent().learn(10_000, callback=[look, save])
    assert model.num_timesteps == 10_000
    assert len(look.evaluations_results or look.evaluations_timesteps) == 0  # no log path: no table
    assert look.n_calls == 10_000 and look.num_timesteps == 10_000
    # at the end of the batch of 100 or 50 steps that holds the multiple
    names = sorted(int(path.stem.split("_")[2]) for path in tmp_path.glob("rl_model_*_steps.zip"))
    assert names == list(range(1000, 10_001, 1000))


def test_evaluations_are_as_many_as_asked_for(tmp_path: Path) -> None:
    look = EvalCallback(
        Monitor(ProblemEnv(_problem())),
        eval_freq=500,
        n_eval_episodes=1,
        log_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    _agent().learn(10_000, callback=look)
    assert look.evaluations_timesteps == list(range(500, 10_001, 500))


def test_log_every_n_timesteps_logs() -> None:
    class Count(BaseCallback):
        written: list[int] = []

        def _on_training_start(self) -> None:
            dump = self.logger.dump
            self.logger.dump = lambda step: (self.written.append(step), dump(step))[1]  # type: ignore[method-assign]

        def _on_step(self) -> bool:
            return True

    count = Count()
    _agent().learn(3000, callback=[count, LogEveryNTimesteps(500)], log_interval=0)
    assert count.written == [500, 1000, 1500, 2000, 2500, 3000]


def test_a_stop_late_in_a_batch_comes_with_the_next() -> None:
    class Once(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls != 150  # in the second batch of 100

    model = _agent().learn(10**9, callback=Once())
    assert model.num_timesteps == 300 and model._n_updates == 0


def test_who_counts_no_calls_is_called_once_a_batch_also_in_a_list_beside_others() -> None:
    class Batches(BatchCallback):
        def _on_step(self) -> bool:
            return True

    class Steps(BaseCallback):
        def _on_step(self) -> bool:
            return True

    batches, steps, alone = Batches(), Steps(), Batches()
    _agent().learn(2000, callback=[CallbackList([batches, steps]), alone])
    assert steps.n_calls == steps.num_timesteps == 2000
    assert batches.n_calls == alone.n_calls == STEPS * (1 + 2)  # 100 paths, then 50 and 50
    assert batches.num_timesteps == 2000


def test_an_interrupted_error_of_the_reward_is_no_stop() -> None:
    def broken(x: Tensor) -> Tensor:
        raise InterruptedError("the labeller hung up")

    agent = _agent()
    agent.problem.terminal_reward = broken
    with pytest.raises(InterruptedError, match="the labeller hung up"):
        agent.learn(2000)


def test_a_diverged_agent_says_so() -> None:
    with pytest.raises(ValueError, match=r"it diverged: after .* updates .*; got 1e\+30"):
        _agent(learning_rate=1e30, gradient_steps=20).learn(10_000)


def test_predicts_for_a_problem_in_float64() -> None:
    problem = make_problem("girsanov/OrnsteinUhlenbeck-v0", dtype=torch.float64)
    agent = PDE("MlpPolicy", problem, seed=0, device="cpu", n_uncontrolled=4, gradient_steps=2)
    agent.learn(16)
    x = problem.initial(3, torch.Generator().manual_seed(0))
    observation = observe(problem, 2, x).float().numpy()
    control, _ = agent.predict(observation)
    assert control.dtype == np.float32
    expected = agent.policy.control(2, x.float().double()).flatten(1).float().detach().numpy()
    assert np.allclose(control, expected, atol=1e-5)
