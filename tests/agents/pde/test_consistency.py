"""The empirical equation is consistent, however cold the problem: the exact f solves it up to the
noise of a mean, over short and long spans. And it has no units: what is added to rewards, or scales
them and the temperature alike, changes nothing.
"""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.networks import NeuralValue
from girsanov.agents.pde import variational
from girsanov.agents.pde.classes.linear import PolynomialValue, Tangent
from girsanov.agents.pde.classes.system import assemble
from girsanov.agents.pde.lookahead import Observed
from girsanov.agents.pde.replay import Replay, sample_spans
from girsanov.agents.pde.variational import (
    capped_exp,
    densities,
    largest_gap,
    log_targets,
    relative_residual_loss,
)
from girsanov.envs import make_problem
from girsanov.envs.diffusion.denoising import Schedule
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.known_optimum.grid import solve
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, rollout
from girsanov.envs.recording import Recording

LogF = Callable[[int | Tensor, Tensor], Tensor]
PATHS, BATCHES = 10_000, 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(beta: float) -> tuple[Problem, LogF]:
    problem = LinearQuadratic.damped_rotation(2, steps=8, temperature=beta)
    problem = problem.to(dtype=torch.float64)
    return problem, lambda k, x: problem.log_moment_value(k, x) / beta


def mixture(beta: float) -> tuple[Problem, LogF]:
    """Four modes, a product of two mixtures of two: one grid solves both coordinates."""
    schedule, steps = Schedule.ddpm(12), 12

    def made(means: list[list[float]]) -> GaussianMixture:
        d = len(means[0])
        reward = QuadraticReward(2 * torch.eye(d), [1.0] * d)
        problem = GaussianMixture(means, 0.3, reward, beta, schedule=schedule)
        problem.terminal_estimate = None  # functions of the state itself
        return problem.to(dtype=torch.float64)

    one = made([[1.0], [-1.0]])

    def moved(k: int, x: Tensor, z: Tensor) -> Tensor:
        x, z = torch.broadcast_tensors(x, z)
        return one.transition(k, x.reshape(-1, 1), z.reshape(-1, 1)).view(x.shape)

    found = solve(
        moved,
        lambda x: -(x - 1).square(),
        horizon=steps,
        temperature=beta,
        lower=-8.0,
        upper=8.0,
        nodes=481,
        spacing=0.4,
    )
    four = made([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    return four, lambda k, x: found.read(found.log_moment, k, x).sum(1) / beta


PROBLEMS = {"chain": chain, "mixture": mixture}


class Truth(PolynomialValue):
    """The exact log f, tested with quadratics."""

    def __init__(self, log_f: LogF, horizon: int) -> None:
        super().__init__(2, horizon, times=3)
        self.log_f = log_f

    def forward(self, k, inputs):
        return self.log_f(k, inputs.double())

    def tangent(self, k, inputs):
        return Tangent(self(k, inputs), self.raw(k, inputs))


class Bent(NeuralValue):
    """The exact log f as a network whose bend ``(time, state)`` is learnt."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(2, truth.horizon, (4,), 1)
        self.truth, self.bend = truth, torch.nn.Parameter(torch.zeros_like(truth.weights))

    def members(self, k, inputs):
        bend = (self.truth.raw(k, inputs) * (self.truth.time_table @ self.bend)[k]).sum(-1)
        return (self.truth(k, inputs) + bend)[None]


@cache
def observed(name: str, beta: float) -> tuple[Truth, Replay]:
    problem, log_f = PROBLEMS[name](beta)
    with torch.no_grad():
        data = Replay.of(problem, Recording.of(rollout(problem, None, PATHS, generator())))
    truth = Truth(log_f, problem.horizon)
    truth.standardise.fit(data.inputs.flatten(0, 1))
    truth.bounds.copy_(data.bounds(truth.offset))
    return truth, data


def in_standard_errors(found: list[Tensor]) -> float:
    table = torch.stack(found)
    return float((table.mean(0) / (table.std(0) / math.sqrt(len(table)))).abs().max())


def off(name: str, beta: float, span: int) -> float:
    """The largest residual of the linear system at the exact f, in standard errors."""
    truth, data = observed(name, beta)
    parts = [data.at(rows) for rows in torch.arange(PATHS).chunk(BATCHES)]
    others = data.steps.numel() - parts[0].steps.numel()
    found = [assemble(truth, [part], Observed(), 5.0, span, False, others) for part in parts]
    return in_standard_errors([system.residual for system in found])


COLD = pytest.mark.parametrize("beta", [2.0, 0.5, 0.2])
SPANS = pytest.mark.parametrize("span", [1, 8])


@pytest.mark.parametrize("name", PROBLEMS)
@SPANS
@COLD
def test_the_exact_function_solves_the_linear_system(name, beta, span):
    assert off(name, beta, span) < 4


@pytest.mark.parametrize("name", PROBLEMS)
@SPANS
@COLD
def test_the_exact_function_is_where_networks_come_to_rest(name, beta, span):
    truth, data = observed(name, beta)
    bent = Bent(truth)
    bent.bounds.copy_(truth.bounds)
    found = []
    for rows in torch.arange(PATHS).chunk(BATCHES):
        part = data.at(rows)
        batch = sample_spans(part, 4000, span, bent.horizon, generator(0))
        target = log_targets(bent, batch, part, Observed())
        weight = densities(bent, batch, 5.0)
        loss = relative_residual_loss(bent, batch, target, weight, data.steps.numel())
        found.append(torch.autograd.grad(loss, bent.bend)[0].flatten())
    assert in_standard_errors(found) < 4


def test_a_fixed_limit_is_seen(monkeypatch):
    """As are a wrong temperature's values."""
    monkeypatch.setattr(variational, "largest_gap", lambda observations: 1.5)
    assert off("chain", 0.2, 8) > 20 and off("chain", 0.5, 8) > 8


def test_what_is_cut_off_vanishes_faster_than_the_standard_error():
    """In closed form for normal gaps: the loss times the root of n falls to nothing."""
    spread = 1.5
    gap = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((gap + spread**2 / 2) / spread).square())
    density /= density.sum()
    lost = [
        math.sqrt(n) * float(-(density * capped_exp(gap, n)).sum()) for n in (10**2, 10**4, 10**6)
    ]
    assert 0 < lost[2] < 0.2 * lost[1] and lost[1] < lost[0] < 4
    assert largest_gap(10**4) == pytest.approx(math.log(101))


class Moved(Problem):
    """Another problem with rewards and temperature in other units, and constants added to both
    rewards.
    """

    def __init__(self, problem: Problem, unit: float, running: float, terminal: float) -> None:
        self.problem, self.unit, self.running, self.terminal = problem, unit, running, terminal
        self.state_shape, self.noise_shape = problem.state_shape, problem.noise_shape
        self.horizon, self.temperature = problem.horizon, unit * problem.temperature

    def initial(self, n, generator):
        return self.problem.initial(n, generator)

    def transition(self, k, x, z):
        return self.problem.transition(k, x, z)

    def running_reward(self, k, x):
        return self.unit * self.problem.running_reward(k, x) + self.running

    def terminal_reward(self, x):
        return self.unit * self.problem.terminal_reward(x) + self.terminal


NETWORK = {"hidden": [16], "members": 1}
SHORT = {"gradient_steps": 20, "batch_size": 64}
KINDS = {
    "MlpPolicy": {"policy_kwargs": NETWORK, **SHORT},
    "NoisePolicy": {"policy_kwargs": NETWORK, **SHORT},
    "ModelPolicy": {
        "policy_kwargs": {**NETWORK, "model_hidden": [16], "model_steps": 5},
        **SHORT,
    },
    "PolynomialPolicy": {"policy_kwargs": {"times": 3}},
    "KernelPolicy": {"policy_kwargs": {"centres": 10, "times": 3}},
    "RadialPolicy": {"policy_kwargs": {"centres": 20}},
}


def steered(policy: str, unit: float = 1.0, running: float = 0.0, terminal: float = 0.0) -> Tensor:
    problem = Moved(
        LinearQuadratic.damped_rotation(2, steps=8, temperature=0.25), unit, running, terminal
    )
    model = PDE(policy, problem, seed=0, device="cpu", n_uncontrolled=40, **KINDS[policy])
    model.learn(100 * problem.horizon)
    x = torch.randn(50, 2, generator=generator(7))
    return torch.stack([model.policy.control(k, x) for k in (0, 3, 7)]).detach()


@pytest.mark.parametrize(
    "policy",
    [
        *("MlpPolicy", "PolynomialPolicy", "RadialPolicy"),
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("NoisePolicy", "ModelPolicy")),
        pytest.param("KernelPolicy", marks=pytest.mark.slow),
    ],
)
def test_results_depend_neither_on_the_unit_nor_on_the_zero_of_the_reward(policy):
    """A power of two is exact; constants leave rounding in float32, which training amplifies."""
    plain = steered(policy)
    assert plain.abs().max() > 0.1
    assert torch.equal(steered(policy, unit=8.0), plain)
    for moved in (steered(policy, running=1.0), steered(policy, terminal=-4.0)):
        assert float((moved - plain).norm() / plain.norm()) < 0.05


def test_levels_follow_the_mean_of_what_was_earned_also_at_random_times():
    """A constant a step tilts the level by just that, and moves no spread."""
    problem = make_problem("girsanov/LinearQuadratic-v0").to(dtype=torch.float64)
    with torch.no_grad():
        recording = Recording.of(rollout(problem, None, 60, generator()))
    horizon, beta = problem.horizon, problem.temperature
    some = recording.at_random_times(4, generator(1))
    for seen in (recording, some):
        plain = Replay.of(problem, seen).scale(horizon)
        shifted = seen._replace(rewards=seen.rewards + 3.0 * seen.steps.diff(dim=1))
        found = Replay.of(problem, shifted).scale(horizon)
        left = 3.0 / beta * torch.arange(horizon, -1, -1, dtype=torch.float64)
        assert torch.allclose(found.level, plain.level + left, rtol=1e-5)
        assert torch.allclose(found.spread, plain.spread, atol=1e-3)
    whole = Replay.of(problem, recording).scale(horizon)
    to_go = Replay.of(problem, recording).log_reward_to_go.double()
    assert torch.allclose(whole.spread, to_go.std(0))
    assert float(whole.level[0]) == pytest.approx(
        float(to_go[:, 0].logsumexp(0) - math.log(60)), rel=1e-6
    )
