"""A linear class that starts from another class's log f.

Newton's step needs a start near the solution, and the density ratios that weigh its observations
are those of the present f. A class that is far behind has neither, however good the paths are.
"""

from __future__ import annotations

import torch

from ...networks import Value
from ..classes.linear import ExponentialValue
from ..replay import Replay

#: Visits at which the other's log f is asked.
_ROWS = 8192


@torch.no_grad()
def follow(value: Value, other: Value, data: Replay, generator: torch.Generator) -> None:
    """Give a linear class the log f nearest to another's, where ``data`` have been.

    Classes that are fitted step by step need no start, and networks go on from their own.
    """
    if not isinstance(value, ExponentialValue) or value.stepwise:
        return
    device = data.steps.device
    rows = torch.randperm(data.steps.numel(), generator=generator, device=device)[:_ROWS]
    k, x = data.steps.flatten()[rows], data.inputs.flatten(0, 1)[rows]
    value.follow(k, x, other(k, x).double())
