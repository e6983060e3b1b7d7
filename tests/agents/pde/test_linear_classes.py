"""Linear classes against closed forms: what each represents exactly, its derivatives, its convex
set.
"""

import math

import pytest
import torch
from torch import Tensor

from girsanov.agents.pde.classes.length_scale import (
    FourierValue,
    KernelValue,
    RadialValue,
    median_distance,
)
from girsanov.agents.pde.classes.linear import ExponentialValue, LinearValue, PolynomialValue

HORIZON = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def placed(value: LinearValue, n_inputs: int = 2, weights: bool = True) -> LinearValue:
    """Standardised and placed on data that are neither centred nor of unit scale; random weights of
    its set.
    """
    data = 2 * normal(400, n_inputs, seed=1) + 1
    value.standardise.fit(data)
    value.place(torch.arange(400) % (HORIZON + 1), data, generator(2))
    if weights:
        value.weights.copy_(value.project(0.3 * normal(*value.weights.shape, seed=3)))
    value.offset.fill_(0.7)
    return value


def four() -> dict[str, LinearValue]:
    return {
        "polynomial": placed(PolynomialValue(2, HORIZON, times=3)),
        "fourier": placed(FourierValue(2, HORIZON, features=20, times=3)),
        "kernel": placed(KernelValue(2, HORIZON, centres=15, times=3)),
        "radial": placed(RadialValue(2, HORIZON, centres=25)),
    }


FOUR = pytest.mark.parametrize("name", ["polynomial", "fourier", "kernel", "radial"])


@pytest.mark.parametrize("dimension", [1, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_hold_every_polynomial_of_their_degree(dimension, degree):
    """Least squares on the features reproduces random monomials up to the degree, and not the next
    power.
    """
    value = placed(PolynomialValue(dimension, HORIZON, degree=degree), dimension)
    x = 2 * normal(300, dimension, seed=5) + 1
    space = value.space(0, x)
    assert space.shape[1] == math.comb(dimension + degree, degree)

    def missed(target: Tensor) -> float:
        solved = torch.linalg.lstsq(space, target[:, None]).solution
        return float((space @ solved - target[:, None]).abs().max())

    powers = torch.randint(dimension, (5, degree), generator=generator(6))
    for power in powers:
        assert missed(x[:, power].prod(1)) < 1e-9
    assert missed(x[:, 0] ** (degree + 1)) > 0.1


def test_separable_polynomials_hold_powers_of_single_coordinates_and_no_product():
    value = placed(PolynomialValue(3, HORIZON, degree=3, interaction=1), 3)
    x = normal(300, 3, seed=5)
    space = value.space(0, x)
    assert space.shape[1] == 1 + 3 * 3
    for target, held in ((x[:, 2] ** 3 - x[:, 0] ** 2, True), (x[:, 0] * x[:, 1], False)):
        off = space @ torch.linalg.lstsq(space, target[:, None]).solution - target[:, None]
        assert (float(off.abs().max()) < 1e-9) is held
    pairs = PolynomialValue(3, HORIZON, degree=3, interaction=2)
    assert pairs.weights.shape[1] == math.comb(6, 3) - 1  # all but x y z


def test_many_inputs_make_polynomials_separable_by_themselves():
    assert PolynomialValue(30, HORIZON, degree=2).weights.shape[1] == math.comb(32, 2)
    assert PolynomialValue(64, HORIZON, degree=2).weights.shape[1] == 1 + 2 * 64


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (PolynomialValue, name, value)
        for name in ("degree", "interaction", "times")
        for value in (0, 1.5, True)
    ]
    + [
        (FourierValue, "features", 0),
        (FourierValue, "times", -1),
        (KernelValue, "centres", 0),
        (RadialValue, "centres", 2.0),
    ],
)
def test_counts_must_be_whole_and_at_least_one(kind, name, value):
    with pytest.raises(
        ValueError, match=f"^{name} must be a whole number of at least 1; got {value}$"
    ):
        kind(2, HORIZON, **{name: value})


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, "radius") for kind in (PolynomialValue, FourierValue, KernelValue)]
    + [(FourierValue, "length"), (KernelValue, "length")]
    + [(RadialValue, name) for name in ("width", "span")],
)
def test_sizes_must_be_positive(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive number; got {value}$"):
        kind(2, HORIZON, **{name: value})


def test_hermite_features_are_orthonormal_under_the_normal_law():
    """The Gram matrix of features at 200,000 standard normal draws is the identity, each entry
    within 5 standard errors.
    """
    value = PolynomialValue(2, HORIZON, degree=3)  # not standardised: scale one, centre zero
    space = value.space(0, normal(200_000, 2, seed=7))
    for i in range(space.shape[1]):
        product = space * space[:, i : i + 1]
        mean, stderr = product.mean(0), product.std(0) / math.sqrt(len(space))
        wanted = torch.zeros_like(mean)
        wanted[i] = 1
        assert ((mean - wanted).abs() < 5 * stderr + 1e-12).all()


def test_polynomial_with_features_of_time_interpolates_every_step():
    """With T + 1 features of time, any quadratic at every step is held exactly."""
    value = placed(PolynomialValue(2, HORIZON, times=HORIZON + 1))
    x = normal(50, 2, seed=8)
    truth = [
        -0.5 * (k + 1) * x.square().sum(1) + math.sin(k) * x[:, 0] * x[:, 1] + k**3
        for k in range(HORIZON + 1)
    ]
    by_step = torch.stack(
        [
            torch.linalg.lstsq(value.space(k, x), t[:, None]).solution[:, 0]
            for k, t in enumerate(truth)
        ]
    )
    value.weights.copy_(torch.linalg.solve(value.time_table, by_step))
    for k, wanted in enumerate(truth):
        assert torch.allclose(value(k, x), wanted + value.offset[k], atol=1e-9)
        assert torch.allclose(value.tangent(k, x).log_f, wanted + value.offset[k], atol=1e-9)


@FOUR
def test_one_step_for_all_rows_or_one_a_row(name):
    value, x = four()[name], normal(7, 2)
    k = torch.arange(7)
    assert torch.allclose(
        value(k, x), torch.cat([value(int(i), x[j : j + 1]) for j, i in enumerate(k)])
    )


def test_fourier_features_approximate_the_gaussian_kernel():
    """The mean over waves has standard deviation at most 1 / sqrt(features) around the kernel."""
    value = placed(FourierValue(2, HORIZON, features=20_000, length=0.8), weights=False)
    x = 2 * normal(40, 2, seed=9) + 1
    waves = value.space(0, x)[:, 3:]
    u = value.standardise(x)
    scale = 0.8 * median_distance(value.standardise(2 * normal(400, 2, seed=1) + 1))
    kernel = torch.exp(-0.5 * torch.cdist(u, u).square() / scale**2)
    assert kernel.min() < 0.1 and (waves @ waves.T - kernel).abs().max() < 5 / math.sqrt(20_000)


def test_whitened_kernel_features_give_back_the_kernel():
    """K^{-1/2} k: inner products with any state at the centres are the kernel, and the basis
    function's norm is one.
    """
    value = placed(KernelValue(2, HORIZON, centres=12, length=0.5), weights=False)
    assert isinstance(value, KernelValue)
    centres = value.centres * value.standardise.scale + value.standardise.centre
    x = 2 * normal(30, 2, seed=9) + 1
    u = value.standardise(x)
    phi, at_centres = value.space(0, x)[:, 3:], value.space(0, centres)[:, 3:]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * torch.cdist(a, b).square() / value.scale**2)

    assert torch.allclose(phi @ at_centres.T, kernel(u, value.centres), atol=1e-8)
    assert torch.allclose(
        at_centres @ at_centres.T, kernel(value.centres, value.centres), atol=1e-8
    )
    assert (phi.square().sum(1) <= 1 + 1e-9).all()  # a projection of k(x, .), whose norm is one


def test_kernel_survives_centres_that_coincide():
    value = KernelValue(2, HORIZON, centres=30)
    data = normal(5, 2).repeat(20, 1)
    value.standardise.fit(data)
    value.place(torch.zeros(100, dtype=torch.long), data, generator())
    assert (
        torch.isfinite(value.space(0, data)).all()
        and (value.space(0, data)[:, 3:].square().sum(1) < 1 + 1e-6).all()
    )


def test_radial_value_is_positive_everywhere_for_non_negative_weights():
    value = four()["radial"]
    assert isinstance(value, RadialValue)
    for scale in (1.0, 30.0, 1e3, 1e6):
        log_f = value(3, scale * normal(50, 2))
        assert (
            torch.isfinite(log_f).all()
            and (log_f >= math.log(value.floor) + float(value.offset[3]) - 1e-12).all()
        )


@FOUR
def test_tangent_is_the_derivative_by_the_weights(name):
    """time (x) space against autograd of log f."""
    value, x = four()[name], normal(6, 2, seed=4)
    for k in (0, 2, HORIZON):
        found = value.tangent(k, x)
        assert torch.allclose(found.log_f, value(k, x))
        ours = torch.einsum("t,nm->ntm", value.time_table[k], value.mixed(found.space))
        weights = value.weights.clone().requires_grad_()
        value.weights = weights
        theirs = torch.stack(
            [torch.autograd.grad(value(k, x[i : i + 1]).sum(), weights)[0] for i in range(6)]
        )
        value.weights = weights.detach()
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@FOUR
def test_gradient_by_the_state_equals_finite_differences(name):
    value, x = four()[name], normal(6, 2, seed=4).requires_grad_()
    (gradient,) = torch.autograd.grad(value(2, x).sum(), x)
    assert gradient.abs().max() > 1e-2
    step = 1e-5
    with torch.no_grad():
        for i in range(2):
            shift = step * torch.eye(2, dtype=torch.float64)[i]
            numeric = (value(2, x + shift) - value(2, x - shift)) / (2 * step)
            assert torch.allclose(gradient[:, i], numeric, rtol=1e-5, atol=1e-7)


@FOUR
def test_bounded_stays_within_the_bounds_and_changes_nothing_inside(name):
    value, x = four()[name], normal(200, 2, seed=4)
    assert torch.equal(value.bounded(1, x), value(1, x))  # no bounds yet
    free = value(1, x)
    low, high = (float(free.quantile(q)) for q in (0.2, 0.8))
    value.bounds.copy_(torch.tensor([low, high]) - value.offset[1])
    held = value.bounded(1, x)
    assert float(held.min()) == pytest.approx(low, rel=1e-6) and float(held.max()) == pytest.approx(
        high, rel=1e-6
    )
    inside = (free > low) & (free < high)
    assert torch.equal(held[inside], free[inside]) and 0 < int(inside.sum()) < 200


@FOUR
def test_project_lands_in_the_set_stays_there_and_is_the_nearest_point(name):
    value = four()[name]
    if isinstance(value, ExponentialValue):
        value.radius = 2.0
    outside = 3 * normal(*value.weights.shape, seed=5)

    def belongs(w: Tensor) -> bool:
        return (
            bool((w >= 0).all())
            if isinstance(value, RadialValue)
            else float(w.norm()) <= 2.0 * (1 + 1e-12)
        )

    once = value.project(outside)
    assert not belongs(outside) and belongs(once)
    assert torch.allclose(value.project(once), once, rtol=1e-12, atol=0)
    for seed in range(20):  # the angle to any point of the set is obtuse
        other = value.project(normal(*value.weights.shape, seed=seed))
        assert float(((outside - once) * (other - once)).sum()) < 1e-9
    assert not value.project(torch.zeros_like(outside)).any()


@FOUR
def test_solve_obeys_the_inequality_over_the_set(name):
    """With the matrix of a regression of noise, and no ridge but the least."""
    value = four()[name]
    if isinstance(value, ExponentialValue):
        value.radius = 0.5
    design = normal(500, value.weights.numel(), seed=6)
    matrix, vector = design.T @ design, design.T @ normal(500, seed=7) * 8
    (w,) = value.solve(matrix, matrix, vector, [1e-12])
    assert torch.allclose(value.project(w.view_as(value.weights)).flatten(), w, rtol=1e-9)
    slack = matrix @ w - vector
    assert slack.norm() > 1  # the set binds
    for seed in range(20):
        u = value.project(normal(*value.weights.shape, seed=seed)).flatten()
        assert float((u - w) @ slack) > -1e-5 * float(slack.norm())


def test_the_ridge_leaves_functions_of_time_alone():
    """A constant target is met exactly however large the ridge; any other is shrunk."""
    value = placed(PolynomialValue(2, HORIZON, times=1))
    space = value.space(0, 2 * normal(500, 2, seed=1) + 1)
    matrix = space.T @ space
    (constant,) = value.solve(
        matrix, matrix, space.T @ torch.full((500,), 3.0, dtype=torch.float64), [1e3]
    )
    assert float(constant[0]) == pytest.approx(3.0, rel=1e-4) and constant[1:].abs().max() < 1e-2
    assert value.solve(matrix, matrix, space.T @ space[:, 1], [1e3])[0][1] < 0.1


def test_the_ridge_of_a_gram_matrix_is_ridge_regression():
    value = placed(PolynomialValue(2, HORIZON, times=1))
    space = value.space(0, 2 * normal(500, 2, seed=1) + 1)
    gram, vector = space.T @ space, space.T @ normal(500, seed=2)
    unit = gram.diagonal().mean()
    for ridge, found in zip(
        (1e-3, 1e-1), value.solve(gram, gram, vector, [1e-3, 1e-1]), strict=True
    ):
        plain = torch.linalg.solve(
            gram + ridge * unit * torch.diag(value.penalties().flatten()), vector
        )
        assert torch.allclose(found, plain, rtol=1e-3, atol=1e-5)


def test_no_ridge_makes_a_form_singular_that_is_not_coercive():
    """One eigenvalue is minus the ridge, as noise makes it with few data: added to the matrix, the
    ridge would cancel it.
    """
    value = placed(PolynomialValue(2, HORIZON, times=1))
    gram = torch.eye(6, dtype=torch.float64)
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1e-3], dtype=torch.float64))
    vector = 0.1 * torch.ones(6, dtype=torch.float64)
    (w,) = value.solve(matrix, gram, vector, [1e-3])
    assert torch.allclose(w[:5], vector[:5], rtol=2e-3) and abs(float(w[5])) < 0.11


def test_median_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert float(median_distance(x)) == 2.0  # of 1, 2, 3
    assert float(median_distance(torch.ones(5, 2))) == 1.0
    assert float(median_distance(torch.ones(1, 2))) == 1.0


def test_radial_solves_a_form_that_is_not_coercive_by_a_proximal_step():
    """Few data: the solution of the form made coercive; repeated steps that settle down have solved
    the form itself.
    """
    value = placed(RadialValue(2, HORIZON, centres=25))
    design, noise = normal(15, 25, seed=6), 0.2 * normal(25, 25, seed=7)
    matrix, vector = design.T @ design / 15 + noise - noise.T, normal(25, seed=8)
    matrix -= 0.02 * torch.eye(25, dtype=torch.float64)
    assert torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))[0] < -0.01
    for _ in range(200):
        (w,) = value.solve(matrix, matrix, vector, [0.0])
        value.weights.copy_(w.view_as(value.weights))
    slack = matrix @ w - vector
    assert (
        (w >= 0).all()
        and (w > 0).any()
        and slack.min() > -1e-4
        and float((w * slack).abs().max()) < 1e-4
    )
