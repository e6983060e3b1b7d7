"""Mou's estimator alone: its inequality by hand, its rates for a correct class, and the agent."""

import math

import pytest
import torch
from torch import Tensor

from girsanov.agents.pde.classes.length_scale import RadialValue
from girsanov.agents.pde.mou.agent import MouPDE
from girsanov.agents.pde.mou.estimator import observed, solve
from girsanov.agents.pde.norms import sobolev_errors
from girsanov.agents.pde.replay import Replay
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout
from girsanov.envs.recording import Recording
from girsanov.scoreboard.registry import find_agent

HORIZON = 8
PROBLEM = LinearQuadratic.damped_rotation(2, steps=HORIZON, temperature=2.0)
PROBLEM = PROBLEM.to(dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_truth(k: int | Tensor, x: Tensor) -> Tensor:
    return PROBLEM.log_moment_value(k, x) / PROBLEM.temperature


class Halves(RadialValue):
    """The exact f in two parts, of which any sum with weights >= 0 is in the set: a correct class
    whose truth is ``w = (1, 1)``, inside of it.
    """

    def __init__(self) -> None:
        super().__init__(2, HORIZON, centres=2, floor=0.0)

    def raw(self, k, inputs):
        x = inputs.double()
        share = torch.sigmoid(2 * x[:, :1])
        return log_truth(k, x).exp()[:, None] * torch.cat([share, 1 - share], 1)


def gathered(n: int, seed: int = 0, visits: int | None = 4) -> Replay:
    with torch.no_grad():
        recording = Recording.of(rollout(PROBLEM, None, n, generator(seed)))
    if visits is not None:
        recording = recording.at_random_times(visits, generator(seed + 1))
    return Replay.of(PROBLEM, recording)


def test_the_inequality_is_the_sum_that_the_paper_states():
    data = gathered(30)
    value = RadialValue(2, HORIZON, centres=6, floor=0.1)
    value.place(data.steps.flatten(), data.inputs.flatten(0, 1), generator())
    value.offset.fill_(0.3)
    found = observed(value, data)
    matrix, vector = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for i in range(data.n):
        visits = [
            value.raw(int(k), x[None])[0]
            for k, x in zip(data.steps[i], data.inputs[i], strict=True)
        ]
        for j in range(len(visits) - 1):
            growth = math.exp(float(data.log_reward[i, j + 1] - data.log_reward[i, j]))
            matrix += torch.outer(visits[j], visits[j] - growth * visits[j + 1])
            vector += visits[j] * (growth - 1) * 0.1  # the floor is a part of f that is given
        matrix += torch.outer(visits[-1], visits[-1])
        vector += visits[-1] * (math.exp(float(data.log_terminal[i]) - 0.3) - 0.1)
    assert torch.allclose(found.matrix, matrix, rtol=1e-5)
    assert torch.allclose(found.vector, vector, rtol=1e-5)


@pytest.mark.parametrize("visits", [4, None])
def test_rates_of_a_correct_class(visits):
    """The error of f in both Sobolev norms falls like n^(-1/2); the regret, half the squared
    distance of the controls by Girsanov's theorem, like 1/n.
    """
    sizes, repeats = (100, 400, 1600, 6400), 32
    with torch.no_grad():
        judges = rollout(PROBLEM, None, 200, generator(1000))

    def errors(value: Halves) -> Tensor:
        found = sobolev_errors(PROBLEM, judges, value, log_truth)
        distance = torch.zeros(())
        for k in range(HORIZON):
            x, z = judges.states[k], judges.noises[k].clone().requires_grad_()
            later = PROBLEM.transition(k, x, z)
            both = value(k + 1, later) - log_truth(k + 1, later)
            (slope,) = torch.autograd.grad(both.sum(), z)
            distance = distance + 0.5 * slope.square().sum(1).mean()
        return torch.tensor([found.energy**2, found.integral**2, float(distance)])

    total = torch.zeros(len(sizes), 3)
    for seed in range(repeats):
        every = gathered(sizes[-1], 2 * seed + 7, visits)
        for i, n in enumerate(sizes):
            value = Halves()
            solve(value, observed(value, every.at(torch.arange(n))))
            total[i] += errors(value) / repeats
    x = torch.tensor(sizes).double().log()
    x = x - x.mean()
    slopes = (x[:, None] * total.double().log()).sum(0) / x.square().sum()
    assert abs(float(slopes[0]) / 2 + 0.5) < 0.1 and abs(float(slopes[1]) / 2 + 0.5) < 0.1
    assert abs(float(slopes[2]) + 1) < 0.2
    assert float(total[-1, 0]) < 0.03**2


def test_the_agent_learns_the_mixture_from_uncontrolled_paths_alone(tmp_path):
    problem = make_problem("girsanov/GaussianMixture-v0", temperature=2.0)
    model = find_agent("pde-mou").make(ProblemEnv(problem), seed=0, device="cpu")
    seen = []
    collect = model.collect
    model.collect = lambda policy, n=None: seen.append(policy) or collect(policy, n)
    model.learn(1000 * problem.horizon)
    assert seen == [None] * 10 and model.reward_queries == 1000
    assert bool((model.policy.value.weights >= 0).all())
    bound = problem.temperature * float(model.policy.value.offset[0])

    def objective(control) -> float:
        paths = rollout(problem, control, 2000, generator(5))
        return float((paths.reward - problem.temperature * paths.kl).mean())

    free = objective(None)
    assert (objective(model.policy.control) - free) / (bound - free) > 0.6
    model.save(tmp_path / "mou")
    again = MouPDE.load(tmp_path / "mou", ProblemEnv(problem), device="cpu")
    x = torch.randn(5, 2)
    assert torch.equal(again.policy.control(9, x), model.policy.control(9, x))


def test_visits_are_checked():
    with pytest.raises(ValueError, match="visits must be a whole number of at least 1; got 0"):
        MouPDE(env="girsanov/GaussianMixture-v0", visits=0)
