"""Whether a pipeline holds the weights of its folder: libraries begin what they do not find at
random, and go on.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
#: Numbers compared of each tensor: enough to tell what was read from what was drawn.
_LOOKED_AT = 64


def check_weights(pipeline: Any, folder: Path) -> None:
    """Compare every network of a loaded pipeline with its file, where the folder has one in
    safetensors.

    Names may differ by a prefix, as they do between versions of transformers.

    Raises:
        ValueError: a parameter does not hold what is stored for it.
    """
    for name, component in pipeline.components.items():
        files = [folder / name / file for file in _FILES]
        file = next((path for path in files if path.is_file()), None)
        if not isinstance(component, nn.Module) or file is None:
            continue
        wrong = unread(component, file)
        if wrong:
            versions = "transformers of at least 5.6 reads the shipped model"
            raise ValueError(
                f"{name} must hold the weights of {file}; {len(wrong)} of its parameters do not,"
                f" such as {wrong[0]} ({versions})"
            )


def unread(network: nn.Module, file: Path) -> list[str]:
    """Names of the stored tensors that ``network`` should hold and does not."""
    from safetensors import safe_open

    own = network.state_dict(keep_vars=True)
    by_end: dict[str, list[str]] = defaultdict(list)
    for name in own:
        parts = name.split(".")
        for i in range(len(parts)):
            by_end[".".join(parts[i:])].append(name)
    wrong = []
    with safe_open(file, "pt") as stored:
        for name in stored.keys():  # it is no mapping
            parts = name.split(".")
            ends = (".".join(parts[i:]) for i in range(min(len(parts), 2)))
            candidates = next((by_end[end] for end in ends if end in by_end), [])
            tensors = [own[other] for other in candidates]
            kept = stored.get_tensor(name)
            same_shape = [t for t in tensors if t.shape == kept.shape]
            if same_shape and not any(_equal(tensor, kept) for tensor in same_shape):
                wrong.append(name)
    return wrong


def _equal(tensor: torch.Tensor, stored: torch.Tensor) -> bool:
    first, second = (t.detach().flatten()[:_LOOKED_AT].cpu() for t in (tensor, stored))
    return torch.equal(first, second.to(first.dtype))
