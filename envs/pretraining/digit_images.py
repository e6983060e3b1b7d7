"""The real data behind ``girsanov/Digits-v0``: scikit-learn's 1,797 handwritten digits, 8x8."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HELD_OUT = 360  # images of the 1,797 that neither network sees


class DigitImages(NamedTuple):
    """Real digits ``(n, 1, 8, 8)`` in [-1, 1] and their labels ``(n,)``: those to train on and
    those held out.
    """

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def load_images() -> DigitImages:
    """scikit-learn's ``load_digits``, split once and for all by a fixed permutation."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.as_tensor(raw.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    return DigitImages(images[kept], labels[kept], images[held], labels[held])
