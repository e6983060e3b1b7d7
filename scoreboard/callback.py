"""The one instrument: an SB3 callback that watches any agent learn, in all three units of cost."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from ..agents.callbacks import BatchCallback
from ..envs.counting import Evaluations
from ..envs.problem import Estimate, Problem
from .evaluation import (
    CURVE_SEED,
    FINAL_SEED,
    SAMPLE_SEED,
    Evaluation,
    Reference,
    evaluate,
    generator_on,
    policy_of,
)
from .output.tensorboard import (
    Diagnostics,
    log_hyperparameters,
    log_row,
    settings_of,
    told,
    unit_of,
)
from .plots import grid_of
from .spec import Budget, EvaluationPlan, Spent
from .stopwatch import Stopwatch
from .storage.checkpoints import Checkpoints
from .storage.resuming import resumable, state_of, take_over

#: Pictures in a grid.
PICTURES = 16


class BudgetCallback(BatchCallback):
    """Ends training when a budget is spent.

    Args:
        problem: what is learnt.
        budget: when to stop.
        resumed: what an earlier process saved, for a run that goes on: taken over when the first
            round begins.
    """

    def __init__(
        self, problem: Problem, budget: Budget, resumed: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.problem, self.budget, self._resumed = problem, budget, resumed
        self._base, self._over = Spent(0, 0, 0.0), False

    def _on_training_start(self) -> None:
        self._base = self.spent()._replace(seconds=0.0)  # a loaded model has a past

    def _on_rollout_start(self) -> None:
        if self._resumed is not None:
            take_over(self.model, self._resumed)
            self._over = self._resumed["instrument"]["over"]
            self._resumed = None

    def spent(self) -> Spent:
        """What training has used since it began; no seconds are counted here."""
        steps = self.model.num_timesteps
        queries = reward_queries(self.model, self.problem)
        return Spent(steps - self._base.env_steps, queries - self._base.reward_queries, 0.0)

    def _on_step(self) -> bool:
        fraction = self.budget.fraction(self.spent())
        if self._over or (self.budget.unit == "seconds" and fraction >= 1):
            return False
        # A budget in counts ends at the first step beyond it: who collected just enough may still
        # learn from it.
        self._over = fraction >= 1
        return True


def episode_length(model: Any, problem: Problem) -> int:
    """Actions in an episode of a model: the horizon, or less where it carries steps without noise
    on with the ones before.
    """
    return getattr(model.get_env(), "episode_length", problem.horizon)


def reward_queries(model: Any, problem: Problem) -> int:
    """Terminal rewards that a model has seen: as itself or its environment counts them, else whole
    rounds of its lanes, which all end together.
    """
    for counter in (model, model.get_env()):
        if hasattr(counter, "reward_queries"):
            return counter.reward_queries
    return model.n_envs * (model.num_timesteps // model.n_envs // problem.horizon)


class ScoreCallback(BudgetCallback):
    """Evaluates the present policy at fixed fractions of the budget and ends the run when it is
    spent.

    Every evaluation is one row of ``progress.jsonl`` and the same TensorBoard scalars for every
    agent: ``eval/objective``, ``eval/objective_stderr``, ``eval/reward``, ``eval/kl``,
    ``eval/score``, ``eval/success``, ``time/...`` against the unit of the budget (env steps where
    that is seconds), with the agent's own ``train/...`` and ``rollout/...``; and the evaluations
    again as ``vs_env_steps/...``, ``vs_reward_queries/...`` and ``vs_milliseconds/...``. All are
    dated by training time, so that TensorBoard's relative axis is training time too. Where the
    problem offers ``images(x)``, grids of pictures come along, from noises that are the same at
    every look, beside those of the pre-trained model; one a prompt where it offers
    ``prompts_of(x)``, too.

    Args:
        problem: what is learnt, on the model's device.
        reference: what scores are measured against.
        budget: when to stop.
        plan: how often and how closely to look.
        seed: of the run; evaluation noise depends on it alone, so that agents with the same seed
            share it.
        progress: the JSONL file.
        tensorboard: folder of the events.
        on_row: called with each row.
        checkpoints: where to save a model that is ``resumable``, between two rounds; nowhere if
            absent.
        resumed: what an earlier process saved there, for a run that goes on.
        evaluations: of the model that the agent learns with; not counted if absent.
    """

    def __init__(
        self,
        problem: Problem,
        reference: Reference,
        budget: Budget,
        plan: EvaluationPlan,
        seed: int,
        progress: Path,
        tensorboard: Path,
        on_row: Any = None,
        checkpoints: Checkpoints | None = None,
        resumed: dict[str, Any] | None = None,
        evaluations: Evaluations | None = None,
    ) -> None:
        super().__init__(problem, budget, resumed)
        self._evaluations = Evaluations() if evaluations is None else evaluations
        self._checkpoints, self._saved_at, self._looked = checkpoints, 0.0, False
        self.reference, self.plan, self.seed = reference, plan, seed
        self.final: dict[str, Any] | None = None  #: the last row, once training has ended
        self._progress, self._tensorboard, self._on_row = progress, tensorboard, on_row
        self._due = plan.fractions()
        self._unit, self._shown = unit_of(budget), False

    def _on_training_start(self) -> None:
        self._writer = SummaryWriter(str(self._tensorboard))
        self._start = time.time()
        super()._on_training_start()
        self._listen()
        self._set_clocks(0.0, 0.0)
        if self._resumed is None:
            self._look()
        self._looked = False  # a run that has learnt nothing yet has nothing to lose
        self._go_on()

    def _listen(self) -> None:
        """Let the events hold what the agent tells its logger, too."""
        if self.model.logger is not None:  # a function's learner has none
            self._diagnostics = Diagnostics(self._writer, self._now)
            self.model.logger.output_formats.append(self._diagnostics)

    def _now(self) -> tuple[int, float]:
        """The step and the date of what happens now."""
        return getattr(self.spent(), self._unit), self._start + self._clock.seconds

    def _set_clocks(self, seconds: float, cpu_seconds: float) -> None:
        device = torch.device(self.model.device)
        self._clock = Stopwatch(device, seconds)
        self._cpu = Stopwatch(device, cpu_seconds, time.process_time)

    def _go_on(self) -> None:
        self._clock.resume()
        self._cpu.resume()

    def _stand_still(self) -> None:
        self._clock.pause()
        self._cpu.pause()

    def _on_rollout_start(self) -> None:
        if self._resumed is not None:
            before = self._resumed["instrument"]
            super()._on_rollout_start()
            self._due, self._start, self._saved_at = (
                before[name] for name in ("due", "start", "seconds")
            )
            self._evaluations.count = before["model_evaluations"]
            for name, value in before["told"].items():
                self.model.logger.record(name, value)
            self._set_clocks(before["seconds"], before["cpu_seconds"])
            self._go_on()
        elif self._checkpoints is not None:
            late = self._clock.seconds - self._saved_at >= 60 * self._checkpoints.saving.minutes
            if (late or self._looked or self._checkpoints.stopping) and resumable(self.model):
                self._stand_still()
                self._save(self._checkpoints)
                self._go_on()

    def _save(self, checkpoints: Checkpoints) -> None:
        self._saved_at, self._looked = self._clock.seconds, False
        self._writer.flush()
        logger = self.model.logger
        instrument = {
            "over": self._over,
            "due": self._due,
            "start": self._start,
            "seconds": self._saved_at,
            "cpu_seconds": self._cpu.seconds,
            "model_evaluations": self._evaluations.count,
            "told": told(logger.name_to_value, logger.name_to_excluded),  # and not yet written
        }
        checkpoints.save(self.spent().env_steps, {**state_of(self.model), "instrument": instrument})

    def _on_step(self) -> bool:
        goes_on = super()._on_step()
        fraction = self.budget.fraction(self.spent())
        if goes_on and self._due and fraction >= self._due[0] and not self._over:
            self._stand_still()
            self._look()
            self._go_on()
        return goes_on

    def _on_training_end(self) -> None:
        self._stand_still()
        self.final = self._row(self.plan.final_paths, FINAL_SEED)
        self.final_states = self._states
        self._show()
        if self.model.logger is not None:
            self.model.logger.output_formats.remove(self._diagnostics)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if hasattr(self, "_writer"):
            self._writer.close()

    def spent(self) -> Spent:
        """What training has used since it began."""
        counts = super().spent()
        if not hasattr(self, "_clock"):
            return counts
        # of who learns without callbacks: nothing at first, then all
        outside = getattr(self.model, "seconds_outside", None)
        return counts._replace(
            seconds=self._clock.seconds + (outside or 0.0),
            model_evaluations=0 if outside == 0.0 else self._evaluations.count,
            cpu_seconds=self._cpu.seconds + getattr(self.model, "cpu_seconds_outside", 0.0),
        )

    def _look(self) -> None:
        fraction = self.budget.fraction(self.spent())
        self._due = [due for due in self._due if due > fraction]
        self._row(self.plan.paths, CURVE_SEED)
        self._show()
        self._looked = True

    def _row(self, paths: int, stream: int) -> dict[str, Any]:
        spent = self.spent()
        evaluation = self._evaluate(paths, stream)
        self._states = evaluation.states
        row = row_of(evaluation, self.reference, spent, paths)
        with open(self._progress, "a") as file:
            file.write(json.dumps(row) + "\n")
        log_row(self._writer, row, spent, self._unit, self._start + spent.seconds)
        if self._on_row is not None:
            self._on_row(row)
        return row

    def _evaluate(self, paths: int, stream: int, controlled: bool = True) -> Evaluation:
        """The present policy, or none, on noises that depend on the seed alone; training goes on as
        if nobody had looked.
        """
        policy, seed = self.model.policy, stream + self.seed
        training, device = policy.training, torch.device(self.model.device)
        policy.set_training_mode(False)
        cuda = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(cuda), self._evaluations.paused():
                torch.manual_seed(seed)  # for policies that average over noise of their own
                acting = policy_of(self.model, self.problem) if controlled else None
                return evaluate(self.problem, acting, paths, generator_on(self.problem, seed))
        finally:
            policy.set_training_mode(training)

    def _show(self) -> None:
        """Pictures of what the present policy makes of the first noises of the samples that a run
        keeps.
        """
        if not hasattr(self.problem, "images"):
            return
        n, stream = min(PICTURES, self.plan.samples), SAMPLE_SEED - self.seed
        states = {"fine-tuned": self._evaluate(n, stream).states}
        if not self._shown:
            states["pre-trained"] = self._evaluate(n, stream, controlled=False).states
            self._shown = True
        step, date = self._now()
        for name, x in states.items():
            images = (2 * self.problem.images(x) - 1).float().cpu().numpy()
            prompts_of = getattr(self.problem, "prompts_of", None)
            prompts = [""] * len(images) if prompts_of is None else prompts_of(x)
            for prompt in dict.fromkeys(prompts):
                chosen = images[[i for i, other in enumerate(prompts) if other == prompt]]
                tag = f"images/{prompt}: {name}" if prompt else f"images/{name}"
                self._writer.add_image(tag, grid_of(chosen), step, date, dataformats="HWC")
        self._writer.flush()

    def log_hyperparameters(self, settings: dict[str, Any]) -> None:
        """Put the run into TensorBoard's HParams tab: these settings, all others of the agent, and
        the final figures.
        """
        assert self.final is not None
        every = {**settings_of(self.model), **settings}
        log_hyperparameters(self._writer, every, self.final)


def row_of(
    evaluation: Evaluation, reference: Reference, spent: Spent, paths: int
) -> dict[str, Any]:
    """One row of ``progress.jsonl``."""
    value = evaluation.value
    score, success = reference.score(value.objective), evaluation.success
    return {
        **spent._asdict(),
        **_named("objective", value.objective),
        **_named("reward", value.reward),
        **_named("kl", value.kl),
        **_named("score", score),
        **_named("success", success),
        "certificate_holds": reference.holds(value.objective),
        "paths": paths,
        **({} if evaluation.sampling is None else evaluation.sampling._asdict()),
    }


def _named(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    mean, stderr = (None, None) if estimate is None else estimate
    return {name: mean, f"{name}_stderr": stderr}
