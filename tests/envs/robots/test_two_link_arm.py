"""The arm's hand-written equations against Lagrange's, and its energy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs.robots.two_link_arm import FRICTION, UPPER_ARM, TwoLinkArm


def coordinates(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 4, generator=generator, dtype=torch.float64) * torch.tensor(
        [1.5, 1.5, 3.0, 3.0]
    )


def test_energy_is_that_of_two_rods(generator: torch.Generator) -> None:
    """From the source's masses: I1 about the shoulder, m2 = 1 kg at s2 = 0.16 m from the elbow, I2
    about the elbow.
    """
    arm, q = TwoLinkArm(), coordinates(50, generator)
    upper, fore = q[:, 0], q[:, 0] + q[:, 1]
    w1, w = q[:, 2], q[:, 2] + q[:, 3]
    vx = -UPPER_ARM * upper.sin() * w1 - 0.16 * fore.sin() * w
    vy = UPPER_ARM * upper.cos() * w1 + 0.16 * fore.cos() * w
    expected = (
        0.5 * 0.025 * w1.square()
        + 0.5 * 1.0 * (vx.square() + vy.square())
        + 0.5 * (0.045 - 0.16**2) * w.square()
    )
    torch.testing.assert_close(arm.energy(q), expected)


def test_the_equations_are_lagranges(generator: torch.Generator) -> None:
    """``d/dt dT/dq' = dT/dq + torque - B q'`` by automatic differentiation of the energy."""
    arm, q = TwoLinkArm().to(dtype=torch.float64), coordinates(50, generator)
    torque = torch.randn(50, 2, generator=generator, dtype=torch.float64)

    def one(q: Tensor) -> Tensor:
        return arm.energy(q[None])[0]

    slope, curvature = (
        torch.func.vmap(torch.func.grad(one))(q),
        torch.func.vmap(torch.func.hessian(one))(q),
    )
    velocity = q[:, 2:]
    b11, b12, b22 = FRICTION
    force = torque - velocity @ torch.tensor([[b11, b12], [b12, b22]], dtype=torch.float64)
    right = slope[:, :2] + force - torch.einsum("nij,nj->ni", curvature[:, 2:, :2], velocity)
    acceleration = torch.linalg.solve(curvature[:, 2:, 2:], right)
    pushed = torch.einsum("nij,nj->ni", arm.control_matrix(0.0, q), torque / arm.torque_scale)
    torch.testing.assert_close(arm.drift(0.0, q) + pushed, torch.cat([velocity, acceleration], 1))


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("rk4", 4)])
def test_energy_is_conserved_to_the_integrators_order(
    integrator: str, order: int, generator: torch.Generator
) -> None:
    start = coordinates(50, generator)
    steps, errors = [50, 100, 200, 400], []
    for n in steps:
        arm = TwoLinkArm(n, friction=0.0, step_size=1 / n, integrator=integrator).to(
            dtype=torch.float64
        )
        x = arm.state(start)
        for k in range(n):
            x = arm.transition(k, x, torch.zeros(50, 2, dtype=torch.float64))
        errors.append(float((arm.energy(arm.coordinates(x)) - arm.energy(start)).abs().median()))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    print(f"{integrator}: energy errors {errors} J, slope {slope:.2f}")
    assert -order - 1.2 < slope < -order + 0.25


def test_start_reach_and_success(generator: torch.Generator) -> None:
    arm = TwoLinkArm(spread=0.0)
    q = arm.coordinates(arm.initial(1, generator))
    torch.testing.assert_close(q, torch.tensor([[math.pi / 4, math.pi / 2, 0.0, 0.0]]))
    straight = arm.joints(torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(straight, torch.tensor([[[0.3, 0.0], [0.63, 0.0]]]))
    for distance, hit in ((0.049, True), (0.051, False)):
        hand = arm.joints(q)[0, 1]
        there = TwoLinkArm(target=(float(hand[0]) + distance, float(hand[1])))
        assert there.success(arm.state(q)).tolist() == [hit]
    on_target = TwoLinkArm(target=tuple(arm.joints(q)[0, 1].tolist()))
    assert float(on_target.terminal_reward(arm.state(q))) == pytest.approx(0, abs=1e-9)
