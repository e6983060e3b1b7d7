"""Least squares that come out the same each time."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(matrix: Tensor, target: Tensor) -> Tensor:
    """The ``w`` of least ``|matrix w - target|``, ``(M, m)``; of several the shortest, on a CPU.

    Equal arguments give equal bits on a CPU, so that a resumed run is the uninterrupted one. Of
    torch's own default driver there, ``gelsy``, that is not true: it begins from a permutation of
    the columns in memory that nobody has set.

    Args:
        matrix: ``(n, M)``, n >= M, of full rank on a GPU.
        target: ``(n, m)``.
    """
    driver = "gelsd" if matrix.is_cpu else "gels"
    return torch.linalg.lstsq(matrix, target, driver=driver).solution
