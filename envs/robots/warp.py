"""MuJoCo Warp (Google DeepMind and NVIDIA) behind ``Robot``: all robots of a batch step on the
device where their states are.

It computes in float32, with solvers that are MuJoCo's up to rounding. On a GPU a substep is one
CUDA graph; on the CPU it is there to be tested.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..extras import install_command
from .engine import Engine

#: Batch sizes whose memory is kept; learners use one or two, evaluations another.
_KEPT = 4


class WarpEngine(Engine):
    """Steps a batch by MuJoCo Warp, which is compiled when the first batch comes (half a minute)
    and cached on disk.

    Raises:
        ValueError: MuJoCo Warp isn't installed, or the model has what it does not simulate.
    """

    picks = False  # to count those that go on would make the host wait

    def __init__(self, model: Any, frame_skip: int, sensors: bool, threads: int | None) -> None:
        super().__init__(model, frame_skip, sensors, threads)
        if threads is not None:
            raise ValueError(
                f"threads is of engine='mujoco'; engine='warp' takes none, got {threads!r}"
            )
        if self.size != model.nq + model.nv + model.na:
            raise ValueError(
                "engine='warp' steps models whose state is (qpos, qvel, act); this one's has more:"
                " plugins or delays"
            )
        with _on("cpu") as warp_engine:
            try:
                warp_engine.put_model(model)
            except NotImplementedError as error:
                raise ValueError(f"engine='warp' can't simulate this model: {error}") from error
        self._batches: OrderedDict[tuple[str, int], _Batch] = OrderedDict()

    def place(self, x: Tensor) -> Tensor:
        """States where they are, in float32."""
        return x.float()

    def step(self, state: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Engine``; float32, on the device of ``state``."""
        key = str(state.device), len(state)
        if not len(state):
            return state, state.new_empty(0, self.model.nsensordata if self.sensors else 0)
        if key not in self._batches:
            self._batches[key] = self._allocate(state.device, len(state))
            while len(self._batches) > _KEPT:
                self._batches.popitem(last=False)
        self._batches.move_to_end(key)
        batch = self._batches[key]
        for part, values in zip(
            batch.state, state.split([len(part[0]) for part in batch.state], 1), strict=True
        ):
            part.copy_(values)
        batch.control.copy_(control)
        batch.warm.zero_()
        batch.advance()
        return torch.cat(batch.state, 1), batch.sensed.clone()

    def _allocate(self, device: torch.device, n: int) -> _Batch:
        import warp

        with _on(str(device)) as engine:
            model, data = engine.put_model(self.model), engine.make_data(self.model, nworld=n)
            model.opt.deterministic = (
                True  # contacts in one order, sums too: equal seeds, equal paths
            )
            step = _replayed(device, lambda: engine.step(model, data))
            sense = _replayed(device, lambda: engine.forward(model, data)) if self.sensors else None

            def advance() -> None:
                for _ in range(self.frame_skip):
                    step()
                if sense is not None:
                    sense()  # what the state that the step has led to reads

            state = [warp.to_torch(part) for part in (data.qpos, data.qvel, data.act)]
            sensed = warp.to_torch(data.sensordata)
            if not self.sensors:
                sensed = sensed[:, :0]
            return _Batch(
                state, warp.to_torch(data.ctrl), warp.to_torch(data.qacc_warmstart), sensed, advance
            )


class _Batch(NamedTuple):
    """Views of MuJoCo Warp's memory for one number of robots, and what steps it."""

    state: list[Tensor]  # qpos, qvel, act
    control: Tensor
    warm: Tensor  # where its solver starts
    sensed: Tensor
    advance: Callable[[], None]


def _replayed(device: torch.device, run: Callable[[], None]) -> Callable[[], None]:
    """``run``; on a GPU, recorded as a CUDA graph that is replayed on torch's stream."""
    import warp

    run()  # compiles
    if device.type != "cuda":
        return run
    with warp.ScopedCapture() as capture:
        run()
    try:
        warp.capture_launch(capture.graph)
    except RuntimeError as error:
        warnings.warn(
            "no CUDA graph can be made of MuJoCo Warp's step here, so it runs without, slower"
            f" ({error})",
            stacklevel=2,
        )
        return run

    def replay() -> None:
        warp.capture_launch(
            capture.graph, stream=warp.stream_from_torch(torch.cuda.current_stream(device))
        )

    return replay


@contextmanager
def _on(device: str) -> Iterator[Any]:
    """The module ``mujoco_warp``, with what it makes on that device."""
    try:
        import warp

        warp.config.log_level = warp.LOG_WARNING  # else it prints every file that it compiles
        import mujoco_warp
    except ImportError as error:
        raise ValueError(
            f"engine='warp' must be installed: {install_command('warp')} ({error})"
        ) from error
    with warp.ScopedDevice(device):
        yield mujoco_warp
