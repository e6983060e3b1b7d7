"""A real denoising diffusion model of handwritten digits (scikit-learn's 8x8 data), as a control
problem.

Images are ``(1, 8, 8)`` in [-1, 1]. The networks are trained by ``envs/pretraining/digits.py`` and
shipped as package data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import checked
from ..problem import at
from .denoising import DenoisingProblem, Schedule
from .digit_networks import IMAGE_SHAPE, load_networks
from .last_call import LastCall


class DigitLogProbability(nn.Module):
    """Reward: the classifier's log-probability of one digit.

    Args:
        digit: 0 to 9.
        classifier: ``(n, 1, 8, 8) -> (n, 10)`` logits; the shipped one if absent.
    """

    def __init__(self, digit: int, classifier: nn.Module | None = None) -> None:
        super().__init__()
        if isinstance(digit, bool) or digit not in range(10):
            raise ValueError(f"digit must be an integer from 0 to 9; got {digit!r}")
        self.digit = int(digit)
        self.classifier = load_networks().classifier if classifier is None else classifier

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 1, 8, 8) -> (n,)``, in nats."""
        return F.log_softmax(self.classifier(x), 1)[:, self.digit]

    def success(self, x: Tensor) -> Tensor:
        """Whether the classifier takes each image for the digit, ``(n,)`` bool."""
        return self.classifier(x).argmax(1) == self.digit


class Brightness:
    """Reward: mean intensity, 0 for a black image and 1 for a white one."""

    def __call__(self, x: Tensor) -> Tensor:
        """``(n, 1, 8, 8) -> (n,)``."""
        return (x.flatten(1).mean(1) + 1) / 2


class Digits(DenoisingProblem):
    """Denoise a handwritten digit, rewarded on the finished image.

    Args:
        reward: any callable ``(n, 1, 8, 8) -> (n,)``; ``DigitLogProbability(3)`` if absent.
        temperature: price of one nat of KL.
        schedule: noise tables; diffusers' DDPM defaults with 50 steps if absent.
        checkpoint: a file written by ``train.py pretrain``; the shipped one if absent.
    """

    model_methods = ("_predict_noise",)  # what memory does not answer

    @checked
    def __init__(
        self,
        reward: Callable[[Tensor], Tensor] | None = None,
        temperature: float = 0.3,
        schedule: Schedule | None = None,
        checkpoint: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        tables = Schedule.ddpm() if schedule is None else schedule
        super().__init__(tables, IMAGE_SHAPE, temperature, dtype)
        networks = load_networks(checkpoint)
        self.denoiser = networks.denoiser.to(dtype)
        self.reward = DigitLogProbability(3, networks.classifier) if reward is None else reward
        if isinstance(self.reward, nn.Module):
            self.reward = self.reward.to(dtype)
        self._log_snr = tables.log_snr.to(dtype)
        self._last = LastCall()

    def predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The trained model's noise prediction; asked again about the same ``x``, it answers from
        memory.
        """
        return self._last(self._predict_noise, self.denoiser, k, x)

    def _predict_noise(self, k: int | Tensor, x: Tensor) -> Tensor:
        clean = self.denoiser(
            x, self._log_snr[k : k + 1] if isinstance(k, int) else self._log_snr[k]
        )
        return (x - at(self._signal, k, x) * clean) / at(self._noise_scale, k, x)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """The reward of the finished image."""
        return self.reward(x)

    @property
    def success(self) -> Callable[[Tensor], Tensor]:
        """``success(x) -> bool (n,)``: the image shows the digit asked for; absent for rewards that
        ask for none.
        """
        if not isinstance(self.reward, DigitLogProbability):
            raise AttributeError(
                "success is defined for DigitLogProbability only; the reward is"
                f" {type(self.reward).__name__}"
            )
        return self.reward.success

    @property
    def reward_bound(self) -> float:
        """No return is above 0: a log-probability; absent for rewards of unknown range."""
        if not isinstance(self.reward, DigitLogProbability):
            raise AttributeError(
                "reward_bound is known for DigitLogProbability only; the reward is"
                f" {type(self.reward).__name__}"
            )
        return 0.0

    def images(self, x: Tensor) -> Tensor:
        """States as pictures ``(n, 1, 8, 8)`` in 0..1."""
        return ((x + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def render(self, path: Tensor) -> np.ndarray:
        """The noisy image as it is now and, beside it, the clean image that the model sees in it;
        ``(160, 336, 3)``.
        """
        x = path[-1:].to(self._signal)
        both = torch.cat([x, self.terminal_estimate(len(path) - 1, x)])
        grey = ((both[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        large = grey.repeat_interleave(20, 1).repeat_interleave(20, 2)
        gap = torch.full((large.shape[1], 16), 64, dtype=torch.uint8)
        return (
            torch.cat([large[0], gap, large[1]], 1)[..., None]
            .expand(-1, -1, 3)
            .contiguous()
            .numpy()
        )


@checked
def digits(
    *,
    target: int = 3,
    temperature: float = 0.3,
    steps: int = 50,
    reward: str | Callable[[Tensor], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    **schedule: Any,
) -> Digits:
    """``girsanov/Digits-v0``: draw the digit ``target``, or earn another reward.

    Args:
        target: the digit wanted by the default reward.
        temperature: price of one nat of KL.
        steps: number of denoising steps.
        reward: ``"digit"`` (the default), ``"brightness"``, or any callable ``(n, 1, 8, 8) ->
            (n,)``.
        checkpoint: a file written by ``train.py pretrain``; its classifier gives the reward, too.
        **schedule: further arguments of ``Schedule.ddpm``.
    """
    if isinstance(target, bool) or target not in range(10):
        raise ValueError(f"target must be an integer from 0 to 9; got {target!r}")
    if reward is None or reward == "digit":
        reward = DigitLogProbability(target, load_networks(checkpoint).classifier)
    elif reward == "brightness":
        reward = Brightness()
    elif not callable(reward):
        raise ValueError(f"reward must be 'digit', 'brightness' or a callable; got {reward!r}")
    return Digits(reward, temperature, Schedule.ddpm(steps, **schedule), checkpoint)
