"""The variational inequality of Mou (2025) over a convex set of functions f, in closed form.

With increments ``f(t, X_t) - exp(int r / beta) f(t', X_t')`` between the random times of a path in
place of ``-(d_t + L + r / beta) f dt``, both sides are sums over the paths, for every f and g,

    B_n(f, g) = 1/n sum_paths [ sum_visits g(t, X_t) (f(t, X_t) - exp(r) f(t', X_t'))
                                + g_T(X_T) f_T(X_T) ],
    l_n(g)    = 1/n sum_paths g_T(X_T) exp(y / beta),

and the estimate is the f of the set with ``B_n(f, g - f) >= l_n(g - f)`` for all g in it. Where f
is linear in its weights that is an inequality ``(A w - b)^T (u - w) >= 0``. No observation is
weighted, no target is cut off, and no step of Newton's is taken.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..classes.length_scale import RadialValue
from ..replay import Replay

#: Share of the mean diagonal that is added to A where the paths are fewer than the weights.
RIDGE = 1e-6


class Inequality(NamedTuple):
    """Sums over the paths, in float64, of functions in units of their level."""

    matrix: Tensor  # (M, M): B_n
    gram: Tensor  # (M, M): sum of phi phi^T
    vector: Tensor  # (M,): l_n

    def plus(self, other: Inequality) -> Inequality:
        """Of both sets of paths."""
        return Inequality(*(a + b for a, b in zip(self, other, strict=True)))


@torch.no_grad()
def observed(value: RadialValue, data: Replay) -> Inequality:
    """What uncontrolled paths, seen at random times, say of the class of ``value``.

    Args:
        value: placed; ``exp(offset) (w . phi + floor)``, its offset the same at every step.
        data: paths; what precedes their end is used of those not seen there, too.
    """
    size = value.weights.shape[1]
    matrix, gram = value.weights.new_zeros(2, size, size)
    vector = value.weights.new_zeros(size)
    before = data.log_reward.double()
    phi = [value.raw(data.steps[:, i], data.inputs[:, i]) for i in range(data.steps.shape[1])]
    for i, (here, later) in enumerate(zip(phi, phi[1:], strict=False)):
        growth = (before[:, i + 1] - before[:, i]).exp()
        matrix += here.T @ (here - growth[:, None] * later)
        gram += here.T @ here
        vector += here.T @ (growth - 1) * value.floor
    end = phi[-1][data.seen]
    matrix += end.T @ end
    gram += end.T @ end
    paid = (data.log_terminal[data.seen].double() - value.offset[-1]).exp()
    vector += end.T @ (paid - value.floor)
    return Inequality(matrix, gram, vector)


@torch.no_grad()
def solve(value: RadialValue, found: Inequality) -> None:
    """Put ``value`` at the solution over ``w >= 0``."""
    matrix, gram, vector = found
    value.weights.copy_(value.solve(matrix, gram, vector, [RIDGE])[0][None])
