"""Pictures of MuJoCo models: a drawing that needs nothing, and MuJoCo's own renderer, which needs a
GL.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..problem import device_of, rollout
from ..rendering import disc, pixels, scene

_AXES = {"xz": (0, 2), "xy": (0, 1), "yz": (1, 2)}
#: Coordinate across each plane that grows towards the eye, and its sign.
_NEAR = {"xz": (1, -1), "xy": (2, 1), "yz": (0, 1)}
_TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)


def sketch(
    model: Any,
    qpos: np.ndarray,
    view: str,
    title: str,
    among: np.ndarray | None = None,
    goal: Any = None,
) -> np.ndarray:
    """The outlines of the model's geoms, projected on a plane, the nearer ones in front.

    The camera goes along with a robot that leaves its place; the ground is marked at every metre.

    Args:
        model: a ``mujoco.MjModel``.
        qpos: its position, ``(nq,)``.
        view: ``xz``, ``xy`` or ``yz``.
        title: of the picture.
        among: positions ``(m, nq)`` that the robot is usually in, for the frame.
        goal: a point ``(3,)`` to mark.
    """
    from matplotlib.patches import Polygon

    data, plane, (across, sign) = _placed(model, qpos), list(_AXES[view]), _NEAR[view]
    middle, half = _frame(model, data, plane)
    if among is not None and _turns_in_place(model):
        middle, half = _closer(model, data, plane, among, goal, (middle, half))
    figure, axes = scene(0, 0, *[(float(m - half), float(m + half)) for m in middle])
    axes.set_title(title)
    for g in np.argsort(sign * data.geom_xpos[:, across], kind="stable"):
        rgba = _colour(model, g)
        if rgba[3] == 0 or model.geom_group[g] > 2:  # as MuJoCo's viewer shows it at first
            continue
        if _is_ground(model, g):
            if 2 in plane:
                _draw_ground(axes, float(data.geom_xpos[g][2]), middle[0], half)
            continue
        outline, edge = outline_of(model, data, g, plane), 0.6 * rgba[:3]
        axes.add_patch(Polygon(outline, facecolor=rgba[:3], edgecolor=edge, linewidth=0.8))
    for s in range(model.nsite):
        axes.add_artist(disc(data.site_xpos[s][plane], 0.02 * half, "C3"))
    if goal is not None:
        axes.plot(
            *np.asarray(goal)[plane], marker="o", markersize=16, color="C2", fillstyle="none", mew=3
        )
    return pixels(figure)


@lru_cache(maxsize=4)
def by_itself(robot: Any) -> np.ndarray:
    """Positions ``(m, nq)`` that a ``Robot`` is in where nobody controls it."""
    paths = rollout(robot, None, 16, torch.Generator(device_of(robot)).manual_seed(0)).states
    some = paths[:: max(1, robot.horizon // 10)].flatten(0, 1)
    return robot.physics(some).qpos.double().cpu().numpy()


def outline_of(model: Any, data: Any, geom: int, plane: list[int]) -> np.ndarray:
    """The outline of a geom's shadow on a plane: corners of a convex polygon, ``(m, 2)``."""
    import mujoco
    from scipy.spatial import ConvexHull

    shape = mujoco.mjtGeom
    kind, size, at = int(model.geom_type[geom]), model.geom_size[geom], data.geom_xpos[geom]
    turn = data.geom_xmat[geom].reshape(3, 3)
    if kind in (int(shape.mjGEOM_SPHERE), int(shape.mjGEOM_CAPSULE)):
        reach = size[1] * turn[:, 2] if kind == int(shape.mjGEOM_CAPSULE) else np.zeros(3)
        ends = np.stack([at - reach, at + reach])[:, plane]
        points = (ends[:, None] + size[0] * _CIRCLE).reshape(-1, 2)
        return points[ConvexHull(points).vertices]
    if kind == int(shape.mjGEOM_CYLINDER):
        rim = np.concatenate([size[0] * _CIRCLE, np.full((len(_CIRCLE), 1), size[1])], 1)
        local = np.concatenate([rim, rim * [1, 1, -1]])
    elif kind == int(shape.mjGEOM_BOX):
        local = size * np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    elif kind == int(shape.mjGEOM_MESH):
        mesh = model.geom_dataid[geom]
        first = model.mesh_vertadr[mesh]
        local = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
    else:
        radii = size if kind == int(shape.mjGEOM_ELLIPSOID) else model.geom_rbound[[geom] * 3]
        rise = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 17))
        rings = np.sqrt(1 - rise**2)[:, None, None] * _CIRCLE
        levels = np.broadcast_to(rise[:, None, None], (*rings.shape[:2], 1))
        local = radii * np.concatenate([rings, levels], 2).reshape(-1, 3)
    points = (at + local @ turn.T)[:, plane]
    return points[ConvexHull(points).vertices]


def _colour(model: Any, geom: int) -> np.ndarray:
    """A geom's own colour, or its material's where it has none."""
    own, material = model.geom_rgba[geom], model.geom_matid[geom]
    return model.mat_rgba[material] if material >= 0 and np.all(own == (0.5, 0.5, 0.5, 1)) else own


def _is_ground(model: Any, geom: int) -> bool:
    import mujoco

    grounds = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    return int(model.geom_type[geom]) in [int(ground) for ground in grounds]


def _draw_ground(axes: Any, height: float, middle: float, half: float) -> None:
    axes.axhline(height, color="0.6", linewidth=1, zorder=0)
    marks = np.arange(np.ceil(middle - half), middle + half)
    axes.vlines(marks, height - 0.06 * half, height, color="0.6", linewidth=1, zorder=0)


def _frame(model: Any, data: Any, plane: list[int]) -> tuple[np.ndarray, float]:
    """Middle of the picture, and half of its side, which is the same in every position.

    A robot that is fixed somewhere is shown with all that it can reach, one that runs free as large
    as it stands. The camera follows what leaves the middle.
    """
    root, rest = model.body_rootid, _placed(model, model.qpos0)
    moving = [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]] != 0]
    fixed = [g for g in range(model.ngeom) if g not in moving and not _is_ground(model, g)]
    trees = sorted({int(root[model.geom_bodyid[g]]) for g in moving})
    held = [tree for tree in trees if not _runs_free(model, tree)]
    if not moving:
        return model.stat.center[plane], 0.75 * model.stat.extent
    if not held:
        standing = np.concatenate([outline_of(model, rest, g, plane) for g in moving])
        low, high = standing.min(0), standing.max(0)
        begun, half = (low + high) / 2, 0.7 * float((high - low).max())
        bodies = sorted({int(model.geom_bodyid[g]) for g in moving})
        gone, slack = (data.xpos - rest.xpos)[bodies].mean(0)[plane], 0.1 * half
    else:
        begun, gone = rest.xpos[held[0]][plane], (data.xpos - rest.xpos)[held[0]][plane]
        reach = max(_reach(model, g) for g in moving if root[model.geom_bodyid[g]] == held[0])
        around = [np.abs(outline_of(model, rest, g, plane) - begun).max() for g in fixed]
        # what stands still is shown whole, unless that makes the robot small
        half = 1.1 * max([reach, *[far for far in around if far < 1.6 * reach]])
        slack = half / 3
    return begun + np.sign(gone) * np.maximum(np.abs(gone) - slack, 0), half


def _closer(
    model: Any,
    data: Any,
    plane: list[int],
    among: np.ndarray,
    goal: Any,
    frame: tuple[np.ndarray, float],
) -> tuple[np.ndarray, float]:
    """A frame around what moves, where that is closer than ``frame``: the positions that the robot
    is usually in, the present one, and the goal.
    """
    moving = [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]] != 0]
    shown = [data, *(_placed(model, qpos) for qpos in among)]
    points = [outline_of(model, one, g, plane) for one in shown for g in moving]
    swept = np.concatenate(points if goal is None else [*points, np.asarray(goal)[None, plane]])
    low, high = swept.min(0), swept.max(0)
    half = 0.58 * float((high - low).max())
    return ((low + high) / 2, half) if half < frame[1] else frame


def _turns_in_place(model: Any) -> bool:
    """Whether a model is held somewhere and has no joints but hinges and balls."""
    import mujoco

    kinds = set(model.jnt_type.tolist())
    turning = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_BALL)
    return bool(kinds) and kinds <= {int(kind) for kind in turning}


def _runs_free(model: Any, tree: int) -> bool:
    """Whether a tree of bodies hangs on nothing: it can be shifted in two directions."""
    import mujoco

    kinds = model.jnt_type[model.jnt_bodyid == tree].tolist()
    free, slide = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_SLIDE)
    return free in kinds or kinds.count(slide) >= 2


def _reach(model: Any, geom: int) -> float:
    """How far from its tree's first body a geom can come by turning."""
    body, root = model.geom_bodyid[geom], model.body_rootid[model.geom_bodyid[geom]]
    far = np.linalg.norm(model.geom_pos[geom]) + model.geom_rbound[geom]
    while body != root:
        far, body = far + np.linalg.norm(model.body_pos[body]), model.body_parentid[body]
    return float(far)


def photograph(model: Any, qpos: np.ndarray, width: int = 320, height: int = 240) -> np.ndarray:
    """The model as MuJoCo's own renderer shows it, from its first camera if it has one.

    Raises:
        ValueError: there is no GL of the kind that MUJOCO_GL names.
    """
    import mujoco

    try:
        renderer = _renderer(model, width, height)
        renderer.update_scene(
            _placed(model, qpos), camera=0 if model.ncam else _camera(mujoco, model)
        )
        return renderer.render().copy()
    except Exception as error:  # each GL fails in its own way
        gl = os.environ.get("MUJOCO_GL")
        raise ValueError(
            "MUJOCO_GL must name a GL that works here (egl, osmesa, glfw), or be unset for a"
            f" drawing; got {gl!r} ({type(error).__name__}: {error})"
        ) from error


def _placed(model: Any, qpos: np.ndarray) -> Any:
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    return data


@lru_cache(maxsize=4)
def _renderer(model: Any, width: int, height: int) -> Any:
    import mujoco

    return mujoco.Renderer(model, height, width)


def _camera(mujoco: Any, model: Any) -> Any:
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    return camera
