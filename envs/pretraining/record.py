"""What is told beside the text-to-image models of what made them."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .digit_images import DigitImages
from .painted_latents import WITHHELD

_LIBRARIES = ("torch", "diffusers", "transformers", "scikit-learn", "numpy")


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def spent(self) -> dict[str, float]:
        """On the wall and of the CPU."""
        return {
            "seconds": round(time.perf_counter() - self.start, 1),
            "cpu_seconds": round(time.process_time() - self.cpu, 1),
        }


def write_record(
    path: Path,
    command: str | None,
    settings: dict[str, Any],
    training: dict[str, float],
    parts: Mapping[str, nn.Module],
    data: DigitImages,
    quality: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write what made the folder ``path`` beside it, as ``.json``; returns what it holds.

    Args:
        path: the model's folder.
        command: the command line.
        settings: the seed, and what else was chosen.
        training: a Clock's word.
        parts: the networks, by name.
        data: what was trained and measured on.
        quality: what ``measure`` found.
    """
    record = {
        "command": command,
        **settings,
        "training": training,
        "versions": (
            {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
        ),
        "hardware": {
            "machine": platform.machine(),
            "device": "cpu",
            "threads": torch.get_num_threads(),
        },
        "parameters": {
            name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()
        },
        "data": {
            "source": "sklearn.datasets.load_digits, painted",
            "train": len(data.train),
            "held_out": len(data.held_out),
            "withheld_prompts": WITHHELD,
        },
        "quality": quality,
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return record
