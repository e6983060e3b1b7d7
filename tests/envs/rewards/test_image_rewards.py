"""Rewards that need no weights, and what every reward that is named promises."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from girsanov.envs.rewards.images import (
    Brightness,
    Compressibility,
    Incompressibility,
    PromptedReward,
    make_reward,
)


def noise_and_grey():
    """An image that JPEG cannot compress, and one that it can."""
    return torch.stack([torch.rand(3, 64, 64), torch.full((3, 64, 64), 0.5)])


def test_brightness_is_the_mean_of_every_pixel_and_so_is_its_gradient():
    images = torch.rand(3, 3, 5, 7).requires_grad_()
    reward = make_reward("brightness")(images, ["a"] * 3)
    torch.testing.assert_close(reward, images.mean((1, 2, 3)))
    reward.sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 105))
    assert make_reward("brightness").differentiable


def test_incompressibility_is_the_size_of_the_file_in_kilobytes():
    images = noise_and_grey()
    reward = make_reward("incompressibility")(images, ["a", "b"])
    for image, found in zip(images, reward, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.uint8(np.round(image.permute(1, 2, 0).numpy() * 255))).save(
            file, "JPEG", quality=95
        )
        assert float(found) == pytest.approx(len(file.getvalue()) / 1000, abs=1e-6)
    assert reward[0] > 3 * reward[1]
    torch.testing.assert_close(make_reward("compressibility")(images, ["a", "b"]), -reward)


def test_a_lower_quality_is_a_smaller_file_and_values_outside_the_range_are_cut():
    images = noise_and_grey()
    assert (
        make_reward("incompressibility", quality=30)(images, ["a"] * 2)[0]
        < Incompressibility()(images, ["a"] * 2)[0]
    )
    wild = images * 4 - 1
    torch.testing.assert_close(
        Incompressibility()(wild, ["a"] * 2), Incompressibility()(wild.clamp(0, 1), ["a"] * 2)
    )


def test_a_file_size_carries_no_gradient():
    images = noise_and_grey().requires_grad_()
    assert not Incompressibility()(images, ["a"] * 2).requires_grad
    assert not Incompressibility.differentiable and not Compressibility.differentiable


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rewards_come_in_single_precision_whatever_the_images_are(dtype):
    images = noise_and_grey().to(dtype)
    for reward in (Brightness(), Incompressibility()):
        assert isinstance(reward, PromptedReward)
        assert reward(images, ["a"] * 2).dtype == torch.float32


def test_unknown_names_and_qualities_are_one_clear_error():
    with pytest.raises(
        ValueError, match=r"reward must be one of \['aesthetic', 'brightness', .*; got 'beauty'"
    ):
        make_reward("beauty")
    with pytest.raises(ValueError, match="quality must be an integer from 1 to 95; got 96"):
        make_reward("compressibility", quality=96)


@pytest.mark.parametrize("name", ["image-reward", "clip-score"])
def test_a_missing_package_is_named(name, monkeypatch):
    def refuse(module, package):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr("girsanov.envs.rewards.images.import_module", refuse)
    with pytest.raises(
        ValueError, match=rf'{name}.*needs the package transformers: pip install -e ".*\[sd\]"'
    ):
        make_reward(name)
