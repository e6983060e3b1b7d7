"""benchmarks/stable_diffusion_cost.py: what is counted, on shapes alone, and a gradient timed on a
tiny pipeline.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
import stable_diffusion_cost as cost  # noqa: E402
from pipelines import full_size_pipeline  # noqa: E402


def test_products_are_counted_twice_their_size() -> None:
    layer = torch.nn.Linear(30, 50, device="meta")
    x = torch.randn(7, 30, device="meta")
    assert cost.teraflops(lambda: layer(x)) == pytest.approx(2 * 7 * 30 * 50 / 1e12)


def test_each_step_is_predicted_by_both_networks_under_guidance_as_often_as_the_form_says() -> None:
    """Two networks, two texts: 4 to sample; the pathwise form differentiates both, the others the
    adapted one.
    """
    assert cost.count_passes("LoraPolicy") == {
        "unet": 4,
        "unet_with_graph": 4,
        "decoder": 1,
        "decoder_with_graph": 1,
    }
    for form in ("LoraScorePolicy", "LoraValuePolicy"):
        assert cost.count_passes(form) == {
            "unet": 6,
            "unet_with_graph": 2,
            "decoder": 1,
            "decoder_with_graph": 0,
        }


def test_a_gradient_adds_up() -> None:
    networks = {
        "unet_forward": 1.0,
        "lora_forward_backward_with_state": 3.0,
        "decoder_forward": 10.0,
        "decoder_forward_backward": 30.0,
    }
    passes = {"unet": 2.0, "unet_with_graph": 1.0, "decoder": 1.0, "decoder_with_graph": 0.0}
    assert cost.count_gradient(networks, passes, paths=100, steps=8) == pytest.approx(
        100 * (8 * 5 + 10) / 1000
    )


@pytest.mark.parametrize("form", cost.FORMS)
def test_gradients_are_timed(sd_folder: Path, form: str) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    found = cost.measure(form, pipe, paths=4, steps=2, gradients=1, device="cpu")
    assert found["seconds_a_gradient"] > 0 and found["micro_batch"] == 2


def test_the_full_size_is_stable_diffusions() -> None:
    pipe = full_size_pipeline("meta", torch.bfloat16)
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in pipe.vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) == 123_060_480
    assert pipe.unet.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
