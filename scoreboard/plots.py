"""Pictures of finished runs, as matplotlib figures that need no screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .spec import UNITS

Rows = list[dict[str, Any]]
_LABELS = {
    "env_steps": "environment steps",
    "reward_queries": "reward queries",
    "seconds": "seconds of training",
}


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curve(rows: Rows, unit: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """``x`` and ``y`` of one run against one unit of cost, the final evaluation included."""
    x, y = np.array([(row[unit], row[quantity]) for row in rows], dtype=float).T
    return x, y


def mean_curve(
    runs: Sequence[Rows], unit: str, quantity: str, points: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """A grid ``(points,)`` up to the end of the shortest run, and every run's curve on it, ``(runs,
    points)``.
    """
    curves = [curve(rows, unit, quantity) for rows in runs]
    grid = np.linspace(0.0, min(x[-1] for x, _ in curves), points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def learning_curves(
    runs: Mapping[str, Sequence[Rows]], quantity: str, title: str, target: float | None = None
) -> Any:
    """One panel a unit of cost: thin lines are seeds, thick lines their mean, bands their range.

    Args:
        runs: by agent, the rows of each seed.
        quantity: ``score`` or ``objective``.
        title: of the figure.
        target: where the optimum (or its bound) lies, drawn dotted.
    """
    figure = _figure(13, 4)
    panels = figure.subplots(1, len(UNITS), sharey=True)
    for axes, unit in zip(panels, UNITS, strict=True):
        for i, (agent, seeds) in enumerate(runs.items()):
            colour = f"C{i}"
            for rows in seeds:
                axes.plot(*curve(rows, unit, quantity), color=colour, linewidth=0.6, alpha=0.5)
            grid, values = mean_curve(seeds, unit, quantity)
            axes.plot(grid, values.mean(0), color=colour, linewidth=2, label=agent)
            axes.fill_between(
                grid, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
            )
        if target is not None:
            axes.axhline(target, color="0.4", linestyle=":", linewidth=1)
        if quantity == "score":
            axes.axhline(0.0, color="0.7", linewidth=0.8)
        axes.set_xlabel(_LABELS[unit])
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.2)
    ends = [rows[-1]["seconds"] for seeds in runs.values() for rows in seeds]
    if max(ends) > 20 * max(min(ends), 1e-9):
        panels[-1].set_xscale("symlog", linthresh=max(min(ends) / 4, 1e-3))
    lowest = min(row[quantity] for seeds in runs.values() for rows in seeds for row in rows)
    if quantity == "score" and lowest < -1:
        panels[0].set_ylim(
            -1, 1.1
        )  # a learner far below the pre-trained model must not flatten the others
    panels[0].set_ylabel(quantity)
    panels[0].legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    return figure


def samples(states: Mapping[str, np.ndarray], title: str) -> Any | None:
    """Terminal states side by side: grids of images ``(n, C, H, W)``, scatters of planar states
    ``(n, 2)``, else None.
    """
    shape = next(iter(states.values())).shape[1:]
    if len(shape) != 3 and shape != (2,):
        return None
    figure = _figure(3.0 * len(states), 3.4 if shape == (2,) else 2.0)
    limit = float(max(np.abs(points).max() for points in states.values())) * 1.05
    for axes, (name, points) in zip(
        np.atleast_1d(figure.subplots(1, len(states))), states.items(), strict=True
    ):
        _scatter(axes, points, limit) if shape == (2,) else _images(axes, points)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def grid_of(images: np.ndarray, rows: int = 4, columns: int = 8) -> np.ndarray:
    """The first images ``(n, C, H, W)`` in [-1, 1] as one picture ``(H', W', 3)`` in [0, 1], with a
    line between them.
    """
    chosen = np.clip(images[: rows * columns] * 0.5 + 0.5, 0.0, 1.0)
    n, channels, height, width = chosen.shape
    rows = -(-n // columns)
    padded = np.full((rows * columns, channels, height + 1, width + 1), 0.5)
    padded[:n, :, :height, :width] = chosen
    tiles = padded.reshape(rows, columns, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return np.repeat(picture, 3, 2) if channels == 1 else picture[..., :3]


def _images(axes: Any, images: np.ndarray) -> None:
    axes.imshow(grid_of(images), interpolation="nearest")
    axes.set_axis_off()


def _scatter(axes: Any, points: np.ndarray, limit: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.6)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_aspect("equal")
