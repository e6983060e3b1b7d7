"""The painted digits, their reward, and the small text-to-image model trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.envs import make_problem
from girsanov.envs.diffusion.latent_digits import (
    CHECKPOINT,
    COLOURS,
    DIGITS,
    PromptLogProbability,
    grey,
    ink_colour,
    paint,
    parse,
    prompt_of,
    withheld,
)
from girsanov.envs.pretraining.digit_images import load_images
from girsanov.envs.problem import rollout

PAIRS = [(d, c) for d in range(len(DIGITS)) for c in range(len(COLOURS))]


def test_prompts_are_read_back() -> None:
    assert prompt_of(6, 1) == "a green six"
    assert [parse(prompt_of(d, c)) for d, c in PAIRS] == PAIRS


@pytest.mark.parametrize(
    "prompt", ["", "six", "a purple six", "a green ten", "an green six", "a green six please"]
)
def test_other_sentences_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=f"prompt must be .*; got '{prompt}'"):
        parse(prompt)


def test_one_colour_of_each_digit_and_two_digits_of_each_colour_are_withheld() -> None:
    kept_back = [(d, c) for d, c in PAIRS if withheld(d, c)]
    assert sorted(d for d, _ in kept_back) == list(range(10))
    assert sorted(c for _, c in kept_back) == sorted(list(range(5)) * 2)


def test_paint_keeps_shape_and_colour_apart() -> None:
    images = load_images().held_out[:50]
    colour = torch.arange(50) % 5
    painted = paint(images, colour)
    assert painted.shape == (50, 3, 16, 16) and painted.min() >= 0 and painted.max() <= 1
    palette = torch.tensor(list(COLOURS.values()))
    assert torch.allclose(ink_colour(painted), palette[colour], atol=1e-4)
    assert (grey(painted) - images).abs().mean() < 0.1  # scaled up and down again
    assert torch.equal(grey(painted), grey(paint(images, (colour + 1) % 5)))


def test_the_reward_knows_the_prompt_of_real_digits() -> None:
    data, reward = load_images(), PromptLogProbability()
    colour = torch.arange(len(data.held_out)) % 5
    images = paint(data.held_out, colour)
    asked = [prompt_of(int(d), int(c)) for d, c in zip(data.held_out_labels, colour, strict=True)]
    other_colour = [
        prompt_of(int(d), int(c + 1) % 5) for d, c in zip(data.held_out_labels, colour, strict=True)
    ]
    other_digit = [
        prompt_of(int(d + 1) % 10, int(c))
        for d, c in zip(data.held_out_labels, colour, strict=True)
    ]
    right = reward(images, asked)
    assert right.max() <= 0 and right.mean() > -0.25
    assert (
        reward(images, other_colour).mean() < right.mean() - 2
        and reward(images, other_digit).mean() < right.mean() - 2
    )
    assert reward.success(images, asked).float().mean() > 0.97
    assert not reward.success(images, other_colour).any()


def test_the_reward_reaches_the_pixels() -> None:
    images = (0.2 + 0.6 * torch.rand(2, 3, 16, 16)).double().requires_grad_()
    reward = PromptLogProbability().double()
    prompts = ["a green six", "a white nine"]
    assert torch.autograd.gradcheck(
        lambda x: reward(x, prompts), (images,), atol=1e-6, fast_mode=True
    )
    with pytest.raises(ValueError, match="prompts must be one for each image; got 1 for 2 images"):
        reward(images, prompts[:1])


def test_a_short_training_writes_a_folder_that_plain_diffusers_loads(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from diffusers import StableDiffusionPipeline

    from girsanov.envs.pretraining.latent_digits import pretrain_latent
    from girsanov.envs.pretraining.latent_quality import draw

    record = pretrain_latent(
        tmp_path / "model",
        iterations=2,
        autoencoder_iterations=2,
        images_a_prompt=0,
        command="x",
        progress=False,
    )
    assert json.loads((tmp_path / "model.json").read_text()) == record
    assert len(record["data"]["withheld_prompts"]) == 10 and record["quality"] is None
    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*")) < 2.5e6
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert [pipeline.tokenizer.tokenize(word) for word in (*COLOURS, *DIGITS)] == [
        [f"{w}</w>"] for w in (*COLOURS, *DIGITS)
    ]
    prompts = ["a green six", "a red two"]
    images = draw(pipeline, prompts, 0, {"eta": 1.0}, steps=2, guidance=3.0)
    assert images.shape == (2, 3, 16, 16) and torch.isfinite(images).all()


def test_standardised_latents_decode_to_the_same_image() -> None:
    pytest.importorskip("diffusers")
    from girsanov.envs.pretraining.latent_digits import make_autoencoder, standardise

    model = make_autoencoder().requires_grad_(False)
    images = 2 * paint(load_images().held_out[:64], torch.arange(64) % 5) - 1
    before = model.encode(images).latent_dist
    decoded = model.decode(before.mean).sample
    standardise(model, images)
    after = model.encode(images).latent_dist
    assert torch.allclose(model.decode(after.mean).sample, decoded, atol=1e-4)
    sample = after.sample()
    assert (
        sample.mean((0, 2, 3)).abs().max() < 0.1 and (sample.std((0, 2, 3)) - 1).abs().max() < 0.1
    )
    ratio = before.std / after.std  # one number a channel
    assert torch.allclose(ratio, ratio.mean((0, 2, 3), keepdim=True).expand_as(ratio), rtol=1e-3)


@pytest.mark.parametrize(
    "arguments", [{"iterations": 0}, {"autoencoder_iterations": 0}, {"images_a_prompt": -1}]
)
def test_bad_training_arguments_are_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from girsanov.envs.pretraining.latent_digits import pretrain_latent

    with pytest.raises(
        ValueError, match="iterations and autoencoder_iterations must be at least 1"
    ):
        pretrain_latent(tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def shipped() -> Any:
    pytest.importorskip("diffusers")
    return make_problem(
        "girsanov/StableDiffusion-v0",
        model="latent-digits",
        prompts=("a green six", "a blue four"),
        reward="digit-prompt",
        temperature=0.1,
        steps=5,
        guidance_scale=1.5,
        batch_size=64,
    )


def test_the_shipped_model_draws_what_its_prompts_say(
    shipped: Any, generator: torch.Generator
) -> None:
    with torch.no_grad():
        paths = rollout(shipped, None, 64, generator)
    images = shipped.images(paths.states[-1])
    assert images.shape == (64, 3, 16, 16)
    assert shipped.success(paths.states[-1]).double().mean() > 0.8
    of_blue = shipped.prompt_index(paths.states[-1]) == 1
    assert torch.equal(ink_colour(images)[:, 2] > ink_colour(images)[:, 1], of_blue)


def test_success_is_the_reward_s_word_and_absent_without_one(shipped: Any) -> None:
    plain = make_problem(
        "girsanov/StableDiffusion-v0",
        model="latent-digits",
        prompts="a red two",
        reward="brightness",
        steps=5,
    )
    assert not hasattr(plain, "success") and hasattr(shipped, "success")


def test_the_record_of_the_shipped_model_is_its_own() -> None:
    record = json.loads(CHECKPOINT.with_suffix(".json").read_text())
    quality = record["quality"]
    assert (
        quality["guidance 1.5, seen"]["both_right"]
        > quality["guidance 1.5, withheld"]["both_right"]
        > 0.9
    )
    assert quality["guidance 1, withheld"]["both_right"] < 0.8  # what fine-tuning has to gain
    assert quality["reconstruction_rms"] < 0.05
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) < 2e6


def test_a_text_encoder_that_was_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers below 5.6 does not find the shipped keys, and begins the encoder at random."""
    pytest.importorskip("diffusers")
    from transformers import CLIPTextModel

    read = CLIPTextModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def forgetful(cls: type, *args: object, **kwargs: object) -> object:
        found = read(cls, *args, **kwargs)
        if not isinstance(found, tuple):
            return CLIPTextModel(found.config)
        model, info = found
        return CLIPTextModel(model.config), {**info, "missing_keys": list(model.state_dict())}

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", classmethod(forgetful))
    with pytest.raises(ValueError, match="model must hold all weights of its text_encoder"):
        make_problem("girsanov/StableDiffusion-v0", model="latent-digits", reward="digit-prompt")
