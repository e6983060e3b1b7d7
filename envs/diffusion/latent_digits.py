"""Coloured handwritten digits with a sentence each: what the small text-to-image models that ship
with the package know.

The shapes are scikit-learn's real digits, the ink is one of five colours, the prompt is "a green
six". One colour of every digit is kept out of training: those ten prompts ask for what the model
has never seen, and there it has something to learn. Images are RGB ``(n, 3, 16, 16)`` in [0, 1], as
diffusers' VAEs decode them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .digit_networks import load_networks

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
IMAGE_SIZE = 16
#: The shipped ``StableDiffusionPipeline``; ``train.py pretrain-latent`` made it.
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "latent_digits"
#: The shipped ``StableDiffusion3Pipeline``; ``train.py pretrain-flow`` made it.
FLOW_CHECKPOINT = CHECKPOINT.with_name("flow_digits")


def prompt_of(digit: int, colour: int) -> str:
    """``(6, 1) -> "a green six"``."""
    return f"a {list(COLOURS)[colour]} {DIGITS[digit]}"


def parse(prompt: str) -> tuple[int, int]:
    """``"a green six" -> (6, 1)``: digit and colour; ValueError for any other sentence."""
    words = prompt.split()
    if len(words) == 3 and words[0] == "a" and words[1] in COLOURS and words[2] in DIGITS:
        return DIGITS.index(words[2]), list(COLOURS).index(words[1])
    wanted = f"'a <colour> <digit>', a colour of {list(COLOURS)} and a digit from zero to nine"
    raise ValueError(f"prompt must be {wanted}; got {prompt!r}")


def withheld(digit: int, colour: int) -> bool:
    """Whether the model never sees this digit in this colour: one colour of each digit, two digits
    of each colour.
    """
    return digit % len(COLOURS) == colour


def paint(images: Tensor, colour: Tensor) -> Tensor:
    """Grey digits ``(n, 1, 8, 8)`` in [-1, 1] in colours ``(n,)`` (indices): RGB ``(n, 3, 16, 16)``
    in [0, 1] on black.
    """
    ink = F.interpolate((images + 1) / 2, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 1)
    return ink * torch.tensor(list(COLOURS.values())).to(images)[colour][:, :, None, None]


def grey(images: Tensor) -> Tensor:
    """The digit's shape alone, ``(n, 1, 8, 8)`` in [-1, 1]: the strongest channel, averaged over
    2x2 pixels.
    """
    return 2 * F.avg_pool2d(images.amax(1, keepdim=True), images.shape[-1] // 8) - 1


def ink_colour(images: Tensor) -> Tensor:
    """RGB ``(n, 3)`` of the ink: the mean colour, weighted with the strength of each pixel, at full
    strength.
    """
    strength = images.amax(1, keepdim=True)
    total = (images * strength).sum((2, 3))
    return total / strength.square().sum((2, 3)).clamp(min=1e-3)


class PromptLogProbability(nn.Module):
    """Reward: how surely an image shows what its prompt says, ``log p(digit | image) + log p(colour
    | image)``, in nats.

    The digit is judged by the shipped classifier of ``girsanov/Digits-v0``, the colour by the
    distance of the ink to the five (a softmax of ``-distance^2 / (2 spread^2)``). Differentiable;
    it plays the part that ImageReward has for photographs.

    Args:
        classifier: ``(n, 1, 8, 8) -> (n, 10)`` logits; the shipped one if absent.
        spread: of a colour, in units of RGB.
    """

    differentiable = True

    def __init__(self, classifier: nn.Module | None = None, spread: float = 0.35) -> None:
        super().__init__()
        self.classifier = load_networks().classifier if classifier is None else classifier
        self.spread = spread
        self.register_buffer("palette", torch.tensor(list(COLOURS.values())))
        self.palette: Tensor

    def log_chances(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the ten digits ``(n, 10)`` and of the five colours ``(n, 5)``."""
        distance = (ink_colour(images)[:, None] - self.palette).square().sum(2)
        return F.log_softmax(self.classifier(grey(images)), 1), F.log_softmax(
            -distance / (2 * self.spread**2), 1
        )

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """``(n, 3, 16, 16)`` and n prompts to ``(n,)``."""
        digit, colour, row = self._wanted(images, prompts)
        shape, hue = self.log_chances(images)
        return shape[row, digit] + hue[row, colour]

    def success(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Whether both the digit and the colour are taken for what the prompt says, ``(n,)``
        bool.
        """
        digit, colour, _ = self._wanted(images, prompts)
        shape, hue = self.log_chances(images)
        return (shape.argmax(1) == digit) & (hue.argmax(1) == colour)

    @staticmethod
    def _wanted(images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        if len(prompts) != len(images):
            raise ValueError(
                f"prompts must be one for each image; got {len(prompts)} for {len(images)} images"
            )
        known = {prompt: parse(prompt) for prompt in set(prompts)}
        digit, colour = torch.tensor([known[prompt] for prompt in prompts], device=images.device).T
        return digit, colour, torch.arange(len(images), device=images.device)
