"""The empirical variational inequality of Mou (2025) on observed transitions, for networks and for positive linear classes.

Data are paths seen at steps k < k', with the reward between them, under any known control (zero at first). With the one-step
Girsanov weights ``omega_k = -a.W - |a|^2/2`` everything stays unbiased for the same linear equation

    f_k(x) = E[ exp( sum_{k <= j < k'} (r_j / beta + omega_j) ) f_{k'}(X_{k'}) | X_k = x ],     f_T = exp(y / beta).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .function_classes import NeuralValue, RadialValue


class Replay(NamedTuple):
    """All paths so far, path first. ``inputs`` are encoded states; logs are in units of the temperature."""

    inputs: Tensor  # (N, T + 1, p)
    log_weight: Tensor  # (N, T + 1): sum_{j < k} (r_j / beta + omega_j)
    log_reward: Tensor  # (N, T + 1): sum_{j < k} r_j / beta
    log_terminal: Tensor  # (N,): y / beta

    def extended(self, more: Replay) -> Replay:
        """This data and ``more``."""
        return Replay(*(torch.cat(pair) for pair in zip(self, more, strict=True)))

    @property
    def log_returns(self) -> Tensor:
        """``log( dP^0/dP^pi exp(return / beta) )`` of every path, ``(N,)``: its mean exponential estimates E f_0."""
        return self.log_weight[:, -1] + self.log_terminal

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of log f that bounded rewards give: the least and the largest reward to go that was seen."""
        to_go = (self.log_reward[:, -1] + self.log_terminal)[:, None] - self.log_reward
        return float(to_go.min()), float(to_go.max())


class Spans(NamedTuple):
    """A batch of observations ``(k, x, k', x')`` with what was seen in between."""

    k: Tensor  # (B,)
    x: Tensor  # (B, p) encoded
    later_k: Tensor
    later_x: Tensor
    first_x: Tensor  # the path's initial state
    log_weight: Tensor  # of the path up to k
    log_gain: Tensor  # sum over k <= j < k' of r_j / beta + omega_j; the terminal reward included when k' = T
    terminal: Tensor  # whether k' = T


def sample_spans(data: Replay, n: int, mean_span: float, generator: torch.Generator) -> Spans:
    """Draw ``n`` random times k on random paths and later times k'.

    The distance is geometric with the given mean: 1 gives one-step targets, infinity plain Monte-Carlo regression.
    """
    device = data.inputs.device
    paths, steps, _ = data.inputs.shape
    horizon = steps - 1
    row = torch.randint(paths, (n,), generator=generator, device=device)
    k = torch.randint(steps, (n,), generator=generator, device=device)
    uniform = torch.rand(n, generator=generator, device=device)
    if mean_span <= 1:
        span = torch.ones_like(k)
    else:
        span = (1 + torch.log(uniform) / torch.log(torch.tensor(1 - 1 / mean_span, device=device))).clamp(max=horizon).long()
    later = (k + span).clamp(max=horizon)
    terminal = later == horizon
    gain = data.log_weight[row, later] - data.log_weight[row, k] + terminal * data.log_terminal[row]
    return Spans(
        k, data.inputs[row, k], later, data.inputs[row, later], data.inputs[row, 0], data.log_weight[row, k], gain, terminal
    )


def relative_residual_loss(
    value: NeuralValue, target: NeuralValue, batch: Spans, bounds: tuple[float, float], max_weight: float
) -> Tensor:
    """Semi-gradient loss whose stationary points solve the variational equation, one number.

    The test function is ``g = (1 / f) d log f``, so that scales of many orders of magnitude are harmless, and every sample
    carries the estimated density ``dP*/dP`` of the optimal process up to k: errors of log f then count where the optimal
    policy goes, and their gradient's mean square there is the policy's regret. For uncontrolled data the two factors
    multiply to the Poisson (Kullback-Leibler) divergence between f and its target.
    """
    with torch.no_grad():
        later = target(batch.later_k, batch.later_x).clamp(*bounds)
        log_target = batch.log_gain + torch.where(batch.terminal, 0.0, later)
        start = target(torch.zeros_like(batch.k), batch.first_x)
        here = target(batch.k, batch.x).clamp(*bounds)
        weight = torch.exp(batch.log_weight + here - start).clamp(max=max_weight)
    gap = log_target - value.members(batch.k, batch.x)
    # exp(gap) - gap - 1, continued by its tangent: one heavy target cannot throw the fit
    capped = gap.clamp(max=1.5)
    divergence = capped.exp() * (1 + gap - capped) - gap - 1
    return (weight * divergence).mean()


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
        weights = torch.where(weights.abs() < 1e-14, 0.0, weights)
    return weights.clamp(min=0)


def assemble(value: RadialValue, data: Replay, ridge: float, max_weight: float, batch: int = 128) -> tuple[Tensor, Tensor]:
    """Matrix of B_n and right-hand side l_n in one-step trajectory form, ``(M, M)`` and ``(M,)``, in float64.

    Streams over paths: memory is O(M^2), whatever their number. Every sample is divided by the square of the present f (the
    residual is relative) and weighted by ``dP*/dP`` as in ``relative_residual_loss``.
    """
    size = len(value.weights)
    matrix = ridge * torch.eye(size, dtype=torch.float64, device=data.inputs.device)
    vector = torch.zeros(size, dtype=torch.float64, device=data.inputs.device)
    paths, steps, _ = data.inputs.shape
    for rows in torch.arange(paths, device=data.inputs.device).split(batch):
        inputs, log_weight = data.inputs[rows], data.log_weight[rows].T
        phi = torch.stack([value.features(k, inputs[:, k]) for k in range(steps)])  # (T + 1, b, M)
        log_f = torch.log(phi @ value.weights + value.floor)
        density = torch.exp(log_weight + log_f - log_f[:1]).clamp(max=max_weight)
        test = (density * torch.exp(-2 * log_f))[..., None] * phi / (paths * steps)
        ahead = torch.exp(log_weight[1:] - log_weight[:-1])[..., None] * phi[1:]
        matrix += torch.einsum("kbi,kbj->ij", test[:-1], phi[:-1] - ahead).double()
        matrix += torch.einsum("bi,bj->ij", test[-1], phi[-1]).double()
        vector += torch.exp(data.log_terminal[rows] - value.offset).double() @ test[-1].double()
    return matrix, vector
