"""Agents x environments x seeds at one budget: each run a process of its own, and nothing shared
but files.

Killed at any moment and started again, a comparison makes the runs that are missing and repeats
none that is finished.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..envs.checks import (
    LARGEST_SEED,
    check_flag,
    check_integer,
    check_keywords,
    check_whole,
    shown,
)
from ..envs.env import ProblemEnv
from .commands.arguments import check_names
from .registry import find_agent, make_env
from .runner import check_settings, prepare_env
from .spec import Budget, EvaluationPlan, RunSpec, slug
from .storage import archive
from .storage.files import printable
from .storage.records import RunFolder, check_writable, cores


@dataclass(frozen=True)
class Comparison:
    """What to compare, and where to put it.

    Args:
        agents: names, as ``RunSpec.agent``.
        envs: names, as ``RunSpec.env``.
        seeds: of the agents.
        budget: the same for all.
        out: folder of everything.
        workers: runs at a time; the machine's cores are shared out evenly.
        env_kwargs: of every environment.
        agent_kwargs: by agent.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        plan: how to evaluate.
        command: how this was asked for, kept in the records.
        cache: share references with other folders (``storage.references.cached_reference``).
    """

    agents: tuple[str, ...]
    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: Budget
    out: Path
    workers: int = 1
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    agent_kwargs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "auto"
    plan: EvaluationPlan = EvaluationPlan()
    command: str = ""
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("agents", "envs", "seeds"):
            if not isinstance(getattr(self, name), (tuple, list)):
                raise ValueError(f"{name} must be a tuple; got {shown(getattr(self, name))}")
            given = tuple(getattr(self, name))
            object.__setattr__(self, name, given)
            if not given or len({str(item) for item in given}) < len(given):
                raise ValueError(f"{name} must hold at least one name, each once; got {given}")
            folders = {slug(str(item)): item for item in given}
            for item in given:
                if name == "seeds":
                    check_integer("seeds", item, 0, LARGEST_SEED)
                if folders[slug(str(item))] != item:
                    raise ValueError(
                        f"{name} must go to folders of their own; {item!r} and"
                        f" {folders[slug(str(item))]!r} would share {slug(str(item))!r}"
                    )
        check_whole("workers", self.workers, 1)
        if not isinstance(self.out, (str, os.PathLike)):
            raise ValueError(f"out must be a folder; got {shown(self.out)}")
        object.__setattr__(self, "out", Path(self.out))
        check_keywords("agent_kwargs", self.agent_kwargs or {})
        for agent, settings in (self.agent_kwargs or {}).items():
            check_keywords(f"agent_kwargs of {agent}", settings or {})
        unknown = sorted(set(self.agent_kwargs) - set(self.agents))
        if unknown:
            raise ValueError(
                f"agent_kwargs must be for agents of this comparison, {self.agents}; got {unknown}"
            )
        self.specs()  # every run's own door

    def specs(self) -> list[RunSpec]:
        """All runs, seed by seed, so that every agent has a result early."""
        return [
            RunSpec(
                env,
                agent,
                seed,
                self.budget,
                self.env_kwargs,
                self.agent_kwargs.get(agent, {}),
                self.device,
                self.plan,
            )
            for env in self.envs
            for seed in self.seeds
            for agent in self.agents
        ]


class _Worker:
    """One run in its process."""

    def __init__(self, spec: RunSpec, comparison: Comparison) -> None:
        self.spec = spec
        self.folder = RunFolder(comparison.out, spec)
        threads = threads_of(comparison.workers)
        request = {
            "spec": spec.to_json(),
            "out": str(comparison.out),
            "command": comparison.command,
            "threads": threads,
        }
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.runner", json.dumps(request)],
            stdin=subprocess.PIPE,  # its end of file tells the worker that we are gone
            stdout=self._errors,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"},
        )

    def progress(self) -> tuple[float, str]:
        """Share of the budget spent, and a word on how it goes."""
        try:
            rows = self.folder.rows()
        except ValueError:
            rows = []
        name = f"{slug(self.spec.agent)}/{self.spec.seed}"
        if not rows:
            return 0.0, name
        last = rows[-1]
        fraction = min(1.0, last[self.spec.budget.unit] / self.spec.budget.amount)
        figure = (
            f"J {last['objective']:.3g}" if last["score"] is None else f"score {last['score']:.2f}"
        )
        return fraction, f"{name} {fraction:.0%} {figure}"

    def stop(self) -> None:
        """End the process and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()  # it stops at a checkpoint
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def complaint(self) -> str | None:
        """None if the run is finished, else one line on what went wrong; the whole of it is kept in
        ``error.txt``.
        """
        self.stop()
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", errors="replace").strip()
        self._errors.close()
        if self.process.returncode == 0 and self.folder.finished():
            if text:
                self.folder.warnings.write_text(text + "\n", encoding="utf-8")
            return None
        lines = text.splitlines() or [f"the process ended with code {self.process.returncode}"]
        name = f"{self.folder.path}"
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.error.write_text(text + "\n", encoding="utf-8")
        if self.process.returncode == 2:
            return f"{name}: {lines[-1].removeprefix('error: ')}"
        return f"{name}: {lines[-1]} (all of it: {self.folder.error})"


def threads_of(workers: int) -> int:
    """Threads of each of so many workers: its share of the cores that this process may use, and no
    more than OMP_NUM_THREADS where it is set.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    most = int(asked) if asked.isdecimal() and int(asked) > 0 else cores()
    return max(1, min(most, cores() // workers))


def compare(comparison: Comparison, progress: bool = True) -> list[Path]:
    """Make every run that is not finished and return the folders of all.

    Raises:
        ValueError: a bad name or argument, a folder that holds other settings (both before anything
            is run).
        RunsFailed: runs failed, after all others were made.
    """
    if not isinstance(comparison, Comparison):
        raise ValueError(f"comparison must be a Comparison; got {shown(comparison)}")
    check_flag("progress", progress)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(
            f"compare must be one process, which starts its own; got {processes} (accelerate launch"
            " is for run)"
        )
    specs = comparison.specs()
    for agent in comparison.agents:
        find_agent(agent)
    for spec in specs:
        archive.restore(spec, comparison.out)
    missing, envs = checked(specs, comparison.out)
    check_writable(comparison.out)
    done = len(specs) - len(missing)
    with tqdm(
        total=len(specs), initial=done, disable=not progress, desc="runs", bar_format=_BAR
    ) as bar:
        _prepare(missing, envs, comparison, bar)
        bar.start_t = bar.last_print_t = (
            time.time()
        )  # what remains is judged by how runs go, not references
        complaints = _run_all(missing, comparison, bar)
    if complaints:
        raise RunsFailed(
            f"{len(complaints)} of {len(specs)} runs failed; the first: {complaints[0]}"
        )
    return [spec.folder(comparison.out) for spec in specs]


class RunsFailed(ValueError):
    """Some runs failed, after all others were made."""


def checked(specs: list[RunSpec], out: Path) -> tuple[list[RunSpec], dict[str, ProblemEnv]]:
    """The runs that are missing and the environments that they need, once all their settings have
    been tried.
    """
    for spec in specs:
        check_names(spec.env, spec.agent)
        find_agent(spec.agent)
    missing = [spec for spec in specs if not RunFolder(out, spec).finished()]
    envs = {spec.env: make_env(spec.env, spec.env_kwargs, spec.device) for spec in missing}
    for spec in {(spec.env, spec.agent): spec for spec in missing}.values():
        if words := check_settings(spec, envs[spec.env]):
            print(words, file=sys.stderr)
    return missing, envs


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"


def _prepare(
    missing: list[RunSpec], envs: dict[str, ProblemEnv], comparison: Comparison, bar: Any
) -> None:
    """References first, once an environment, with all cores."""
    for env, shell in envs.items():
        bar.set_postfix_str(f"reference of {env}")
        spec = next(spec for spec in missing if spec.env == env)
        prepare_env(spec, shell, comparison.out, comparison.cache)


def _run_all(missing: list[RunSpec], comparison: Comparison, bar: Any) -> list[str]:
    waiting, done = list(missing), bar.n
    active: list[_Worker] = []
    complaints: list[str] = []
    try:
        while waiting or active:
            while waiting and len(active) < comparison.workers:
                active.append(_Worker(waiting.pop(0), comparison))
            time.sleep(0.2)
            for worker in [w for w in active if w.process.poll() is not None]:
                active.remove(worker)
                complaint = worker.complaint()
                if complaint is None:
                    done += 1
                else:
                    complaints.append(complaint)
                    bar.write(_printable(f"failed: {complaint}"), file=sys.stderr)
            shares = [worker.progress() for worker in active]
            _show(bar, done, [(0.0, f"{len(complaints)} failed")] * bool(complaints) + shares)
    finally:  # Ctrl-C among others: what is finished stays, what is not will be begun again
        for worker in active:
            worker.process.terminate()
        for worker in active:
            worker.stop()
    return complaints


def _show(bar: Any, done: int, shares: list[tuple[float, str]]) -> None:
    """Redraw when something has changed: a log file that takes the bar should not grow with the
    time.
    """
    n, words = done + sum(fraction for fraction, _ in shares), "; ".join(word for _, word in shares)
    if (n, words) != (bar.n, bar.postfix):
        bar.n = n
        bar.set_postfix_str(words)


def _printable(text: str) -> str:
    """As much of a text as the terminal can show."""
    encoding, text = getattr(sys.stderr, "encoding", None) or "ascii", printable(text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
