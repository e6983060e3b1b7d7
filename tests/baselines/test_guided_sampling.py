"""Sampling led by guesses: exact laws where they are known, a KL that is never told too small."""

import math

import pytest
import torch

from girsanov.baselines.guided_sampling import (
    best_of_n,
    feynman_kac,
    posterior_guidance,
    posterior_value,
)
from girsanov.envs import make_problem
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.diffusion.step_table import StepTable
from girsanov.envs.problem import Problem, objective

SLOPE, BETA = 0.8, 0.5


class OneStep(Problem):
    """``X_1 = z`` and a reward ``SLOPE X_1``: the optimum shifts z by ``SLOPE / BETA``."""

    state_shape = noise_shape = (1,)
    horizon = 1
    temperature = BETA

    def initial(self, n, generator):
        return torch.zeros(n, 1)

    def transition(self, k, x, z):
        return x + z

    def terminal_reward(self, x):
        return SLOPE * x[:, 0]


def guess(k, x):
    return SLOPE * x[:, 0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def near(samples, wanted):
    return abs(samples.mean() - wanted) < 4 * samples.std() / math.sqrt(len(samples))


def test_one_candidate_or_particle_is_the_pre_trained_model():
    for found in (
        best_of_n(OneStep(), 2000, seeded(), 1, guess),
        feynman_kac(OneStep(), 2000, seeded(), 1, guess),
    ):
        assert not found.kl.any() and near(found.reward, 0.0)


def test_the_best_of_four_normals():
    found = best_of_n(OneStep(), 20_000, seeded(), 4, guess, temperature=0)
    assert near(found.states[:, 0], 1.02938)  # the mean of their largest
    assert found.kl.unique().tolist() == pytest.approx([math.log(4) - 0.75])
    assert (found.transitions, found.values) == (80_000, 80_000)


@pytest.mark.parametrize("sample", [best_of_n, feynman_kac])
def test_many_particles_are_the_optimum_and_their_kl_is_the_true_one(sample):
    found = sample(OneStep(), 3000, seeded(), 256, guess)
    shift = SLOPE / BETA
    assert float(found.states.mean()) == pytest.approx(shift, abs=0.1)
    assert float(found.states.var()) == pytest.approx(1, abs=0.15)
    assert float(found.kl.mean()) == pytest.approx(shift**2 / 2, abs=0.15)
    assert found.objective(BETA).mean < SLOPE**2 / (2 * BETA) + 3 * found.objective(BETA).stderr


def test_particles_under_the_optimal_control_weigh_the_same():
    best = SLOPE / BETA
    found = feynman_kac(
        OneStep(), 4000, seeded(), 8, guess, policy=lambda k, x: torch.full_like(x, best)
    )
    # the density of every path, and nothing for being drawn: SLOPE z - BETA (best z - best^2 / 2)
    objective_of_each = found.reward - BETA * found.kl
    wanted = torch.full_like(found.kl, SLOPE**2 / (2 * BETA))
    torch.testing.assert_close(objective_of_each, wanted, rtol=1e-4, atol=1e-5)
    assert near(found.states[:, 0], best)


def test_the_gradient_of_the_guess_is_the_optimal_control_where_it_is_the_value():
    problem = OneStep()
    x = torch.zeros(3, 1)
    a = posterior_guidance(problem, value=guess)(0, x)
    torch.testing.assert_close(a, torch.full((3, 1), SLOPE / BETA))
    assert posterior_guidance(problem, 100.0, guess, bound=2.0)(0, x).tolist() == [[2.0]] * 3


def flow(steps=10):
    means = [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    reward = QuadraticReward(2.0 * torch.eye(2), means[0])
    return GaussianMixture(means, 0.3, reward, BETA, schedule=StepTable.rectified_flow(steps))


WAYS = {
    "soft": lambda p, n: best_of_n(p, n, seeded(), 4),
    "best": lambda p, n: best_of_n(p, n, seeded(), 2, temperature=0),
    "particles": lambda p, n: feynman_kac(p, n, seeded(), 16),
    "always": lambda p, n: feynman_kac(p, n, seeded(), 16, resample_below=1.1),
    "twisted": lambda p, n: feynman_kac(p, n, seeded(), 8, policy=posterior_guidance(p, 0.5)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "make", [flow, lambda: make_problem("girsanov/GaussianMixture-v0", steps=10)]
)
def test_the_objective_lies_below_the_optimum_and_the_reward_above_the_models(make, way):
    problem = make()
    found = WAYS[way](problem, 2000)
    start = problem.initial(20_000, seeded(1))
    most = float(problem.reference_value(0, start).mean())
    free = objective(problem, None, 5000, seeded(2)).objective
    ours = found.objective(BETA)
    assert ours.mean < most + 0.1
    assert found.reward.mean() > free.mean + 0.5 and found.kl.mean() > 0.2
    if way in ("particles", "twisted"):  # those that pay for few choices
        assert ours.mean > free.mean + 0.3


def test_running_rewards_count():
    """Particles moved by the optimal control of a linear-quadratic chain, weighed by its value."""
    problem = make_problem("girsanov/LinearQuadratic-v0")
    found = feynman_kac(
        problem, 4000, seeded(), 4, problem.optimal_value, problem.optimal_control
    ).objective(problem.temperature)
    wanted = objective(problem, problem.optimal_control, 4000, seeded(3)).objective
    assert found.mean > wanted.mean - 4 * (found.stderr + wanted.stderr)
    assert found.mean < wanted.mean + 0.1 * abs(wanted.mean) + 4 * found.stderr


def test_bad_arguments_are_named():
    problem = OneStep()
    with pytest.raises(ValueError, match="without terminal_estimate; got None for OneStep"):
        posterior_value(problem)
    with pytest.raises(ValueError, match="candidates must be a whole number of at least 1; got 0"):
        best_of_n(problem, 3, seeded(), 0, guess)
    with pytest.raises(ValueError, match="particles must be a whole number of at least 1; got 0"):
        feynman_kac(problem, 3, seeded(), 0, guess)
    with pytest.raises(ValueError, match="gradients of the transition and the reward; OneStep"):
        posterior_guidance(problem, value=lambda k, x: x.detach().sum(1))(0, torch.zeros(1, 1))
