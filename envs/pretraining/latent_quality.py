"""How well a folder of ``train.py pretrain-latent`` or ``pretrain-flow`` draws what its prompts
say, by judges that had no part in making it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion.latent_digits import (
    COLOURS,
    DIGITS,
    IMAGE_SIZE,
    PromptLogProbability,
    grey,
    ink_colour,
    paint,
    prompt_of,
    withheld,
)
from ..diffusion.loading import load_pipeline
from .digit_images import DigitImages
from .quality import Judge, frechet_distance, nearest_distance

_PAIRS = [(digit, colour) for digit in range(len(DIGITS)) for colour in range(len(COLOURS))]


def draw(
    pipeline: Any,
    prompts: list[str],
    seed: int,
    told: dict[str, Any],
    *,
    steps: int,
    guidance: float,
    batch: int = 250,
) -> Tensor:
    """An image for each prompt, ``(n, 3, 16, 16)`` in [0, 1], by plain diffusers, which is ``told``
    these arguments, too.
    """
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        pipeline(
            prompts[i : i + batch],
            height=IMAGE_SIZE,
            width=IMAGE_SIZE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
            **told,
        ).images
        for i in range(0, len(prompts), batch)
    ]
    return torch.cat(parts).float()


def describe(
    images: Tensor,
    pairs: list[tuple[int, int]],
    real: Tensor,
    train: Tensor,
    judge: Judge,
    reward: Any,
) -> dict[str, float]:
    """Quality of images of ``pairs`` (digit, colour), beside ``real`` grey digits and the nearest
    of those trained on.

    ``judge`` knows grey digits; colours are judged by the nearest ink.
    """
    digit, colour = torch.tensor(pairs).T
    shapes = grey(images)
    chance = judge.probabilities(shapes)
    nearest = torch.cdist(ink_colour(images), torch.tensor(list(COLOURS.values()))).argmin(1)
    right = chance.argmax(1) == digit
    figures = {
        "digit_right": right.double().mean(),
        "colour_right": (nearest == colour).double().mean(),
        "both_right": (right & (nearest == colour)).double().mean(),
        "judge_confidence": chance.max(1).values.mean(),
        "reward": reward(images, [prompt_of(d, c) for d, c in pairs]).double().mean(),
        "frechet_features": frechet_distance(judge.features(shapes), judge.features(real)),
        "frechet_pixels": frechet_distance(shapes.flatten(1), real.flatten(1)),
        "nearest_train_image": nearest_distance(shapes, train).mean(),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


@torch.no_grad()
def measure(
    folder: str | Path,
    data: DigitImages,
    told: dict[str, Any],
    *,
    each: int = 40,
    seed: int = 0,
    steps: int = 50,
    guidances: tuple[float, ...] = (1.0, 1.5, 3.0),
    progress: bool = True,
) -> dict[str, Any]:
    """Quality of ``each`` images a prompt, beside the same figures of real held-out digits and of
    their reconstructions; ``told`` goes to the pipeline.

    Figures by guidance, for the prompts that were trained on (``seen``) and those that were not
    (``withheld``). Frechet distances are to the held-out images; the held-out images' own are to
    the training images.
    """
    pipeline = load_pipeline(folder, torch.float32)
    judge, reward = Judge(data), PromptLogProbability()
    colours = torch.arange(len(data.held_out)) % len(COLOURS)
    real = paint(data.held_out, colours)
    pairs = list(zip(data.held_out_labels.tolist(), colours.tolist(), strict=True))
    again = (
        pipeline.vae.decode(pipeline.vae.encode(2 * real - 1).latent_dist.mean).sample / 2 + 0.5
    ).clamp(0, 1)
    found: dict[str, Any] = {
        "images_a_prompt": each,
        "steps": steps,
        "real_held_out": describe(real, pairs, data.train, data.train, judge, reward),
        "reconstructed_held_out": describe(again, pairs, data.train, data.train, judge, reward),
        "reconstruction_rms": round(float((again - real).square().mean().sqrt()), 4),
    }
    for guidance in tqdm(guidances, desc="quality", disable=not progress):
        for name in ("seen", "withheld"):
            asked = [
                pair
                for pair in _PAIRS
                if withheld(*pair) == (name == "withheld")
                for _ in range(each)
            ]
            images = draw(
                pipeline,
                [prompt_of(*pair) for pair in asked],
                seed,
                told,
                steps=steps,
                guidance=guidance,
            )
            found[f"guidance {guidance:g}, {name}"] = describe(
                images, asked, data.held_out, data.train, judge, reward
            )
    return found
