"""Dyna: PPO on imagined paths with learnt rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from girsanov.baselines.dyna import Dreamt, Dyna
from girsanov.envs import make_problem
from girsanov.envs.counting import counted
from girsanov.envs.problem import Problem, objective

SMALL = {"n_trajectories": 20, "imagined": 200, "ppo": {"n_envs": 20, "net_arch": [16]}}


class Walk(Problem):
    """Three steps, paid for the end and on the way; the best constant control is 0.5."""

    state_shape = noise_shape = (1,)
    horizon, temperature = 3, 1.0
    asked = 0

    def initial(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(n, 1)

    def transition(self, k: int | torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return x + z

    def terminal_reward(self, x: torch.Tensor) -> torch.Tensor:
        Walk.asked += len(x)
        return 0.5 * x[:, 0]


def test_learns_and_asks_for_no_more_rewards_than_it_counts() -> None:
    problem, evaluations = counted(Walk())
    model = Dyna("MlpPolicy", problem, seed=0, **SMALL)
    Walk.asked = 0
    model.learn(3 * 160)
    assert Walk.asked == model.reward_queries == 160
    assert evaluations.count > 160 * 3 + 8 * 200 * 3  # dreams cost evaluations, and are counted
    value = objective(problem, model.policy.control, 4000, torch.Generator()).objective
    best = 3 * 0.5**2 / 2  # a = 0.5 in every step
    assert value.mean > 0.7 * best - 3 * value.stderr


def test_acts_by_one_step_a_row_as_by_one_for_all() -> None:
    problem = make_problem("girsanov/Pendulum-v0")
    model = Dyna("MlpPolicy", problem, seed=0, **SMALL)
    for parameter in model.policy.actor.parameters():
        parameter.data.add_(0.1)
    x = problem.initial(4, torch.Generator().manual_seed(0))
    k = torch.tensor([0, 5, 0, 9])
    rows = torch.cat([model.policy.control(int(k[i]), x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model.policy.control(k, x), rows)
    assert rows.abs().max() > 0


def test_same_seed_and_reload(tmp_path: Path) -> None:
    problem = make_problem("girsanov/GaussianMixture-v0", steps=4)
    x = problem.initial(5, torch.Generator().manual_seed(0))
    controls = []
    for seed in (0, 0, 1):
        model = Dyna("MlpPolicy", problem, seed=seed, **SMALL)
        model.learn(4 * 40)
        controls.append(model.policy.control(2, x))
    assert torch.equal(controls[0], controls[1]) and not torch.equal(controls[0], controls[2])
    model.save(tmp_path / "dyna")
    loaded = Dyna.load(tmp_path / "dyna", env=problem)
    assert torch.equal(loaded.policy.control(2, x), controls[2])
    loaded.learn(4 * 20, reset_num_timesteps=False)
    assert loaded.reward_queries == 60


def test_the_dream_offers_what_the_problem_offers() -> None:
    digits, pendulum = (make_problem(f"girsanov/{n}-v0") for n in ("Digits", "Pendulum"))
    dream = Dreamt(digits, Dyna("MlpPolicy", digits, seed=0, **SMALL).rewards)
    x = digits.initial(2, torch.Generator().manual_seed(0))
    assert torch.equal(dream.terminal_estimate(3, x), digits.terminal_estimate(3, x))
    plain = Dreamt(pendulum, Dyna("MlpPolicy", pendulum, seed=0, **SMALL).rewards)
    assert not hasattr(plain, "terminal_estimate")


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="imagined must be a whole number of at least 1; got 0"):
        Dyna("MlpPolicy", Walk(), imagined=0)
