"""DRaFT-K: its gradient is that of naive back-propagation through the last K steps."""

import copy

import pytest
import torch
from stable_baselines3.common.logger import configure

from girsanov.baselines.fine_tuning_methods.draft import DRaFT
from girsanov.envs import make_problem
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.diffusion.step_table import StepTable
from girsanov.envs.problem import rollout

MIXTURE = "girsanov/GaussianMixture-v0"
TABLES = {"ddpm": None, "flow": StepTable.rectified_flow(6), "karras": StepTable.karras(6)}


def problem_on(table, reward=None, steps=6):
    if table is None:
        return make_problem(MIXTURE, steps=steps).to(dtype=torch.float64)
    means = [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    reward = reward or QuadraticReward(2.0 * torch.eye(2), means[0])
    return GaussianMixture(means, 0.3, reward, 0.5, schedule=table, dtype=torch.float64)


def small(problem, **kwargs):
    settings = {"n_trajectories": 5, "policy_kwargs": {"hidden": [8]}, **kwargs}
    model = DRaFT("MlpPolicy", problem, seed=3, device="cpu", **settings)
    model.set_logger(configure(None, []))
    return model


def perturbed(model):
    g = torch.Generator().manual_seed(0)
    model.policy.double()
    model._n_updates = 1  # the units of the inputs stay
    for parameter in model.policy.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    model.policy.inputs = lambda k, x: model.problem.terminal_estimate(k, x).flatten(
        1
    )  # without the rounding to float32
    return model


def naive(model, paths, truncation):
    """Minus the gradient of the mean of J, with the state before the last steps taken as given.

    The sweep counts ``a . W`` to the price of later steps, which is zero in the mean: so does this.
    """
    problem, horizon = model.problem, model.problem.horizon
    still = horizon - int(model.policy.steered.sum())
    start = horizon - still - truncation
    frozen = copy.deepcopy(model.policy).requires_grad_(False)
    x = paths.states[start].detach()
    value = 0.0
    for k in range(start, horizon):
        a, w = model.policy.control(k, x), paths.noises[k]
        price = 0.5 * a.square() + frozen.control(k, x) * w
        value = value - problem.temperature * price.flatten(1).sum(1)
        x = problem.transition(k, x, w + a)
    value = (value + problem.terminal_reward(x)).mean()
    return torch.autograd.grad(-value, list(model.policy.parameters()))


@pytest.mark.parametrize("truncation", [1, 3, 5])
@pytest.mark.parametrize("table", TABLES)
def test_the_gradient_is_naive_back_propagation(table, truncation):
    model = perturbed(small(problem_on(TABLES[table]), truncation=truncation))
    assert model.policy.steered.tolist() == [True] * 5 + [False]  # the last one is not counted
    paths, inputs = model.sample()
    rows = model.prepare(paths, inputs)
    assert rows.k.unique().tolist() == list(range(5 - truncation, 5))
    model.gradient(rows)
    wanted = naive(model, paths, truncation)
    assert max(float(w.abs().max()) for w in wanted) > 1e-3
    for parameter, gradient in zip(model.policy.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)


def test_all_steps_are_pi_ft():
    model = perturbed(small(problem_on(None), truncation=None))
    paths, inputs = model.sample()
    model.gradient(model.prepare(paths, inputs))
    whole = [p.grad.clone() for p in model.policy.parameters()]
    model.truncation = 5
    model.gradient(model.prepare(paths, inputs))
    assert all(
        torch.equal(p.grad, w) for p, w in zip(model.policy.parameters(), whole, strict=True)
    )
    model.policy.micro_batch = 3  # a part of the rows at a time
    model.gradient(model.prepare(paths, inputs))
    for parameter, wanted in zip(model.policy.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_saved_and_loaded(tmp_path):
    problem = make_problem(MIXTURE, steps=5)
    model = small(problem, truncation=2).learn(50)
    model.save(tmp_path / "model")
    again = DRaFT.load(tmp_path / "model.zip", env=problem, device="cpu")
    assert again.truncation == 2 and again.n_trajectories == 5
    for ours, theirs in zip(
        model.policy.state_dict().values(), again.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_bad_arguments_and_black_boxes_are_named():
    with pytest.raises(ValueError, match="truncation must be a whole number of at least 1; got 0"):
        small(make_problem(MIXTURE), truncation=0)
    black = problem_on(TABLES["flow"], lambda x: x.detach().sum(1))
    with pytest.raises(ValueError, match="DRaFT needs a gradient of the rewards; GaussianMixture"):
        small(black)


@pytest.mark.parametrize(
    "table, truncation", [("flow", 3), pytest.param("ddpm", 1, marks=pytest.mark.slow)]
)
def test_the_objective_rises(table, truncation):
    problem = problem_on(TABLES[table], steps=10).to(dtype=torch.float32)
    model = DRaFT.tuned(
        problem,
        seed=0,
        device="cpu",
        learning_rate=1e-2,
        truncation=truncation,
        policy_kwargs={"hidden": [32]},
    )
    model.learn(25 * 40 * problem.horizon)
    with torch.no_grad():  # from the same noises
        free, ours = (
            rollout(problem, policy, 2000, torch.Generator().manual_seed(1))
            for policy in (None, model.policy.control)
        )
    gain = ours.reward - problem.temperature * ours.kl - free.reward
    assert gain.mean() > 5 * gain.std() / 2000**0.5
