"""The question in the title as a picture: what does a good policy cost regression, and what does it
cost RL?

    python benchmarks/frontier.py --agents ppo sac --betas 2 0.5 0.1 --dimensions 2 8 32 --seeds 2
    python benchmarks/frontier.py report

For each reward strength 1/beta and dimension d of girsanov/GaussianMixture-v0: how many reward
queries and how many seconds until the score is 0.9? ``pde`` is PDE with adaptive sampling,
``pde-off`` the same from uncontrolled paths alone.

Score: (J - J(0)) / (J_ref - J(0)) of the deterministic policy. J_ref is the Donsker-Varadhan bound
beta log E^0 exp(R / beta), which no policy of the discrete chain exceeds. It is estimated by
importance sampling, from paths of the closed-form control with their Girsanov weights, since hardly
any uncontrolled path carries it at beta 0.1. (E V_0(X_0) of the closed form will not do: it is
exact for infinitely many steps only, and with 50 of them good policies score up to 1.6 against it
at d = 32.) The score of that control itself, clipped to the environment's action bound like the
agents', is each cell's ceiling.

Evaluation: the same ``paths`` noises for every agent, seed and point of a cell. The returns of no
control and of the closed form on them, whose means are known from many more paths, are control
variates in a regression: at beta 2 that takes the standard error of a score near 0.9 from 0.06 to
0.01 to 0.02.

The point at which a curve reaches 0.9 is the first evaluation whose score, averaged with those
before and after it, is at least 0.9: one lucky evaluation does not count, nor does the last of a
run. Seconds are those of the same evaluation: CPU seconds of one thread in training, evaluation
left out, so that other processes on the machine change them little.

Killed and started again, ``run`` makes what is missing and repeats no finished run.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import resumable as bench
import torch
from frontier_report import HERE, report
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from girsanov.agents import PDE
from girsanov.baselines import hyperparameters
from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Estimate, Policy, Problem, rollout
from girsanov.scoreboard.callback import episode_length, reward_queries
from girsanov.scoreboard.evaluation import CURVE_SEED, REFERENCE_SEED, generator_on, policy_of
from girsanov.scoreboard.spec import Budget

ENV = "girsanov/GaussianMixture-v0"
# Like PPO and SAC, PDE has a setting found at beta 0.5 in the plane: more gradient steps a round
# than its default of 40.
AgentName = Literal["pde", "pde-off", "ppo", "sac"]
AGENTS: dict[str, Callable[..., BaseAlgorithm]] = {
    "pde": lambda problem, **kwargs: PDE("MlpPolicy", problem, gradient_steps=150, **kwargs),
    "pde-off": lambda problem, **kwargs: PDE(
        "MlpPolicy", problem, gradient_steps=150, adaptive=False, **kwargs
    ),
    "ppo": make_ppo,
    "sac": make_sac,
}
LARGE = {"betas": (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05), "dimensions": (2, 8, 32, 128), "seeds": 5}


class Cell(NamedTuple):
    """One problem of the grid."""

    beta: float
    dimension: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"beta{self.beta:g}-d{self.dimension}"

    def problem(self) -> Problem:
        """On the CPU."""
        return make_problem(ENV, temperature=self.beta, dimension=self.dimension)


@dataclass(frozen=True)
class Run:
    """One agent in one cell with one seed.

    Args:
        agent: a name of ``AGENTS``.
        beta: temperature.
        dimension: of the state.
        seed: of the agent.
        queries: budget in reward queries.
        cpu_seconds: budget in CPU seconds of training.
        paths: common noises behind each evaluation.
    """

    agent: str
    beta: float
    dimension: int
    seed: int
    queries: int
    cpu_seconds: float
    paths: int = 512

    @property
    def cell(self) -> Cell:
        """Where it is made."""
        return Cell(self.beta, self.dimension)

    @property
    def name(self) -> str:
        """Unlike any other run's of the grid."""
        return f"{self.cell.name}-{self.agent}-seed{self.seed}"


# --- what scores are measured against


class Reference(NamedTuple):
    """What the scores of a cell are measured against."""

    uncontrolled: Estimate  # J(0)
    bound: Estimate  # J_ref
    closed_form: Estimate  # J of the closed-form control, clipped to the action bound
    ess_share: float  # of the paths behind the bound
    paths: int

    def score(self, objective: float) -> float:
        """0 the pre-trained model, 1 out of reach."""
        return (objective - self.uncontrolled.mean) / (self.bound.mean - self.uncontrolled.mean)

    @classmethod
    @torch.no_grad()
    def of(cls, problem: Problem, paths: int, batch: int = 4096) -> Reference:
        """Estimate all of it from ``paths`` uncontrolled and as many controlled paths."""
        beta, generator = problem.temperature, generator_on(problem, REFERENCE_SEED)
        control = closed_form(problem)
        nothing, controlled, log_weights = [], [], []
        for start in range(0, paths, batch):
            n = min(batch, paths - start)
            nothing.append(rollout(problem, None, n, generator).reward.double())
            found = rollout(problem, control, n, generator)
            controlled.append(_returns(problem, found))
            log_weights.append((found.reward / beta + found.log_ratios.sum(0)).double())
        log_weight = torch.cat(log_weights)
        log_mean = torch.logsumexp(log_weight, 0) - math.log(paths)
        weight = torch.exp(log_weight - log_mean)  # mean 1
        stderr = beta * float(weight.std()) / math.sqrt(paths)  # delta method
        bound = Estimate(beta * float(log_mean), stderr)
        share = float(weight.sum() ** 2 / weight.square().sum()) / paths
        nothing, controlled = (Estimate.of(torch.cat(values)) for values in (nothing, controlled))
        return cls(nothing, bound, controlled, share, paths)

    @classmethod
    def cached(cls, cell: Cell, paths: int, out: Path) -> Reference:
        """The cell's line, made if it is not there; a ValueError names one that was made from other
        numbers.
        """

        def make() -> bench.Line:
            found = cls.of(cell.problem(), paths)
            values = found._asdict().items()
            return {name: v._asdict() if isinstance(v, Estimate) else v for name, v in values}

        kept = bench.kept(out, cell.name, {"reference_paths": paths}, make)
        return cls(**{k: Estimate(**v) if isinstance(v, dict) else v for k, v in kept.items()})


def closed_form(problem: Any) -> Policy:
    """The problem's closed-form control within the action bound of its environment."""
    bound = ProblemEnv(problem).action_bound
    return lambda k, x: problem.reference_control(k, x).clamp(-bound, bound)


def _returns(problem: Problem, paths: Any) -> Tensor:
    return (paths.reward - problem.temperature * paths.kl).double()


class Yardstick:
    """Measures policies of one cell on noises that are the same for all of them.

    Args:
        problem: of the cell.
        reference: of the cell.
        paths: how many noises.
    """

    def __init__(self, problem: Problem, reference: Reference, paths: int) -> None:
        self.problem, self.reference, self.paths = problem, reference, paths
        known = {None: reference.uncontrolled, closed_form(problem): reference.closed_form}
        controls = [self._run(policy)[0] - value.mean for policy, value in known.items()]
        self._design = torch.stack([torch.ones_like(controls[0]), *controls], 1)
        self._inverse = torch.linalg.inv(self._design.T @ self._design)

    @torch.no_grad()
    def _run(self, policy: Policy | None) -> tuple[Tensor, float]:
        paths = rollout(self.problem, policy, self.paths, generator_on(self.problem, CURVE_SEED))
        return _returns(self.problem, paths), float(paths.kl.mean())

    def measure(self, policy: Policy | None) -> dict[str, float]:
        """Objective and score with their standard errors (the reference taken as exact: it is the
        same for all), and KL.
        """
        returns, kl = self._run(policy)
        coefficients = self._inverse @ (self._design.T @ returns)
        residual = returns - self._design @ coefficients
        variance = residual.square().sum() / (self.paths - len(coefficients)) * self._inverse[0, 0]
        mean, stderr = float(coefficients[0]), math.sqrt(float(variance))
        room = self.reference.bound.mean - self.reference.uncontrolled.mean
        return {
            "objective": mean,
            "objective_stderr": stderr,
            "kl": kl,
            "score": self.reference.score(mean),
            "score_stderr": stderr / room,
        }


# --- runs


def evaluation_points(budget: int) -> list[int]:
    """Reward queries to evaluate at: 0, then multiples of 50 (a round of PDE) in ratios of about
    1.25, then the budget.
    """
    points = {
        50 * round(1.25**k) for k in range(math.ceil(math.log(max(budget, 50) / 50, 1.25)) + 1)
    }
    return sorted({0, *(point for point in points if point < budget), budget})


class Curve(BaseCallback):
    """Evaluates the model when it has learnt from each number of reward queries; ends the run when
    its time is up.

    Args:
        yardstick: measures the policy.
        points: reward queries, ascending.
        cpu_seconds: limit of training.
        on_row: called with each evaluation.
    """

    def __init__(
        self,
        yardstick: Yardstick,
        points: Sequence[int],
        cpu_seconds: float,
        on_row: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__()
        self.yardstick, self.due, self.limit = yardstick, list(points), cpu_seconds
        self.on_row, self.in_time = on_row, True
        self._last, self._before, self._since = -1, 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return self._before + time.process_time() - self._since

    def spent(self) -> dict[str, float]:
        """All three units of cost."""
        model: Any = self.model
        queries = reward_queries(model, self.yardstick.problem)
        return {
            "queries": queries,
            "env_steps": model.num_timesteps,
            "seconds": round(self.seconds, 3),
        }

    def _on_training_start(self) -> None:
        self._since = time.process_time()

    def _on_rollout_start(self) -> None:  # the model has just been trained on all that it has seen
        if self.due and self.spent()["queries"] >= self.due[0]:
            self._look()

    def _on_step(self) -> bool:
        self.in_time = self.seconds < self.limit
        return self.in_time

    def _on_training_end(self) -> None:
        if self.spent()["queries"] > self._last:
            self._look()

    def _look(self) -> None:
        spent, policy = self.spent(), self.model.policy
        self._last = int(spent["queries"])
        self.due = [point for point in self.due if point > self._last]
        self._before, training = self.seconds, policy.training
        policy.set_training_mode(False)
        with torch.random.fork_rng([]):  # training goes on as if nobody had looked
            found = self.yardstick.measure(policy_of(self.model, self.yardstick.problem))
        policy.set_training_mode(training)
        self.on_row({**spent, **found})
        self._since = time.process_time()


def execute(run: Run, out: Path, reference_paths: int) -> bench.Line:
    """Make one run: its evaluations, how it ended and what it was told."""
    torch.set_num_threads(1)
    problem, reference = run.cell.problem(), Reference.cached(run.cell, reference_paths, out)
    yardstick = Yardstick(problem, reference, run.paths)
    model = AGENTS[run.agent](problem, seed=run.seed, device="cpu")
    rows: list[bench.Line] = []
    curve = Curve(yardstick, evaluation_points(run.queries), run.cpu_seconds, rows.append)
    outcome, length = "queries spent", episode_length(model, problem)
    try:
        model.learn(Budget(run.queries).timesteps(length, model.n_envs), curve)
        outcome = outcome if curve.in_time else "seconds spent"
    except ValueError as error:
        # SB3's distributions refuse NaN, a problem an infinite reward: the policy diverged
        outcome = f"diverged: {str(error).splitlines()[0][:100]}"
    told = _hyperparameters(run.agent, model, problem)
    return {"outcome": outcome, **curve.spent(), "hyperparameters": told, "rows": rows}


def _hyperparameters(agent: str, model: Any, problem: Problem) -> dict[str, Any]:
    tables = {"ppo": hyperparameters.PPO, "sac": hyperparameters.SAC}
    if agent in tables:
        return hyperparameters.settings_for(tables[agent], problem)
    values = {name: getattr(model, name) for name in model.hyperparameters}
    plain = (bool, int, float, str)
    return {name: v if isinstance(v, plain) else str(v) for name, v in values.items()}


def run(
    agents: tuple[AgentName, ...] = ("pde", "pde-off", "ppo", "sac"),
    betas: tuple[float, ...] = (2.0, 0.5, 0.1),
    dimensions: tuple[int, ...] = (2, 8, 32),
    seeds: int = 2,
    large: bool = False,
    pde_queries: int = 4_000,
    ppo_queries: int = 16_000,
    sac_queries: int = 4_000,
    cpu_seconds: float = 300.0,
    paths: int = 512,
    reference_paths: int = 1 << 17,
    workers: int = 1,
    out: Path = HERE,
) -> None:
    """Make every run of the grid that is not finished, the first seed of all cells first.

    Args:
        agents: pde (adaptive sampling), pde-off (uncontrolled paths alone), ppo, sac.
        betas: temperatures; the reward's strength is 1/beta.
        dimensions: even.
        seeds: 0, 1, ... of each agent in each cell.
        large: the larger grid instead: 7 betas, 4 dimensions, 5 seeds.
        pde_queries: budget of pde and of pde-off in reward queries.
        ppo_queries: of PPO.
        sac_queries: of SAC.
        cpu_seconds: of training, for each run.
        paths: common noises behind each evaluation.
        reference_paths: uncontrolled, and as many controlled, paths behind the reference of each
            cell.
        workers: runs at a time, one thread each.
        out: folder of everything.
    """
    if large:
        betas, dimensions, seeds = LARGE["betas"], LARGE["dimensions"], LARGE["seeds"]  # type: ignore[assignment]
    bench.check("agents", agents, "names", lambda name: name in AGENTS)
    bench.check("betas", betas, "positive numbers", lambda b: math.isfinite(b) and b > 0)
    bench.check(
        "dimensions", dimensions, "even numbers of at least 2", lambda d: d >= 2 and d % 2 == 0
    )
    queries = {"pde_queries": pde_queries, "ppo_queries": ppo_queries, "sac_queries": sac_queries}
    bench.at_least(1, seeds=seeds, **queries, workers=workers)
    bench.at_least(16, paths=paths, reference_paths=reference_paths)
    if not (math.isfinite(cpu_seconds) and cpu_seconds > 0):
        raise ValueError(f"cpu-seconds must be a positive number; got {cpu_seconds}")
    budgets = {"pde": pde_queries, "pde-off": pde_queries, "ppo": ppo_queries, "sac": sac_queries}
    grid = itertools.product(range(seeds), dimensions, betas, agents)
    runs = [Run(a, beta, d, seed, budgets[a], cpu_seconds, paths) for seed, d, beta, a in grid]

    def references(todo: Sequence[Run]) -> None:
        for cell in dict.fromkeys(run.cell for run in todo):
            Reference.cached(cell, reference_paths, out)

    bench.resume(
        runs,
        out,
        functools.partial(execute, out=out, reference_paths=reference_paths),
        lambda x: f"{x['queries']:,} queries, {x['seconds']:.0f} CPU s ({x['outcome']})",
        workers,
        references,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("frontier.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
