"""From finished runs to a table, plots, and TensorBoard: reads records, runs nothing."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import plots
from .evaluation import Reference
from .intervals import interval, paired
from .records import (
    RunFolder,
    check_writable,
    inside,
    read_record,
    read_samples,
    write_json,
    write_whole,
)
from .spec import UNITS, RunSpec, slug
from .tables import markdown

_QUANTITIES = ("score", "objective", "reward", "kl", "success", *UNITS)


def report(out: Path) -> Path:
    """Write ``report.md``, ``report.json``, plots and TensorBoard images for the finished runs
    under ``out``.

    Returns:
        The path of ``report.md``.

    Raises:
        ValueError: no finished run there, or the folder can't be written to.
    """
    found = sorted(out.glob("*/*/seed*/record.json"))
    if not found:
        raise ValueError(
            "out must hold finished runs (<env>/<agent>/seed<k>/record.json); found none under"
            f" {str(out)!r}"
        )
    check_writable(out)
    records = [read_record(path) for path in found]
    unfinished = sorted(
        str(path.parent.relative_to(out))
        for path in out.glob("*/*/seed*/spec.json")
        if not (path.parent / "record.json").is_file()
    )
    summary = {
        "environments": [summarise(out, group) for group in _grouped(records, "env").values()],
        "unfinished": unfinished,
        "commands": _distinct(record["command"] for record in records if record["command"]),
        "hardware": _distinct(
            {**r["hardware"], "device": r["device"], "threads": r["threads"]} for r in records
        ),
        "versions": _distinct(record["versions"] for record in records),
    }
    write_json(out / "report.json", summary)
    write_whole(out / "report.md", markdown(summary).encode())
    return out / "report.md"


def summarise(out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the table says of one environment, and its pictures, whose names it holds."""
    agents = _grouped(records, "agent")
    rows = {
        agent: [RunFolder(out, RunSpec.from_json(r["spec"])).rows() for r in group]
        for agent, group in agents.items()
    }
    reference, env = Reference.from_json(records[0]["reference"]), records[0]["spec"]["env"]
    quantity = (
        "score" if all(record["final"]["score"] is not None for record in records) else "objective"
    )
    pictures = _draw(out, env, agents, rows, quantity, reference)
    spec = records[0]["spec"]
    return {
        "env": env,
        "env_kwargs": spec["env_kwargs"],
        "temperature": records[0]["temperature"],
        "horizon": records[0]["horizon"],
        "budgets": _distinct(record["spec"]["budget"] for record in records),
        "reference": reference.to_json(),
        "uncontrolled_score": 0.0 if quantity == "score" else None,
        "closed_form_score": _closed_form_score(reference),
        "agents": [_agent(agent, group) for agent, group in agents.items()],
        "differences": _differences(agents, quantity),
        "compared": quantity,
        "equal_cost": _equal_cost(rows, quantity),
        "cost_of_equals": _cost_of_equals(rows, quantity),
        "pictures": pictures,
    }


def _agent(agent: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    finals = [record["final"] for record in group]
    means = {
        name: (
            interval([final[name] for final in finals])._asdict()
            if all(f[name] is not None for f in finals)
            else None
        )
        for name in _QUANTITIES
    }
    holds = [final["certificate_holds"] for final in finals]
    return {
        "agent": agent,
        "access": group[0]["access"],
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


def _differences(agents: dict[str, list[dict[str, Any]]], quantity: str) -> list[dict[str, Any]]:
    values = {
        agent: {r["spec"]["seed"]: r["final"][quantity] for r in group}
        for agent, group in agents.items()
    }
    out = []
    for first, second in itertools.combinations(values, 2):
        difference = paired(values[first], values[second])
        if difference is not None:
            out.append({"first": first, "second": second, **difference._asdict()})
    return out


def _equal_cost(rows: dict[str, list[plots.Rows]], quantity: str) -> list[dict[str, Any]]:
    """Every agent, and its success, where the cheapest run stops, in each unit, read off the
    learning curves.
    """
    known = all(run[0].get("success") is not None for seeds in rows.values() for run in seeds)
    out = []
    for unit in UNITS:
        amount = min(run[-1][unit] for seeds in rows.values() for run in seeds)

        def at(name: str, unit: str = unit, amount: float = amount) -> dict[str, Any]:
            return {
                agent: (
                    interval(
                        [float(np.interp(amount, *plots.curve(run, unit, name))) for run in seeds]
                    )._asdict()
                )
                for agent, seeds in rows.items()
            }

        out.append(
            {
                "unit": unit,
                "amount": amount,
                "agents": at(quantity),
                "success": at("success") if known else None,
            }
        )
    return out


def _cost_of_equals(rows: dict[str, list[plots.Rows]], quantity: str) -> list[dict[str, Any]]:
    """What each agent, median over its seeds, spends until it is as good as another ends; None: it
    never is.
    """
    out = []
    for goal, seeds in rows.items():
        target = float(np.median([run[-1][quantity] for run in seeds]))
        spent = {
            agent: {
                unit: _finite(
                    np.median([_first(*plots.curve(run, unit, quantity), target) for run in runs])
                )
                for unit in UNITS
            }
            for agent, runs in rows.items()
        }
        out.append({"agent": goal, "target": target, "spent": spent})
    return out


def _first(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """Where a curve first is at the target, linear between its points; infinity if it never is."""
    reached = np.flatnonzero(y >= target)
    if not len(reached):
        return float("inf")
    i = reached[0]
    return float(x[i] if i == 0 else np.interp(target, y[i - 1 : i + 1], x[i - 1 : i + 1]))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _closed_form_score(reference: Reference) -> dict[str, float] | None:
    score = (
        None if reference.closed_form is None else reference.score(reference.closed_form.objective)
    )
    return None if score is None else score._asdict()


def _draw(
    out: Path,
    env: str,
    agents: dict[str, list[dict[str, Any]]],
    rows: dict[str, list[plots.Rows]],
    quantity: str,
    reference: Reference,
) -> dict[str, str]:
    """Draw the pictures of one environment into its folder and TensorBoard; their paths relative to
    ``out``, by name.
    """
    goal = reference.target
    target = 1.0 if quantity == "score" else None if goal is None else goal.mean
    title = f"{env}: {quantity} of the deterministic policy"
    figures = {"learning_curves": plots.learning_curves(rows, quantity, title, target)}
    states = _states(out, env, agents)
    title = f"{env}: terminal states, all from the same noises (first seed)"
    picture = plots.samples(states, title) if states else None
    if picture is not None:
        figures["samples"] = picture
    folder = out / slug(env)
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_whole(folder / f"{name}.png", buffer.getvalue())
    _to_tensorboard(inside(out, folder / "report"), figures)
    return {name: f"{slug(env)}/{name}.png" for name in figures}


def _states(out: Path, env: str, agents: dict[str, list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    files = {"pre-trained": out / slug(env) / "samples_before.npy"}
    for agent, group in agents.items():
        files[agent] = RunFolder(out, RunSpec.from_json(group[0]["spec"])).samples
    if not all(file.is_file() for file in files.values()):
        return {}  # results that came with a checkout: samples are not committed
    return {agent: read_samples(inside(out, file)) for agent, file in files.items()}


def _to_tensorboard(folder: Path, figures: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for name, figure in figures.items():
            figure.canvas.draw()
            writer.add_image(
                f"report/{name}",
                np.asarray(figure.canvas.buffer_rgba())[..., :3],
                dataformats="HWC",
            )


def _grouped(records: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Records by environment or agent, the known agents in their usual order, seeds in theirs."""
    from .registry import AGENTS

    order = {name: i for i, name in enumerate(AGENTS)}
    ranked = sorted(
        records,
        key=lambda r: (
            order.get(r["spec"]["agent"], len(order)),
            r["spec"]["agent"],
            r["spec"]["seed"],
        ),
    )
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in ranked:
        groups[record["spec"][key]].append(record)
    return dict(groups)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return [
        json.loads(text)
        for text in dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)
    ]
