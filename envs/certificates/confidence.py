"""How sure intervals and limits are."""

from __future__ import annotations

import math

import torch

#: The probability of every interval and limit here.
CONFIDENCE = 0.95


def quantile(confidence: float) -> float:
    """Half the width, in standard errors, of a normal interval of that probability."""
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
