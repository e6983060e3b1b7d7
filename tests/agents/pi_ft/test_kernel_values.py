"""Kernel regression of values: leave-one-out in closed form against leaving out, gradients, and
what it can learn.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from girsanov.agents.pi_ft.kernel_values import KernelValues

HORIZON, PATHS, SIZE = 3, 40, 4


def data(contexts: int = 1, noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(HORIZON, PATHS, SIZE, generator=generator, dtype=torch.float64)
    which = torch.randint(contexts, (PATHS,), generator=generator)
    clean = 3.0 * which + states[..., 0] + 0.5 * states[..., 1].square()
    return (
        states,
        clean + noise * torch.randn(HORIZON, PATHS, generator=generator, dtype=torch.float64),
        which,
    )


def refit(
    values: KernelValues, k: int, x: Tensor, y: Tensor, which: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """The textbook's equations: a kernel, and a mean for each context that costs nothing."""
    distance = torch.cdist(x, x).square() / values.unit[k] + (which[:, None] != which)
    kernel = torch.exp(-0.5 * distance / values.scale[k]) + ridge * torch.eye(len(x), dtype=x.dtype)
    means = (which[:, None] == which.unique()).to(x)
    zeros = torch.zeros(means.shape[1], means.shape[1], dtype=x.dtype)
    block = torch.cat([torch.cat([kernel, means], 1), torch.cat([means.T, zeros], 1)])
    solution = torch.linalg.solve(block, torch.cat([y, zeros[0]]))
    return solution[: len(x)], solution[len(x) :]


@pytest.mark.parametrize("contexts", [1, 3])
def test_the_fit_and_its_left_out_error_are_the_textbooks(contexts: int) -> None:
    states, returns, which = data(contexts)
    values = KernelValues(states, returns, which)
    for k in range(HORIZON):
        x, y = states[k], returns[k]
        weights = values.weights[k]
        predicted = values(k, x, which)
        ridge = float(
            ((y - predicted) / weights).median()
        )  # residuals of a ridge fit are ridge * weights
        assert any(abs(ridge / 10.0**power - 1) < 1e-6 for power in range(-4, 3))
        torch.testing.assert_close(refit(values, k, x, y, which, ridge)[0], weights)
        errors = []
        for i in range(PATHS):
            rest = torch.arange(PATHS) != i
            alpha, means = refit(values, k, x[rest], y[rest], which[rest], ridge)
            distance = torch.cdist(x[i : i + 1], x[rest]).square() / values.unit[k] + (
                which[i] != which[rest]
            )
            guess = (
                torch.exp(-0.5 * distance / values.scale[k])[0] @ alpha
                + means[which[rest].unique() == which[i]]
            )
            errors.append(y[i] - guess)
        counts = (which[:, None] == which).sum(1)
        own = torch.stack([y[which == c].mean() for c in which])
        alone = (
            ((y - own) * counts / (counts - 1)).square().mean()
        )  # a left-out return against the mean of the others
        assert float(values.explained[k]) == pytest.approx(
            1 - float(torch.stack(errors).square().mean() / alone), rel=1e-6
        )


def test_gradients_are_those_of_the_values() -> None:
    states, returns, which = data(2)
    values = KernelValues(states, returns, which)
    x = torch.randn(
        6, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    k, contexts = torch.tensor([0, 2, 1, 1, 0, 2]), which[:6]
    total = sum(
        values(int(step), x[i : i + 1], contexts[i : i + 1]).sum() for i, step in enumerate(k)
    )
    (wanted,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(values.gradient(k, x.detach(), contexts), wanted)


def test_what_it_learns() -> None:
    states, returns, which = data(2, noise=0.0)
    assert KernelValues(states, returns, which).explained.min() > 0.9
    generator = torch.Generator().manual_seed(3)
    noise = KernelValues(
        states, torch.randn(HORIZON, PATHS, generator=generator, dtype=torch.float64), which
    )
    assert noise.explained.max() < 0.2
    flat = KernelValues(states, torch.ones_like(returns), which)
    rows = torch.arange(HORIZON)
    assert not flat.gradient(rows, states[:, 0], which[:HORIZON]).any()
    torch.testing.assert_close(flat(1, states[1], which), torch.ones(PATHS, dtype=torch.float64))


def test_two_paths_and_equal_states_do_no_harm() -> None:
    for states in (
        torch.zeros(HORIZON, 2, SIZE),
        torch.randn(HORIZON, 2, SIZE, generator=torch.Generator().manual_seed(0)),
    ):
        values = KernelValues(
            states, torch.tensor([[0.0, 1.0]] * HORIZON), torch.zeros(2, dtype=torch.long)
        )
        assert torch.isfinite(
            values.gradient(
                torch.arange(HORIZON), states[:, 0], torch.zeros(HORIZON, dtype=torch.long)
            )
        ).all()
