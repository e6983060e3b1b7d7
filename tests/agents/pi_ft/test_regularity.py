"""Lipschitz constants against measured ones, rates against errors, thresholds against both; and
what the agent is told.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from girsanov.agents.pi_ft.exact import grid_of
from girsanov.agents.pi_ft.lipschitz import (
    Chain,
    Smoothness,
    chain_of,
    denoising_chain,
    estimate_chain,
    linear_quadratic_chain,
    mixture_chain,
    mixture_score,
    network_smoothness,
    reward_smoothness,
)
from girsanov.agents.pi_ft.regularity import (
    RegularityWarning,
    check_temperature,
    iterate_regularity,
    optimum_regularity,
    predicted_errors,
    quadratic_contraction,
    score_units,
    smallest_temperature,
    temperatures_for,
)
from girsanov.envs import make_problem
from girsanov.envs.diffusion.denoising import Schedule
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic

Function = Callable[[Tensor], Tensor]
STEPS = 4


def mixture(
    means: Any, std: float, temperature: float = 1.0, steps: int = STEPS
) -> GaussianMixture:
    """Rewarded linearly: the theorem asks for a Lipschitz reward."""
    d = len(means[0])
    slope = torch.arange(1, d + 1) / d
    reward = QuadraticReward(torch.zeros(d, d), torch.zeros(d), slope)
    return GaussianMixture(
        means, std, reward, temperature, schedule=Schedule.ddpm(steps), dtype=torch.float64
    )


LINE = [[-1.0], [1.0]]
TRIANGLE = [[1.0, 0.0], [-0.6, 0.7], [-0.5, -0.9]]


# --- measured constants


def gradient(function: Function) -> Function:
    """The Jacobian ``(n, outputs * d)`` of ``(n, d) -> (n,)`` or ``(n, outputs)``,
    differentiable.
    """

    def jacobian(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            out = function(x)
            columns = out.reshape(len(x), -1).unbind(1)
            return torch.cat(
                [torch.autograd.grad(c.sum(), x, create_graph=True)[0] for c in columns], 1
            )

    return jacobian


def lipschitz(function: Function, d: int, box: float = 2.5) -> float:
    """Largest ``|f(x) - f(y)| / |x - y|`` (of matrices: in operator norm) over 1,000 pairs, and by
    ascent from the best.
    """
    generator = torch.Generator().manual_seed(0)
    x = box * (2 * torch.rand(1000, d, generator=generator, dtype=torch.float64) - 1)
    way = torch.randn(1000, d, generator=generator, dtype=torch.float64)
    length = 10 ** (2.5 * torch.rand(1000, 1, generator=generator, dtype=torch.float64) - 2)
    y = (x + way / way.norm(dim=1, keepdim=True) * length).clamp(-box, box)

    def ratio(pair: Tensor) -> Tensor:
        x, y = pair.unbind(1)
        change = function(x) - function(y)
        size = (
            change.norm(dim=1)
            if change.shape[1] <= d
            else torch.linalg.matrix_norm(change.view(len(x), -1, d), 2)
        )
        return size / (x - y).norm(dim=1).clamp(min=1e-3)

    pairs = torch.stack([x, y], 1)
    with torch.no_grad():
        first = ratio(pairs)
    best = pairs[first.topk(16).indices].clone().requires_grad_()
    optimizer = torch.optim.Adam([best], lr=0.02)
    found = [float(first.max())]
    for _ in range(25):
        value = ratio(best.clamp(-box, box))
        found.append(float(value.detach().max()))
        optimizer.zero_grad()
        (-value.log().sum()).backward()
        optimizer.step()
    return max(found)


class Chebyshev:
    """Functions on an interval or a square by interpolation; differentiable, and constant beyond
    the edges.
    """

    def __init__(self, values: Tensor, half: float) -> None:
        n = len(values)
        angle = math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n
        table = torch.cos(torch.arange(n, dtype=torch.float64)[:, None] * angle) * 2 / n
        table[0] /= 2
        for axis in range(values.dim() - 1):
            values = torch.tensordot(table, values, ([1], [axis])).movedim(0, axis)
        self.coefficients = values.movedim(-1, 0)
        self.half = half

    @staticmethod
    def nodes(n: int, half: float, d: int) -> Tensor:
        points = half * torch.cos(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        return torch.cartesian_prod(*[points] * d).view(-1, d)

    def __call__(self, x: Tensor) -> Tensor:
        angle = torch.arccos((x / self.half).clamp(-1 + 1e-12, 1 - 1e-12))
        orders = torch.arange(self.coefficients.shape[1], dtype=torch.float64)
        first, *second = torch.cos(angle[..., None] * orders).unbind(1)
        outputs = [first @ c for c in self.coefficients]
        for polynomials in second:
            outputs = [(out * polynomials).sum(1) for out in outputs]
        return torch.stack(outputs, 1)


def iterates(
    problem: GaussianMixture, beta: float, iterations: int, n: int, half: float
) -> tuple[list[Function], list[Function]]:
    """Algorithm 1 by quadrature and interpolation: V_k of steps 0..T and a_k of steps 0..T-1."""
    d = problem.state_shape[0]
    z, weight = (torch.tensor(t) for t in np.polynomial.hermite_e.hermegauss(9))
    noise = torch.cartesian_prod(*[z] * d).view(-1, d)
    mass = torch.cartesian_prod(*[weight] * d).view(-1, d).prod(1) / (2 * math.pi) ** (d / 2)
    x = Chebyshev.nodes(n, half, d)
    values: list[Function] = [lambda x: problem.terminal_reward(x)[:, None]]
    controls: list[Function] = []
    for k in reversed(range(problem.horizon)):
        mean, sigma = problem.gaussian_kernel(k, x)

        def ahead(a: Tensor, mean: Tensor = mean, sigma: Any = sigma) -> Tensor:
            later = (mean + sigma * a)[:, None] + sigma * noise
            return values[-1](later.flatten(0, 1)).view(len(a), -1)

        a = torch.zeros_like(x)
        for _ in range(iterations):
            a = ahead(a) @ (mass[:, None] * noise) / beta
        value = ahead(a) @ mass - 0.5 * beta * a.square().sum(1)
        values.append(Chebyshev(value.view(*[n] * d, 1), half))
        controls.append(Chebyshev(a.view(*[n] * d, d), half))
    return values[::-1], controls[::-1]


@pytest.mark.parametrize("iterations", [1, 20])
@pytest.mark.parametrize(("means", "std"), [(LINE, 0.4), (TRIANGLE, 0.7)])
def test_theorem_2_8_on_mixtures(means: Any, std: float, iterations: int) -> None:
    """Constants of V_k, grad V_k, u_k and its Jacobian at every k, for the optimum (14-17) and an
    early iterate (38-39).
    """
    problem, d = mixture(means, std), len(means[0])
    chain = mixture_chain(problem)
    beta = 1.5 * smallest_temperature(chain)
    bounds = (
        optimum_regularity(chain, beta) if iterations == 20 else iterate_regularity(chain, beta)
    )
    score = mixture_score(problem)
    control, bend = score_units(bounds, problem.schedule, score)
    values, controls = iterates(problem, beta, iterations, *((400, 6.0) if d == 1 else (32, 5.0)))
    schedule, close = problem.schedule, []
    for k in range(STEPS):
        unit = schedule.alpha[k].sqrt() * schedule.sigma[k] / (1 - schedule.alpha[k])

        def u(x: Tensor, k: int = k, unit: Tensor = unit) -> Tensor:
            return problem.score(k, x) + unit * controls[k](x)

        for name, function, bound in (
            ("V", values[k], bounds.value[k]),
            ("grad V", gradient(values[k]), bounds.value_gradient[k]),
            ("u", u, control[k]),
            ("D u", gradient(u), bend[k]),
        ):
            measured = lipschitz(function, d)
            assert measured <= float(bound) * (1 + 1e-6), (name, k, measured, float(bound))
            close.append(measured / float(bound))
    assert (
        max(close) > 0.9
    )  # somewhere the bounds are nearly attained: a smaller constant would fail


@pytest.mark.parametrize(
    ("means", "std", "sizes", "half", "error"),
    [(LINE, 0.4, (400, 480), 6.0, 1e-6), (TRIANGLE, 0.7, (28, 34), 5.0, 1e-4)],
)
def test_the_interpolation_is_accurate(
    means: Any, std: float, sizes: tuple[int, int], half: float, error: float
) -> None:
    problem = mixture(means, std)
    coarse, fine = (iterates(problem, 2.0, 3, n, half)[0][0] for n in sizes)
    x = 2.5 * (2 * torch.rand(200, len(means[0]), dtype=torch.float64) - 1)
    assert torch.allclose(coarse(x), fine(x), atol=error)


@pytest.mark.parametrize(("means", "std"), [(LINE, 0.4), (TRIANGLE, 0.7)])
def test_scores_and_means_of_mixtures(means: Any, std: float) -> None:
    """No sample exceeds the constants, and those of two modes are attained."""
    problem, d = mixture(means, std), len(means[0])
    chain, score = mixture_chain(problem), mixture_score(problem)
    for k in range(STEPS):

        def s(x: Tensor, k: int = k) -> Tensor:
            return problem.score(k, x)

        def mean(x: Tensor, k: int = k) -> Tensor:
            return problem.gaussian_kernel(k, x)[0]

        for function, bound in (
            (s, score[k].function),
            (gradient(s), score[k].gradient),
            (mean, float(chain.mean[k])),
            (gradient(mean), float(chain.mean_jacobian[k])),
        ):
            measured = lipschitz(function, d)
            assert measured <= bound * (1 + 1e-9)
            if d == 1 and k >= 2:  # earlier the worst states are far out
                assert measured > 0.97 * bound


# --- formulas


def test_paper_constants_term_by_term() -> None:
    """(14)-(17) as written in MATH.md section 4, against the recursion in noise units."""
    problem = mixture(TRIANGLE, 0.7)
    schedule, score, d, beta = problem.schedule, mixture_score(problem), 2, 100.0
    bounds = optimum_regularity(denoising_chain(schedule, score, Smoothness(0.8, 0.3), d), beta)
    control, bend = score_units(bounds, schedule, score)
    L0, L1 = 0.8, 0.3
    C = math.sqrt(2) * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    for k in reversed(range(STEPS)):
        alpha, sigma = float(schedule.alpha[k]), float(schedule.sigma[k])
        s0, s1 = score[k]
        factor = sigma**2 * L1 / beta
        u0 = (s0 + factor / (1 - alpha)) / (1 - factor)
        smooth = (
            C * sigma * L1 * (1 + (1 - alpha) * u0) ** 2 / (beta * math.sqrt(alpha) * (1 - alpha))
        )
        u1 = (s1 + smooth) / (1 - factor)
        L1 = (1 + (1 - alpha) * s0) * (1 + (1 - alpha) * u0) * L1 / alpha + (
            1 - alpha
        ) * s1 * L0 / math.sqrt(alpha)
        L0 = (1 + (1 - alpha) * s0) * L0 / math.sqrt(alpha)
        found = [
            bounds.contraction[k],
            control[k],
            bend[k],
            bounds.value[k],
            bounds.value_gradient[k],
        ]
        assert [float(t) for t in found] == pytest.approx([factor, u0, u1, L0, L1], rel=1e-9)


def test_paper_constants_are_never_below_the_sharp_ones() -> None:
    problem = mixture(TRIANGLE, 0.7)
    paper = denoising_chain(
        problem.schedule, mixture_score(problem), reward_smoothness(problem.reward), 2
    )
    sharp = mixture_chain(problem)
    assert smallest_temperature(paper) > smallest_temperature(sharp)
    for a, b in zip(optimum_regularity(paper, 1e4), optimum_regularity(sharp, 1e4), strict=True):
        assert (a >= b * (1 - 1e-12)).all()


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9, 0.99])
def test_iterates_bound_is_the_largest_of_the_recursion(factor: float) -> None:
    """(38)-(39) at one step, by running the recursions of Lemma 3.2 over m."""
    L, L1, s, c, U, U1 = 1.2, 0.4, 0.7, 0.8, 2.0, 1.5
    beta = s**2 * U1 / factor
    as_table = [torch.tensor([v], dtype=torch.float64) for v in (L, L1, s)]
    found = iterate_regularity(Chain(*as_table, Smoothness(U, U1), smoothing=c), beta)
    a = jacobian = previous = 0.0
    move, slope = s * U / beta, factor * L / s
    best_value = best_gradient = 0.0
    for m in range(3000):
        y = L + s * a
        if m:
            slope = factor * slope + c / beta * U1 * s * previous * y
        best_value = max(best_value, L * U + beta * a * move)
        best_gradient = max(
            best_gradient, L1 * U + L * U1 * y + beta * (jacobian * move + a * slope)
        )
        jacobian = U1 / beta * (c * y**2 + s * L1) + factor * jacobian
        a, previous, move = factor * (L / s + a), move, factor * move
    assert float(found.value[0]) == pytest.approx(best_value, rel=1e-9)
    assert float(found.value_gradient[0]) == pytest.approx(best_gradient, rel=1e-9)
    assert float(found.value_gradient[0]) > float(
        optimum_regularity(Chain(*as_table, Smoothness(U, U1)), beta).value[0]
    )


def convex(temperature: float, curvature: float = -1.0) -> LinearQuadratic:
    return LinearQuadratic(
        drift_matrix=[[0.9]],
        noise_matrix=[[0.5]],
        terminal_matrix=[[curvature]],
        horizon=6,
        temperature=temperature,
        dtype=torch.float64,
    )


def test_bounds_are_exact_for_convex_rewards_of_a_linear_chain() -> None:
    problem = convex(4.0)
    bounds = optimum_regularity(linear_quadratic_chain(problem), 4.0)
    assert torch.allclose(bounds.value_gradient, -problem.solution.matrix[:, 0, 0])
    assert torch.allclose(bounds.contraction, quadratic_contraction(problem))
    assert torch.allclose(bounds.control, problem.solution.gain[:, 0, 0].abs())
    assert math.isinf(bounds.value[0])


def test_smallest_temperature_is_the_threshold() -> None:
    for chain in (mixture_chain(mixture(LINE, 0.4)), linear_quadratic_chain(convex(4.0))):
        for target in (1.0, 0.3):
            beta = smallest_temperature(chain, target)
            assert iterate_regularity(chain, beta * (1 + 1e-6)).rate < target
            assert iterate_regularity(chain, beta * (1 - 1e-6)).rate >= target
    # convex, in one dimension and one step: sigma^2 |Q|
    single = LinearQuadratic(
        drift_matrix=[[0.9]],
        noise_matrix=[[0.5]],
        terminal_matrix=[[-2.0]],
        horizon=1,
        temperature=9.0,
    )
    assert smallest_temperature(linear_quadratic_chain(single)) == pytest.approx(0.5, rel=1e-6)


def test_temperatures_per_step_have_the_asked_contraction() -> None:
    chain = mixture_chain(mixture(LINE, 0.4))
    betas = temperatures_for(chain, 0.5)
    found = iterate_regularity(chain, betas).contraction
    controlled = (chain.noise > 0) & (found > 0)
    assert torch.allclose(found[controlled], torch.full_like(found, 0.5)[controlled])
    assert int(controlled.sum()) == STEPS - 1  # the last step has no noise


def test_theorem_3_1_errors_fall_below_the_prediction() -> None:
    """Distance of Algorithm 1 with m_k = m from the optimum, over a grid: below the bound, which
    falls with the rate.
    """
    problem = mixture(LINE, 0.4)
    chain = mixture_chain(problem)
    beta = 1.5 * smallest_temperature(chain)
    settings: dict[str, Any] = {"temperatures": beta, "lower": -6.0, "upper": 6.0, "nodes": 257}
    optimum = grid_of(problem, 25, **settings)
    x = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)[:, None]
    for m in (1, 2, 4):
        found, bound = grid_of(problem, m, **settings), predicted_errors(chain, beta, m)
        for k in range(STEPS):
            assert (
                float((found.control(k, x) - optimum.control(k, x)).abs().max())
                <= float(bound.control[k]) + 1e-9
            )
    rate = iterate_regularity(chain, beta).rate
    tail = [float(predicted_errors(chain, beta, m).control.max()) for m in (200, 201)]
    assert tail[1] / tail[0] == pytest.approx(rate, rel=0.02)


def test_unreachable_guarantee_is_infinite() -> None:
    """A quadratic reward has no Lipschitz constant, which a nonlinear score needs."""
    chain = mixture_chain(make_problem("girsanov/GaussianMixture-v0"))  # type: ignore[arg-type]
    assert smallest_temperature(chain) == math.inf
    assert iterate_regularity(chain, 100.0).rate == math.inf


# --- networks and estimates


def test_network_constants_hold() -> None:
    network = nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2)
    ).double()
    bound = network_smoothness(network)
    assert lipschitz(network, 3) <= bound.function
    assert lipschitz(gradient(network), 3) <= bound.gradient


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2)])
def test_convolution_norm(size: int, stride: int) -> None:
    layer = nn.Conv2d(2, 3, size, stride=stride, padding=size // 3, bias=False).double()
    eye = torch.eye(2 * 16, dtype=torch.float64).view(-1, 2, 4, 4)
    exact = float(torch.linalg.matrix_norm(layer(eye).flatten(1), 2).detach())
    bound = network_smoothness(nn.Sequential(layer)).function
    assert exact <= bound * (1 + 1e-12)
    assert bound < 3 * exact
    if stride == size:
        assert bound == pytest.approx(exact)


@pytest.mark.slow
def test_estimates_are_below_the_truth_and_close() -> None:
    problem = mixture(LINE, 0.4)
    truth, found = mixture_chain(problem), estimate_chain(problem, torch.Generator().manual_seed(0))
    assert truth.certified and not found.certified
    assert (found.mean <= truth.mean * (1 + 1e-6)).all() and (found.mean >= 0.9 * truth.mean).all()
    assert (found.mean_jacobian <= truth.mean_jacobian * (1 + 1e-2) + 1e-9).all()
    assert torch.allclose(found.noise, truth.noise)
    assert found.terminal.function == pytest.approx(truth.terminal.function)
    chain = make_problem("girsanov/LinearQuadratic-v0").to(dtype=torch.float64)
    exact, estimated = (
        chain_of(chain),
        estimate_chain(chain, torch.Generator().manual_seed(0), iterations=50),
    )
    assert torch.allclose(estimated.mean, exact.mean, rtol=1e-3)
    assert estimated.terminal.gradient == pytest.approx(exact.terminal.gradient, rel=1e-3)


# --- what the agent is told


class Logger:
    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def record(self, name: str, value: float) -> None:
        self.seen[name] = value


@pytest.mark.slow
def test_warning_below_the_threshold_and_silence_above() -> None:
    logger = Logger()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = check_temperature(convex(4.0), logger)
    assert logger.seen == {"train/lambda_max": rate} and 0 < rate < 1
    assert rate == pytest.approx(float(quadratic_contraction(convex(4.0)).max()))
    concave = convex(0.1, curvature=1.0)  # its optimum exists; policy iteration does not find it
    with pytest.warns(
        RegularityWarning, match=r"at temperature 0.1 convergence .* lambda = 2.5 \(exact\)"
    ):
        check_temperature(concave, logger)
    problem = mixture(LINE, 0.4)
    threshold = smallest_temperature(mixture_chain(problem))
    with pytest.warns(
        RegularityWarning, match=rf"\(a certified bound\); from {threshold:.3g} on it is"
    ):
        check_temperature(problem, temperatures=0.9 * threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_temperature(problem, temperatures=[1.01 * threshold] * STEPS) < 1
    with pytest.warns(RegularityWarning, match="which has no Lipschitz constant, it is at none"):
        check_temperature(make_problem("girsanov/GaussianMixture-v0"))
    with pytest.warns(RegularityWarning, match="estimated"):
        check_temperature(make_problem("girsanov/Pendulum-v0", temperature=1e-3))


def test_messages() -> None:
    with pytest.raises(ValueError, match="contraction must be above 0 and at most 1; got 2"):
        smallest_temperature(mixture_chain(mixture(LINE, 0.4)), 2)
    with pytest.raises(ValueError, match="std must be the same for all modes"):
        mixture_chain(
            GaussianMixture(LINE, [0.3, 0.4], QuadraticReward([[0.0]], [0.0], [1.0]), 1.0)
        )
    with pytest.raises(
        ValueError,
        match="reward must be a QuadraticReward or have an attribute smoothness .*; got function",
    ):
        mixture_chain(GaussianMixture(LINE, 0.3, lambda x: x[:, 0], 1.0))
    with pytest.raises(
        ValueError, match="network must consist of Linear, Conv2d and .*; got LayerNorm"
    ):
        network_smoothness(nn.Sequential(nn.LayerNorm(3)))
