"""Several rewards at once, weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import rewards_of


class WeightedSum(nn.Module):
    """``sum_i weights_i reward_i(images, prompts)``.

    It is differentiable if all of its terms are: a gradient of some of them alone would lead
    elsewhere. ``make_reward({"pick-score": 1.0, "aesthetic": 0.1})`` makes one of names.

    Args:
        rewards: of images and prompts, by name.
        weights: by the same names, finite.

    Raises:
        ValueError: no rewards, other names, or a weight that is no number.
    """

    def __init__(
        self, rewards: Mapping[str, Callable[..., Any]], weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        if not rewards or set(rewards) != set(weights):
            raise ValueError(
                f"weights must be given for each reward, {sorted(rewards)}, one at least; got"
                f" {sorted(weights)}"
            )
        for name, weight in weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not torch.isfinite(torch.tensor(float(weight))):
                raise ValueError(f"the weight of {name!r} must be a number; got {weight!r}")
        self.rewards, self.weights = dict(rewards), dict(weights)
        # so that they move to a device along with this
        self.parts = nn.ModuleList(r for r in rewards.values() if isinstance(r, nn.Module))

    @property
    def differentiable(self) -> bool:
        """See the class."""
        return all(getattr(reward, "differentiable", False) for reward in self.rewards.values())

    def terms(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Each reward, unweighted, ``(n,)``."""
        return {name: rewards_of(reward, images, prompts) for name, reward in self.rewards.items()}

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See PromptedReward."""
        terms = self.terms(images, prompts)
        return torch.stack([self.weights[name] * terms[name] for name in terms]).sum(0)
