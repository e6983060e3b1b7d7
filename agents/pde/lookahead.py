"""Three estimates of ``log E[f_{k'}(X_{k'}) | X_k = x]``.

They stand for ``-(d_t + L) f`` in the empirical form:

* ``Observed``: the later visit that was recorded. Needs no model (the trajectory form of Mou 2025).
* ``FreshNoise``: the mean over fresh draws of the known transition; no further reward is asked for.
* ``Generator``: the second-order expansion in the noise, by automatic differentiation; up to the
  square of the step this is the generator applied to f (the generator form).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...envs.problem import Problem
from ..networks import Value, encode
from .classes.linear import LinearValue, Tangent
from .replay import Replay

#: Farthest centre of fresh draws, in standard deviations: a wild f must not send them off.
_REACH = 3.0


class Lookahead(ABC):
    """Estimates of the expected later value.

    ``fresh`` ones replace the recorded next state and its weight.
    """

    fresh: bool
    generator: torch.Generator | None = None

    def rough(self) -> Lookahead:
        """A cheaper one for what need only come near the solution; itself if there is none."""
        return self

    @abstractmethod
    def log_value(
        self, value: Value, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tensor:
        """``log E f_{k'}``, ``(n,)``, from states ``x`` at ``k``.

        ``later`` are encoded states ``(n, p)`` at ``later_k``.
        """

    @abstractmethod
    def tangent(
        self, value: LinearValue, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tangent:
        """The same of a linear class, and the derivative by its weights."""


class Observed(Lookahead):
    """The recorded later state itself."""

    fresh = False

    def log_value(
        self, value: Value, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tensor:
        """See Lookahead."""
        return value.bounded(later_k, later)

    def tangent(
        self, value: LinearValue, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tangent:
        """See Lookahead."""
        return value.tangent(later_k, later)


class FreshNoise(Lookahead):
    """Log-mean-exponential over fresh antithetic draws of one transition.

    They are drawn around the gradient g of the present ``log f``, each with its weight
    ``exp(-g.W - |g|^2 / 2)`` (Girsanov; importance sampling, unbiased whatever g). Where f is the
    solution and the step small, all draws agree, however much f varies within one standard
    deviation of the noise.

    Args:
        problem: whose transition is drawn.
        pairs: antithetic pairs of draws.
        generator: of the noise.
    """

    fresh = True
    generator: torch.Generator

    def __init__(self, problem: Problem, pairs: int, generator: torch.Generator) -> None:
        self.problem, self.pairs, self.generator = problem, pairs, generator

    def rough(self) -> FreshNoise:
        """One pair of draws."""
        return FreshNoise(self.problem, 1, self.generator)

    def branches(self, data: Replay, visit: int, k: int | Tensor) -> tuple[Tensor, Tensor]:
        """Next states of one visit of all paths, and their log weights.

        They are antithetic around the control that was taken, and the recorded one is the first:
        of one pair, only its mirror image costs an evaluation. Around no control, and all drawn,
        where the noises of the data are unknown.

        Args:
            data: paths seen at every step.
            visit: whose next states they are.
            k: its step.

        Returns:
            Encoded states ``(2 pairs, N, p)`` of float32, and ``(2 pairs, N)``.
        """
        x, copies, n = data.states[:, visit], 2 * self.pairs, data.n
        if data.noises is None or data.controls is None:
            later, log_weight = self._draw(k, x, x.new_zeros(n, *self.problem.noise_shape))
            return later.view(copies, n, -1), log_weight
        control, taken = data.controls[:, visit], data.noises[:, visit]
        more = (self.pairs - 1, *taken.shape)
        drawn = torch.randn(more, generator=self.generator, device=x.device, dtype=x.dtype)
        noise = torch.cat([taken[None], drawn])
        noise = torch.cat([noise, -noise])
        log_weight = -(control * noise + 0.5 * control.square()).flatten(2).sum(2)
        steps = k if isinstance(k, int) else k.repeat(copies - 1)
        with torch.no_grad():
            states = x.repeat(copies - 1, *[1] * (x.dim() - 1))
            problem: Any = self.problem
            if hasattr(problem, "noise_scale"):  # the recorded state tells the mean
                moved = problem.noise_scale(k, taken) * (noise[1:] - taken)
                latents = problem.latents(data.states[:, visit + 1]) + moved
                later = problem.with_latents(states, latents.flatten(0, 1))
            else:
                shifted = (control + noise[1:]).flatten(0, 1)
                later = problem.transition(steps, states, shifted)
            others = encode(self.problem, steps + 1, later).float().view(copies - 1, n, -1)
        return torch.cat([data.inputs[None, :, visit + 1], others]), log_weight

    def _draw(self, k: int | Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded next states of noise around ``centre``, and their log weights.

        ``(2 pairs * n, p)`` and ``(2 pairs, n)``.
        """
        shape = (self.pairs, len(x), *self.problem.noise_shape)
        half = torch.randn(shape, generator=self.generator, device=x.device, dtype=x.dtype)
        noise = torch.cat([half, -half])
        copies = 2 * self.pairs
        steps = k if isinstance(k, int) else k.repeat(copies)
        kernel = getattr(self.problem, "gaussian_kernel", None)
        # puts back what a state holds besides, such as its prompt
        carry = getattr(self.problem, "with_latents", None)
        with torch.no_grad():
            states = x.repeat(copies, *[1] * (x.dim() - 1))
            if kernel is None:
                later = self.problem.transition(steps, states, (centre + noise).flatten(0, 1))
            else:  # one evaluation of a denoiser for all copies
                mean, scale = kernel(k, x)
                later = (mean + scale * (centre + noise)).flatten(0, 1)
                later = later if carry is None else carry(states, later)
            log_weight = -(centre * noise + 0.5 * centre.square()).flatten(2).sum(2)
            return encode(self.problem, steps + 1, later).float(), log_weight

    def _centre(self, value: Value, k: int | Tensor, x: Tensor) -> Tensor:
        """The gradient of ``log f`` by the noise ``(n, *noise_shape)``.

        Zero where the transition can't be differentiated.
        """
        with torch.enable_grad():
            z = x.new_zeros(len(x), *self.problem.noise_shape).requires_grad_()
            later = self.problem.transition(k, x, z)
            if not later.requires_grad:
                return z.detach()
            (slope,) = torch.autograd.grad(
                value(k + 1, encode(self.problem, k + 1, later).float()).sum(), z
            )
        return slope.clamp(-_REACH, _REACH)

    def log_value(
        self, value: Value, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tensor:
        """See Lookahead."""
        copies = 2 * self.pairs
        steps = k + 1 if isinstance(k, int) else (k + 1).repeat(copies)
        later, log_weight = self._draw(k, x, self._centre(value, k, x))
        log_f = value.bounded(steps, later).view(copies, len(x)) + log_weight
        return value.within(k + 1, log_f.logsumexp(0) - math.log(copies))

    def tangent(
        self, value: LinearValue, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tangent:
        """See Lookahead."""
        copies = 2 * self.pairs
        steps = k + 1 if isinstance(k, int) else (k + 1).repeat(copies)
        later, log_weight = self._draw(k, x, self._centre(value, k, x))
        return _mean(value.tangent(steps, later), log_weight)

    def tangent_of_branches(
        self, value: LinearValue, later_k: int | Tensor, later: Tensor, log_ratio: Tensor
    ) -> Tangent:
        """The same of next states that were drawn when the paths were, as many pairs as this has.

        Args:
            value: the class.
            later_k: their step, one for all or ``(n,)``.
            later: encoded states ``(n, 2 pairs, p)`` (see ``branches``).
            log_ratio: their log weights ``(n, 2 pairs)``.
        """
        drawn = later.shape[1] // 2
        few = torch.arange(min(self.pairs, drawn), device=later.device)
        few = torch.cat([few, few + drawn])
        steps = later_k if isinstance(later_k, int) else later_k.repeat(len(few))
        found = value.tangent(steps, later[:, few].transpose(0, 1).flatten(0, 1))
        return _mean(found, log_ratio[:, few].T)


def _mean(found: Tangent, log_weight: Tensor) -> Tangent:
    """``log`` of the weighted mean of f over copies, and its derivative.

    Args:
        found: of all copies, ``(copies * n, ...)``.
        log_weight: ``(copies, n)``.
    """
    copies, n = log_weight.shape
    log_f = found.log_f.view(copies, n) + log_weight
    share = log_f.softmax(0)[..., None]
    space = found.space.view(copies, n, -1)
    mean = share[0] * space[0]
    for one, part in zip(share[1:], space[1:], strict=True):
        mean.addcmul_(one, part)
    return Tangent(log_f.logsumexp(0) - math.log(copies), mean)


class Generator(Lookahead):
    """``v + (tr D^2 v + |D v|^2) / 2`` of ``v(z) = log f_{k+1}(F_k(x, z))`` at ``z = 0``.

    D is the derivative by the noise.

    Args:
        problem: whose transition and encoding autograd can follow, twice.
        probes: 0 for the exact trace (one second derivative a noise dimension); else the number of
            Rademacher directions of Hutchinson's unbiased estimate.
        generator: of the directions.
    """

    fresh = True

    def __init__(
        self, problem: Problem, probes: int = 0, generator: torch.Generator | None = None
    ) -> None:
        self.problem, self.probes, self.generator = problem, probes, generator

    def _directions(self, z: Tensor) -> list[tuple[Tensor, float]]:
        """Directions ``(n, *noise_shape)`` and their weights."""
        if self.probes:
            draw = torch.randint(
                0, 2, (self.probes, *z.shape), generator=self.generator, device=z.device
            )
            return [(one.to(z) * 2 - 1, 1 / self.probes) for one in draw]
        eye = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device).view(-1, 1, *z.shape[1:])
        return [(one.expand_as(z), 1.0) for one in eye]

    def _expanded(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor
    ) -> list[tuple[Any, Any, Any]]:
        """Value, first and second derivative of ``function(z)`` along each direction.

        Of each of its outputs, at ``z = 0``.
        """
        z = x.new_zeros(len(x), *self.problem.noise_shape)
        rows = []
        for direction, _ in self._directions(z):

            def first(at: Tensor, along: Tensor = direction) -> Any:
                return torch.func.jvp(function, (at,), (along,))

            expansion: Any = torch.func.jvp(first, (z,), (direction,))
            (value, slope), (_, curvature) = expansion
            rows.append((value, slope, curvature))
        return rows

    def log_value(
        self, value: Value, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tensor:
        """See Lookahead."""

        def log_f(z: Tensor) -> tuple[Tensor, ...]:
            return (
                value(k + 1, encode(self.problem, k + 1, self.problem.transition(k, x, z)).float()),
            )

        weight = self._directions(x.new_zeros(1, *self.problem.noise_shape))[0][1]
        rows = self._expanded(log_f, x)
        grown = sum(
            0.5 * weight * (curvature[0] + slope[0].square()) for _, slope, curvature in rows
        )
        return value.within(k + 1, rows[0][0][0] + grown)

    def tangent(
        self, value: LinearValue, k: int | Tensor, x: Tensor, later_k: int | Tensor, later: Tensor
    ) -> Tangent:
        """See Lookahead. Only for classes whose tangent is their features: ``f = exp(w . phi)``."""

        def both(z: Tensor) -> tuple[Tensor, ...]:
            found = value.tangent(
                k + 1, encode(self.problem, k + 1, self.problem.transition(k, x, z))
            )
            return found.log_f, found.space

        weight = self._directions(x.new_zeros(1, *self.problem.noise_shape))[0][1]
        rows = self._expanded(both, x)
        log_f, space = rows[0][0]
        for _, slope, curvature in rows:
            log_f = log_f + 0.5 * weight * (curvature[0] + slope[0].square())
            space = space + 0.5 * weight * (curvature[1] + 2 * slope[0][:, None] * slope[1])
        return Tangent(log_f, space)


#: By name, from a problem, a number of draws (0: the usual one) and the generator of the noise.
LOOKAHEADS: dict[str, Callable[[Problem, int, torch.Generator], Lookahead]] = {
    "observed": lambda problem, draws, generator: Observed(),
    "fresh": lambda problem, draws, generator: FreshNoise(problem, draws or 4, generator),
    "generator": Generator,
}
