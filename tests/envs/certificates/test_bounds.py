"""Upper bounds against closed forms, with and without the paths of policies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from walks import IDS, Walk, state_feedback

from girsanov.envs import make_problem
from girsanov.envs.certificates import (
    certificate,
    certificate_by_start,
    certificate_of,
    finite_sample_limit,
    pooled_certificate,
)
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, objective, rollout


def test_the_certificate_of_gaussian_returns(generator: torch.Generator) -> None:
    """``beta log E exp(R / beta) = mean + variance / (2 beta)`` for Gaussian R; the walk attains it
    with a = scale / beta.
    """
    problem = Walk(temperature=2.0)
    exact = 1 + 0.5**2 * 4 / (2 * 2.0)
    found = certificate(problem, 40_000, generator, batch=3_000)
    assert found.n == 40_000 and abs(found.bound - exact) < 3 * found.stderr < 0.02
    assert abs(found.bound - 1) > 10 * found.stderr  # the mean return is another number
    best = objective(
        problem, lambda k, x: torch.full_like(x, 0.5 / 2.0), 40_000, generator
    ).objective
    assert abs(best.mean - exact) < 3 * best.stderr
    # the standard deviation of exp(R / beta) is known too
    assert found.stderr == pytest.approx(2.0 * math.sqrt(math.expm1(0.25)) / 200, rel=0.1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.stderr, rel=1e-4)
    assert found.low < found.bound < found.high


def test_the_certificate_survives_large_and_small_returns() -> None:
    # weights 1 and 3: relative variance of their mean 1 / 4, half of which Jensen takes
    assert certificate_of(torch.tensor([0.0, math.log(3)]), 1.0).bound == pytest.approx(
        math.log((1 + 3) / 2) + 1 / 8
    )
    returns = torch.tensor([0.0, 1.0, 2.0])
    base = certificate_of(returns, 0.5)
    for shift in (-1e6, 1e6):
        moved = certificate_of(returns.double() + shift, 0.5)
        assert moved.bound == pytest.approx(
            base.bound + shift, rel=1e-12
        ) and moved.ess == pytest.approx(base.ess, rel=1e-6)


@pytest.mark.parametrize("env_id", IDS)
def test_no_policy_beats_the_certificate(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    bound = certificate(problem, 20_000, generator)
    assert bound.certified
    policies = [None, state_feedback(problem)]
    policies += [
        getattr(problem, name)
        for name in ("reference_control", "optimal_control")
        if hasattr(problem, name)
    ]
    for policy in policies:
        worth = objective(problem, policy, 4_000, generator).objective
        assert worth.mean <= bound.bound + 3 * math.hypot(worth.stderr, bound.stderr)


def test_the_confidence_interval_covers(generator: torch.Generator) -> None:
    repeats, spread = 1_000, 0.7
    samples = spread * torch.randn(repeats, 2_000, generator=generator, dtype=torch.float64)
    found = [certificate_of(row, 1.0) for row in samples]
    covered = sum(c.low <= spread**2 / 2 <= c.high for c in found) / repeats
    assert abs(covered - 0.95) < 4 * math.sqrt(
        0.95 * 0.05 / repeats
    )  # 95% up to 2.8 points: binomial, four deviations
    half = [certificate_of(row, 1.0, confidence=0.5) for row in samples]
    assert abs(
        sum(c.low <= spread**2 / 2 <= c.high for c in half) / repeats - 0.5
    ) < 4 * 0.5 / math.sqrt(repeats)


def test_the_effective_sample_size(generator: torch.Generator) -> None:
    assert certificate_of(torch.zeros(80), 1.0).ess == pytest.approx(80)
    lonely = torch.zeros(80)
    lonely[3] = 100.0
    assert certificate_of(lonely, 1.0).ess == pytest.approx(1)
    assert certificate_of(math.log(3) * torch.tensor([0.0, 1.0]), 1.0).ess == pytest.approx(
        (1 + 3) ** 2 / (1 + 9)
    )
    # lognormal weights: ESS / n -> exp(-variance / temperature^2)
    returns = torch.randn(200_000, generator=generator, dtype=torch.float64)
    assert certificate_of(returns, 1.25).ess / 200_000 == pytest.approx(
        math.exp(-1 / 1.25**2), rel=0.03
    )


def test_certified_needs_fifty_effective_paths() -> None:
    assert certificate_of(torch.zeros(51), 1.0).certified
    assert not certificate_of(torch.zeros(49), 1.0).certified
    lonely = torch.zeros(1_000)
    lonely[0] = 50.0
    assert not certificate_of(lonely, 1.0).certified


class Rare(Problem):
    """One step to N(0, 1), rewarded by ``high`` beyond ``edge`` and by 0 elsewhere."""

    state_shape = noise_shape = (1,)
    horizon, temperature = 1, 1.0

    def __init__(self, high: float = 11.0, edge: float = 4.527, bounded: bool = True) -> None:
        self.high, self.edge = high, edge
        if bounded:
            self.reward_bound = high

    @property
    def exact(self) -> float:
        """``log(1 + p (e^high - 1))``, p = 3e-6."""
        p = 0.5 * math.erfc(self.edge / math.sqrt(2))
        return math.log1p(p * math.expm1(self.high))

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(n, 1)

    def transition(self, k: Any, x: Tensor, z: Tensor) -> Tensor:
        return x + z

    def terminal_reward(self, x: Tensor) -> Tensor:
        return self.high * (x[:, 0] > self.edge)


def towards(k: int, x: Tensor) -> Tensor:
    return torch.full_like(x, 4.5)


def away(k: int, x: Tensor) -> Tensor:
    return torch.full_like(x, -1.0)


@pytest.mark.parametrize("repeat", range(20))
def test_a_planted_rare_mode_is_refuted_or_covered(repeat: int) -> None:
    """Probability 3e-6, 11 nats: uncontrolled paths miss 0.16 nats at a standard error of 0."""
    problem, generator = Rare(), torch.Generator().manual_seed(repeat)
    assert problem.exact == pytest.approx(0.164, abs=0.002)
    alone = certificate(problem, 8192, generator)
    assert alone.certified and alone.limit is not None and alone.limit >= problem.exact
    assert not alone.low <= problem.exact <= alone.high
    pooled = pooled_certificate(problem, {"finds": towards, "misses": away}, 2048, generator)
    assert pooled.refutes and pooled.certificate.certified
    error = abs(pooled.certificate.bound - problem.exact)
    assert error < 4 * pooled.certificate.stderr < 0.05
    assert pooled.certificate.limit is not None


def test_a_policy_that_misses_the_mode_does_no_harm(generator: torch.Generator) -> None:
    problem = Rare(high=2.0, edge=1.0)
    pooled = pooled_certificate(problem, {"misses": away}, 20_000, generator)
    assert not pooled.refutes
    assert abs(pooled.certificate.bound - problem.exact) < 4 * pooled.certificate.stderr < 0.05
    assert pooled.objectives["misses"].mean < -0.3  # half a nat paid, less what 2.3% earn


def test_the_finite_sample_limit_holds_and_has_its_formula(generator: torch.Generator) -> None:
    returns = torch.log(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))
    log_odds = math.log(2 / 0.05)
    u = math.exp(-2) * torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64).repeat(100)
    mean = 0.5 * math.exp(-2) + math.sqrt(2 * float(u.var()) * log_odds / 400)
    assert finite_sample_limit(returns.repeat(100), 1.0, 2.0) == pytest.approx(
        2 + math.log(mean + 7 * log_odds / (3 * 399))
    )
    assert finite_sample_limit(returns, 1.0, 0.0) == 0.0  # four paths say nothing
    with pytest.raises(ValueError, match=r"reward_bound must be at least every return; got -1"):
        finite_sample_limit(returns, 1.0, -1.0)
    # uniform weights: 200 times 500 paths, of which 5% may fail
    u = torch.rand(200, 500, generator=generator, dtype=torch.float64)
    failures = sum(finite_sample_limit(row.log(), 1.0, 0.0) < math.log(0.5) for row in u)
    assert failures <= 10


def test_rewards_with_a_bound_say_so() -> None:
    digits = make_problem("girsanov/Digits-v0")
    assert digits.reward_bound == 0.0  # type: ignore[attr-defined]
    assert not hasattr(make_problem("girsanov/Digits-v0", reward="brightness"), "reward_bound")
    mixture = make_problem("girsanov/GaussianMixture-v0")
    assert mixture.reward_bound == 0.0  # type: ignore[attr-defined]


def test_under_the_optimal_policy_the_weights_are_nearly_constant(
    generator: torch.Generator,
) -> None:
    problem = LinearQuadratic.damped_rotation(temperature=0.2)
    pooled = pooled_certificate(problem, {"best": problem.optimal_control}, 1024, generator)
    alone, together = pooled.uncontrolled, pooled.certificate
    assert together.n == 2 * alone.n == 2048
    assert together.ess > 8 * alone.ess and together.stderr < alone.stderr / 3
    assert abs(together.bound - problem.log_moment_objective()) < 3 * together.stderr
    assert not pooled.refutes
    worth = pooled.objectives["best"]
    assert abs(worth.mean - problem.optimal_objective()) < 3 * worth.stderr


def test_from_given_starts_policies_lend_their_paths_too(generator: torch.Generator) -> None:
    problem = LinearQuadratic.damped_rotation(temperature=0.2)
    seed, starts = 11, 256
    x = problem.initial(starts, torch.Generator().manual_seed(seed))
    exact = float(problem.log_moment_value(0, x).mean())
    alone = certificate_by_start(problem, starts, 64, torch.Generator().manual_seed(seed))
    lent = certificate_by_start(
        problem,
        starts,
        32,
        torch.Generator().manual_seed(seed),
        policies={"best": problem.optimal_control},
    )
    assert lent.n == alone.n == starts * 64
    assert lent.ess > 3 * alone.ess
    assert abs(lent.bound - exact) < min(0.02, abs(alone.bound - exact))


def _coverage(temperature: float, repeats: int, n: int) -> float:
    problem = LinearQuadratic.damped_rotation(steps=10, temperature=temperature)
    exact, generator = problem.log_moment_objective(), torch.Generator().manual_seed(1)
    found = [certificate(problem, n, generator) for _ in range(repeats)]
    return sum(c.low <= exact <= c.high for c in found) / repeats


def test_the_interval_covers_the_riccati_value() -> None:
    assert 0.9 <= _coverage(0.2, 100, 2048) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temperature", "n"), [(0.1, 32_768), (0.2, 8192), (0.5, 8192), (1.0, 8192), (2.0, 8192)]
)
def test_the_interval_covers_the_riccati_value_in_95_of_100(temperature: float, n: int) -> None:
    """With as many paths as it takes to be certified: 8,192 at temperature 0.1 leave 22."""
    assert 0.92 <= _coverage(temperature, 200, n) <= 0.98


@pytest.mark.slow
def test_the_pooled_interval_covers_where_uncontrolled_paths_are_too_few() -> None:
    problem = LinearQuadratic.damped_rotation(steps=10, temperature=0.1)
    exact, generator = problem.log_moment_objective(), torch.Generator().manual_seed(1)

    def policy(k: int, x: Tensor) -> Tensor:
        return 0.7 * problem.optimal_control(k, x)

    found = [
        pooled_certificate(problem, {"near": policy}, 4096, generator, batch=4096).certificate
        for _ in range(200)
    ]
    assert all(c.certified for c in found)
    assert 0.92 <= sum(c.low <= exact <= c.high for c in found) / 200 <= 0.98


def test_the_skew_is_taken_into_the_interval(generator: torch.Generator) -> None:
    """A normal interval misses above far more often than below; ours about as often."""
    exact = 0.5
    samples = torch.randn(400, 100, generator=generator, dtype=torch.float64)
    found = [certificate_of(row, 1.0) for row in samples]
    normal = [c.bound + 1.96 * c.stderr < exact for c in found]
    lopsided = sum(normal) - sum(c.bound - 1.96 * c.stderr > exact for c in found)
    ours = sum(c.high < exact for c in found) - sum(c.low > exact for c in found)
    assert lopsided > 10 and abs(ours) < lopsided / 2


class Wells(Problem):
    """Overdamped Langevin between two wells of unequal depth in the plane, from the left one; the
    reward is 7 in the right one.
    """

    state_shape = noise_shape = (2,)
    horizon, temperature, step, heat = 50, 1.0, 0.04, 0.4
    reward_bound = 7.0

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.tensor([-1.0, 0.0]).expand(n, 2)

    def force(self, x: Tensor) -> Tensor:
        """Of ``2 (u^2 - 1)^2 + u / 2 + v^2``: the left well is the deeper."""
        u, v = x.unbind(1)
        return -torch.stack([8 * u * (u.square() - 1) + 0.5, 2 * v], 1)

    def transition(self, k: Any, x: Tensor, z: Tensor) -> Tensor:
        return x + self.step * self.force(x) + math.sqrt(2 * self.step * self.heat) * z

    def terminal_reward(self, x: Tensor) -> Tensor:
        return 7.0 * torch.sigmoid(8 * x[:, 0])


def cole_hopf(problem: Wells) -> tuple[Any, float]:
    """The policy ``E[W f] / E[f]`` with a third of its strength lost, and the bound itself.

    The second coordinate earns nothing and moves alone, so that f is a table over the first.
    """
    grid = np.linspace(-3.0, 3.0, 1201)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    states = torch.tensor(np.stack([grid, 0 * grid], 1))
    noise = torch.zeros(len(grid), 2, dtype=torch.float64)
    mean = problem.transition(0, states, noise)[:, :1].numpy()
    landed = mean + math.sqrt(2 * problem.step * problem.heat) * nodes
    log_f = problem.terminal_reward(states).numpy() / problem.temperature
    controls = []
    for _ in range(problem.horizon):
        inner = weights * np.exp(np.interp(landed, grid, log_f))
        log_f = np.log(inner.sum(1))
        controls.append((inner @ nodes) / inner.sum(1))
    tables = controls[::-1]

    def policy(k: int, x: Tensor) -> Tensor:
        push = torch.as_tensor(0.67 * np.interp(x[:, 0].numpy(), grid, tables[k])).to(x)
        return torch.stack([push, torch.zeros_like(push)], 1)

    return policy, problem.temperature * float(np.interp(-1.0, grid, log_f))


def test_a_rare_transition_is_certified_once_a_policy_that_crosses_lends_its_paths() -> None:
    problem, generator = Wells(), torch.Generator().manual_seed(0)
    policy, exact = cole_hopf(problem)
    free = rollout(problem, None, 4096, generator)
    assert 0 < (free.states[-1][:, 0] > 0).double().mean() < 0.01
    assert (rollout(problem, policy, 1024, generator).states[-1][:, 0] > 0).double().mean() > 0.3
    alone = certificate_of(free.reward, problem.temperature)
    assert not alone.certified
    pooled = pooled_certificate(problem, {"crosses": policy}, 2048, generator).certificate
    assert pooled.certified and pooled.n == alone.n
    assert pooled.ess > 10 * alone.ess and pooled.stderr < alone.stderr / 3
    assert abs(pooled.bound - exact) < 3 * pooled.stderr
