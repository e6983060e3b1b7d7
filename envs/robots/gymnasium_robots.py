"""Gymnasium's MuJoCo robots, version 5: its own models, starts, rewards and ends of an episode,
with noise in the actuators.

Each reward is Gymnasium's formula with the ctrl that was applied (control plus noise, clipped) as
its action, evaluated at the state after the step. Gymnasium reads positions of bodies and sites
from the engine's memory, which after a step of the Runge-Kutta integrator still holds those of its
last stage: the inverted double pendulum's and the reacher's rewards differ from Gymnasium's by
that, at most a few thousandths. Horizons are shorter than Gymnasium's time limit of 1,000 steps (50
for the reacher): ``steps=1000`` is Gymnasium's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor

from ..checks import checked
from .models import read_model
from .mujoco import Physics, Robot


def model_path(name: str) -> Path:
    """One of the MJCF files that come with Gymnasium."""
    return Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / f"{name}.xml"


def _model(name: str) -> Any:
    """Read without the warnings of newer MuJoCos, which are about how Gymnasium's files are
    written.
    """
    return read_model(model_path(name), quiet=True)


def _uniform(n: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, size, generator=generator, device=generator.device, dtype=torch.float64)


def _normal(n: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, size, generator=generator, device=generator.device, dtype=torch.float64)


class InvertedPendulum(Robot):
    """``girsanov/InvertedPendulum-v0``: a pole on a cart, paid 1 for every step within 0.2 rad of
    upright.

    Args:
        steps: horizon, in steps of 0.04 s.
        temperature: price of one nat of KL.
        scale: standard deviation of ctrl (100 N each; limited to 3).
        others: of ``Robot``.
    """

    @checked
    def __init__(
        self, steps: int = 100, temperature: float = 1.0, scale: float = 0.2, **others: Any
    ) -> None:
        super().__init__(
            _model("inverted_pendulum"), steps, temperature, scale, frame_skip=2, **others
        )

    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """1 unless it has fallen."""
        return self.healthy(after).double()

    def healthy(self, physics: Physics) -> Tensor:
        """Within 0.2 rad of upright."""
        return physics.qpos[:, 1].abs() <= 0.2


class InvertedDoublePendulum(Robot):
    """``girsanov/InvertedDoublePendulum-v0``: two poles on a cart, paid 10 a step while the tip is
    above 1 m.

    Args:
        steps: horizon, in steps of 0.05 s.
        temperature: price of one nat of KL.
        scale: standard deviation of ctrl (500 N each; limited to 1).
        others: of ``Robot``.
    """

    @checked
    def __init__(
        self, steps: int = 100, temperature: float = 2.0, scale: float = 0.1, **others: Any
    ) -> None:
        model = _model("inverted_double_pendulum")
        super().__init__(
            model, steps, temperature, scale, frame_skip=5, **{"spread": 0.1, **others}
        )

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Upright up to the spread, with normal speeds."""
        return self.spread * torch.cat(
            [2 * _uniform(n, 3, generator) - 1, _normal(n, 3, generator)], 1
        )

    def tip(self, physics: Physics) -> tuple[Tensor, Tensor]:
        """Where the tip is, to the side and upwards, m."""
        model = self.engine.model
        first, second = model.body_pos[model.body("pole2").id][2], model.site_pos[0][2]
        x, lower, bend = physics.qpos.unbind(1)
        upper = lower + bend
        return (
            x + first * lower.sin() + second * upper.sin(),
            first * lower.cos() + second * upper.cos(),
        )

    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """10 unless it has fallen, less what the tip's place and the joints' speeds cost."""
        x, y = self.tip(after)
        distance = 0.01 * x.square() + (y - 2).square()
        speed = 1e-3 * after.qvel[:, 1].square() + 5e-3 * after.qvel[:, 2].square()
        return 10.0 * (y > 1) - distance - speed

    def healthy(self, physics: Physics) -> Tensor:
        """The tip is above 1 m."""
        return self.tip(physics)[1] > 1


class Reacher(Robot):
    """``girsanov/Reacher-v0``: a two-link arm whose fingertip is to reach a target that lies
    anywhere within 0.2 m.

    Args:
        steps: horizon, in steps of 0.02 s.
        temperature: price of one nat of KL.
        scale: standard deviation of ctrl (200 N m each; limited to 1).
        others: of ``Robot``.
    """

    view = "xy"

    @checked
    def __init__(
        self,
        steps: int = 50,
        temperature: float = 0.5,
        scale: float | Sequence[float] = 0.1,
        **others: Any,
    ) -> None:
        super().__init__(
            _model("reacher"), steps, temperature, scale, frame_skip=2, **{"spread": 0.1, **others}
        )

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """The arm stretched out up to the spread and nearly at rest, the target uniform in a disc
        of 0.2 m.
        """
        arm = self.spread * (2 * _uniform(n, 2, generator) - 1)
        radius, angle = (
            0.2 * _uniform(n, 1, generator).sqrt(),
            2 * torch.pi * _uniform(n, 1, generator),
        )
        speed = 0.005 * (2 * _uniform(n, 2, generator) - 1)
        return torch.cat(
            [arm, radius * angle.cos(), radius * angle.sin(), speed, torch.zeros_like(speed)], 1
        )

    def distance(self, physics: Physics) -> Tensor:
        """From the fingertip to the target, m, ``(n,)``."""
        model = self.engine.model
        first, second = (model.body_pos[model.body(name).id][0] for name in ("body1", "fingertip"))
        shoulder, elbow = physics.qpos[:, 0], physics.qpos[:, :2].sum(1)
        x, y = (
            first * shoulder.cos() + second * elbow.cos(),
            first * shoulder.sin() + second * elbow.sin(),
        )
        return torch.stack([x - physics.qpos[:, 2], y - physics.qpos[:, 3]]).norm(dim=0)

    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """Minus the distance, minus the square of ctrl."""
        return -self.distance(after) - control.square().sum(1)

    def success(self, x: Tensor) -> Tensor:
        """The fingertip is within 2 cm of the target."""
        return (self.distance(self.physics(x)) < 0.02).to(x.device)


class HalfCheetah(Robot):
    """``girsanov/HalfCheetah-v0``: paid for running forward, 1 a step for every m/s.

    Args:
        steps: horizon, in steps of 0.05 s.
        temperature: price of one nat of KL.
        scale: standard deviation of ctrl, of each actuator's limit.
        others: of ``Robot``.
    """

    @checked
    def __init__(
        self,
        steps: int = 100,
        temperature: float = 1.0,
        scale: float | Sequence[float] = 0.5,
        **others: Any,
    ) -> None:
        super().__init__(
            _model("half_cheetah"),
            steps,
            temperature,
            scale,
            frame_skip=5,
            **{"spread": 0.1, **others},
        )

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Standing, up to the spread, with normal speeds."""
        return self.spread * torch.cat(
            [2 * _uniform(n, 9, generator) - 1, _normal(n, 9, generator)], 1
        )

    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """Speed forward in m/s, less 0.1 of the square of ctrl."""
        return (after.qpos[:, 0] - before.qpos[:, 0]) / self.step_size - 0.1 * control.square().sum(
            1
        )

    def success(self, x: Tensor) -> Tensor:
        """It has come forward by 1 m for every second."""
        return self.physics(x).qpos[:, 0].to(x.device) > self.horizon * self.step_size


class Hopper(Robot):
    """``girsanov/Hopper-v0``: a leg that is paid 1 for every step on its foot and 1 for every m/s
    forward.

    Args:
        steps: horizon, in steps of 0.008 s.
        temperature: price of one nat of KL.
        scale: standard deviation of ctrl, of each actuator's limit.
        others: of ``Robot``.
    """

    @checked
    def __init__(
        self,
        steps: int = 125,
        temperature: float = 1.0,
        scale: float | Sequence[float] = 0.5,
        **others: Any,
    ) -> None:
        super().__init__(
            _model("hopper"), steps, temperature, scale, frame_skip=4, **{"spread": 5e-3, **others}
        )

    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """Speed forward in m/s, 1 if healthy, less 0.001 of the square of ctrl."""
        speed = (after.qpos[:, 0] - before.qpos[:, 0]) / self.step_size
        return speed + self.healthy(after).double() - 1e-3 * control.square().sum(1)

    def healthy(self, physics: Physics) -> Tensor:
        """Above 0.7 m, within 0.2 rad of upright, and no other coordinate beyond 100."""
        height, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        others = torch.cat([physics.qpos[:, 2:], physics.qvel], 1).abs().amax(1)
        return (height > 0.7) & (angle.abs() < 0.2) & (others < 100)
