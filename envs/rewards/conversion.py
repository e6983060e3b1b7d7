"""What rewards return, made into one number an image, and images of any kind made into RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rewards_of(reward: Callable[..., Any], images: Tensor, *prompts: Any) -> Tensor:
    """``reward(images, ...)`` as a tensor ``(n,)`` on the images' device.

    Tensors, arrays and lists of n numbers are taken, ``(n, 1)`` too, a single number for one image,
    and a tuple of any of these and something else, ``(rewards, info)``, the rest of which is left
    aside. Gradients are kept where there are any.

    Raises:
        ValueError: it returned anything else.
    """
    given = reward(images, *prompts)
    found, n = given, len(images)
    if isinstance(found, tuple) and found and isinstance(found[0], (Tensor, np.ndarray, list)):
        # a tuple of n tensors of one number each is the rewards themselves
        scalars = len(found) == n and all(isinstance(t, Tensor) and t.numel() == 1 for t in found)
        found = found if scalars and n > 1 else found[0]
    if isinstance(found, (list, tuple)) and any(isinstance(entry, Tensor) for entry in found):
        parts = [torch.as_tensor(entry, device=images.device) for entry in found]
        same = all(part.numel() == 1 for part in parts)
        found = torch.stack([part.reshape(()) for part in parts]) if parts and same else found
    numbers = found if isinstance(found, Tensor) else None
    if isinstance(found, (int, float, list, tuple, np.ndarray, np.number)):
        try:
            numbers = torch.as_tensor(np.asarray(found, float)).to(images.dtype)
        except (TypeError, ValueError):
            numbers = None
    if numbers is None or tuple(numbers.shape) not in {(n,), (n, 1), *([()] if n == 1 else [])}:
        shape = type(given).__name__ if numbers is None else f"shape {tuple(numbers.shape)}"
        name = getattr(reward, "__name__", type(reward).__name__)
        raise ValueError(
            f"reward must return one number for each of {n} samples; {name} returned {shape}"
        )
    floating = numbers if numbers.is_floating_point() else numbers.to(images.dtype)
    return floating.reshape(n).to(images.device)


def rgb(images: Tensor) -> Tensor:
    """Images ``(n, channels, H, W)`` in 0..1 as ``(n, 3, H, W)``: grey ones three times, RGBA ones
    on white; differentiable.

    Raises:
        ValueError: another number of channels.
    """
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels == 4:
        alpha = images[:, 3:]
        return images[:, :3] * alpha + (1 - alpha)
    if channels != 3:
        raise ValueError(
            "images must have 1 channel (grey), 3 (RGB) or 4 (RGBA) for a reward that looks at"
            f" pictures; got {channels}"
        )
    return images
