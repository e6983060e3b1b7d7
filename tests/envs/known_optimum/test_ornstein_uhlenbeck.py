"""The two Ornstein-Uhlenbeck problems against the continuous-time Riccati equation and against
simulation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Estimate, objective, rollout

QUADRATIC, LINEAR = "girsanov/OrnsteinUhlenbeck-v0", "girsanov/LinearOrnsteinUhlenbeck-v0"


def draws(d: int = 3, m: int = 2) -> dict[str, Any]:
    """Everything at once, with fewer noises than states."""
    g = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    running, terminal = draw(d, d), draw(d, d)
    return {
        "drift_matrix": 0.7 * draw(d, d),
        "offset": draw(d),
        "control_matrix": draw(d, m),
        "running_matrix": 0.3 * (running + running.T),
        "running_slope": draw(d),
        "terminal_matrix": terminal @ terminal.T / d,
        "terminal_slope": draw(d),
        "target": draw(d),
    }


def riccati(
    problem: dict[str, Any], temperature: float, time: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """``V(0, x) = -x^T P x / 2 + p^T x + c`` of the diffusion, by the Hamilton-Jacobi-Bellman
    equation.
    """
    t = {name: value.numpy() for name, value in problem.items()}
    A, b, G, R, q = (
        t[n]
        for n in ("drift_matrix", "offset", "control_matrix", "running_matrix", "running_slope")
    )
    Q, slope, target = t["terminal_matrix"], t["terminal_slope"], t["target"]
    d, noise = len(b), G @ G.T

    def backwards(_: float, state: np.ndarray) -> np.ndarray:
        P, p = state[: d * d].reshape(d, d), state[d * d : -1]
        dP = R + A.T @ P + P @ A - P @ noise @ P / temperature
        dp = q + A.T @ p - P @ b - P @ noise @ p / temperature
        dc = b @ p - 0.5 * np.trace(noise @ P) + 0.5 * p @ noise @ p / temperature
        return np.concatenate([dP.ravel(), dp, [dc]])

    end = np.concatenate([Q.ravel(), Q @ target + slope, [-0.5 * target @ Q @ target]])
    found = solve_ivp(backwards, (0, time), end, rtol=1e-10, atol=1e-10).y[:, -1]
    return found[: d * d].reshape(d, d), found[d * d : -1], found[-1]


def test_first_order_convergence_to_the_riccati_equation() -> None:
    matrices, temperature, time = draws(), 1.4, 0.8
    P, p, c = riccati(matrices, temperature, time)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value = torch.from_numpy(
        c + x.numpy() @ p - 0.5 * np.einsum("ni,ij,nj->n", x.numpy(), P, x.numpy())
    )
    rate = (
        torch.from_numpy((p - x.numpy() @ P) @ matrices["control_matrix"].numpy()) / temperature
    )  # u = G^T grad V / beta
    errors = []
    for steps in (40, 80, 160, 320):
        chain = LinearQuadratic.ornstein_uhlenbeck(
            3,
            **matrices,
            steps=steps,
            step_size=time / steps,
            temperature=temperature,
            dtype=torch.float64,
        )
        u = chain.optimal_control(0, x) / (time / steps) ** 0.5
        errors.append(
            [
                float((found - exact).abs().max())
                for found, exact in ((chain.optimal_value(0, x), value), (u, rate))
            ]
        )
        errors[-1].append(float((chain.log_moment_value(0, x) - value).abs().max()))
    slopes = -np.diff(np.log2(np.array(errors)), axis=0)
    assert (np.abs(slopes[-1] - 1) < 0.1).all(), slopes
    assert max(errors[-1]) < 0.1 < value.std()


def test_simulation_finds_the_optimum_from_a_point_at_another_temperature() -> None:
    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    start = {"initial_mean": mean, "initial_covariance": 0}
    problem = LinearQuadratic.ornstein_uhlenbeck(
        3, **draws(), **start, steps=20, step_size=0.04, temperature=1.7, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(problem.initial(4, generator), mean.expand(4, 3))
    assert problem.optimal_objective() == pytest.approx(
        float(problem.optimal_value(0, mean[None])), abs=1e-12
    )
    assert problem.log_moment_objective() == pytest.approx(
        float(problem.log_moment_value(0, mean[None])), abs=1e-12
    )
    n = 40_000
    found = objective(problem, problem.optimal_control, n, generator).objective
    assert abs(found.mean - problem.optimal_objective()) < 3 * found.stderr < 0.1
    assert (
        problem.log_moment_objective() - problem.optimal_objective() > 0.005
    )  # what no Gaussian shift reaches
    paths = rollout(
        problem, problem.optimal_control, n, generator
    )  # Girsanov's weights, nearly constant
    weight = torch.exp(
        paths.reward / 1.7 + paths.log_ratios.sum(0) - problem.log_moment_objective() / 1.7
    )
    mean_weight = Estimate.of(weight)
    assert abs(mean_weight.mean - 1) < 3 * mean_weight.stderr < 0.1


def test_the_chain_is_the_one_that_is_written_down(generator: torch.Generator) -> None:
    matrices, step = draws(), 0.03
    problem = LinearQuadratic.ornstein_uhlenbeck(
        3, **matrices, step_size=step, steps=7, dtype=torch.float64
    )
    x, z = (
        torch.randn(5, 3, generator=generator).double(),
        torch.randn(5, 2, generator=generator).double(),
    )
    drift = x @ matrices["drift_matrix"].T + matrices["offset"]
    ahead = x + drift * step + step**0.5 * z @ matrices["control_matrix"].T
    torch.testing.assert_close(problem.transition(3, x, z), ahead, rtol=0, atol=1e-12)
    rate = -0.5 * (x @ matrices["running_matrix"] * x).sum(1) + x @ matrices["running_slope"]
    torch.testing.assert_close(problem.running_reward(3, x), rate * step, rtol=0, atol=1e-12)
    off = x - matrices["target"]
    end = -0.5 * (off @ matrices["terminal_matrix"] * off).sum(1) + x @ matrices["terminal_slope"]
    torch.testing.assert_close(problem.terminal_reward(x), end, rtol=0, atol=1e-12)


def test_the_registered_quadratic_problem_is_the_literatures(generator: torch.Generator) -> None:
    """``f = x^T P x`` and ``g = x^T Q x`` with P = 0.2 I, Q = 0.1 I, A = 0.2 I; hard: 1, 0.5 and
    1.
    """
    hard = {"drift_matrix": 1, "running_matrix": 2, "terminal_matrix": 1.0}
    for change, A, P, Q in (({}, 0.2, 0.2, 0.1), (hard, 1.0, 1.0, 0.5)):
        problem = make_problem(QUADRATIC, **change).to(dtype=torch.float64)
        assert isinstance(problem, LinearQuadratic)
        assert (problem.state_shape, problem.horizon, problem.temperature) == ((20,), 50, 1.0)
        x, z = (
            torch.randn(4, 20, generator=generator).double(),
            torch.randn(4, 20, generator=generator).double(),
        )
        torch.testing.assert_close(
            problem.transition(0, x, z), x + 0.02 * A * x + 0.02**0.5 * z, rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(
            problem.running_reward(0, x), -0.02 * P * (x * x).sum(1), rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(
            problem.terminal_reward(x), -Q * (x * x).sum(1), rtol=1e-6, atol=1e-6
        )
        assert problem.initial(20_000, generator).var() == pytest.approx(0.25, rel=0.02)
        # one scalar Riccati equation for every coordinate; the chain is of first order
        one = {
            "drift_matrix": A,
            "control_matrix": 1.0,
            "running_matrix": 2 * P,
            "terminal_matrix": 2 * Q,
        }
        one |= {name: 0.0 for name in ("offset", "running_slope", "terminal_slope", "target")}
        shapes = {name: (1, 1) if name.endswith("matrix") else (1,) for name in one}
        scalar = {
            name: torch.full(shapes[name], value, dtype=torch.float64)
            for name, value in one.items()
        }
        matrix, _, constant = riccati(scalar, 1.0, 1.0)
        assert problem.optimal_objective() == pytest.approx(
            20 * (constant - 0.125 * float(matrix[0, 0])), rel=0.06
        )


def test_the_registered_linear_problem_in_closed_form() -> None:
    problem = make_problem(LINEAR, initial_covariance=0).to(dtype=torch.float64)
    assert isinstance(problem, LinearQuadratic)
    assert (problem.state_shape, problem.horizon, problem.temperature) == ((10,), 50, 1.0)
    start = problem.initial(3, torch.Generator().manual_seed(0))
    assert not start.any()
    A, C = problem.drift_matrix[0], problem.noise_matrix[0]
    drift, push = (
        (A - torch.eye(10)) / 0.02 + torch.eye(10),
        C / 0.02**0.5 - torch.eye(10),
    )  # xi and xi'
    for xi in (drift, push):
        assert 0.07 < xi.std() < 0.13 and xi.mean().abs() < 0.04
    assert not torch.allclose(drift, push, atol=0.05)
    slope, variance = -torch.ones(10, dtype=torch.float64), 0.0
    for k in reversed(
        range(50)
    ):  # the slope of the value, back through the chain; the control is the same everywhere
        torch.testing.assert_close(
            problem.optimal_control(k, start + 7), (C.T @ slope).expand(3, 10), rtol=0, atol=1e-10
        )
        variance += float((C.T @ slope).square().sum())
        slope = A.T @ slope
    # no curvature: Gaussian shifts reach the bound, and the return is normal
    assert problem.optimal_objective() == pytest.approx(0.5 * variance, abs=1e-10)
    assert problem.log_moment_objective() == pytest.approx(0.5 * variance, abs=1e-10)
    returns = rollout(problem, None, 40_000, torch.Generator().manual_seed(1)).reward
    assert float(returns.var()) == pytest.approx(variance, rel=0.03)
    mild = make_problem(LINEAR, temperature=3.0, initial_covariance=0)
    bound = certificate(mild, 40_000, torch.Generator().manual_seed(2))
    assert bound.ess / bound.n == pytest.approx(math.exp(-variance / 9), rel=0.1)
    other = make_problem(LINEAR, seed=1)
    assert isinstance(other, LinearQuadratic) and not torch.allclose(
        other.drift_matrix, problem.drift_matrix.float()
    )
    assert other.initial(20_000, torch.Generator().manual_seed(0)).std() == pytest.approx(
        0.1, rel=0.02
    )
    small = make_problem(
        LINEAR,
        dimension=3,
        perturbation=0.0,
        terminal_slope=[1.0, 0.0, 0.0],
        steps=10,
        step_size=0.1,
    )
    assert float(small.terminal_reward(torch.tensor([[2.0, 5.0, 7.0]]))) == 2.0
    torch.testing.assert_close(
        small.transition(0, torch.ones(1, 3), torch.zeros(1, 3)), torch.full((1, 3), 0.9)
    )


@pytest.mark.parametrize("env_id", [QUADRATIC, LINEAR])
def test_the_defaults_are_solved(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    assert isinstance(problem, LinearQuadratic)
    bound = certificate(problem, 10_000, generator)
    assert bound.certified and abs(bound.bound - problem.log_moment_objective()) < 4 * bound.stderr
    best = objective(problem, problem.optimal_control, 10_000, generator).objective
    assert abs(best.mean - problem.optimal_objective()) < 3 * best.stderr
    nothing = objective(problem, None, 10_000, generator).objective
    assert best.mean - nothing.mean > 50 * best.stderr
    assert (
        rollout(problem, problem.optimal_control, 500, generator).controls.abs().max() < 1
    )  # the default action bound


def test_numbers_stand_for_multiples_of_the_identity(generator: torch.Generator) -> None:
    eye, ones = torch.eye(2), torch.ones(2)
    numbers = {
        "drift_matrix": -0.5,
        "control_matrix": 2,
        "terminal_slope": 0.3,
        "initial_covariance": 0.1,
        "offset": 1,
    }
    arrays = {
        "drift_matrix": -0.5 * eye,
        "control_matrix": 2 * eye,
        "terminal_slope": 0.3 * ones,
        "initial_covariance": 0.1 * eye,
    } | {"offset": ones.expand(4, 2)}
    left, right = (
        LinearQuadratic.ornstein_uhlenbeck(2, **kwargs, steps=4) for kwargs in (numbers, arrays)
    )
    x = left.initial(3, generator)
    assert torch.equal(left.optimal_value(0, x), right.optimal_value(0, x))
    assert left.optimal_objective() == right.optimal_objective()
    assert torch.equal(left.transition(1, x, x), right.transition(1, x, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "dimension must be an integer of at least 1; got 0"),
        ({"step_size": 0.0}, "step_size must be a positive number; got 0.0"),
        ({"temperature": -1.0}, "temperature must be a positive number; got -1.0"),
        ({"steps": 0}, "steps must be an integer of at least 1; got 0"),
        (
            {"drift_matrix": [[1.0]]},
            r"drift_matrix must have shape \(20, 20\) or \(50, 20, 20\); got \(1, 1\)",
        ),
        (
            {"control_matrix": [[1.0]]},
            r"control_matrix must be a number or of shape \(20, m\) or \(50, 20, m\); got \(1, 1\)",
        ),
        ({"control_matrix": [1.0]}, r"control_matrix must be a number or of shape .*; got \(1,\)"),
        (
            {"running_slope": [1.0]},
            r"running_slope must have shape \(20,\) or \(50, 20\); got \(1,\)",
        ),
        ({"initial_covariance": -0.1}, "initial_covariance must be positive semi-definite"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearQuadratic.ornstein_uhlenbeck(**change)
