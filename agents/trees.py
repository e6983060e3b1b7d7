"""Nested dicts and lists of tensors, arrays and plain values, as named tensors and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .archive import Checkpoint

_TENSOR, _ARRAY = "$tensor", "$array"


def packed(tree: Any) -> Checkpoint:
    """The tensors of a tree by their places in it, and the rest as JSON.

    Tuples become lists. Tensors are copied where two of them share their memory.

    Raises:
        ValueError: a leaf that is neither a tensor, an array of numbers, None, a word nor a finite
            number, or a key that is no word.
    """
    tensors: dict[str, Tensor] = {}
    kept: set[int] = set()

    def put(value: Any, place: str, kind: str) -> dict[str, str]:
        whole = value.detach().contiguous()
        start = whole.untyped_storage().data_ptr()
        tensors[place] = whole.clone() if start in kept else whole
        kept.add(start)
        return {kind: place}

    def walk(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return put(value, place, _TENSOR)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return put(torch.from_numpy(np.ascontiguousarray(value)), place, _ARRAY)
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) and not key.startswith("$") for key in value):
                raise ValueError(f"keys must be words; got {list(value)[:5]} at {place!r}")
            return {key: walk(part, f"{place}/{key}") for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(part, f"{place}/{i}") for i, part in enumerate(value)]
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise ValueError(f"{place!r} must be a tensor or a plain value to be saved; got {value!r}")

    return Checkpoint(tensors, {"tree": walk(tree, "")})


def unpacked(checkpoint: Checkpoint) -> Any:
    """The inverse of ``packed``.

    Raises:
        ValueError: a tensor is missing.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            for kind, made in _LEAVES.items():
                if value.keys() == {kind}:
                    if value[kind] not in checkpoint.tensors:
                        raise ValueError(f"it lacks the tensor {str(value[kind])[:200]!r}")
                    return made(checkpoint.tensors[value[kind]])
            return {key: walk(part) for key, part in value.items()}
        return [walk(part) for part in value] if isinstance(value, list) else value

    return walk(checkpoint.settings["tree"])


def aligned(tensor: Tensor) -> Tensor:
    """The tensor where torch itself would have put it: in a file it may begin at any byte, and
    products of matrices that begin elsewhere are rounded in another order.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


#: Bytes; those of torch's own allocations on a CPU.
_ALIGNMENT = 64
_LEAVES: dict[str, Callable[[Tensor], Any]] = {
    _TENSOR: aligned,
    _ARRAY: lambda t: aligned(t).numpy(),
}


def to(parts: Iterable[Any], device: torch.device) -> list[Any]:
    """Tensors on a device, and None as it is."""
    return [None if part is None else part.to(device) for part in parts]
