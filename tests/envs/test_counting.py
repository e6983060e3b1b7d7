"""Model evaluations: counted where they happen, in every copy, and never by a look."""

from __future__ import annotations

import torch

from girsanov.agents import PDE
from girsanov.baselines.sb3 import make_ppo
from girsanov.envs import make_problem
from girsanov.envs.counting import counted
from girsanov.envs.problem import objective, rollout


def test_a_rollout_costs_its_transitions() -> None:
    plain = make_problem("girsanov/Pendulum-v0")
    problem, evaluations = counted(plain)
    generator = torch.Generator().manual_seed(0)
    paths = rollout(problem, None, 7, generator)
    assert evaluations.count == 7 * problem.horizon
    again = rollout(plain, None, 7, torch.Generator().manual_seed(0))
    assert torch.equal(paths.states, again.states)  # counting changes nothing
    assert evaluations.count == 7 * problem.horizon  # and the original does not count
    objective(problem.to(dtype=torch.float64), None, 5, generator)
    assert evaluations.count == 12 * problem.horizon  # copies share the count
    with evaluations.paused():
        objective(problem, None, 5, generator)
    assert evaluations.count == 12 * problem.horizon
    assert isinstance(problem, type(plain)) and type(problem).__name__ == "Pendulum"


def test_a_denoiser_asked_twice_about_one_state_is_computed_once() -> None:
    problem, evaluations = counted(make_problem("girsanov/Digits-v0"))
    x = problem.initial(3, torch.Generator().manual_seed(0))
    problem.terminal_estimate(4, x)
    problem.transition(4, x, torch.zeros_like(x))
    assert evaluations.count == 3


def test_what_agents_ask_beyond_their_paths_is_seen() -> None:
    """PDE looks one step ahead by fresh noise: more evaluations than steps. PPO sees estimates."""
    for make, least in ((lambda p: PDE("MlpPolicy", p, seed=0), 2.0), (make_ppo, 1.0)):
        problem, evaluations = counted(make_problem("girsanov/GaussianMixture-v0", steps=5))
        model = make(problem)
        model.learn(5 * 200)
        assert evaluations.count > least * model.num_timesteps
