"""The small rectified flow that comes with the package: what it draws, and that plain diffusers
draws the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from girsanov.envs import make_problem  # noqa: E402
from girsanov.envs.diffusion.latent_digits import CHECKPOINT, FLOW_CHECKPOINT, ink_colour  # noqa: E402
from girsanov.envs.diffusion.loading import load_pipeline  # noqa: E402
from girsanov.envs.pretraining.flow_digits import (  # noqa: E402
    ABSENT_TOKENS,
    encode,
    make_pipeline,
    make_text_encoder,
    make_transformer,
    pretrain_flow,
)
from girsanov.envs.pretraining.latent_digits import make_tokenizer, prompt_tokens  # noqa: E402
from girsanov.envs.pretraining.latent_quality import draw  # noqa: E402
from girsanov.envs.problem import rollout  # noqa: E402

PROMPTS = ("a green six", "a blue four")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        FLOW_CHECKPOINT, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def shipped() -> Any:
    return make_problem("girsanov/FlowDigits-v0", prompts=PROMPTS, guidance_scale=1.5)


def test_it_draws_what_its_prompts_say(shipped: Any, generator: torch.Generator) -> None:
    with torch.no_grad():
        end = rollout(shipped, None, 64, generator).states[-1]
    images = shipped.images(end)
    assert images.shape == (64, 3, 16, 16) and shipped.prediction == "velocity"
    assert shipped.success(end).double().mean() > 0.8
    of_blue = shipped.prompt_index(end) == 1
    assert torch.equal(ink_colour(images)[:, 2] > ink_colour(images)[:, 1], of_blue)


@pytest.mark.parametrize("told", [{"max_sequence_length": 0}, {}])
def test_plain_diffusers_draws_it_with_the_absent_tokens_and_without(
    pipeline: Any, told: dict[str, int]
) -> None:
    """256 empty tokens are the pipeline's own default where there is no T5."""
    images = draw(pipeline, ["a blue four"] * 6, 0, told, steps=10, guidance=1.5)
    assert images.shape == (6, 3, 16, 16)
    blue = ink_colour(images)
    assert (blue[:, 2] > 0.7).all() and (blue[:, :2] < 0.35).all()


def test_almost_without_noise_the_chain_is_the_pipelines(pipeline: Any) -> None:
    problem = make_problem(
        "girsanov/FlowDigits-v0", prompts="a green six", eta=1e-6, guidance_scale=2.0, steps=6
    )
    x = problem.initial(3, torch.Generator().manual_seed(1))
    end = x
    with torch.no_grad():
        for k in range(problem.horizon):
            end = problem.transition(k, end, torch.zeros_like(x))
        theirs = pipeline(
            "a green six",
            num_images_per_prompt=3,
            latents=x,
            num_inference_steps=6,
            guidance_scale=2.0,
            max_sequence_length=0,
            output_type="pt",
        ).images
    torch.testing.assert_close(problem.images(end), theirs, atol=1e-4, rtol=0)


def test_it_goes_by_its_name_too(generator: torch.Generator) -> None:
    named = make_problem(
        "girsanov/StableDiffusion-v0",
        model="flow-digits",
        prompts=PROMPTS,
        reward="digit-prompt",
        steps=10,
        guidance_scale=1.5,
    )
    own = make_problem("girsanov/FlowDigits-v0", prompts=PROMPTS, guidance_scale=1.5)
    x = own.initial(2, generator)
    with torch.no_grad():
        assert torch.equal(named.predict(3, x), own.predict(3, x))


def test_words_are_the_pipelines() -> None:
    tokenizer = make_tokenizer()
    texts = [make_text_encoder(tokenizer).eval() for _ in range(2)]
    sister = load_pipeline(CHECKPOINT, torch.float32)
    made = make_pipeline(sister.vae, make_transformer(), texts, tokenizer)
    with torch.no_grad():
        words, _, pooled, _ = made.encode_prompt(
            list(PROMPTS), None, None, do_classifier_free_guidance=False, max_sequence_length=5
        )
        ours = encode(texts, prompt_tokens(tokenizer, list(PROMPTS)), 5)
    assert torch.equal(ours[0], words) and torch.equal(ours[1], pooled)
    assert words.shape == (2, 6 + 5, 64) and not words[:, 6:].any()


def test_a_short_training_writes_a_folder_that_loads_and_its_record(tmp_path: Path) -> None:
    record = pretrain_flow(
        tmp_path / "model", iterations=33, images_a_prompt=0, command="x", progress=False
    )
    assert json.loads((tmp_path / "model.json").read_text()) == record
    assert record["parameters"]["vae"] == 177427 and record["quality"] is None
    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*")) < 2e6
    loaded = load_pipeline(tmp_path / "model", torch.float32)
    assert loaded.text_encoder_3 is None
    images = draw(loaded, ["a red two"], 0, {"max_sequence_length": 0}, steps=2, guidance=3.0)
    assert images.shape == (1, 3, 16, 16) and torch.isfinite(images).all()
    parts = [
        load_pipeline(folder, torch.float32).vae for folder in (tmp_path / "model", CHECKPOINT)
    ]
    latents = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        assert torch.equal(*(vae.decode(latents).sample for vae in parts))  # the sister's


@pytest.mark.parametrize("arguments", [{"iterations": 0}, {"images_a_prompt": -1}])
def test_bad_training_arguments_are_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="iterations must be at least 1, images_a_prompt at least"):
        pretrain_flow(tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


def test_the_record_of_the_shipped_model_is_its_own() -> None:
    record = json.loads(FLOW_CHECKPOINT.with_suffix(".json").read_text())
    loaded = load_pipeline(FLOW_CHECKPOINT, torch.float32)
    parts = {
        "vae": [loaded.vae],
        "text_encoders": [loaded.text_encoder, loaded.text_encoder_2],
        "transformer": [loaded.transformer],
    }
    assert record["parameters"] == {
        name: sum(p.numel() for part in group for p in part.parameters())
        for name, group in parts.items()
    }
    quality = record["quality"]
    assert quality["guidance 1, withheld"]["both_right"] < quality["guidance 1, seen"]["both_right"]
    assert quality["guidance 1.5, seen"]["both_right"] > 0.9
    assert ABSENT_TOKENS == 256
    assert sum(file.stat().st_size for file in FLOW_CHECKPOINT.rglob("*") if file.is_file()) < 2e6
