"""Navigation: the exact optimum without obstacles, the memory of collisions, and how each robot
drives.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.envs.certificates import certificate
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import objective, rollout
from girsanov.envs.robots.navigation import (
    DoubleIntegratorNavigation,
    Navigation,
    UnicycleNavigation,
)

OPEN: dict[str, Any] = {
    "obstacles": (),
    "cost_limit": math.inf,
    "distance_weight": 1.0,
    "running_weight": 0.5,
}


def linear_quadratic(problem: DoubleIntegratorNavigation) -> LinearQuadratic:
    """The point mass by its textbook solution: constant acceleration over each step."""
    step, scale, eye = (
        problem.step_size,
        float(problem.matrix[2, 0]),
        torch.eye(2, dtype=torch.float64),
    )
    zero = torch.zeros(2, 2, dtype=torch.float64)
    place = torch.block_diag(eye, zero)
    goal = torch.tensor([*problem.goal, 0.0, 0.0], dtype=torch.float64)
    # -w |p - goal|^2 D = -x^T (2 w D place) x / 2 + (2 w D place goal)^T x - a constant that the
    # caller adds
    weight = 2 * problem.running_weight * problem.distance_weight * step
    return LinearQuadratic(
        drift_matrix=torch.cat([torch.cat([eye, step * eye], 1), torch.cat([zero, eye], 1)]),
        noise_matrix=scale * math.sqrt(step) * torch.cat([0.5 * step * eye, eye]),
        running_matrix=weight * place,
        running_slope=weight * goal,
        terminal_matrix=2 * problem.distance_weight * place,
        target=goal,
        initial_mean=[0.0, 0.0, problem.speed, 0.0],
        initial_covariance=problem.spread**2 * torch.eye(4, dtype=torch.float64),
        horizon=problem.horizon,
        temperature=problem.temperature,
        dtype=torch.float64,
    )


def test_without_obstacles_the_double_integrator_is_linear_quadratic(
    generator: torch.Generator,
) -> None:
    problem = DoubleIntegratorNavigation(**OPEN).to(dtype=torch.float64)
    solved = linear_quadratic(problem)
    constant = (
        -problem.horizon
        * problem.step_size
        * problem.running_weight
        * problem.distance_weight
        * problem.goal[0] ** 2
    )
    x, z = (
        torch.randn(20, 4, generator=generator, dtype=torch.float64),
        torch.randn(20, 2, generator=generator).double(),
    )
    ours = torch.cat([x, torch.zeros(20, 1, dtype=torch.float64)], 1)
    moved = problem.transition(3, ours, z)
    torch.testing.assert_close(moved[:, :4], solved.transition(3, x, z), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        problem.running_reward(3, ours),
        solved.running_reward(3, x) + constant / problem.horizon,
        rtol=1e-7,
        atol=1e-7,
    )
    torch.testing.assert_close(problem.terminal_reward(ours), solved.terminal_reward(x))
    best = objective(
        problem, lambda k, x: solved.optimal_control(k, x[:, :4]), 20_000, generator
    ).objective
    optimum = solved.optimal_objective() + constant
    assert abs(best.mean - optimum) < 3 * best.stderr < 0.05
    free = objective(problem, None, 20_000, generator).objective
    assert optimum - free.mean > 1  # worth the trouble
    bound = certificate(problem, 40_000, generator)
    assert (
        bound.certified
        and abs(bound.bound - solved.log_moment_objective() - constant) < 3 * bound.stderr
    )


@pytest.mark.parametrize("kind", [DoubleIntegratorNavigation, UnicycleNavigation])
def test_collisions_are_remembered_and_spoil_success(kind: type[Navigation]) -> None:
    """Straight ahead there is one circle; the goal lies behind it."""
    problem = kind(spread=0.0, obstacles=[(1.0, 0.0, 0.2)], goal=(2.5, 0.0), steps=50)  # type: ignore[call-arg]
    still = torch.zeros(50, 1, 2)
    paths = rollout(problem, None, 1, torch.Generator().manual_seed(0), noises=still)
    x, collided = paths.states[:, 0, 0], paths.states[:, 0, -1]
    assert torch.equal(collided, (x > 0.8).float())  # from the first step inside until the end
    assert float((x[-1] - 2.5).abs()) < 1e-4 and not problem.success(paths.states[-1]).any()
    aside = kind(spread=0.0, obstacles=[(1.0, 0.3, 0.2)], goal=(2.5, 0.0), steps=50)  # type: ignore[call-arg]
    passed = rollout(aside, None, 1, torch.Generator().manual_seed(0), noises=still)
    assert not passed.states[..., -1].any() and aside.success(passed.states[-1]).all()
    # the time inside is paid for: 0.4 s of it, and the memory is not
    assert float(paths.reward - passed.reward) == pytest.approx(-15 * 0.4, abs=1.0)
    flagged = passed.states[-1].clone()
    flagged[:, -1] = 1
    assert torch.equal(aside.terminal_reward(flagged), aside.terminal_reward(passed.states[-1]))
    assert not aside.success(flagged).any()


def test_depth() -> None:
    problem = DoubleIntegratorNavigation(obstacles=[(0.0, 0.0, 1.0), (3.0, 0.0, 0.5)])
    q = torch.tensor([[0.0, 0.25, 0, 0, 0], [2.0, 0.0, 0, 0, 0], [3.0, 0.4, 0, 0, 0]])
    torch.testing.assert_close(problem.depth(q), torch.tensor([0.75, -0.5, 0.1]))
    assert (DoubleIntegratorNavigation(obstacles=()).depth(q) == -math.inf).all()


def drive(problem: UnicycleNavigation, q: Tensor, noises: Tensor) -> Tensor:
    x = problem.state(q)
    for k in range(len(noises)):
        x = problem.transition(k, x, noises[k])
    return problem.coordinates(x)


def test_a_unicycle_that_turns_at_a_constant_rate_drives_a_circle() -> None:
    problem = UnicycleNavigation(damping=0.0, obstacles=()).to(dtype=torch.float64)
    q = torch.tensor([[0.3, -0.2, 0.4, 1.2, 1.5, 0.0]], dtype=torch.float64)
    end = drive(problem, q, torch.zeros(40, 1, 2, dtype=torch.float64))[0]
    angle = 0.4 + 1.5 * 2.0
    x = 0.3 + 0.8 * (math.sin(angle) - math.sin(0.4))
    y = -0.2 - 0.8 * (math.cos(angle) - math.cos(0.4))
    expected = torch.tensor(
        [x, y, math.remainder(angle, 2 * math.pi), 1.2, 1.5, 0.0], dtype=torch.float64
    )
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-6)


def test_a_unicycle_does_not_slip_sideways(generator: torch.Generator) -> None:
    problem = UnicycleNavigation()
    q = torch.randn(100, 6, generator=generator)
    velocity = problem.drift(0.0, q)[:, :2]
    sideways = torch.stack([-q[:, 2].sin(), q[:, 2].cos()], 1)
    torch.testing.assert_close((velocity * sideways).sum(1), torch.zeros(100), rtol=0, atol=1e-6)
    assert not problem.control_matrix(0.0, q)[:3].any()  # the motors reach the speeds only


def test_speeds_return_to_cruising() -> None:
    problem = UnicycleNavigation(cruise=0.7, obstacles=()).to(dtype=torch.float64)
    q = torch.tensor([[0.0, 0.0, 0.0, 2.0, 3.0, 0.0]], dtype=torch.float64)
    end = drive(problem, q, torch.zeros(20, 1, 2, dtype=torch.float64))[0]
    assert float(end[3]) == pytest.approx(0.7 + 1.3 * math.exp(-2), abs=1e-5)
    assert float(end[4]) == pytest.approx(3 * math.exp(-2), abs=1e-5)
