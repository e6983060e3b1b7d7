"""What ``rates.py`` left on disk, as slopes with intervals, tables and a picture; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import reports
import resumable as bench

from girsanov.scoreboard.plots import empty_figure


class Measure(NamedTuple):
    """As the report calls it, as an axis does, and the slope of theory for a class that holds f."""

    name: str
    axis: str
    slope: float = -0.5
    within: float = 0.1


#: In their order everywhere.
MEASURES = {
    "energy": Measure("energy norm", "relative error of f, energy norm"),
    "integral": Measure("integral norm", "relative error of f, integral norm"),
    "control": Measure("control", "relative error of the control"),
    "regret": Measure("regret", "J* - J", -1.0, 0.2),
}
NAMES = {
    "polynomial": "quadratics",
    "polynomial-fresh": "quadratics, transition known",
    "kernel": "kernel",
    "network": "network",
    "ppo": "PPO",
    "sac": "SAC",
    "times": "quadratics by features of time",
    "centres": "kernel by centres",
}
COLOURS = {name: f"C{i}" for i, name in enumerate(NAMES)}
MAIN = (2.0, 4)  # temperature and dimension of the main problem


class Slope(NamedTuple):
    """Slope of the line through the medians on logarithmic axes, and its 95% bootstrap interval;
    None with a single seed.
    """

    slope: float
    low: float | None
    high: float | None

    def meets(self, measure: str) -> bool:
        """Whether the slope itself is within the target of ``measure``."""
        return abs(self.slope - MEASURES[measure].slope) <= MEASURES[measure].within

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.slope:.2f}"
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit_slope(groups: Mapping[float, Sequence[float]], draws: int = 2000) -> Slope:
    """Least squares through ``(log n, log median)`` of positive values of the seeds by n, and
    percentiles of the same over seeds drawn with replacement: independently by n, as the data are.
    """
    x = np.log(np.array(sorted(groups), dtype=float))
    x = (x - x.mean()) / np.square(x - x.mean()).sum()
    values = [np.log(np.asarray(groups[n], dtype=float)) for n in sorted(groups)]
    slope = float(np.array([np.median(v) for v in values]) @ x)
    if min(len(v) for v in values) < 2:
        return Slope(slope, None, None)
    rng = np.random.default_rng(0)
    drawn = np.stack([np.median(rng.choice(v, (draws, len(v))), 1) for v in values], 1)
    low, high = np.percentile(drawn @ x, [2.5, 97.5])
    return Slope(slope, float(low), float(high))


class Series(NamedTuple):
    """What a line of the picture, or a row of a table, is of."""

    study: str
    temperature: float
    dimension: int
    method: str
    n: int  # of the size study, else 0

    @property
    def label(self) -> str:
        """In the report."""
        return f"{NAMES[self.method]}, beta {self.temperature:g}, d {self.dimension}"

    @property
    def is_main(self) -> bool:
        """Whether it is of the main problem."""
        return (self.temperature, self.dimension) == MAIN


#: Values of the seeds by n, or the size of the class, in their order.
Values = dict[float, list[float]]
Found = dict[Series, dict[str, Values]]


def collect(lines: Sequence[bench.Line]) -> Found:
    """Values by series and measure; a fit that blew up is infinite."""
    out: Found = {}
    for line in lines:
        job = line["job"]
        size = job["study"] == "size"
        place = (job[name] for name in ("study", "temperature", "dimension", "method"))
        measures = out.setdefault(Series(*place, job["n"] if size else 0), {})
        for row in line["rows"]:
            at = job["size"] if size else row["n"]
            for measure in MEASURES.keys() & row.keys():
                value = math.inf if row[measure] is None else row[measure]
                measures.setdefault(measure, {}).setdefault(at, []).append(value)
    return {
        series: {m: dict(sorted(found[m].items())) for m in MEASURES if m in found}
        for series, found in out.items()
    }


def of_study(series: Found, study: str) -> Found:
    """The series of one study."""
    return {key: measures for key, measures in series.items() if key.study == study}


def slope_of(values: Values) -> Slope | None:
    """Of the numbers where no fit blew up, where there are two."""
    finite = {n: v for n, v in values.items() if np.isfinite(v).all()}
    return fit_slope(finite) if len(finite) > 1 else None


def told(lines: Sequence[bench.Line]) -> dict[str, Any]:
    """Tables, and the picture."""
    series = collect(lines)
    minutes = sum(x["rows"][-1]["seconds"] for x in lines if x["rows"]) / 60
    main = [x for x in lines if (x["job"]["temperature"], x["job"]["dimension"]) == MAIN]
    rooms = {line["regret_without_control"] for line in main}
    return {
        "slopes": _slopes(series),
        **{measure: _medians(series, measure) for measure in MEASURES},
        "sizes": "\n\n".join(_sizes(series)),
        "rl": _rl(series),
        "made": f"{reports.made_by(lines)} {minutes:.0f} CPU minutes of learning in all.",
        "rates": draw(series, max(rooms, default=None)),
    }


def _slopes(series: Found) -> str:
    rows = []
    for key, measures in of_study(series, "rates").items():
        seeds = min(len(v) for values in measures.values() for v in values.values())
        cells = [key.label, str(seeds)]
        for measure in MEASURES:
            found = slope_of(measures.get(measure, {}))
            mark = "**" if found and found.meets(measure) else ""
            cells.append("-" if found is None else f"{mark}{found}{mark}")
        rows.append(cells)
    return reports.table(["class", "seeds", *(m.name for m in MEASURES.values())], rows)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "blew up"


def _rows(found: Mapping[str, Values], heads: str) -> str:
    """Medians by label, a column for each number."""
    places = sorted({at for values in found.values() for at in values})
    rows = [
        [label, *(_number(median(values[at])) if at in values else "" for at in places)]
        for label, values in found.items()
    ]
    return reports.table([heads, *(f"{at:,}" for at in places)], rows)


def _medians(series: Found, measure: str) -> str:
    study = of_study(series, "rates").items()
    found = {key.label: measures[measure] for key, measures in study if measure in measures}
    return _rows(found, "class")


def _sizes(series: Found) -> list[str]:
    """Energy error by size of the class: where its least is, at few and at many trajectories."""
    parts, study = [], of_study(series, "size")
    for method in dict.fromkeys(key.method for key in study):
        group = {key: found["energy"] for key, found in study.items() if key.method == method}
        where = f"{NAMES[method].capitalize()}, beta {next(iter(group)).temperature:g}"
        parts.append(f"{where}: relative error in the energy norm by size.")
        parts.append(_rows({f"n = {key.n:,}": values for key, values in group.items()}, ""))
        for key, values in group.items():
            known = {at: m for at, v in values.items() if math.isfinite(m := median(v))}
            best, last = min(known, key=lambda at: known[at]), max(known)
            parts.append(
                f"At n = {key.n:,} the least error, {known[best]:.3g}, is at size {best}; at size"
                f" {last} it is {known[last] / known[best]:.1f} times that."
            )
    return parts


def _rl(series: Found) -> str:
    rows = []
    for key, measures in of_study(series, "rl").items():
        regrets = {n: m for n, v in measures["regret"].items() if math.isfinite(m := median(v))}
        ends = (min(regrets, key=lambda n: regrets[n]), max(regrets))
        cells = [x for n in ends for x in (f"{n:,}", _number(regrets[n]))]
        rows.append([NAMES[key.method], *cells])
    return reports.table("agent|n of the least regret|least regret|most n|regret there", rows)


# --- picture


def draw(series: Found, room: float | None) -> Any:
    """Four panels: error of f, error of the control, regret (with PPO and SAC, and what no control
    at all loses), and the size of the class.
    """
    figure = empty_figure(12, 9, 110)
    *panels, last = figure.subplots(2, 2).flat
    for axes, measure in zip(panels, ("energy", "control", "regret"), strict=True):
        for key, measures in series.items():
            if key.study == "size" or measure not in measures:
                continue
            slope = slope_of(measures[measure]) if key.study == "rates" else None
            label = NAMES[key.method] if key.is_main else key.label
            label += f" ({slope.slope:.2f})" if slope else ""
            dashed = "-" if key.is_main else "--" if key.dimension == 4 else ":"
            _line(axes, measures[measure], COLOURS[key.method], label, dashed)
        if measure == "regret" and room is not None:
            axes.axhline(room, color="0.5", linewidth=1, label="no control")
        name, rise, theory, _ = MEASURES[measure]
        _finish(axes, "trajectories n", rise, f"{name}, theory {theory:g} for quadratics")
    for key, measures in of_study(series, "size").items():
        label = f"{NAMES[key.method]}, beta {key.temperature:g}, n = {key.n:,}"
        _line(last, measures["energy"], COLOURS[key.method], label, "-" if key.n > 1000 else "--")
    _finish(last, "size of the class", MEASURES["energy"].axis, "approximation and complexity")
    figure.suptitle(
        "girsanov/LinearQuadratic-v0 (beta 2, d 4 unless said): errors against the closed form,"
        " slopes in brackets"
    )
    return figure


def _line(axes: Any, values: Values, colour: str, label: str, style: str) -> None:
    """Medians joined, ranges of the seeds as a band; fits that blew up are left out."""
    kept = {x: v for x, v in values.items() if np.isfinite(np.median(v))}
    look: Any = {"marker": "o", "markersize": 3, "color": colour, "label": label}
    axes.plot(list(kept), [np.median(v) for v in kept.values()], style, **look)
    low, high = ([f(v) for v in kept.values()] for f in (min, max))
    axes.fill_between(list(kept), low, high, color=colour, alpha=0.12)


def _finish(axes: Any, across: str, up: str, title: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.2)
    if axes.lines:
        axes.legend(fontsize=8)
