"""A reward learnt from comparisons or ratings: the truth is found up to what it cannot say."""

from __future__ import annotations

import math

import pytest
import torch

from girsanov.agents import PDE, PIFT
from girsanov.envs import make_problem
from girsanov.envs.problem import objective
from girsanov.envs.rewards.preferences import LearnedReward


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth(x: torch.Tensor) -> torch.Tensor:
    return 2 * torch.sin(x[:, 0]) - x[:, 1].square()


def samples(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 2, generator=generator(seed))


@pytest.fixture(scope="module")
def compared() -> LearnedReward:
    """From 2,000 comparisons that follow Bradley and Terry."""
    x, y = samples(2000, 1), samples(2000, 2)
    first = torch.rand(2000, generator=generator(3)) < torch.sigmoid(truth(x) - truth(y))
    won = torch.where(first[:, None], x, y)
    return LearnedReward.from_comparisons(
        won, torch.where(first[:, None], y, x), generator(4), members=3, steps=300
    )


def test_comparisons_give_the_reward_in_nats_up_to_its_level(compared: LearnedReward) -> None:
    x = samples(500, 5)
    x = x[x.norm(dim=1) < 2]
    ours, theirs = compared(x), truth(x)
    slope = ((ours - ours.mean()) * (theirs - theirs.mean())).mean() / theirs.var()
    assert 0.75 < slope < 1.25, "in units of log odds"
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.95
    assert compared.held_out is not None and compared.held_out.n == 400
    assert compared.held_out.trivial == pytest.approx(math.log(2), abs=1e-5)
    assert compared.held_out.loss < 0.9 * compared.held_out.trivial
    assert (
        compared.members(torch.cat([samples(2000, 1), samples(2000, 2)])).mean(1).abs().max() < 1e-4
    )


def test_its_uncertainty_is_large_where_nobody_was_asked(compared: LearnedReward) -> None:
    near, far = samples(300, 6), 5 * samples(300, 7) / samples(300, 7).norm(dim=1, keepdim=True)
    assert compared.spread(far).mean() > 3 * compared.spread(near).mean()
    cautious = LearnedReward(list(compared.networks), pessimism=2.0)
    cautious.level.copy_(compared.level)
    assert torch.allclose(cautious(near), compared(near) - 2 * compared.spread(near), atol=1e-5)


def test_it_is_differentiable_and_leaves_its_weights_alone(compared: LearnedReward) -> None:
    x = samples(200, 8).requires_grad_()
    (slope,) = torch.autograd.grad(compared(x).sum(), x)
    wanted = torch.stack([2 * torch.cos(x[:, 0]), -2 * x[:, 1]], 1)
    cosine = (slope * wanted).sum(1) / slope.norm(dim=1) / wanted.norm(dim=1)
    assert cosine[x.norm(dim=1) < 1.5].mean() > 0.9
    assert not any(p.requires_grad for p in compared.parameters())
    assert torch.equal(compared(x, ["a prompt"] * 200), compared(x))


def test_ratings_of_any_scale() -> None:
    x = samples(1000, 9)
    ratings = 50 + 10 * truth(x) + torch.randn(1000, generator=generator(10))
    reward = LearnedReward.from_ratings(x, ratings, generator(11), members=2, steps=300)
    y = samples(300, 12)
    y = y[y.norm(dim=1) < 2]
    assert (reward(y) - 50 - 10 * truth(y)).abs().mean() < 3
    assert reward.held_out is not None and reward.held_out.loss < 0.1 * reward.held_out.trivial


def test_every_label_counts_and_the_seed_decides() -> None:
    x = samples(20, 13)
    one, two, other = (
        LearnedReward.from_comparisons(x[:10], x[10:], generator(seed), members=2, steps=5)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one(x), two(x)) and not torch.equal(one(x), other(x))


@pytest.mark.parametrize("agent", [PDE, PIFT])
def test_agents_learn_from_it(agent: type, compared: LearnedReward) -> None:
    problem = make_problem("girsanov/GaussianMixture-v0", steps=8, temperature=0.5)
    problem.reward = compared
    model = agent(env=problem, seed=0, device="cpu")
    model.learn(100 * 8)
    with torch.no_grad():
        free = objective(problem, None, 500, generator(14)).objective.mean
        found = objective(problem, model.policy.control, 500, generator(14)).objective.mean
    assert found > free + 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(5, 2), torch.zeros(5, 2)), "preferred must hold 10 labels at least; got 5"),
        ((torch.zeros(20, 2), torch.zeros(19, 2)), r"others must be of shape \(20, 2\)"),
        ((torch.full((20, 2), math.nan), torch.zeros(20, 2)), "preferred must be finite"),
        ((torch.zeros(20, 2).long(), torch.zeros(20, 2)), "preferred must be a floating tensor"),
    ],
)
def test_bad_labels_are_refused(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedReward.from_comparisons(*arguments, generator())


def test_bad_settings_are_refused() -> None:
    x = samples(20, 15)
    with pytest.raises(ValueError, match=r"ratings must be of shape \(20,\); got \(19,\)"):
        LearnedReward.from_ratings(x, torch.zeros(19), generator())
    with pytest.raises(ValueError, match="networks must be two or more; got 1"):
        LearnedReward.from_ratings(x, x[:, 0], generator(), members=1)
    with pytest.raises(ValueError, match="pessimism must be at least 0; got -1"):
        LearnedReward([torch.nn.Identity()] * 2, pessimism=-1)
