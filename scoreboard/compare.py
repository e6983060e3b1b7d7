"""Agents x environments x seeds at one budget: each run a process of its own, and nothing shared
but files.

Killed at any moment and started again, a comparison makes the runs that are missing and repeats
none that is finished.
"""

from __future__ import annotations

import os
import sys
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
from .commands.configuration import at, by_name
from .engines.engine import Engine, Job
from .engines.local import LocalProcesses
from .registry import find_agent, make_env
from .runner import check_settings, prepare_env
from .spec import Budget, EvaluationPlan, RunSpec, slug
from .storage import archive
from .storage.checkpoints import Saving
from .storage.records import check_writable


@dataclass(frozen=True)
class Comparison:
    """What to compare, and where to put it.

    Args:
        agents: names, as ``RunSpec.agent``.
        envs: names, as ``RunSpec.env``.
        seeds: of the agents.
        budget: the same for all.
        out: folder of everything.
        workers: runs at a time on this machine; its cores are shared out evenly.
        env_kwargs: of every environment; or by environment, each a dict of its own.
        agent_kwargs: by agent; under ``"AGENT @ ENVIRONMENT"`` what an agent has on top of that on
            one environment.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        plan: how to evaluate.
        command: how this was asked for, kept in the records.
        saving: how often runs under way are saved.
        engine: where runs are executed; in ``workers`` processes of this machine if absent.
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
    saving: Saving = Saving()
    engine: Engine | None = None
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
        check_flag("cache", self.cache)
        if not isinstance(self.saving, Saving):
            raise ValueError(f"saving must be a Saving; got {shown(self.saving)}")
        if self.engine is not None and not hasattr(self.engine, "run"):
            raise ValueError(f"engine must be an Engine; got {shown(self.engine)}")
        if not isinstance(self.out, (str, os.PathLike)):
            raise ValueError(f"out must be a folder; got {shown(self.out)}")
        object.__setattr__(self, "out", Path(self.out))
        check_keywords("agent_kwargs", self.agent_kwargs)
        object.__setattr__(self, "agent_kwargs", self.agent_kwargs or {})
        for agent, settings in self.agent_kwargs.items():
            check_keywords(f"agent_kwargs of {agent}", settings)
        together = {at(agent, env) for agent in self.agents for env in self.envs}
        unknown = sorted(set(self.agent_kwargs) - set(self.agents) - together)
        if unknown:
            raise ValueError(
                f"agent_kwargs must be for agents of this comparison, {self.agents}, or for one on"
                f" an environment of it, {at('AGENT', 'ENVIRONMENT')!r}; got {unknown}"
            )
        self._check_env_kwargs()
        self.specs()  # every run's own door

    def _check_env_kwargs(self) -> None:
        check_keywords("env_kwargs", self.env_kwargs)
        object.__setattr__(self, "env_kwargs", self.env_kwargs or {})
        if not by_name(self.env_kwargs):
            return
        for env, settings in self.env_kwargs.items():
            check_keywords(f"env_kwargs of {env}", settings)
        unknown = sorted(set(self.env_kwargs) - set(self.envs))
        if unknown:
            raise ValueError(
                f"env_kwargs by name must be for environments of this comparison, {self.envs}; got"
                f" {unknown}"
            )

    def _settings(self, agent: str, env: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the environment and the agent of one run are given."""
        named = by_name(self.env_kwargs)
        of_env = (self.env_kwargs.get(env) or {}) if named else self.env_kwargs
        of_agent, here = (self.agent_kwargs.get(name) or {} for name in (agent, at(agent, env)))
        return dict(of_env), {**of_agent, **here}

    def specs(self) -> list[RunSpec]:
        """All runs, seed by seed, so that every agent has a result early."""
        return [
            RunSpec(
                env,
                agent,
                seed,
                self.budget,
                *self._settings(agent, env),
                self.device,
                self.plan,
            )
            for env in self.envs
            for seed in self.seeds
            for agent in self.agents
        ]


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
    archive.restore(specs, comparison.out)
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
        engine = comparison.engine or LocalProcesses(comparison.workers)
        job = Job(comparison.out, comparison.command, comparison.saving)
        complaints = engine.run(missing, job, bar)
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
    missing = archive.missing(specs, out)
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
