"""PI-FT in closed form: Algorithm 1 of Han et al. (2025), nothing sampled and nothing fitted.

Backwards from ``V_T = y``, with inner iterations from ``a^(0) = 0`` and ``a_k = a_k^(m_k)``,

    (35)  a_k^(m+1)(x) = (1 / beta_k) E_W[ J_z^T grad V_{k+1}(F_k(x, a_k^(m)(x) + W)) ],
    (36)  V_k(x) = r_k(x) + E_W[ V_{k+1}(F_k(x, a_k(x) + W)) ] - beta_k |a_k(x)|^2 / 2.

Linear-quadratic chains are solved with matrices (``quadratics``). With one state and one noise the
functions live on a grid (``iterate_grid``). Both return every inner iterate, so that the
contraction can be measured: with V_{k+1} fixed,

    |a^(m+1) - a^(m)| <= lambda_k |a^(m) - a^(m-1)|,

lambda_k the Lipschitz constant of ``J_z^T grad V_{k+1}`` in z over beta_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from ...envs.known_optimum.grid import Function, Interpolant, Transition, normal_nodes
from ...envs.known_optimum.linear_quadratic import LinearQuadratic
from ...envs.problem import Problem, device_of, rollout
from ..checks import check_whole
from .form import Iteration, IterationPolicy
from .quadratics import QuadraticIterates, counts, iterate_quadratics, per_step


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
    betas = per_step("temperatures", temperatures, horizon)
    inner_counts = counts(iterations, horizon)
    step = (upper - lower) / (nodes - 1)
    x = torch.linspace(lower, upper, nodes, dtype=torch.float64)[None]
    z, weight = normal_nodes(spacing)
    # in the sum, not in the limit, a constant would otherwise have a slope
    slope = weight * z / (weight * z.square()).sum()
    ahead: Function = terminal_reward  # exact at the last step, interpolated before
    values, inner = [terminal_reward(x)], []
    for k in reversed(range(horizon)):
        iterates = [torch.zeros_like(x)]
        for _ in range(inner_counts[k]):
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
    """Exact PI-FT: after n policy iterations, Algorithm 1 with ``m_k = n``.

    Starts at the uncontrolled process. Linear-quadratic chains are solved with matrices, problems
    with one state and one noise on a grid. A checkpoint holds the number of iterations, from which
    everything follows.

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
