"""What trains the text-to-image models, step by step: warm-up, annealing, clipped gradients,
averaged weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm


def steps(n: int, name: str, progress: bool) -> Iterator[int]:
    """``range(n)`` with a bar."""
    return iter(tqdm(range(n), desc=name, disable=not progress, mininterval=1.0))


def anneal(optimizer: torch.optim.Optimizer, rate: float, i: int, n: int) -> None:
    """Linear warm-up over 200 steps, then a half cosine down to a hundredth."""
    factor = min(1.0, (i + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / n)))
    for group in optimizer.param_groups:
        group["lr"] = rate * factor


def decay(average: float, i: int) -> float:
    """How much of the averaged weights is kept in step i: little at first, ``average`` later."""
    return min(average, (1 + i) / (10 + i))


def descend(
    loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, shadow: nn.Module, keep: float
) -> None:
    """One step down a loss; ``shadow`` follows as the average."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for old, new in zip(shadow.parameters(), model.parameters(), strict=True):
            old.lerp_(new, 1 - keep)
