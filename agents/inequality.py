"""Variational inequalities over two convex sets: find w with ``(A w - b)^T (u - w) >= 0`` for every u of the set.

``A`` need not be symmetric, only positive definite (as the coercive form of Mou 2025 is).
"""

from __future__ import annotations

import torch
from torch import Tensor


def solve_ball(matrix: Tensor, vector: Tensor, radius: float) -> Tensor:
    """Over the ball ``|w| <= radius``: ``w = (A + s I)^-1 b`` with the least ``s >= 0`` that brings w into it.

    Shapes ``(M, M)`` and ``(M,)``. The norm falls in s, so bisection on ``log s`` finds it.
    """
    eye = torch.eye(len(vector), dtype=matrix.dtype, device=matrix.device)
    weights, failed = torch.linalg.solve_ex(matrix, vector)
    if not int(failed) and float(weights.norm()) <= radius:
        return weights
    unit = float(matrix.diagonal().abs().mean()) or 1.0
    low, high = -13.0, 30.0  # of log10(s / mean diagonal); the least is what a singular matrix needs
    weights = torch.linalg.solve(matrix + unit * 10**low * eye, vector)
    if float(weights.norm()) <= radius:
        return weights
    for _ in range(60):
        middle = 0.5 * (low + high)
        inside = float(torch.linalg.solve(matrix + unit * 10**middle * eye, vector).norm()) <= radius
        low, high = (low, middle) if inside else (middle, high)
    return torch.linalg.solve(matrix + unit * 10**high * eye, vector)


def solve_positive(matrix: Tensor, vector: Tensor, max_pivots: int = 200) -> Tensor:
    """The variational inequality over the cone ``w >= 0``: ``(A w - b)^T (u - w) >= 0`` for all ``u >= 0``.

    Block principal pivoting (Portugal, Judice and Vicente 1994) with a single-pivot fallback, exact for positive
    definite (not necessarily symmetric) ``A``. Shapes ``(M, M)`` and ``(M,)``.
    """
    n = len(vector)
    active = torch.zeros(n, dtype=torch.bool, device=vector.device)
    weights, slack = torch.zeros_like(vector), -vector
    fewest, patience = n + 1, 5
    for _ in range(max_pivots):
        wrong = torch.where(active, weights < 0, slack < 0)
        count = int(wrong.sum())
        if count == 0:
            return weights
        if count < fewest:
            fewest, patience = count, 5
        elif patience > 0:
            patience -= 1
        else:  # cycling: change only the last wrong index, which always ends
            wrong = torch.zeros_like(wrong).index_fill_(0, wrong.nonzero()[-1], True)
        active = active ^ wrong
        weights = torch.zeros_like(vector)
        index = active.nonzero()[:, 0]
        if len(index):
            weights[index] = torch.linalg.solve(matrix[index][:, index], vector[index])
        slack = matrix @ weights - vector
        tolerance = 1e-10 * float(vector.abs().max())
        slack = torch.where(active | (slack.abs() < tolerance), 0.0, slack)
        weights = torch.where(weights.abs() < 1e-14 * weights.abs().max(), 0.0, weights)
    return weights.clamp(min=0)
