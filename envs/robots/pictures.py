"""Pictures of MuJoCo models: a drawing that needs nothing, and MuJoCo's own renderer, which needs a
GL.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np

from ..rendering import disc, pixels, scene

_AXES = {"xz": (0, 2), "xy": (0, 1), "yz": (1, 2)}


def sketch(model: Any, qpos: np.ndarray, view: str, title: str) -> np.ndarray:
    """The model's geoms projected on a plane: capsules and cylinders as thick lines, boxes as their
    outline, others as discs.

    Args:
        model: a ``mujoco.MjModel``.
        qpos: its position, ``(nq,)``.
        view: ``xz``, ``xy`` or ``yz``.
        title: of the picture.
    """
    import mujoco
    from matplotlib.colors import to_hex
    from matplotlib.patches import Polygon
    from scipy.spatial import ConvexHull

    data = _placed(model, qpos)
    plane = list(_AXES[view])
    moving = [b for b in range(1, model.nbody) if model.body_weldid[b] != 0]
    middle = data.xpos[moving].mean(0)[plane] if moving else model.stat.center[plane]
    middle = np.where(
        np.abs(middle) < 0.3 * model.stat.extent, 0.0, middle
    )  # the camera goes along with a runner
    half = 0.75 * model.stat.extent
    figure, axes = scene(0, 0, *[(float(m - half), float(m + half)) for m in middle])
    axes.set_title(title)
    points = (
        3.0 * 72 / (2 * half)
    )  # points of line width in a metre: the figure is three inches high
    for g in range(model.ngeom):
        kind, size, at = model.geom_type[g], model.geom_size[g], data.geom_xpos[g]
        turn, colour = data.geom_xmat[g].reshape(3, 3), to_hex(model.geom_rgba[g][:3])
        if kind == mujoco.mjtGeom.mjGEOM_PLANE:
            if 2 in plane:
                axes.axhline(at[2], color="0.7", linewidth=1, zorder=0)
        elif kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER):
            ends = np.stack([at - size[1] * turn[:, 2], at + size[1] * turn[:, 2]])[:, plane]
            axes.plot(
                *ends.T,
                color=colour,
                linewidth=max(1.5, 2 * size[0] * points),
                solid_capstyle="round",
            )
        elif kind == mujoco.mjtGeom.mjGEOM_BOX:
            signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
            corners = (at + (signs * size) @ turn.T)[:, plane]
            axes.add_patch(Polygon(corners[ConvexHull(corners).vertices], color=colour))
        else:
            axes.add_artist(disc(at[plane], max(model.geom_rbound[g], 1e-3), colour))
    for s in range(model.nsite):
        axes.add_artist(disc(data.site_xpos[s][plane], 0.015 * half, "C3"))
    return pixels(figure)


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
