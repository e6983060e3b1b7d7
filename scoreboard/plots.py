"""Pictures of finished runs, as matplotlib figures that need no screen."""

from __future__ import annotations

import colorsys
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .intervals import Rows, band, curve, has_curve, known_costs, mean_curve

COST_WORDS = {
    "env_steps": "environment steps",
    "reward_queries": "reward queries",
    "seconds": "seconds of training",
    "model_evaluations": "model evaluations",
    "cpu_seconds": "CPU seconds of training",
}
#: How each agent is spelt and coloured wherever it is shown: Okabe and Ito's palette, then Tol's.
_LOOKS = {
    "pde": ("PDE", "#0072B2"),
    "pi-ft": ("PI-FT", "#009E73"),
    "ppo": ("PPO", "#D55E00"),
    "sac": ("SAC", "#CC79A7"),
    "dpok": ("DPOK", "#E69F00"),
    "ddpo": ("DDPO", "#56B4E9"),
    "adjoint-matching": ("Adjoint Matching", "#000000"),
    "ppo-control": ("PPO (control)", "#882255"),
    "sac-control": ("SAC (control)", "#AA4499"),
    "dyna": ("Dyna", "#999933"),
    "pde-mou": ("PDE (Mou's)", "#44AA99"),
    "pi-ft-algorithm1": ("PI-FT (Algorithm 1)", "#DDCC77"),
    "grpo": ("GRPO", "#332288"),
    "draft": ("DRaFT", "#661100"),
    "log-variance": ("Log-variance", "#6699CC"),
    "best-of-n": ("Best of n", "#117733"),
    "feynman-kac": ("Feynman-Kac particles", "#888888"),
    "posterior-guidance": ("Posterior guidance", "#CC6677"),
}
_OTHERS = ("#332288", "#661100", "#6699CC", "#117733", "#888888")


def name_of(agent: str) -> str:
    """The spelling of an agent in tables and pictures, with the note of its row; yours keeps its
    own, and so does an environment.
    """
    base, mark, note = agent.partition("#")
    known = _LOOKS[base][0] if base in _LOOKS else base
    return f"{known}: {note}" if mark else known


def words(text: str) -> str:
    """A text as matplotlib draws it word for word: no formulas, nothing that no font has."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def colours_of(agents: Iterable[str]) -> dict[str, str]:
    """The colours of a picture's agents, no two alike: known agents have theirs in every picture,
    and any other the first of an order of its own that is free.
    """
    agents = list(dict.fromkeys(agents))
    chosen = {agent: _LOOKS[agent][1] for agent in agents if agent in _LOOKS}
    for agent in agents:
        if agent not in chosen:
            first = zlib.crc32(agent.encode()) % len(_OTHERS)
            order = itertools.chain(_OTHERS[first:], _OTHERS[:first], _more_colours())
            chosen[agent] = next(colour for colour in order if colour not in chosen.values())
    return {agent: chosen[agent] for agent in agents}


def _more_colours() -> Iterator[str]:
    """Without end: those that some known agents have elsewhere, but not the first four's; then
    hues.
    """
    yield from [colour for _, colour in _LOOKS.values()][4:]
    for i in itertools.count():
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618 % 1, 0.75, 0.85 - 0.3 * (i % 2))
        yield f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def encoded(figure: Any) -> Iterator[tuple[str, bytes]]:
    """A figure as ``png`` and ``svg``, the same bytes for the same figure."""
    import matplotlib

    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "girsanov"}):
            figure.savefig(buffer, format=kind, metadata=metadata)
        yield kind, buffer.getvalue()


def empty_figure(width: float, height: float, dpi: int = 110) -> Any:
    """A figure without anything on it, in inches; it needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def learning_curves(
    runs: Mapping[str, Sequence[Rows]],
    quantity: str,
    title: str,
    lines: Mapping[str, float] | None = None,
) -> Any:
    """One panel a unit of cost: thin lines are seeds, thick ones their interquartile mean, bands
    its 95% bootstrap interval; who has no curve is a diamond a seed, where it ended.

    The grey band around the pre-trained model is where 95% of evaluations of it fall, as the first
    of every curve is one.

    Units that differ by one factor in all runs, such as steps and episodes of a fixed length, share
    a panel.

    Args:
        runs: by agent, the rows of each seed.
        quantity: ``score`` or ``objective``.
        title: of the figure.
        lines: levels to draw across, by name.
    """
    everything = [rows for seeds in runs.values() for rows in seeds]
    units = _panels(everything)
    across = min(3, len(units))
    down = -(-len(units) // across)
    figure = empty_figure(4.4 * across, 3.6 * down + 0.6)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    colours = colours_of(runs)
    for axes, (unit, label) in zip(panels, units.items(), strict=False):
        for agent, seeds in runs.items():
            _curves(axes, words(name_of(agent)), colours[agent], seeds, unit, quantity)
        blur = _blur(everything, quantity)
        if "pre-trained" in (lines or {}) and blur:
            middle = (lines or {})["pre-trained"]
            axes.axhspan(middle - blur, middle + blur, color="0.5", alpha=0.12, linewidth=0)
        for (name, level), style in zip((lines or {}).items(), ("-", ":", "--"), strict=False):
            axes.axhline(level, color="0.5", linestyle=style, linewidth=1, label=name, zorder=1)
        axes.set_xlabel(label)
        axes.grid(alpha=0.2)
        # samplers take no steps, learn nothing, and cost next to nothing
        ends = [rows[-1][unit] for rows in everything if rows[-1].get("env_steps") != 0]
        if ends and max(ends) > 20 * max(min(ends), 1e-9):
            axes.set_xscale("symlog", linthresh=max(min(ends) / 4, 1e-3))
            axes.set_xlim(left=0)  # costs are not negative
        else:
            axes.locator_params(axis="x", nbins=5)
    for axes in panels[len(units) :]:
        axes.set_axis_off()
    lowest = min(row[quantity] for rows in everything for row in rows)
    if quantity == "score" and lowest < -1:
        panels[0].set_ylim(
            -1, 1.1
        )  # a learner far below the pre-trained model must not flatten the others
    for row in range(down):
        panels[row * across].set_ylabel(quantity)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    figure.suptitle(words(title))
    return figure


def _curves(
    axes: Any, name: str, colour: str, seeds: Sequence[Rows], unit: str, quantity: str
) -> None:
    if not has_curve(seeds):  # nothing is known of the way
        ends = [tuple(point[-1] for point in curve(rows, unit, quantity)) for rows in seeds]
        axes.plot(*zip(*ends, strict=True), "D", color=colour, markersize=5, label=name)
        return
    for rows in seeds:
        axes.plot(*curve(rows, unit, quantity), color=colour, linewidth=0.6, alpha=0.4)
    grid, values = mean_curve(seeds, unit, quantity)
    middle, low, high = band(values[None])
    axes.plot(grid, middle, color=colour, linewidth=2, label=name)
    if len(seeds) > 1:
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)


def _blur(runs: Sequence[Rows], quantity: str) -> float:
    """Half of the interval in which 95% of the evaluations before learning fall; 0 if unknown."""
    errors = [rows[0].get(f"{quantity}_stderr") for rows in runs if not rows[0].get("env_steps", 1)]
    known = [error for error in errors if error is not None]
    return 1.96 * float(np.median(known)) if known else 0.0


def _panels(runs: Sequence[Rows]) -> dict[str, str]:
    """The units to draw against and what to write below: one of those that are all but equal."""
    panels: dict[str, str] = {}
    for unit in known_costs(runs):
        for other in panels:
            pairs = np.array([(row[unit], row[other]) for rows in runs for row in rows])
            pairs = pairs[(pairs > 0).any(1)]
            ratio = pairs[:, 1] / np.maximum(pairs[:, 0], 1e-12)
            if len(ratio) and np.ptp(ratio) < 1e-3 * ratio.max():
                factor = f"{ratio.mean():.4g}"
                panels[other] += (
                    f"\n{COST_WORDS[unit]} x {factor}"
                    if factor != "1"
                    else (f" = {COST_WORDS[unit]}")
                )
                break
        else:
            panels[unit] = COST_WORDS[unit]
    return panels


def samples(states: Mapping[str, np.ndarray], title: str) -> Any | None:
    """Terminal states side by side: grids of images ``(n, C, H, W)``, scatters of planar states
    ``(n, 2)``, else None.
    """
    shape = next(iter(states.values())).shape[1:]
    if len(shape) != 3 and shape != (2,):
        return None
    figure = empty_figure(3.0 * len(states), 3.4 if shape == (2,) else 2.0)
    limit = float(max(np.abs(points).max() for points in states.values())) * 1.05
    for axes, (name, points) in zip(
        np.atleast_1d(figure.subplots(1, len(states))), states.items(), strict=True
    ):
        _scatter(axes, points, limit) if shape == (2,) else _images(axes, points)
        axes.set_title(words(name_of(name)), fontsize=9)
    figure.suptitle(words(title), fontsize=10)
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
