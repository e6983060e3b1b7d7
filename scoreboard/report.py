"""From finished runs to a table, plots, and TensorBoard: reads records, and makes no run.

The reference is refined first: the policies that the runs left lend their paths to the bound.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..envs.checks import MOST, check_flag, check_range, shown
from . import plots
from .evaluation import Reference
from .intervals import (
    COSTS,
    Rows,
    cost_of_equals,
    cost_of_levels,
    differences,
    equal_cost,
    interval,
    overall,
    wins,
)
from .output import html_report, levels_picture, tensorboard
from .output.markdown_report import markdown
from .output.scores import grouped, measured, refined
from .output.unfinished import missing_from
from .spec import Budget, RunSpec, base_of, slug
from .storage import archive
from .storage.record_checks import told_of
from .storage.records import (
    RunFolder,
    check_writable,
    inside,
    read_samples,
    write_json,
    write_whole,
)

_QUANTITIES = ("score", "score_of_best", "objective", "reward", "kl", "success", *COSTS)


def report(
    out: Path,
    refine: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
    levels: Sequence[float] = (),
) -> Path:
    """Write ``report.md``, ``report.html``, ``report.json``, plots and TensorBoard's mean runs for
    the finished runs under ``out``; of several environments ``levels.png`` and ``levels.svg``, too,
    if levels are given.

    Args:
        out: folder of a comparison.
        refine: let the runs' policies lend their paths to the bound (``<env>/pooled.json``).
        on_stage: called with a word on what begins and takes long.
        levels: scores, or objectives where there are none, whose cost is told too.

    Returns the path of ``report.md``.

    Raises:
        ValueError: no finished run there, the folder can't be written to, or a level that is no
            number.
    """
    if not isinstance(out, (str, os.PathLike)):
        raise ValueError(f"out must be a folder; got {shown(out)}")
    check_flag("refine", refine)
    if not isinstance(levels, (tuple, list)):
        raise ValueError(f"levels must be a tuple of numbers; got {shown(levels)}")
    for level in levels:
        check_range("levels", level, -MOST, MOST)
    out = Path(out)
    records = archive.finished(out)
    if not records:
        raise ValueError(
            "out must hold finished runs (<env>/<agent>/seed<k>/record.json, or runs.jsonl); found"
            f" none under {str(out)!r}"
        )
    check_writable(out)
    missing = missing_from(out)
    with told_of(out):
        groups = grouped(records, "env")
        environments = [
            summarise(out, groups[env], refine, on_stage, levels) for env in _in_order(list(groups))
        ]
        pictures = _draw_levels(out, environments) if levels and len(environments) > 1 else {}
    summary = {
        "environments": environments,
        "overall": overall(environments),
        **({"pictures": pictures} if pictures else {}),
        **missing,
        "commands": _distinct(record["command"] for record in records if record["command"]),
        "hardware": _distinct(
            {**r["hardware"], "device": r["device"], "threads": r["threads"]} for r in records
        ),
        "versions": _distinct(record["versions"] for record in records),
    }
    with told_of(out):
        text = markdown(summary)
    write_json(out / "report.json", summary)
    write_whole(out / "report.md", text.encode())
    drawn = html_report.drawings(out, [pictures, *(env["pictures"] for env in environments)])
    write_whole(out / "report.html", html_report.page(text, drawn).encode())
    return out / "report.md"


def summarise(
    out: Path,
    records: list[dict[str, Any]],
    refine: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
    levels: Sequence[float] = (),
) -> dict[str, Any]:
    """Everything that the table says of one environment, and its pictures, whose names it holds."""
    reference, env = refined(out, records, refine, on_stage), records[0]["spec"]["env"]
    on_stage(f"{plots.name_of(env)}: tables and pictures")
    records = [measured(record, reference) for record in records]
    agents = grouped(records, "agent")
    rows = {agent: [record["rows"] for record in group] for agent, group in agents.items()}
    scored = all(record["final"]["score"] is not None for record in records)
    quantity = "score" if scored else "objective"
    pictures = _draw(out, env, agents, rows, quantity, reference)
    pairs = differences(agents, quantity)
    spec = records[0]["spec"]
    notes = _distinct(r["note"] for r in records if r.get("note"))
    return {
        "env": env,
        "env_kwargs": spec["env_kwargs"],
        "temperature": records[0]["temperature"],
        "horizon": records[0]["horizon"],
        "budgets": _distinct(RunSpec.from_json(r["spec"]).to_json()["budget"] for r in records),
        "reference": reference.to_json(),
        "uncontrolled_score": 0.0 if quantity == "score" else None,
        "closed_form_score": _closed_form_score(reference),
        "agents": [
            {**_agent(agent, group), "best_of_class": wins(agent, agents, pairs)}
            for agent, group in agents.items()
        ],
        "differences": pairs,
        "compared": quantity,
        "equal_cost": equal_cost(rows, quantity),
        "cost_of_equals": cost_of_equals(rows, quantity, levels),
        **({"levels": cost_of_levels(rows, quantity, levels)} if levels else {}),
        "pictures": pictures,
        **({"notes": notes} if notes else {}),
    }


def _agent(agent: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    finals = [record["final"] for record in group]
    means = {
        name: (
            interval([final[name] for final in finals])._asdict()
            if all(f.get(name) is not None for f in finals)
            else None
        )
        for name in _QUANTITIES
    }
    holds = [final["certificate_holds"] for final in finals]
    return {
        "agent": agent,
        "access": group[0]["access"],
        "access_class": group[0].get("access_class"),
        "seeds": [record["spec"]["seed"] for record in group],
        **means,
        "median_score": (
            None
            if means["score"] is None
            else float(np.median([final["score"] for final in finals]))
        ),
        "certificate_holds": None if None in holds else sum(holds),
        "runs": finals,
    }


def _closed_form_score(reference: Reference) -> dict[str, float] | None:
    score = (
        None if reference.closed_form is None else reference.score(reference.closed_form.objective)
    )
    return None if score is None else score._asdict()


def _draw(
    out: Path,
    env: str,
    agents: dict[str, list[dict[str, Any]]],
    rows: dict[str, list[Rows]],
    quantity: str,
    reference: Reference,
) -> dict[str, str]:
    """Draw the pictures of one environment into its folder and TensorBoard; their paths relative to
    ``out``, by name.
    """
    title = f"{plots.name_of(env)}: {quantity} of the deterministic policy"
    lines = _lines(quantity, reference)
    figures = {"learning_curves": plots.learning_curves(rows, quantity, title, lines)}
    states = _states(out, env, agents)
    title = f"{plots.name_of(env)}: terminal states, all from the same noises (first seed)"
    if states and (picture := plots.samples(states, title)) is not None:
        figures["samples"] = picture
    folder = out / slug(env)
    for name, figure in figures.items():
        for kind, content in plots.encoded(figure):
            write_whole(folder / f"{name}.{kind}", content)
    _to_tensorboard(out, folder, agents, figures, quantity)
    return {name: f"{slug(env)}/{name}.png" for name in figures}


def _draw_levels(out: Path, environments: list[dict[str, Any]]) -> dict[str, str]:
    """What levels cost in all environments, beside the report; its name."""
    figure = levels_picture.draw(environments)
    if figure is None:
        return {}
    for kind, content in plots.encoded(figure):
        write_whole(out / f"levels.{kind}", content)
    return {"levels": "levels.png"}


def _lines(quantity: str, reference: Reference) -> dict[str, float]:
    """The levels that a curve is read against, by name."""
    levels = {"pre-trained": reference.uncontrolled}
    if reference.target is not None:
        exact = reference.optimum is not None
        levels["optimum" if exact else "bound"] = reference.target
    if reference.optimum is None and reference.best is not None:
        levels["best reached"] = reference.best.objective
    if quantity == "objective":
        return {name: level.mean for name, level in levels.items()}
    scores = {name: reference.score(level) for name, level in levels.items()}
    return {name: score.mean for name, score in scores.items() if score is not None}


def _states(out: Path, env: str, agents: dict[str, list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    files = {"pre-trained": out / slug(env) / "samples_before.npy"}
    for agent, group in agents.items():
        files[agent] = RunFolder(out, RunSpec.from_json(group[0]["spec"])).samples
    if not all(file.is_file() for file in files.values()):
        return {}  # results that came with a checkout: samples are not committed
    return {agent: read_samples(inside(out, file)) for agent, file in files.items()}


def _to_tensorboard(
    out: Path,
    folder: Path,
    agents: dict[str, list[dict[str, Any]]],
    figures: dict[str, Any],
    quantity: str,
) -> None:
    """The mean run of every agent, and the pictures, each in the folder that names it."""
    pictures = {}
    for name, figure in figures.items():
        figure.canvas.draw()
        pictures[f"report/{name}"] = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    tensorboard.write_pictures(inside(out, folder), pictures, quantity)
    for agent, group in agents.items():
        unit = tensorboard.unit_of(Budget(**group[0]["spec"]["budget"]))
        rows = [record["rows"] for record in group]
        tensorboard.write_means(inside(out, folder / slug(agent)), rows, unit)


def _in_order(envs: list[str]) -> list[str]:
    """Those of one name together, by their notes, whose numbers count as numbers."""
    bases = list(dict.fromkeys(map(base_of, envs)))

    def place(env: str) -> tuple[int, list[str | float]]:
        parts = re.split(r"(\d+(?:\.\d+)?)", env)  # words and numbers in turn
        numbered = [float(part) if i % 2 else part for i, part in enumerate(parts)]
        return bases.index(base_of(env)), numbered

    return sorted(envs, key=place)


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:  # as JSON has it: a tuple is a list, and 2000 is 2000.0
        plain = json.loads(json.dumps(value, sort_keys=True))
        if plain not in found:
            found.append(plain)
    return found
