"""What ``rates.py`` left on disk, as slopes with intervals, a table and a picture; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resumable as bench

HERE = bench.RESULTS / "rates"
#: Measures in their order everywhere, as the report calls them, and the slope that theory gives a
#: class that holds f.
MEASURES = {"energy": "energy norm", "integral": "integral norm"}
MEASURES |= {"control": "control", "regret": "regret"}
TARGETS = {**dict.fromkeys(MEASURES, (-0.5, 0.1)), "regret": (-1.0, 0.2)}
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


class Slope(NamedTuple):
    """Slope of the line through the medians on logarithmic axes, and its 95% bootstrap interval;
    None with a single seed.
    """

    slope: float
    low: float | None
    high: float | None

    def meets(self, measure: str) -> bool:
        """Whether the slope itself is within the target of ``measure``."""
        middle, half = TARGETS[measure]
        return abs(self.slope - middle) <= half

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.slope:.2f}"
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit_slope(groups: Mapping[float, Sequence[float]], draws: int = 2000) -> Slope:
    """Least squares through ``(log n, log median)``, and percentiles of the same over seeds drawn
    with replacement.

    Args:
        groups: values of the seeds, positive, by n; at least two numbers n. Data of different n are
            independent, so their seeds are drawn independently.
        draws: of the bootstrap.
    """
    if len(groups) < 2 or not all(len(v) and min(v) > 0 for v in groups.values()):
        raise ValueError(
            f"groups must hold positive values at two numbers n or more; got {dict(groups)}"
        )
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


#: Study, temperature, dimension, method, and n of the size study (else 0).
Series = tuple[str, float, int, str, int]


def collect(lines: Sequence[bench.Line]) -> dict[Series, dict[str, dict[float, list[float]]]]:
    """Values of the seeds by series, measure and abscissa (n, or the size of the class); a fit that
    blew up is infinite.
    """
    out: dict[Series, dict[str, dict[float, list[float]]]] = {}
    for line in lines:
        job = line["job"]
        size = job["study"] == "size"
        place = (job[name] for name in ("study", "temperature", "dimension", "method"))
        series = out.setdefault((*place, job["n"] if size else 0), {})
        for row in line["rows"]:
            at = job["size"] if size else row["n"]
            for measure in MEASURES:
                if measure in row:
                    value = math.inf if row[measure] is None else row[measure]
                    series.setdefault(measure, {}).setdefault(at, []).append(value)
    return out


def report(out: Path = HERE) -> None:
    """Write rates.png, report.md and report.json for the finished jobs.

    Args:
        out: folder that ``rates.py`` filled.
    """
    lines = list(bench.runs_of(out, some=True).values())
    series = collect(lines)
    summary = summarise(lines, series)
    bench.write(out, markdown(summary), summary, rates=draw(series, summary))


def summarise(lines: Sequence[bench.Line], series: Mapping[Series, Any]) -> bench.Line:
    """Everything that the report says, as plain JSON values."""
    places = [(line["job"]["temperature"], line["job"]["dimension"]) for line in lines]
    rooms = dict(zip(places, (x["regret_without_control"] for x in lines), strict=True))
    entries = []
    for (study, temperature, dimension, method, n), measures in series.items():
        entry: bench.Line = {
            "study": study,
            "temperature": temperature,
            "dimension": dimension,
            "method": method,
            "n": n,
            "seeds": min(len(v) for group in measures.values() for v in group.values()),
            "medians": {
                m: {f"{at:g}": _plain(np.median(v)) for at, v in sorted(g.items())}
                for m, g in measures.items()
            },
            "regret_without_control": rooms[temperature, dimension],
        }
        if study == "rates":
            entry["slopes"] = {}
            for m, group in measures.items():
                finite = {at: v for at, v in group.items() if np.isfinite(v).all()}
                if len(finite) > 1:
                    slope = fit_slope(finite)
                    entry["slopes"][m] = {**slope._asdict(), "meets_target": slope.meets(m)}
        entries.append(entry)
    return {
        "entries": entries,
        "targets": {m: {"slope": middle, "within": half} for m, (middle, half) in TARGETS.items()},
        "cpu_minutes": sum(x["rows"][-1]["seconds"] for x in lines if x["rows"]) / 60,
        "commands": sorted({line["command"] for line in lines}),
        "hardware": bench.distinct(line["hardware"] for line in lines),
        "versions": bench.distinct(line["versions"] for line in lines),
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --- words


def markdown(summary: Mapping[str, Any]) -> list[str]:
    """The whole report, in parts."""
    return [
        "# Rates of regression against the closed form",
        (
            "Errors and regret against the number n of uncontrolled trajectories, on"
            " girsanov/LinearQuadratic-v0. Theory (Mou 2025) for a class that holds f: errors fall"
            " like n^-0.5, the regret like n^-1. Medians over seeds; slopes by least squares on"
            " logarithmic axes, 95% bootstrap intervals over seeds in brackets; **bold** within 0.1"
            " (regret 0.2) of theory. How it was measured: `benchmarks/rates.py`."
        ),
        "![rates](rates.png)",
        "## Slopes",
        _slopes(summary),
        (
            "Only the quadratics hold f. The kernel class and the network approximate it: their"
            " errors have both terms of the oracle inequality, and the theory's slope is not"
            " promised to them."
        ),
        "## Medians",
        *(_medians(summary, m) for m in MEASURES),
        _sizes(summary),
        _rl(summary),
        "## Made with",
        bench.made_with(*(summary[name] for name in ("commands", "hardware", "versions")))
        + f"\n- {summary['cpu_minutes']:.0f} CPU minutes of learning, measuring left out",
    ]


def _of(summary: Mapping[str, Any], study: str) -> list[bench.Line]:
    return [entry for entry in summary["entries"] if entry["study"] == study]


def _label(entry: Mapping[str, Any]) -> str:
    return f"{NAMES[entry['method']]}, beta {entry['temperature']:g}, d {entry['dimension']}"


def _slopes(summary: Mapping[str, Any]) -> str:
    rows = []
    for entry in _of(summary, "rates"):
        cells = []
        for measure in MEASURES:
            found = entry["slopes"].get(measure)
            text = "-" if found is None else str(Slope(found["slope"], found["low"], found["high"]))
            cells.append(f"**{text}**" if found and found["meets_target"] else text)
        rows.append([_label(entry), str(entry["seeds"]), *cells])
    heads = ["class", "seeds", *MEASURES.values()]
    return bench.table(heads, rows) if rows else "No rates have been measured yet."


def _number(value: float | None) -> str:
    return "blew up" if value is None else f"{value:.3g}"


def _cells(entry: Mapping[str, Any], measure: str, places: Sequence[int]) -> list[str]:
    found = entry["medians"][measure]
    return [_number(found[str(at)]) if str(at) in found else "" for at in places]


def _places(entries: Sequence[Mapping[str, Any]], measure: str) -> list[int]:
    return sorted({int(at) for e in entries for at in e["medians"][measure]})


def _medians(summary: Mapping[str, Any], measure: str) -> str:
    entries = [e for e in _of(summary, "rates") if measure in e["medians"]]
    if not entries:
        return ""
    ns = _places(entries, measure)
    rows = [[_label(e), *_cells(e, measure, ns)] for e in entries]
    unit = "in units of the reward" if measure == "regret" else "relative error"
    head = f"{MEASURES[measure].capitalize()} ({unit}) by n:"
    return f"{head}\n\n{bench.table(['class', *(f'{n:,}' for n in ns)], rows)}"


def _sizes(summary: Mapping[str, Any]) -> str:
    """Energy error by size of the class: where its least is, at few and at many trajectories."""
    parts = []
    for method, group in bench.groups(_of(summary, "size"), lambda e: e["method"]).items():
        sizes = _places(group, "energy")
        rows = [[f"n = {e['n']:,}", *_cells(e, "energy", sizes)] for e in group]
        where = f"{NAMES[method].capitalize()}, beta {group[0]['temperature']:g}"
        parts.append(f"{where}: relative error in the energy norm by size.")
        parts.append(bench.table(["", *map(str, sizes)], rows))
        for e in group:
            known = {int(s): v for s, v in e["medians"]["energy"].items() if v is not None}
            best, last = min(known, key=lambda s: known[s]), max(known)
            parts.append(
                f"At n = {e['n']:,} the least error, {known[best]:.3g}, is at size {best}; at size"
                f" {last} it is {known[last] / known[best]:.1f} times that."
            )
    head = "## Size of the class: approximation against complexity"
    return "\n\n".join([head, *parts]) if parts else ""


def _rl(summary: Mapping[str, Any]) -> str:
    rows = []
    for e in _of(summary, "rl"):
        regrets = {int(n): v for n, v in e["medians"]["regret"].items() if v is not None}
        ends = (min(regrets, key=lambda n: regrets[n]), max(regrets))
        rows.append(
            [NAMES[e["method"]], *(x for n in ends for x in (f"{n:,}", _number(regrets[n])))]
        )
    text = (
        "Regret of the policy without its exploration noise; trajectories used are PPO's and SAC's"
        " own, under their controls."
    )
    heads = ["agent", "n of the least regret", "least regret", "most n", "regret there"]
    return f"## PPO and SAC, beta 2, d 4\n\n{text}\n\n{bench.table(heads, rows)}" if rows else ""


# --- picture


def draw(series: Mapping[Series, Any], summary: Mapping[str, Any]) -> Any:
    """Four panels: error of f, error of the control, regret (with PPO and SAC), and the size of the
    class.
    """
    figure, main = bench.figure(12, 9, 110), (2.0, 4)
    panels = figure.subplots(2, 2).flat
    keys = ("temperature", "dimension", "method")
    slopes = {tuple(e[k] for k in keys): e["slopes"] for e in _of(summary, "rates")}
    rises = {
        "energy": "relative error of f, energy norm",
        "control": "relative error of the control",
        "regret": "J* - J",
    }
    for axes, (measure, rise) in zip(panels, rises.items(), strict=False):
        for (study, temperature, dimension, method, _), measures in series.items():
            if study == "size" or measure not in measures:
                continue
            place = (temperature, dimension)
            slope = slopes.get((*place, method), {}).get(measure)
            label = NAMES[method]
            label += "" if place == main else f", beta {temperature:g}, d {dimension}"
            label += f" ({slope['slope']:.2f})" if slope else ""
            dashed = {main: "-", (0.5, 4): "--"}.get(place, ":")
            _line(axes, measures[measure], COLOURS[method], label, dashed)
        _finish(axes, "trajectories n", rise)
        words = f"{MEASURES[measure]}, theory {TARGETS[measure][0]:g} for quadratics"
        axes.set_title(words, fontsize=10)
        here = [e for e in summary["entries"] if (e["temperature"], e["dimension"]) == main]
        if measure == "regret" and here:
            room = here[0]["regret_without_control"]
            axes.axhline(room, color="0.5", linewidth=1, label="no control")
            axes.legend(fontsize=8)
    axes = figure.axes[3]
    for (study, temperature, _, method, n), measures in series.items():
        if study == "size":
            label = f"{NAMES[method]}, beta {temperature:g}, n = {n:,}"
            _line(axes, measures["energy"], COLOURS[method], label, "-" if n > 1000 else "--")
    _finish(axes, "size of the class", rises["energy"])
    axes.set_title("approximation and complexity", fontsize=10)
    figure.suptitle(
        "girsanov/LinearQuadratic-v0 (beta 2, d 4 unless said): errors against the closed form,"
        " slopes in brackets"
    )
    return figure


def _line(
    axes: Any, groups: Mapping[float, Sequence[float]], colour: str, label: str, style: str
) -> None:
    """Medians joined, ranges of the seeds as a band; fits that blew up are left out."""
    kept = {x: v for x, v in sorted(groups.items()) if np.isfinite(np.median(v))}
    if kept:
        xs, values = list(kept), list(kept.values())
        look: Any = {"marker": "o", "markersize": 3, "color": colour, "label": label}
        axes.plot(xs, [np.median(v) for v in values], style, **look)
        low, high = ([f(v) for v in values] for f in (min, max))
        axes.fill_between(xs, low, high, color=colour, alpha=0.12)


def _finish(axes: Any, across: str, up: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.grid(alpha=0.2)
    if axes.lines:
        axes.legend(fontsize=8)
