"""The paper's experiment (Han, Razaviyayn and Xu 2025, section 5) on a text-to-image model small
enough for a CPU.

    python benchmarks/stable_diffusion.py --only lora pi-ft --seeds 0
    python benchmarks/stable_diffusion.py report

Its studies, ``prompts``, ``betas`` and ``brightness``, each for LoRA adapters and for a network
beside the pipeline, are told in results/stable_diffusion/report.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import resumable as bench
import torch
from learning import Curve
from stable_diffusion_report import BETAS, PRETRAINED, PROMPTS, SWEPT, told

from girsanov.agents import PDE, PIFT
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate_of
from girsanov.envs.diffusion.latent_digits import COLOURS, grey, ink_colour, parse
from girsanov.envs.pretraining.digit_images import load_images
from girsanov.envs.pretraining.quality import Judge
from girsanov.envs.problem import Policy, Problem, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, SAMPLE_SEED, generator_on

STEPS, TRAJECTORIES, TEMPERATURE = 10, 10, 0.1
SHOWN = 16  # pictures kept of each policy

_ROUND = {"n_trajectories": TRAJECTORIES, "gradient_steps": 10, "batch_size": STEPS}
#: Policy, agent: its class, function class and settings. Learning rates: see the report.
AGENTS: dict[str, dict[str, tuple[Any, str, dict[str, Any]]]] = {
    "lora": {
        "pi-ft": (PIFT, "LoraPolicy", {"learning_rate": 3e-3, "anneal": True}),
        "dpok": (DPOK, "LoraPolicy", {"learning_rate": 1e-3, **_ROUND}),
        "ddpo": (DDPO, "LoraPolicy", {"learning_rate": 1e-3, **_ROUND}),
        "pde": (PDE, "CnnPolicy", {"adaptive": False}),
    },
    "mlp": {
        "pi-ft": (PIFT, "PathwisePolicy", {"learning_rate": 1e-3}),
        "dpok": (DPOK, "MlpPolicy", {"learning_rate": 2e-4, **_ROUND}),
        "ddpo": (DDPO, "MlpPolicy", {"learning_rate": 2e-4, **_ROUND}),
        "pde": (PDE, "MlpPolicy", {}),
    },
}


def made(recipe: tuple[Any, str, dict[str, Any]], problem: Problem, seed: int) -> Any:
    """An agent as told; a gradient of PI-FT takes as many trajectories as the others' round."""
    agent, policy, settings = recipe
    paths = {"n_trajectories": TRAJECTORIES} if agent is PIFT else {}
    return agent(policy, problem, seed=seed, device="cpu", **paths, **settings)


@dataclass(frozen=True)
class Job(bench.Job):
    """One trained model, or the pre-trained one."""

    form: ClassVar[str] = "{study}-{policy}-{prompt}-{agent}-beta{temperature:g}-seed{seed}"
    study: str  # ``prompts``, ``betas`` or ``brightness``
    policy: str  # ``lora`` or ``mlp``; of the pre-trained model, ``-``
    prompt: str  # what to draw
    agent: str  # a key of ``AGENTS[policy]``, or ``pre-trained``
    temperature: float  # beta
    seed: int  # of the agent
    rounds: int  # of ``TRAJECTORIES`` reward queries each
    paths: int  # noises behind the final evaluation

    @property
    def name(self) -> str:
        """Of its line."""
        return super().name.replace(" ", "_").replace("---", "-")

    def problem(self) -> Any:
        """On the CPU."""
        return make_problem(
            "girsanov/StableDiffusion-v0",
            model="latent-digits",
            prompts=self.prompt,
            reward="brightness" if self.study == "brightness" else "digit-prompt",
            temperature=self.temperature,
            steps=STEPS,
            guidance_scale=1.0,
            batch_size=256,
        )


def jobs(seeds: Sequence[int], quick: bool, done: Any) -> list[Job]:
    """All studies, the claims of PI-FT and DPOK before the rest."""
    rounds, paths = (2, 4) if quick else (30, 128)

    def trained(study: str, policy: str, prompt: str, agent: str, beta: float, seed: int) -> Job:
        return Job(study, policy, prompt, agent, beta, seed, rounds, paths)

    before = [Job("prompts", "-", p, PRETRAINED, TEMPERATURE, 0, 0, paths) for p in PROMPTS]
    every = []
    for policy, agents in AGENTS.items():
        swept = [trained("betas", policy, SWEPT, "pi-ft", b, seeds[0]) for b in BETAS]
        claimed = ("pi-ft", "dpok")
        bright = [trained("brightness", policy, SWEPT, a, 0.01, seeds[0]) for a in claimed]
        main = [
            trained("prompts", policy, prompt, agent, TEMPERATURE, seed)
            for seed in (seeds if policy == "lora" else seeds[:1])
            for agent in agents
            for prompt in PROMPTS
        ]
        main.sort(key=lambda job: job.seed != seeds[0] or job.agent not in claimed)
        every += [*main, *(job for job in swept if job.temperature != TEMPERATURE), *bright]
    return [*before, Job("brightness", "-", SWEPT, PRETRAINED, 0.01, 0, 0, paths), *every]


def train(model: Any, rounds: int) -> tuple[list[dict[str, float]], float]:
    """Let an agent learn; one line a batch of its own paths: their mean reward and KL, and the
    gradient's norm; and CPU seconds.
    """
    lines: list[dict[str, float]] = []
    collect = model.collect

    def watched(policy: Policy | None, n: int | None = None) -> Any:
        paths = collect(policy, n)
        line = {"reward": float(paths.reward.mean()), "kl": float(paths.kl.mean())}
        lines.append({**line, "reward_queries": model.reward_queries})
        return paths

    model.collect = watched
    curve = Curve(model).learn(rounds * TRAJECTORIES)
    for line, norm in zip(lines, curve.norms, strict=False):  # none of PDE's
        line["gradient_norm"] = norm
    return lines, round(curve.spent()["seconds"], 1)


@torch.no_grad()
def evaluate(problem: Problem, policy: Policy | None, paths: int, stream: int) -> Any:
    """Fresh paths from noises that depend on ``stream`` alone."""
    return rollout(problem, policy, paths, generator_on(problem, stream))


def execute(job: Job, at: bench.Place) -> bench.Line:
    """Train, measure, and keep pictures."""
    problem, policy, curve, cpu = job.problem(), None, [], 0.0
    if job.agent != PRETRAINED:
        model = made(AGENTS[job.policy][job.agent], problem, job.seed)
        curve, cpu = train(model, job.rounds)
        problem, policy = model.problem, model.policy.control
    found = evaluate(problem, policy, job.paths, FINAL_SEED)
    images = problem.images(found.states[-1])
    shown = problem.images(evaluate(problem, policy, SHOWN, SAMPLE_SEED).states[-1])
    bounds = {}
    if job.agent == PRETRAINED:
        every = {f"{b:g}": certificate_of(found.reward, b) for b in {*BETAS, job.temperature}}
        bounds = {b: {**c._asdict(), "certified": c.certified} for b, c in every.items()}
    return {
        "reward": [round(float(r), 4) for r in found.reward],
        "kl": [round(float(k), 4) for k in found.kl],
        "judged": judged(images, job.prompt),
        "curve": curve,
        "cpu_seconds": cpu,
        "reward_queries": curve[-1]["reward_queries"] if curve else 0,
        **({"bounds": bounds} if bounds else {}),
        "samples": bench.as_text((255 * shown).round().byte().cpu().numpy()),
    }


@functools.cache
def _judge() -> Judge:
    return Judge(load_images())


def judged(images: torch.Tensor, prompt: str) -> dict[str, float]:
    """Shares of images that a forest takes for the digit, whose ink is nearest to the colour, and
    both.
    """
    digit, colour = parse(prompt)
    chance = _judge().probabilities(grey(images))
    nearest = torch.cdist(ink_colour(images), torch.tensor(list(COLOURS.values()))).argmin(1)
    right = chance.argmax(1) == digit
    shares = {"digit": right, "colour": nearest == colour, "both": right & (nearest == colour)}
    return {name: float(share.double().mean()) for name, share in shares.items()}


def words(line: bench.Line) -> str:
    """What one model came to."""
    said = f"reward {np.mean(line['reward']):.3f}, KL {np.mean(line['kl']):.2f}"
    return f"{said}, judged {line['judged']['both']:.2f}, {line['cpu_seconds']:.0f} s"


main = bench.Benchmark(__doc__, "stable_diffusion", jobs, execute, words, told, (0, 1, 2))

if __name__ == "__main__":
    sys.exit(main())
