"""Swing up a pole by pushing the cart that it hangs from: Gymnasium's CartPole-v1 with a noisy
force and all the way round.

With M the mass of both, m and l the pole's mass and half its length, th its angle (0 is upright), F
the force and c the cart's damping,

    temp = (F - c x' + m l th'^2 sin th) / M,   th'' = (g sin th - temp cos th) / (l (4/3 - m cos^2
    th / M)), x''  = temp - m l th'' cos th / M

(Florian 2007, "Correct equations for the dynamics of the cart-pole system"; Barto, Sutton and
Anderson 1983).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_positive, checked
from ..rendering import pixels, scene
from .control_affine import Diffusion, Time, check_at_least_zero, saturated

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5  # Gymnasium's
MASS, MOMENT = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
TRACK = 2.4  # m, to either side


class CartPoleSwingUp(Diffusion):
    """``girsanov/CartPoleSwingUp-v0``. Coordinates ``(x, x', th, th')`` in SI units; the state has
    cos th, sin th for th.

    With ``S`` for ``saturated(., 1)`` the terminal reward is

        -terminal_weight (S((th^2 + 0.01 th'^2) / 0.25) + 0.15 S(x^2 / 4)),

    best upright, at rest and in the middle, and ``-running_weight ((1 - cos th) / 2 + 0.3 S(x^2 /
    4))`` is paid per second.

    Args:
        steps: horizon, in steps of ``step_size``.
        temperature: price of one nat of KL.
        force_scale: N s^(1/2), standard deviation of the force's integral over one second; in one
            step the force's is ``force_scale / sqrt(step_size)``.
        damping: of the cart, N s/m; Gymnasium's has none.
        running_weight: per second.
        terminal_weight: of the last state.
        spread: every coordinate starts within this distance of hanging at rest in the middle.
        step_size: s. In steps of 0.04 s a push moves the pole so far that a quarter of the score is
            out of any control's reach.
        refine: number of steps that each step is cut into.
        integrator: ``"rk4"``, or ``"euler"`` as in Gymnasium.
    """

    @checked
    def __init__(
        self,
        steps: int = 200,
        temperature: float = 1.0,
        force_scale: float = 5.0,
        damping: float = 2.0,
        running_weight: float = 0.5,
        terminal_weight: float = 8.0,
        spread: float = 0.1,
        step_size: float = 0.01,
        refine: int = 1,
        integrator: str = "rk4",
    ) -> None:
        check_positive("force_scale", force_scale)
        check_at_least_zero(
            damping=damping,
            running_weight=running_weight,
            terminal_weight=terminal_weight,
            spread=spread,
        )
        super().__init__(4, 1, step_size, steps, temperature, (2,), integrator, refine)
        self.force_scale, self.damping, self.spread = force_scale, damping, spread
        self.running_weight, self.terminal_weight = running_weight, terminal_weight

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Hanging at rest in the middle, each coordinate up to the spread."""
        q = self.spread * (2 * torch.rand(n, 4, generator=generator, device=generator.device) - 1)
        q[:, 2] += math.pi
        return q

    def drift(self, t: Time, q: Tensor) -> Tensor:
        """The equations of the module's docstring without a force."""
        _, speed, angle, turn = q.unbind(1)
        sine, cosine = angle.sin(), angle.cos()
        temp = (MOMENT * turn.square() * sine - self.damping * speed) / MASS
        bend = (GRAVITY * sine - cosine * temp) / _inertia(cosine)
        return torch.stack([speed, temp - MOMENT * bend * cosine / MASS, turn, bend], 1)

    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """What a force of ``force_scale`` adds, ``(n, 4, 1)``."""
        cosine = q[:, 2].cos()
        temp = torch.full_like(cosine, self.force_scale / MASS)
        bend = -cosine * temp / _inertia(cosine)
        none = torch.zeros_like(temp)
        return torch.stack([none, temp - MOMENT * bend * cosine / MASS, none, bend], 1)[:, :, None]

    def energy(self, q: Tensor) -> Tensor:
        """Kinetic and potential energy, J, ``(n,)``; 0 at rest with the pole level."""
        _, speed, angle, turn = q.unbind(1)
        kinetic = 0.5 * MASS * speed.square() + MOMENT * speed * turn * angle.cos()
        return (
            kinetic + 2 / 3 * MOMENT * HALF_LENGTH * turn.square() + MOMENT * GRAVITY * angle.cos()
        )

    def reward_rate(self, t: Time, q: Tensor) -> Tensor:
        """See the class."""
        return -self.running_weight * (
            0.5 * (1 - q[:, 2].cos()) + 0.3 * saturated(q[:, 0].square() / 4, 1.0)
        )

    def final_reward(self, q: Tensor) -> Tensor:
        """See the class."""
        x, _, angle, turn = q.unbind(1)
        fallen = saturated((angle.square() + 0.01 * turn.square()) / 0.25, 1.0)
        return -self.terminal_weight * (fallen + 0.15 * saturated(x.square() / 4, 1.0))

    def success(self, x: Tensor) -> Tensor:
        """Upright to within 0.2 rad, the cart on Gymnasium's track of 2.4 m to either side."""
        q = self.coordinates(x)
        return (q[:, 2].abs() < 0.2) & (q[:, 0].abs() < TRACK)

    def render(self, path: Tensor) -> Any:
        """The cart on its track, the pole, and the trail of its tip over the last ten steps."""
        x, _, angle, _ = self.coordinates(path[-10:]).double().numpy().T
        tip = x + 2 * HALF_LENGTH * np.sin(angle), 2 * HALF_LENGTH * np.cos(angle)
        middle = (
            2 * TRACK * round(x[-1] / (2 * TRACK))
        )  # the next stretch of track, if it has left this one
        figure, axes = scene(
            len(path) - 1, self.horizon, (middle - 1.25 * TRACK, middle + 1.25 * TRACK), (-1.5, 1.5)
        )
        axes.plot([-TRACK, TRACK], [0, 0], color="0.6", linewidth=2)
        axes.plot(*tip, color="0.7", linewidth=1)
        axes.plot(x[-1], 0, "s", color="k", markersize=14)
        axes.plot(
            [x[-1], tip[0][-1]], [0, tip[1][-1]], color="C3", linewidth=5, solid_capstyle="round"
        )
        return pixels(figure)


def _inertia(cosine: Tensor) -> Tensor:
    return HALF_LENGTH * (4 / 3 - POLE_MASS / MASS * cosine.square())
