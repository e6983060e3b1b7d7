"""What steps a batch of MuJoCo models: MuJoCo itself, over threads. ``warp`` has the one for
GPUs.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Engine:
    """MuJoCo itself: steps a batch over threads. It can be pickled, copied and forked; threads
    start with the first batch.
    """

    picks = True  #: stepping a few of the robots is cheaper than stepping all

    def __init__(self, model: Any, frame_skip: int, sensors: bool, threads: int | None) -> None:

        if more := _remembers(model, sensors):
            raise ValueError(
                "model must move by its positions, velocities and activations alone; this one has"
                f" {more}, which remember more"
            )
        self.model, self.frame_skip, self.sensors, self.threads = (
            model,
            frame_skip,
            sensors,
            threads,
        )
        # the full physics state begins with the time, on which no force depends
        self.size = model.nq + model.nv + model.na
        self._pool: tuple[int, Any, list[Any]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.frame_skip, self.sensors, self.threads)

    def __deepcopy__(self, memo: Any) -> Engine:
        return self  # nothing in it changes but scratch memory

    def place(self, x: Tensor) -> Tensor:
        """States where, and as precise as, they are stepped."""
        return x.to("cpu", torch.float64)

    def step(self, state: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, size)`` after ``frame_skip`` substeps under ctrl ``(n, nu)``, and the sensors
        there, ``(n, nsensordata)``. Robots whose simulation has exploded are NaN.
        """
        n, model = len(state), self.model
        pool, scratch = self._threads()
        begun = np.zeros((n, self.size + 1))
        begun[:, 1:] = state.numpy()
        substeps = self.frame_skip + self.sensors  # sensors are read at the start of a substep
        # MuJoCo puts a robot that explodes back to its start, at time 0: later than that it is not
        begun[:, 0] = began = 1.0 + 2 * substeps * model.opt.timestep
        held = np.repeat(control.numpy()[:, None], substeps, 1)
        path = np.empty((n, substeps, self.size + 1))
        sensed = np.empty((n, substeps, model.nsensordata))
        if n:
            pool.rollout(
                [model] * n,
                scratch,
                begun,
                held,
                skip_checks=True,
                nstep=substeps,
                state=path,
                sensordata=sensed,
            )
        after = sensed[:, -1] if self.sensors else sensed[:, 0, :0]
        later = path[:, self.frame_skip - 1]
        later[later[:, 0] < began] = np.nan
        return torch.from_numpy(later[:, 1:]), torch.from_numpy(after)

    def _threads(self) -> tuple[Any, list[Any]]:
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            import mujoco
            from mujoco.rollout import Rollout

            threads = self.threads or torch.get_num_threads()
            _FORKED.append(
                self._pool
            )  # to end a pool whose threads are gone would wait for them forever
            scratch = [mujoco.MjData(self.model) for _ in range(threads)]
            self._pool = os.getpid(), Rollout(nthread=threads if threads > 1 else 0), scratch
        return self._pool[1], self._pool[2]


_FORKED: list[Any] = []


def _remembers(model: Any, sensors: bool) -> str:
    """What of a model's next step does not follow from positions, velocities and activations;
    nothing: an empty text.
    """
    import mujoco

    state, enabled = mujoco.mjtState, mujoco.mjtEnableBit
    full = mujoco.mj_stateSize(model, state.mjSTATE_FULLPHYSICS) - 1
    asleep = getattr(enabled, "mjENBL_SLEEP", 0)
    if model.nplugin:
        return "plug-ins"
    if getattr(model, "nhistory", 0):  # MuJoCo of before knows no delays
        return "delays"
    if full != model.nq + model.nv + model.na:
        return "other states"
    if model.opt.enableflags & int(asleep):
        return "bodies that fall asleep"
    if sensors and (model.sensor_type == mujoco.mjtSensor.mjSENS_CLOCK).any():
        return "clocks as sensors"
    return ""
