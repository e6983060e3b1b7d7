"""Do PI-FT, DPOK, DDPO and PDE's guidance raise every kind of image reward, on LoRA adapters of two
tiny pipelines?

    python benchmarks/image_rewards.py [--models latent-digits random] [--price 0.01] [--seeds 0 1
        2]
    python benchmarks/image_rewards.py report

Pipelines: the text-to-image model of painted digits that comes with the package, and one of the
same architecture that was never trained (8x8 latents, 16x16 images). Rewards: mean brightness, JPEG
size in kB (a black box: PI-FT by fitted values), and ImageReward's architecture with random
weights. One nat costs ``price`` standard deviations of the reward over the pre-trained model's
images; 0.01 is the paper's beta, whose ImageReward has about unit deviation. Costs are the paper's
too: a round of every method is 10 trajectories, of which PI-FT takes one pathwise gradient; with
fitted values it takes 10 steps, as DPOK and DDPO do, of as many transitions as a trajectory has;
PDE uses uncontrolled samples only. Learning rates are those of ``stable_diffusion.py``, tuned there
for another reward; with fitted values it is DPOK's. ``pi-ft-score`` follows the score function
instead.

Evaluation: the deterministic policy on ``paths`` noises, the same for all; differences are paired.
Seconds are CPU seconds of one thread in training. Killed and started again, it makes what is
missing.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import resumable as bench
import torch
from pipelines import build_stable_diffusion
from stable_baselines3.common.base_class import BaseAlgorithm

from girsanov.agents import PDE, PIFT
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.envs.certificates import certificate_of
from girsanov.envs.diffusion.stable_diffusion import stable_diffusion
from girsanov.envs.problem import Problem, rollout
from girsanov.envs.rewards.image_reward import Architecture, ImageReward
from girsanov.envs.rewards.images import Brightness, Incompressibility
from girsanov.scoreboard.evaluation import FINAL_SEED, generator_on, policy_of

HERE = bench.RESULTS / "image_rewards"
PROMPT, STEPS, TRAJECTORIES = "a yellow three", 10, 10
ModelName = Literal["latent-digits", "random"]
RewardName = Literal["brightness", "jpeg", "image-reward"]

MODELS = {
    "latent-digits": "The painted digits that come with the package",
    "random": "A pipeline that was never trained",
}

_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PROMPT.split())
_SMALL = Architecture(
    image_size=32,
    patch_size=8,
    vision_width=48,
    vision_layers=3,
    vision_heads=3,
    text_width=32,
    text_layers=2,
    text_heads=2,
    vocabulary=len(_WORDS) + 2,
    positions=40,
)


def _image_reward() -> ImageReward:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageReward({word: i for i, word in enumerate(_WORDS)}, _SMALL)


REWARDS: dict[str, Callable[[], Any]] = {
    "brightness": Brightness,
    "jpeg": Incompressibility,
    "image-reward": _image_reward,
}


def _pi_ft(problem: Any, **kwargs: Any) -> BaseAlgorithm:
    black_box = not problem.reward.differentiable
    policy, rate = ("LoraValuePolicy", 1e-3) if black_box else ("LoraPolicy", 3e-3)
    return PIFT(policy, problem, rate, TRAJECTORIES, anneal=True, **kwargs)


def _score(problem: Any, **kwargs: Any) -> BaseAlgorithm:
    return PIFT("LoraScorePolicy", problem, 3e-3, TRAJECTORIES, anneal=True, **kwargs)


_ROUND = {"n_trajectories": TRAJECTORIES, "gradient_steps": 10, "batch_size": STEPS}
AGENTS: dict[str, Callable[..., BaseAlgorithm]] = {
    "pi-ft": _pi_ft,
    "pi-ft-score": _score,
    "dpok": lambda problem, **kw: DPOK("LoraPolicy", problem, 1e-3, **_ROUND, **kw),
    "ddpo": lambda problem, **kw: DDPO("LoraPolicy", problem, 1e-3, **_ROUND, **kw),
    "pde": lambda problem, **kw: PDE("CnnPolicy", problem, adaptive=False, **kw),
}


@dataclass(frozen=True)
class Cell:
    """One trained model.

    Args:
        model: ``latent-digits`` or ``random``.
        reward: a key of ``REWARDS``.
        agent: a key of ``AGENTS``.
        price: of a nat, in standard deviations of the reward.
        seed: of the agent.
        rounds: of ``TRAJECTORIES`` rewards each.
        paths: noises behind the evaluation.
    """

    model: str
    reward: str
    agent: str
    price: float
    seed: int
    rounds: int
    paths: int

    @property
    def name(self) -> str:
        """Unlike any other cell's."""
        what = f"{self.model}-{self.reward}-{self.agent}"
        return f"{what}-price{self.price:g}-{self.rounds}-seed{self.seed}"


def make(model: str | Path, reward: str, price: float, paths: int = 256) -> tuple[Problem, float]:
    """The problem whose temperature is ``price`` standard deviations of the reward, and that
    deviation.
    """
    settings: dict[str, Any] = {"model": model, "prompts": PROMPT, "steps": STEPS}
    settings |= {"guidance_scale": 1.0, "batch_size": paths}

    def at(temperature: float) -> Problem:
        return stable_diffusion(reward=REWARDS[reward](), temperature=temperature, **settings)

    problem = at(1.0)
    with torch.no_grad():
        spread = float(rollout(problem, None, paths, generator_on(problem, 1)).reward.std())
    return at(price * spread), spread


def execute(cell: Cell, untrained: Path) -> bench.Line:
    """Train and measure, beside the pre-trained model on the same noises."""
    torch.set_num_threads(1)
    model_of = untrained if cell.model == "random" else cell.model
    problem, spread = make(model_of, cell.reward, cell.price)
    model: Any = AGENTS[cell.agent](problem, seed=cell.seed, device="cpu")
    start = time.process_time()
    model.learn(cell.rounds * TRAJECTORIES * STEPS)
    seconds = time.process_time() - start
    with torch.no_grad():
        before, after = (
            rollout(problem, policy, cell.paths, generator_on(problem, FINAL_SEED))
            for policy in (None, policy_of(model, problem))
        )
    return {
        "deviation": spread,
        "before": _rounded(before.reward / spread),
        "reward": _rounded(after.reward / spread),
        "kl": _rounded(after.kl),
        "bound": certificate_of(before.reward / spread, cell.price).bound,
        "reward_queries": model.reward_queries,
        "cpu_seconds": round(seconds, 1),
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]


def run(
    models: tuple[ModelName, ...] = ("latent-digits", "random"),
    rewards: tuple[RewardName, ...] = ("brightness", "jpeg", "image-reward"),
    agents: tuple[str, ...] = ("pi-ft", "dpok", "ddpo", "pde"),
    price: float = 0.01,
    seeds: tuple[int, ...] = (0, 1, 2),
    rounds: int = 30,
    paths: int = 256,
    out: Path = HERE,
) -> None:
    """Make every cell that is not finished, then the report.

    Args:
        models: latent-digits, random.
        rewards: brightness, jpeg, image-reward.
        agents: pi-ft, dpok, ddpo, pde; pi-ft-score.
        price: of a nat, in standard deviations of the reward.
        seeds: of the agents; the untrained pipeline is one and the same.
        rounds: of 10 trajectories each, for every agent.
        paths: noises behind each evaluation.
        out: folder of everything.
    """
    unknown = sorted(set(agents) - set(AGENTS))
    if unknown:
        raise ValueError(f"agents must be of {sorted(AGENTS)}; got {unknown}")
    cells = [
        Cell(model, reward, agent, price, seed, rounds, paths)
        for seed in seeds
        for model in models
        for reward in rewards
        for agent in agents
    ]

    def words(line: bench.Line) -> str:
        gain, seconds = _pm(*paired([line], value, "before")), line["cpu_seconds"]
        return f"J {gain} deviations, {seconds:.0f} CPU s"

    with tempfile.TemporaryDirectory() as folder:
        untrained = build_stable_diffusion(Path(folder))
        bench.resume(cells, out, lambda cell: execute(cell, untrained), words)
    report(out)


# --- report


def value(line: bench.Line) -> np.ndarray:
    """J path by path, in standard deviations of the reward."""
    return np.array(line["reward"]) - line["job"]["price"] * np.array(line["kl"])


def paired(
    lines: Sequence[bench.Line], of: Any, against: str | Sequence[bench.Line]
) -> tuple[float, float]:
    """Mean over paths and seeds of ``of`` less a column or the same of other lines; the error
    counts paths and seeds.
    """
    column = isinstance(against, str)
    other = [np.array(x[against]) for x in lines] if column else [of(x) for x in against]
    gaps = np.array([of(line) for line in lines]) - np.array(other)
    seeds = gaps.mean(1).var(ddof=1) / len(gaps) if len(gaps) > 1 else 0.0
    mean = gaps.mean(0)
    return float(mean.mean()), float(math.sqrt(mean.var(ddof=1) / len(mean) + seeds))


def table(lines: Sequence[bench.Line]) -> str:
    """One row a reward and method: gains over the pre-trained model, and what is lost to PI-FT."""
    heads = "reward|method|seeds|rewards seen|gain of the reward|KL|gain of J|J above PI-FT's|CPU s"
    rows = []
    for reward in REWARDS:
        ours = {x["job"]["seed"]: x for x in bench.chosen(lines, reward=reward, agent="pi-ft")}
        for agent in AGENTS:
            group = bench.chosen(lines, reward=reward, agent=agent)
            if not group:
                continue
            both = [x for x in group if x["job"]["seed"] in ours and agent != "pi-ft"]
            rivals = [ours[x["job"]["seed"]] for x in both]
            gain = _pm(*paired(group, lambda x: np.array(x["reward"]), "before"))
            kl, seconds = (np.mean([np.mean(x[k]) for x in group]) for k in ("kl", "cpu_seconds"))
            cells = [reward, agent, str(len(group)), f"{group[0]['reward_queries']:,}", gain]
            cells += [f"{kl:.2f}", _pm(*paired(group, value, "before"))]
            cells += [_pm(*paired(both, value, rivals)) if both else "", f"{seconds:.0f}"]
            rows.append(cells)
    return bench.table(heads.split("|"), rows)


def report(out: Path = HERE) -> None:
    """Write ``report.md``: gains over the pre-trained model, and PI-FT against DPOK."""
    lines = list(bench.runs_of(out, some=True).values())
    text = [
        "# Every kind of image reward, on two tiny pipelines",
        f"LoRA adapters of rank 4; {STEPS} DDIM steps with eta = 1. Prices of a nat are in standard"
        " deviations of the reward.\nGains over the pre-trained model in those deviations, paired"
        " over noises, with standard errors over noises and seeds.\nHow:"
        " `benchmarks/image_rewards.py`.",
    ]
    for model, words in MODELS.items():
        here = [x["job"] for x in bench.chosen(lines, model=model)]
        for price, rounds in sorted({(job["price"], job["rounds"]) for job in here}):
            text.append(f"## {words}; a nat costs {price:g}; {rounds} rounds")
            text.append(table(bench.chosen(lines, model=model, price=price, rounds=rounds)))
    bench.write(out, [*text, bench.made_by(lines)])


def _pm(mean: float, error: float) -> str:
    return f"{mean:+.3f} +- {error:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("image_rewards.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
