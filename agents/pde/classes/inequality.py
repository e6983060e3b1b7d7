"""Variational inequalities over two convex sets.

Find w with ``(A w - b)^T (u - w) >= 0`` for every u of the set. ``A`` need not be symmetric, only
positive definite (as the coercive form of Mou 2025 is).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def solve_ball(matrix: Tensor, vector: Tensor, radius: float) -> Tensor:
    """Over the ball ``|w| <= radius``.

    ``w = (A + s I)^-1 b`` with the least ``s >= 0`` that brings w into it. Shapes ``(M, M)`` and
    ``(M,)``. The norm falls in s, so bisection on ``log s`` finds it.
    """
    eye = torch.eye(len(vector), dtype=matrix.dtype, device=matrix.device)
    weights, failed = torch.linalg.solve_ex(matrix, vector)
    if not int(failed) and float(weights.norm()) <= radius:
        return weights
    unit = float(matrix.diagonal().abs().mean()) or 1.0
    # of log10(s / mean diagonal); the least is what a singular matrix needs
    low, high = -13.0, 30.0
    weights = torch.linalg.solve(matrix + unit * 10**low * eye, vector)
    if float(weights.norm()) <= radius:
        return weights
    for _ in range(60):
        middle = 0.5 * (low + high)
        inside = (
            float(torch.linalg.solve(matrix + unit * 10**middle * eye, vector).norm()) <= radius
        )
        low, high = (low, middle) if inside else (middle, high)
    return torch.linalg.solve(matrix + unit * 10**high * eye, vector)


def solve_positive(matrix: Tensor, vector: Tensor, iterations: int = 100) -> Tensor:
    """Over the cone ``w >= 0``.

    ``w >= 0``, ``s = A w - b >= 0`` and ``w . s = 0``, which say the same. A primal-dual
    interior-point method with Mehrotra's corrector (Wright 1997, "Primal-dual interior-point
    methods", chapters 8 and 10), which bad conditioning does not slow; a linear solve over the
    weights that it leaves positive makes it exact.

    Args:
        matrix: ``A``, ``(M, M)``, positive definite, not necessarily symmetric.
        vector: ``b``, ``(M,)``.
        iterations: at most; some twenty are enough.

    Raises:
        ValueError: no solution was found: ``matrix`` is not positive definite, to working
            precision.
    """
    scale = vector.abs().max()
    if not bool(scale > 0):
        return torch.zeros_like(vector)
    unit = matrix.diagonal().abs().mean()
    form, target = matrix / unit, vector / scale
    weights, slack = torch.ones_like(vector), torch.ones_like(vector)
    for _ in range(iterations):
        miss = form @ weights - target - slack
        mean = weights @ slack / len(vector)
        # small products are not enough: where both factors are alike, they are the roots of that
        apart = float(torch.minimum(weights, slack).max())
        if apart < 1e-12 and float(miss.abs().max()) < 1e-12 * (1 + float(weights.max())):
            break
        factor = torch.linalg.lu_factor_ex(torch.diag(slack) + weights[:, None] * form)
        step, change = _newton(factor, form, weights, slack, miss, -weights * slack)
        length = _longest(weights, slack, step, change)
        ahead = (weights + length * step) @ (slack + length * change) / len(vector)
        centring = mean * (ahead / mean) ** 3
        step, change = _newton(
            factor, form, weights, slack, miss, centring - weights * slack - step * change
        )
        length = 0.995 * _longest(weights, slack, step, change)
        weights, slack = weights + length * step, slack + length * change
    active = (weights > slack).nonzero()[:, 0]
    exact = torch.zeros_like(vector)
    exact[active] = torch.linalg.solve_ex(form[active][:, active], target[active]).result
    # weights if exact is NaN
    found = min((weights, exact.clamp(min=0)), key=lambda w: _violation(form, target, w))
    if not _violation(form, target, found) < 1e-6:
        raise ValueError(
            "matrix must be positive definite; no solution of the variational inequality was found"
        )
    return found * (scale / unit)


def _newton(
    factor: Any, form: Tensor, weights: Tensor, slack: Tensor, miss: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Newton's step of ``w s = ...`` and ``s = A w - b``."""
    step = torch.linalg.lu_solve(factor.LU, factor.pivots, (wanted - weights * miss)[:, None])[:, 0]
    return step, form @ step + miss


def _longest(weights: Tensor, slack: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The largest step length up to 1 that keeps both non-negative."""
    shrink = torch.cat([-step / weights, -change / slack])
    return 1 / shrink.max().clamp(min=1)


def _violation(form: Tensor, target: Tensor, weights: Tensor) -> float:
    """``max_i |min(w_i, s_i)|``: zero at solutions only; NaN where there is one."""
    return float(torch.minimum(weights, form @ weights - target).abs().max())
