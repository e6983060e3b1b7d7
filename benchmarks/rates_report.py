"""What ``rates.py`` left on disk, as slopes with intervals, a table and a picture; runs nothing."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from resumable import read_lines

from girsanov.scoreboard.records import check_writable, write_json, write_whole

RESULTS = Path(__file__).parent / "results" / "rates"
ROWS = "rows.jsonl"
#: Measures in their order everywhere, as the report calls them, and the slope that theory gives a
#: class that holds f.
MEASURES = {
    "energy": "energy norm",
    "integral": "integral norm",
    "control": "control",
    "regret": "regret",
}
TARGETS = {
    "energy": (-0.5, 0.1),
    "integral": (-0.5, 0.1),
    "control": (-0.5, 0.1),
    "regret": (-1.0, 0.2),
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


Series = tuple[
    str, float, int, str, int
]  # study, temperature, dimension, method, and n of the size study (else 0)


def collect(
    lines: Sequence[Mapping[str, Any]],
) -> dict[Series, dict[str, dict[float, list[float]]]]:
    """Values of the seeds by series, measure and abscissa (n, or the size of the class); a fit that
    blew up is infinite.
    """
    out: dict[Series, dict[str, dict[float, list[float]]]] = {}
    for line in lines:
        job = line["job"]
        size = job["study"] == "size"
        key = (
            job["study"],
            job["temperature"],
            job["dimension"],
            job["method"],
            job["n"] if size else 0,
        )
        for row in line["rows"]:
            for measure in MEASURES:
                if measure in row:
                    value = math.inf if row[measure] is None else row[measure]
                    at = job["size"] if size else row["n"]
                    out.setdefault(key, {}).setdefault(measure, {}).setdefault(at, []).append(value)
    return out


def report(out: Path = RESULTS) -> None:
    """Write rates.png, report.md and report.json for the finished jobs.

    Args:
        out: folder that ``rates.py`` filled.
    """
    lines = read_lines(out / ROWS)
    if not lines:
        raise ValueError(f"out must hold finished jobs ({ROWS}); found none in {str(out)!r}")
    check_writable(out)
    series = collect(lines)
    summary = summarise(lines, series)
    write_json(out / "report.json", summary)
    write_whole(out / "report.md", markdown(summary).encode())
    picture = io.BytesIO()
    draw(series, summary).savefig(picture, format="png")
    write_whole(out / "rates.png", picture.getvalue())
    print(
        f"{markdown(summary)}\nwritten: {out / 'report.md'}, {out / 'report.json'},"
        f" {out / 'rates.png'}"
    )


def summarise(lines: Sequence[Mapping[str, Any]], series: Mapping[Series, Any]) -> dict[str, Any]:
    """Everything that the report says, as plain JSON values."""
    entries = []
    rooms = {
        (line["job"]["temperature"], line["job"]["dimension"]): line["regret_without_control"]
        for line in lines
    }
    for (study, temperature, dimension, method, n), measures in series.items():
        medians = {
            m: {f"{at:g}": _plain(np.median(v)) for at, v in sorted(g.items())}
            for m, g in measures.items()
        }
        seeds = min(len(v) for group in measures.values() for v in group.values())
        entry: dict[str, Any] = {
            "study": study,
            "temperature": temperature,
            "dimension": dimension,
            "method": method,
            "n": n,
            "seeds": seeds,
            "medians": medians,
            "regret_without_control": rooms[temperature, dimension],
        }
        if study == "rates":
            finite = {
                m: {at: v for at, v in g.items() if np.isfinite(v).all()}
                for m, g in measures.items()
            }
            slopes = {m: fit_slope(g) for m, g in finite.items() if len(g) > 1}
            entry["slopes"] = {
                m: {**s._asdict(), "meets_target": s.meets(m)} for m, s in slopes.items()
            }
        entries.append(entry)
    seconds = sum(line["rows"][-1]["seconds"] for line in lines if line["rows"])
    return {
        "entries": entries,
        "targets": {m: {"slope": middle, "within": half} for m, (middle, half) in TARGETS.items()},
        "cpu_minutes": seconds / 60,
        "commands": sorted({line["command"] for line in lines}),
        "hardware": _distinct([line["hardware"] for line in lines]),
        "versions": _distinct([line["versions"] for line in lines]),
    }


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [
        json.loads(text)
        for text in dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)
    ]


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --- words


def markdown(summary: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [
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
        _made_with(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _label(entry: Mapping[str, Any]) -> str:
    return f"{NAMES[entry['method']]}, beta {entry['temperature']:g}, d {entry['dimension']}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *rows]
    )


def _slopes(summary: Mapping[str, Any]) -> str:
    rows = []
    for entry in (e for e in summary["entries"] if e["study"] == "rates"):
        cells = []
        for measure in MEASURES:
            found = entry["slopes"].get(measure)
            text = "-" if found is None else str(Slope(found["slope"], found["low"], found["high"]))
            cells.append(f"**{text}**" if found and found["meets_target"] else text)
        rows.append([_label(entry), str(entry["seeds"]), *cells])
    return (
        _table(["class", "seeds", *MEASURES.values()], rows)
        if rows
        else "No rates have been measured yet."
    )


def _number(value: float | None) -> str:
    return "blew up" if value is None else f"{value:.3g}"


def _medians(summary: Mapping[str, Any], measure: str) -> str:
    entries = [e for e in summary["entries"] if e["study"] == "rates" and measure in e["medians"]]
    if not entries:
        return ""
    ns = sorted({int(n) for e in entries for n in e["medians"][measure]})
    rows = [[_label(e), *(_cell(e["medians"][measure], n) for n in ns)] for e in entries]
    unit = "in units of the reward" if measure == "regret" else "relative error"
    return f"{MEASURES[measure].capitalize()} ({unit}) by n:\n\n" + _table(
        ["class", *(f"{n:,}" for n in ns)], rows
    )


def _cell(medians: Mapping[str, float | None], at: int) -> str:
    return _number(medians[str(at)]) if str(at) in medians else ""


def _sizes(summary: Mapping[str, Any]) -> str:
    """Energy error by size of the class: where its least is, at few and at many trajectories."""
    entries = [e for e in summary["entries"] if e["study"] == "size"]
    if not entries:
        return ""
    parts = ["## Size of the class: approximation against complexity"]
    for method in dict.fromkeys(e["method"] for e in entries):
        group = [e for e in entries if e["method"] == method]
        sizes = sorted({int(s) for e in group for s in e["medians"]["energy"]})
        rows = [
            [f"n = {e['n']:,}", *(_cell(e["medians"]["energy"], s) for s in sizes)] for e in group
        ]
        head = (
            f"{NAMES[method].capitalize()}, beta {group[0]['temperature']:g}: relative error in the"
            " energy norm by size."
        )
        parts.append(f"{head}\n\n" + _table(["", *map(str, sizes)], rows))
        for e in group:
            known = {int(s): v for s, v in e["medians"]["energy"].items() if v is not None}
            best = min(known, key=lambda s: known[s])
            last = max(known)
            parts.append(
                f"At n = {e['n']:,} the least error, {known[best]:.3g}, is at size {best}; at size"
                f" {last} it is {known[last] / known[best]:.1f} times that."
            )
    return "\n\n".join(parts)


def _rl(summary: Mapping[str, Any]) -> str:
    entries = [e for e in summary["entries"] if e["study"] == "rl"]
    if not entries:
        return ""
    rows = []
    for e in entries:
        regrets = {int(n): v for n, v in e["medians"]["regret"].items() if v is not None}
        best = min(regrets, key=lambda n: regrets[n])
        last = max(regrets)
        rows.append(
            [
                NAMES[e["method"]],
                f"{best:,}",
                _number(regrets[best]),
                f"{last:,}",
                _number(regrets[last]),
            ]
        )
    text = (
        "Regret of the policy without its exploration noise; trajectories used are PPO's and SAC's"
        " own, under their controls."
    )
    heads = ["agent", "n of the least regret", "least regret", "most n", "regret there"]
    return f"## PPO and SAC, beta 2, d 4\n\n{text}\n\n{_table(heads, rows)}"


def _made_with(summary: Mapping[str, Any]) -> str:
    lines = [f"- `{command}`" for command in summary["commands"]]
    for machine in summary["hardware"]:
        lines.append(
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['system']}; one thread"
        )
    for versions in summary["versions"]:
        lines.append("- " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(
        [*lines, f"- {summary['cpu_minutes']:.0f} CPU minutes of learning, measuring left out"]
    )


# --- picture


def draw(series: Mapping[Series, Any], summary: Mapping[str, Any]) -> Any:
    """Four panels: error of f, error of the control, regret (with PPO and SAC), and the size of the
    class.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2).flat
    slopes = {
        (e["temperature"], e["dimension"], e["method"]): e["slopes"]
        for e in summary["entries"]
        if "slopes" in e
    }
    for axes, measure in zip(panels, ("energy", "control", "regret"), strict=False):
        for (study, temperature, dimension, method, _), measures in series.items():
            if study == "size" or measure not in measures:
                continue
            slope = slopes.get((temperature, dimension, method), {}).get(measure)
            label = (
                NAMES[method]
                if (temperature, dimension) == (2.0, 4)
                else f"{NAMES[method]}, beta {temperature:g}, d {dimension}"
            )
            label += f" ({slope['slope']:.2f})" if slope else ""
            dashed = {(2.0, 4): "-", (0.5, 4): "--"}.get((temperature, dimension), ":")
            _line(axes, measures[measure], COLOURS[method], label, dashed)
        _finish(
            axes, "trajectories n", {"energy": "relative error of f, energy norm"}.get(measure, "")
        )
        axes.set_title(
            f"{MEASURES[measure]}, theory {TARGETS[measure][0]:g} for quadratics", fontsize=10
        )
        axes.set_ylabel(
            {"control": "relative error of the control", "regret": "J* - J"}.get(
                measure, axes.get_ylabel()
            )
        )
        rooms = [
            e["regret_without_control"]
            for e in summary["entries"]
            if (e["temperature"], e["dimension"]) == (2.0, 4)
        ]
        if measure == "regret" and rooms:
            axes.axhline(rooms[0], color="0.5", linewidth=1, label="no control")
            axes.legend(fontsize=8)
    axes = figure.axes[3]
    for (study, temperature, _, method, n), measures in series.items():
        if study == "size":
            label = f"{NAMES[method]}, beta {temperature:g}, n = {n:,}"
            _line(axes, measures["energy"], COLOURS[method], label, "-" if n > 1000 else "--")
    _finish(axes, "size of the class", "relative error of f, energy norm")
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
        axes.plot(
            list(kept),
            [np.median(v) for v in kept.values()],
            style,
            color=colour,
            marker="o",
            markersize=3,
            label=label,
        )
        axes.fill_between(
            list(kept),
            [min(v) for v in kept.values()],
            [max(v) for v in kept.values()],
            color=colour,
            alpha=0.12,
        )


def _finish(axes: Any, across: str, up: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.grid(alpha=0.2)
    if axes.lines:
        axes.legend(fontsize=8)
