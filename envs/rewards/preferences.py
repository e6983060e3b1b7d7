"""A reward learnt from people: from comparisons of two samples, or from ratings of single ones.

Comparisons follow Bradley and Terry (1952): with the difference of two rewards in nats,

    P(x is preferred to x') = 1 / (1 + exp(r(x') - r(x))),

so a temperature of 1 pays one nat of KL for odds of e in the comparison with the same sample.
Their level is not determined; it is set to zero on average over the samples seen. Ratings are
regressed by least squares. Either way several networks, each fitted to its own bootstrap of the
data, give the reward by their mean and its uncertainty by their spread.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_generator
from ..features import Standardise

#: Share of the labels that no network is fitted to, and steps between two looks at them.
_HELD_OUT, _EVERY = 0.2, 25


class HeldOut(NamedTuple):
    """How well the ensemble's mean predicts labels that it was not fitted to."""

    loss: float  # mean negative log-likelihood in nats, or mean square error of ratings
    trivial: float  # the same of equal rewards (log 2), or of the mean rating
    n: int  # labels


class LearnedReward(nn.Module):
    """``(n, *shape) -> (n,)``, differentiable: a reward for every agent.

    ``from_comparisons`` and ``from_ratings`` make one. It takes a prompt beside the samples as
    well, which it ignores, so it rewards pipelines too.

    Args:
        networks: ``(n, *shape) -> (n,)`` or ``(n, 1)`` each.
        pessimism: standard deviations between networks that are subtracted from their mean, which
            keeps agents near the samples that were labelled.

    Raises:
        ValueError: fewer than two networks, or a negative ``pessimism``.
    """

    differentiable = True
    level: Tensor
    #: Of the labels that were held out; None before any fit.
    held_out: HeldOut | None = None

    def __init__(self, networks: list[nn.Module], pessimism: float = 0.0) -> None:
        super().__init__()
        if len(networks) < 2:
            raise ValueError(f"networks must be two or more; got {len(networks)}")
        if not pessimism >= 0:
            raise ValueError(f"pessimism must be at least 0; got {pessimism!r}")
        self.networks, self.pessimism = nn.ModuleList(networks), float(pessimism)
        self.register_buffer("level", torch.zeros(len(networks), 1))

    def members(self, x: Tensor) -> Tensor:
        """The reward of each network, ``(networks, n)``."""
        found = torch.stack([network(x).reshape(len(x)) for network in self.networks])
        return found - self.level

    def spread(self, x: Tensor) -> Tensor:
        """Standard deviation between the networks: how little the labels say of ``x``, ``(n,)``."""
        return self.members(x).std(0)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """The reward, ``(n,)``."""
        members = self.members(x)
        mean = members.mean(0)
        return mean - self.pessimism * members.std(0) if self.pessimism else mean

    @classmethod
    def from_comparisons(
        cls, preferred: Tensor, others: Tensor, generator: torch.Generator, **settings: Any
    ) -> LearnedReward:
        """Fit to pairs of which the first was preferred.

        Args:
            preferred: ``(n, *shape)``, at least 10; a tie is given twice, once either way.
            others: what they were compared with, of the same shape.
            generator: of bootstraps and batches.
            settings: see ``from_ratings``.

        Raises:
            ValueError: other shapes, numbers that are not finite, or an unknown setting.
        """
        _check("preferred", preferred, preferred)
        _check("others", others, preferred)

        def loss(network: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
            both = network(torch.cat([preferred[rows], others[rows]])).flatten()
            return F.softplus(both[len(rows) :] - both[: len(rows)]).mean()

        seen = torch.cat([preferred, others])
        found = _fitted(cls, seen, len(seen) // 2, loss, generator, seen.new_zeros(()), **settings)
        with torch.no_grad():
            found.level.copy_(found.members(seen).mean(1, keepdim=True))
        return found

    @classmethod
    def from_ratings(
        cls, samples: Tensor, ratings: Tensor, generator: torch.Generator, **settings: Any
    ) -> LearnedReward:
        """Fit to single samples and their ratings.

        Args:
            samples: ``(n, *shape)``, at least 10.
            ratings: ``(n,)``, of any scale.
            generator: of bootstraps and batches.
            settings: ``members`` (networks, 5), ``network`` (a function that makes one for the
                shape of a sample; a smooth perceptron if absent), ``steps`` of AdamW (600),
                ``learning_rate`` (3e-3), ``weight_decay`` (1e-2), ``batch_size`` (128),
                ``pessimism`` (0).

        Raises:
            ValueError: other shapes, numbers that are not finite, or an unknown setting.
        """
        _check("samples", samples, samples)
        _check("ratings", ratings, ratings[:, None] if ratings.dim() == 1 else ratings)
        if ratings.shape != (len(samples),):
            raise ValueError(
                f"ratings must be of shape {(len(samples),)}; got {tuple(ratings.shape)}"
            )
        middle, scale = ratings.mean(), ratings.std().clamp(min=1e-12)

        def loss(network: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
            return (network(samples[rows]).flatten() - ratings[rows]).square().mean()

        make = settings.pop("network", None) or perceptron

        def scaled(shape: torch.Size) -> nn.Module:
            return nn.Sequential(make(shape), _Affine(middle, scale))

        settings["network"] = scaled
        return _fitted(cls, samples, len(samples), loss, generator, middle, **settings)


def perceptron(shape: torch.Size) -> nn.Module:
    """Two smooth layers of 64 on the flattened sample."""
    n = shape.numel()
    return nn.Sequential(
        nn.Flatten(), Standardise(n), nn.Linear(n, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
        nn.Linear(64, 1),
    )  # fmt: skip


class _Affine(nn.Module):
    """Back to the scale of the ratings."""

    def __init__(self, middle: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("middle", middle.clone())
        self.register_buffer("scale", scale.clone())
        self.middle: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.middle + self.scale * x


def _check(name: str, found: Tensor, like: Tensor) -> None:
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 1:
        raise ValueError(f"{name} must be a floating tensor, one row a label; got {found!r:.200}")
    if found.shape != like.shape and found.dim() > 1:
        raise ValueError(f"{name} must be of shape {tuple(like.shape)}; got {tuple(found.shape)}")
    if len(found) < 10:
        raise ValueError(f"{name} must hold 10 labels at least; got {len(found)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite; got NaN or infinite numbers")


def _fitted(
    kind: type[LearnedReward],
    seen: Tensor,
    n: int,
    loss: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    generator: torch.Generator,
    constant: Tensor,
    *,
    members: int = 5,
    network: Callable[[torch.Size], nn.Module] | None = None,
    steps: int = 600,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    batch_size: int = 128,
    pessimism: float = 0.0,
) -> LearnedReward:
    """Networks of least ``loss(network, rows)`` on bootstraps of ``n`` labels.

    Each keeps the weights that did best on labels held out from all. ``constant`` is the best
    reward that tells nothing apart.
    """
    check_generator("generator", generator)
    device = seen.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device=device)))
        networks = [(network or perceptron)(seen.shape[1:]).to(seen) for _ in range(members)]
    reward = kind(networks, pessimism).to(seen)
    order = torch.randperm(n, generator=generator, device=device)
    held, rest = order[: max(2, round(_HELD_OUT * n))], order[max(2, round(_HELD_OUT * n)) :]
    for one in networks:
        for part in one.modules():
            if isinstance(part, Standardise):
                part.fit(seen.flatten(1))
        own = rest[torch.randint(len(rest), (len(rest),), generator=generator, device=device)]
        optimizer = torch.optim.AdamW(one.parameters(), learning_rate, weight_decay=weight_decay)
        best: float = math.inf
        kept: dict[str, Any] = {}
        for i in range(steps + 1):
            if i % _EVERY == 0 or i == steps:
                with torch.no_grad():
                    now = float(loss(one, held))
                if now < best or not kept:
                    best, kept = now, copy.deepcopy(one.state_dict())
            rows = torch.randint(len(own), (batch_size,), generator=generator, device=device)
            optimizer.zero_grad()
            loss(one, own[rows]).backward()
            optimizer.step()
        one.load_state_dict(kept)
    reward.eval().requires_grad_(False)
    with torch.no_grad():
        found = float(loss(lambda x: reward.members(x).mean(0), held))
        flat = float(loss(lambda x: constant.expand(len(x)), held))
    reward.held_out = HeldOut(found, flat, len(held))
    return reward
