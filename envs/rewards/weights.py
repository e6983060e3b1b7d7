"""Where the weights of published reward models are found, how they are read, and the pixels those
models expect.

Nothing is fetched from here: a missing file is one ValueError, raised before anything long starts,
that says which file to obtain and where to put it. Reading never runs code: safetensors, or torch's
loader restricted to tensors.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .conversion import rgb

#: Environment variable that names a folder of weights; files in it keep the names under which they
#: are published.
FOLDER = "GIRSANOV_WEIGHTS"
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pixels; BLIP has the same
_STD = (0.26862954, 0.26130258, 0.27577711)


class Source(NamedTuple):
    """A published file."""

    file: str  # its name
    repository: str  # on the Hugging Face Hub; empty where it is not there
    obtain: str  # the command or address that gets it

    @classmethod
    def hub(cls, repository: str, file: str) -> Source:
        """A file of a repository on the Hugging Face Hub."""
        return cls(file, repository, f"`hf download {repository} {file}`")


def locate(argument: str, given: str | os.PathLike[str] | None, source: Source) -> Path:
    """The file: the one given, else the one in the folder ``$GIRSANOV_WEIGHTS``, else the one in
    the Hub's cache.

    Args:
        argument: what the caller's argument is called, for the message.
        given: a file, or a folder that holds it under its published name.
        source: what is looked for.

    Raises:
        ValueError: it is nowhere; the message says how to obtain it.
    """
    folder = os.environ.get(FOLDER)
    places = [Path(given)] if given is not None else [Path(folder)] if folder else []
    for place in places:
        for path in (place, place / source.file):
            if path.is_file():
                return path
    if given is None and source.repository:
        cached = _cached(source)
        if cached is not None:
            return cached
    tried = (
        f"got {os.fspath(given)!r}"
        if given is not None
        else f"got None, and ${FOLDER} is {folder!r}"
    )
    raise ValueError(
        f"{argument} must be the file {source.file} or a folder that holds it; {tried}. Obtain it"
        f" by {source.obtain}, then pass its place as {argument}= or put it into the folder that"
        f" ${FOLDER} names"
    )


def _cached(source: Source) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    found = try_to_load_from_cache(source.repository, source.file)
    return Path(found) if isinstance(found, str) else None


def read_state(path: str | os.PathLike[str], part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict, on the CPU; safetensors by the file's name, else a pickle of
    tensors and nothing else, or of a dict whose ``part`` is one.

    Raises:
        ValueError: a corrupt file, or one that holds anything but tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{os.fspath(path)} must be a readable state dict of tensors;"
            f" {str(error).splitlines()[0]}"
        ) from error
    if part is not None and isinstance(state, dict):
        state = state.get(part, state)
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{os.fspath(path)} must be a state dict of tensors; got {type(state).__name__}"
        )
    return state


def fill(module: nn.Module, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load ``state`` into ``module``, every tensor of both.

    Raises:
        ValueError: names or shapes that do not fit.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{os.fspath(path)} must hold {type(module).__name__}'s weights; {str(error)[:1000]}"
        ) from error


def frozen(module: nn.Module) -> None:
    """Put ``module`` into evaluation mode; gradients pass through it to the pixels, not into its
    weights.
    """
    module.eval().requires_grad_(False)


def pixels(images: Tensor, size: int, like: Tensor, whole: bool = False) -> Tensor:
    """What CLIP and BLIP take, ``(n, 3, size, size)``, of images in 0..1, ``(n, 3, H, W)``, grey or
    RGBA; differentiable.

    The shorter side is resized to ``size`` (antialiased bicubic, as PIL's within its rounding), the
    centre cropped, colours normalised; in the dtype and on the device of ``like``. A ``whole``
    image has its longer side resized, and black around it.
    """
    images = rgb(images).to(like)
    short, long = min(images.shape[-2:]), max(images.shape[-2:])
    height, width = (
        round(size * side / long) if whole else size * side // short for side in images.shape[-2:]
    )
    if (height, width) != tuple(images.shape[-2:]):
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    if whole:
        top, left = ((size - side) // 2 for side in (height, width))
        images = F.pad(images, (left, size - width - left, top, size - height - top))
    else:
        top, left = (round((side - size) / 2) for side in (height, width))
        images = images[..., top : top + size, left : left + size]
    return (images - images.new_tensor(_MEAN)[:, None, None]) / images.new_tensor(_STD)[
        :, None, None
    ]


class ScoreHead(nn.Module):
    """The linear layers that end ImageReward and the aesthetic predictor, ``(n, width) -> (n,)``.

    No activations; the originals' dropouts, idle in evaluation, are kept for the numbers in the
    weights' names (0, 2, 4, 6, 7).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, third = nn.Linear(width, 1024), nn.Linear(1024, 128), nn.Linear(128, 64)
        drops = nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)
        last = nn.Linear(64, 16), nn.Linear(16, 1)
        self.layers = nn.Sequential(first, drops[0], second, drops[1], third, drops[2], *last)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.layers(features)[:, 0]
