"""What an engine is, and the loop that all of them share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..spec import Budget, RunSpec, slug
from ..storage.checkpoints import Saving
from ..storage.files import printable
from ..storage.records import RunFolder


class Job(NamedTuple):
    """What all runs of a comparison share."""

    out: Path
    command: str
    saving: Saving


class Engine(Protocol):
    """Where runs are executed."""

    def run(self, missing: list[RunSpec], job: Job, bar: Any) -> list[str]:
        """Make all runs in their folders, with a bar of them; what went wrong, a line a failed
        run.
        """

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """``function(*call)`` of every call."""


class Lost(Exception):
    """The machine of a run is gone; the run can go on elsewhere."""


class Running(Protocol):
    """A run that has been begun."""

    spec: RunSpec
    folder: RunFolder

    def ended(self) -> bool:
        """Whether it has; ``Lost`` is raised if its machine is gone."""

    def complaint(self) -> str | None:
        """None if the run is finished, else one line on what went wrong."""

    def terminate(self) -> None:
        """Ask it to stop at a checkpoint."""

    def stop(self) -> None:
        """Wait until it has, or end it."""


def drive(
    missing: list[RunSpec], begin: Callable[[RunSpec], Running], room: Callable[[], int], bar: Any
) -> list[str]:
    """Make all runs, ``room()`` at a time, and show how far they are; complaints are returned.

    When anything else is raised, Ctrl-C among others, those under way are stopped: what is finished
    stays, and what is not goes on next time.
    """
    waiting, done = list(missing), bar.n
    active: list[Running] = []
    complaints: list[str] = []
    try:
        while waiting or active:
            while waiting and len(active) < room():
                active.append(begin(waiting.pop(0)))
            time.sleep(0.2)
            for run in list(active):
                try:
                    if not run.ended():
                        continue
                    complaint = run.complaint()
                except Lost as loss:
                    active.remove(run)
                    waiting.insert(0, run.spec)
                    bar.write(_printable(f"begun again: {run.folder.path}: {loss}"), sys.stderr)
                    continue
                active.remove(run)
                if complaint is None:
                    done += 1
                else:
                    complaints.append(f"{run.folder.path}: {complaint}")
                    bar.write(_printable(f"failed: {complaints[-1]}"), file=sys.stderr)
            shares = [share_of(run) for run in active]
            _show(bar, done, [(0.0, f"{len(complaints)} failed")] * bool(complaints) + shares)
    finally:
        for run in active:
            run.terminate()
        for run in active:
            run.stop()
    return complaints


def share_of(run: Running) -> tuple[float, str]:
    """Share of the budget spent, and a word on how it goes."""
    try:
        rows = run.folder.rows()
    except ValueError:
        rows = []
    name, budget = f"{slug(run.spec.agent)}/{run.spec.seed}", run.spec.budget
    return _shown(name, budget, rows[-1]) if rows else (0.0, name)


def _shown(name: str, budget: Budget, last: dict[str, Any]) -> tuple[float, str]:
    share = min(1.0, last[budget.unit] / budget.amount)
    score = last["score"]
    figure = f"J {last['objective']:.3g}" if score is None else f"score {score:.2f}"
    return share, f"{name} {share:.0%} {figure}"


def _show(bar: Any, done: int, shares: list[tuple[float, str]]) -> None:
    """Redraw when something has changed: a log file that takes the bar should not grow with the
    time.
    """
    n, words = done + sum(share for share, _ in shares), "; ".join(word for _, word in shares)
    if (n, words) != (bar.n, bar.postfix):
        bar.n = n
        bar.set_postfix_str(words)


def _printable(text: str) -> str:
    """As much of a text as the terminal can show."""
    encoding, text = getattr(sys.stderr, "encoding", None) or "ascii", printable(text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
