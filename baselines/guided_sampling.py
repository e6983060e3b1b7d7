"""What a user takes who does not train: samples led by guesses of their value, step by step.

* ``best_of_n``: at every step several candidates, one of which is kept (SVDD, Li et al. 2024).
* ``feynman_kac``: particles that are drawn anew by their weights (Feynman-Kac steering, Singhal et
  al. 2025; with a ``policy`` that moves them twisted particles, Wu et al. 2023).
* ``posterior_guidance``: a control that follows the gradient of the guess (DPS, Chung et al. 2023).

The guess is the reward of the clean sample that the pre-trained model predicts:
``posterior_value``.

Samples are scored like policies, by their reward less the price of their KL to the pre-trained
model. With the indices of who was kept, candidates and particles are a law on a larger space, whose
density against the one that keeps a uniformly drawn index (conditional sequential Monte Carlo,
Andrieu et al. 2010, under which the kept path is the pre-trained model's) is the product of
``N w`` along the kept path, ``w`` its normalised weights. Forgetting the rest makes no KL larger:
in the mean ``kl`` bounds the true one from above, and the objective is bounded from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..agents.checks import check_range, check_whole
from ..envs.problem import Estimate, Policy, Problem

#: ``(k, x) -> (n,)``: a guess of what is still to be earned at states of step k.
Value = Callable[[int, Tensor], Tensor]


class GuidedSamples(NamedTuple):
    """Finished samples and what they cost."""

    states: Tensor  # (n, *state_shape): X_T
    reward: Tensor  # (n,): sum_k r_k + y
    kl: Tensor  # (n,): its mean bounds the KL to the pre-trained model from above
    transitions: int  # that were taken
    values: int  # guesses that were asked for, a reward query each

    def objective(self, temperature: float) -> Estimate:
        """A lower bound of J, as ``problem.objective`` estimates it of a policy."""
        return Estimate.of(self.reward - temperature * self.kl)


class Sampler(Protocol):
    """What draws whole samples where others have a policy (``guided_agents``)."""

    def draw(self, problem: Problem, n: int, generator: torch.Generator) -> GuidedSamples:
        """``n`` finished samples."""


class Sampling(NamedTuple):
    """What a sample costs of who learns nothing, and pays when it draws."""

    sampling_model_evaluations: float
    sampling_reward_queries: float
    sampling_cpu_seconds: float


def posterior_value(problem: Problem) -> Value:
    """The reward of the clean sample that is predicted from a state.

    Raises:
        ValueError: the problem predicts none.
    """
    estimate = getattr(problem, "terminal_estimate", None)
    if estimate is None:
        raise ValueError(
            "value must be given for a problem without terminal_estimate; got None for"
            f" {type(problem).__name__}"
        )
    return lambda k, x: problem.terminal_reward(estimate(k, x))


def posterior_guidance(
    problem: Problem, scale: float = 1.0, value: Value | None = None, bound: float = 10.0
) -> Policy:
    """The control ``scale J_z^T grad v_{k+1}(F_k(x, 0)) / temperature``, v the value.

    It is the optimal one to first order in the step where ``v`` is the value function and ``scale``
    is 1.

    Args:
        problem: whose transition and rewards autograd can follow.
        scale: strength.
        value: the guess; ``posterior_value`` if absent.
        bound: longest control of a step, in noise units; longer ones are shortened.
    """
    guess = posterior_value(problem) if value is None else value

    def policy(k: int, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.new_zeros(len(x), *problem.noise_shape).requires_grad_()
            total = guess(k + 1, problem.transition(k, x.detach(), z)).sum()
            if not total.requires_grad:
                raise ValueError(
                    "posterior_guidance needs gradients of the transition and the reward;"
                    f" {type(problem).__name__} has none"
                )
            (slope,) = torch.autograd.grad(total, z)
        a = scale * slope / problem.temperature
        length = a.flatten(1).norm(dim=1).clamp(min=1e-12)
        return a * (bound / length).clamp(max=1).view(-1, *[1] * (a.dim() - 1))

    return policy


@torch.no_grad()
def best_of_n(
    problem: Problem,
    n: int,
    generator: torch.Generator,
    candidates: int = 4,
    value: Value | None = None,
    temperature: float | None = None,
) -> GuidedSamples:
    """``n`` paths, each of which keeps one of several candidates at every step.

    Args:
        problem: any.
        n: number of samples.
        generator: of all noise.
        candidates: at each step, N.
        value: the guess; ``posterior_value`` if absent.
        temperature: a candidate is kept with a chance proportional to ``exp(v / temperature)``; at
            0 it is the best one. The problem's if absent.
    """
    check_whole("n", n, 1)
    check_whole("candidates", candidates, 1)
    beta = problem.temperature if temperature is None else temperature
    check_range("temperature", beta, 0)
    guess = posterior_value(problem) if value is None else value
    x = problem.initial(n, generator)
    reward, kl = x.new_zeros(n), x.new_zeros(n)
    row = torch.arange(n, device=x.device)
    values = 0
    for k in range(problem.horizon):
        reward += problem.running_reward(k, x)
        z = _noise(problem, n * candidates, x, generator)
        after = problem.transition(k, x.repeat_interleave(candidates, 0), z)
        if candidates > 1:
            found = guess(k + 1, after).view(n, candidates)
            values += found.numel()
            if beta == 0:
                # ties aside; of the law of the best of N the KL is this
                index = found.argmax(1)
                kl += math.log(candidates) - (candidates - 1) / candidates
            else:
                log_weight = torch.log_softmax(found / beta, 1)
                index = _drawn(log_weight.exp(), generator)
                kl += log_weight[row, index] + math.log(candidates)
            after = after.view(n, candidates, *after.shape[1:])[row, index]
        x = after
    reward += problem.terminal_reward(x)
    return GuidedSamples(x, reward, kl, n * candidates * problem.horizon, values)


@torch.no_grad()
def feynman_kac(
    problem: Problem,
    n: int,
    generator: torch.Generator,
    particles: int = 8,
    value: Value | None = None,
    policy: Policy | None = None,
    resample_below: float = 0.5,
) -> GuidedSamples:
    """``n`` systems of particles, of each of which one is kept at the end.

    A particle's weight grows by ``exp((r_k + v_{k+1} - v_k) / temperature)`` a step, times the
    density of the pre-trained step over the policy's, so that the weights of whole paths are
    ``exp(reward / temperature)`` whatever the guess. The guess at the end is the reward itself.

    Args:
        problem: any.
        n: number of samples.
        generator: of all noise.
        particles: of a system, N.
        value: the guess; ``posterior_value`` if absent.
        policy: moves the particles; none if absent.
        resample_below: a system is drawn anew when its effective size falls below this share of N,
            and in any case at the end.
    """
    check_whole("n", n, 1)
    check_whole("particles", particles, 1)
    check_range("resample_below", resample_below, 0)
    guess = posterior_value(problem) if value is None else value
    beta, last = problem.temperature, problem.horizon - 1
    # all particles of a system set out from the same start, which nobody controls
    x = problem.initial(n, generator).repeat_interleave(particles, 0)
    reward, kl = x.new_zeros(len(x)), x.new_zeros(len(x))
    log_weight = x.new_zeros(n, particles)
    system = torch.arange(n, device=x.device)[:, None] * particles
    before, values = guess(0, x), len(x)
    for k in range(problem.horizon):
        noise = _noise(problem, len(x), x, generator)
        a = torch.zeros_like(noise) if policy is None else policy(k, x)
        earned = problem.running_reward(k, x)
        x = problem.transition(k, x, noise + a)
        ahead = problem.terminal_reward(x) if k == last else guess(k + 1, x)
        values += len(x)
        ratio = (a * (noise + 0.5 * a)).flatten(1).sum(1)  # log of the policy's density over ours
        reward, kl = reward + earned, kl + ratio
        log_weight = log_weight + ((earned + ahead - before) / beta - ratio).view(n, particles)
        before = ahead
        share = torch.log_softmax(log_weight, 1)
        poor = torch.logsumexp(2 * share, 1).neg().exp() < resample_below * particles
        if k == last:
            poor = torch.ones_like(poor)
        if bool(poor.any()):
            index = _drawn(share.exp(), generator, particles)
            stay = torch.arange(particles, device=x.device).expand_as(index)
            index = torch.where(poor[:, None], index, stay)
            price = share.gather(1, index) + math.log(particles)
            kept = (system + index).flatten()
            x, reward, before = x[kept], reward[kept], before[kept]
            kl = kl[kept] + torch.where(poor[:, None], price, 0.0).flatten()
            log_weight = torch.where(poor[:, None], 0.0, log_weight)
    first = system.flatten()  # they are drawn alike: any of them
    y = before[first]
    return GuidedSamples(
        x[first], reward[first] + y, kl[first], n * particles * problem.horizon, values
    )


def _noise(problem: Problem, rows: int, x: Tensor, generator: torch.Generator) -> Tensor:
    shape = (rows, *problem.noise_shape)
    return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)


def _drawn(chances: Tensor, generator: torch.Generator, each: int | None = None) -> Tensor:
    """Indices drawn from each row, ``(n,)``, or ``(n, each)``."""
    found = torch.multinomial(chances, each or 1, replacement=True, generator=generator)
    return found if each else found[:, 0]
