"""Do PI-FT, DPOK, DDPO and PDE's guidance raise every kind of image reward, on LoRA adapters of two
tiny pipelines?

    python benchmarks/image_rewards.py --only latent-digits price0.01 --seeds 0 1 2
    python benchmarks/image_rewards.py report

What is measured, and how, is told in results/image_rewards/report.md.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import reports
import resumable as bench
import stable_diffusion
import torch
from learning import Curve
from pipelines import build_stable_diffusion
from stable_diffusion import TRAJECTORIES, made

from girsanov.agents import PIFT
from girsanov.envs.certificates import certificate_of
from girsanov.envs.diffusion import stable_diffusion as pipeline
from girsanov.envs.problem import Problem, rollout
from girsanov.envs.rewards.image_reward import Architecture, ImageReward
from girsanov.envs.rewards.images import Brightness, Incompressibility
from girsanov.scoreboard.evaluation import FINAL_SEED, generator_on

PROMPT, STEPS = "a yellow three", stable_diffusion.STEPS
MODELS = {
    "latent-digits": "The painted digits that come with the package",
    "random": "A pipeline that was never trained",
}
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PROMPT.split())
_VISION = {"vision_width": 48, "vision_layers": 3, "vision_heads": 3}
_TEXT = {"text_width": 32, "text_layers": 2, "text_heads": 2, "positions": 40}
_SMALL = Architecture(image_size=32, patch_size=8, vocabulary=len(_WORDS) + 2, **_VISION, **_TEXT)


def _image_reward() -> ImageReward:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageReward({word: i for i, word in enumerate(_WORDS)}, _SMALL)


REWARDS = {"brightness": Brightness, "jpeg": Incompressibility, "image-reward": _image_reward}
AGENTS = {
    **stable_diffusion.AGENTS["lora"],
    "pi-ft-score": (PIFT, "LoraScorePolicy", {"learning_rate": 3e-3, "anneal": True}),
}
#: PI-FT where the reward has no gradient.
FITTED = (PIFT, "LoraValuePolicy", {"learning_rate": 1e-3, "anneal": True})


@dataclass(frozen=True)
class Job(bench.Job):
    """One trained model."""

    form: ClassVar[str] = "{model}-{reward}-{agent}-price{price:g}-{rounds}-seed{seed}"
    model: str  # ``latent-digits`` or ``random``
    reward: str  # a key of ``REWARDS``
    agent: str  # a key of ``AGENTS``
    price: float  # of a nat, in standard deviations of the reward
    seed: int  # of the agent
    rounds: int = 30  # of ``TRAJECTORIES`` rewards each
    paths: int = 256  # noises behind the evaluation


def jobs(seeds: Sequence[int], quick: bool, done: Any) -> list[Job]:
    """The painted digits at three prices; the untrained pipeline, one and the same, at the first,
    with the first seed alone, and there PI-FT with more rounds where nothing helps its gradient.
    """
    if quick:
        return [Job(m, "jpeg", "pi-ft", 0.01, s, 1, 4) for s in seeds for m in MODELS]
    places = [("latent-digits", price, seed) for seed in seeds for price in (0.01, 0.1, 0.3)]
    places.insert(1, ("random", 0.01, seeds[0]))
    every = [
        Job(model, reward, agent, price, seed)
        for (model, price, seed), reward, agent in itertools.product(places, REWARDS, AGENTS)
        if agent != "pi-ft-score" or (reward == "jpeg" and price < 0.3 and seed in seeds[:2])
    ]
    return [*every, Job("random", "jpeg", "pi-ft", 0.01, seeds[0], 100)]


def make(model: str | Path, reward: str, price: float, paths: int = 256) -> tuple[Problem, float]:
    """The problem whose temperature is ``price`` standard deviations of the reward, and that
    deviation.
    """
    settings: dict[str, Any] = {"model": model, "prompts": PROMPT, "steps": STEPS}
    settings |= {"guidance_scale": 1.0, "batch_size": paths}

    def at(temperature: float) -> Problem:
        told = {**settings, "reward": REWARDS[reward](), "temperature": temperature}
        return pipeline.stable_diffusion(**told)

    problem = at(1.0)
    with torch.no_grad():
        spread = float(rollout(problem, None, paths, generator_on(problem, 1)).reward.std())
    return at(price * spread), spread


def execute(job: Job, at: bench.Place) -> bench.Line:
    """Train and measure, beside the pre-trained model on the same noises."""
    with contextlib.ExitStack() as stack:
        model: str | Path = job.model
        if model == "random":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model = build_stable_diffusion(Path(folder))
        problem, spread = make(model, job.reward, job.price)
    black_box = not problem.reward.differentiable  # type: ignore[attr-defined]
    recipe = FITTED if black_box and job.agent == "pi-ft" else AGENTS[job.agent]
    curve = Curve(made(recipe, problem, job.seed)).learn(job.rounds * TRAJECTORIES)
    with torch.no_grad():
        before, after = (
            rollout(problem, policy, job.paths, generator_on(problem, FINAL_SEED))
            for policy in (None, curve.policy)
        )
    return {
        "deviation": spread,
        "before": _rounded(before.reward / spread),
        "reward": _rounded(after.reward / spread),
        "kl": _rounded(after.kl),
        "bound": certificate_of(before.reward / spread, job.price).bound,
        "reward_queries": curve.spent()["queries"],
        "cpu_seconds": round(curve.spent()["seconds"], 1),
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]


# --- report


def columns(lines: Sequence[bench.Line]) -> dict[str, np.ndarray]:
    """Path by path ``(seeds, paths)``, in standard deviations of the reward: what the pre-trained
    model and the trained one get, KL and J.
    """
    found = {name: np.array([x[name] for x in lines]) for name in ("before", "reward", "kl")}
    return {**found, "J": found["reward"] - lines[0]["job"]["price"] * found["kl"]}


def table(lines: Sequence[bench.Line]) -> str:
    """One row a reward and method: gains over the pre-trained model, and what is lost to PI-FT."""
    heads = "reward|method|seeds|rewards seen|gain of the reward|KL|gain of J|J above PI-FT's|CPU s"
    rows = []
    order = ("pi-ft", "pi-ft-score", "dpok", "ddpo", "pde")
    for reward, agent in itertools.product(REWARDS, order):
        group = reports.chosen(lines, reward=reward, agent=agent)
        if not group:
            continue
        ours = {x["job"]["seed"]: x for x in reports.chosen(lines, reward=reward, agent="pi-ft")}
        both = [x for x in group if x["job"]["seed"] in ours and agent != "pi-ft"]
        found = columns(group)
        gain, of_j = (reports.paired(found[name], found["before"]) for name in ("reward", "J"))
        cells = [
            reward,
            agent,
            str(len(group)),
            f"{group[0]['reward_queries']:,}",
            reports.pm(*gain),
        ]
        cells += [f"{found['kl'].mean():.2f}", reports.pm(*of_j), ""]
        if both:
            rivals = [ours[x["job"]["seed"]] for x in both]
            cells[-1] = reports.pm(*reports.paired(columns(both)["J"], columns(rivals)["J"]))
        rows.append([*cells, f"{np.mean([x['cpu_seconds'] for x in group]):.0f}"])
    return reports.table(heads, rows)


def told(lines: list[bench.Line], out: Path) -> dict[str, str]:
    """Gains over the pre-trained model, and PI-FT against DPOK."""
    text = []
    for model, words in MODELS.items():
        here = [x["job"] for x in reports.chosen(lines, model=model)]
        for price, rounds in sorted({(job["price"], job["rounds"]) for job in here}):
            text.append(f"## {words}; a nat costs {price:g}; {rounds} rounds")
            text.append(table(reports.chosen(lines, model=model, price=price, rounds=rounds)))
    return {"gains": "\n\n".join(text), "made": reports.made_by(lines)}


def words(line: bench.Line) -> str:
    """What one model gained."""
    found = columns([line])
    gain = reports.pm(*reports.paired(found["J"], found["before"]))
    return f"J {gain} deviations, {line['cpu_seconds']:.0f} CPU s"


main = bench.Benchmark(__doc__, "image_rewards", jobs, execute, words, told, (0, 1, 2))

if __name__ == "__main__":
    sys.exit(main())
