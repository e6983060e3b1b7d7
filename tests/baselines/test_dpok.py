"""The score-function gradients of DPOK and DDPO against finite differences of J, and what clipping
does.
"""

import pytest
import torch
from stable_baselines3.common.logger import configure

from girsanov.baselines.fine_tuning import Steps, returns_to_go
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO, ddpo_loss
from girsanov.baselines.fine_tuning_methods.dpok import DPOK, dpok_loss
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout

BATCHES, PATHS, EPSILON = 50, 2000, 0.01  # 1e5 paths in all


@pytest.fixture(scope="module")
def problem():
    """A chain on which KL is most of what is at stake."""
    eye = torch.eye(2)
    rewards = {"terminal_matrix": 0.1 * eye, "running_slope": 0.1 * torch.ones(2)}
    return LinearQuadratic(
        drift_matrix=eye,
        noise_matrix=0.7 * eye,
        initial_covariance=eye,
        horizon=4,
        temperature=1.0,
        **rewards,
    )


def a_model(tuner, problem):
    model = tuner(
        "MlpPolicy",
        ProblemEnv(problem, action_bound=3.0),
        seed=0,
        device="cpu",
        policy_kwargs={"hidden": [3]},
    )
    g = torch.Generator().manual_seed(5)
    for parameter in model.policy.parameters():
        parameter.data.add_(0.7 * torch.randn(parameter.shape, generator=g))
    model.set_logger(configure(None, []))
    return model


def sample(problem, policy, n, seed):
    """Paths whose noise depends on the seed alone, and their encoded states."""
    with torch.no_grad():
        paths = rollout(problem, policy.control, n, torch.Generator().manual_seed(seed))
        return paths, torch.stack(
            [policy.inputs(k, paths.states[k]) for k in range(problem.horizon)]
        )


def mean_j(problem, policy, seed):
    paths, _ = sample(problem, policy, PATHS, seed)
    return float((paths.reward - problem.temperature * paths.kl).double().mean())


def t_statistic(problem, model, gradient, direction):
    """Of the mean difference, by batches, between ``gradient(paths, inputs)`` and that of J, both
    along ``direction``.
    """
    parameters = list(model.policy.parameters())
    norm = sum(d.square().sum() for d in direction).sqrt()
    direction = [d / norm for d in direction]

    def shift(size):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(size * d)

    difference, slopes = [], []
    for batch in range(BATCHES):
        shift(EPSILON)
        above = mean_j(problem, model.policy, batch)
        shift(-2 * EPSILON)
        below = mean_j(problem, model.policy, batch)
        shift(EPSILON)
        found = torch.autograd.grad(
            gradient(*sample(problem, model.policy, PATHS, 1000 + batch)), parameters
        )
        slopes.append((above - below) / (2 * EPSILON))
        difference.append(
            float(sum((f * d).sum() for f, d in zip(found, direction, strict=True))) - slopes[-1]
        )
    d = torch.tensor(difference, dtype=torch.float64)
    assert abs(sum(slopes) / BATCHES) > 0.5, "there is something to find"
    return float(d.mean() / (d.std() / BATCHES**0.5))


def random_direction(model):
    g = torch.Generator().manual_seed(7)
    return [torch.randn(p.shape, generator=g) for p in model.policy.parameters()]


def test_dpoks_gradient_is_that_of_j_and_the_papers_own_is_not(problem):
    model = a_model(DPOK, problem)
    critic = torch.nn.Linear(
        model.policy.network.weights[0].shape[1], 1
    )  # any function of the state will do

    def gradient(kl_in_reward):
        def of(paths, inputs):
            beta = problem.temperature
            with torch.no_grad():
                value = torch.stack(
                    [
                        critic(model.policy.features(k, inputs[k]))[:, 0]
                        for k in range(problem.horizon)
                    ]
                )
            advantage = returns_to_go(paths, beta, kl_in_reward) - value
            steps = Steps.of(model.policy, paths, inputs, advantage, torch.tensor(beta))
            return -dpok_loss(model.policy, steps, clip_range=0.2).sum() / paths.noises.shape[1]

        return of

    assert abs(t_statistic(problem, model, gradient(True), random_direction(model))) < 4
    pilot = sample(problem, model.policy, 20_000, 99)
    whole, papers = (
        torch.autograd.grad(gradient(kl_in_reward)(*pilot), list(model.policy.parameters()))
        for kl_in_reward in (True, False)
    )
    between = [a - b for a, b in zip(whole, papers, strict=True)]
    assert abs(t_statistic(problem, model, gradient(True), between)) < 4
    assert abs(t_statistic(problem, model, gradient(False), between)) > 10


def test_ddpos_gradient_is_that_of_j_over_the_returns_deviation(problem):
    model = a_model(DDPO, problem)
    model._n_updates, model.advantage_bound = 1, 1e6

    def gradient(paths, inputs):
        steps = model.prepare(paths, inputs)
        scale = problem.temperature / steps.price[0]
        return -ddpo_loss(model.policy, steps, clip_range=0.2).sum() / PATHS * scale

    assert abs(t_statistic(problem, model, gradient, random_direction(model))) < 4


def test_clipping(problem):
    """DPOK clamps the ratio whatever the advantage's sign; PPO's minimum clips only what would go
    further the wrong way.
    """
    model = a_model(DPOK, problem)
    x = torch.zeros(4, 2)
    inputs = model.policy.inputs(0, x)
    now = model.policy.output(0, inputs).detach()
    # rows 0, 1: the policy has moved far towards the noise drawn (ratio > 1); rows 2, 3: far from
    # it (ratio < 1)
    old = now - torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None]
    noise = torch.ones(4, 2) * 2
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    steps = Steps(torch.zeros(4, dtype=torch.long), inputs, noise, old, advantage, torch.zeros(4))

    def moves(loss):
        rows = loss(model.policy, steps, 0.2)
        return [
            any(
                g.abs().max() > 0
                for g in torch.autograd.grad(
                    row, model.policy.network.parameters(), retain_graph=True
                )
            )
            for row in rows
        ]

    assert moves(dpok_loss) == [False, False, False, False]
    assert moves(ddpo_loss) == [False, True, True, False]


def test_the_buffer_is_first_in_first_out_and_the_critic_learns(problem):
    model = DPOK(
        "MlpPolicy",
        problem,
        seed=0,
        device="cpu",
        n_trajectories=50,
        memory=2,
        critic_steps=60,
        critic_learning_rate=1e-2,
    )
    model.set_logger(configure(None, []))
    sampled = [model.sample() for _ in range(3)]
    for paths, inputs in sampled:
        steps = model.prepare(paths, inputs)
    assert len(steps.k) == 2 * 50 * problem.horizon
    kept = torch.cat([paths.noises.flatten(0, 1) for paths, _ in sampled[1:]])
    assert torch.equal(steps.noise, kept)
    to_go = (
        torch.cat([returns_to_go(paths, problem.temperature).flatten() for paths, _ in sampled[1:]])
        / problem.temperature
    )
    assert steps.advantage.var() < 0.8 * to_go.var()
    plain = DPOK("MlpPolicy", problem, seed=0, device="cpu", n_trajectories=50, critic_steps=0)
    plain.set_logger(configure(None, []))
    assert plain.prepare(*plain.sample()).advantage.mean().abs() < 1e-5
