"""Exact PI-FT: the Riccati and grid optima, the contraction at its predicted factor, the
continuous-time limit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.agents import PIFT
from girsanov.agents.pi_ft.exact import (
    ExactPolicy,
    GridIterates,
    grid_of,
)
from girsanov.agents.pi_ft.quadratics import (
    QuadraticIterates,
    iterate_quadratics,
    per_step,
    riccati_limit,
)
from girsanov.agents.pi_ft.regularity import quadratic_contraction
from girsanov.envs import make_problem
from girsanov.envs.diffusion.denoising import Schedule
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.diffusion.step_table import StepTable
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.grid import solve
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, objective

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def line(
    temperature: float = 1.0, noise: float = 0.5, curvature: float = 1.0, horizon: int = 8
) -> LinearQuadratic:
    return LinearQuadratic(
        drift_matrix=[[0.9]],
        noise_matrix=[[noise]],
        terminal_matrix=[[curvature]],
        running_matrix=[[0.1]],
        target=[1.0],
        offset=[0.05],
        initial_covariance=[[1.0]],
        horizon=horizon,
        temperature=temperature,
        **DOUBLE,
    )


def planar(temperature: float = 2.0) -> LinearQuadratic:
    """Three states, two noises, concave and convex directions."""
    generator = torch.Generator().manual_seed(0)
    drift, noise = torch.randn(3, 3, generator=generator), torch.randn(3, 2, generator=generator)
    return LinearQuadratic(
        drift_matrix=0.5 * drift,
        noise_matrix=0.4 * noise,
        terminal_matrix=torch.diag(torch.tensor([1.0, -0.5, 2.0])),
        running_slope=[0.1, 0.2, -0.3],
        target=[1.0, 0.0, -1.0],
        horizon=6,
        temperature=temperature,
        **DOUBLE,
    )


# --- linear-quadratic


@pytest.mark.parametrize(
    "make",
    [line, planar, lambda: make_problem("girsanov/LinearQuadratic-v0").to(dtype=torch.float64)],
)
def test_reaches_the_riccati_value_and_control(make: Any) -> None:
    problem = make()
    truth, found = problem.solution, iterate_quadratics(problem, 60)
    for name in ("matrix", "slope", "constant", "gain", "shift"):
        assert torch.allclose(getattr(found, name), getattr(truth, name), rtol=0, atol=1e-8), name
    assert torch.allclose(found.contraction, quadratic_contraction(problem), atol=1e-8)
    x = torch.randn(5, problem.state_shape[0], **DOUBLE)
    assert torch.allclose(found.value(2, x), problem.optimal_value(2, x), atol=1e-8)


def test_value_is_the_objective_of_the_control() -> None:
    """The backup (36) evaluates the control that it is given, optimal or not: against paths."""
    problem = planar()
    found = iterate_quadratics(problem, 1)
    x = problem.initial(2, torch.Generator().manual_seed(0))
    worth = objective(problem, found.control, 40_000, torch.Generator().manual_seed(1)).objective
    assert abs(float(found.value(0, x)[0]) - worth.mean) < 4 * worth.stderr
    assert (
        float(found.value(0, x)[0]) < problem.optimal_objective() - 1e-6
    )  # and one iteration is not optimal yet


def inner_factors(found: QuadraticIterates) -> list[Tensor]:
    """Of each step, ratios of successive changes of the affine control, in operator norm of (gain,
    shift).
    """
    out = []
    for gain, shift in found.inner:
        change = torch.linalg.matrix_norm(torch.cat([gain, shift[..., None]], 2).diff(dim=0), 2)
        out.append((change[1:] / change[:-1])[change[1:] > 1e-12])
    return out


def test_contraction_never_exceeds_lambda_and_equals_it_in_one_dimension() -> None:
    for problem, exact in ((line(), True), (planar(), False)):
        found = iterate_quadratics(problem, 8)
        factors = inner_factors(found)
        assert sum(map(len, factors)) > 20
        for measured, predicted in zip(factors, found.contraction, strict=True):
            assert (measured <= predicted * (1 + 1e-6)).all()
            if exact:
                assert (measured >= 0.99 * predicted).all()


def test_doubling_the_temperature_halves_the_first_factor_and_lowers_all() -> None:
    """At the last step V_T does not depend on beta, so lambda is proportional to 1 / beta; earlier
    V_{k+1} does.
    """
    once, twice = (iterate_quadratics(line(temperature), 30) for temperature in (1.0, 2.0))
    measured = [float(inner_factors(found)[-1][0]) for found in (once, twice)]
    assert measured[1] == pytest.approx(measured[0] / 2, rel=1e-6)
    for k in range(8):
        assert float(inner_factors(twice)[k][0]) == pytest.approx(
            float(twice.contraction[k]), rel=0.01
        )
    assert (twice.contraction < once.contraction).all()


def test_outer_error_falls_at_the_predicted_rate() -> None:
    """Error of control against m_k = m: at most linear with the largest lambda, up to a polynomial
    in m.
    """
    problem = line(temperature=0.5)
    rate = float(quadratic_contraction(problem).max())
    errors = [
        float((iterate_quadratics(problem, m).gain - problem.solution.gain).abs().max())
        for m in range(4, 16)
    ]
    slope = math.log(errors[-1] / errors[0]) / (len(errors) - 1)
    assert slope == pytest.approx(math.log(rate), abs=0.1 * abs(math.log(rate)))


def test_below_the_threshold_iterates_diverge_though_the_optimum_exists() -> None:
    problem = line(temperature=0.2, noise=1.0, horizon=1)
    assert float(quadratic_contraction(problem).max()) == pytest.approx(5.0)
    gain = iterate_quadratics(problem, 40).inner[0].gain[:, 0, 0]
    assert (gain.diff().abs().diff() > 0).all()
    with pytest.raises(
        ValueError, match="temperatures must be large enough .* it diverged at step 0"
    ):
        iterate_quadratics(problem, 1000)


def test_temperatures_per_step() -> None:
    problem = line()
    betas = torch.linspace(0.5, 2, 8).tolist()
    constant, varied = (
        iterate_quadratics(problem, 40, [1.0] * 8),
        iterate_quadratics(problem, 40, betas),
    )
    assert torch.equal(constant.gain, iterate_quadratics(problem, 40).gain)
    # first-order condition with each step's own beta
    P, p = varied.matrix[4], varied.slope[4]
    A, b, C = problem.drift_matrix[3], problem.offset[3], problem.noise_matrix[3]
    K, s = varied.gain[3], varied.shift[3]
    assert torch.allclose(betas[3] * K, -C.T @ P @ (A + C @ K), atol=1e-9)
    assert torch.allclose(betas[3] * s, C.T @ (p - P @ (b + C @ s)), atol=1e-9)


# --- grid


def test_grid_agrees_with_matrices_in_one_dimension() -> None:
    problem = line(horizon=5)
    exact, grid = iterate_quadratics(problem, 4), grid_of(problem, 4, lower=-8, upper=8)
    x = torch.linspace(-2, 2, 41, **DOUBLE)[:, None]
    steps = torch.full((41,), 3)
    for k in range(5):
        assert torch.allclose(grid.value(k, x), exact.value(k, x), atol=1e-8)
        assert torch.allclose(grid.control(k, x), exact.control(k, x), atol=1e-8)
    assert torch.equal(grid.control(3, x), grid.control(steps, x))
    assert torch.allclose(exact.control(3, x), exact.control(steps, x))
    assert torch.allclose(exact.value(3, x), exact.value(steps, x))


def mixture(temperature: float, steps: int = 8, schedule: Any = None) -> GaussianMixture:
    reward = QuadraticReward([[0.0]], [0.0], [1.0])
    return GaussianMixture(
        *([[-1.0], [1.0]], 0.4, reward, temperature),
        schedule=schedule or Schedule.ddpm(steps),
        **DOUBLE,
    )


def elementwise(problem: Problem) -> Any:
    def transition(k: int, x: Tensor, z: Tensor) -> Tensor:
        x, z = torch.broadcast_tensors(x, z)
        return problem.transition(k, x.reshape(-1, 1), z.reshape(-1, 1)).reshape(x.shape)

    return transition


@pytest.mark.parametrize("schedule", [None, StepTable.rectified_flow(8)], ids=["ddpm", "flow"])
def test_grid_agrees_with_dynamic_programming(schedule: Any) -> None:
    """A mixture's V are neither concave nor quadratic; ``envs.grid`` maximises by scan and Newton,
    here it is (35).
    """
    problem = mixture(4.0, schedule=schedule)
    settings: dict[str, Any] = {"lower": -6.0, "upper": 6.0, "nodes": 257}
    truth = solve(
        elementwise(problem),
        lambda x: x,
        horizon=8,
        temperature=4.0,
        spacing=0.4,
        largest_control=2,
        **settings,
    )
    found = grid_of(problem, 12, **settings)
    x = torch.linspace(-2, 2, 41, **DOUBLE)[:, None]
    for k in range(8):
        assert torch.allclose(found.value(k, x), truth.read(truth.value, k, x)[:, 0], atol=1e-6)
        assert torch.allclose(found.control(k, x), truth.read(truth.control, k, x), atol=1e-6)


@pytest.mark.parametrize("schedule", [Schedule.ddpm(8), StepTable.rectified_flow(8, shift=3.0)])
def test_the_closed_form_of_one_mode_is_reached(schedule: Any) -> None:
    """The step's mean is then the exact conditional mean of the next state, so that a linear reward
    has no error of the step size in its control.
    """
    reward = QuadraticReward([[0.0]], [0.0], [1.5])
    problem = GaussianMixture([[0.7]], 0.4, reward, 0.8, schedule=schedule, **DOUBLE)
    agent = PIFT("ExactPolicy", ProblemEnv(problem), seed=0, device="cpu", n_trajectories=4)
    agent.learn(3 * 4 * 8)
    x = torch.linspace(-2, 2, 41, **DOUBLE)[:, None]
    for k in range(7):
        wanted = problem.reference_control(k, x)
        assert wanted.abs().min() > 1e-3
        assert torch.allclose(agent.policy.control(k, x), wanted, rtol=0, atol=1e-6)
        slope = agent.policy.iterates.value(k, x).diff() / x[:, 0].diff()
        true = problem.reference_value(k, x).diff() / x[:, 0].diff()
        assert torch.allclose(slope, true, rtol=0, atol=1e-6)


def test_grid_contraction_is_at_most_lambda() -> None:
    """lambda_k with the largest slope of grad V_{k+1} anywhere on the grid."""
    problem = mixture(4.0)
    found = grid_of(problem, 6, lower=-6.0, upper=6.0, nodes=257)
    x = found.nodes[:, None].clone().requires_grad_()
    for k in range(problem.horizon - 1):
        (slope,) = torch.autograd.grad(found.value(k + 1, x).sum(), x)
        bend = (slope.diff(dim=0).abs() / found.nodes.diff()[:, None]).max()
        predicted = float(problem.schedule.sigma[k] ** 2 * bend / 4.0)
        change = found.inner[k].diff(dim=0).abs().amax(1)
        assert (change[1:] <= predicted * change[:-1] * (1 + 1e-3) + 1e-10).all()


# --- continuous time


def test_euler_maruyama_chains_approach_the_limit_at_first_order() -> None:
    """Han et al., eq. (78)-(79), by the Riccati equation; errors of value and control against the
    step, on fitted lines.
    """
    A = torch.tensor([[-0.5, 1.0], [-1.0, 0.2]], **DOUBLE)
    G = torch.tensor([[0.3], [1.0]], **DOUBLE)
    R, Q = (
        torch.diag(torch.tensor([0.5, 0.1], **DOUBLE)),
        torch.diag(torch.tensor([1.0, 0.5], **DOUBLE)),
    )
    c, q, slope = (torch.tensor(v, **DOUBLE) for v in ([0.1, -0.2], [0.3, 0.0], [1.0, -0.5]))
    shared: dict[str, Any] = {
        "offset": c,
        "running_slope": q,
        "terminal_slope": slope,
        "temperature": 0.8,
    }
    matrices = {"drift_matrix": A, "control_matrix": G, "running_matrix": R, "terminal_matrix": Q}
    limit = riccati_limit(**matrices, **shared, duration=1.0)
    sizes, errors = [], []
    for steps in (20, 40, 80, 160):
        step = 1 / steps
        chain = LinearQuadratic.ornstein_uhlenbeck(
            2, **matrices, **shared, steps=steps, step_size=step, **DOUBLE
        )
        found = iterate_quadratics(chain, 25)
        rates = (
            found.gain[0] / math.sqrt(step),
            found.shift[0] / math.sqrt(step),
        )  # u = a / sqrt(step)
        ours = (found.matrix[0], found.slope[0], found.constant[0], *rates)
        sizes.append(math.log(step))
        errors.append([math.log(float((a - b).norm())) for a, b in zip(ours, limit, strict=True)])
    design = torch.stack([torch.tensor(sizes, **DOUBLE), torch.ones(4, **DOUBLE)], 1)
    order = torch.linalg.lstsq(design, torch.tensor(errors, **DOUBLE)).solution[0]
    assert ((order > 0.9) & (order < 1.1)).all(), order


def test_limit_that_explodes_is_refused() -> None:
    one, zero = torch.ones(1, 1), torch.zeros(1)
    with pytest.raises(
        ValueError, match="temperature must be large enough for a finite value; got 0.5"
    ):
        riccati_limit(
            drift_matrix=one,
            control_matrix=one,
            running_matrix=-one,
            terminal_matrix=-one,
            offset=zero,
            running_slope=zero,
            terminal_slope=zero,
            duration=5.0,
            temperature=0.5,
        )


# --- the agent


def test_agent_improves_to_the_optimum_and_survives_a_checkpoint(tmp_path: Path) -> None:
    problem = line()
    agent = PIFT(ExactPolicy, problem, n_trajectories=4, seed=0)
    x = torch.randn(6, 1, **DOUBLE)
    assert torch.equal(agent.policy.control(0, x), torch.zeros_like(x))
    agent.learn(30 * 4 * problem.horizon)
    assert torch.allclose(agent.policy.control(2, x), problem.optimal_control(2, x), atol=1e-8)
    agent.set_env(line(temperature=5.0))
    assert torch.allclose(
        agent.policy.control(2, x), line(temperature=5.0).optimal_control(2, x), atol=1e-8
    )


def test_agent_on_a_grid() -> None:
    problem = mixture(4.0, steps=4)
    agent = PIFT(
        ExactPolicy, problem, n_trajectories=4, seed=0, policy_kwargs={"grid": {"nodes": 65}}
    )
    agent.learn(2 * 4 * 4)
    assert isinstance(agent.policy, ExactPolicy)
    assert isinstance(agent.policy.iterates, GridIterates)
    assert len(agent.policy.iterates.inner[0]) == 3
    assert float(agent.policy.control(1, torch.zeros(2, 1, **DOUBLE)).min()) > 0


def test_messages() -> None:
    with pytest.raises(
        ValueError, match="iterations must be an integer of at least 0, or 8 of them; got -1"
    ):
        iterate_quadratics(line(), -1)
    with pytest.raises(
        ValueError, match="temperatures must be one number or 8 of them, one a step; got 2"
    ):
        iterate_quadratics(line(), 1, [1.0, 2.0])
    with pytest.raises(ValueError, match="temperatures must be a positive number; got 0.0"):
        per_step("temperatures", [1.0, 0.0], 2)
    with pytest.raises(
        ValueError,
        match=r"state_shape and noise_shape must be \(1,\) for a grid; got \(2,\) and \(2,\)",
    ):
        PIFT(ExactPolicy, make_problem("girsanov/GaussianMixture-v0"))
    with pytest.raises(ValueError, match="lower must be below upper; got 1.0 and 1.0"):
        grid_of(line(), 1, lower=1.0, upper=1.0)
