"""How fast does policy iteration converge? Measured contraction against that of the theory, the
truth in closed form.

    python benchmarks/convergence.py [--parts quadratics mixtures refinement]      what is missing,
        then the report
    python benchmarks/convergence.py report

A part is a function that yields named lines of numbers and a function that draws them; each line is
kept in ``rows.jsonl`` as soon as it is made, and never made twice. To add a part, add it to
``PARTS``.

* ``quadratics``: linear-quadratic chains in one and four dimensions. With V_{k+1} fixed, inner
  iterates change by at most the factor lambda_k each time, in one dimension by exactly that. The
  error with m_k = m falls like the m-th power of the largest.
* ``mixtures``: two and three modes on a line, rewarded linearly, by dynamic programming on a grid;
  lambda_k from measured gradients of V_{k+1}, and from certified constants.
* ``refinement``: Euler-Maruyama chains of a linear-quadratic diffusion against the limit of Han et
  al., eq. (78)-(79).
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from resumable import append, command_line, read_lines
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
from girsanov.scoreboard.records import check_writable, provenance, write_whole

RESULTS = Path(__file__).parent / "results" / "convergence"
ROWS = "rows.jsonl"
Row = dict[str, Any]
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


PartName = Literal["quadratics", "mixtures", "refinement"]


class Part(NamedTuple):
    """One study: names of its lines with what makes each, its panels, and its table."""

    jobs: Callable[[], Iterator[tuple[str, Callable[[], Row]]]]
    draw: Callable[[Any, dict[str, Row]], None]
    table: Callable[[dict[str, Row]], list[str]]


# --- linear-quadratic chains


def quadratic_chain(dimension: int, temperature: float) -> LinearQuadratic:
    """One dimension: a line of long steps. Four: ``girsanov/LinearQuadratic-v0`` with a tenth of
    its steps, each ten times as long, so that lambda is not negligible.
    """
    if dimension == 1:
        return LinearQuadratic(
            drift_matrix=[[0.9]],
            noise_matrix=[[0.5]],
            running_matrix=[[0.1]],
            terminal_matrix=[[1.0]],
            target=[1.0],
            initial_covariance=[[1.0]],
            horizon=8,
            temperature=temperature,
            **DOUBLE,
        )
    return LinearQuadratic.damped_rotation(dimension, steps=5, temperature=temperature).to(
        dtype=torch.float64
    )


def quadratic_jobs() -> Iterator[tuple[str, Callable[[], Row]]]:
    for dimension in (1, 4):
        for temperature in (0.4, 0.8, 1.6, 3.2):
            yield (
                f"d{dimension} beta{temperature:g}",
                lambda d=dimension, b=temperature: quadratic_row(d, b),
            )


def quadratic_row(dimension: int, temperature: float) -> Row:
    problem = quadratic_chain(dimension, temperature)
    found = iterate_quadratics(problem, 12)
    pairs = []
    for k, (gain, shift) in enumerate(found.inner):
        change = torch.linalg.matrix_norm(torch.cat([gain, shift[..., None]], 2).diff(dim=0), 2)
        pairs += [
            [float(found.contraction[k]), float(f)]
            for f in (change[1:] / change[:-1])[change[1:] > 1e-11]
        ]
    errors = []
    for m in range(16):
        outer = iterate_quadratics(problem, m)
        off = [
            torch.cat(
                [
                    (outer.gain - problem.solution.gain).flatten(),
                    (outer.shift - problem.solution.shift).flatten(),
                ]
            )
        ]
        errors.append(float(off[0].norm()))
    excess = max(measured / predicted for predicted, measured in pairs)
    return {
        "dimension": dimension,
        "temperature": temperature,
        "rate": float(quadratic_contraction(problem).max()),
        "measured_rate": measured_rate(errors),
        "largest_ratio": excess,
        "smallest_ratio": min(measured / predicted for predicted, measured in pairs),
        "pairs": pairs,
        "errors": errors,
    }


def measured_rate(errors: Sequence[float], floor: float = 1e-11) -> float:
    """Factor by which the last errors above the rounding floor fall."""
    kept = [e for e in errors if e > floor][-4:]
    return (kept[-1] / kept[0]) ** (1 / (len(kept) - 1))


# --- mixtures


MODES = {"two modes": ([[-1.0], [1.0]], 0.4), "three modes": ([[-1.2], [0.1], [1.0]], 0.4)}


def mixture_jobs() -> Iterator[tuple[str, Callable[[], Row]]]:
    for modes in MODES:
        for multiple in (1.0, 2.0, 4.0):
            yield (
                f"{modes} x{multiple:g}",
                lambda modes=modes, multiple=multiple: mixture_row(modes, multiple),
            )


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
        outer = grid_of(problem, m, **settings)
        errors.append(
            max(
                float((a[-1] - b[-1])[inside].abs().max())
                for a, b in zip(outer.inner, optimum.inner, strict=True)
            )
        )
    rates = {"certified_rate": float(certified.max()), "local_rate": max(s[1] for s in steps)}
    return {
        "temperature": beta,
        **rates,
        "measured_rate": measured_rate(errors, 1e-9),
        "steps": steps,
        "errors": errors,
    }


# --- refinement


def refinement_jobs() -> Iterator[tuple[str, Callable[[], Row]]]:
    for steps in (10, 20, 40, 80, 160, 320):
        yield f"{steps} steps", lambda steps=steps: refinement_row(steps)


def refinement_row(steps: int) -> Row:
    A, G = (
        torch.tensor([[-0.5, 1.0], [-1.0, 0.2]], **DOUBLE),
        torch.tensor([[0.3], [1.0]], **DOUBLE),
    )
    R, Q = (
        torch.diag(torch.tensor([0.5, 0.1], **DOUBLE)),
        torch.diag(torch.tensor([1.0, 0.5], **DOUBLE)),
    )
    c, q, slope = (torch.tensor(v, **DOUBLE) for v in ([0.1, -0.2], [0.3, 0.0], [1.0, -0.5]))
    rest: dict[str, Any] = {
        "offset": c,
        "running_slope": q,
        "terminal_slope": slope,
        "temperature": 0.8,
    }
    matrices = {"drift_matrix": A, "control_matrix": G, "running_matrix": R, "terminal_matrix": Q}
    limit = riccati_limit(**matrices, **rest, duration=1.0)
    size = 1 / steps
    chain = LinearQuadratic.ornstein_uhlenbeck(
        2, **matrices, **rest, steps=steps, step_size=size, **DOUBLE
    )
    found = iterate_quadratics(chain, 25)

    def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
        return math.sqrt(
            sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
        )

    control = (found.gain[0] / math.sqrt(size), found.shift[0] / math.sqrt(size))
    value = (found.matrix[0], found.slope[0], found.constant[0])
    return {
        "step": size,
        "value": distance(value, limit[:3]),
        "control": distance(control, limit[3:]),
    }


def order(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through the points on logarithmic axes."""
    x, y = (
        torch.tensor([math.log(v) for v in column], **DOUBLE)
        for column in zip(*points, strict=True)
    )
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


# --- report


def draw_quadratics(figure: Any, rows: dict[str, Row]) -> None:
    factors, errors = figure.subplots(1, 2)
    for i, (name, row) in enumerate(rows.items()):
        marker = "o" if row["dimension"] == 1 else "x"
        factors.plot(
            *zip(*row["pairs"], strict=True), marker, markersize=4, color=f"C{i % 4}", label=name
        )
        style = "-" if row["dimension"] == 1 else "--"
        errors.plot(
            [e if e > 1e-13 else math.nan for e in row["errors"]],
            style,
            color=f"C{i % 4}",
            label=name,
        )
    factors.axline((0.01, 0.01), slope=1, color="0.5", linewidth=1)
    factors.set(
        xscale="log",
        yscale="log",
        xlabel="lambda_k",
        ylabel="measured factor",
        title="each inner iteration",
    )
    errors.set(
        yscale="log",
        xlabel="m_k = m",
        ylabel="distance of the control from Riccati's",
        title="Algorithm 1",
    )
    factors.legend(fontsize=7)


def draw_mixtures(figure: Any, rows: dict[str, Row]) -> None:
    factors, errors = figure.subplots(1, 2)
    for i, (name, row) in enumerate(rows.items()):
        steps = [s for s in row["steps"] if s[2] > 0]
        factors.plot(
            [s[1] for s in steps],
            [s[2] for s in steps],
            "o",
            color=f"C{i}",
            label=f"{name}, measured gradient",
        )
        factors.plot([s[0] for s in steps], [s[2] for s in steps], "x", color=f"C{i}")
        errors.plot(
            [e if e > 1e-10 else math.nan for e in row["errors"]], color=f"C{i}", label=name
        )
    factors.axline((0.01, 0.01), slope=1, color="0.5", linewidth=1)
    factors.set(
        xscale="log",
        yscale="log",
        xlabel="lambda_k (x: certified)",
        ylabel="largest measured factor",
    )
    errors.set(yscale="log", xlabel="m_k = m", ylabel="largest error of the control")
    factors.legend(fontsize=7)


def draw_refinement(figure: Any, rows: dict[str, Row]) -> None:
    axes = figure.subplots()
    for measure in ("value", "control"):
        points = [(row["step"], row[measure]) for row in rows.values()]
        axes.plot(
            *zip(*points, strict=True), marker="o", label=f"{measure}: slope {order(points):.3f}"
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="step",
        ylabel="distance from the limit at time 0",
        title="Euler-Maruyama",
    )
    axes.legend()


def quadratic_table(rows: dict[str, Row]) -> list[str]:
    head = [
        (
            "| chain | largest lambda_k | rate of the error | measured / lambda_k, smallest |"
            " largest |"
        ),
        "|" + " --- |" * 5,
    ]
    cells = ("rate", "measured_rate", "smallest_ratio", "largest_ratio")
    return [
        *head,
        *(
            f"| {name} | " + " | ".join(f"{row[c]:.4g}" for c in cells) + " |"
            for name, row in rows.items()
        ),
    ]


def mixture_table(rows: dict[str, Row]) -> list[str]:
    head = [
        "| mixture, multiple of the certified temperature | beta | certified | measured gradient |"
        " rate of the error |"
    ]
    cells = ("temperature", "certified_rate", "local_rate", "measured_rate")
    body = [
        f"| {name} | " + " | ".join(f"{row[c]:.4g}" for c in cells) + " |"
        for name, row in rows.items()
    ]
    return [*head, "|" + " --- |" * 5, *body]


def refinement_table(rows: dict[str, Row]) -> list[str]:
    orders = {
        m: order([(row["step"], row[m]) for row in rows.values()]) for m in ("value", "control")
    }
    return [
        "Order of the error in the step: "
        + ", ".join(f"{m} {found:.3f}" for m, found in orders.items())
        + "."
    ]


PARTS: dict[str, Part] = {
    "quadratics": Part(quadratic_jobs, draw_quadratics, quadratic_table),
    "mixtures": Part(mixture_jobs, draw_mixtures, mixture_table),
    "refinement": Part(refinement_jobs, draw_refinement, refinement_table),
}


def read(out: Path) -> dict[str, dict[str, Row]]:
    """Finished lines by part and name; one torn by a kill is left out."""
    found: dict[str, dict[str, Row]] = {}
    for line in read_lines(out / ROWS):
        found.setdefault(line["part"], {})[line["name"]] = line["row"]
    return found


def run(
    parts: tuple[PartName, ...] = ("quadratics", "mixtures", "refinement"), out: Path = RESULTS
) -> None:
    """Make the lines that are missing, then the report.

    Args:
        parts: which.
        out: folder of everything.
    """
    torch.set_num_threads(1)
    check_writable(out)
    done = read(out)
    command = f"python benchmarks/convergence.py {shlex.join(sys.argv[1:])}".strip()
    for part in parts:
        for name, make in PARTS[part].jobs():
            if name in done.get(part, {}):
                continue
            start = time.process_time()
            row = make()
            seconds = round(time.process_time() - start, 2)
            made = {"command": command, "cpu_seconds": seconds, **provenance()}
            append(out / ROWS, {"part": part, "name": name, "row": row, **made})
            print(f"{part} {name}: {seconds} s", flush=True)
    report(out)


def report(out: Path = RESULTS) -> None:
    """Write ``report.md`` and ``convergence.png`` from what is there.

    Args:
        out: folder that ``convergence.py`` filled.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = read(out)
    shown = [part for part in PARTS if part in found]
    if not shown:
        raise ValueError(f"out must hold results of `python benchmarks/convergence.py`; got {out}")
    figure = Figure(figsize=(11, 3.6 * len(shown)), dpi=100, layout="constrained")
    panels = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    lines = [
        "# Convergence of policy iteration",
        "",
        "How it was measured: `benchmarks/convergence.py`; nothing is random.",
        "",
    ]
    lines += ["![convergence](convergence.png)"]
    for panel, part in zip(panels, shown, strict=True):
        panel.suptitle(part)
        PARTS[part].draw(panel, found[part])
        lines += ["", f"## {part}", "", *PARTS[part].table(found[part])]
    FigureCanvasAgg(figure).print_png(str(out / "convergence.png"))
    write_whole(out / "report.md", "\n".join([*lines, ""]).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return command_line("convergence.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
