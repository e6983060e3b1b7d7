"""benchmarks/full_size_cost.py: shapes of the real models, and a gradient timed on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
import full_size_cost as cost  # noqa: E402
from tiny_pipelines import build  # noqa: E402

from girsanov.envs.diffusion.pipelines.prompted import PromptedDiffusion  # noqa: E402
from girsanov.envs.rewards.images import Brightness  # noqa: E402

#: Of the published models.
PARAMETERS = {"sd-1.5": 859_520_964, "sdxl": 2_567_463_684, "flux-dev": 11_901_408_320}


@pytest.mark.parametrize("name", ["sd-1.5", "sdxl", "flux-dev"])
def test_the_shapes_are_those_of_the_published_models(name: str) -> None:
    with torch.device("meta"):
        network = cost.SHAPES[name].network()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_a_gradient_is_timed() -> None:
    problem = PromptedDiffusion(
        build("sd3"), "a", Brightness(), steps=2, prompt_kwargs={"max_sequence_length": 8}
    )
    found = cost.measure(problem, 2, "cpu")
    assert found["seconds_a_gradient"] > 0 and (found["paths"], found["steps"]) == (2, 2)


def test_what_is_committed_adds_up() -> None:
    told = json.loads(Path(cost.HERE).read_text(encoding="utf-8"))["rows"]
    assert set(told) == set(cost.SHAPES)
    for name, row in told.items():
        wanted = cost.count_gradient(
            row["networks_tflop"], row["passes"], row["paths"], row["steps"]
        )
        assert row["pflop_a_gradient"] == pytest.approx(wanted)
        assert row["networks_tflop"]["parameters"] == PARAMETERS.get(
            name, row["networks_tflop"]["parameters"]
        )


@pytest.mark.slow  # a minute
def test_a_count_is_what_is_committed() -> None:
    told = json.loads(Path(cost.HERE).read_text(encoding="utf-8"))["rows"]["sd3-medium"]
    assert cost.count("sd3-medium") == pytest.approx(told["networks_tflop"])
