"""MuJoCo models as problems: ``F_k`` is the physics engine, steered through the noise in its
actuators.

One step holds ``ctrl = clip(offset + scale z)``, z = a + W, for ``frame_skip`` substeps of
``mj_step``; a batch is stepped by ``mujoco.rollout`` over threads, or by MuJoCo Warp on the GPU
where the states are. The KL of the chain stays exactly ``|a|^2 / 2`` per step, whatever the engine
does with ctrl.

The seam pays ``r_k(x_k)``, while robots are paid for what a step did: ``reward(before, control,
after)``. So the last step's reward is a coordinate of the state, and r_k reads it: ``sum_k r_k +
y`` is the sum of the steps' rewards. An episode that ends early (a fallen robot) goes on in a state
where nothing moves and nothing is paid, which is the same return at a fixed horizon.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check_integer, check_positive, check_range, check_shape, checked
from ..problem import Problem
from .engine import Engine
from .models import Model, limits_of, per_actuator, read_model, rest_of

#: Beyond this MuJoCo calls a simulation unstable (mjMAXVAL).
_LARGEST = 1e10


#: What MUJOCO_GL says where there is to be none.
_NO_GL = ("", "disable", "disabled", "off", "false", "0")


class Physics(NamedTuple):
    """What rewards see of ``n`` robots, where and as the engine computes: float64 on the CPU; warp:
    float32 on the device.
    """

    qpos: Tensor  # (n, nq)
    qvel: Tensor  # (n, nv)
    sensors: Tensor  # (n, nsensordata); nothing unless the robot has ``sensors=True``


class Robot(Problem):
    """A MuJoCo model; a subclass writes its ``reward``, and ``healthy``, ``start`` and ``success``
    if it likes.

    The state is ``(qpos, qvel, the model's other state (act, ...), last reward, alive)``. Between
    steps it is rounded to ``dtype``; inside a step everything is float64 (warp: float32).
    Constraint solvers start cold at every step, so that F is a function of x.

    Args:
        model: an MJCF file, its text (``<mujoco>...``), a ``.mjb`` file, a
            ``mujoco.MjModel`` or a ``mujoco.MjSpec``.
        steps: horizon, in steps of ``frame_skip`` substeps.
        temperature: price of one nat of KL.
        scale: standard deviation of the noise in ctrl, one number or one an actuator; so the ctrl
            of a control of 1.
        offset: ctrl of the uncontrolled, noise-free robot, one number or one an actuator. Absent:
            the keyframe's, else 0.
        frame_skip: substeps in which ctrl is held.
        spread: half-width of ``start``'s uniform law.
        sensors: let rewards see the sensors of the state after the step, at the price of one more
            substep.
        threads: that step a batch; absent: torch's number of threads when the first batch comes. Of
            the engine mujoco only.
        dtype: of the states.
        keyframe: name or number of the model's keyframe whose positions, velocities and activations
            ``start`` begins at; absent: the model's own at rest.
        engine: mujoco steps on the CPU, warp (MuJoCo Warp, ``girsanov[warp]``) on the device of the
            states.

    Raises:
        ValueError: an argument is out of its range, the model can't be read or the engine can't
            step it, or it isn't installed.
    """

    view = "xz"  #: the plane that ``render`` draws without a GL
    goal: Sequence[float] | Tensor | None = None  #: a point ``(3,)`` that the drawing marks

    @checked
    def __init__(
        self,
        model: Model,
        steps: int,
        temperature: float,
        scale: float | Sequence[float] = 1.0,
        offset: float | Sequence[float] | None = None,
        frame_skip: int = 1,
        spread: float = 0.01,
        sensors: bool = False,
        threads: int | None = None,
        dtype: torch.dtype = torch.float32,
        engine: str = "mujoco",
        keyframe: str | int | None = None,
    ) -> None:
        check_positive("temperature", temperature)
        for name, whole in (
            ("steps", steps),
            ("frame_skip", frame_skip),
            ("threads", 1 if threads is None else threads),
        ):
            check_integer(name, whole)
        check_range("spread", spread, 0, 1e6)
        self.engine = make_engine(engine, read_model(model), frame_skip, sensors, threads)
        loaded = self.engine.model
        if loaded.nu == 0:
            raise ValueError(
                "model must have an actuator: noise and control enter through it; got one without"
            )
        self.rest = rest_of(loaded, keyframe)  #: where it begins
        self.scale, self.offset = (
            per_actuator("scale", scale, loaded.nu),
            per_actuator("offset", self.rest.ctrl if offset is None else offset, loaded.nu),
        )
        self.low, self.high = limits_of(loaded)
        if not (self.scale > 0).all():
            raise ValueError(f"scale must be above 0 for every actuator; got {scale!r}")
        self.spread = spread
        self.state_shape, self.noise_shape = (self.engine.size + 2,), (loaded.nu,)
        self.horizon, self.temperature = steps, temperature
        self.step_size = loaded.opt.timestep * frame_skip  #: s
        self._like = torch.empty(
            0, dtype=dtype
        )  # carries the device and dtype of the states through `to`

    @abstractmethod
    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """What a step from ``before`` to ``after`` earns, ``(n,)``; ``control`` is its ctrl ``(n,
        nu)``, noise included.
        """

    def healthy(self, physics: Physics) -> Tensor:
        """Whether the episode goes on, ``bool (n,)``; always, unless overridden."""
        return torch.ones(len(physics.qpos), dtype=torch.bool, device=physics.qpos.device)

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` initial ``(qpos, qvel)``, ``(n, nq + nv)`` on the generator's device: the
        keyframe's or the model's own, up to the spread.
        """
        rest = np.concatenate([self.rest.qpos, self.rest.qvel])
        noise = (
            2
            * torch.rand(
                n, len(rest), generator=generator, device=generator.device, dtype=torch.float64
            )
            - 1
        )
        return torch.from_numpy(rest).to(noise) + self.spread * noise

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """``start``, with nothing earned, and alive."""
        begun = self._upright(self.start(n, generator)).to(self._like)
        rest = [*self.rest.act.tolist(), 0.0, 1.0]
        return torch.cat([begun, begun.new_tensor(rest).expand(n, -1)], 1)

    def _upright(self, begun: Tensor) -> Tensor:
        """With unit quaternions of free and ball joints."""
        model, begun = self.engine.model, begun.clone()
        for kind, place in zip(model.jnt_type.tolist(), model.jnt_qposadr.tolist(), strict=True):
            if kind < 2:  # a free joint's three coordinates come before its quaternion
                part = slice(place + 3 * (kind == 0), place + 3 * (kind == 0) + 4)
                length = begun[:, part].norm(dim=1, keepdim=True)
                identity = begun.new_tensor([1.0, 0.0, 0.0, 0.0])  # MuJoCo's reading of zeros
                begun[:, part] = torch.where(length > 1e-15, begun[:, part] / length, identity)
        return begun

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """``frame_skip`` substeps under ``clip(offset + scale z)`` (not differentiable)."""
        state = self.engine.place(x.detach())
        z, offset, scale, low, high = (
            part.to(state) for part in (z.detach(), self.offset, self.scale, self.low, self.high)
        )
        control = (offset + scale * z).clamp(low, high)
        going = state[:, -1] > 0.5
        later = state.clone()
        later[:, -2] = 0.0  # those that have fallen stay where they are, unpaid
        if self.engine.picks:
            later[going] = self._stepped(state[going], control[going])
        else:
            later = torch.where(going[:, None], self._stepped(state, control), later)
        return later.to(x)

    def _stepped(self, state: Tensor, control: Tensor) -> Tensor:
        later, sensed = self.engine.step(state[:, :-2], control)
        finite = (later.abs() <= _LARGEST).all(1)  # NaN is not
        later = torch.where(
            finite[:, None], later, state[:, :-2]
        )  # an exploded simulation is a fallen robot
        after = self._physics(later, sensed)
        earned, well = self.reward(self.physics(state), control, after), self.healthy(after)
        for what, values in (("reward", earned), ("healthy", well)):
            check_shape(f"{what} of {type(self).__name__}", values, finite.shape)
        earned, alive = torch.where(finite, earned, 0.0), well.bool() & finite
        return torch.cat([later, earned.to(later)[:, None], alive.to(later)[:, None]], 1)

    def physics(self, x: Tensor) -> Physics:
        """Positions and velocities of states; the sensors are not part of them."""
        state = self.engine.place(x.detach())
        return self._physics(state, state[:, :0])

    def _physics(self, state: Tensor, sensors: Tensor) -> Physics:
        model = self.engine.model
        return Physics(state[:, : model.nq], state[:, model.nq : model.nq + model.nv], sensors)

    def alive(self, x: Tensor) -> Tensor:
        """Whether the episode of each state still goes on, ``bool (n,)``."""
        return x[:, -1] > 0.5

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What the step that led to ``x`` has earned."""
        return x[:, -2]

    def terminal_reward(self, x: Tensor) -> Tensor:
        """What the last step has earned."""
        return x[:, -2]

    def success(self, x: Tensor) -> Tensor:
        """Whether the robot has lasted to the end; a subclass says what its task is."""
        return self.alive(x)

    def render(self, path: Tensor) -> Any:
        """The robot now: by MuJoCo's renderer if MUJOCO_GL names a GL, or drawn."""
        from .pictures import by_itself, photograph, sketch

        qpos = self.physics(path[-1:]).qpos[0].double().cpu().numpy()
        if os.environ.get("MUJOCO_GL", "").lower().strip() not in _NO_GL:
            return photograph(self.engine.model, qpos)
        title = f"step {len(path) - 1} of {self.horizon}"
        return sketch(self.engine.model, qpos, self.view, title, by_itself(self), self.goal)


class MujocoProblem(Robot):
    """A ``Robot`` made of functions.

    Args:
        model: see ``Robot``.
        reward: ``reward(before, control, after) -> (n,)``.
        healthy: ``healthy(physics) -> bool (n,)``: whether the episode goes on; always, if absent.
        success: ``success(physics) -> bool (n,)`` of the end, unless it came early; True if absent.
        start: ``start(n, generator) -> (n, nq + nv)``; ``Robot.start`` if absent.
        goal: a point of the world, three numbers, that drawings mark.
        others: ``steps``, ``temperature``, ``scale`` and the other arguments of ``Robot``.

    Example: an arm that is paid for keeping its hand, a site with a framepos sensor, near a point::

        reward = lambda before, control, after: -(after.sensors - point).square().sum(1)
        arm = MujocoProblem("arm.xml", reward, sensors=True, steps=100, temperature=1.0, scale=0.2)
    """

    @checked
    def __init__(
        self,
        model: Model,
        reward: Callable[[Physics, Tensor, Physics], Tensor],
        healthy: Callable[[Physics], Tensor] | None = None,
        success: Callable[[Physics], Tensor] | None = None,
        start: Callable[[int, torch.Generator], Tensor] | None = None,
        goal: Sequence[float] | Tensor | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, **others)
        if goal is not None and np.shape(goal) != (3,):
            raise ValueError(f"goal must be a point, three numbers; got {goal!r}")
        self._reward, self._healthy, self._success, self._start = reward, healthy, success, start
        self.goal = goal

    def reward(self, before: Physics, control: Tensor, after: Physics) -> Tensor:
        """The given ``reward``."""
        return self._reward(before, control, after)

    def healthy(self, physics: Physics) -> Tensor:
        """The given ``healthy``."""
        return super().healthy(physics) if self._healthy is None else self._healthy(physics)

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """The given ``start``."""
        return super().start(n, generator) if self._start is None else self._start(n, generator)

    def success(self, x: Tensor) -> Tensor:
        """The given ``success`` of those still alive."""
        alive = super().success(x)
        return (
            alive
            if self._success is None
            else alive & self._success(self.physics(x)).to(alive.device)
        )


def make_engine(
    name: str, model: Any, frame_skip: int, sensors: bool, threads: int | None
) -> Engine:
    """The engine of that name; see ``Robot``."""
    if name == "mujoco":
        return Engine(model, frame_skip, sensors, threads)
    if name == "warp":
        from .warp import WarpEngine

        return WarpEngine(model, frame_skip, sensors, threads)
    raise ValueError(f"engine must be 'mujoco' or 'warp'; got {name!r}")
