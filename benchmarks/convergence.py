"""How fast does policy iteration converge? Measured contraction against that of the theory, the
truth in closed form.

    python benchmarks/convergence.py            # seconds; nothing is random
    python benchmarks/convergence.py report

A part is a table of named arguments, what makes numbers of them, what draws them and what tells
them. What is measured is told in results/convergence/report.md.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import reports
import resumable as bench
import torch
from torch import Tensor

from girsanov.agents.pi_ft.exact import grid_of
from girsanov.agents.pi_ft.lipschitz import mixture_chain
from girsanov.agents.pi_ft.quadratics import iterate_quadratics, riccati_limit
from girsanov.agents.pi_ft.regularity import (
    iterate_regularity,
    quadratic_contraction,
    smallest_temperature,
)
from girsanov.envs.diffusion.denoising import Schedule
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.scoreboard.plots import empty_figure

Row = dict[str, Any]
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


class Part(NamedTuple):
    """One study: arguments by the name of their line, what makes a line, its panels, its table."""

    arguments: Mapping[str, tuple[Any, ...]]
    make: Callable[..., Row]
    draw: Callable[[Any, Mapping[str, Row]], None]
    table: Callable[[Mapping[str, Row]], str]


@dataclass(frozen=True)
class Job(bench.Job):
    """One line of a part."""

    form: ClassVar[str] = "{part} {of}"
    part: str
    of: str


# --- linear-quadratic chains


def quadratic_chain(dimension: int, temperature: float) -> LinearQuadratic:
    """One dimension: a line of long steps. Four: ``girsanov/LinearQuadratic-v0`` with a tenth of
    its steps, each ten times as long, so that lambda is not negligible.
    """
    if dimension > 1:
        chain = LinearQuadratic.damped_rotation(dimension, steps=5, temperature=temperature)
        return chain.to(**DOUBLE)
    costs: Row = {"running_matrix": [[0.1]], "terminal_matrix": [[1.0]], "target": [1.0]}
    chances: Row = {"noise_matrix": [[0.5]], "initial_covariance": [[1.0]]}
    told: Row = {"horizon": 8, "temperature": temperature, **costs, **chances, **DOUBLE}
    return LinearQuadratic(drift_matrix=[[0.9]], **told)


def quadratic_row(dimension: int, temperature: float) -> Row:
    problem = quadratic_chain(dimension, temperature)
    found = iterate_quadratics(problem, 12)
    pairs = []
    for k, (gain, shift) in enumerate(found.inner):
        change = torch.linalg.matrix_norm(torch.cat([gain, shift[..., None]], 2).diff(dim=0), 2)
        factors = (change[1:] / change[:-1])[change[1:] > 1e-11]
        pairs += [[float(found.contraction[k]), float(factor)] for factor in factors]
    errors = []
    for m in range(16):
        outer = iterate_quadratics(problem, m)
        gain = (outer.gain - problem.solution.gain).flatten()
        shift = (outer.shift - problem.solution.shift).flatten()
        errors.append(float(torch.cat([gain, shift]).norm()))
    ratios = [measured / predicted for predicted, measured in pairs]
    row = {"dimension": dimension, "temperature": temperature, "pairs": pairs, "errors": errors}
    row |= {"largest_ratio": max(ratios), "smallest_ratio": min(ratios)}
    rate = float(quadratic_contraction(problem).max())
    return {**row, "rate": rate, "measured_rate": measured_rate(errors)}


def measured_rate(errors: Sequence[float], floor: float = 1e-11) -> float:
    """Factor by which the last errors above the rounding floor fall."""
    kept = [e for e in errors if e > floor][-4:]
    return (kept[-1] / kept[0]) ** (1 / (len(kept) - 1))


# --- mixtures


MODES = {"two modes": ([[-1.0], [1.0]], 0.4), "three modes": ([[-1.2], [0.1], [1.0]], 0.4)}


def mixture_row(modes: str, multiple: float) -> Row:
    """At ``multiple`` times the smallest certified temperature."""
    means, std = MODES[modes]
    reward = QuadraticReward([[0.0]], [0.0], [1.0])
    problem = GaussianMixture(means, std, reward, 1.0, schedule=Schedule.ddpm(5), **DOUBLE)
    chain = mixture_chain(problem)
    beta = 1.0001 * multiple * smallest_temperature(chain)
    settings: dict[str, Any] = {"temperatures": beta, "lower": -6.0, "upper": 6.0, "nodes": 513}
    optimum = grid_of(problem, 16, **settings)
    certified = iterate_regularity(chain, beta).contraction
    x = optimum.nodes[:, None].clone().requires_grad_()
    inside = optimum.nodes.abs() <= 3
    steps = []
    for k in range(problem.horizon):
        (slope,) = torch.autograd.grad(optimum.value(k + 1, x).sum(), x)
        bend = float((slope.diff(dim=0)[:, 0] / optimum.nodes.diff()).abs().max())
        change = optimum.inner[k].diff(dim=0).abs().amax(1)
        factors = (change[1:] / change[:-1])[change[1:] > 1e-10]
        local = float(problem.schedule.sigma[k]) ** 2 * bend / beta
        steps.append([float(certified[k]), local, float(factors.max()) if len(factors) else 0.0])
    errors = []
    for m in range(8):
        outer = zip(grid_of(problem, m, **settings).inner, optimum.inner, strict=True)
        errors.append(max(float((a[-1] - b[-1])[inside].abs().max()) for a, b in outer))
    rates = {"certified_rate": float(certified.max()), "local_rate": max(s[1] for s in steps)}
    rates["measured_rate"] = measured_rate(errors, 1e-9)
    return {"temperature": beta, **rates, "steps": steps, "errors": errors}


# --- refinement


#: A problem in continuous time, whose steps are refined.
LIMIT = {
    "drift_matrix": [[-0.5, 1.0], [-1.0, 0.2]],
    "control_matrix": [[0.3], [1.0]],
    "running_matrix": [[0.5, 0.0], [0.0, 0.1]],
    "terminal_matrix": [[1.0, 0.0], [0.0, 0.5]],
    "offset": [0.1, -0.2],
    "running_slope": [0.3, 0.0],
    "terminal_slope": [1.0, -0.5],
}


def refinement_row(steps: int) -> Row:
    given: Row = {name: torch.tensor(value, **DOUBLE) for name, value in LIMIT.items()}
    given["temperature"], size = 0.8, 1 / steps
    limit = riccati_limit(**given, duration=1.0)
    chain = LinearQuadratic.ornstein_uhlenbeck(2, **given, steps=steps, step_size=size, **DOUBLE)
    found = iterate_quadratics(chain, 25)

    def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
        pairs = zip(ours, theirs, strict=True)
        return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))

    control = (found.gain[0] / math.sqrt(size), found.shift[0] / math.sqrt(size))
    value = (found.matrix[0], found.slope[0], found.constant[0])
    errors = {"value": distance(value, limit[:3]), "control": distance(control, limit[3:])}
    return {"step": size, **errors}


# --- report


LOG: Row = {"xscale": "log", "yscale": "log"}


def draw_contraction(figure: Any, rows: Mapping[str, Row]) -> None:
    """Measured factors against predicted ones, and errors by the number of inner iterations."""
    factors, errors = figure.subplots(1, 2)
    for i, (name, row) in enumerate(rows.items()):
        exact = "pairs" in row  # a linear-quadratic chain: each factor against its own lambda_k
        steps = row["pairs"] if exact else [s for s in row["steps"] if s[-1] > 0]
        *predicted, measured = zip(*steps, strict=True)
        wide = exact and row["dimension"] > 1
        look: Row = {"color": f"C{i % 4 if exact else i}", "label": name}
        factors.plot(predicted[-1], measured, "x" if wide else "o", markersize=4, **look)
        if not exact:  # certified constants
            factors.plot(predicted[0], measured, "x", color=look["color"])
        kept = [e if e > (1e-13 if exact else 1e-10) else math.nan for e in row["errors"]]
        errors.plot(kept, "--" if wide else "-", **look)
    factors.axline((0.01, 0.01), slope=1, color="0.5", linewidth=1)
    lambdas = "lambda_k" if exact else "lambda_k of the measured gradient (x: certified)"
    factors.set(**LOG, xlabel=lambdas, ylabel="measured factor", title="inner iterations")
    words = f"{'distance' if exact else 'largest error'} of the control"
    errors.set(yscale="log", xlabel="m_k = m", ylabel=words, title="Algorithm 1")
    factors.legend(fontsize=7)


def _orders(rows: Mapping[str, Row]) -> dict[str, float]:
    both = ("value", "control")
    logs = {name: np.log([row[name] for row in rows.values()]) for name in ("step", *both)}
    return {name: float(np.polyfit(logs["step"], logs[name], 1)[0]) for name in both}


def draw_refinement(figure: Any, rows: Mapping[str, Row]) -> None:
    axes, steps = figure.subplots(), [row["step"] for row in rows.values()]
    for name, slope in _orders(rows).items():
        label = f"{name}: slope {slope:.3f}"
        axes.plot(steps, [row[name] for row in rows.values()], marker="o", label=label)
    axes.set(**LOG, xlabel="step", ylabel="distance from the limit at time 0")
    axes.set_title("Euler-Maruyama")
    axes.legend()


def table(columns: Mapping[str, str], rows: Mapping[str, Row]) -> str:
    """Figures by their heads; the first head is that of the names."""
    _, *fields = columns.values()
    cells = ([name, *(f"{row[field]:.4g}" for field in fields)] for name, row in rows.items())
    return reports.table(list(columns), cells)


def refinement_table(rows: Mapping[str, Row]) -> str:
    found = ", ".join(f"{name} {slope:.3f}" for name, slope in _orders(rows).items())
    return f"Order of the error in the step: {found}."


_QUADRATICS = {
    "chain": "",
    "largest lambda_k": "rate",
    "rate of the error": "measured_rate",
    "measured / lambda_k, smallest": "smallest_ratio",
    "largest": "largest_ratio",
}
_MIXTURES = {
    "mixture, multiple of the certified temperature": "",
    "beta": "temperature",
    "certified": "certified_rate",
    "measured gradient": "local_rate",
    "rate of the error": "measured_rate",
}
PARTS: dict[str, Part] = {
    "quadratics": Part(
        {f"d{d} beta{b:g}": (d, b) for d in (1, 4) for b in (0.4, 0.8, 1.6, 3.2)},
        quadratic_row,
        draw_contraction,
        functools.partial(table, _QUADRATICS),
    ),
    "mixtures": Part(
        {f"{modes} x{m:g}": (modes, m) for modes in MODES for m in (1.0, 2.0, 4.0)},
        mixture_row,
        draw_contraction,
        functools.partial(table, _MIXTURES),
    ),
    "refinement": Part(
        {f"{steps} steps": (steps,) for steps in (10, 20, 40, 80, 160, 320)},
        refinement_row,
        draw_refinement,
        refinement_table,
    ),
}


def jobs(seeds: Any, quick: bool) -> list[Job]:
    """Every line; nothing is random, so that seeds count for nothing."""
    return [Job(name, of) for name, part in PARTS.items() for of in part.arguments]


def execute(job: Job, quick: bool) -> Row:
    """Make one line."""
    part, start = PARTS[job.part], time.process_time()
    row = part.make(*part.arguments[job.of])
    return {"row": row, "cpu_seconds": round(time.process_time() - start, 2)}


def told(found: Sequence[bench.Line]) -> dict[str, Any]:
    """A table a part, and a picture of all."""
    lines = reports.groups(found, "part")
    figure = empty_figure(11, 3.6 * len(lines), 100)
    panels = figure.subfigures(len(lines), 1, squeeze=False)[:, 0]
    tables = dict.fromkeys(PARTS, "")
    for panel, name in zip(panels, (name for name in PARTS if name in lines), strict=True):
        rows = {line["job"]["of"]: line["row"] for line in lines[name]}
        panel.suptitle(name)
        PARTS[name].draw(panel, rows)
        tables[name] = PARTS[name].table(rows)
    return {**tables, "convergence": figure}


words = "{cpu_seconds} s".format_map
main = bench.Benchmark(__doc__, "convergence", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
