"""How often the task is solved at the bound, for a walk whose optimal law is a policy's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.envs.certificates import (
    Certificate,
    SuccessRate,
    certificate,
    certificate_by_start,
    certificate_of,
    pooled_certificate,
)
from girsanov.envs.problem import Estimate, Problem, rollout

SCALE, STEPS, GOAL = 0.5, 4, 1.0


class Walk(Problem):
    """``X' = X + z / 2`` in four steps, paid ``X_T`` and solved beyond 1: under the optimal law
    ``X_T`` is ``N(X_0 + 1 / beta, 1)``.
    """

    state_shape = noise_shape = (1,)
    horizon = STEPS

    def __init__(self, temperature: float = 1.0, spread: float = 0.0) -> None:
        self.temperature, self.spread = temperature, spread

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        return self.spread * torch.randn(n, 1, generator=generator)

    def transition(self, k: Any, x: Tensor, z: Tensor) -> Tensor:
        return x + SCALE * z

    def terminal_reward(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def success(self, x: Tensor) -> Tensor:
        return x[:, 0] > GOAL


def share(shift: float, variance: float = 1.0) -> float:
    """How much of ``N(shift, variance)`` lies beyond the goal."""
    return 0.5 * math.erfc((GOAL - shift) / math.sqrt(2 * variance))


def optimal(problem: Walk) -> Any:
    return lambda k, x: torch.full_like(x, SCALE / problem.temperature)


def test_the_bound_succeeds_as_often_as_its_law_says(generator: torch.Generator) -> None:
    problem = Walk()
    found = certificate(problem, 40_000, generator, batch=3000).success
    assert found is not None and found.low < found.mean < found.high < found.low + 0.03
    assert abs(found.mean - share(1.0)) < found.high - found.low  # four standard errors
    chance = problem.success(rollout(problem, None, 40_000, generator).states[-1])
    assert float(chance.double().mean()) < found.low - 0.3  # the free process's is another number
    ends = rollout(problem, optimal(problem), 40_000, generator).states[-1]
    assert problem.success(ends).double().mean() == pytest.approx(share(1.0), abs=0.01)


def test_the_interval_covers(generator: torch.Generator) -> None:
    """As often as it says, or more: it takes the more careful of two numbers of draws."""
    problem, repeats = Walk(temperature=0.8), 300
    exact = share(1 / 0.8)
    found = [certificate(problem, 1000, generator).success for _ in range(repeats)]
    covered = sum(f is not None and f.low <= exact <= f.high for f in found) / repeats
    assert covered > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)
    assert max(f.high - f.low for f in found if f is not None) < 0.3  # it says something


def test_where_every_path_succeeds_the_interval_is_that_of_wilson() -> None:
    found = certificate_of(torch.zeros(100), 1.0, solved=torch.ones(100)).success
    square = 1.959964**2
    assert found == pytest.approx((1.0, 1 / (1 + square / 100), 1.0), rel=1e-5)
    none = certificate_of(torch.zeros(100), 1.0, solved=torch.zeros(100)).success
    assert none == pytest.approx((0.0, 0.0, 1 - 1 / (1 + square / 100)), abs=1e-5)
    half = SuccessRate.of(Estimate(0.5, 0.05), 100, 0.95)  # 100 equal draws
    wide = SuccessRate.of(Estimate(0.5, 0.10), 100, 0.95)  # no more than 25 are as sure
    assert wide.high - wide.low == pytest.approx(2 * (half.high - half.low), rel=0.06)


def test_paths_that_policies_lend_tell_the_same(generator: torch.Generator) -> None:
    problem = Walk(temperature=0.4)
    pooled = pooled_certificate(problem, {"best": optimal(problem)}, 2000, generator)
    alone, together = pooled.uncontrolled.success, pooled.certificate.success
    assert alone is not None and together is not None
    assert together.low < share(1 / 0.4) < together.high
    assert together.high - together.low < 0.5 * (alone.high - alone.low)
    assert type(pooled).from_json(pooled.to_json()) == pooled


def test_from_given_starts_it_is_the_policys_and_chooses_no_start(
    generator: torch.Generator,
) -> None:
    """Starts are N(0, 0.64): a law that may choose them would begin at 0.64 on average."""
    problem = Walk(spread=0.8)
    free = certificate(problem, 40_000, generator).success
    given = certificate_by_start(problem, 600, 500, generator).success
    assert free is not None and given is not None
    policys, chosen = share(1.0, 1.64), share(1.64, 1.64)
    assert given.low < policys < given.high < free.low < chosen < free.high


def test_problems_without_success_have_none(generator: torch.Generator) -> None:
    class Unjudged(Walk):
        success = None  # type: ignore[assignment]

    problem = Unjudged()
    found = certificate(problem, 100, generator)
    assert found.success is None and Certificate.from_json(found.to_json()) == found
    assert pooled_certificate(problem, {}, 100, generator).certificate.success is None
    assert certificate_by_start(problem, 4, 100, generator).success is None
    old = {name: value for name, value in found.to_json().items() if name != "success"}
    assert Certificate.from_json(old) == found


def test_as_many_judgements_as_returns() -> None:
    with pytest.raises(ValueError, match=r"solved must have the shape of returns, \(5,\); got"):
        certificate_of(torch.zeros(5), 1.0, solved=torch.ones(4))
