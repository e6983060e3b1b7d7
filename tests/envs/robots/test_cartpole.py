"""The cart-pole against Gymnasium's, and against the laws of mechanics."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs.robots.cartpole import MASS, MOMENT, CartPoleSwingUp


def coordinates(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 4, generator=generator, dtype=torch.float64) * torch.tensor(
        [1.0, 2.0, 1.5, 3.0]
    )


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_steps_equal_gymnasiums(seed: int) -> None:
    theirs = gym.make("CartPole-v1").unwrapped
    theirs.reset(seed=seed)
    theirs.theta_threshold_radians = theirs.x_threshold = math.inf  # on and on, all the way round
    ours = CartPoleSwingUp(damping=0.0, step_size=theirs.tau, integrator="euler").to(
        dtype=torch.float64
    )
    x = ours.state(torch.tensor(np.array([theirs.state]), dtype=torch.float64))
    rng = np.random.default_rng(seed)
    lowest = 1.0
    for k in range(200):
        force = rng.uniform(-20, 20)
        theirs.force_mag = abs(force)
        theirs.step(int(force > 0))
        x = ours.transition(
            k,
            x,
            torch.tensor([[force * math.sqrt(theirs.tau) / ours.force_scale]], dtype=torch.float64),
        )
        expected = ours.state(torch.tensor(np.array([theirs.state]), dtype=torch.float64))
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
        lowest = min(lowest, float(x[0, 2]))
    assert lowest < -0.9  # the pole came by the bottom


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("rk4", 4)])
def test_energy_is_conserved_to_the_integrators_order(
    integrator: str, order: int, generator: torch.Generator
) -> None:
    start = coordinates(50, generator)
    steps, errors = [25, 50, 100, 200], []
    for n in steps:
        problem = CartPoleSwingUp(n, damping=0.0, step_size=1 / n, integrator=integrator).to(
            dtype=torch.float64
        )
        x = problem.state(start)
        for k in range(n):
            x = problem.transition(k, x, torch.zeros(50, 1, dtype=torch.float64))
        errors.append(
            float((problem.energy(problem.coordinates(x)) - problem.energy(start)).abs().mean())
        )
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    print(f"{integrator}: energy errors {errors} J, slope {slope:.2f}")
    assert -order - 1.2 < slope < -order + 0.25
    assert order == 1 or errors[-1] < 1e-5


def test_force_and_damping_change_energy_and_momentum_as_they_must(
    generator: torch.Generator,
) -> None:
    """Power is force times the cart's speed, and the force is the rate of the horizontal
    momentum.
    """
    problem = CartPoleSwingUp(damping=1.7).to(dtype=torch.float64)
    q = coordinates(100, generator).requires_grad_()
    energy = problem.energy(q)
    momentum = MASS * q[:, 1] + MOMENT * q[:, 3] * q[:, 2].cos()
    push, drift = problem.control_matrix(0.0, q)[:, :, 0], problem.drift(0.0, q)
    friction = -1.7 * q[:, 1]
    for quantity, per_force in (
        (energy, q[:, 1]),
        (momentum, torch.ones(100, dtype=torch.float64)),
    ):
        (slope,) = torch.autograd.grad(quantity.sum(), q)
        torch.testing.assert_close((slope * push).sum(1), problem.force_scale * per_force)
        torch.testing.assert_close(
            (slope * drift).sum(1), friction * per_force, rtol=1e-7, atol=1e-9
        )


def test_start_success_and_rewards(generator: torch.Generator) -> None:
    problem = CartPoleSwingUp()
    q = problem.coordinates(problem.initial(1000, generator))
    assert (math.pi - q[:, 2].abs()).max() <= 0.1 + 1e-5 and q[:, [0, 1, 3]].abs().max() <= 0.1
    # upright; on the track; too far tilted; off the track; turned over once and upright
    rows = torch.tensor(
        [
            [0, 0, 0.19, 0],
            [2.3, 0, -0.19, 5],
            [0, 0, 0.21, 0],
            [2.5, 0, 0, 0],
            [0, 0, 2 * math.pi, 0],
        ]
    )
    assert problem.success(problem.state(rows)).tolist() == [True, True, False, False, True]
    best = problem.state(torch.zeros(1, 4))
    assert float(problem.terminal_reward(best)) == float(problem.running_reward(0, best)) == 0
    worth = problem.terminal_reward(problem.state(rows))
    assert worth[:4].max() < -0.1 and float(worth[4]) == pytest.approx(
        0, abs=1e-9
    )  # turned over once is the best again
