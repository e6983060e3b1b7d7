"""One tuner for every agent: Optuna over declared spaces, the same trials and minutes for all.

A study is one agent on one family of tasks. Its first trial is the present default, so that what
comes out is never worse there. The next are spread evenly over the space (Halton's sequence), as a
few random ones leave gaps; then Optuna chooses. Seeds and, where there are several, tasks are such
as no reported row uses. Trials are kept in a journal (JSON lines) as they end: killed and started
again, a study goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats.qmc import Halton

from ...envs.checks import check_keywords
from ...envs.env import ProblemEnv, shell_of
from ..callback import episode_length
from ..engines.engine import Engine
from ..engines.local import LocalProcesses
from ..evaluation import FINAL_SEED, Reference, evaluate, generator_on, policy_of, reference_of
from ..registry import find_agent, make_env
from ..spec import Budget, base_of, slug
from .spaces import SPACES, Space, searched

#: Trials before Optuna learns from them.
_SPREAD = 5
#: A trial that fails, or ends below it, counts as this score: one wreck must not bend the search.
FLOOR = -1.0


@dataclass(frozen=True)
class Tuning:
    """One study.

    Args:
        agent: a name in ``spaces.SPACES``; with a note after ``#``, a study of its own:
            ``grpo#lora``.
        env: an id, or ``module:attribute``.
        tasks: keyword arguments of the environment, one mapping a task.
        seeds: of every trial, on every task.
        budget: of every run.
        trials: at most; the default settings are the first of them.
        minutes: of CPU time at most, all trials together.
        paths: fresh paths by which a run is scored.
        reference_paths: uncontrolled paths behind the scores.
        settings: of every trial, the first included; what they hold is not searched.
    """

    agent: str
    env: str
    tasks: tuple[Mapping[str, Any], ...] = ({},)
    seeds: tuple[int, ...] = (1000,)
    budget: Budget = field(default_factory=lambda: Budget(2000))
    trials: int = 10
    minutes: float = 20.0
    paths: int = 512
    reference_paths: int = 8192
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if base_of(self.agent) not in SPACES:
            raise ValueError(f"agent must be one of {sorted(SPACES)}; got {self.agent!r}")
        check_keywords("settings", self.settings)
        if not (self.tasks and self.seeds and self.trials >= 1 and self.minutes > 0):
            raise ValueError(
                "tasks and seeds must not be empty, trials at least 1 and minutes positive; got"
                f" {self.tasks}, {self.seeds}, {self.trials}, {self.minutes}"
            )

    @property
    def name(self) -> str:
        """Of the study and of its file."""
        return f"{slug(self.env)}-{slug(self.agent)}"

    @property
    def space(self) -> dict[str, Space]:
        """What is searched."""
        return searched(self.agent, self.settings)


def tune(tuning: Tuning, out: Path, say: Any = print, engine: Engine | None = None) -> Any:
    """Run the study, or what is missing of it, and return it as Optuna's ``Study``.

    Args:
        tuning: what to try.
        out: folder of the journals, one a study.
        say: called with one line a trial.
        engine: where the runs of a trial are made; one after the other in this process if absent.
    """
    import optuna
    from optuna.trial import TrialState

    study = open_study(tuning.name, out)
    study.set_user_attr("tuning", json.dumps(_plain(tuning)))
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=_SPREAD)
    references = [_reference(tuning, task) for task in tuning.tasks]
    ended = (TrialState.COMPLETE,)
    while True:
        done = study.get_trials(states=ended)
        spent = sum(trial.user_attrs["cpu_seconds"] for trial in done)
        if len(done) >= tuning.trials or spent > 60 * tuning.minutes:
            return study
        if 0 < len(done) <= _SPREAD and tuning.space:
            study.enqueue_trial(spread(tuning.space, len(done)))
        trial = study.ask()
        # the default itself, in the place of a first draw
        drawn = tuning.space if done else {}
        chosen = {name: space.suggest(trial, name) for name, space in drawn.items()}
        chosen = {**tuning.settings, **chosen}
        calls = [
            (tuning, task, seed, chosen, reference)
            for task, reference in zip(tuning.tasks, references, strict=True)
            for seed in tuning.seeds
        ]
        runs = (engine or LocalProcesses()).map(_timed_score, calls)
        scores, cpu = [run.score for run in runs], sum(run.cpu_seconds for run in runs)
        for key, value in {"settings": chosen, "scores": scores, "cpu_seconds": cpu}.items():
            trial.set_user_attr(key, value)
        value = sum(max(score, FLOOR) for score in scores) / len(scores)
        study.tell(trial, value)
        say(f"{tuning.name} {len(done)}: {value:.3f} {chosen} {cpu:.0f} CPU s")


def open_study(name: str, out: Path) -> Any:
    """The study of that name in the folder ``out``, made if it is not there."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.jsonl"
    there = path.is_file()
    # the lock that works on every file system: symbolic links do not
    lock = JournalFileOpenLock(str(path))
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if there:
        return optuna.load_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, direction="maximize")


def spread(space: Mapping[str, Space], number: int) -> dict[str, Any]:
    """Point ``number`` of Halton's sequence in the space, as Optuna keeps it."""
    sequence = Halton(len(space), scramble=False).fast_forward(number)
    shares = sequence.random(1)[0].tolist()
    return {name: space[name].at(share) for name, share in zip(space, shares, strict=True)}


def _reference(tuning: Tuning, task: Mapping[str, Any]) -> Reference:
    return reference_of(make_env(tuning.env, task, "cpu").problem, tuning.reference_paths)


class _Scored(NamedTuple):
    score: float
    cpu_seconds: float


def _timed_score(*call: Any) -> _Scored:
    begun = time.process_time()
    score = _score(*call)
    return _Scored(score, time.process_time() - begun)


def _score(
    tuning: Tuning, task: Mapping[str, Any], seed: int, chosen: dict[str, Any], reference: Reference
) -> float:
    """The final score of one run; ``FLOOR`` if it fails or there is nothing to score against."""
    env = make_env(tuning.env, task, "cpu")
    try:
        learning = ProblemEnv(env.problem, **shell_of(env))
        model = find_agent(tuning.agent).make(learning, seed=seed, device="cpu", **chosen)
        length = episode_length(model, env.problem)
        model.learn(tuning.budget.timesteps(length, model.n_envs))
        with torch.no_grad():
            generator = generator_on(env.problem, FINAL_SEED + seed)
            acting = policy_of(model, env.problem)
            value = evaluate(env.problem, acting, tuning.paths, generator).value
        score = reference.score(value.objective)
    except (ValueError, ArithmeticError):  # it diverged
        return FLOOR
    return FLOOR if score is None or not math.isfinite(score.mean) else score.mean


def _plain(tuning: Tuning) -> dict[str, Any]:
    return {
        "agent": tuning.agent,
        "env": tuning.env,
        "tasks": [dict(task) for task in tuning.tasks],
        "seeds": list(tuning.seeds),
        "budget": tuning.budget.amount,
        "budget_unit": tuning.budget.unit,
        "trials": tuning.trials,
        "minutes": tuning.minutes,
        "paths": tuning.paths,
        "settings": dict(tuning.settings),
    }


def studies(out: Path) -> list[Any]:
    """Every study in the folder ``out``, by name; other files of lines are left alone."""
    return [open_study(path.stem, out) for path in sorted(out.glob("*.jsonl")) if _journal(path)]


def _journal(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.readline().startswith('{"op_code"')
