"""Rewards on decoded images: the protocol, those that need no weights, and ``make_reward``, which
knows all by name.

A reward is any callable ``(images (n, 3, H, W) in 0..1, prompts, one an image) -> (n,)`` with a
flag ``differentiable`` that says whether gradients reach the pixels. Published models are in files
of their own, imported when they are asked for: they need ``transformers`` (``pip install
'girsanov[sd]'``).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..extras import install_command
from .conversion import rgb


@runtime_checkable
class PromptedReward(Protocol):
    """What a text-to-image problem takes as its reward."""

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the pixels; a black box otherwise."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards ``(n,)`` of images ``(n, 3, H, W)`` in 0..1, each for its prompt."""


class Brightness:
    """Mean intensity over all channels: 0 for a black image, 1 for a white one; RGBA ones lie on
    white.
    """

    differentiable: ClassVar[bool] = True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See PromptedReward."""
        seen = rgb(images) if images.shape[1] == 4 else images
        return seen.flatten(1).float().mean(1)


class Incompressibility:
    """Size of the image as a JPEG file, in kB of 1,000 bytes (Black et al. 2023, DDPO; quality 95
    as in their code).

    Args:
        quality: of the JPEG, 1 to 95.
    """

    differentiable: ClassVar[bool] = False
    sign: ClassVar[int] = 1

    def __init__(self, quality: int = 95) -> None:
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 95:
            raise ValueError(f"quality must be an integer from 1 to 95; got {quality!r}")
        self.quality = quality

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See PromptedReward."""
        from PIL import Image

        bytes_ = (
            (rgb(images).float() * 255)
            .round()
            .clamp(0, 255)
            .byte()
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
        )
        sizes = []
        for picture in bytes_:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, format="JPEG", quality=self.quality)
            sizes.append(file.tell())
        return self.sign * torch.tensor(sizes, dtype=torch.float32, device=images.device) / 1000


class Compressibility(Incompressibility):
    """Minus the size of the JPEG file in kB."""

    sign = -1


def _combined(weights: Mapping[str, float], kwargs: Mapping[str, Any]) -> PromptedReward:
    from .combination import WeightedSum

    given = {key.replace("_", "-"): value for key, value in kwargs.items()}
    if unknown := sorted(set(given) - set(weights)):
        raise ValueError(f"arguments must be those of {sorted(weights)}, by name; got {unknown}")
    made = {name: make_reward(name, **given.get(name, {})) for name in weights}
    return WeightedSum(made, weights)


#: A class, or the module and the name of one in a file of its own.
_REWARDS: dict[str, Callable[..., PromptedReward] | tuple[str, str]] = {
    "aesthetic": (".clip", "Aesthetic"),
    "brightness": Brightness,
    "clip-score": (".clip", "ClipScore"),
    "compressibility": Compressibility,
    "digit-prompt": ("..diffusion.latent_digits", "PromptLogProbability"),
    "hps-v2": (".hps", "HPSv2"),
    "image-reward": (".image_reward", "load_image_reward"),
    "incompressibility": Incompressibility,
    "pick-score": (".clip", "PickScore"),
}


def make_reward(name: str | Mapping[str, float], **kwargs: Any) -> PromptedReward:
    """The reward of that name; ``kwargs`` go to its class.

    Several names with a weight each, such as ``{"pick-score": 1.0, "aesthetic": 0.1}``, are a
    ``WeightedSum``, and ``kwargs`` are then by name: ``clip_score={"weights": folder}``.

    Raises:
        ValueError: an unknown name, a package or a file of weights that is not there.
    """
    if isinstance(name, Mapping):
        return _combined(name, kwargs)
    if name not in _REWARDS:
        raise ValueError(f"reward must be one of {sorted(_REWARDS)}; got {name!r}")
    entry = _REWARDS[name]
    if not isinstance(entry, tuple):
        return entry(**kwargs)
    module, attribute = entry
    try:
        make = getattr(import_module(module, __package__), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reward {name!r} needs the package {error.name}: {install_command('sd')}"
        ) from error
    return make(**kwargs)
