"""Random search with early stopping for the baselines, and the learning curve of what it found.

    python benchmarks/tune_sb3.py search --env girsanov/GaussianMixture-v0 --algorithm sac
        --cpu-minutes 15
    python benchmarks/tune_sb3.py confirm --env girsanov/GaussianMixture-v0 --algorithm sac
    python benchmarks/tune_sb3.py curve --env girsanov/GaussianMixture-v0 --algorithm sac
        --cpu-minutes 20

``search`` draws settings from a fixed seed (the tabled ones go first), trains each once and appends
one JSON line a trial. A trial is scored after 250, 500, 1000, 2000 and 3000 episodes and is stopped
when it is below the median of the trials that came as far (asynchronous successive halving in one
process). ``confirm`` runs the best few on fresh seeds. ``curve`` trains the tabled settings until
the time is up.

PPO and SAC keep one learning rate; DPOK, DDPO and adjoint matching let it fall to zero over the
last rung's episodes, as they do over any budget.

Score: (J - J_0) / (bound - J_0) of the deterministic policy on fresh paths; 0 the pre-trained
model, 1 out of reach. Seconds are CPU seconds of this process in training, scoring left out, so
that a busy machine does not change them much.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from girsanov.baselines import hyperparameters
from girsanov.baselines.fine_tuning import FineTuner
from girsanov.baselines.fine_tuning_methods.adjoint_matching import AdjointMatching
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Estimate, Problem, objective
from girsanov.scoreboard.evaluation import policy_of

RESULTS = Path(__file__).parent / "results" / "tune_sb3.jsonl"
Algorithm = Literal["ppo", "sac", "dpok", "ddpo", "adjoint-matching"]
TUNERS: dict[str, type[FineTuner]] = {
    "dpok": DPOK,
    "ddpo": DDPO,
    "adjoint-matching": AdjointMatching,
}
MAKE: dict[str, Any] = {
    "ppo": make_ppo,
    "sac": make_sac,
    **{name: tuner.tuned for name, tuner in TUNERS.items()},
}


def tabled(algorithm: Algorithm, problem: Problem) -> dict[str, Any]:
    """The present settings in full."""
    if algorithm not in TUNERS:
        tables = {"ppo": hyperparameters.PPO, "sac": hyperparameters.SAC}
        return hyperparameters.settings_for(tables[algorithm], problem)
    tuner = TUNERS[algorithm]
    arguments = inspect.signature(tuner).parameters
    defaults = {
        name: arguments[name].default for name in tuner.hyperparameters if name in arguments
    }
    return {**defaults, **hyperparameters.settings_for(tuner.table, problem)}


def draw_ppo(rng: np.random.Generator) -> dict[str, Any]:
    """One random setting of PPO."""
    return {
        "n_envs": int(rng.choice([10, 20, 40, 80])),
        "batch_size": int(rng.choice([100, 250, 500, 1000])),
        "n_epochs": int(rng.choice([5, 10, 20])),
        "learning_rate": round(float(np.exp(rng.uniform(np.log(3e-4), np.log(1e-2)))), 6),
        "gae_lambda": float(rng.choice([0.9, 0.95, 0.98, 1.0])),
        "clip_range": float(rng.choice([0.1, 0.2, 0.3, 0.5])),
        "max_grad_norm": float(rng.choice([0.5, 2.0, 10.0])),
        "log_std_init": float(rng.choice([-2.5, -2.0, -1.5, -1.0, -0.5])),
        "net_arch": [int(rng.choice([64, 128]))] * 2,
        "activation": str(rng.choice(["Tanh", "ReLU", "SiLU"])),
    }


def draw_sac(rng: np.random.Generator) -> dict[str, Any]:
    """One random setting of SAC; updates for each environment step decide its cost."""
    lanes = int(rng.choice([5, 10, 20, 40]))
    entropy = str(rng.choice(["fixed", "fixed", "auto"]))
    return {
        "n_envs": lanes,
        "gradient_steps": max(1, round(lanes * float(rng.choice([0.05, 0.1])))),
        "batch_size": int(rng.choice([256, 512])),
        "learning_rate": round(float(np.exp(rng.uniform(np.log(5e-4), np.log(6e-3)))), 6),
        "tau": float(rng.choice([0.005, 0.01, 0.02, 0.05])),
        "n_steps": int(rng.choice([1, 3, 5, 10])),
        "ent_coef": (
            round(float(10 ** rng.uniform(-4, -1)), 6) if entropy == "fixed" else "auto_0.01"
        ),
        "log_std_init": float(rng.choice([-2.0, -1.5, -1.0, -0.5])),
        "learning_starts": int(rng.choice([0, 0, 1000, 2500])),
        "net_arch": [int(rng.choice([64, 128]))] * 2,
        "activation": str(rng.choice(["ReLU", "SiLU", "Tanh"])),
    }


def _draw_fine_tuner(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "n_trajectories": int(rng.choice([10, 20, 40])),
        "gradient_steps": int(rng.choice([5, 10, 20, 40])),
        "batch_size": int(rng.choice([256, 512, 1024])),
        "learning_rate": round(float(np.exp(rng.uniform(np.log(2e-4), np.log(1e-2)))), 6),
        "max_grad_norm": float(rng.choice([0.1, 1.0, 10.0])),
        "policy_kwargs": {"hidden": [int(rng.choice([64, 128]))] * 2},
    }


def draw_dpok(rng: np.random.Generator) -> dict[str, Any]:
    """One random setting of DPOK."""
    return {
        **_draw_fine_tuner(rng),
        "memory": int(rng.choice([1, 2, 4])),
        "clip_range": float(rng.choice([0.05, 0.1, 0.2, 0.4])),
        "kl_in_reward": bool(rng.choice([True, False])),
        "critic_steps": int(rng.choice([5, 10, 20])),
        "critic_learning_rate": float(rng.choice([1e-3, 3e-3])),
    }


def draw_ddpo(rng: np.random.Generator) -> dict[str, Any]:
    """One random setting of DDPO."""
    return {**_draw_fine_tuner(rng), "clip_range": float(rng.choice([0.05, 0.1, 0.2, 0.4]))}


def draw_adjoint_matching(rng: np.random.Generator) -> dict[str, Any]:
    """One random setting of adjoint matching."""
    return {**_draw_fine_tuner(rng), "max_target": float(rng.choice([3.0, 10.0, 30.0]))}


DRAW: dict[str, Any] = {
    "ppo": draw_ppo,
    "sac": draw_sac,
    "dpok": draw_dpok,
    "ddpo": draw_ddpo,
    "adjoint-matching": draw_adjoint_matching,
}


class Yardstick(NamedTuple):
    """What a problem's objectives are measured with."""

    problem: Problem
    uncontrolled: float
    bound: float
    ess: float
    rollouts: int
    action_bound: float = 1.0

    @classmethod
    def of(
        cls, env: str, paths: int, rollouts: int, out: Path, action_bound: float = 1.0
    ) -> Yardstick:
        """J_0 and the bound as the most paths have measured them for ``out``, or from ``paths``
        uncontrolled paths.
        """
        problem = make_problem(env)
        if known := [r for r in records(out) if r["env"] == env]:
            best = max(known, key=lambda r: r["ess"])
            return cls(
                problem, best["uncontrolled"], best["bound"], best["ess"], rollouts, action_bound
            )
        bound = certificate(problem, paths, torch.Generator().manual_seed(10_001))
        nothing = objective(problem, None, paths, torch.Generator().manual_seed(10_002))
        return cls(problem, nothing.objective.mean, bound.bound, bound.ess, rollouts, action_bound)

    def score(self, model: BaseAlgorithm) -> tuple[Estimate, float]:
        """Score with its standard error, and KL, of the model's deterministic policy."""
        fresh = torch.Generator().manual_seed(10_003)
        found = objective(self.problem, policy_of(model, self.problem), self.rollouts, fresh)
        scale = self.bound - self.uncontrolled
        mean = (found.objective.mean - self.uncontrolled) / scale
        return Estimate(mean, found.objective.stderr / scale), found.kl.mean


class Rungs(BaseCallback):
    """Scores the model once it has learnt from each number of episodes in ``episodes``; stops it
    when told to.
    """

    def __init__(self, yardstick: Yardstick, episodes: Sequence[int], keep: Any) -> None:
        super().__init__()
        self.yardstick, self.waiting, self.keep = yardstick, list(episodes), keep
        self.points: list[dict[str, Any]] = []
        self.going_on = True
        self.begin, self.begin_wall, self.spent, self.spent_wall = (
            time.process_time(),
            time.perf_counter(),
            0.0,
            0.0,
        )

    def _on_rollout_start(self) -> None:  # the model has just been trained on all that it has seen
        done = self.num_timesteps // self.yardstick.problem.horizon
        if not self.waiting or done < self.waiting[0]:
            return
        self.spent += time.process_time() - self.begin
        self.spent_wall += time.perf_counter() - self.begin_wall
        score, kl = self.yardstick.score(self.model)
        while self.waiting and done >= self.waiting[0]:
            rung = self.waiting.pop(0)
        self.points.append(
            {
                "rung": rung,
                "episodes": done,
                "env_steps": self.num_timesteps,
                "seconds": round(self.spent, 2),
                "wall_seconds": round(self.spent_wall, 2),
                "score": round(score.mean, 4),
                "stderr": round(score.stderr, 4),
                "kl": round(kl, 4),
            }
        )
        self.going_on = self.keep(self.points)
        self.begin, self.begin_wall = time.process_time(), time.perf_counter()

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return self.going_on and bool(self.waiting)


def train(
    yardstick: Yardstick, algorithm: Algorithm, settings: dict[str, Any], seed: int, callback: Rungs
) -> str:
    """Train one model under ``callback``; its points hold what came of it. Returns how it ended."""
    env = ProblemEnv(yardstick.problem, action_bound=yardstick.action_bound)
    model = MAKE[algorithm](env, seed=seed, device="cpu", **settings)
    try:
        model.learn(
            callback.waiting[-1] * yardstick.problem.horizon if algorithm in TUNERS else 10**9,
            callback,
        )
    except ValueError as error:  # SB3's distributions refuse NaN: the settings diverged
        return f"diverged: {str(error).splitlines()[0][:100]}"
    return "finished" if callback.going_on else "stopped"


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one JSON line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def records(path: Path) -> list[dict[str, Any]]:
    """All that is on record."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read(path: Path, env: str, algorithm: Algorithm, kind: str) -> list[dict[str, Any]]:
    """The records of one search."""
    return [
        r for r in records(path) if (r["env"], r["algorithm"], r["kind"]) == (env, algorithm, kind)
    ]


def merit(record: dict[str, Any], rungs: Sequence[int]) -> float:
    """Mean score from 1,000 episodes (or the last rung, if that is less) on; minus infinity if it
    never came to the end.
    """
    wanted = [rung for rung in rungs if rung >= min(1000, rungs[-1])]
    found = {point["rung"]: point["score"] for point in record["points"]}
    return sum(found.get(rung, -np.inf) for rung in wanted) / len(wanted)


def search(
    env: str,
    algorithm: Algorithm,
    cpu_minutes: float,
    seed: int = 0,
    rungs: tuple[int, ...] = (250, 500, 1000, 2000, 3000),
    paths: int = 50_000,
    rollouts: int = 2_000,
    fixed: str = "{}",
    action_bound: float = 1.0,
    out: Path = RESULTS,
) -> None:
    """Random search until ``cpu_minutes`` of training are spent.

    Args:
        env: registered id.
        algorithm: ppo, sac, dpok, ddpo or adjoint-matching.
        cpu_minutes: CPU minutes of training in all.
        seed: of the draws; trial i trains with seed ``1000 * seed + i``.
        rungs: episodes after which a trial is scored.
        paths: uncontrolled paths behind the bound and J_0, where ``out`` holds none for this
            environment.
        rollouts: fresh paths behind each score.
        fixed: JSON of settings that are not searched.
        action_bound: of the environment.
        out: JSON lines, appended to.
    """
    torch.set_num_threads(1)
    yardstick = Yardstick.of(env, paths, rollouts, out, action_bound)
    rng = np.random.default_rng([seed, list(MAKE).index(algorithm)])
    past = [r for r in read(out, env, algorithm, "search") if r["search_seed"] == seed]
    spent, trial = sum(r["points"][-1]["seconds"] for r in past if r["points"]), 0

    def keep(points: list[dict[str, Any]]) -> bool:
        point = points[-1]
        peers = [p["score"] for r in past for p in r["points"] if p["rung"] == point["rung"]]
        return len(peers) < 4 or point["score"] >= median(peers)

    with tqdm(total=cpu_minutes * 60, unit="s", file=sys.stdout) as bar:
        while spent < cpu_minutes * 60:
            settings = {**DRAW[algorithm](rng), **json.loads(fixed)}
            if trial == 0:
                settings = json.loads(fixed)  # the present defaults go first
            if trial >= len(past):  # what an earlier run of this search has done is not done again
                callback = Rungs(yardstick, rungs, keep)
                outcome = train(yardstick, algorithm, settings, 1000 * seed + trial, callback)
                record = {
                    "kind": "search",
                    "env": env,
                    "algorithm": algorithm,
                    "search_seed": seed,
                    "trial": trial,
                    "seed": 1000 * seed + trial,
                    "settings": {**tabled(algorithm, yardstick.problem), **settings},
                    "outcome": outcome,
                    "points": callback.points,
                    "uncontrolled": yardstick.uncontrolled,
                    "bound": yardstick.bound,
                    "ess": yardstick.ess,
                    "action_bound": action_bound,
                }
                append(out, record)
                past.append(record)
                spent += callback.points[-1]["seconds"] if callback.points else 1.0
                bar.update(min(spent, bar.total) - bar.n)
                bar.set_postfix(trial=trial, best=max(merit(r, rungs) for r in past))
            trial += 1


def confirm(
    env: str,
    algorithm: Algorithm,
    best: int = 3,
    seeds: tuple[int, ...] = (101, 102, 103),
    rungs: tuple[int, ...] = (250, 500, 1000, 2000, 3000),
    paths: int = 50_000,
    rollouts: int = 2_000,
    changes: str = "",
    out: Path = RESULTS,
) -> None:
    """Run the ``best`` trials of the search again on fresh seeds; given ``changes`` (JSON), the
    tabled settings so changed.
    """
    torch.set_num_threads(1)
    yardstick = Yardstick.of(env, paths, rollouts, out)
    table = tabled(algorithm, yardstick.problem)
    trials = sorted(read(out, env, algorithm, "search"), key=lambda r: -merit(r, rungs))[:best]
    candidates = [{**table, **json.loads(changes)}] if changes else [r["settings"] for r in trials]
    for settings in candidates:
        for seed in seeds:
            callback = Rungs(yardstick, rungs, lambda points: True)
            outcome = train(yardstick, algorithm, settings, seed, callback)
            record = {
                "kind": "confirm",
                "env": env,
                "algorithm": algorithm,
                "seed": seed,
                "settings": settings,
                "outcome": outcome,
                "points": callback.points,
                "uncontrolled": yardstick.uncontrolled,
                "bound": yardstick.bound,
                "ess": yardstick.ess,
            }
            append(out, record)
            print(
                merit(record, rungs),
                seed,
                settings,
                [(p["rung"], p["score"]) for p in callback.points],
                flush=True,
            )


def curve(
    env: str,
    algorithm: Algorithm,
    cpu_minutes: float,
    seed: int = 0,
    paths: int = 50_000,
    rollouts: int = 2_000,
    out: Path | None = None,
) -> None:
    """Train the tabled settings until ``cpu_minutes`` are spent, scored at every 1.25 times as many
    episodes; JSON lines.
    """
    torch.set_num_threads(1)
    yardstick = Yardstick.of(env, paths, rollouts, RESULTS)
    name = env.split("/")[-1].split("-")[0].lower()
    path = out or RESULTS.parent / f"{name}_long_{algorithm}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    rungs = np.unique((100 * 1.25 ** np.arange(60)).round().astype(int)).tolist()

    def keep(points: list[dict[str, Any]]) -> bool:
        scale = yardstick.bound - yardstick.uncontrolled
        append(
            path,
            {
                "env": env,
                "algorithm": algorithm,
                "seed": seed,
                "bound_minus_uncontrolled": scale,
                **points[-1],
            },
        )
        print(points[-1], flush=True)
        return points[-1]["seconds"] < cpu_minutes * 60

    train(yardstick, algorithm, {}, seed, Rungs(yardstick, rungs, keep))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"search": search, "confirm": confirm, "curve": curve})
