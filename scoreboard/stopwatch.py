"""Seconds of training, whichever clock tells them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Seconds of training: stands still between ``pause`` and ``resume``.

    Args:
        device: whose work counts.
        before: what it shows at first.
        clock: seconds since some time.
    """

    def __init__(
        self,
        device: torch.device,
        before: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device = device
        self._before = before
        self._clock = clock
        self._since: float | None = None

    def resume(self) -> None:
        """Run (again)."""
        self._since = self._clock()

    def pause(self) -> None:
        """Stand still, once the GPU has done what training asked of it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._since is None else self._clock() - self._since)
