"""The truth on a grid: dynamic programming for chains ``x' = F_k(x, z)`` with one state and one
noise, in float64.

Two values obey a backward recursion from the terminal reward y (both start at ``V_T = y``):

    optimum       V_k(x) = r_k(x) + max_a { E_W V_{k+1}(F_k(x, a + W)) - beta a^2 / 2 },
    log moment    L_k(x) = r_k(x) + beta log E_W exp(L_{k+1}(F_k(x, W)) / beta)
    (Cole-Hopf).

Values and controls are kept at equidistant nodes and read by piecewise cubic Hermite interpolation
with slopes from fourth-order differences: an error of O(h^4), from the neighbouring nodes only, so
that a kink is felt only nearby. Outside of the grid they go on as straight lines. Two identities of
the normal law spare every derivative of F and V (Stein's, and Girsanov's in one step):

    d/da E g(a + W) = E[W g(a + W)],   d^2/da^2 E g(a + W) = E[(W^2 - 1) g(a + W)],   E g(W) = E[g(a
    + W) exp(-a W - a^2 / 2)].

The first two make Newton's method for the best control a; the third centres the sum of the log
moment where its integrand is flat. Several chains of one form are solved at once: ``rows`` is their
number, the first dimension of every tensor below.

The best control may jump in x, where to give up and to go for it are both local optima. There V has
a kink, and within a cell of it values and controls are approximate; expectations smooth it, so that
it hardly shows elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
#: ``F(k, x, z) -> x'``, elementwise; k an int, x ``(rows, nodes, 1)``, z ``(rows, nodes, noises)``.
Transition = Callable[[int, Tensor, Tensor], Tensor]
#: ``g(a, z) = V_{k+1}(F_k(x, a + z))`` for controls a ``(rows, nodes)`` and noises z: ``(rows,
#: nodes, noises)``.
Worth = Callable[[Tensor, Tensor], Tensor]


def normal_nodes(spacing: float, reach: float = 7.2) -> tuple[Tensor, Tensor]:
    """Equidistant nodes and weights that sum to 1 for expectations over the standard normal law
    (trapezoidal rule).

    The error for smooth functions is of order ``exp(-2 pi^2 / spacing^2)``: nothing at 0.4.
    Gauss-Hermite would need fewer nodes for polynomials, but for functions with kinks it is the
    distance of the nodes in the middle that counts, and theirs is wide: on ``DoubleWell`` 96 of
    them err 14 times as much as the 73 of spacing 0.2.
    """
    count = round(reach / spacing)
    z = spacing * torch.arange(-count, count + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * z.square())
    return z, weight / weight.sum()


class Interpolant:
    """Functions of one variable by their values at equidistant nodes: cubic Hermite inside,
    straight lines outside.

    Args:
        lower: the first node.
        step: distance of the nodes.
        values: ``(rows, nodes)``, nodes >= 5; one function a row.
    """

    def __init__(self, lower: float, step: float, values: Tensor) -> None:
        left, right, slope = values[:, :-1], values[:, 1:], _differences(values)
        a, b, rise = slope[:, :-1], slope[:, 1:], right - left
        inside = torch.stack([left, a, 3 * rise - 2 * a - b, a + b - 2 * rise], 2)
        line = torch.stack([values, slope, torch.zeros_like(values), torch.zeros_like(values)], 2)
        # one cell to the left of the first node, one between any two, one to the right of the last
        self.coefficients = torch.cat([line[:, :1], inside, line[:, -1:]], 1).flatten(0, 1)
        self.lower, self.step, self.nodes = lower, step, values.shape[1]

    def __call__(self, row: int | Tensor, x: Tensor) -> Tensor:
        """Function number ``row`` at ``x``; the two broadcast."""
        t = (x - self.lower) / self.step
        cell = t.floor().clamp(-1, self.nodes - 1)
        u = t - cell.clamp(min=0)
        c = self.coefficients[row * (self.nodes + 1) + cell.long() + 1]
        return c[..., 0] + u * (c[..., 1] + u * (c[..., 2] + u * c[..., 3]))

    def to(self, device: torch.device) -> Interpolant:
        """A copy on ``device``."""
        moved = object.__new__(Interpolant)
        vars(moved).update(vars(self), coefficients=self.coefficients.to(device))
        return moved


def _differences(values: Tensor) -> Tensor:
    """Derivatives at the nodes, per node, by fourth-order differences: ``(rows, nodes)``."""
    v = [values[:, i : values.shape[1] - 4 + i] for i in range(5)]
    first = values.new_tensor([[-25, 48, -36, 16, -3], [-3, -10, 18, -6, 1]])
    last = -first.flip(0, 1)
    return (
        torch.cat(
            [values[:, :5] @ first.T, v[0] - v[4] + 8 * (v[3] - v[1]), values[:, -5:] @ last.T], 1
        )
        / 12
    )


class GridSolution(NamedTuple):
    """Both values at steps ``0..T`` and the best control at ``0..T-1`` of ``rows`` chains, to be
    read by ``read``.
    """

    value: Interpolant
    log_moment: Interpolant
    control: Interpolant
    rows: int
    error: float = math.nan  # of what `refine` was told to measure; NaN if `solve` was called alone

    def read(self, table: Interpolant, k: int | Tensor, x: Tensor, row: int | Tensor = 0) -> Tensor:
        """``table`` at states ``x`` ``(n, d)``: ``k`` an int or ``(n,)``, ``row`` one chain for all
        or ``(d,)``; ``(n, d)``.
        """
        step = k if isinstance(k, int) else k[:, None]
        return table(step * self.rows + row, x.double()).to(x.dtype)

    def to(self, device: torch.device) -> GridSolution:
        """A copy on ``device``."""
        value, log_moment, control = (
            table.to(device) for table in (self.value, self.log_moment, self.control)
        )
        return self._replace(value=value, log_moment=log_moment, control=control)


@torch.no_grad()
def solve(
    transition: Transition,
    terminal_reward: Function,
    *,
    horizon: int,
    temperature: float,
    lower: float,
    upper: float,
    nodes: int,
    spacing: float = 0.2,
    running_reward: Callable[[int, Tensor], Tensor] | None = None,
    rows: int = 1,
    largest_control: int = 8,
) -> GridSolution:
    """Both recursions on one grid.

    Args:
        transition: see ``Transition``.
        terminal_reward: ``y(x)``, elementwise on ``(rows, nodes, ...)``.
        horizon: number of steps T.
        temperature: beta.
        lower: first node. The grid must be wide: where noise carries the chain over its ends the
            values are approximate.
        upper: last node.
        nodes: number of nodes.
        spacing: of the noises in an expectation, see ``normal_nodes``.
        running_reward: ``r_k(x)``, elementwise on ``(rows, nodes)``; zero if absent.
        rows: number of chains.
        largest_control: the best control is looked for from ``-largest_control`` to
            ``largest_control``.

    Raises:
        ValueError: fewer than 5 nodes, or no room between the ends.
    """
    if not (nodes >= 5 and lower < upper):
        raise ValueError(
            f"nodes must be at least 5 and lower below upper; got {nodes}, {lower} and {upper}"
        )
    step = (upper - lower) / (nodes - 1)
    x = torch.linspace(lower, upper, nodes, dtype=torch.float64).repeat(rows, 1)
    row = torch.arange(rows)[:, None, None]
    few, many = normal_nodes(0.8, 4.8), normal_nodes(spacing)
    z, weight = many
    optimum = log_moment = terminal_reward  # exact at the last step, interpolated before
    values, moments, controls = [terminal_reward(x)], [terminal_reward(x)], []
    for k in reversed(range(horizon)):

        def worth(a: Tensor, z: Tensor, k: int = k, optimum: Function = optimum) -> Tensor:
            return optimum(transition(k, x[..., None], a[..., None] + z))

        a = _scan(worth, x, temperature, largest_control, *few)
        a = _newton(worth, a, temperature, largest_control, *many)
        reward = 0.0 if running_reward is None else running_reward(k, x)
        states = transition(k, x[..., None], a[..., None] + z)
        exponent = log_moment(states) / temperature - a[..., None] * (z + 0.5 * a[..., None])
        values.append(reward + optimum(states) @ weight - 0.5 * temperature * a.square())
        moments.append(reward + temperature * torch.logsumexp(exponent + weight.log(), -1))
        controls.append(a)
        optimum = partial(Interpolant(lower, step, values[-1]), row)
        log_moment = partial(Interpolant(lower, step, moments[-1]), row)
    value, moment, control = (
        Interpolant(lower, step, torch.cat(t[::-1])) for t in (values, moments, controls)
    )
    return GridSolution(value, moment, control, rows)


def refine(
    *args: Any,
    measure: Callable[[GridSolution], Tensor],
    tolerance: float = 1e-6,
    nodes: int = 129,
    spacing: float = 0.4,
    most_nodes: int = 2049,
    **kwargs: Any,
) -> GridSolution:
    """``solve`` with both distances, of the nodes and of the noises, halved until ``measure`` of
    the solution stands still.

    ``error`` of the result is a third of the last change: what is left of an error that falls by 4
    (kinks); without kinks it falls by 16. Other arguments are ``solve``'s.

    Warns:
        RuntimeWarning: the error is still above ``tolerance`` with ``most_nodes``.
    """
    solution = solve(*args, nodes=nodes, spacing=spacing, **kwargs)
    while True:
        before, nodes, spacing = measure(solution), 2 * nodes - 1, spacing / 2
        solution = solve(*args, nodes=nodes, spacing=spacing, **kwargs)
        error = float((measure(solution) - before).abs().max()) / 3
        if error <= tolerance:
            break
        if 2 * nodes - 1 > most_nodes:
            text = (
                f"the grid of {nodes} nodes is too coarse: estimated error {error:.1e}, wanted"
                f" {tolerance:.1e}"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            break
    return solution._replace(error=error)


def _scan(
    worth: Worth, x: Tensor, temperature: float, largest: int, z: Tensor, weight: Tensor
) -> Tensor:
    """The best integer control at every x: smoothed by W, ``E g(a + W)`` has no feature much
    narrower than 1.
    """
    best, a = torch.full_like(x, -math.inf), torch.zeros_like(x)
    for candidate in range(-largest, largest + 1):
        tried = torch.full_like(x, candidate)
        found = worth(tried, z) @ weight - 0.5 * temperature * candidate**2
        better = found > best
        best, a = torch.where(better, found, best), torch.where(better, tried, a)
    return a


def _newton(
    worth: Worth, a: Tensor, temperature: float, largest: int, z: Tensor, weight: Tensor
) -> Tensor:
    """The maximiser of ``E g(a + W) - beta a^2 / 2`` near ``a``, by Newton's method with Stein's
    derivatives.
    """
    first, second = weight * z, weight * (z.square() - 1)
    for _ in range(12):
        g = worth(a, z)
        gradient = g @ first - temperature * a
        curvature = temperature - g @ second
        # where the objective is not concave: the step of policy iteration, a <- E[W g] / beta
        change = (
            gradient / torch.where(curvature > 0.1 * temperature, curvature, temperature)
        ).clamp(-0.5, 0.5)
        a = (a + change).clamp(-largest, largest)
        if change.abs().max() < 1e-5:  # the next would be its square
            break
    return a
