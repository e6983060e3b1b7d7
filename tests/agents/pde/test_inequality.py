"""Variational inequalities over the cone and the ball: closed forms, complementarity, and the law
itself on random points.
"""

import pytest
import torch
from torch import Tensor

from girsanov.agents.pde.classes.inequality import solve_ball, solve_positive

SIZE = 40


def a_form(seed: int, size: int = SIZE) -> tuple[Tensor, Tensor, torch.Generator]:
    """A positive definite matrix that is not symmetric, a right-hand side, and the generator to go
    on with.
    """
    g = torch.Generator().manual_seed(seed)
    root, skew = torch.randn(2, size, size, generator=g, dtype=torch.float64)
    matrix = (
        root @ root.T / size + 0.05 * torch.eye(size, dtype=torch.float64) + 0.3 * (skew - skew.T)
    )
    return matrix, torch.randn(size, generator=g, dtype=torch.float64), g


@pytest.mark.parametrize("seed", range(5))
def test_solve_positive_meets_the_complementarity_conditions(seed):
    """w >= 0, A w - b >= 0 and w . (A w - b) = 0 say the same as the variational inequality over
    the cone.
    """
    matrix, vector, g = a_form(seed)
    w = solve_positive(matrix, vector)
    slack = matrix @ w - vector
    assert (w >= 0).all() and slack.min() > -1e-8
    assert abs(float(w @ slack)) < 1e-8
    assert (
        0 < int((w > 0).sum()) < SIZE
    )  # the constraint binds somewhere, or the test would be about a linear solve
    u = 3 * torch.rand(1000, SIZE, generator=g, dtype=torch.float64)
    assert ((u - w) @ slack).min() > -1e-8


def test_solve_positive_is_a_linear_solve_where_nothing_binds():
    matrix, _, g = a_form(1)
    wanted = 0.5 + torch.rand(SIZE, generator=g, dtype=torch.float64)
    assert torch.allclose(solve_positive(matrix, matrix @ wanted), wanted, rtol=1e-8)


def test_solve_positive_is_zero_where_nothing_pulls_inwards():
    matrix, vector, _ = a_form(2)
    assert not solve_positive(matrix, -vector.abs()).any()


@pytest.mark.parametrize("ridge", [1e-6, 1e-4])
@pytest.mark.parametrize("seed", range(3))
def test_solve_positive_on_overlapping_bumps(ridge, seed):
    """300 Gaussian bumps on a line are nearly dependent: pivoting cycles, and has to end at a
    solution all the same.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 1, generator=g, dtype=torch.float64)
    bumps = torch.exp(-0.5 * (x - x.T).square())
    matrix = bumps @ bumps.T / 300
    matrix += ridge * matrix.diagonal().mean() * torch.eye(300, dtype=torch.float64)
    vector = torch.randn(300, generator=g, dtype=torch.float64)
    w = solve_positive(matrix, vector)
    slack = matrix @ w - vector
    assert (w >= 0).all() and slack.min() > -1e-6
    assert float((w * slack).abs().max()) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_solve_positive_where_weight_and_slack_are_both_almost_zero(seed):
    """Which of the two is positive can't be told before both are known to a millionth: a strongly
    skew form.
    """
    matrix, _, g = a_form(seed, 200)
    _, skew = torch.randn(2, 200, 200, generator=g, dtype=torch.float64)
    matrix = matrix + 5 * (skew - skew.T)
    draw = torch.randn(200, generator=g, dtype=torch.float64)
    small = torch.where(torch.arange(200) % 2 == 0, 3e-7, 1.0)  # as shares of the largest
    wanted, slack = draw.clamp(min=0) * small, (-draw).clamp(min=0) * small
    vector = matrix @ wanted - slack
    scale = float(vector.abs().max() / matrix.diagonal().mean())
    assert torch.allclose(solve_positive(matrix, vector), wanted, atol=1e-9 * scale)


def test_solve_positive_says_so_where_there_is_no_solution():
    """``-w - 1 >= 0`` and ``w >= 0``."""
    eye = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="matrix must be positive definite; no solution"):
        solve_positive(-eye, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6])
def test_solve_positive_scales_with_its_right_hand_side(scale):
    """The solution over a cone is homogeneous: no threshold may be absolute."""
    matrix, vector, _ = a_form(3)
    assert torch.allclose(
        solve_positive(matrix, scale * vector) / scale, solve_positive(matrix, vector), rtol=1e-8
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_solve_ball_meets_the_inequality_where_it_binds(seed, radius):
    matrix, vector, g = a_form(seed)
    assert torch.linalg.solve(matrix, vector).norm() > radius
    w = solve_ball(matrix, vector, radius)
    assert float(w.norm()) <= radius and float(w.norm()) == pytest.approx(radius, rel=1e-9)
    u = torch.randn(1000, SIZE, generator=g, dtype=torch.float64)
    u *= (
        radius * torch.rand(1000, 1, generator=g, dtype=torch.float64) / u.norm(dim=1, keepdim=True)
    )
    u[0] = w + 1e-3 * (vector - matrix @ w)  # the direction that would break it first
    u[0] *= min(1.0, radius / float(u[0].norm()))
    assert ((u - w) @ (matrix @ w - vector)).min() > -1e-7
    multiplier = (vector - matrix @ w) @ w / radius**2  # the slack points along w
    assert multiplier > 0 and torch.allclose(vector - matrix @ w, multiplier * w, atol=1e-7)


def test_solve_ball_is_a_linear_solve_where_it_does_not_bind():
    matrix, vector, _ = a_form(0)
    free = torch.linalg.solve(matrix, vector)
    assert torch.equal(solve_ball(matrix, vector, 1.001 * float(free.norm())), free)
    assert not torch.equal(solve_ball(matrix, vector, 0.999 * float(free.norm())), free)


@pytest.mark.parametrize("kind", ["ones", "zero", "rank one of many"])
def test_solve_ball_of_a_singular_matrix_stays_in_the_ball(kind):
    """Features may be dependent (fewer times in the data than features of time): finite weights
    that solve what can be.
    """
    matrix, vector = {
        "ones": (torch.ones(2, 2), torch.ones(2)),
        "zero": (torch.zeros(3, 3), torch.zeros(3)),
        "rank one of many": (
            torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 9)),
            torch.arange(1.0, 9),
        ),
    }[kind]
    matrix, vector = matrix.double(), vector.double()
    w = solve_ball(matrix, vector, 10.0)
    assert torch.isfinite(w).all() and w.norm() <= 10.0
    assert torch.allclose(matrix @ w, vector, atol=1e-6)
