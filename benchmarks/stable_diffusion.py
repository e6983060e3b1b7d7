"""The paper's experiment (Han, Razaviyayn and Xu 2025, section 5) on a text-to-image model small
enough for a CPU.

    python benchmarks/stable_diffusion.py [--policy lora|mlp] [--seeds 0 1 2] [--studies prompts
        betas brightness]
    python benchmarks/stable_diffusion.py report

The model is the latent diffusion model of painted digits that comes with the package, without
guidance; the four prompts name a digit in a colour in which the model never saw it, and were chosen
before anything was trained. The reward is the log-probability that the image shows what the prompt
says. Layout and costs are the paper's, smaller:

* ``prompts``: the pre-trained model, DPOK, DDPO, PDE's value guidance and PI-FT on each prompt, one
  model a prompt. A round of PI-FT is one gradient from 10 trajectories; a round of DPOK samples 10
  trajectories and takes 10 gradient steps of as many transitions as a trajectory has, as in the
  paper. All see the same number of rewards.
* ``betas``: PI-FT on one prompt for several temperatures.
* ``brightness``: PI-FT and DPOK for another reward, the mean intensity.

``--policy lora`` trains adapters of rank 4 in the UNet's attention, as in the paper (PDE: a
convolutional value network); ``--policy mlp`` trains a small network from the clean estimate to the
control instead, the package's default.

Evaluation: the deterministic policy on ``paths`` noises that are the same for every agent;
differences are paired over them. Seconds are CPU seconds of one thread in training, evaluation left
out. Killed and started again, it makes what is missing.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import resumable as bench
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_diffusion_report import BETAS, HERE, PRETRAINED, PROMPTS, SWEPT, report

from girsanov.agents import PDE, PIFT
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate_of
from girsanov.envs.diffusion.latent_digits import COLOURS, grey, ink_colour, parse
from girsanov.envs.pretraining.digit_images import load_images
from girsanov.envs.pretraining.quality import Judge
from girsanov.envs.problem import Policy, Problem, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, SAMPLE_SEED, generator_on, policy_of

ENV = "girsanov/StableDiffusion-v0"
STEPS, TRAJECTORIES, TEMPERATURE = 10, 10, 0.1
SHOWN = 16  # pictures kept of each policy
PolicyName = Literal["lora", "mlp"]
Study = Literal["prompts", "betas", "brightness"]

_DPOK = {"n_trajectories": TRAJECTORIES, "gradient_steps": 10, "batch_size": STEPS}
#: Policy, agent: what makes it. Learning rates: see the report.
AGENTS: dict[str, dict[str, Callable[..., BaseAlgorithm]]] = {
    "lora": {
        "pi-ft": lambda env, **kw: PIFT("LoraPolicy", env, 3e-3, TRAJECTORIES, anneal=True, **kw),
        "dpok": lambda env, **kw: DPOK("LoraPolicy", env, 1e-3, **_DPOK, **kw),
        "ddpo": lambda env, **kw: DDPO("LoraPolicy", env, 1e-3, **_DPOK, **kw),
        "pde": lambda env, **kw: PDE("CnnPolicy", env, adaptive=False, **kw),
    },
    "mlp": {
        "pi-ft": lambda env, **kw: PIFT("PathwisePolicy", env, 1e-3, TRAJECTORIES, **kw),
        "dpok": lambda env, **kw: DPOK("MlpPolicy", env, 2e-4, **_DPOK, **kw),
        "ddpo": lambda env, **kw: DDPO("MlpPolicy", env, 2e-4, **_DPOK, **kw),
        "pde": lambda env, **kw: PDE("MlpPolicy", env, **kw),
    },
}


@dataclass(frozen=True)
class Cell:
    """One trained model, or the pre-trained one.

    Args:
        study: ``prompts``, ``betas`` or ``brightness``.
        policy: ``lora`` or ``mlp``; of the pre-trained model, ``-``.
        prompt: what to draw.
        agent: a key of ``AGENTS[policy]``, or ``pre-trained``.
        temperature: beta.
        seed: of the agent.
        rounds: of ``TRAJECTORIES`` reward queries each.
        paths: noises behind the final evaluation.
    """

    study: str
    policy: str
    prompt: str
    agent: str
    temperature: float
    seed: int
    rounds: int
    paths: int

    @property
    def name(self) -> str:
        """Unlike any other cell's."""
        what = [self.study, self.policy, self.prompt.replace(" ", "_"), self.agent]
        name = "-".join([*what, f"beta{self.temperature:g}", f"seed{self.seed}"])
        return name.replace("---", "-")

    def problem(self) -> Problem:
        """On the CPU."""
        return make_problem(
            ENV,
            model="latent-digits",
            prompts=self.prompt,
            reward="brightness" if self.study == "brightness" else "digit-prompt",
            temperature=self.temperature,
            steps=STEPS,
            guidance_scale=1.0,
            batch_size=256,
        )


def cells(
    studies: Sequence[str], policy: str, seeds: Sequence[int], rounds: int, paths: int
) -> list[Cell]:
    """What the studies consist of; seeds count for ``prompts``, the others have the first alone."""
    first, agents = seeds[0], AGENTS[policy]

    def trained(study: str, prompt: str, agent: str, beta: float, seed: int = first) -> Cell:
        return Cell(study, policy, prompt, agent, beta, seed, rounds, paths)

    before = [Cell("prompts", "-", p, PRETRAINED, TEMPERATURE, 0, 0, paths) for p in PROMPTS]
    main = [
        trained("prompts", prompt, agent, TEMPERATURE, seed)
        for seed in seeds
        for agent in agents
        for prompt in PROMPTS
    ]
    swept = [trained("betas", SWEPT, "pi-ft", b) for b in BETAS if b != TEMPERATURE]
    bright = [Cell("brightness", "-", SWEPT, PRETRAINED, 0.01, 0, 0, paths)]
    bright += [trained("brightness", SWEPT, agent, 0.01) for agent in ("pi-ft", "dpok")]
    # the claims first: PI-FT and DPOK on every prompt, the sweep, then the rest
    claimed = [c for c in main if c.agent in ("pi-ft", "dpok") and c.seed == first]
    order = [*before, *claimed, *swept, *bright, *(c for c in main if c not in claimed)]
    return [c for c in order if c.study in studies and (c.policy == "-" or c.agent in agents)]


# --- one cell


class _Norms(KVWriter):
    """Puts the gradient's norm of a round into the round's line."""

    def __init__(self, lines: list[dict[str, float]]) -> None:
        self.lines = lines

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0
    ) -> None:
        if "train/gradient_norm" in key_values:
            self.lines[-1]["gradient_norm"] = float(key_values["train/gradient_norm"])

    def close(self) -> None:
        pass


def train(model: Any, rounds: int) -> list[dict[str, float]]:
    """Let an agent learn; one line a batch of its own paths: their mean reward and KL, and the
    gradient's norm.
    """
    lines: list[dict[str, float]] = []
    collect = model.collect

    def watched(policy: Policy | None, n: int | None = None) -> Any:
        paths = collect(policy, n)
        line = {"reward": float(paths.reward.mean()), "kl": float(paths.kl.mean())}
        lines.append({**line, "reward_queries": model.reward_queries})
        return paths

    model.collect = watched
    model.set_logger(Logger(None, [_Norms(lines)]))
    model.learn(rounds * TRAJECTORIES * STEPS)
    return lines


@torch.no_grad()
def evaluate(problem: Problem, policy: Policy | None, paths: int, stream: int) -> Any:
    """Fresh paths from noises that depend on ``stream`` alone."""
    return rollout(problem, policy, paths, generator_on(problem, stream))


def execute(cell: Cell) -> bench.Line:
    """Train, measure, and keep pictures."""
    torch.set_num_threads(1)
    problem, policy, curve, cpu = cell.problem(), None, [], 0.0
    if cell.agent != PRETRAINED:
        model = AGENTS[cell.policy][cell.agent](problem, seed=cell.seed, device="cpu")
        problem = model.problem
        start = time.process_time()
        curve = train(model, cell.rounds)
        cpu = time.process_time() - start
        policy = policy_of(model, problem)
    found = evaluate(problem, policy, cell.paths, FINAL_SEED)
    images = problem.images(found.states[-1])
    shown = problem.images(evaluate(problem, policy, SHOWN, SAMPLE_SEED).states[-1])
    bounds = {}
    if cell.agent == PRETRAINED:
        every = {f"{b:g}": certificate_of(found.reward, b) for b in {*BETAS, cell.temperature}}
        bounds = {b: {**c._asdict(), "certified": c.certified} for b, c in every.items()}
    return {
        "reward": [round(float(r), 4) for r in found.reward],
        "kl": [round(float(k), 4) for k in found.kl],
        "judged": judged(images, cell.prompt),
        "curve": curve,
        "cpu_seconds": round(cpu, 1),
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


# --- all of them


def run(
    policy: PolicyName = "lora",
    studies: tuple[Study, ...] = ("prompts", "betas", "brightness"),
    seeds: tuple[int, ...] = (0, 1, 2),
    rounds: int = 30,
    paths: int = 128,
    workers: int = 2,
    out: Path = HERE,
) -> None:
    """Make the cells that are missing, then the report.

    Args:
        policy: what is trained: lora or mlp.
        studies: prompts, betas, brightness.
        seeds: of the agents; the last two studies have the first alone.
        rounds: of 10 trajectories each, for every agent.
        paths: noises behind each final evaluation.
        workers: processes at a time.
        out: folder of everything.
    """
    asked = cells(studies, policy, seeds, rounds, paths)
    bench.resume(asked, out, execute, _words, workers)
    report(out)


def _words(line: bench.Line) -> str:
    said = f"reward {np.mean(line['reward']):.3f}, KL {np.mean(line['kl']):.2f}"
    return f"{said}, judged {line['judged']['both']:.2f}, {line['cpu_seconds']:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("stable_diffusion.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
