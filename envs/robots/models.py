"""MuJoCo models: where they are read from, where their keyframes begin, and what their actuators
take.
"""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..extras import install_command

#: An MJCF file, its text, a binary ``.mjb`` file, a ``mujoco.MjModel`` or a ``mujoco.MjSpec``.
Model = Any


def read_model(model: Model, quiet: bool = False) -> Any:
    """A ``mujoco.MjModel`` of a file, a text, or itself; ``quiet`` drops what MuJoCo has to say of
    it.

    Raises:
        ValueError: the model can't be read, or MuJoCo isn't installed.
    """
    try:
        import mujoco
    except ImportError as error:
        raise ValueError(
            f"MuJoCo must be installed for this environment: {install_command('mujoco')} ({error})"
        ) from error
    except (AttributeError, RuntimeError, OSError) as error:  # it looks for its GL at once
        raise ValueError(
            "MUJOCO_GL must name a GL that works here (egl, osmesa, glfw), or be unset for a"
            f" drawing; got {os.environ.get('MUJOCO_GL')!r} ({type(error).__name__}: {error})"
        ) from error
    if quiet:
        heard = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            return read_model(model)
        finally:
            mujoco.set_mju_user_warning(heard)
    if isinstance(model, mujoco.MjModel):
        return model
    try:
        if isinstance(model, mujoco.MjSpec):
            return model.compile()
        if str(model).endswith(".mjb"):
            return mujoco.MjModel.from_binary_path(str(Path(model).expanduser()))
        if isinstance(model, str) and model.lstrip().startswith("<"):
            return mujoco.MjModel.from_xml_string(model)
        return mujoco.MjModel.from_xml_path(str(Path(model).expanduser()))
    except (ValueError, TypeError) as error:
        shown = model if len(str(model)) < 200 else f"{str(model)[:200]}..."
        raise ValueError(
            f"model must be an MJCF file, its text, or a mujoco.MjModel; got {shown!r} ({error})"
        ) from error


class Rest(NamedTuple):
    """Where a robot begins."""

    qpos: np.ndarray
    qvel: np.ndarray
    act: np.ndarray
    ctrl: np.ndarray


def rest_of(model: Any, keyframe: str | int | None) -> Rest:
    """The keyframe's, or the model's own at rest."""
    if keyframe is None:
        return Rest(model.qpos0, *(np.zeros(size) for size in (model.nv, model.na, model.nu)))
    names = [model.key(i).name for i in range(model.nkey)]
    if isinstance(keyframe, str) and keyframe in names:
        place = names.index(keyframe)
    elif (
        isinstance(keyframe, Integral)
        and not isinstance(keyframe, bool)
        and 0 <= keyframe < model.nkey
    ):
        place = int(keyframe)
    else:
        raise ValueError(
            f"keyframe must be one of the model's {model.nkey}, by name or number ({names}); got"
            f" {shown(keyframe)}"
        )
    if model.nmocap and (model.key_mpos[place] != _mocap(model)).any():
        raise ValueError(
            "keyframe must leave mocap bodies where the model has them; this one moves some"
        )
    return Rest(*(getattr(model, f"key_{part}")[place].copy() for part in Rest._fields))


def _mocap(model: Any) -> np.ndarray:
    """Where the model has its mocap bodies, as keyframes write it."""
    return model.body_pos[model.body_mocapid >= 0].ravel()


def per_actuator(name: str, value: Any, count: int) -> Tensor:
    """``value`` as ``(count,)``, one number of ctrl each.

    Raises:
        ValueError: these are not one or ``count`` finite numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    numbers = array.dtype.kind in "iuf" and array.shape in ((), (count,))
    if not (numbers and np.isfinite(array).all()):
        raise ValueError(
            f"{name} must be one finite number, or {count}, one an actuator; got {value!r}"
        )
    return torch.from_numpy(np.broadcast_to(array, count).astype(np.float64))


def limits_of(model: Any) -> tuple[Tensor, Tensor]:
    """Smallest and largest ctrl of each actuator; infinite where the model sets none."""
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = model.actuator_ctrlrange.T
    return torch.from_numpy(np.where(limited, low, -np.inf)), torch.from_numpy(
        np.where(limited, high, np.inf)
    )
