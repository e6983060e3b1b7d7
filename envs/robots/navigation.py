"""Drive a robot among round obstacles to a goal: a double integrator and a unicycle, with noisy
motors.

The double integrator is the point mass ``p'' = control + noise``. The unicycle drives where it
points and cruises,

    p' = v (cos th, sin th),   th' = w,   v' = control + noise - damping (v - cruise),   w' =
    control + noise - damping w

(LaValle 2006, "Planning Algorithms", sections 13.1.2.3 and 13.2: the unicycle, and how integrators
make it second-order). Collisions are remembered: the last entry of a state is 1 once its robot has
been in an obstacle at the end of a step, and 0 before. Nothing is paid for that memory, which is
there for ``success``; the time spent in obstacles is paid for.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_positive, checked
from ..rendering import disc, pixels, scene
from .control_affine import Diffusion, Time, check_at_least_zero, saturated

#: Circles ``(x, y, radius)`` in m, the robot's own radius included.
OBSTACLES = ((1.2, 0.3, 0.35), (2.1, -0.45, 0.35), (2.2, 0.9, 0.35))
SOFTNESS = 0.05  # m, over which the cost of an obstacle rises at its rim
TOLERANCE = 0.4  # m, what counts as at the goal


class Navigation(Diffusion):
    """What the robots share. Coordinates ``(x, y, ..., collided)``, SI units.

    With d the distance to the goal, the cost is ``C = saturated(distance_weight d^2, cost_limit)``:
    the reward is ``-C`` at the end, and per second ``-running_weight C - obstacle_cost
    sigmoid(depth / 0.05 m)``, where depth is how far inside the nearest obstacle the robot is
    (negative outside): smooth, so that the obstacles have a gradient.

    Args:
        dimension: number of coordinates.
        steps: horizon, in steps of ``step_size``.
        temperature: price of one nat of KL.
        goal: ``(x, y)``, m; the start is at (0, 0).
        distance_weight: per m^2.
        cost_limit: bound of C; infinite leaves it quadratic, and the rewards unbounded.
        running_weight: per second.
        obstacles: circles ``(x, y, radius)``, m.
        obstacle_cost: per second.
        spread: standard deviation of every coordinate at the start.
        others: ``step_size``, ``angles``, ``integrator`` and ``refine``, as in ``Diffusion``.
    """

    @checked
    def __init__(
        self,
        dimension: int,
        steps: int,
        temperature: float,
        goal: Sequence[float],
        distance_weight: float,
        cost_limit: float | int,
        running_weight: float,
        obstacles: Sequence[Sequence[float]],
        obstacle_cost: float,
        spread: float,
        **others: Any,
    ) -> None:
        check_at_least_zero(
            distance_weight=distance_weight,
            running_weight=running_weight,
            obstacle_cost=obstacle_cost,
            spread=spread,
        )
        if not cost_limit > 0:
            raise ValueError(
                f"cost_limit must be a positive number or infinite; got {cost_limit!r}"
            )
        if not all(len(circle) == 3 and circle[2] > 0 for circle in obstacles):
            raise ValueError(f"obstacles must be circles (x, y, radius > 0); got {obstacles!r}")
        super().__init__(dimension, 2, horizon=steps, temperature=temperature, **others)
        self.goal, self.distance_weight, self.cost_limit = tuple(goal), distance_weight, cost_limit
        self.running_weight, self.obstacle_cost, self.spread = running_weight, obstacle_cost, spread
        self.obstacles = torch.tensor(obstacles, dtype=self._like.dtype).reshape(-1, 3)

    @abstractmethod
    def cruise_speed(self) -> tuple[int, float]:
        """Which coordinate of the start is not near 0 but near a speed, and that speed, m/s."""

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """At (0, 0) and under way along x, plus normal noise of size ``spread``."""
        q = self.spread * torch.randn(
            n, len(self._is_angle), generator=generator, device=generator.device
        )
        column, speed = self.cruise_speed()
        q[:, column] += speed
        q[:, -1] = 0
        return q

    def depth(self, q: Tensor) -> Tensor:
        """How far inside the nearest obstacle, m, ``(n,)``; negative outside, -inf if there is
        none.
        """
        if not len(self.obstacles):
            return torch.full_like(q[:, 0], -math.inf)
        away = torch.linalg.vector_norm(q[:, None, :2] - self.obstacles[:, :2], dim=2)
        return (self.obstacles[:, 2] - away).amax(1)

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """One step, and the memory of collisions."""
        moved = super().transition(k, x, z)
        collided = torch.maximum(x[:, -1], (self.depth(moved) > 0).to(x))
        return torch.cat([moved[:, :-1], collided[:, None]], 1)

    def reward_rate(self, t: Time, q: Tensor) -> Tensor:
        """See the class."""
        return -self.running_weight * self._cost(q) - self.obstacle_cost * torch.sigmoid(
            self.depth(q) / SOFTNESS
        )

    def final_reward(self, q: Tensor) -> Tensor:
        """``-C``."""
        return -self._cost(q)

    def success(self, x: Tensor) -> Tensor:
        """Within 0.4 m of the goal, without a collision on the way."""
        return (self._squared_distance(x) < TOLERANCE**2) & (x[:, -1] == 0)

    def render(self, path: Tensor) -> Any:
        """The robot and its trail, obstacles and goal from above; the robot is red once it has
        collided.
        """
        figure, axes = scene(len(path) - 1, self.horizon, (-0.8, 3.8), (-2.0, 2.0))
        axes.add_artist(disc(self.goal, TOLERANCE, color="C2"))
        for x, y, radius in self.obstacles.tolist():
            axes.add_artist(disc((x, y), radius, color="0.3"))
        x, y = path[:, :2].double().numpy().T
        axes.plot(x, y, color="C0", linewidth=1)
        heading = self.heading(path[-1:])[0].double().numpy()
        axes.plot(
            [x[-1], x[-1] + 0.25 * heading[0]],
            [y[-1], y[-1] + 0.25 * heading[1]],
            color="k",
            linewidth=2,
        )
        axes.plot(x[-1], y[-1], "o", color="C3" if path[-1, -1] else "C0", markersize=9)
        return pixels(figure)

    @abstractmethod
    def heading(self, x: Tensor) -> Tensor:
        """The direction of states, unit vectors ``(n, 2)``."""

    def _squared_distance(self, q: Tensor) -> Tensor:
        return (q[:, 0] - self.goal[0]).square() + (q[:, 1] - self.goal[1]).square()

    def _cost(self, q: Tensor) -> Tensor:
        return saturated(self.distance_weight * self._squared_distance(q), self.cost_limit)


class DoubleIntegratorNavigation(Navigation):
    """``girsanov/DoubleIntegratorNavigation-v0``. State ``(x, y, x', y', collided)``.

    Without obstacles and with an infinite cost limit it is linear-quadratic (but for ``collided``,
    then always 0).

    Args:
        steps: horizon, in steps of ``step_size``.
        temperature: price of one nat of KL.
        scale: m/s^(3/2), standard deviation of each speed's noise after one second.
        speed: along x at the start, m/s.
        goal: ``(x, y)``, m.
        distance_weight: see Navigation; so are all others.
        cost_limit: see Navigation.
        running_weight: see Navigation.
        obstacles: see Navigation.
        obstacle_cost: see Navigation.
        spread: see Navigation.
        step_size: s.
        refine: number of steps that each step is cut into.
        integrator: ``"rk4"`` (here exact) or ``"euler"``.
    """

    @checked
    def __init__(
        self,
        steps: int = 50,
        temperature: float = 1.0,
        scale: float = 0.5,
        speed: float = 1.0,
        goal: Sequence[float] = (2.8, 0.0),
        distance_weight: float = 16.0,
        cost_limit: float | int = 8.0,
        running_weight: float = 0.05,
        obstacles: Sequence[Sequence[float]] = OBSTACLES,
        obstacle_cost: float = 15.0,
        spread: float = 0.1,
        step_size: float = 0.05,
        refine: int = 1,
        integrator: str = "rk4",
    ) -> None:
        check_positive("scale", scale)
        super().__init__(
            5,
            steps,
            temperature,
            goal,
            distance_weight,
            cost_limit,
            running_weight,
            obstacles,
            obstacle_cost,
            spread,
            step_size=step_size,
            refine=refine,
            integrator=integrator,
        )
        self.speed = speed
        self.matrix = torch.zeros(5, 2)
        self.matrix[2, 0] = self.matrix[3, 1] = scale

    def cruise_speed(self) -> tuple[int, float]:
        """``x'``."""
        return 2, self.speed

    def drift(self, t: Time, q: Tensor) -> Tensor:
        """Speeds move positions."""
        return torch.cat([q[:, 2:4], torch.zeros_like(q[:, :3])], 1)

    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """Control and noise are accelerations, ``(5, 2)``."""
        return self.matrix

    def heading(self, x: Tensor) -> Tensor:
        """Where it moves."""
        return torch.nn.functional.normalize(x[:, 2:4], dim=1)


class UnicycleNavigation(Navigation):
    """``girsanov/UnicycleNavigation-v0``. Coordinates ``(x, y, th, v, w, collided)``; the state has
    cos th, sin th for th.

    Args:
        steps: horizon, in steps of ``step_size``.
        temperature: price of one nat of KL.
        scale: m/s^(3/2), standard deviation of the speed's noise after one second, were there no
            damping.
        turn_scale: rad/s^(3/2), the same of the turning rate's.
        cruise: speed to which v returns, and at which it starts, m/s.
        damping: 1/s.
        goal: ``(x, y)``, m.
        distance_weight: see Navigation; so are all others.
        cost_limit: see Navigation.
        running_weight: see Navigation.
        obstacles: see Navigation.
        obstacle_cost: see Navigation.
        spread: see Navigation.
        step_size: s.
        refine: number of steps that each step is cut into.
        integrator: ``"rk4"`` or ``"euler"``.
    """

    @checked
    def __init__(
        self,
        steps: int = 60,
        temperature: float = 1.0,
        scale: float = 0.5,
        turn_scale: float = 1.5,
        cruise: float = 1.0,
        damping: float = 2.0,
        goal: Sequence[float] = (2.8, 0.0),
        distance_weight: float = 12.0,
        cost_limit: float = 8.0,
        running_weight: float = 0.05,
        obstacles: Sequence[Sequence[float]] = OBSTACLES,
        obstacle_cost: float = 15.0,
        spread: float = 0.1,
        step_size: float = 0.05,
        refine: int = 1,
        integrator: str = "rk4",
    ) -> None:
        check_positive("scale", scale)
        check_positive("turn_scale", turn_scale)
        check_at_least_zero(damping=damping)
        super().__init__(
            6,
            steps,
            temperature,
            goal,
            distance_weight,
            cost_limit,
            running_weight,
            obstacles,
            obstacle_cost,
            spread,
            step_size=step_size,
            refine=refine,
            integrator=integrator,
            angles=(2,),
        )
        self.cruise, self.damping = cruise, damping
        self.matrix = torch.zeros(6, 2)
        self.matrix[3, 0], self.matrix[4, 1] = scale, turn_scale

    def cruise_speed(self) -> tuple[int, float]:
        """``v``."""
        return 3, self.cruise

    def drift(self, t: Time, q: Tensor) -> Tensor:
        """The equations of the module's docstring without control."""
        _, _, angle, speed, turn, collided = q.unbind(1)
        slowing = self.damping * (self.cruise - speed)
        return torch.stack(
            [
                speed * angle.cos(),
                speed * angle.sin(),
                turn,
                slowing,
                -self.damping * turn,
                torch.zeros_like(collided),
            ],
            1,
        )

    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """Control and noise are accelerations along and about, ``(6, 2)``."""
        return self.matrix

    def heading(self, x: Tensor) -> Tensor:
        """Where it points."""
        return x[:, 2:4]
