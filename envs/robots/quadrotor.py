"""Fly a quadrotor, seen from the side, from hovering here to being there.

Position (x, z), tilt th (0 is level), forces F1 and F2 of the right and left rotors at distance r
from the centre:

    m x'' = -(F1 + F2) sin th - c m x',   m z'' = (F1 + F2) cos th - m g - c m z',   I th'' = r (F1
    - F2)

(Tedrake, "Underactuated Robotics", chapter 3, planar quadrotors; c is drag). What flies it without
control is what every such vehicle has on board: rotors that carry its weight when level, and an
attitude loop that levels it,

    F1 + F2 = m g,   r (F1 - F2) = -I (stiffness sin th + rate_damping th');

noise and control come on top of each rotor's force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_positive, checked
from ..rendering import disc, pixels, scene
from .control_affine import Diffusion, Time, check_at_least_zero, saturated

GRAVITY, MASS, INERTIA, ROTOR_DISTANCE = (
    9.81,
    0.486,
    0.00383,
    0.25,
)  # SI units; Bouadi, Bouchoucha and Tadjine (2007)


class PlanarQuadrotor(Diffusion):
    """``girsanov/PlanarQuadrotor-v0``. Coordinates ``(x, z, th, x', z', th')``, SI units; the state
    has cos th, sin th for th.

    With d the distance to the goal, the cost is ``C = saturated(distance_weight d^2, cost_limit)``:
    the reward is ``-C`` at the end, and ``-running_weight C`` per second.

    Args:
        steps: horizon, in steps of ``step_size``.
        temperature: price of one nat of KL.
        force_scale: N s^(1/2), standard deviation of each rotor force's integral over one second;
            in one step a force's is ``force_scale / sqrt(step_size)``.
        stiffness: of the attitude loop, 1/s^2.
        rate_damping: of the attitude loop, 1/s.
        drag: c, 1/s.
        goal: ``(x, z)``, m; the start is at (0, 0).
        distance_weight: per m^2.
        cost_limit: bound of C.
        running_weight: per second.
        spread: standard deviation of every coordinate at the start.
        step_size: s.
        refine: number of steps that each step is cut into.
        integrator: ``"rk4"`` or ``"euler"``.
    """

    @checked
    def __init__(
        self,
        steps: int = 60,
        temperature: float = 1.0,
        force_scale: float = 0.2,
        stiffness: float = 200.0,
        rate_damping: float = 20.0,
        drag: float = 0.3,
        goal: Sequence[float] = (1.0, 1.0),
        distance_weight: float = 24.0,
        cost_limit: float = 8.0,
        running_weight: float = 0.05,
        spread: float = 0.05,
        step_size: float = 0.04,
        refine: int = 1,
        integrator: str = "rk4",
    ) -> None:
        check_positive("force_scale", force_scale)
        check_positive("cost_limit", cost_limit)
        check_at_least_zero(
            stiffness=stiffness,
            rate_damping=rate_damping,
            drag=drag,
            distance_weight=distance_weight,
            running_weight=running_weight,
            spread=spread,
        )
        super().__init__(6, 2, step_size, steps, temperature, (2,), integrator, refine)
        self.force_scale, self.stiffness, self.rate_damping, self.drag = (
            force_scale,
            stiffness,
            rate_damping,
            drag,
        )
        self.goal, self.distance_weight, self.cost_limit = tuple(goal), distance_weight, cost_limit
        self.running_weight, self.spread = running_weight, spread

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Hovering, plus normal noise of size ``spread``."""
        return self.spread * torch.randn(n, 6, generator=generator, device=generator.device)

    def drift(self, t: Time, q: Tensor) -> Tensor:
        """Hovering under the attitude loop."""
        _, _, tilt, vx, vz, turn = q.unbind(1)
        sine = tilt.sin()
        lift = GRAVITY * (tilt.cos() - 1)
        levelling = -self.stiffness * sine - self.rate_damping * turn
        return torch.stack(
            [vx, vz, turn, -GRAVITY * sine - self.drag * vx, lift - self.drag * vz, levelling], 1
        )

    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """What a force of ``force_scale`` of each rotor adds, ``(n, 6, 2)``."""
        push = self.force_scale / MASS * torch.stack([-q[:, 2].sin(), q[:, 2].cos()], 1)
        turn = torch.full_like(push[:, :1], self.force_scale * ROTOR_DISTANCE / INERTIA)
        none = torch.zeros_like(q[:, :3])
        return torch.stack([torch.cat([none, push, turn], 1), torch.cat([none, push, -turn], 1)], 2)

    def reward_rate(self, t: Time, q: Tensor) -> Tensor:
        """``-running_weight C``."""
        return -self.running_weight * self._cost(q)

    def final_reward(self, q: Tensor) -> Tensor:
        """``-C``."""
        return -self._cost(q)

    def success(self, x: Tensor) -> Tensor:
        """Within 0.3 m of the goal, tilted by less than 0.3 rad."""
        q = self.coordinates(x)
        return (self._squared_distance(q) < 0.3**2) & (q[:, 2].abs() < 0.3)

    def render(self, path: Tensor) -> Any:
        """The vehicle, the goal's circle of 0.3 m, and the trail."""
        q = self.coordinates(path).double().numpy()
        figure, axes = scene(len(path) - 1, self.horizon, (-1.5, 2.5), (-1.5, 2.5))
        axes.add_artist(disc(self.goal, 0.3, color="C2"))
        axes.plot(q[:, 0], q[:, 1], color="0.7", linewidth=1)
        x, z, tilt = q[-1, :3]
        arm = ROTOR_DISTANCE * np.array([np.cos(tilt), np.sin(tilt)])
        axes.plot(
            [x - arm[0], x + arm[0]],
            [z - arm[1], z + arm[1]],
            color="C3",
            linewidth=4,
            marker="o",
            markersize=6,
        )
        return pixels(figure)

    def _squared_distance(self, q: Tensor) -> Tensor:
        return (q[:, 0] - self.goal[0]).square() + (q[:, 1] - self.goal[1]).square()

    def _cost(self, q: Tensor) -> Tensor:
        return saturated(self.distance_weight * self._squared_distance(q), self.cost_limit)
