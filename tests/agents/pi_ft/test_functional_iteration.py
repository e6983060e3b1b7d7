"""Functional PI-FT: its backup against closed forms, its inner iterations against lambda, and what
it reaches.
"""

import pytest
import torch

from girsanov.agents import PIFT
from girsanov.agents.pi_ft.regularity import quadratic_contraction
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import objective, rollout


def chain(temperature=0.5) -> LinearQuadratic:
    return LinearQuadratic.damped_rotation(dimension=3, steps=6, temperature=temperature)


def agent(problem, **kwargs) -> PIFT:
    return PIFT(
        "FunctionalPolicy", ProblemEnv(problem, action_bound=20.0), seed=0, device="cpu", **kwargs
    )


def states(problem, n=20):
    return rollout(problem, None, n, torch.Generator().manual_seed(3)).states


def test_the_backup_at_the_last_step_is_the_riccati_value_gradient_and_control():
    """V_T is the reward itself, so with many inner iterations nothing is fitted: antithetic pairs
    leave no error of first order, and of a quadratic's second order only in the value."""
    problem = chain().to(dtype=torch.float64)
    policy = agent(problem, policy_kwargs={"iterations": 40, "damping": 1.0, "draws": 400}).policy
    k, solution = problem.horizon - 1, problem.solution
    x = states(problem)[k]
    found = policy.backup(k, x, torch.Generator().manual_seed(0))
    exact = solution.slope[k] - torch.einsum("de,ne->nd", solution.matrix[k], x)
    assert torch.allclose(found.gradient, exact, atol=1e-9)
    assert torch.allclose(found.value, problem.optimal_value(k, x), atol=0.05)
    policy.fitted.fill_(True)
    assert torch.allclose(policy.control(k, x), problem.optimal_control(k, x), atol=1e-9)
    assert float(found.contraction.max()) <= float(quadratic_contraction(problem)[k]) * (1 + 1e-9)


def test_nothing_is_controlled_before_the_first_sweep():
    problem = chain()
    x = states(problem)[2]
    assert torch.equal(agent(problem).policy.control(2, x), torch.zeros_like(x))


def test_one_sweep_reaches_the_optimum_of_a_linear_quadratic_chain():
    problem = chain()
    model = agent(problem, n_trajectories=100).learn(1)
    paths = states(problem, 200)
    for k in range(problem.horizon):
        exact = problem.optimal_control(k, paths[k])
        assert (model.policy.control(k, paths[k]) - exact).norm() < 0.1 * exact.norm()
    worth = objective(
        problem, model.policy.control, 20_000, torch.Generator().manual_seed(1)
    ).objective
    base = objective(problem, None, 20_000, torch.Generator().manual_seed(1)).objective
    assert worth.mean - base.mean > 0.98 * (problem.optimal_objective() - base.mean)


def test_rewards_seen_are_counted():
    """At the last step V_T is asked at every draw of every iteration, of uncontrolled and
    controlled paths alike.
    """
    model = agent(chain(), n_trajectories=10, policy_kwargs={"iterations": 2, "draws": 3}).learn(1)
    assert model.num_timesteps == 2 * 10 * 6
    assert model.reward_queries == 20 + (2 + 1) * 2 * 3 * 20


def test_a_row_of_steps_is_each_steps_control():
    problem = chain()
    model = agent(problem, n_trajectories=20).learn(1)
    x, k = states(problem, 6)[2], torch.tensor([0, 5, 3, 3, 1, 0])
    rows = torch.cat([model.policy.control(int(step), x[i : i + 1]) for i, step in enumerate(k)])
    assert torch.allclose(model.policy.control(k, x), rows, atol=1e-6)
    assert rows.abs().max() > 0.1


def test_survives_save_and_load(tmp_path):
    problem = chain()
    model = agent(problem, n_trajectories=20).learn(1)
    model.save(tmp_path / "m")
    again = PIFT.load(tmp_path / "m", env=ProblemEnv(problem, action_bound=20.0), device="cpu")
    x = states(problem)[1]
    assert torch.equal(model.policy.control(1, x), again.policy.control(1, x))
    assert again.reward_queries == model.reward_queries


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_reaches_the_closed_form_of_a_mixture(beta):
    problem = make_problem("girsanov/GaussianMixture-v0", temperature=beta)
    model = agent(problem, n_trajectories=250).learn(1)
    values = [
        objective(problem, policy, 8192, torch.Generator().manual_seed(1)).objective.mean
        for policy in (None, problem.reference_control, model.policy.control)
    ]
    assert (values[2] - values[0]) / (values[1] - values[0]) > 0.995
