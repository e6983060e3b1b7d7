"""Swing up a pendulum by torque that is noise plus control, on the physics of Gymnasium's
Pendulum-v1.

With angle th (0 is upright), speed w and torque ``u = torque_scale z``, one step of 0.05 s is
Gymnasium's own,

    w' = clip(w + (3 g / (2 l) sin th + 3 / (m l^2) u) dt, -8, 8),   th' = th + w' dt,

and the running reward is its cost ``-(th^2 + 0.1 w^2) dt`` with th in [-pi, pi]; the price of
torque is the KL. In steps of ``dt / refine`` the torque's standard deviation is ``torque_scale
sqrt(refine)``: white noise, of which the speed gets the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_positive, checked
from ..problem import Problem
from ..rendering import canvas, pixels

GRAVITY, MASS, LENGTH, TIME_STEP, MAX_SPEED = 10.0, 1.0, 1.0, 0.05, 8.0


class Pendulum(Problem):
    """``girsanov/Pendulum-v0``. State ``(cos th, sin th, w)``, Gymnasium's observation: continuous
    over any number of turns.

    Gymnasium limits the torque to 2 N m; here nothing is cut off, so a control of 0.5 is that limit
    at the default scale.

    Args:
        steps: horizon, in steps of 0.05 s.
        temperature: price of one nat of KL.
        torque_scale: standard deviation of the torque in each step of 0.05 s, N m.
        terminal_weight: the terminal reward is ``-terminal_weight (th^2 + 0.1 w^2)``.
        angle_spread: the start is uniform within this angle of hanging down, rad; pi is Gymnasium's
            own initial law.
        speed_spread: and within this speed of rest, rad/s; Gymnasium's own is 1.
        dtype: of the states.
        refine: number of steps that each step is cut into; rewards and noise are scaled so that the
            diffusion is the same.
    """

    @checked
    def __init__(
        self,
        steps: int = 100,
        temperature: float = 5.0,
        torque_scale: float = 4.0,
        terminal_weight: float = 8.0,
        angle_spread: float = 0.1,
        speed_spread: float = 0.1,
        dtype: torch.dtype = torch.float32,
        refine: int = 1,
    ) -> None:
        check_positive("temperature", temperature)
        check_positive("torque_scale", torque_scale)
        others = (
            ("terminal_weight", terminal_weight),
            ("angle_spread", angle_spread),
            ("speed_spread", speed_spread),
        )
        for name, value in others:
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0; got {value!r}")
        for name, whole in (("steps", steps), ("refine", refine)):
            check_integer(name, whole)
        self.state_shape, self.noise_shape = (3,), (1,)
        self.horizon, self.temperature, self.time_step = (
            steps * refine,
            temperature,
            TIME_STEP / refine,
        )
        self.torque_scale, self.terminal_weight = torque_scale * math.sqrt(refine), terminal_weight
        self.spread = torch.tensor([angle_spread, speed_spread], dtype=dtype)

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Hanging down and at rest, each up to its spread."""
        unit = (
            2
            * torch.rand(
                n, 2, generator=generator, device=generator.device, dtype=self.spread.dtype
            )
            - 1
        )
        angle, speed = (unit * self.spread).unbind(1)
        return torch.stack([-angle.cos(), -angle.sin(), speed], 1)

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Gymnasium's step with torque ``torque_scale z``; the angle is advanced by a rotation of
        its cosine and sine.
        """
        cosine, sine, speed = x.unbind(1)
        pull = (
            3 * GRAVITY / (2 * LENGTH) * sine + 3 / (MASS * LENGTH**2) * self.torque_scale * z[:, 0]
        )
        speed = (speed + pull * self.time_step).clamp(-MAX_SPEED, MAX_SPEED)
        turn = speed * self.time_step
        c, s = turn.cos(), turn.sin()
        return torch.stack([cosine * c - sine * s, sine * c + cosine * s, speed], 1)

    def angle(self, x: Tensor) -> Tensor:
        """The angle from upright in [-pi, pi], ``(n,)``."""
        return torch.atan2(x[:, 1], x[:, 0])

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``-(th^2 + 0.1 w^2) dt``."""
        return -self.time_step * self._cost(x)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """``-terminal_weight (th^2 + 0.1 w^2)``."""
        return -self.terminal_weight * self._cost(x)

    def success(self, x: Tensor) -> Tensor:
        """Upright to within 0.2 rad."""
        return self.angle(x).abs() < 0.2

    def render(self, path: Tensor) -> Any:
        """The rod as it hangs now, and the trail of its tip over the last ten steps."""
        figure, axes = canvas()
        tip = path[-10:].double().numpy()
        axes.plot(tip[:, 1], tip[:, 0], color="0.7", linewidth=1)
        axes.plot([0, tip[-1, 1]], [0, tip[-1, 0]], color="C3", linewidth=6, solid_capstyle="round")
        axes.scatter(0, 0, color="k", zorder=3)
        axes.set(
            xlim=(-1.2, 1.2),
            ylim=(-1.2, 1.2),
            xticks=[],
            yticks=[],
            title=f"step {len(path) - 1} of {self.horizon}",
        )
        axes.set_aspect("equal")
        return pixels(figure)

    def _cost(self, x: Tensor) -> Tensor:
        return self.angle(x).square() + 0.1 * x[:, 2].square()
