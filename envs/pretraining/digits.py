"""Train the networks of ``girsanov/Digits-v0`` from scikit-learn's 1,797 real images; ``train.py
pretrain`` calls ``pretrain``.

For a given seed, number of threads, device and torch version the result is reproducible.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..diffusion.digit_networks import Classifier, Denoiser, Networks, save_networks
from .digit_images import HELD_OUT, load_images
from .quality import measure

_LIBRARIES = ("torch", "scikit-learn", "numpy")


def draw_log_snr(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise levels to train on: mostly where digits take shape, else anywhere a schedule of 1,000
    steps goes.
    """
    level = torch.randn(n, device=device) * 2.5
    anywhere = torch.rand(n, device=device) * 22 - 12
    return torch.where(torch.rand(n, device=device) < 0.2, anywhere, level)


def denoising_loss(denoiser: Denoiser, images: Tensor, log_snr: Tensor) -> Tensor:
    """Squared error of the clean image in units of the Gaussian denoiser's: 1 is no better than
    Gaussian, at any noise.
    """
    at_row = log_snr[:, None, None, None]
    noisy = torch.sigmoid(at_row).sqrt() * images + torch.sigmoid(
        -at_row
    ).sqrt() * torch.randn_like(images)
    clean, std = denoiser.predict(noisy, log_snr)
    return ((clean - images).square().flatten(1).mean(1) / std.square().mean(1)).mean()


def train_denoiser(
    images: Tensor,
    *,
    iterations: int = 3000,
    batch: int = 128,
    learning_rate: float = 2e-3,
    average: float = 0.999,
    dropout: float = 0.0,
    progress: bool = True,
) -> Denoiser:
    """A denoiser with exponentially averaged weights; randomness comes from torch's global
    generator.
    """
    model = Denoiser(dropout=dropout).to(images.device)
    model.gaussian.fit(images)
    shadow = copy.deepcopy(model)
    weights, averaged = list(model.parameters()), list(shadow.parameters())
    optimizer = torch.optim.Adam(weights, learning_rate, betas=(0.9, 0.99))
    for i in _steps(iterations, "denoiser", progress):
        _anneal(optimizer, learning_rate, i, iterations)
        chosen = images[torch.randint(len(images), (batch,), device=images.device)]
        loss = denoising_loss(model, chosen, draw_log_snr(batch, images.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(average, (1 + i) / (10 + i))
            for old, new in zip(averaged, weights, strict=True):
                old.lerp_(new, 1 - keep)
    return shadow.eval().requires_grad_(False)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    iterations: int = 1500,
    batch: int = 128,
    learning_rate: float = 2e-3,
    noise: float = 0.4,
    smoothing: float = 0.01,
    progress: bool = True,
) -> Classifier:
    """A classifier whose log-probabilities stay moderate: images are noised and mixed in pairs,
    labels are smoothed.
    """
    model = Classifier().to(images.device)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-2)
    targets = F.one_hot(labels, 10).float() * (1 - smoothing) + smoothing / 10
    for i in _steps(iterations, "classifier", progress):
        _anneal(optimizer, learning_rate, i, iterations)
        one, two = torch.randint(len(images), (2, batch), device=images.device)
        share = torch.rand(batch, 1, device=images.device).pow(
            4
        )  # mostly near 0: one image, touched by another
        mixed = torch.lerp(images[one], images[two], share[:, :, None, None])
        mixed = mixed + noise * torch.rand(batch, 1, 1, 1, device=images.device) * torch.randn_like(
            mixed
        )
        loss = F.cross_entropy(model(mixed), torch.lerp(targets[one], targets[two], share))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def pretrain(
    path: str | Path,
    *,
    seed: int = 0,
    iterations: int = 3000,
    classifier_iterations: int = 1500,
    samples: int = 2000,
    device: str = "cpu",
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train both networks, measure them, and write ``path`` (safetensors) and, beside it, what made
    it (``.json``).

    Args:
        path: ends in ``.safetensors``.
        seed: of everything drawn.
        iterations: of the denoiser.
        classifier_iterations: of the classifier.
        samples: drawn to measure the quality; 0 leaves the measuring out.
        device: where to train.
        command: the command line to record.
        progress: show progress bars.

    Returns:
        What the JSON file holds.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors; got {str(path)!r}")
    if min(iterations, classifier_iterations) < 1 or (samples != 0 and samples < HELD_OUT):
        allowed = (
            "iterations and classifier_iterations must be at least 1, samples 0 or at least"
            f" {HELD_OUT}"
        )
        raise ValueError(f"{allowed}; got {iterations}, {classifier_iterations} and {samples}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"path must lie in a folder that can be written to; got {str(path)!r}")
    data = load_images()
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = train_classifier(
            data.train.to(device),
            data.train_labels.to(device),
            iterations=classifier_iterations,
            progress=progress,
        )
        denoiser = train_denoiser(data.train.to(device), iterations=iterations, progress=progress)
    seconds = time.perf_counter() - start
    networks = Networks(denoiser.cpu(), classifier.cpu())
    save_networks(path, networks)
    record = {
        "command": command,
        "seed": seed,
        "iterations": iterations,
        "classifier_iterations": classifier_iterations,
        "training_seconds": round(seconds, 1),
        "versions": (
            {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
        ),
        "hardware": {
            "machine": platform.machine(),
            "device": device,
            "threads": torch.get_num_threads(),
        },
        "architecture": {
            name: network.architecture for name, network in networks._asdict().items()
        },
        "parameters": {
            name: sum(p.numel() for p in network.parameters())
            for name, network in networks._asdict().items()
        },
        "data": {
            "source": "sklearn.datasets.load_digits",
            "train": len(data.train),
            "held_out": len(data.held_out),
        },
        "quality": measure(path, data, samples=samples, progress=progress) if samples else None,
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _steps(n: int, name: str, progress: bool) -> Iterator[int]:
    return iter(tqdm(range(n), desc=name, disable=not progress, mininterval=1.0))


def _anneal(optimizer: torch.optim.Optimizer, rate: float, i: int, n: int) -> None:
    """Linear warm-up over 200 steps, then a half cosine down to a hundredth."""
    factor = min(1.0, (i + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / n)))
    for group in optimizer.param_groups:
        group["lr"] = rate * factor
