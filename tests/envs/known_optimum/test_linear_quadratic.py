"""The Riccati solution against dynamic programming that knows nothing of it, and against
simulation.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor

from girsanov.envs.certificates import certificate, certificate_by_start
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Estimate, objective, rollout


def random_chain(
    d: int = 3, m: int = 2, steps: int = 8, dtype: torch.dtype = torch.float64, **change: Any
) -> LinearQuadratic:
    """Everything at once: matrices by step, offsets, slopes, an indefinite running reward, noise in
    fewer dimensions.
    """
    g = torch.Generator().manual_seed(d * 100 + m)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    running, terminal, root = draw(steps, d, d), draw(d, d), draw(d, d)
    arguments: dict[str, Any] = {
        "drift_matrix": 0.9 * torch.eye(d) + 0.1 * draw(steps, d, d),
        "noise_matrix": 0.4 * draw(steps, d, m),
        "offset": 0.1 * draw(steps, d),
        "running_matrix": 0.1 * (running + running.mT),
        "running_slope": 0.2 * draw(steps, d),
        "terminal_matrix": terminal @ terminal.T / d + 0.1 * torch.eye(d),
        "target": draw(d),
        "terminal_slope": 0.3 * draw(d),
        "initial_mean": draw(d),
        "initial_covariance": 0.2 * root @ root.T,
        "horizon": steps,
        "temperature": 1.5,
    }
    return LinearQuadratic(**{**arguments, **change}, dtype=dtype)


def gauss_hermite(nodes: int, m: int) -> tuple[Tensor, Tensor]:
    """Nodes ``(nodes^m, m)`` and weights of the standard normal law."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.array(list(itertools.product(z, repeat=m)))
    weight = np.array([math.prod(row) for row in itertools.product(w / w.sum(), repeat=m)])
    return torch.from_numpy(grid), torch.from_numpy(weight)


def test_value_against_independent_dynamic_programming() -> None:
    """One dimension: values on a grid, expectations by quadrature, the best control by a search; no
    algebra in common.
    """
    problem = random_chain(d=1, m=1, steps=6)
    beta, nodes = problem.temperature, np.linspace(-3, 3, 9)
    z, weight = (t.numpy().ravel() for t in gauss_hermite(80, 1))

    def transition(k: int, x: float, push: np.ndarray) -> np.ndarray:
        state, noise = (
            torch.full((len(push), 1), x, dtype=torch.float64),
            torch.from_numpy(push)[:, None],
        )
        return problem.transition(k, state, noise).numpy().ravel()

    at_nodes = torch.from_numpy(nodes)[:, None]
    best = moment = problem.terminal_reward(at_nodes).numpy()
    for k in reversed(range(problem.horizon)):
        # degree 8 reproduces whatever smooth function the values are, were they not quadratic
        value = np.polynomial.Polynomial.fit(nodes, best, 8)
        log_moment = np.polynomial.Polynomial.fit(nodes, moment, 8)
        controls, new_best, new_moment = [], [], []
        for x in nodes:
            found = minimize_scalar(
                lambda a, x=x, k=k, value=value: (
                    0.5 * beta * a**2 - weight @ value(transition(k, x, a + z))
                ),
                tol=1e-12,
            )
            controls.append(found.x)
            new_best.append(-found.fun)
            new_moment.append(beta * logsumexp(log_moment(transition(k, x, z)) / beta, b=weight))
        reward = problem.running_reward(k, at_nodes).numpy()
        best, moment = reward + new_best, reward + new_moment
        np.testing.assert_allclose(
            problem.optimal_value(k, at_nodes).numpy(), best, rtol=0, atol=1e-8
        )
        np.testing.assert_allclose(
            problem.log_moment_value(k, at_nodes).numpy(), moment, rtol=0, atol=1e-8
        )
        np.testing.assert_allclose(
            problem.optimal_control(k, at_nodes).numpy().ravel(), controls, rtol=0, atol=1e-6
        )
    assert (moment - best > 0.001).all()  # the two values are not the same number


@pytest.mark.parametrize(("d", "m"), [(1, 1), (3, 2), (2, 3)])
def test_bellman_equations_to_ten_digits(d: int, m: int, generator: torch.Generator) -> None:
    """Gauss-Hermite is exact for the quadratic, and converges for the exponential of one."""
    problem = random_chain(d, m)
    beta = problem.temperature
    x = torch.randn(5, d, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        problem.optimal_value(8, x), problem.terminal_reward(x), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        problem.log_moment_value(8, x), problem.terminal_reward(x), rtol=0, atol=1e-12
    )
    z, weight = gauss_hermite(3, m)
    fine, fine_weight = gauss_hermite(40 if m < 3 else 30, m)

    def expected(k: int, row: Tensor, control: Tensor) -> Tensor:
        next_states = problem.transition(k, row.expand(len(z), -1), control + z)
        return (
            weight @ problem.optimal_value(k + 1, next_states) - 0.5 * beta * control.square().sum()
        )

    for k, row in itertools.product(range(problem.horizon), x):
        reward = problem.running_reward(k, row[None])[0]
        a = problem.optimal_control(k, row[None])[0]
        best = reward + expected(k, row, a)
        assert abs(best - problem.optimal_value(k, row[None])[0]) < 1e-10
        for other in a + 0.1 * torch.randn(4, m, generator=generator, dtype=torch.float64):
            assert reward + expected(k, row, other) < best
        next_states = problem.transition(k, row.expand(len(fine), -1), fine)
        exponent = problem.log_moment_value(k + 1, next_states) / beta + fine_weight.log()
        assert (
            abs(
                reward
                + beta * torch.logsumexp(exponent, 0)
                - problem.log_moment_value(k, row[None])[0]
            )
            < 1e-10
        )


def test_a_million_trajectories() -> None:
    problem = random_chain(dtype=torch.float32)
    generator = torch.Generator().manual_seed(11)
    total = {"objective": [], "return": []}
    for _ in range(20):
        paths = rollout(problem, problem.optimal_control, 50_000, generator)
        total["objective"].append(paths.reward - problem.temperature * paths.kl)
        total["return"].append(rollout(problem, None, 50_000, generator).reward)
    found = Estimate.of(torch.cat(total["objective"]).double())
    assert abs(found.mean - problem.optimal_objective()) < 3 * found.stderr < 0.02
    weight = Estimate.of((torch.cat(total["return"]).double() / problem.temperature).exp())
    assert (
        abs(weight.mean - math.exp(problem.log_moment_objective() / problem.temperature))
        < 3 * weight.stderr
    )
    # the sample tells the two numbers apart
    assert problem.log_moment_objective() - problem.optimal_objective() > 30 * found.stderr


def test_optimal_objective_averages_the_value_over_the_start(generator: torch.Generator) -> None:
    problem = random_chain()
    x = problem.initial(400_000, generator)
    mean = Estimate.of(problem.optimal_value(0, x))
    assert abs(mean.mean - problem.optimal_objective()) < 3 * mean.stderr
    moment = Estimate.of((problem.log_moment_value(0, x) / problem.temperature).exp())
    assert (
        abs(moment.mean - math.exp(problem.log_moment_objective() / problem.temperature))
        < 3 * moment.stderr
    )
    # a fixed start: nothing is left to average
    fixed = random_chain(initial_covariance=None)
    start = fixed.initial(1, generator)
    assert fixed.optimal_objective() == pytest.approx(
        float(fixed.optimal_value(0, start)), abs=1e-12
    )
    assert fixed.log_moment_objective() == pytest.approx(
        float(fixed.log_moment_value(0, start)), abs=1e-12
    )


def test_the_gap_between_certificate_and_optimum_closes_with_the_step(
    generator: torch.Generator,
) -> None:
    def gap(steps: int) -> float:
        problem = LinearQuadratic.damped_rotation(steps=steps).to(dtype=torch.float64)
        x = problem.initial(2, generator)
        gaps = problem.log_moment_value(0, x) - problem.optimal_value(0, x)
        assert gaps[0] == pytest.approx(float(gaps[1]), abs=1e-12)  # the same for every state
        return float(gaps[0])

    gaps = [gap(steps) for steps in (50, 100, 200)]
    assert 0 < gaps[2] and [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx(
        [2, 2], rel=0.1
    )  # first order


def test_perturbing_the_optimal_control_lowers_the_objective(generator: torch.Generator) -> None:
    problem = random_chain()
    noises = torch.randn(8, 20_000, 2, generator=generator, dtype=torch.float64)

    def worth(policy: Any) -> Tensor:
        paths = rollout(problem, policy, 20_000, torch.Generator().manual_seed(1), noises=noises)
        return paths.reward - problem.temperature * paths.kl

    best = worth(problem.optimal_control)
    for shift, factor in ((0.2, 1.0), (-0.2, 1.0), (0.0, 0.7), (0.0, 1.3)):
        loss = Estimate.of(
            best - worth(lambda k, x, s=shift, f=factor: f * problem.optimal_control(k, x) + s)
        )
        assert loss.mean > 5 * loss.stderr


def test_the_registered_chain(generator: torch.Generator) -> None:
    problem = LinearQuadratic.damped_rotation()
    bound = certificate(problem, 20_000, generator)
    assert (
        bound.ess / bound.n > 0.1
        and abs(bound.bound - problem.log_moment_objective()) < 3 * bound.stderr
    )
    best = objective(problem, problem.optimal_control, 20_000, generator).objective
    assert abs(best.mean - problem.optimal_objective()) < 3 * best.stderr
    controls = rollout(problem, problem.optimal_control, 1_000, generator).controls
    assert (
        controls.abs() <= 1
    ).float().mean() > 0.99  # the default action bound takes nothing away
    other = LinearQuadratic.damped_rotation(dimension=7, steps=20, temperature=2.0, seed=1)
    assert other.state_shape == other.noise_shape == (7,) and (
        other.horizon,
        other.temperature,
    ) == (20, 2.0)
    assert not torch.equal(LinearQuadratic.damped_rotation(seed=1).target, problem.target)
    assert torch.equal(LinearQuadratic.damped_rotation(seed=0).drift_matrix, problem.drift_matrix)


def test_certificate_by_start_is_the_mean_of_log_moments_with_few_paths_too(
    generator: torch.Generator,
) -> None:
    problem = LinearQuadratic.damped_rotation()
    seed, starts, paths = 11, 4_000, 64
    x = problem.initial(starts, torch.Generator().manual_seed(seed))
    exact = problem.log_moment_value(0, x)
    found = certificate_by_start(
        problem, starts, paths, torch.Generator().manual_seed(seed), batch=40_000
    )
    assert (found.n, found.starts) == (starts * paths, starts) and 5 < found.ess < 40
    noise = 1 / found.ess - 1 / paths  # relative variance of the mean from one start
    spread = math.sqrt(float(exact.var()) + problem.temperature**2 * noise)
    assert found.stderr == pytest.approx(spread / math.sqrt(starts), rel=0.1)
    bias = problem.temperature * 0.5 * noise  # what Jensen takes, to first order
    assert abs(found.bound - float(exact.mean())) < 0.25 * bias
    # below the certificate of all paths, which leans to the better starts, and above what any
    # policy is worth
    assert problem.optimal_objective() < found.bound + 2 * found.stderr
    assert found.bound < problem.log_moment_objective() - 0.5 * (
        problem.log_moment_objective() - float(exact.mean())
    )


@pytest.mark.parametrize(("starts", "paths", "name"), [(1, 64, "starts"), (8, 1, "paths")])
def test_certificate_by_start_needs_two_of_each(
    starts: int, paths: int, name: str, generator: torch.Generator
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 2; got 1"):
        certificate_by_start(LinearQuadratic.damped_rotation(), starts, paths, generator)


def test_float32_keeps_the_solution(generator: torch.Generator) -> None:
    single = random_chain(dtype=torch.float32)
    double = single.to(dtype=torch.float64)  # the same rounded matrices
    x = single.initial(5, generator)
    torch.testing.assert_close(
        single.optimal_value(0, x).double(),
        double.optimal_value(0, x.double()),
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(
        double.optimal_value(8, x.double()), double.terminal_reward(x.double()), rtol=0, atol=1e-12
    )


def test_an_infinite_value_is_refused_and_the_step_named() -> None:
    eye = torch.eye(1)
    grows = {"drift_matrix": eye, "noise_matrix": eye, "terminal_matrix": -0.2 * eye, "horizon": 5}
    # P -> beta P / (beta + P): -0.2, -0.28, -0.467, -1.4, and the last is below -beta
    with pytest.raises(
        ValueError,
        match=r"the value is infinite at step 1: .* must be positive definite; got temperature 0.7",
    ):
        LinearQuadratic(**grows, temperature=0.7)
    LinearQuadratic(**{**grows, "horizon": 3}, temperature=0.7)
    with pytest.raises(ValueError, match="the value is infinite at step 4"):
        LinearQuadratic(**grows, temperature=0.2)
    fine = LinearQuadratic(**grows, temperature=1.1, initial_covariance=100 * eye)
    assert math.isfinite(fine.optimal_objective())
    with pytest.raises(ValueError, match="the value is infinite at the initial law"):
        fine.log_moment_objective()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number; got 0.0"),
        ({"horizon": 0}, "horizon must be an integer of at least 1; got 0"),
        (
            {"noise_matrix": [1.0]},
            r"noise_matrix must have shape \(d, m\) or \(T, d, m\); got \(1,\)",
        ),
        (
            {"drift_matrix": torch.eye(2)},
            r"drift_matrix must have shape \(3, 3\) or \(8, 3, 3\); got \(2, 2\)",
        ),
        (
            {"drift_matrix": torch.zeros(7, 3, 3)},
            r"drift_matrix must have shape .* got \(7, 3, 3\)",
        ),
        (
            {"noise_matrix": torch.zeros(7, 3, 2)},
            r"noise_matrix must have shape .* got \(7, 3, 2\)",
        ),
        ({"offset": [1.0]}, r"offset must have shape \(3,\) or \(8, 3\); got \(1,\)"),
        ({"target": [1.0]}, r"target must have shape \(3,\); got \(1,\)"),
        ({"terminal_matrix": torch.ones(3, 3).tril()}, "terminal_matrix must be symmetric"),
        ({"running_matrix": torch.ones(3, 3).triu()}, "running_matrix must be symmetric"),
        ({"initial_mean": [0.0, float("nan"), 0.0]}, "initial_mean must be finite"),
        (
            {"initial_covariance": -torch.eye(3)},
            "initial_covariance must be positive semi-definite; got eigenvalues",
        ),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_chain(**change)


def test_a_dimension_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="dimension must be an integer of at least 1; got 0"):
        LinearQuadratic.damped_rotation(dimension=0)
