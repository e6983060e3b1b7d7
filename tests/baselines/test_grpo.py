"""GRPO: advantages within groups, the clipped loss, and a raised objective on DDPM and flows."""

import pytest
import torch
from stable_baselines3.common.logger import configure

from girsanov.baselines.fine_tuning import move
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.grpo import GRPO, group_advantage
from girsanov.envs import make_problem
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.diffusion.step_table import StepTable, flow_times
from girsanov.envs.problem import objective

MIXTURE = "girsanov/GaussianMixture-v0"
SMALL = {"n_trajectories": 6, "gradient_steps": 2, "batch_size": 16}


def flow(table, temperature=0.5):
    means = [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    reward = QuadraticReward(2.0 * torch.eye(2), means[0])
    return GaussianMixture(means, 0.3, reward, temperature, schedule=table)


def small(env=MIXTURE, **kwargs):
    settings = {**SMALL, "policy_kwargs": {"hidden": [8]}, **kwargs}
    model = GRPO("MlpPolicy", env, seed=3, device="cpu", **settings)
    model.set_logger(configure(None, []))
    return model


def test_the_advantage_is_relative_to_the_group():
    reward = torch.tensor([1.0, 3.0, 10.0, 20.0, 60.0, 5.0])
    found = group_advantage(reward, torch.tensor([0, 0, 1, 1, 1, 2]))
    spread = torch.tensor([10.0, 20, 60]).std(correction=0)
    wanted = torch.cat([torch.tensor([-1.0, 1]), (reward[2:5] - 30) / spread, torch.zeros(1)])
    torch.testing.assert_close(found.advantage, wanted)
    torch.testing.assert_close(found.scale[:5], torch.tensor([1.0, 1, *[spread] * 3]))
    other = group_advantage(1000 + 50 * reward, torch.tensor([0, 0, 1, 1, 1, 2]))
    torch.testing.assert_close(other.advantage, wanted)  # in the group's own units


def test_every_step_has_its_paths_advantage_and_price():
    model = small(make_problem(MIXTURE, steps=5))
    paths, inputs = model.sample()
    rows = model.prepare(paths, inputs)
    found = group_advantage(paths.reward, torch.zeros(6, dtype=torch.long))
    steered = int(model.policy.steered.sum())
    assert rows.k.tolist() == [k for k in range(steered) for _ in range(6)]
    torch.testing.assert_close(rows.advantage, found.advantage.repeat(steered))
    torch.testing.assert_close(rows.price, (0.5 / found.scale).repeat(steered))
    model.kl_price = 0.04
    assert model.prepare(paths, inputs).price.unique().tolist() == pytest.approx([0.04])
    model.advantage_bound = 0.1
    assert float(model.prepare(paths, inputs).advantage.abs().max()) == pytest.approx(0.1)


def test_the_loss_is_clipped_and_pays_for_kl():
    model = small(make_problem(MIXTURE, steps=5))
    rows = model.prepare(*model.sample())
    model.policy.network.biases[-1].data.add_(0.3)
    with torch.no_grad():
        ratio, kl = move(model.policy, rows)
    assert float((ratio - 1).abs().max()) > 0.2
    reward = torch.minimum(ratio * rows.advantage, ratio.clamp(0.8, 1.2) * rows.advantage)
    torch.testing.assert_close(model.loss(rows).detach(), rows.price * kl - reward)


def test_it_is_not_ddpo():
    """DDPO's advantage counts the KL of later steps; at the start both are the same numbers."""
    problem = make_problem(MIXTURE, steps=5)
    ours = small(problem)
    theirs = DDPO("MlpPolicy", problem, seed=3, device="cpu", policy_kwargs={"hidden": [8]})
    paths, inputs = ours.sample()
    theirs.policy.load_state_dict(ours.policy.state_dict())
    one, other = ours.prepare(paths, inputs), theirs.prepare(paths, inputs)
    ratio = one.advantage / other.advantage
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    paths = paths._replace(controls=paths.controls + torch.randn_like(paths.controls))
    one, other = ours.prepare(paths, inputs), theirs.prepare(paths, inputs)
    ratio = one.advantage / other.advantage
    assert float(ratio.std()) > 1e-2


@pytest.mark.parametrize(
    "name, value", [("clip_range", 0), ("advantage_bound", -1), ("kl_price", 0)]
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number; got {value}"):
        small(**{name: value})


def test_saved_and_loaded(tmp_path):
    model = small(make_problem(MIXTURE, steps=5), kl_price=0.1).learn(60)
    model.save(tmp_path / "model")
    again = GRPO.load(tmp_path / "model.zip", env=make_problem(MIXTURE, steps=5), device="cpu")
    assert again.kl_price == 0.1
    for ours, theirs in zip(
        model.policy.state_dict().values(), again.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "table",
    [
        StepTable.flow_grpo(flow_times(10), 0.7),
        pytest.param(StepTable.rectified_flow(10), marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.slow),
    ],
    ids=["flow-grpo", "posterior", "ddpm"],
)
def test_the_objective_rises(table):
    problem = make_problem(MIXTURE, steps=10) if table is None else flow(table)
    model = GRPO.tuned(
        problem, seed=0, device="cpu", learning_rate=3e-3, policy_kwargs={"hidden": [32]}
    )
    model.learn(10 * 40 * 10)
    free, ours = (
        objective(problem, policy, 2000, torch.Generator().manual_seed(1)).objective
        for policy in (None, model.policy.control)
    )
    assert ours.mean - free.mean > 10 * (free.stderr + ours.stderr)
