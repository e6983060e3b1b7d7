"""The mixture's score and its closed-form reference, against automatic differentiation, integration
and sampling.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.envs.certificates import certificate
from girsanov.envs.diffusion.denoising import Schedule
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.problem import Estimate, objective, rollout

LINEAR, QUADRATIC = "linear", "quadratic"


def random_mixture(d: int = 2, kind: str = QUADRATIC, **change: Any) -> GaussianMixture:
    """Three modes of unequal weights and widths."""
    g = torch.Generator().manual_seed(d)
    root, target, slope, means = (
        torch.randn(*s, generator=g, dtype=torch.float64) for s in ((d, d), (d,), (d,), (3, d))
    )
    matrix = torch.zeros(d, d) if kind == LINEAR else root @ root.T - 0.1 * torch.eye(d)
    arguments: dict[str, Any] = {
        "means": means,
        "std": [0.3, 0.5, 0.2],
        "weights": [0.5, 1.5, 1.0],
        "reward": QuadraticReward(matrix, target, slope),
        "temperature": 0.8,
        "dtype": torch.float64,
    }
    return GaussianMixture(**{**arguments, **change})


def clean_samples(
    problem: GaussianMixture, n: int, weights: Tensor, generator: torch.Generator
) -> Tensor:
    mode = torch.multinomial(weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, problem.means.shape[1], generator=generator, dtype=torch.float64)
    return problem.means[mode] + problem.std[mode, None] * noise


@pytest.mark.parametrize("d", [1, 2, 3])
def test_score_is_the_gradient_of_the_log_density(d: int, generator: torch.Generator) -> None:
    problem = random_mixture(d)
    for k in range(problem.horizon):
        x = torch.randn(50, d, generator=generator, dtype=torch.float64).mul(2).requires_grad_()
        (gradient,) = torch.autograd.grad(problem.log_density(k, x).sum(), x)
        with torch.no_grad():
            torch.testing.assert_close(
                problem.score(k, x),
                gradient,
                rtol=0,
                atol=1e-10 * max(1, float(gradient.abs().max())),
            )


def test_log_density_integrates_to_one() -> None:
    line = torch.linspace(-8, 8, 801, dtype=torch.float64)
    area = float(line[1] - line[0])
    for k in (0, 20, 45, 50):
        assert random_mixture(1).log_density(k, line[:, None]).exp().sum() * area == pytest.approx(
            1, abs=1e-9
        )
    plane = torch.cartesian_prod(line, line)
    for k in (0, 45):
        assert random_mixture(2).log_density(k, plane).exp().sum() * area**2 == pytest.approx(
            1, abs=1e-9
        )


def test_log_density_is_that_of_the_noised_samples(generator: torch.Generator) -> None:
    """E log p_k under samples made by the forward process equals minus the entropy found on a
    grid.
    """
    problem = random_mixture(1)
    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    clean = clean_samples(problem, 200_000, torch.tensor([0.5, 1.5, 1.0]), generator)
    for k in (10, 40, 50):
        bar = problem.schedule.alpha_bar[k] if k < 50 else torch.tensor(1.0, dtype=torch.float64)
        noised = bar.sqrt() * clean + (1 - bar).sqrt() * torch.randn(
            200_000, 1, generator=generator, dtype=torch.float64
        )
        log_p = problem.log_density(k, line)
        entropy = float((log_p.exp() * log_p).sum() * (line[1] - line[0]))
        found = Estimate.of(problem.log_density(k, noised))
        assert abs(found.mean - entropy) < 3 * found.stderr < 0.01


def test_uncontrolled_paths_end_in_the_mixture(generator: torch.Generator) -> None:
    """Up to the step size: the first two moments, and the weights of the modes."""
    means = [[-2.0], [2.0]]
    problem = GaussianMixture(
        means, 0.3, lambda x: x[:, 0], 1.0, weights=[1.0, 3.0], schedule=Schedule.ddpm(200)
    )
    x = rollout(problem, None, 20_000, generator).states[-1][:, 0]
    assert (x > 0).float().mean() == pytest.approx(0.75, abs=0.02)
    assert x[x > 0].mean() == pytest.approx(2.0, abs=0.02) and x[x > 0].std() == pytest.approx(
        0.3, abs=0.02
    )


@pytest.mark.parametrize("kind", [LINEAR, QUADRATIC])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_reference_value_at_the_end_is_the_reward(
    d: int, kind: str, generator: torch.Generator
) -> None:
    problem = random_mixture(d, kind)
    x = torch.randn(20, d, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        problem.reference_value(50, x), problem.terminal_reward(x), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("kind", [LINEAR, QUADRATIC])
@pytest.mark.parametrize("d", [1, 3])
def test_reference_value_against_the_sampled_posterior(
    d: int, kind: str, generator: torch.Generator
) -> None:
    """Bayes by brute force: clean samples weighted by the likelihood of ``X_k = x`` given each."""
    problem = random_mixture(d, kind)
    clean = clean_samples(problem, 400_000, torch.tensor([0.5, 1.5, 1.0]), generator)
    factor = (problem.terminal_reward(clean) / problem.temperature).exp()
    for k in (0, 25, 38):
        bar = problem.schedule.alpha_bar[k]
        for x in bar.sqrt() * problem.means + 0.3 * (1 - bar).sqrt():
            likelihood = (-0.5 * (x - bar.sqrt() * clean).square().sum(1) / (1 - bar)).exp()
            share = likelihood / likelihood.sum()
            mean = (share * factor).sum()
            stderr = (share * (factor - mean)).square().sum().sqrt()
            exact = (problem.reference_value(k, x[None])[0] / problem.temperature).exp()
            assert abs(mean - exact) < 4 * stderr < 0.2 * exact


def test_the_expectation_over_the_start_is_the_same_at_every_step(
    generator: torch.Generator,
) -> None:
    """``E exp(V_k(X_k) / beta)`` is ``E exp(y / beta)`` for X_k noised from the data: a
    martingale.
    """
    problem = random_mixture(1)
    line = torch.linspace(-10, 10, 4001, dtype=torch.float64)[:, None]
    totals = [
        float(
            (
                (
                    problem.reference_value(k, line) / problem.temperature
                    + problem.log_density(k, line)
                ).exp()
            ).sum()
            * 0.005
        )
        for k in (0, 15, 30, 45, 50)
    ]
    assert totals == pytest.approx([totals[-1]] * 5, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_reference_control_beats_none_and_not_the_certificate(
    temperature: float, generator: torch.Generator
) -> None:
    problem = random_mixture(2, temperature=temperature)
    free = objective(problem, None, 4_000, generator).objective
    best = objective(problem, problem.reference_control, 4_000, generator).objective
    bound = certificate(problem, 40_000, generator)
    assert best.mean - free.mean > 5 * math.hypot(best.stderr, free.stderr)
    assert best.mean < bound.bound + 3 * math.hypot(best.stderr, bound.stderr)
    assert (best.mean - free.mean) / (bound.bound - free.mean) > 0.85
    reverse = objective(
        problem, lambda k, x: -problem.reference_control(k, x), 4_000, generator
    ).objective
    assert reverse.mean < free.mean


def test_reference_control_is_the_gradient_of_the_reference_value(
    generator: torch.Generator,
) -> None:
    problem = random_mixture(3)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    k, step = 30, 1e-5
    mean, sigma = problem.gaussian_kernel(k, x)
    for i in range(3):
        move = step * torch.eye(3, dtype=torch.float64)[i]
        slope = (
            problem.reference_value(k + 1, mean + move)
            - problem.reference_value(k + 1, mean - move)
        ) / (2 * step)
        torch.testing.assert_close(
            problem.reference_control(k, x)[:, i], sigma * slope / 0.8, rtol=1e-6, atol=1e-8
        )


def test_quadratic_reward() -> None:
    reward = QuadraticReward([[2.0, 1.0], [1.0, 4.0]], [1.0, -1.0], [0.5, 0.0])
    x = torch.tensor([[3.0, 0.0]])  # off target by (2, 1)
    assert float(reward(x)) == pytest.approx(-0.5 * (8 + 4 + 4) + 1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": [0.0, 1.0]}, r"means must have shape \(modes, dimension\); got \(2,\)"),
        (
            {"weights": [1.0, 0.0, 1.0]},
            "weights and std must hold one positive number for each of the 3 modes",
        ),
        (
            {"weights": [1.0, 1.0]},
            "weights and std must hold one positive number for each of the 3 modes",
        ),
        ({"std": -0.1}, "weights and std must hold one positive number for each of the 3 modes"),
        ({"temperature": -1.0}, "temperature must be a positive number; got -1.0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_mixture(**change)


def test_what_has_no_closed_form_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"matrix, target and slope must have shapes \(d, d\), \(d,\), \(d,\)"
    ):
        QuadraticReward([[1.0]], [0.0, 1.0])
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="reference_value needs a QuadraticReward; got function"):
        random_mixture(reward=lambda x: x[:, 0]).reference_value(0, x)
    explosive = QuadraticReward(-100 * torch.eye(2), [0.0, 0.0])
    with pytest.raises(ValueError, match="is infinite"):
        random_mixture(reward=explosive).reference_value(0, x)
