"""Painted digits as an autoencoder sees them, and what is said of them: what the text-to-image
models are trained on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..diffusion.latent_digits import COLOURS, DIGITS, paint, prompt_of, withheld

_PAIRS = [(d, c) for d in range(len(DIGITS)) for c in range(len(COLOURS))]
#: What may be said: every prompt, and nothing, which is said where a prompt is dropped.
SENTENCES = [*(prompt_of(d, c) for d, c in _PAIRS), ""]
WITHHELD = [prompt_of(d, c) for d, c in _PAIRS if withheld(d, c)]


class Batch(NamedTuple):
    """Latents ``(n, channels, 4, 4)`` and the number in ``SENTENCES`` of what is said of each."""

    latents: Tensor
    said: Tensor


class PaintedLatents:
    """Draws digits in the colours that are not withheld.

    Args:
        images: grey digits ``(n, 1, 8, 8)`` in [-1, 1].
        labels: ``(n,)``.
        autoencoder: an AutoencoderKL of RGB ``(n, 3, 16, 16)`` in [-1, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, autoencoder: Any) -> None:
        self.labels = labels
        self.means, self.stds = _encoded(images, autoencoder)
        self.kept = torch.tensor(
            [[c for c in range(len(COLOURS)) if not withheld(d, c)] for d in range(len(DIGITS))]
        )

    def draw(self, n: int, prompt_dropout: float) -> Batch:
        """``n`` latents; of a share of them nothing is said."""
        row = torch.randint(len(self.labels), (n,))
        colour = self.kept[self.labels[row], torch.randint(self.kept.shape[1], (n,))]
        noise = torch.randn(n, *self.means.shape[2:])
        latents = self.means[colour, row] + self.stds[colour, row] * noise
        said = self.labels[row] * len(COLOURS) + colour
        return Batch(latents, torch.where(torch.rand(n) < prompt_dropout, len(SENTENCES) - 1, said))


@torch.no_grad()
def _encoded(images: Tensor, autoencoder: Any) -> tuple[Tensor, Tensor]:
    """Means and deviations of the latents of every image in every colour, ``(colours, n, channels,
    4, 4)`` each.
    """
    found = []
    for colour in range(len(COLOURS)):
        painted = paint(images, torch.full((len(images),), colour))
        parts = [autoencoder.encode(2 * part - 1).latent_dist for part in painted.split(256)]
        found.append((torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])))
    means, stds = zip(*found, strict=True)
    return torch.stack(means), torch.stack(stds)
