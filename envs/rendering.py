"""Small pictures of paths, as ``(H, W, 3)`` uint8 arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


def canvas(width: float = 3.0, height: float = 3.0, dpi: int = 100) -> tuple[Any, Any]:
    """A matplotlib figure and its axes that need no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def pixels(figure: Any) -> np.ndarray:
    """Draw a figure made by ``canvas`` and return its picture."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def trace(path: Tensor, horizon: int) -> np.ndarray:
    """Every coordinate of a path ``(k + 1, *state_shape)`` against the step (at most 16
    coordinates).
    """
    figure, axes = canvas(4.0, 3.0)
    axes.plot(path.reshape(len(path), -1)[:, :16].double().numpy(), linewidth=1)
    axes.set_xlim(0, horizon)
    axes.set_xlabel("step")
    axes.set_ylabel("state")
    return pixels(figure)


def scene(
    step: int, horizon: int, x_range: tuple[float, float], y_range: tuple[float, float]
) -> tuple[Any, Any]:
    """A figure 3 inches high and its axes for things in the plane, both axes to one scale."""
    width, height = x_range[1] - x_range[0], y_range[1] - y_range[0]
    figure, axes = canvas(min(6.0, 3.0 * max(1.0, width / height)), 3.0)
    axes.set(xlim=x_range, ylim=y_range, xticks=[], yticks=[], title=f"step {step} of {horizon}")
    axes.set_aspect("equal")
    return figure, axes


def disc(centre: Sequence[float], radius: float, color: str) -> Any:
    """A filled circle to ``add_artist`` to axes."""
    from matplotlib.patches import Circle

    return Circle((centre[0], centre[1]), radius, color=color, alpha=0.6, linewidth=0)
