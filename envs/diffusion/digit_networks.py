"""The two networks behind ``girsanov/Digits-v0`` and their checkpoint: a denoiser and a classifier
of 8x8 digits.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

IMAGE_SHAPE = (1, 8, 8)
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "digits.safetensors"
_FORMAT = "girsanov.digits/1"
_PIXELS = math.prod(IMAGE_SHAPE)


class GaussianDenoiser(nn.Module):
    """The best denoiser if images were Gaussian with the training set's mean and covariance:
    E[X_data | X] in closed form.

    With ``a = alpha_bar`` and an eigenvalue ``v`` of the covariance, ``X = sqrt(a) X_data + sqrt(1
    - a) noise`` has, along its eigenvector, the posterior variance ``v (1 - a) / (a v + 1 - a)``.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(_PIXELS))
        self.register_buffer("values", torch.ones(_PIXELS))
        self.register_buffer("vectors", torch.eye(_PIXELS))

    def fit(self, images: Tensor, floor: float = 1e-3) -> None:
        """Take mean and covariance from ``(n, 1, 8, 8)``; ``floor`` is the least variance, for
        pixels that never vary.
        """
        flat = images.flatten(1).double()
        values, vectors = torch.linalg.eigh(flat.T.cov(correction=0))
        for buffer, value in (
            (self.mean, flat.mean(0)),
            (self.values, values.clamp(min=floor)),
            (self.vectors, vectors),
        ):
            buffer.copy_(value)

    def forward(self, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean ``(n, 64)`` and standard deviation of the pixels; ``x (n, 64)``,
        ``log_snr`` ``(1,)`` or ``(n,)``.
        """
        signal, noise = torch.sigmoid(log_snr)[:, None], torch.sigmoid(-log_snr)[:, None]
        spread = signal * self.values + noise
        centred = (x - signal.sqrt() * self.mean) @ self.vectors
        mean = self.mean + (centred * (signal.sqrt() * self.values / spread)) @ self.vectors.T
        variance = (self.values * noise / spread) @ self.vectors.square().T
        return mean, variance.clamp(min=1e-6).sqrt()


class _Residual(nn.Module):
    """Two convolutions around a feature-wise affine map set by the noise level; no normalisation,
    which is slow on a CPU.
    """

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
        hidden = torch.addcmul(shift, self.first(F.silu(x)), 1 + scale)
        return x + self.second(self.dropout(F.silu(hidden)))


class Denoiser(nn.Module):
    """Predicts the clean image from a noisy one and its log signal-to-noise ratio, so one network
    serves every schedule.

    A convolutional UNet over 8x8 and 4x4 sees the noisy image beside ``GaussianDenoiser``'s
    estimate and corrects the latter in units of its standard deviation; at both extremes of noise
    the Gaussian answer is already the right one. Smooth in x.

    Args:
        fine: channels at 8x8.
        coarse: channels at 4x4.
        blocks: residual blocks at 4x4.
        embedding: width of the noise level's embedding.
        dropout: in training, in the blocks at 4x4.
    """

    frequencies: Tensor

    def __init__(
        self,
        fine: int = 16,
        coarse: int = 64,
        blocks: int = 2,
        embedding: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.architecture = {
            "fine": fine,
            "coarse": coarse,
            "blocks": blocks,
            "embedding": embedding,
        }
        self.gaussian = GaussianDenoiser()
        frequencies = torch.exp(torch.linspace(math.log(0.1), math.log(3.0), 16))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.stem = nn.Conv2d(2, fine, 3, padding=1)
        self.fine_place = nn.Parameter(
            torch.zeros(1, fine, 8, 8)
        )  # digits are centred: where a pixel lies matters
        self.before = _Residual(fine, embedding, 0.0)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse_place = nn.Parameter(torch.zeros(1, coarse, 4, 4))
        self.middle = nn.ModuleList(_Residual(coarse, embedding, dropout) for _ in range(blocks))
        self.up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.after = _Residual(fine, embedding, 0.0)
        self.head = nn.Conv2d(fine, 1, 3, padding=1)
        for weight in self.head.parameters():
            nn.init.zeros_(weight)  # training starts from the Gaussian denoiser
        for weight in self.parameters():
            if (
                weight.dim() == 4
            ):  # a convolution's; a tenth faster than the default layout on a CPU
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """The clean image ``(n, 1, 8, 8)`` for ``x`` of that shape and ``log_snr`` of shape
        ``(1,)`` or ``(n,)``.
        """
        return self.predict(x, log_snr)[0]

    def predict(self, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The clean image, and the standard deviation ``(1 or n, 64)`` that the Gaussian denoiser
        would claim.
        """
        flat = x.flatten(1)
        guess, std = self.gaussian(flat, log_snr)
        angle = log_snr.clamp(-12, 12)[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        both = (
            torch.stack([flat, guess], -1).view(-1, 8, 8, 2).permute(0, 3, 1, 2)
        )  # channels last without a copy
        fine = self.before(self.stem(both) + self.fine_place, embedding)
        coarse = self.down(fine) + self.coarse_place
        for block in self.middle:
            coarse = block(coarse, embedding)
        correction = self.head(F.silu(self.after(self.up(coarse) + fine, embedding)))
        return (guess + std * correction.flatten(1)).view_as(x), std


class Classifier(nn.Module):
    """A small smooth network from images to the logits of the ten digits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.architecture = {"width": width}
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 2, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 64),
            nn.SiLU(),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 1, 8, 8) -> (n, 10)``."""
        return self.layers(x)


class Networks(NamedTuple):
    """What a checkpoint holds."""

    denoiser: Denoiser
    classifier: Classifier


def save_networks(path: str | Path, networks: Networks) -> None:
    """Write both networks to one safetensors file, whole or not at all."""
    named = networks._asdict()
    tensors = {key: value.contiguous() for key, value in nn.ModuleDict(named).state_dict().items()}
    # one entry, as safetensors writes several in random order and equal networks should make equal
    # files
    metadata = {
        _FORMAT: json.dumps({name: network.architecture for name, network in named.items()})
    }
    partial = Path(f"{path}.partial")
    partial.write_bytes(save(tensors, metadata))
    os.replace(partial, path)


def load_networks(path: str | Path | None = None) -> Networks:
    """The frozen networks of a checkpoint (the shipped one if ``path`` is None), in float32 on the
    CPU; no code is run.

    Raises:
        ValueError: the file is missing, damaged or not a digits checkpoint.
    """
    path = CHECKPOINT if path is None else Path(path)
    wanted = "a safetensors file written by `train.py pretrain`"
    try:
        with safe_open(path, framework="pt") as file:
            architectures = _architectures(file.metadata() or {})
            networks = Networks(
                Denoiser(**architectures["denoiser"]), Classifier(**architectures["classifier"])
            )
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (not a dict)
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise ValueError("it holds NaN or infinite weights")
        nn.ModuleDict(networks._asdict()).load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint must be {wanted}; {path} is not: {' '.join(str(error).split())}"[:600]
        ) from None
    for network in networks:
        network.eval().requires_grad_(False)
    return networks


def _architectures(metadata: dict[str, str]) -> dict[str, dict[str, int]]:
    if _FORMAT not in metadata:
        raise ValueError(f"its metadata has {sorted(metadata)}, not {_FORMAT!r}")
    found = json.loads(metadata[_FORMAT])
    for name in Networks._fields:
        sizes = found.get(name) if isinstance(found, dict) else None
        if not isinstance(sizes, dict) or not all(
            isinstance(v, int) and 1 <= v <= 1024 for v in sizes.values()
        ):
            raise ValueError(f"its {name} architecture is {sizes!r}")
    return found
