"""The planar quadrotor: hovering, falling, and the power of its rotors."""

from __future__ import annotations

import math

import torch

from girsanov.envs.robots.quadrotor import GRAVITY, INERTIA, MASS, ROTOR_DISTANCE, PlanarQuadrotor


def test_hovering_is_a_rest_to_which_it_returns() -> None:
    problem = PlanarQuadrotor(spread=0.0).to(dtype=torch.float64)
    still = torch.zeros(1, 2, dtype=torch.float64)
    x = problem.initial(1, torch.Generator().manual_seed(0))
    assert torch.equal(problem.transition(0, x, still), x)
    x = problem.state(torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64))
    for k in range(100):
        x = problem.transition(k, x, still)
    q = problem.coordinates(x)[0]
    assert (
        abs(q[2]) < 1e-3 and q[0] < -0.05
    )  # level again, after a slip to the left: tilted left it flies left


def test_power_is_that_of_gravity_lift_and_drag(generator: torch.Generator) -> None:
    """``dE/dt`` of ``E = m v^2 / 2 + I w^2 / 2 + m g z``: each rotor's force times the speed of its
    hub along it.
    """
    problem = PlanarQuadrotor(stiffness=0.0, rate_damping=0.0, drag=0.4).to(dtype=torch.float64)
    q = torch.randn(100, 6, generator=generator, dtype=torch.float64).requires_grad_()
    _, z, tilt, vx, vz, turn = q.unbind(1)
    energy = (
        0.5 * MASS * (vx.square() + vz.square())
        + 0.5 * INERTIA * turn.square()
        + MASS * GRAVITY * z
    )
    (slope,) = torch.autograd.grad(energy.sum(), q)
    along = -tilt.sin() * vx + tilt.cos() * vz
    hubs = torch.stack([along + ROTOR_DISTANCE * turn, along - ROTOR_DISTANCE * turn], 1)
    power = torch.einsum("ni,nij->nj", slope, problem.control_matrix(0.0, q))
    torch.testing.assert_close(power, problem.force_scale * hubs)
    drag = -0.4 * MASS * (vx.square() + vz.square())
    torch.testing.assert_close(
        (slope * problem.drift(0.0, q)).sum(1), MASS * GRAVITY * along + drag
    )


def test_the_attitude_loop_is_a_damped_pendulum() -> None:
    problem = PlanarQuadrotor()
    q = torch.tensor([[0.0, 0.0, 0.3, 0.0, 0.0, 2.0]])
    assert float(problem.drift(0.0, q)[0, 5]) == float(
        torch.tensor(-200 * math.sin(0.3) - 20 * 2.0)
    )


def test_success_is_near_and_level() -> None:
    problem = PlanarQuadrotor(goal=(1.0, 0.5))
    rows = torch.zeros(4, 6)
    rows[:, :3] = torch.tensor(
        [[1.0, 0.79, 0.29], [1.0, 0.81, 0.0], [1.0, 0.5, 0.31], [1.29, 0.5, -0.29]]
    )
    assert problem.success(problem.state(rows)).tolist() == [True, False, False, True]
