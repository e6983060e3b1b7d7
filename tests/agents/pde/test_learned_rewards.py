"""Rewards learnt from those seen, and paths imagined with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.pde.learned_rewards import LearnedRewards, imagine
from girsanov.agents.pde.replay import Replay
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import objective, rollout
from girsanov.envs.recording import Recording

STEPS = 10
FEW: dict[str, Any] = {
    "n_uncontrolled": 40,
    "n_trajectories": 20,
    "gradient_steps": 40,
    "batch_size": 256,
    "seed": 0,
    "device": "cpu",
    "policy_kwargs": {"hidden": [32, 32]},
}


class Counted(LinearQuadratic):
    """Counts the states whose rewards are asked for."""

    running = terminal = 0

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        Counted.running += len(x)
        return super().running_reward(k, x)

    def terminal_reward(self, x: Tensor) -> Tensor:
        Counted.terminal += len(x)
        return super().terminal_reward(x)


def problem() -> LinearQuadratic:
    return Counted.damped_rotation(2, steps=STEPS, temperature=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rewards_are_learnt_and_none_is_asked_for_by_imagined_paths() -> None:
    """From 200 paths: on fresh paths within a tenth of what rewards vary by."""
    truth = problem()
    data = Replay.of(truth, Recording.of(rollout(truth, None, 200, generator())))
    rewards = LearnedRewards(2, STEPS)
    running_loss, terminal_loss = rewards.regress(data, 400, generator())
    assert running_loss < 0.01 and terminal_loss < 0.01
    asked = Counted.running, Counted.terminal
    found = imagine(truth, rewards, None, 500, generator(1))
    assert asked == (Counted.running, Counted.terminal)
    real = Replay.of(truth, Recording.of(rollout(truth, None, 500, generator(1))))
    assert torch.equal(found.states, real.states)
    for mine, wanted in (
        (found.log_terminal, real.log_terminal),
        (found.log_reward[:, -1], real.log_reward[:, -1]),
    ):
        assert float((mine - wanted).square().mean().sqrt()) < 0.1 * float(wanted.std())
    assert float(found.log_terminal.max()) <= float(
        data.log_terminal.max()
    )  # kept between the rewards that were seen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards learnt badly, where that doesn't matter."""
    monkeypatch.setattr("girsanov.agents.pde.agent._REWARD_STEPS", 5)


@pytest.mark.usefixtures("quick")
def test_agents_ask_for_no_more_rewards_than_they_count() -> None:
    agent = PDE("MlpPolicy", problem(), imagined=50, **FEW)
    before = Counted.terminal, Counted.running
    agent.learn(STEPS * 80)
    assert (Counted.terminal - before[0], Counted.running - before[1]) == (80, 80 * STEPS)
    assert (agent.reward_queries, agent.num_timesteps) == (80, 80 * STEPS)


@pytest.mark.usefixtures("quick")
def test_regression_sees_the_newest_round_and_imagined_paths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(
        PDE, "_regress", lambda self, data, steps: seen.append((data.n, data.branches))
    )
    PDE("MlpPolicy", problem(), imagined=50, **FEW).learn(STEPS * 80)
    assert seen == [(40, None), (70, None), (70, None)]


def test_imagined_paths_lead_to_the_optimum() -> None:
    """Quadratic costs: at least 97 per cent of the way from no control to the exact optimum."""
    truth = problem()
    settings = {**FEW, "n_uncontrolled": 100, "n_trajectories": 50, "gradient_steps": 100}
    agent = PDE("MlpPolicy", truth, imagined=100, **settings).learn(STEPS * 400)
    free, mine = (
        objective(truth, c, 4000, generator(7)).objective for c in (None, agent.policy.control)
    )
    best = float(truth.optimal_objective())
    assert (mine.mean - free.mean) / (best - free.mean) > 0.97


@pytest.mark.usefixtures("quick")
def test_seeds_and_checkpoints(tmp_path: Path) -> None:
    def learnt(seed: int) -> PDE:
        return PDE("MlpPolicy", problem(), imagined=30, **{**FEW, "seed": seed}).learn(STEPS * 80)

    x = torch.randn(5, 2, generator=generator())
    one, same, other = (learnt(seed) for seed in (0, 0, 1))
    assert torch.equal(one.policy.control(3, x), same.policy.control(3, x))
    assert not torch.equal(one.policy.control(3, x), other.policy.control(3, x))
    one.save(tmp_path / "m")
    again = PDE.load(tmp_path / "m", env=problem(), device="cpu")
    assert again.imagined == 30 and torch.equal(
        again.policy.control(3, x), one.policy.control(3, x)
    )
    assert torch.equal(again.rewards.terminal_reward(x), one.rewards.terminal_reward(x))
    again.learn(STEPS * 20, reset_num_timesteps=False)


@pytest.mark.parametrize("policy", ["PolynomialPolicy", "ModelPolicy", "NoisePolicy"])
def test_imagined_paths_are_for_networks_that_know_the_transition(policy: str) -> None:
    with pytest.raises(ValueError, match=f"imagined must be 0 for {policy}"):
        PDE(policy, problem(), imagined=10)


def test_bad_numbers_and_recorded_data_are_refused() -> None:
    for number in (-1, 2.5, True):
        with pytest.raises(
            ValueError, match=f"imagined must be a whole number of at least 0; got {number}"
        ):
            PDE("MlpPolicy", problem(), imagined=number)
    paths = rollout(problem(), None, 4, generator())
    with pytest.raises(ValueError, match="imagined must be 0 for fit"):
        PDE("MlpPolicy", problem(), imagined=10, device="cpu").fit(paths)
