"""What learners may see of a state beside the state itself: clean estimates and times,
standardised.

Where a problem offers ``terminal_estimate`` (a denoiser's prediction of the clean sample),
functions take that estimate in place of the state: the map is one-to-one, and the chain rule then
passes every gradient through the denoiser's Jacobian, which keeps it along the data (Tweedie's
formula).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .problem import Problem

#: Sines and cosines of ``pi t``, ``2 pi t``, ... among the features of a time.
FREQUENCIES = 4


def encode(problem: Problem, k: int | Tensor, x: Tensor) -> Tensor:
    """What functions of the state take as input, ``(n, p)``: the flattened terminal estimate if
    offered, else the state.
    """
    estimate = getattr(problem, "terminal_estimate", None)
    return (x if estimate is None else estimate(k, x)).flatten(1)


def time_features(t: Tensor, n: int) -> Tensor:
    """Smooth features of times in [0, 1], ``(n, 1 + 2 * 4)``: t and the first sines and cosines of
    ``pi t``.
    """
    angle = (
        math.pi
        * t.reshape(-1, 1)
        * torch.arange(1, FREQUENCIES + 1, device=t.device, dtype=t.dtype)
    )
    return torch.cat([t.reshape(-1, 1), angle.sin(), angle.cos()], 1).expand(n, -1)


class Standardise(nn.Module):
    """Shift and scale inputs by what was seen in the first data; constant inputs are not blown up.

    The scale is one number for inputs that share a unit (pixels), or one an input (a pendulum's
    angle and speed).
    """

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        self.centre: Tensor
        self.scale: Tensor

    def fit(self, inputs: Tensor, apart: bool = False) -> None:
        """Take centre and scale from ``inputs`` ``(n, p)``; scales below a third of the root mean
        square are raised to it.

        With ``apart`` only those below a thousandth are: a robot's angles are small beside its
        speeds, and count as much.
        """
        deviation = inputs.std(0)
        third = float(deviation.square().mean().sqrt()) / 3 + 1e-6
        self.centre.copy_(inputs.mean(0))
        raised = (
            torch.where(deviation > 3e-3 * third, deviation, third)
            if apart
            else deviation.clamp(min=third)
        )
        self.scale.copy_(raised)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(n, p) -> (n, p)``."""
        return (inputs - self.centre) / self.scale
