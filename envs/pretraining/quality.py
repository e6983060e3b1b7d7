"""How good a checkpoint's samples are, by judges that had no part in making it, with real images as
the yardstick.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion.denoising import Schedule
from ..diffusion.digit_networks import load_networks
from ..diffusion.digits import Digits
from ..problem import rollout
from .digit_images import DigitImages


class TwoSample(NamedTuple):
    """Unbiased squared maximum mean discrepancy and the share of relabellings at least as large."""

    mmd2: float
    p_value: float


def frechet_distance(one: Tensor, two: Tensor) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of two samples ``(n, d)``, in squared units
    of the features.
    """
    one, two = one.double(), two.double()
    first, second = one.T.cov(), two.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float(
        (one.mean(0) - two.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross
    )


def two_sample_test(
    one: Tensor, two: Tensor, generator: torch.Generator, permutations: int = 200
) -> TwoSample:
    """Unbiased MMD^2 of ``(n, d)`` and ``(m, d)``, Gaussian kernel as wide as the median distance,
    with a permutation test.
    """
    both = torch.cat([one, two]).double()
    distance = torch.cdist(both, both).square()
    kernel = torch.exp(-distance / distance[distance > 0].median())
    kernel.fill_diagonal_(0)
    n, m = len(one), len(two)
    order = torch.stack(
        [
            torch.arange(n + m),
            *(torch.randperm(n + m, generator=generator) for _ in range(permutations)),
        ]
    )
    member = torch.zeros(permutations + 1, n + m, dtype=kernel.dtype).scatter_(1, order[:, :n], 1.0)
    pulled = member @ kernel
    within = (pulled * member).sum(1)
    across = (pulled * (1 - member)).sum(1)
    rest = kernel.sum() - within - 2 * across
    values = within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)
    return TwoSample(
        float(values[0]), float((1 + (values[1:] >= values[0]).sum()) / (permutations + 1))
    )


def nearest_distance(images: Tensor, among: Tensor) -> Tensor:
    """Distance of each image to the nearest of others, ``(n,)``."""
    return torch.cdist(images.flatten(1), among.flatten(1)).min(1).values


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error of the largest probability."""
    confidence, guess = probabilities.max(1)
    right = (guess == labels).double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [
        (right[which == b].mean() - confidence[which == b].double().mean()).abs()
        * (which == b).sum()
        for b in which.unique()
    ]
    return float(torch.stack(gaps).sum() / len(labels))


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return round(float((scores.argmax(1) == labels).double().mean()), 4)


class Judge:
    """Classifiers of other kinds, fitted to the real training images only: a forest and a network,
    the latter for features.

    A forest's votes split on images unlike any digit; a calibrated SVM stays sure of them.
    """

    def __init__(self, data: DigitImages, seed: int = 0) -> None:
        import warnings

        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.neural_network import MLPClassifier

        x, y = data.train.flatten(1).numpy(), data.train_labels.numpy()
        self._forest = ExtraTreesClassifier(300, random_state=seed).fit(x, y)
        self._network = MLPClassifier(
            (64,), max_iter=150, tol=0.0, n_iter_no_change=1000, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it stops at max_iter on purpose
            self._network.fit(x, y)

    def probabilities(self, images: Tensor) -> Tensor:
        """The forest's class probabilities ``(n, 10)``."""
        return torch.from_numpy(self._forest.predict_proba(images.flatten(1).numpy()))

    def features(self, images: Tensor) -> Tensor:
        """The hidden layer of the network ``(n, 64)``."""
        hidden = images.flatten(1).numpy() @ self._network.coefs_[0] + self._network.intercepts_[0]
        return torch.from_numpy(np.maximum(hidden, 0))


def _describe(
    images: Tensor, data: DigitImages, judge: Judge, generator: torch.Generator
) -> dict[str, Any]:
    chance = judge.probabilities(images)
    test = two_sample_test(images.flatten(1), data.held_out.flatten(1), generator)
    return {
        "judge_confidence": round(float(chance.max(1).values.mean()), 4),
        "class_shares": [
            round(float(s), 3) for s in torch.bincount(chance.argmax(1), minlength=10) / len(images)
        ],
        "frechet_features_to_train": round(
            frechet_distance(judge.features(images), judge.features(data.train)), 3
        ),
        "frechet_features_to_held_out": round(
            frechet_distance(judge.features(images), judge.features(data.held_out)), 3
        ),
        "frechet_pixels_to_train": round(
            frechet_distance(images.flatten(1), data.train.flatten(1)), 3
        ),
        "frechet_pixels_to_held_out": round(
            frechet_distance(images.flatten(1), data.held_out.flatten(1)), 3
        ),
        "mmd2_to_held_out": float(f"{test.mmd2:.3g}"),
        "mmd2_p_value": round(test.p_value, 3),
        "nearest_train_image": round(float(nearest_distance(images, data.train).mean()), 3),
    }


def draw(
    checkpoint: str | Path | None, schedule: Schedule, n: int, seed: int, batch: int = 500
) -> Tensor:
    """``n`` uncontrolled samples ``(n, 1, 8, 8)``."""
    problem = Digits(lambda x: x.new_zeros(len(x)), schedule=schedule, checkpoint=checkpoint)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [
            rollout(problem, None, min(batch, n - i), generator).states[-1]
            for i in range(0, n, batch)
        ]
    return torch.cat(parts)


def measure(
    checkpoint: str | Path | None,
    data: DigitImages,
    *,
    samples: int = 2000,
    seed: int = 0,
    steps: int = 50,
    progress: bool = True,
) -> dict[str, Any]:
    """Quality of a checkpoint for each schedule, beside the same figures of real held-out images
    and of noise.

    The real images are compared with the training set only; their distances to themselves are left
    out.
    """
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(data)
    classifier = load_networks(checkpoint).classifier
    log_chance = torch.log_softmax(classifier(data.held_out), 1)
    real = _describe(data.held_out, data, judge, generator)
    for name in ("frechet_features_to_held_out", "frechet_pixels_to_held_out"):
        del real[name]
    # two halves of real images stand in for "two samples of one distribution"
    real_test = two_sample_test(data.train.flatten(1), data.held_out.flatten(1), generator)
    real |= {
        "mmd2_to_held_out": float(f"{real_test.mmd2:.3g}"),
        "mmd2_p_value": round(real_test.p_value, 3),
    }
    found: dict[str, Any] = {
        "samples": samples,
        "steps": steps,
        "judge_accuracy_held_out": round(
            float(
                (judge.probabilities(data.held_out).argmax(1) == data.held_out_labels)
                .double()
                .mean()
            ),
            4,
        ),
        "classifier_accuracy_held_out": round(
            float((log_chance.argmax(1) == data.held_out_labels).double().mean()), 4
        ),
        "classifier_calibration_error": round(
            calibration_error(log_chance.exp(), data.held_out_labels), 4
        ),
        "classifier_mean_log_probability": round(
            float(log_chance.gather(1, data.held_out_labels[:, None]).mean()), 4
        ),
        "classifier_lowest_log_probability": round(float(log_chance.min()), 2),
        "held_out_loss": _held_out_loss(checkpoint, data.held_out, generator),
        "train_loss": _held_out_loss(checkpoint, data.train, generator),
        "real_held_out": real,
        "gaussian": _describe(_gaussian(data.train, samples, generator), data, judge, generator),
        "noise": _describe(
            torch.randn(samples, 1, 8, 8, generator=generator), data, judge, generator
        ),
    }
    choices = [
        (b, v) for b in ("linear", "squaredcos_cap_v2") for v in ("fixed_small", "fixed_large")
    ]
    for beta_schedule, variance_type in tqdm(choices, desc="quality", disable=not progress):
        schedule = Schedule.ddpm(steps, beta_schedule=beta_schedule, variance_type=variance_type)
        images = draw(checkpoint, schedule, samples, seed)
        found[f"{beta_schedule}/{variance_type}"] = _describe(images, data, judge, generator)
    return found


def _gaussian(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Samples with the mean and covariance of ``images``: what a Gaussian model would draw."""
    flat = images.flatten(1)
    values, vectors = torch.linalg.eigh(flat.T.cov())
    draws = torch.randn(n, flat.shape[1], generator=generator) * values.clamp(min=0).sqrt()
    return (flat.mean(0) + draws @ vectors.T).view(n, *images.shape[1:])


@torch.no_grad()
def _held_out_loss(
    checkpoint: str | Path | None, images: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Squared error of the clean image over that of the Gaussian denoiser, by log signal-to-noise
    ratio.
    """
    denoiser = load_networks(checkpoint).denoiser
    images = images[:360].repeat(4, 1, 1, 1)
    found = {}
    for level in (-6, -4, -2, 0, 2, 4, 6):
        signal = 1 / (1 + math.exp(-level))
        noisy = math.sqrt(signal) * images + math.sqrt(1 - signal) * torch.randn(
            images.shape, generator=generator
        )
        log_snr = torch.tensor([float(level)])
        clean = denoiser(noisy, log_snr).flatten(1)
        guess, _ = denoiser.gaussian(noisy.flatten(1), log_snr)
        truth = images.flatten(1)
        found[str(level)] = round(
            float((clean - truth).square().mean() / (guess - truth).square().mean()), 3
        )
    return found
