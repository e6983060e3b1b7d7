"""Algorithm 1 of Han, Razaviyayn and Xu (2025) on linear-quadratic chains: matrix algebra.

The V are quadratics, the a are affine, and every expectation has a closed form
(``iterate_quadratics``). ``riccati_limit`` is what the Euler-Maruyama chains of a linear-quadratic
diffusion tend to (their eq. 78-79).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ...envs.known_optimum.linear_quadratic import LinearQuadratic
from ...envs.problem import check_positive


def per_step(name: str, value: float | Sequence[float] | Tensor, horizon: int) -> list[float]:
    """``value`` as ``horizon`` positive numbers, one a step; a single number is repeated."""
    numbers = (
        [float(value)] * horizon if isinstance(value, (int, float)) else [float(v) for v in value]
    )
    if len(numbers) != horizon:
        raise ValueError(
            f"{name} must be one number or {horizon} of them, one a step; got {len(numbers)}"
        )
    for number in numbers:
        check_positive(name, number)
    return numbers


def counts(value: int | Sequence[int], horizon: int) -> list[int]:
    """``value`` as ``horizon`` numbers of inner iterations; a single number is repeated."""
    numbers = [value] * horizon if isinstance(value, int) else list(value)
    if len(numbers) != horizon or any(
        isinstance(m, bool) or not isinstance(m, int) or m < 0 for m in numbers
    ):
        raise ValueError(
            f"iterations must be an integer of at least 0, or {horizon} of them; got {value!r}"
        )
    return numbers


class Affine(NamedTuple):
    """The inner iterates of one step's control, for ``m = 0..m_k``.

    ``a^(m)(x) = gain[m] x + shift[m]``.
    """

    gain: Tensor  # (m_k + 1, m, d)
    shift: Tensor  # (m_k + 1, m)


class QuadraticIterates(NamedTuple):
    """What Algorithm 1 computes on a linear-quadratic chain.

    ``V_k(x) = -x^T matrix x / 2 + slope^T x + constant``.
    """

    matrix: Tensor  # (T + 1, d, d)
    slope: Tensor  # (T + 1, d)
    constant: Tensor  # (T + 1,)
    gain: Tensor  # of the last inner iterate, a_k(x) = gain x + shift, (T, m, d)
    shift: Tensor  # (T, m)
    inner: tuple[
        Affine, ...
    ]  # of each step all inner iterates, towards the best response to V_{k+1}
    contraction: Tensor  # lambda_k = |C_k^T P_{k+1} C_k| / beta_k, (T,)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The last iterate at states ``(n, d)``, ``(n, m)``."""
        gain = self.gain[k].to(x)
        return torch.einsum("nd,md->nm" if gain.dim() == 2 else "nd,nmd->nm", x, gain) + self.shift[
            k
        ].to(x)

    def value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``V_k`` at states ``(n, d)``, ``(n,)``."""
        matrix = self.matrix[k].to(x)
        curved = torch.einsum("nd,de->ne" if matrix.dim() == 2 else "nd,nde->ne", x, matrix)
        return ((self.slope[k].to(x) - 0.5 * curved) * x).sum(1) + self.constant[k].to(x)

    def to(self, device: torch.device) -> QuadraticIterates:
        """A copy whose control and values are on ``device``; the inner iterates stay."""
        return self._replace(
            **{name: getattr(self, name).to(device) for name in self._fields if name != "inner"}
        )


def iterate_quadratics(
    problem: LinearQuadratic,
    iterations: int | Sequence[int],
    temperatures: float | Sequence[float] | Tensor | None = None,
) -> QuadraticIterates:
    """Algorithm 1 on a linear-quadratic chain, in float64 on the CPU.

    Args:
        problem: the chain.
        iterations: inner iterations m_k, one number or one a step.
        temperatures: beta_k, one number or one a step; the problem's if absent.

    Raises:
        ValueError: wrong ``iterations`` or ``temperatures``, or these so low that iterates have
            overflowed.
    """
    T = problem.horizon
    betas = per_step(
        "temperatures", problem.temperature if temperatures is None else temperatures, T
    )
    inner_counts = counts(iterations, T)
    target = problem.target.double().cpu()
    P = problem.terminal_matrix.double().cpu()
    p = P @ target + problem.terminal_slope.double().cpu()
    c = -0.5 * target @ P @ target
    values, inner, contraction = [(P, p, c)], [], []
    chain = (
        problem.drift_matrix,
        problem.offset,
        problem.noise_matrix,
        problem.running_matrix,
        problem.running_slope,
    )
    for k in reversed(range(T)):
        A, b, C, R, q = (table[k].double().cpu() for table in chain)
        beta, M = betas[k], C.T @ P @ C
        gains, shifts = [A.new_zeros(C.shape[1], len(A))], [A.new_zeros(C.shape[1])]
        for _ in range(inner_counts[k]):
            # grad V_{k+1} is affine, so the noise averages out of (35)
            gains.append((-C.T @ P @ A - M @ gains[-1]) / beta)
            shifts.append((C.T @ (p - P @ b) - M @ shifts[-1]) / beta)
        inner.append(Affine(torch.stack(gains), torch.stack(shifts)))
        if not (torch.isfinite(M).all() and torch.isfinite(inner[-1].gain).all()):
            raise ValueError(
                "temperatures must be large enough for policy iteration to converge; it diverged"
                f" at step {k}"
            )
        contraction.append(torch.linalg.matrix_norm(M, 2) / beta)
        K, s = gains[-1], shifts[-1]
        closed, mean = A + C @ K, b + C @ s
        c = c + p @ mean - 0.5 * mean @ P @ mean - 0.5 * M.trace() - 0.5 * beta * s @ s
        p = q + closed.T @ (p - P @ mean) - beta * K.T @ s
        P = R + closed.T @ P @ closed + beta * K.T @ K
        P = 0.5 * (P + P.T)  # symmetric but for rounding
        values.append((P, p, c))
    matrix, slope, constant = (torch.stack(column[::-1]) for column in zip(*values, strict=True))
    inner, factors = inner[::-1], torch.stack(contraction[::-1])
    gain, shift = (
        torch.stack([iterates[-1] for iterates in column]) for column in zip(*inner, strict=True)
    )
    return QuadraticIterates(matrix, slope, constant, gain, shift, tuple(inner), factors)


class RiccatiLimit(NamedTuple):
    """The optimum at time 0 in continuous time.

    ``V(0, x) = -x^T matrix x / 2 + slope^T x + constant`` and ``u*(0, x) = gain x + shift``.
    """

    matrix: Tensor  # (d, d)
    slope: Tensor  # (d,)
    constant: Tensor  # ()
    gain: Tensor  # (m, d)
    shift: Tensor  # (m,)


def riccati_limit(
    *,
    drift_matrix: Tensor,
    control_matrix: Tensor,
    running_matrix: Tensor,
    terminal_matrix: Tensor,
    duration: float,
    temperature: float,
    offset: Tensor,
    running_slope: Tensor,
    terminal_slope: Tensor,
) -> RiccatiLimit:
    """The optimum at time 0 of ``dX = (A X + c) dt + G (u dt + dB)``, in float64.

    Arguments as ``ornstein_uhlenbeck``'s. Han et al., eq. (78)-(79), in the notation of a
    control-affine diffusion: ``u* = G^T grad V / beta`` and ``d_t V + (A x + c) . grad V + Tr(G G^T
    D^2 V) / 2 + |G^T grad V|^2 / (2 beta) + r = 0``. For quadratics,

        -dP/dt = A^T P + P A + R - P G G^T P / beta,    -dp/dt = (A - G G^T P / beta)^T p - P c + q,
        -dc/dt = c . p + |G^T p|^2 / (2 beta) - Tr(G G^T P) / 2.

    Raises:
        ValueError: the value is infinite before time 0 is reached.
    """
    A, G, R, Q, b, q, slope = (
        torch.as_tensor(t, dtype=torch.float64).numpy()
        for t in (
            drift_matrix,
            control_matrix,
            running_matrix,
            terminal_matrix,
            offset,
            running_slope,
            terminal_slope,
        )
    )
    d, push = len(A), G @ G.T

    def backwards(_: float, state: Any) -> Any:
        P, p = state[: d * d].reshape(d, d), state[d * d : -1]
        along = A - push @ P / temperature
        constant = b @ p + ((G.T @ p) ** 2).sum() / (2 * temperature) - 0.5 * (push * P).sum()
        return np.concatenate(
            [(A.T @ P + P @ along + R).ravel(), along.T @ p - P @ b + q, [constant]]
        )

    def explodes(_: float, state: Any) -> float:
        return 1e12 - float(np.abs(state).max())

    explodes.terminal = True  # type: ignore[attr-defined]
    start = np.concatenate([Q.ravel(), slope, [0.0]])
    span = (0.0, duration)
    solution = solve_ivp(
        backwards, span, start, method="DOP853", rtol=1e-12, atol=1e-13, events=explodes
    )
    if solution.status:
        raise ValueError(
            f"temperature must be large enough for a finite value; got {temperature!r}"
        )
    end = torch.as_tensor(solution.y[:, -1])
    P, p = end[: d * d].view(d, d), end[d * d : -1]
    pull = torch.as_tensor(G).T / temperature
    return RiccatiLimit(P, p, end[-1], -pull @ P, pull @ p)
