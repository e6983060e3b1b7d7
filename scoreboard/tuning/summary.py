"""What studies found: the best of each, its spread, and which settings mattered."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..storage.records import write_whole
from .spaces import searched
from .study import studies


def write(out: Path) -> Path:
    """Write ``report.md`` and ``importance.png`` of the studies in ``out``; the report's path.

    Raises:
        ValueError: no study there has a finished trial.
    """
    found = [study for study in studies(out) if finished(study)]
    if not found:
        raise ValueError(f"out must hold studies with trials; got none in {str(out)!r}")
    parts = ["# Tuning", _NOTES, _table(found), *(_study(study) for study in found)]
    shares = {study.study_name: importances(study) for study in found}
    if any(shares.values()):
        write_whole(out / "importance.png", _picture(shares))
        parts.append("![Share of the score's variance by setting](importance.png)")
    path = out / "report.md"
    write_whole(path, ("\n\n".join(parts) + "\n").encode())
    return path


_NOTES = """The first trial of every study is the default as it was then.
A trial's value is its mean score over tasks and seeds, none of which a reported table uses."""


def finished(study: Any) -> list[Any]:
    """The trials that ended, in their order."""
    return [trial for trial in study.trials if trial.value is not None]


def importances(study: Any) -> dict[str, float]:
    """Each setting's share of the variance of the score (fANOVA); empty below eight trials."""
    import optuna

    trials = [trial for trial in finished(study) if trial.params]
    if len(trials) < 8:
        return {}
    space = set.intersection(*(set(trial.params) for trial in trials))
    fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
    plain = optuna.create_study(direction="maximize")
    plain.add_trials(trials)  # without the default, which has no parameters
    return optuna.importance.get_param_importances(plain, evaluator=fanova, params=sorted(space))


def _table(found: list[Any]) -> str:
    lines = ["| study | tasks | trials | CPU minutes | default | best | quartiles |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for study in found:
        trials, asked = finished(study), json.loads(study.user_attrs["tuning"])
        values = [trial.value for trial in trials]
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        minutes = sum(trial.user_attrs["cpu_seconds"] for trial in trials) / 60
        tasks = "; ".join(
            ", ".join(f"{k}={v}" for k, v in task.items()) or "its own" for task in asked["tasks"]
        )
        lines.append(
            f"| {study.study_name} | {tasks} | {len(trials)} | {minutes:.1f} | {values[0]:.3f} |"
            f" {max(values):.3f} | {low:.2f}, {middle:.2f}, {high:.2f} |"
        )
    return "\n".join(lines)


def _study(study: Any) -> str:
    asked = json.loads(study.user_attrs["tuning"])
    chosen = study.best_trial.user_attrs["settings"]
    held = asked.get("settings", {})
    best = _told({name: chosen[name] for name in chosen if name not in held}) or "the default"
    space = searched(asked["agent"], held)
    listed = "\n".join(f"- `{name}`: {values}" for name, values in space.items())
    parts = [f"## {study.study_name}", f"Best: {best}.", f"Held: {_told(held)}." if held else ""]
    return "\n\n".join([*filter(None, parts), "Searched:", listed])


def _told(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in settings.items())


def _picture(shares: dict[str, dict[str, float]]) -> bytes:
    from matplotlib.figure import Figure

    shown = {name: values for name, values in shares.items() if values}
    figure = Figure(figsize=(6, 2.2 * len(shown)), dpi=100, layout="constrained")
    for axes, (name, values) in zip(
        np.atleast_1d(figure.subplots(len(shown), 1)), shown.items(), strict=True
    ):
        names = list(values)[::-1]
        axes.barh(names, [values[key] for key in names], color="C0")
        axes.set(title=name, xlim=(0, 1))
        axes.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
