"""What TensorBoard is told: of a run while it learns, and of all runs of an agent together.

    <env>                the pictures of the report, and the layout of the Custom Scalars tab
    <env>/<agent>        the mean over seeds and its band, written by ``report``
    <env>/<agent>/seed0  one run

Scalars of a run and of a mean share their tags and steps, so that they are drawn on one another.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter

from ..intervals import Rows, band, curve, known_costs
from ..spec import Budget, Spent

_QUANTITIES = ("objective", "objective_stderr", "reward", "kl", "score", "success")
#: The units of cost as the steps of TensorBoard, which are integers: their names and factors.
_STEPS = {
    "env_steps": ("env_steps", 1),
    "reward_queries": ("reward_queries", 1),
    "seconds": ("milliseconds", 1000),
}
#: Points of a mean curve: so many that TensorBoard's smoothing leaves it as it is.
_POINTS = 200
#: Arguments of constructors that are no settings of the learner.
_NO_SETTINGS = {"policy", "env", "seed", "verbose", "device", "stats_window_size", "seconds"}


def unit_of(budget: Budget) -> str:
    """What the steps of ``eval/`` and ``train/`` count: reward queries where the budget is of
    those, else environment steps.
    """
    return "reward_queries" if budget.unit == "reward_queries" else "env_steps"


def log_row(
    writer: SummaryWriter, row: Mapping[str, Any], spent: Spent, unit: str, date: float
) -> None:
    """An evaluation: ``eval/...`` against ``unit`` and ``vs_<cost>/...`` against every cost; what
    was spent as ``time/...``.
    """
    costs = {name: round(factor * getattr(spent, key)) for key, (name, factor) in _STEPS.items()}
    step = getattr(spent, unit)
    for name in _QUANTITIES:
        if row[name] is not None:
            writer.add_scalar(f"eval/{name}", row[name], step, date)
            for cost, at in costs.items():
                writer.add_scalar(f"vs_{cost}/{name}", row[name], at, date)
    for name, value in spent._asdict().items():
        writer.add_scalar(f"time/{name}", value, step, date)
    writer.flush()


class Diagnostics(KVWriter):
    """What an agent tells its logger of its training (``train/...``, ``rollout/...``), beside its
    evaluations and against the same steps.

    Args:
        writer: of the run's events.
        now: the step and the date at which something is told.
    """

    def __init__(self, writer: SummaryWriter, now: Callable[[], tuple[int, float]]) -> None:
        self._writer, self._now = writer, now

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """As SB3's logger calls it; its own ``step`` is not used."""
        at, date = self._now()
        for name, value in told(key_values, key_excluded).items():
            self._writer.add_scalar(name, value, at, date)

    def close(self) -> None:
        """Nothing: the events go on."""


def told(
    key_values: Mapping[str, Any], key_excluded: Mapping[str, tuple[str, ...]]
) -> dict[str, float]:
    """What there is of training in a logger's values: finite numbers that are meant for
    TensorBoard.
    """
    return {
        name: float(value)
        for name, value in key_values.items()
        if name.startswith(("train/", "rollout/"))
        and "tensorboard" not in (key_excluded.get(name) or ())
        and isinstance(value, (bool, int, float, np.number))
        and np.isfinite(value)
    }


def log_hyperparameters(
    writer: SummaryWriter, settings: Mapping[str, Any], final: Mapping[str, Any]
) -> None:
    """Put a run into the HParams tab: its settings, and what it came to."""
    names = ("score", "objective", "reward", "kl", "success", "seconds")
    metrics = {f"final/{name}": float(final[name]) for name in names if final[name] is not None}
    plain = {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in settings.items()
    }
    writer.add_hparams(plain, metrics, run_name=".")


def settings_of(model: Any) -> dict[str, bool | int | float | str]:
    """The plain settings of an agent, defaults included; a schedule counts by its value at the
    start.
    """
    names = getattr(type(model), "hyperparameters", None)
    if names is None:
        names = [n for n in inspect.signature(type(model).__init__).parameters if n[0] != "_"]
    found: dict[str, bool | int | float | str] = {}
    for name in names:
        if name in _NO_SETTINGS:
            continue
        value = getattr(model, name, None)
        if callable(value) and not isinstance(value, type):
            value = _at_the_start(value)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, (bool, int, float, str)):
            found[name] = value
    return found


def _at_the_start(schedule: Any) -> Any:
    try:
        return float(schedule(1.0))
    except (TypeError, ValueError):  # no schedule
        return None


def write_means(folder: Path, runs: Sequence[Rows], unit: str) -> None:
    """The mean run of an agent: the interquartile mean over its seeds as ``eval/...``, the ends of
    its 95% interval as ``interval/..._low`` and ``interval/..._high``.
    """
    clear(folder)
    names = [n for n in _QUANTITIES if all(row.get(n) is not None for rows in runs for row in rows)]
    costs = {cost: _STEPS[cost] for cost in known_costs(runs) if cost in _STEPS}
    with SummaryWriter(str(folder)) as writer:
        for name in names:
            for cost, (word, factor) in costs.items():
                end = factor * min(rows[-1][cost] for rows in runs)
                steps = np.unique(np.linspace(0, end, _POINTS).astype(int))
                curves = [curve(rows, cost, name) for rows in runs]
                values = np.stack([np.interp(steps / factor, x, y) for x, y in curves])
                middle, low, high = band(values[None])
                for i, step in enumerate(steps.tolist()):
                    writer.add_scalar(f"vs_{word}/{name}", middle[i], step)
                    if cost == unit:
                        writer.add_scalar(f"eval/{name}", middle[i], step)
                        writer.add_scalar(f"interval/{name}_low", low[i], step)
                        writer.add_scalar(f"interval/{name}_high", high[i], step)


def write_pictures(folder: Path, pictures: Mapping[str, np.ndarray], quantity: str) -> None:
    """The pictures ``(H, W, 3)`` of an environment by tag, and the layout of Custom Scalars, which
    opens on ``quantity``.
    """
    clear(folder)
    with SummaryWriter(str(folder)) as writer:
        for tag, picture in pictures.items():
            writer.add_image(tag, picture, dataformats="HWC")
        writer.add_custom_scalars(layout(quantity))


def layout(quantity: str) -> dict[str, dict[str, list[Any]]]:
    """The charts of the Custom Scalars tab. The score has a section of its own, the first:
    TensorBoard keeps the order of sections, and not that of the charts in them.
    """
    others = [name for name in ("objective", "reward", "kl", "success") if name != quantity]
    means = {
        name: ["Margin", [f"eval/{name}", f"interval/{name}_low", f"interval/{name}_high"]]
        for name in (quantity, *others)
    }
    every = {name: ["Multiline", [f"^eval/{name}$"]] for name in (quantity, *others)}
    return {
        quantity: {
            f"{quantity}: mean of seeds, 95% band": means[quantity],
            f"{quantity}: every run": every[quantity],
        },
        "means of seeds, 95% band": {name: means[name] for name in others},
        "every run": {name: every[name] for name in others},
        "training": {
            "losses": ["Multiline", ["^train/.*loss"]],
            "learning rate": ["Multiline", ["^train/learning_rate$"]],
            "return of training paths": ["Multiline", ["^rollout/ep_rew_mean$"]],
        },
    }


def clear(folder: Path) -> None:
    """Remove the events that lie in a folder itself."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()


def address(port: int = 6006) -> str:
    """Where TensorBoard shows the runs well: the score on top, nothing smoothed, and one colour an
    agent.
    """
    pinned = [{"plugin": "scalars", "tag": "eval/score"}]
    query = {
        "pinnedCards": json.dumps(pinned, separators=(",", ":")),
        "smoothing": "0",
        "runColorGroup": r"regex:([^/]+/[^/]+)",
    }
    return f"http://localhost:{port}/?{urlencode(query)}"
