"""The log-variance loss: its gradient is that of a variance, zero at the optimum of every start,
and the objective rises.
"""

import pytest
import torch
from stable_baselines3.common.logger import configure

from girsanov.baselines.fine_tuning_methods.log_variance import LogVariance
from girsanov.envs import make_problem
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.diffusion.step_table import StepTable
from girsanov.envs.problem import objective

MIXTURE = "girsanov/GaussianMixture-v0"


def small(env, **kwargs):
    settings = {"n_trajectories": 6, "group_size": 3, "policy_kwargs": {"hidden": [8]}, **kwargs}
    model = LogVariance("MlpPolicy", env, seed=3, device="cpu", **settings)
    model.set_logger(configure(None, []))
    return model


def test_groups_share_their_start():
    model = small(make_problem(MIXTURE, steps=5))
    start = model.sample()[0].states[0]
    assert torch.equal(start[0].expand(3, -1), start[:3])
    assert torch.equal(start[3].expand(3, -1), start[3:]) and not torch.equal(start[0], start[3])


def test_the_gradient_is_that_of_the_variance_within_groups():
    problem = make_problem(MIXTURE, steps=5)
    model = small(problem)
    paths, inputs = model.sample()
    rows = model.prepare(paths, inputs)
    with torch.no_grad():
        for weight in model.policy.network.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))  # now it is not who sampled
    taken = paths.controls + paths.noises
    ratio = torch.zeros(6)
    for k in range(5):
        a = model.policy.control(k, paths.states[k])
        ratio = ratio + (a * (taken[k] - 0.5 * a)).sum(1)
    balance = (problem.temperature * ratio - paths.reward).view(2, 3)
    half = 0.5 * balance.var(1, correction=0).mean() / problem.temperature
    weights = list(model.policy.network.parameters())
    wanted = torch.autograd.grad(half, weights)
    ours = torch.autograd.grad(model.loss(model.weighed(rows, paths.reward)).sum(), weights)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert max(float(part.abs().max()) for part in wanted) > 1e-3


def test_a_batch_in_parts_has_the_same_gradient():
    model = small(make_problem(MIXTURE, steps=5))
    rows = model.prepare(*model.sample())
    whole = model.loss(rows).sum()
    model.policy.micro_batch = 4
    parts = model.parts_of(rows)
    assert len(parts) == 6
    torch.testing.assert_close(sum(model.loss(part).sum() for part in parts), whole)


def test_at_the_optimum_every_path_from_a_start_has_one_balance():
    """One step with a linear reward: the optimal control is a constant, and no path tells more."""
    slope = torch.tensor([0.7, -0.3])
    reward = QuadraticReward(torch.zeros(2, 2), torch.zeros(2), slope)
    table = StepTable.of([0.5, 0.9], [0.8, 0.4])
    problem = GaussianMixture([[0.0, 0.0]], 0.5, reward, 0.5, schedule=table)
    model = small(problem, n_trajectories=40, group_size=20)
    paths, inputs = model.sample()
    best = problem.schedule.sigma[0] * slope / problem.temperature
    model.policy.output = lambda k, x: best.expand(len(x), 2)
    rows = model.prepare(paths, inputs)
    assert float(rows.weight.abs().max()) < 1e-6
    model.policy.output = lambda k, x: 1.5 * best.expand(len(x), 2)
    assert float(model.weighed(rows, paths.reward).weight.abs().max()) > 1e-4


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="group_size must divide n_trajectories = 6; got 4"):
        small(MIXTURE, group_size=4)
    with pytest.raises(ValueError, match="group_size must be a whole number of at least 2; got 1"):
        small(MIXTURE, group_size=1)


def test_saved_and_loaded(tmp_path):
    model = small(make_problem(MIXTURE, steps=5)).learn(60)
    assert model._n_updates == 8 and model.reward_queries == 12
    model.save(tmp_path / "model")
    again = LogVariance.load(tmp_path / "model.zip", env=make_problem(MIXTURE, steps=5))
    assert again.group_size == 3
    for ours, theirs in zip(
        model.policy.state_dict().values(), again.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "table",
    [StepTable.rectified_flow(10), pytest.param(None, marks=pytest.mark.slow)],
    ids=["flow", "ddpm"],
)
def test_the_objective_rises(table):
    means = [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    reward = QuadraticReward(2.0 * torch.eye(2), means[0])
    problem = GaussianMixture(means, 0.3, reward, 0.5, schedule=table)
    model = LogVariance.tuned(
        problem, seed=0, device="cpu", learning_rate=3e-3, policy_kwargs={"hidden": [32]}
    )
    model.learn(25 * 40 * problem.horizon)
    free, ours = (
        objective(problem, policy, 2000, torch.Generator().manual_seed(1)).objective
        for policy in (None, model.policy.control)
    )
    assert ours.mean - free.mean > 10 * (free.stderr + ours.stderr)
