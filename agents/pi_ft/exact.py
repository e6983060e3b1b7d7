"""PI-FT in closed form (Algorithm 1 of Han, Razaviyayn and Xu 2025): nothing is sampled and nothing
is fitted.

Backwards from ``V_T = y``, with inner iterations from ``a^(0) = 0``,

    a_k^(m+1)(x) = (1 / beta_k) E_W[ J_z^T grad V_{k+1}(F_k(x, a_k^(m)(x) + W)) ],
    (35) V_k(x) = r_k(x) + E_W[ V_{k+1}(F_k(x, a_k(x) + W)) ] - beta_k |a_k(x)|^2 / 2,    a_k =
    a_k^(m_k).           (36)

On linear-quadratic chains the V are quadratics, the a are affine and every step is matrix algebra
(``iterate_quadratics``). With one state and one noise the functions live on a grid
(``iterate_grid``). Both return every inner iterate, so that the contraction can be measured: with
V_{k+1} fixed, ``|a^(m+1) - a^(m)| <= lambda_k |a^(m) - a^(m-1)|``, lambda_k the Lipschitz constant
of ``J_z^T grad V_{k+1}`` in z over beta_k.

``riccati_limit`` is what the Euler-Maruyama chains of a linear-quadratic diffusion tend to (their
eq. 78-79).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from scipy.integrate import solve_ivp
from torch import Tensor

from ...envs.known_optimum.grid import Function, Interpolant, Transition, normal_nodes
from ...envs.known_optimum.linear_quadratic import LinearQuadratic
from ...envs.problem import Problem, check_positive, device_of, rollout
from ..checks import check_whole
from .form import Iteration, IterationPolicy


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


def _counts(value: int | Sequence[int], horizon: int) -> list[int]:
    counts = [value] * horizon if isinstance(value, int) else list(value)
    if len(counts) != horizon or any(
        isinstance(m, bool) or not isinstance(m, int) or m < 0 for m in counts
    ):
        raise ValueError(
            f"iterations must be an integer of at least 0, or {horizon} of them; got {value!r}"
        )
    return counts


# --- linear-quadratic chains


class Affine(NamedTuple):
    """The inner iterates of one step's control, ``a^(m)(x) = gain[m] x + shift[m]`` for ``m =
    0..m_k``.
    """

    gain: Tensor  # (m_k + 1, m, d)
    shift: Tensor  # (m_k + 1, m)


class QuadraticIterates(NamedTuple):
    """What Algorithm 1 computes on a linear-quadratic chain; ``V_k(x) = -x^T matrix x / 2 + slope^T
    x + constant``.
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
    counts = _counts(iterations, T)
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
        for _ in range(counts[k]):
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
    """``V(0, x) = -x^T matrix x / 2 + slope^T x + constant`` and ``u*(0, x) = gain x + shift`` in
    continuous time.
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
    """The optimum at time 0 of ``dX = (A X + c) dt + G (u dt + dB)``, in float64; arguments as
    ``ornstein_uhlenbeck``'s.

    Han et al., eq. (78)-(79), in the notation of a control-affine diffusion: ``u* = G^T grad V /
    beta`` and ``d_t V + (A x + c) . grad V + Tr(G G^T D^2 V) / 2 + |G^T grad V|^2 / (2 beta) + r =
    0``. For quadratics,

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


# --- one state and one noise: a grid


class GridIterates(NamedTuple):
    """What Algorithm 1 computes on a grid; row k of an interpolant is step k."""

    nodes: Tensor  # (nodes,)
    values: Interpolant  # T + 1 rows
    controls: Interpolant  # the last inner iterates, T rows
    inner: tuple[Tensor, ...]  # of each step all inner iterates at the nodes, (m_k + 1, nodes)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The last iterate at states ``(n, 1)``, ``(n, 1)``."""
        return self.controls(k if isinstance(k, int) else k[:, None], x.double()).to(x.dtype)

    def value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``V_k`` at states ``(n, 1)``, ``(n,)``; autograd follows."""
        return self.values(k, x[:, 0].double()).to(x.dtype)

    def to(self, device: torch.device) -> GridIterates:
        """A copy whose control and values are on ``device``; the inner iterates stay."""
        return self._replace(values=self.values.to(device), controls=self.controls.to(device))


@torch.no_grad()
def iterate_grid(
    transition: Transition,
    terminal_reward: Function,
    *,
    horizon: int,
    iterations: int | Sequence[int],
    temperatures: float | Sequence[float] | Tensor,
    lower: float,
    upper: float,
    nodes: int = 513,
    spacing: float = 0.4,
    running_reward: Any = None,
) -> GridIterates:
    """Algorithm 1 on the grid of ``envs.grid.solve``; arguments as there, for one chain.

    By Stein's identity (35) is ``a^(m+1) = E_W[W V_{k+1}(F_k(x, a^(m) + W))] / beta_k``: no
    derivative is taken, and F need not have one. Expectations are sums over ``normal_nodes``.

    Args:
        transition: ``F(k, x, z) -> x'``, elementwise, x ``(1, nodes, 1)`` and z ``(1, nodes,
            noises)``.
        terminal_reward: ``y(x)``, elementwise.
        horizon: number of steps T.
        iterations: inner iterations m_k, one number or one a step.
        temperatures: beta_k, one number or one a step.
        lower: first node. Beyond the ends values go on as straight lines.
        upper: last node.
        nodes: number of nodes.
        spacing: of the noises in an expectation.
        running_reward: ``r_k(x)``, elementwise on ``(1, nodes)``; zero if absent.
    """
    check_whole("nodes", nodes, 5)
    if not lower < upper:
        raise ValueError(f"lower must be below upper; got {lower} and {upper}")
    betas, counts = per_step("temperatures", temperatures, horizon), _counts(iterations, horizon)
    step = (upper - lower) / (nodes - 1)
    x = torch.linspace(lower, upper, nodes, dtype=torch.float64)[None]
    z, weight = normal_nodes(spacing)
    # in the sum, not in the limit, a constant would otherwise have a slope
    slope = weight * z / (weight * z.square()).sum()
    ahead: Function = terminal_reward  # exact at the last step, interpolated before
    values, inner = [terminal_reward(x)], []
    for k in reversed(range(horizon)):
        iterates = [torch.zeros_like(x)]
        for _ in range(counts[k]):
            iterates.append(
                ahead(transition(k, x[..., None], iterates[-1][..., None] + z)) @ slope / betas[k]
            )
        a = iterates[-1]
        reward = 0.0 if running_reward is None else running_reward(k, x)
        expected = ahead(transition(k, x[..., None], a[..., None] + z)) @ weight
        values.append(reward + expected - 0.5 * betas[k] * a.square())
        inner.append(torch.cat(iterates))
        ahead = partial(Interpolant(lower, step, values[-1]), 0)
    inner = inner[::-1]
    value, control = torch.cat(values[::-1]), torch.stack([iterates[-1] for iterates in inner])
    return GridIterates(
        x[0], Interpolant(lower, step, value), Interpolant(lower, step, control), tuple(inner)
    )


def grid_of(problem: Problem, iterations: int | Sequence[int], **settings: Any) -> GridIterates:
    """``iterate_grid`` of a problem with one state and one noise, in float64 on the CPU.

    Args:
        problem: ``state_shape`` and ``noise_shape`` must both be ``(1,)``.
        iterations: inner iterations m_k, one number or one a step.
        settings: other arguments of ``iterate_grid``; where absent, temperatures are the problem's
            and the ends are as far beyond those of 1,000 uncontrolled paths as these range.

    Raises:
        ValueError: the problem has more than one state or noise.
    """
    if problem.state_shape != (1,) or problem.noise_shape != (1,):
        shapes = f"{tuple(problem.state_shape)} and {tuple(problem.noise_shape)}"
        raise ValueError(f"state_shape and noise_shape must be (1,) for a grid; got {shapes}")
    chain = problem.to("cpu", torch.float64)
    if "lower" not in settings or "upper" not in settings:
        with torch.no_grad():
            states = rollout(chain, None, 1000, torch.Generator().manual_seed(0)).states
        low, high = float(states.min()), float(states.max())
        settings = {"lower": low - (high - low), "upper": high + (high - low), **settings}

    def elementwise(function: Any, x: Tensor, *rest: Tensor) -> Tensor:
        columns = [t.reshape(-1, 1) for t in torch.broadcast_tensors(x, *rest)]
        return function(*columns).reshape(torch.broadcast_shapes(x.shape, *(t.shape for t in rest)))

    return iterate_grid(
        lambda k, x, z: elementwise(lambda x, z: chain.transition(k, x, z), x, z),
        lambda x: elementwise(chain.terminal_reward, x),
        running_reward=lambda k, x: elementwise(lambda x: chain.running_reward(k, x), x),
        horizon=problem.horizon,
        iterations=iterations,
        **{"temperatures": problem.temperature, **settings},
    )


class ExactPolicy(IterationPolicy):
    """Exact PI-FT: after n policy iterations, Algorithm 1 with ``m_k = n``; starts at the
    uncontrolled process.

    Linear-quadratic chains are solved with matrices, problems with one state and one noise on a
    grid. A checkpoint holds the number of iterations, from which everything follows.

    Args:
        temperatures: see IterationPolicy.
        grid: arguments of ``iterate_grid``, say ``{"nodes": 1025, "lower": -4, "upper": 4}``.

    Raises:
        ValueError: the problem is of neither kind.
    """

    iterations: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        temperatures: float | Sequence[float] | None = None,
        grid: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, problem, temperatures)
        self.grid = grid or {}
        self.register_buffer("iterations", torch.zeros((), dtype=torch.long))
        self.forget()
        self.iterates  # noqa: B018  (a wrong problem or setting should fail here)

    def forget(self) -> None:
        """See IterationPolicy."""
        self._solved: tuple[int, QuadraticIterates | GridIterates] | None = None

    @property
    def iterates(self) -> QuadraticIterates | GridIterates:
        """All that Algorithm 1 computed at the present number of iterations."""
        count = int(self.iterations)
        if self._solved is None or self._solved[0] != count:
            if isinstance(self.problem, LinearQuadratic):
                solved: QuadraticIterates | GridIterates = iterate_quadratics(
                    self.problem, count, self.betas
                )
            else:
                solved = grid_of(self.problem, count, temperatures=self.betas, **self.grid)
            self._solved = count, solved.to(device_of(self.problem))
        return self._solved[1]

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        return self.iterates.control(k, x).clamp(-self.action_bound, self.action_bound)

    def improve(self, agent: Iteration) -> None:
        """One more inner iteration at every step; the paths are for the record only."""
        paths = agent.collect(self.control)
        self.iterations += 1
        states = paths.states[:-1].unbind(0)
        change = torch.stack(
            [
                self.control(k, x) - a
                for k, (x, a) in enumerate(zip(states, paths.controls, strict=True))
            ]
        )
        agent.logger.record(
            "train/control_change", float(change.square().flatten(2).sum((0, 2)).mean().sqrt())
        )
