"""One thread, fixed seeds, and slow tests only on request."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).parents[1] / "benchmarks")
)  # scripts, which tests import as they stand
torch.set_num_threads(1)  # small tensors: more threads only get in each other's way


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--fuzz", type=int, default=3000, help="cases of the fuzz suite")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; runs with --slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: give --slow to run it")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIRSANOV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20260101)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion pipeline on disk: 8x8 latents, 16x16 images, random weights."""
    pytest.importorskip("diffusers")
    from pipelines import build_stable_diffusion

    return build_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def ddpm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny unconditional DDPM pipeline on disk: 8x8 grey images, random weights."""
    diffusers, folder = pytest.importorskip("diffusers"), tmp_path_factory.mktemp("ddpm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _sd_pipeline(sd_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)


@pytest.fixture
def every_id_can_be_made(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Ids whose weights do not come with the package stand for a tiny pipeline of random weights
    and five steps.
    """
    from girsanov.envs import NEED_WEIGHTS, PROBLEMS
    from girsanov.envs.rewards.images import Brightness

    arguments = {
        "model": request.getfixturevalue("_sd_pipeline"),
        "reward": Brightness(),
        "steps": 5,
    }
    for env_id in NEED_WEIGHTS:
        monkeypatch.setitem(PROBLEMS, env_id, partial(PROBLEMS[env_id], **arguments))
