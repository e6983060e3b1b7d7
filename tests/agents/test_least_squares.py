"""Least squares that come out the same each time."""

from __future__ import annotations

import pytest
import torch

from girsanov.agents.least_squares import least_squares

DOUBLE = {"dtype": torch.float64}


def test_equal_arguments_give_equal_bits_whatever_lies_in_memory(
    generator: torch.Generator,
) -> None:
    """Torch's default driver starts from unset pivots: 257 of 400 calls differed from the first."""
    matrix = torch.cos(torch.arange(6) * torch.linspace(0, 3, 6, **DOUBLE)[:, None])  # type: ignore[arg-type]
    target = torch.randn(6, 6, generator=generator, **DOUBLE)  # type: ignore[call-overload]
    first, kept = least_squares(matrix, target), []
    for i in range(200):
        kept.append(torch.full((1 + i % 60,), i % 7 - 3, dtype=torch.int32))
        del kept[:-30:2]
        assert torch.equal(least_squares(matrix, target), first)


def test_it_solves_batches_and_takes_the_shortest_of_several(generator: torch.Generator) -> None:
    matrix = torch.randn(3, 9, 4, generator=generator, **DOUBLE)  # type: ignore[call-overload]
    target = torch.randn(3, 9, 2, generator=generator, **DOUBLE)  # type: ignore[call-overload]
    found = least_squares(matrix, target)
    normal = torch.linalg.solve(matrix.mT @ matrix, matrix.mT @ target)
    torch.testing.assert_close(found, normal)
    twice = matrix[0, :, [0, 1, 1]]
    w = least_squares(twice, target[0])
    torch.testing.assert_close(w[1], w[2])
    assert float((twice.T @ (twice @ w - target[0])).abs().max()) == pytest.approx(0, abs=1e-9)
