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
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from resumable import append, command_line
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_diffusion_report import (
    BETAS,
    PRETRAINED,
    PROMPTS,
    RESULTS,
    ROWS,
    SAMPLES,
    SWEPT,
    name_of,
    read,
    report,
)

from girsanov.agents import PDE, PIFT
from girsanov.baselines.ddpo import DDPO
from girsanov.baselines.dpok import DPOK
from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate_of
from girsanov.envs.diffusion.latent_digits import COLOURS, grey, ink_colour, parse
from girsanov.envs.pretraining.digit_images import load_images
from girsanov.envs.pretraining.quality import Judge
from girsanov.envs.problem import Policy, Problem, rollout
from girsanov.scoreboard.evaluation import FINAL_SEED, SAMPLE_SEED, generator_on, policy_of
from girsanov.scoreboard.records import check_writable, provenance

ENV = "girsanov/StableDiffusion-v0"
STEPS, TRAJECTORIES, TEMPERATURE = 10, 10, 0.1
SHOWN = 16  # pictures kept of each policy
PolicyName = Literal["lora", "mlp"]
Study = Literal["prompts", "betas", "brightness"]

_DPOK = {"n_trajectories": TRAJECTORIES, "gradient_steps": 10, "batch_size": STEPS}
#: Policy, agent: what makes it. Learning rates: see the report.
AGENTS: dict[str, dict[str, Callable[..., BaseAlgorithm]]] = {
    "lora": {
        "pi-ft": lambda problem, **kw: PIFT(
            "LoraPolicy", problem, 3e-3, TRAJECTORIES, anneal=True, **kw
        ),
        "dpok": lambda problem, **kw: DPOK("LoraPolicy", problem, 1e-3, **_DPOK, **kw),
        "ddpo": lambda problem, **kw: DDPO("LoraPolicy", problem, 1e-3, **_DPOK, **kw),
        "pde": lambda problem, **kw: PDE("CnnPolicy", problem, adaptive=False, **kw),
    },
    "mlp": {
        "pi-ft": lambda problem, **kw: PIFT("PathwisePolicy", problem, 1e-3, TRAJECTORIES, **kw),
        "dpok": lambda problem, **kw: DPOK("MlpPolicy", problem, 2e-4, **_DPOK, **kw),
        "ddpo": lambda problem, **kw: DDPO("MlpPolicy", problem, 2e-4, **_DPOK, **kw),
        "pde": lambda problem, **kw: PDE("MlpPolicy", problem, **kw),
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
        return name_of(asdict(self))

    def problem(self) -> Problem:
        """On the CPU."""
        reward = "brightness" if self.study == "brightness" else "digit-prompt"
        return make_problem(
            ENV,
            model="latent-digits",
            prompts=self.prompt,
            reward=reward,
            temperature=self.temperature,
            steps=STEPS,
            guidance_scale=1.0,
            batch_size=256,
        )


def cells(
    studies: Sequence[str], policy: str, seeds: Sequence[int], rounds: int, paths: int
) -> list[Cell]:
    """What the studies consist of; seeds count for ``prompts``, the others have the first alone."""
    first = seeds[0]
    before = [Cell("prompts", "-", p, PRETRAINED, TEMPERATURE, 0, 0, paths) for p in PROMPTS]
    main = [
        Cell("prompts", policy, p, a, TEMPERATURE, seed, rounds, paths)
        for seed in seeds
        for a in AGENTS[policy]
        for p in PROMPTS
    ]
    swept = [
        Cell("betas", policy, SWEPT, "pi-ft", b, first, rounds, paths)
        for b in BETAS
        if b != TEMPERATURE
    ]
    bright = [Cell("brightness", "-", SWEPT, PRETRAINED, 0.01, 0, 0, paths)]
    bright += [
        Cell("brightness", policy, SWEPT, a, 0.01, first, rounds, paths) for a in ("pi-ft", "dpok")
    ]
    # the claims first: PI-FT and DPOK on every prompt, the sweep, then the rest
    claimed = [c for c in main if c.agent in ("pi-ft", "dpok") and c.seed == first]
    order = [*before, *claimed, *swept, *bright, *(c for c in main if c not in claimed)]
    return [
        cell
        for cell in order
        if cell.study in studies and (cell.policy == "-" or cell.agent in AGENTS[policy])
    ]


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
        line = {
            "reward": float(paths.reward.mean()),
            "kl": float(paths.kl.mean()),
            "reward_queries": model.reward_queries,
        }
        lines.append(line)
        return paths

    model.collect = watched
    model.set_logger(Logger(None, [_Norms(lines)]))
    model.learn(rounds * TRAJECTORIES * STEPS)
    return lines


@torch.no_grad()
def evaluate(problem: Problem, policy: Policy | None, paths: int, stream: int) -> Any:
    """Fresh paths from noises that depend on ``stream`` alone."""
    return rollout(problem, policy, paths, generator_on(problem, stream))


def execute(cell: Cell, out: Path, command: str) -> dict[str, Any]:
    """Train, measure, keep pictures, and append the line."""
    torch.set_num_threads(1)
    problem, policy, lines, cpu = cell.problem(), None, [], 0.0
    if cell.agent != PRETRAINED:
        model = AGENTS[cell.policy][cell.agent](problem, seed=cell.seed, device="cpu")
        problem = model.problem
        start = time.process_time()
        lines = train(model, cell.rounds)
        cpu = time.process_time() - start
        policy = policy_of(model, problem)
    found = evaluate(problem, policy, cell.paths, FINAL_SEED)
    images = problem.images(found.states[-1])
    shown = problem.images(evaluate(problem, policy, SHOWN, SAMPLE_SEED).states[-1])
    line = {
        "cell": asdict(cell),
        "name": cell.name,
        "reward": [round(float(r), 4) for r in found.reward],
        "kl": [round(float(k), 4) for k in found.kl],
        "judged": judged(images, cell.prompt),
        "curve": lines,
        "cpu_seconds": round(cpu, 1),
        "reward_queries": lines[-1]["reward_queries"] if lines else 0,
        "command": command,
        **provenance(),
    }
    if cell.agent == PRETRAINED:
        bounds = {f"{b:g}": certificate_of(found.reward, b) for b in {*BETAS, cell.temperature}}
        line["bounds"] = {b: {**c._asdict(), "certified": c.certified} for b, c in bounds.items()}
    folder = out / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{cell.name}.npy", (255 * shown).round().byte().cpu().numpy())
    append(out / ROWS, line)
    return line


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
    out: Path = RESULTS,
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
    check_writable(out)
    done = {line["name"]: line["cell"] for line in read(out)}
    asked = cells(studies, policy, seeds, rounds, paths)
    for cell in asked:
        if done.get(cell.name, asdict(cell)) != asdict(cell):
            raise ValueError(
                f"{out / ROWS} holds {cell.name} with other settings ({done[cell.name]}); use"
                " another --out"
            )
    todo = [cell for cell in asked if cell.name not in done]
    for line in _executed(todo, out, workers, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])):
        reward, kl = np.mean(line["reward"]), np.mean(line["kl"])
        text = (
            f"reward {reward:.3f}, KL {kl:.2f}, judged {line['judged']['both']:.2f},"
            f" {line['cpu_seconds']:.0f} s"
        )
        print(f"{line['name']}: {text}", flush=True)
    report(out)


def _executed(
    todo: Sequence[Cell], out: Path, workers: int, command: str
) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from (execute(cell, out, command) for cell in todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(execute, cell, out, command) for cell in todo]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return command_line("stable_diffusion.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
