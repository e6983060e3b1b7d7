"""What stands for the expected later value, on a linear chain with quadratic log f: the Gaussian
integral is known.
"""

import math

import pytest
import torch
from torch import Tensor

from girsanov.agents.networks import NeuralValue, encode
from girsanov.agents.pde.classes.length_scale import FourierValue, KernelValue, RadialValue
from girsanov.agents.pde.classes.linear import LinearValue, PolynomialValue
from girsanov.agents.pde.lookahead import FreshNoise, Generator, Lookahead, Observed
from girsanov.agents.pde.replay import Replay
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout
from girsanov.envs.recording import Recording

HORIZON = 4
CURVATURE = torch.tensor(
    [[0.8, 0.3], [0.3, -0.2]], dtype=torch.float64
)  # of either sign: f need not be bounded here
SLOPE = torch.tensor([0.5, -0.4], dtype=torch.float64)
ROTATION = torch.tensor([[-0.2, 0.7], [-0.7, -0.1]], dtype=torch.float64)
NOISE = torch.tensor([[1.0, 0.3], [-0.2, 0.8]], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(step: float) -> LinearQuadratic:
    eye = torch.eye(2, dtype=torch.float64)
    return LinearQuadratic(
        drift_matrix=eye + step * ROTATION,
        noise_matrix=step**0.5 * NOISE,
        offset=step * SLOPE,
        terminal_matrix=eye,
        horizon=HORIZON,
        temperature=1.0,
        dtype=torch.float64,
    )


def quadratic(x: Tensor) -> Tensor:
    return x @ SLOPE - 0.5 * ((x @ CURVATURE) * x).sum(1) + 0.3


def quadratic_value() -> PolynomialValue:
    """``quadratic`` as a polynomial, the same at every step."""
    value = PolynomialValue(2, HORIZON, times=1)
    x = torch.randn(50, 2, generator=generator(9), dtype=torch.float64)
    value.weights.copy_(torch.linalg.lstsq(value.space(0, x), quadratic(x)[:, None]).solution.T)
    return value


def integral(problem: LinearQuadratic, x: Tensor) -> Tensor:
    """``log E exp(quadratic(F(x, W)))``."""
    C = problem.noise_matrix[0]
    mean = problem.transition(0, x, torch.zeros_like(x))
    M = torch.eye(2, dtype=torch.float64) + C.T @ CURVATURE @ C
    h = (SLOPE - mean @ CURVATURE) @ C
    return quadratic(mean) + 0.5 * (h @ torch.linalg.inv(M) * h).sum(1) - 0.5 * torch.logdet(M)


def states(n: int = 5) -> Tensor:
    return 0.7 * torch.randn(n, 2, generator=generator(3), dtype=torch.float64)


def unused(x: Tensor) -> Tensor:
    """Fresh forms must not look at the recorded later state."""
    return torch.full_like(x, torch.nan)


def four() -> dict[str, LinearValue]:
    values: dict[str, LinearValue] = {
        "polynomial": PolynomialValue(2, HORIZON, times=3),
        "fourier": FourierValue(2, HORIZON, features=12, times=3),
        "kernel": KernelValue(2, HORIZON, centres=9, times=3),
        "radial": RadialValue(2, HORIZON, centres=15),
    }
    data = torch.randn(200, 2, generator=generator(1), dtype=torch.float64)
    for value in values.values():
        value.standardise.fit(data)
        value.place(torch.arange(200) % (HORIZON + 1), data, generator(2))
        weights = torch.randn(value.weights.shape, generator=generator(4), dtype=torch.float64)
        value.weights.copy_(value.project(0.3 * weights))
    return values


def test_observed_is_the_recorded_state():
    value, x = quadratic_value(), states()
    later = states(5) + 1
    form = Observed()
    assert not form.fresh and torch.equal(form.log_value(value, 1, x, 3, later), value(3, later))
    assert torch.equal(form.tangent(value, 1, x, 3, later).space, value.space(3, later))
    value.bounds.copy_(torch.tensor([-0.1, 0.1]))
    assert form.log_value(value, 1, x, 3, later).abs().max() <= 0.1 + 1e-6


def test_fresh_noise_averages_to_the_gaussian_integral():
    """f averaged over 40 independent calls, each of 500 pairs, within 4 standard errors; no lookup
    of the recorded state.
    """
    problem, value, x = chain(0.5), quadratic_value(), states()
    calls = [
        FreshNoise(problem, 500, generator(s)).log_value(value, 0, x, 1, unused(x)).exp()
        for s in range(40)
    ]
    f = torch.stack(calls)
    stderr = f.std(0) / math.sqrt(40)
    wanted = integral(problem, x).exp()
    assert ((f.mean(0) - wanted).abs() < 4 * stderr).all()
    assert (
        stderr / wanted
    ).max() < 0.02  # the test means something: forgetting the noise is 20 errors away
    at_mean = quadratic(problem.transition(0, x, torch.zeros_like(x))).exp()
    assert ((at_mean - wanted).abs() > 10 * stderr).any()


def test_one_antithetic_pair_is_unbiased_for_f():
    problem, value = chain(0.5), quadratic_value()
    x = states(1).expand(40_000, 2)
    f = FreshNoise(problem, 1, generator()).log_value(value, 0, x, 1, unused(x)).exp()
    assert abs(f.mean() - integral(problem, x[:1]).exp()) < 4 * f.std() / 200


def test_one_draw_integrates_a_linear_log_f():
    """Draws around the gradient carry weights that make them agree, even where log f moves 7 within
    one step's noise.
    """
    problem = chain(1.0)
    value = PolynomialValue(2, HORIZON, degree=1, times=1)
    value.weights[0, 1:] = 4 * SLOPE
    x = states(2000)
    found = FreshNoise(problem, 1, generator()).log_value(value, 0, x, 1, unused(x))
    mean = value(0, problem.transition(0, x, torch.zeros_like(x)))
    assert torch.allclose(found, mean + 0.5 * (4 * NOISE.T @ SLOPE).square().sum(), atol=1e-4)


def test_the_generator_errs_by_the_square_of_the_step():
    value, x = quadratic_value(), states()

    def error(step: float) -> float:
        problem = chain(step)
        found = Generator(problem).log_value(value, 0, x, 1, unused(x))
        return float((found - integral(problem, x)).abs().max())

    coarse, half, quarter = error(0.04), error(0.02), error(0.01)
    assert quarter > 1e-5  # above rounding
    assert 3.5 < coarse / half < 4.3 and 3.7 < half / quarter < 4.2


@pytest.mark.parametrize("probes", [1, 4])
def test_hutchinson_is_unbiased(probes):
    """40,000 rows of one state: value and tangent within 4 standard errors of the exact trace, with
    variance 1 / probes.
    """
    problem, value, x = chain(0.5), quadratic_value(), states(1)
    exact = Generator(problem)
    many = x.expand(40_000, 2)
    form = Generator(problem, probes, generator())
    found = form.log_value(value, 0, many, 1, unused(many))
    assert found.std() > 1e-3  # directions differ between rows
    assert abs(found.mean() - exact.log_value(value, 0, x, 1, unused(x))) < 4 * found.std() / 200
    tangent, wanted = (
        form.tangent(value, 0, many, 1, unused(many)),
        exact.tangent(value, 0, x, 1, unused(x)),
    )
    assert abs(tangent.log_f.mean() - wanted.log_f) < 4 * tangent.log_f.std() / 200
    assert (
        (tangent.space.mean(0) - wanted.space[0]).abs() < 4 * tangent.space.std(0) / 200 + 1e-6
    ).all()
    single = Generator(problem, 1, generator(1)).log_value(value, 0, many, 1, unused(many))
    assert float(found.var() / single.var()) == pytest.approx(1 / probes, rel=0.1)


@pytest.mark.parametrize("name", ["polynomial", "fourier", "kernel", "radial"])
@pytest.mark.parametrize("form", ["observed", "fresh", "generator", "hutchinson"])
def test_tangents_are_the_derivative_of_the_value_by_the_weights(name, form):
    """With the same noise; ``time (x) space`` of the later step against autograd."""
    problem, value, x = chain(0.3), four()[name], states()

    def make() -> Lookahead:
        return {
            "observed": Observed(),
            "fresh": FreshNoise(problem, 3, generator(5)),
            "generator": Generator(problem),
            "hutchinson": Generator(problem, 2, generator(5)),
        }[form]

    k, later_k, later = 1, 2, states() + 0.1
    found = make().tangent(value, k, x, later_k, later)
    ours = torch.einsum("t,nm->ntm", value.time_table[later_k], value.mixed(found.space))
    weights = value.weights.clone().requires_grad_()
    value.weights = weights
    log_f = make().log_value(value, k, x, later_k, later)
    theirs = torch.stack([torch.autograd.grad(one, weights, retain_graph=True)[0] for one in log_f])
    value.weights = weights.detach()
    if form != "hutchinson":  # whose directions are drawn once more by one of the two
        assert torch.allclose(found.log_f, log_f.detach(), rtol=1e-6, atol=1e-6)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        assert ours.shape == theirs.shape and torch.isfinite(ours).all()


def test_one_step_for_all_rows_or_one_a_row():
    problem, value, x = chain(0.3), four()["polynomial"], states()
    k = torch.tensor([0, 1, 2, 3, 1])
    exact = Generator(problem)
    by_row = exact.log_value(value, k, x, k + 1, unused(x))
    one_by_one = [exact.log_value(value, int(k[i]), x[i : i + 1], 0, unused(x)) for i in range(5)]
    assert torch.allclose(by_row, torch.cat(one_by_one), atol=1e-6)
    fresh = [
        FreshNoise(problem, 2, generator(6)).log_value(value, s, x, k, unused(x))
        for s in (torch.full((5,), 2), 2)
    ]
    assert torch.allclose(fresh[0], fresh[1])


@pytest.mark.parametrize("probes", [0, 1])
def test_the_generator_of_a_network(probes):
    """Against the Hessian by reverse-mode automatic differentiation; a single noise has one
    direction, so no chance is left.
    """
    problem = LinearQuadratic(
        drift_matrix=torch.eye(2),
        noise_matrix=[[0.5], [0.2]],
        terminal_matrix=torch.eye(2),
        horizon=HORIZON,
        temperature=1.0,
    )
    torch.manual_seed(0)
    value = NeuralValue(2, HORIZON, (16, 16), members=2)
    torch.nn.init.normal_(value.network.weights[-1], std=0.5)
    x = states().float()
    with torch.no_grad():
        found = Generator(problem, probes, generator()).log_value(value, 1, x, 2, unused(x))
    for i in range(len(x)):

        def v(z: Tensor, row: Tensor = x[i : i + 1]) -> Tensor:
            return value(2, problem.transition(1, row, z[None]))[0]

        zero = torch.zeros(1)
        slope = torch.autograd.functional.jacobian(v, zero)
        curvature = torch.autograd.functional.hessian(v, zero)
        assert float(found[i]) == pytest.approx(
            float((v(zero) + 0.5 * (curvature[0, 0] + slope[0] ** 2)).detach()), abs=1e-4
        )


def test_every_form_keeps_to_the_bounds():
    problem, value, x = chain(0.5), quadratic_value(), states()
    value.bounds.copy_(torch.tensor([-0.1, 0.2]))
    for form in (FreshNoise(problem, 4, generator()), Generator(problem)):
        found = form.log_value(value, 0, x, 1, unused(x))
        assert found.min() >= -0.1 - 1e-6 and found.max() <= 0.2 + 1e-6


@pytest.mark.parametrize("name", ["chain", "Digits"])
def test_branches_are_the_recorded_state_and_its_mirror_image(name):
    """Around the control that was taken, with the weights of the change of measure."""
    problem = chain(0.5) if name == "chain" else make_problem("girsanov/Digits-v0", steps=4)

    def control(k, x):
        return torch.full((len(x), *problem.noise_shape), 0.3, dtype=x.dtype)

    paths = rollout(problem, control, 5, generator())
    data = Replay.of(problem, Recording.of(paths))
    for pairs in (1, 2):
        one = data.branched(FreshNoise(problem, pairs, generator()).branches)
        assert one.branches.shape == (5, 4, 2 * pairs, data.inputs.shape[2])
        assert one.log_ratios.shape == (5, 4, 2 * pairs)
        for k in range(4):
            x, a, w = paths.states[k], paths.controls[k], paths.noises[k]
            assert torch.equal(one.branches[:, k, 0], data.inputs[:, k + 1])
            mirrored = encode(problem, k + 1, problem.transition(k, x, a - w)).float()
            assert torch.allclose(one.branches[:, k, pairs], mirrored, atol=1e-4)
            for i, noise in ((0, w), (pairs, -w)):
                wanted = -(a * noise + 0.5 * a.square()).flatten(1).sum(1).float()
                assert torch.allclose(one.log_ratios[:, k, i], wanted, atol=1e-5)


def test_branches_are_unbiased_whatever_the_control():
    problem, value = chain(0.5), quadratic_value()
    x = torch.tensor([[0.4, -0.7]], dtype=torch.float64).expand(20_000, -1)
    paths = rollout(problem, lambda k, x: 0.5 * torch.sin(x), len(x), generator(1), start=x)
    data = Replay.of(problem, Recording.of(paths))
    form = FreshNoise(problem, 2, generator())
    later, log_ratio = form.branches(data, 0, 0)
    f = (value(1, later.flatten(0, 1).double()).view(4, -1) + log_ratio).exp().mean(0)
    assert abs(f.mean() - integral(problem, x[:1]).exp()) < 4 * f.std() / math.sqrt(len(x))
    without = data._replace(noises=None)
    later, log_ratio = form.branches(without, 0, 0)
    f = value(1, later.flatten(0, 1).double()).view(4, -1).exp().mean(0)
    assert not log_ratio.any()
    assert abs(f.mean() - integral(problem, x[:1]).exp()) < 4 * f.std() / math.sqrt(len(x))
