"""Rewards that return what people's rewards return; images that are grey, or transparent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs.diffusion.denoising import DenoisingProblem
from girsanov.envs.diffusion.step_table import StepTable
from girsanov.envs.rewards.combination import WeightedSum
from girsanov.envs.rewards.conversion import rewards_of, rgb
from girsanov.envs.rewards.images import Brightness, Incompressibility, make_reward
from girsanov.envs.rewards.weights import pixels

IMAGES = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 2, 2) / 24
MEANS = IMAGES.flatten(1).mean(1)
RETURNED = {
    "tensor": lambda m: m,
    "column": lambda m: m[:, None],
    "double": lambda m: m.double(),
    "list": lambda m: m.tolist(),
    "tuple": lambda m: tuple(m.tolist()),
    "tensors": lambda m: list(m),
    "tuple of tensors": lambda m: tuple(m),
    "numpy": lambda m: m.numpy(),
    "numpy column": lambda m: m.numpy()[:, None],
    "with info": lambda m: (m, {"mean": 1.0}),
    "list with info": lambda m: (m.tolist(), "why"),
    "numpy with info": lambda m: (m.numpy(), {}, None),
}


@pytest.mark.parametrize("kind", RETURNED)
@pytest.mark.parametrize("n", [1, 2])
def test_what_people_return_is_one_number_an_image(kind: str, n: int) -> None:
    def reward(images: Tensor, prompts: Any) -> Any:
        return RETURNED[kind](images.flatten(1).mean(1))

    found = rewards_of(reward, IMAGES[:n], ["a"] * n)
    torch.testing.assert_close(found.float(), MEANS[:n])
    assert found.shape == (n,)


def test_a_squeezed_reward_of_one_image_and_counts_are_numbers() -> None:
    assert rewards_of(lambda x: x.mean((1, 2, 3)).squeeze(), IMAGES[:1]).shape == (1,)
    assert rewards_of(lambda x: 3.5, IMAGES[:1]).tolist() == [3.5]
    counted = rewards_of(lambda x: (x > 0.5).flatten(1).sum(1), IMAGES)
    assert counted.dtype == torch.float32 and counted.tolist() == [0, 11]


def test_gradients_are_kept() -> None:
    images = IMAGES.clone().requires_grad_()
    found = rewards_of(lambda x: ([row.mean() for row in x], {}), images)
    found.sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 12))


@pytest.mark.parametrize(
    "value, shape",
    [
        (torch.zeros(2, 2), r"shape \(2, 2\)"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(1, 2), r"shape \(1, 2\)"),
        (3.5, r"shape \(\)"),
        (None, "NoneType"),
        ({"score": 1}, "dict"),
        (["high", "low"], "list"),
        ([[1.0], [1.0, 2.0]], "list"),
        ((np.zeros(3), {}), r"shape \(3,\)"),
    ],
)
def test_anything_else_is_one_clear_error(value: Any, shape: str) -> None:
    def judge(images: Tensor) -> Any:
        return value

    wanted = f"reward must return one number for each of 2 samples; judge returned {shape}"
    with pytest.raises(ValueError, match=wanted):
        rewards_of(judge, IMAGES)


def test_a_network_of_ones_own_takes_such_rewards_and_refuses_others_at_the_door() -> None:
    def problem(reward: Any) -> DenoisingProblem:
        table = StepTable.rectified_flow(3)
        told: dict[str, Any] = {"shape": (2,), "temperature": 1.0}
        return DenoisingProblem.from_network(
            lambda x, t: -x, table, "velocity", reward=reward, **told
        )

    problem(lambda x: (x.sum(1).detach().numpy(), {})).validate()
    with pytest.raises(ValueError, match=r"one number for each of 3 samples; .* shape \(3, 2\)"):
        problem(lambda x: x).validate()


def test_grey_and_transparent_images_are_pictures() -> None:
    grey, alpha = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    colours = torch.rand(2, 3, 8, 8)
    assert torch.equal(rgb(grey), torch.cat([grey] * 3, 1)) and rgb(colours) is colours
    on_white = colours * alpha + 1 - alpha
    torch.testing.assert_close(rgb(torch.cat([colours, alpha], 1)), on_white)
    like = torch.zeros(())
    torch.testing.assert_close(pixels(grey, 8, like), pixels(rgb(grey), 8, like))
    size = Incompressibility()
    prompts = ["", ""]
    assert torch.equal(size(grey, prompts), size(rgb(grey), prompts))
    clear = torch.cat([colours, torch.zeros_like(alpha)], 1)
    torch.testing.assert_close(Brightness()(clear, prompts), torch.ones(2))
    many = torch.rand(2, 9, 8, 8)
    torch.testing.assert_close(Brightness()(many, prompts), many.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=r"1 channel \(grey\), 3 \(RGB\) or 4 .*; got 9"):
        size(many, prompts)


def test_weighted_sums_are_of_names_or_of_ones_own() -> None:
    images, prompts = torch.rand(2, 3, 8, 8), ["a", "b"]
    mixed = make_reward(
        {"brightness": 2.0, "compressibility": 0.5}, compressibility={"quality": 30}
    )
    size = make_reward("compressibility", quality=30)
    bright = images.mean((1, 2, 3))
    torch.testing.assert_close(mixed(images, prompts), 2 * bright + 0.5 * size(images, prompts))
    assert not mixed.differentiable and make_reward({"brightness": -1.0}).differentiable
    assert isinstance(mixed, WeightedSum) and set(mixed.terms(images, prompts)) == set(
        mixed.weights
    )
    judge = torch.nn.Linear(1, 1)
    own = WeightedSum({"mine": lambda x, p: x.flatten(1)[:, 0].tolist()}, {"mine": 3.0})
    torch.testing.assert_close(own(images, prompts), 3 * images[:, 0, 0, 0])
    assert len(list(WeightedSum({"judge": judge}, {"judge": 1.0}).parameters())) == 2


@pytest.mark.parametrize(
    "weights, kwargs, message",
    [
        ({}, {}, "weights must be given for each reward"),
        ({"brightness": "much"}, {}, "the weight of 'brightness' must be a number; got 'much'"),
        ({"beauty": 1.0}, {}, "reward must be one of"),
        ({"brightness": 1.0}, {"quality": 3}, r"those of \['brightness'\], by name; got"),
    ],
)
def test_bad_combinations_are_named(weights: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_reward(weights, **kwargs)
