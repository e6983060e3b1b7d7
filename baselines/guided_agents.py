"""Guided sampling as agents, so that a comparison holds what a user takes who does not train.

They learn nothing and spend no budget: ``learn`` returns at once. Each offers ``draw``, by which
the scoreboard evaluates it in the place of a policy; what that costs is counted there, a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..agents.base import ProblemAgent
from ..agents.callbacks import StoppedByCallback
from ..agents.checks import check_range, check_whole
from ..agents.control import ControlPolicy
from ..envs.problem import Problem, check_positive, rollout
from .guided_sampling import (
    GuidedSamples,
    best_of_n,
    feynman_kac,
    posterior_guidance,
    posterior_value,
)

SelfSampler = TypeVar("SelfSampler", bound="GuidedSampler")


class Unguided(ControlPolicy):
    """The pre-trained model: what is left of a sampler where only a control is asked for."""

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """Nothing."""
        return x.new_zeros(len(x), *self.problem.noise_shape)


class GuidedSampler(ProblemAgent):
    """Base of agents that draw whole samples, led by ``posterior_value``.

    Args:
        policy: ``"Unguided"``.
        env: an environment, a vector environment, a registered id, or a bare Problem, which has to
            offer ``terminal_estimate``.

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"Unguided": Unguided}
    hyperparameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, policy: str = "Unguided", env: Any = None, **kwargs: Any) -> None:
        super().__init__(policy, env, 1.0, 2, **kwargs)  # rates and rounds of nothing

    @classmethod
    def tuned(cls: type[SelfSampler], env: Any, **overrides: Any) -> SelfSampler:
        """The sampler of an environment: there is nothing to tune."""
        return cls(env=env, **overrides)

    def _setup_model(self) -> None:
        super()._setup_model()
        posterior_value(self.problem)

    def iterate(self) -> None:
        """Nothing is learnt."""
        raise StoppedByCallback

    def forget(self) -> None:
        """See ProblemAgent; a problem that predicts no clean sample fails here."""
        posterior_value(self.problem)

    @abstractmethod
    def draw(self, problem: Problem, n: int, generator: torch.Generator) -> GuidedSamples:
        """``n`` finished samples of ``problem``, which is this agent's or a copy of it."""


class BestOfN(GuidedSampler):
    """The best of several next states at every step (SVDD, Li et al. 2024).

    Args:
        policy, env: ``GuidedSampler``'s.
        candidates: at each step.
        selection_temperature: a candidate is kept with a chance proportional to ``exp(v /
            selection_temperature)``; at 0 it is the best one. The problem's temperature if absent.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("candidates", "selection_temperature")

    def __init__(
        self,
        policy: str = "Unguided",
        env: Any = None,
        candidates: int = 4,
        selection_temperature: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_whole("candidates", candidates, 1)
        if selection_temperature is not None:
            check_range("selection_temperature", selection_temperature, 0)
        self.candidates, self.selection_temperature = candidates, selection_temperature
        super().__init__(policy, env, **kwargs)

    def draw(self, problem: Problem, n: int, generator: torch.Generator) -> GuidedSamples:
        """See GuidedSampler."""
        temperature = self.selection_temperature
        return best_of_n(problem, n, generator, self.candidates, temperature=temperature)


class FeynmanKac(GuidedSampler):
    """Particles drawn anew by their weights (Feynman-Kac steering, Singhal et al. 2025).

    Args:
        policy, env: ``GuidedSampler``'s.
        particles: behind each sample.
        resample_below: they are drawn anew when their effective number falls below this share.
        guidance: strength of ``posterior_guidance`` that moves them (twisted particles, Wu et al.
            2023); 0 is none.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("particles", "resample_below", "guidance")

    def __init__(
        self,
        policy: str = "Unguided",
        env: Any = None,
        particles: int = 8,
        resample_below: float = 0.5,
        guidance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_whole("particles", particles, 1)
        check_range("resample_below", resample_below, 0)
        check_range("guidance", guidance, 0)
        self.particles, self.resample_below, self.guidance = particles, resample_below, guidance
        super().__init__(policy, env, **kwargs)

    def draw(self, problem: Problem, n: int, generator: torch.Generator) -> GuidedSamples:
        """See GuidedSampler."""
        lead = posterior_guidance(problem, self.guidance) if self.guidance else None
        share = self.resample_below
        return feynman_kac(problem, n, generator, self.particles, policy=lead, resample_below=share)


class PosteriorGuidance(GuidedSampler):
    """The gradient of the reward at the predicted clean sample (DPS, Chung et al. 2023).

    Args:
        policy, env: ``GuidedSampler``'s.
        scale: 1 is the optimal control to first order, were the guess the value function.
        bound: longest control of a step, in noise units.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("scale", "bound")

    def __init__(
        self,
        policy: str = "Unguided",
        env: Any = None,
        scale: float = 1.0,
        bound: float = 10.0,
        **kwargs: Any,
    ) -> None:
        check_range("scale", scale, 0)
        check_positive("bound", bound)
        self.scale, self.bound = scale, bound
        super().__init__(policy, env, **kwargs)

    def draw(self, problem: Problem, n: int, generator: torch.Generator) -> GuidedSamples:
        """See GuidedSampler."""
        lead = posterior_guidance(problem, self.scale, bound=self.bound)
        with torch.no_grad():
            paths = rollout(problem, lead, n, generator)
        steps = n * problem.horizon
        return GuidedSamples(paths.states[-1], paths.reward, paths.kl, 2 * steps, steps)
