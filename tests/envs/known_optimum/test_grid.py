"""Dynamic programming on a grid against closed forms and against integration and search that share
nothing with it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from girsanov.envs.known_optimum.grid import GridSolution, Interpolant, normal_nodes, refine, solve
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem


def chain_of(problem: Problem) -> dict[str, Any]:
    """A problem with one state and one noise, as the grid wants it."""

    def transition(k: int, x: Tensor, z: Tensor) -> Tensor:
        x, z = torch.broadcast_tensors(x, z)
        return problem.transition(k, x.reshape(-1, 1), z.reshape(-1, 1)).reshape(x.shape)

    return {
        "transition": transition,
        "terminal_reward": lambda x: problem.terminal_reward(x.reshape(-1, 1)).reshape(x.shape),
        "running_reward": lambda k, x: problem.running_reward(k, x.reshape(-1, 1)).reshape(x.shape),
        "horizon": problem.horizon,
        "temperature": problem.temperature,
    }


def smooth(k: int, x: Tensor, z: Tensor) -> Tensor:
    """A chain whose noise is neither additive nor linear."""
    return x + 0.1 * (k + 1) * torch.sin(x) + 0.8 * torch.tanh(0.5 * z + 0.2 * x)


SMOOTH: dict[str, Any] = {
    "transition": smooth,
    "terminal_reward": lambda x: -(x - 1).square(),
    "running_reward": lambda k, x: 0.1 * torch.cos(x),
    "horizon": 3,
    "temperature": 0.6,
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_linear_quadratic_chain_to_nine_digits(sign: float) -> None:
    step = torch.arange(1, 21, dtype=torch.float64)
    problem = LinearQuadratic(
        drift_matrix=(0.9 + 0.01 * step)[:, None, None],
        noise_matrix=(0.1 + 0.01 * step)[:, None, None],
        offset=0.02 * step[:, None],
        running_matrix=[[sign * 0.1]],  # negative: the value is convex in places
        running_slope=[0.05],
        terminal_matrix=[[0.5]],
        target=[0.7],
        terminal_slope=[0.3],
        horizon=20,
        temperature=1.3,
        dtype=torch.float64,
    )
    found = solve(**chain_of(problem), lower=-15.0, upper=15.0, nodes=301)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for k in range(20):
        for table, exact in (
            (found.value, problem.optimal_value),
            (found.log_moment, problem.log_moment_value),
        ):
            torch.testing.assert_close(
                found.read(table, k, x)[:, 0], exact(k, x), rtol=0, atol=1e-9
            )
        torch.testing.assert_close(
            found.read(found.control, k, x), problem.optimal_control(k, x), rtol=0, atol=1e-8
        )
    torch.testing.assert_close(
        found.read(found.value, 20, x)[:, 0], problem.terminal_reward(x), rtol=0, atol=1e-12
    )
    steps = torch.arange(41) % 20  # one step a row
    torch.testing.assert_close(
        found.read(found.value, steps, x)[:, 0], problem.optimal_value(steps, x), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("k", [2, 0])
def test_bellmans_equations_by_adaptive_integration_and_exhaustive_search(k: int) -> None:
    found = solve(**SMOOTH, lower=-12.0, upper=12.0, nodes=1601)
    beta = SMOOTH["temperature"]

    def ahead(table: Interpolant, x: float, z: float) -> float:
        state = smooth(
            k, torch.tensor([[x]], dtype=torch.float64), torch.tensor([[z]], dtype=torch.float64)
        )
        if k == 2:
            return float(SMOOTH["terminal_reward"](state))
        return float(found.read(table, k + 1, state))

    def mean(g: Any) -> float:
        return quad(lambda w: g(w) * math.exp(-0.5 * w * w), -9, 9, epsabs=1e-9)[0] / math.sqrt(
            2 * math.pi
        )

    for x in (-1.3, 0.4, 2.0):
        state = torch.tensor([[x]], dtype=torch.float64)
        reward = 0.1 * math.cos(x)
        moment = reward + beta * math.log(
            mean(lambda w, x=x: math.exp(ahead(found.log_moment, x, w) / beta))
        )
        assert float(found.read(found.log_moment, k, state)) == pytest.approx(moment, abs=1e-6)

        def worth(a: float, x: float = x, reward: float = reward) -> float:
            return reward + mean(lambda w: ahead(found.value, x, a + w)) - 0.5 * beta * a * a

        best = float(found.read(found.control, k, state))
        assert float(found.read(found.value, k, state)) == pytest.approx(worth(best), abs=1e-6)
        assert worth(best) > max(
            worth(a) for a in (best - 0.01, best + 0.01, *np.arange(-4.0, 4.1, 0.25))
        )


def test_chains_solved_together_are_solved_alone() -> None:
    scale = torch.tensor([0.3, 0.7], dtype=torch.float64)
    where = {"horizon": 4, "temperature": 1.0, "lower": -4.0, "upper": 4.0, "nodes": 65}

    def run(scale: Tensor) -> GridSolution:
        return solve(
            lambda k, x, z: 0.9 * x + scale[:, None, None] * z, torch.cos, rows=len(scale), **where
        )

    both, x = run(scale), torch.randn(5, 2, dtype=torch.float64)
    rows = torch.arange(2)
    for row in range(2):
        alone = run(scale[row : row + 1])
        for name in ("value", "log_moment", "control"):
            mine = both.read(getattr(both, name), 1, x, rows)[:, row : row + 1]
            torch.testing.assert_close(
                mine, alone.read(getattr(alone, name), 1, x[:, row : row + 1]), rtol=0, atol=1e-10
            )
    assert (both.read(both.value, 1, x[:, :1].expand(-1, 2), rows).diff() != 0).all()


def test_refinement_is_of_fourth_order_and_knows_its_error() -> None:
    x = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]

    def values(solution: GridSolution) -> Tensor:
        return torch.stack(
            [solution.read(solution.value, 0, x), solution.read(solution.log_moment, 0, x)]
        )

    where = {**SMOOTH, "lower": -8.0, "upper": 8.0}
    exact = values(solve(**where, nodes=2049))
    errors = [
        float((values(solve(**where, nodes=nodes)) - exact).abs().max()) for nodes in (65, 129, 257)
    ]
    slopes = -np.diff(np.log2(errors))
    assert (slopes > 3.5).all() and (slopes < 5.5).all(), errors
    found = refine(**where, measure=values, nodes=33, tolerance=1e-6)
    assert float((values(found) - exact).abs().max()) <= found.error <= 1e-6
    assert 65 < found.value.nodes < 2049
    with pytest.warns(
        RuntimeWarning,
        match="the grid of 65 nodes is too coarse: estimated error .*, wanted 1.0e-12",
    ):
        refine(**where, measure=values, nodes=33, tolerance=1e-12, most_nodes=65)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refine(**where, measure=values, nodes=33, tolerance=1.0, most_nodes=65)


def test_interpolation() -> None:
    nodes = torch.linspace(-1, 2, 31, dtype=torch.float64)
    rows = torch.stack([nodes**3 - 2 * nodes, torch.sin(3 * nodes)])
    table = Interpolant(-1.0, 0.1, rows)
    x = torch.linspace(-1, 2, 307, dtype=torch.float64)
    torch.testing.assert_close(
        table(0, x), x**3 - 2 * x, rtol=0, atol=1e-12
    )  # cubics are exact, to the ends
    torch.testing.assert_close(table(1, x), torch.sin(3 * x), rtol=0, atol=2e-4)
    outside = torch.tensor([-3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(
        table(0, outside), torch.tensor([1 - 2.0 * 1, 4 + 10.0 * 2], dtype=torch.float64)
    )
    both = table(torch.tensor([0, 1]), torch.full((3, 2), 0.55, dtype=torch.float64))
    assert (
        both.shape == (3, 2)
        and both[0, 0] == table(0, torch.tensor(0.55, dtype=torch.float64)) != both[0, 1]
    )
    # a kink is felt in the next cells only
    kinked = Interpolant(-1.0, 0.1, nodes.abs()[None])
    away = x[(x.abs() > 0.35)]
    torch.testing.assert_close(kinked(0, away), away.abs(), rtol=0, atol=1e-12)


def test_expectations_over_the_normal_law() -> None:
    for spacing in (0.2, 0.4):
        z, weight = normal_nodes(spacing)
        assert float(weight.sum()) == pytest.approx(1, abs=1e-14)
        for power, moment in ((1, 0), (2, 1), (4, 3), (6, 15), (8, 105)):
            assert float(weight @ z**power) == pytest.approx(moment, rel=1e-7, abs=1e-12)
        assert float(weight @ torch.exp(1.2 * z)) == pytest.approx(math.exp(0.72), rel=1e-8)


@pytest.mark.parametrize("change", [{"nodes": 4}, {"lower": 1.0, "upper": 1.0}])
def test_an_impossible_grid_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nodes must be at least 5 and lower below upper; got"):
        solve(**{**SMOOTH, "lower": -1.0, "upper": 1.0, "nodes": 9, **change})
