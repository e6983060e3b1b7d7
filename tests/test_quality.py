"""A guard on learning itself: short runs on Digits must come as far as they do today, less what
seeds differ by.
"""

from __future__ import annotations

import pytest

from girsanov.scoreboard.callback import episode_length
from girsanov.scoreboard.evaluation import evaluate, generator_on, policy_of
from girsanov.scoreboard.registry import find_agent, make_env
from girsanov.scoreboard.spec import Budget

#: J without control and the bound, from 8,192 uncontrolled paths (benchmarks/results/digits).
FREE, BOUND = -5.018, -0.770


@pytest.mark.parametrize(
    "agent, queries, least",  # of two seeds each: 0.54 and 0.54, 0.53 and 0.58, 0.37 and 0.38
    [("ppo", 800, 0.42), ("pi-ft", 300, 0.42), ("pde", 150, 0.28)],
)
def test_short_runs_on_digits_come_as_far_as_they_did(
    agent: str, queries: int, least: float
) -> None:
    env = make_env("girsanov/Digits-v0", {}, "cpu")
    model = find_agent(agent).make(env, seed=0, device="cpu")
    model.learn(Budget(queries).timesteps(episode_length(model, env.problem), model.n_envs))
    acting = policy_of(model, env.problem)
    value = evaluate(env.problem, acting, 256, generator_on(env.problem, 5)).value
    assert (value.objective.mean - FREE) / (BOUND - FREE) > least
