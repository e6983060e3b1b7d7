"""Reach a point with an arm of two links whose joint torques are noisy.

Shoulder angle q1 and elbow angle q2, in the horizontal plane, with the parameters of a human arm:

    M(q) q'' + C(q, q') + B q' = torque,   M = [[a1 + 2 a2 cos q2, a3 + a2 cos q2], [a3 + a2 cos q2,
    a3]], C = a2 sin q2 (-q2' (2 q1' + q2'), q1'^2),   a1 = I1 + I2 + m2 l1^2,   a2 = m2 l1 s2,   a3
    = I2

(Li and Todorov 2004, "Iterative linear quadratic regulator design for nonlinear biological movement
systems").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_positive, checked
from ..rendering import disc, pixels, scene
from .control_affine import Diffusion, Time, check_at_least_zero, saturated

UPPER_ARM, FOREARM = 0.3, 0.33  # l1 and l2, m
A1, A2, A3 = 0.025 + 0.045 + 1.0 * UPPER_ARM**2, 1.0 * UPPER_ARM * 0.16, 0.045  # kg m^2
FRICTION = (0.05, 0.025, 0.05)  # B11, B12 = B21, B22, N m s


class TwoLinkArm(Diffusion):
    """``girsanov/TwoLinkArm-v0``. Coordinates ``(q1, q2, q1', q2')`` in SI units; the state has
    cosines and sines for angles.

    With d the hand's distance to the target, the cost ``C = saturated(distance_weight d^2 + 0.02
    (q1'^2 + q2'^2), cost_limit)`` is least at rest on the target: the reward is ``-C`` at the end,
    and ``-running_weight C`` per second.

    Args:
        steps: horizon, in steps of ``step_size``.
        temperature: price of one nat of KL.
        torque_scale: N m s^(1/2), standard deviation of each torque's integral over one second; in
            one step a torque's is ``torque_scale / sqrt(step_size)``.
        friction: of the joints, as a share of the source's.
        target: where the hand shall be, ``(x, y)``, m from the shoulder.
        distance_weight: per m^2.
        cost_limit: bound of C.
        running_weight: per second.
        spread: standard deviation of every coordinate at the start, around (45, 90) degrees at
            rest.
        step_size: s.
        refine: number of steps that each step is cut into.
        integrator: ``"rk4"`` or ``"euler"``.
    """

    @checked
    def __init__(
        self,
        steps: int = 50,
        temperature: float = 1.0,
        torque_scale: float = 0.1,
        friction: float = 1.0,
        target: Sequence[float] = (0.2, 0.3),
        distance_weight: float = 1000.0,
        cost_limit: float = 8.0,
        running_weight: float = 0.2,
        spread: float = 0.05,
        step_size: float = 0.02,
        refine: int = 1,
        integrator: str = "rk4",
    ) -> None:
        check_positive("torque_scale", torque_scale)
        check_positive("cost_limit", cost_limit)
        check_at_least_zero(
            friction=friction,
            distance_weight=distance_weight,
            running_weight=running_weight,
            spread=spread,
        )
        if not (len(target) == 2 and math.hypot(*target) < UPPER_ARM + FOREARM):
            raise ValueError(
                f"target must be (x, y) within the arm's length of {UPPER_ARM + FOREARM} m; got"
                f" {target!r}"
            )
        super().__init__(4, 2, step_size, steps, temperature, (0, 1), integrator, refine)
        self.torque_scale, self.friction, self.target, self.spread = (
            torque_scale,
            friction,
            tuple(target),
            spread,
        )
        self.distance_weight, self.cost_limit, self.running_weight = (
            distance_weight,
            cost_limit,
            running_weight,
        )

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Bent to (45, 90) degrees at rest, plus normal noise of size ``spread``."""
        q = self.spread * torch.randn(n, 4, generator=generator, device=generator.device)
        q[:, 0] += math.pi / 4
        q[:, 1] += math.pi / 2
        return q

    def drift(self, t: Time, q: Tensor) -> Tensor:
        """The equations of the module's docstring without torques."""
        _, elbow, w1, w2 = q.unbind(1)
        twist = A2 * elbow.sin()
        b11, b12, b22 = (self.friction * b for b in FRICTION)
        shoulder_torque = twist * w2 * (2 * w1 + w2) - b11 * w1 - b12 * w2
        elbow_torque = -twist * w1.square() - b12 * w1 - b22 * w2
        m11, m12, determinant = _mass_matrix(elbow)
        first = (A3 * shoulder_torque - m12 * elbow_torque) / determinant
        second = (m11 * elbow_torque - m12 * shoulder_torque) / determinant
        return torch.stack([w1, w2, first, second], 1)

    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """The inverse mass matrix below zeros, times ``torque_scale``, ``(n, 4, 2)``."""
        m11, m12, determinant = _mass_matrix(q[:, 1])
        inverse = (
            torch.stack([torch.full_like(m12, A3), -m12, -m12, m11], 1)
            * (self.torque_scale / determinant)[:, None]
        )
        return torch.cat([torch.zeros_like(inverse), inverse], 1).unflatten(1, (4, 2))

    def energy(self, q: Tensor) -> Tensor:
        """Kinetic energy, J, ``(n,)``: all there is in the horizontal plane."""
        _, elbow, w1, w2 = q.unbind(1)
        m11, m12, _ = _mass_matrix(elbow)
        return 0.5 * (m11 * w1.square() + 2 * m12 * w1 * w2 + A3 * w2.square())

    def joints(self, q: Tensor) -> Tensor:
        """Positions of elbow and hand, ``(n, 2, 2)``, m from the shoulder."""
        upper, fore = q[:, 0], q[:, 0] + q[:, 1]
        elbow = UPPER_ARM * torch.stack([upper.cos(), upper.sin()], 1)
        return torch.stack([elbow, elbow + FOREARM * torch.stack([fore.cos(), fore.sin()], 1)], 1)

    def reward_rate(self, t: Time, q: Tensor) -> Tensor:
        """``-running_weight C``."""
        return -self.running_weight * self._cost(q)

    def final_reward(self, q: Tensor) -> Tensor:
        """``-C``."""
        return -self._cost(q)

    def success(self, x: Tensor) -> Tensor:
        """The hand within 5 cm of the target."""
        return self._squared_distance(self.coordinates(x)) < 0.05**2

    def render(self, path: Tensor) -> Any:
        """The arm, the target's circle of 5 cm, and the trail of the hand."""
        joints = self.joints(self.coordinates(path)).double().numpy()
        figure, axes = scene(len(path) - 1, self.horizon, (-0.7, 0.7), (-0.7, 0.7))
        axes.add_artist(disc(self.target, 0.05, color="C2"))
        axes.plot(*joints[:, 1].T, color="0.7", linewidth=1)
        axes.plot(
            *zip((0, 0), *joints[-1], strict=True),
            color="C3",
            linewidth=6,
            solid_capstyle="round",
            marker="o",
        )
        return pixels(figure)

    def _squared_distance(self, q: Tensor) -> Tensor:
        x, y = self.joints(q)[:, 1].unbind(1)
        return (x - self.target[0]).square() + (y - self.target[1]).square()

    def _cost(self, q: Tensor) -> Tensor:
        moving = 0.02 * q[:, 2:].square().sum(1)
        return saturated(self.distance_weight * self._squared_distance(q) + moving, self.cost_limit)


def _mass_matrix(elbow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``M11``, ``M12`` and the determinant (``M22`` is ``A3``)."""
    m11, m12 = A1 + 2 * A2 * elbow.cos(), A3 + A2 * elbow.cos()
    return m11, m12, m11 * A3 - m12.square()
