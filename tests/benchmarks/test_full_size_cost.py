"""benchmarks/full_size_cost.py: shapes of the real models, what is counted on shapes alone, and a
gradient timed on a tiny one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
import full_size_cost as cost  # noqa: E402
from tiny_pipelines import build  # noqa: E402

from girsanov.envs.diffusion.pipelines.prompted import PromptedDiffusion  # noqa: E402
from girsanov.envs.rewards.images import make_reward  # noqa: E402

#: Of the published models.
PARAMETERS = {"sd-1.5": 859_520_964, "sdxl": 2_567_463_684, "flux-dev": 11_901_408_320}


def committed() -> Any:
    return json.loads(Path(cost.HERE).read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("name", ["sd-1.5", "sdxl", "flux-dev"])
def test_the_shapes_are_those_of_the_published_models(name: str) -> None:
    with torch.device("meta"):
        network = cost.made(cost.SHAPES[name]["network"])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_the_autoencoder_is_stable_diffusions() -> None:
    pipe = cost.stand_in("sd-1.5", "meta", torch.bfloat16)
    assert sum(p.numel() for p in pipe.vae.parameters()) == 83_653_863
    assert pipe.unet.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32


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
def test_a_gradient_is_timed(form: str) -> None:
    reward, words = make_reward(cost.FORMS[form][0]), {"max_sequence_length": 8}
    problem = PromptedDiffusion(build("sd3"), "a", reward, steps=2, prompt_kwargs=words)
    found = cost.measure(problem, form, 2, "cpu")
    assert found["seconds_a_gradient"] > 0 and (found["paths"], found["steps"]) == (2, 2)


def test_what_is_committed_adds_up() -> None:
    told = committed()
    wanted = {(name, form) for name in cost.SHAPES for form in cost.FORMS}
    assert {(key.partition(", ")[0], key.partition(", ")[2] or "LoraPolicy") for key in told} == (
        wanted
    )
    for key, row in told.items():
        counts = (row["networks_tflop"], row["passes"], row["paths"], row["steps"])
        assert row["pflop_a_gradient"] == pytest.approx(cost.count_gradient(*counts))
        parameters, name = row["networks_tflop"]["parameters"], key.partition(", ")[0]
        assert parameters == PARAMETERS.get(name, parameters)


def test_rows_and_forms_are_checked_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must be of sd-1.5, .*; got sd-9"):
        cost.main(rows=("sd-9",), out=tmp_path / "x.json")
    with pytest.raises(ValueError, match="forms must be of LoraPolicy, .*; got MlpPolicy"):
        cost.main(forms=("MlpPolicy",), out=tmp_path / "x.json")


@pytest.mark.slow  # a minute
def test_a_count_is_what_is_committed() -> None:
    assert cost.count("sd3-medium") == pytest.approx(committed()["sd3-medium"]["networks_tflop"])


@pytest.mark.slow
def test_a_row_is_written_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    out.write_text(json.dumps({"rows": {"sdxl": "as before"}}))
    cost.main(rows=("sd-1.5",), forms=("LoraPolicy",), device="none", out=out)
    rows = json.loads(out.read_text())["rows"]
    assert rows["sdxl"] == "as before" and rows["sd-1.5"]["measured"] is None
    assert rows["sd-1.5"]["pflop_a_gradient"] == committed()["sd-1.5"]["pflop_a_gradient"]
