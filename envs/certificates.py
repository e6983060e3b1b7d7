"""Upper bounds that no policy can pass, estimated from paths.

For every policy (Donsker and Varadhan), and with paths of any proposals (importance sampling):

    J(pi) <= beta log E^0[exp(R / beta)] = beta log E^q[exp(R / beta) dP^0/dq],
    q = sum_j P^j / m,   dP^j/dP^0 = exp(sum_k a_j . z_k - |a_j|^2 / 2),   z_k the noise that acted.

The proposals are the uncontrolled process and any policies; q is their equal mixture (the balance
heuristic of Veach and Guibas, 1995). Every path is weighted by the densities under all of them, so
that one policy that finds a mode suffices, and none that misses it does harm. Under the optimal
policy the weight is nearly constant.

An estimate knows of no mode that none of its paths visited. Only ``Certificate.limit`` does, which
takes a bounded reward and holds for finitely many paths with a stated probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_generator, check_integer, check_positive, check_share, shown
from .problem import Estimate, Policy, Problem, check_problem, finite_rewards, rollout, squared_norm

#: The probability of every interval and limit here.
CONFIDENCE = 0.95


class Certificate(NamedTuple):
    """The bound ``J(pi) <= temperature * log E^0[exp(return / temperature)]``, estimated from ``n``
    paths.

    With ``starts`` it is the closer bound ``J(pi) <= E[V_0(X_0)]``: the mean over that many starts
    of the bound from each. The initial law is not controlled, while the mean of all paths may lean
    to the starts that end well.
    """

    bound: float
    stderr: float
    low: float  # 95% confidence interval of the bound
    high: float
    # effective number of paths that carry the mean (from each start: the harmonic mean)
    ess: float
    n: int
    starts: int = 0
    #: no more than this with probability 95%, for this n; None where the reward has no known bound
    limit: float | None = None

    @classmethod
    def of(
        cls,
        bound: Estimate,
        confidence: float,
        ess: float,
        n: int,
        starts: int = 0,
        *,
        shift: float = 0.0,
        limit: float | None = None,
    ) -> Certificate:
        """With a normal interval around ``bound``, moved by ``shift``."""
        check_share("confidence", confidence)
        half, middle = _quantile(confidence) * bound.stderr, bound.mean + shift
        return cls(*bound, middle - half, middle + half, ess, n, starts, limit)

    @property
    def certified(self) -> bool:
        """False when fewer than 50 effective paths carry the estimate: its interval then means
        little.

        True says that the paths at hand agree, not that no path is missing.
        """
        return self.ess >= 50.0


class Pooled(NamedTuple):
    """The bound from the uncontrolled paths and those of policies together."""

    certificate: Certificate  # from all paths
    uncontrolled: Certificate  # from the uncontrolled ones among them
    #: pooled minus uncontrolled bound, and its standard error
    difference: Estimate
    objectives: dict[str, Estimate]  # J of each policy on the paths that it lent
    by_start: Certificate | None = None  # the closer bound, from paths of their own

    @property
    def refutes(self) -> bool:
        """Whether the uncontrolled paths alone are refuted: more than 3 standard errors lie between
        their bound and that of all paths.
        """
        return abs(self.difference.mean) > 3 * self.difference.stderr


class _Moments(NamedTuple):
    """A log-mean-exp over strata of equal size, the last dimension being their paths."""

    log_mean: Tensor  # bias taken out to second order
    variance: Tensor  # of the mean of the weights, relative to its square
    third: Tensor  # third cumulant of that mean, relative to its cube
    share: Tensor  # one over the effective number of paths


def _moments(log_weight: Tensor) -> _Moments:
    """Of log-weights ``(..., strata, n)``; results ``(...)``.

    The logarithm of a mean is on average too low by half its relative variance: that is added,
    since a bound that is too low would flatter policies.
    """
    strata, n = log_weight.shape[-2:]
    log_mean = log_weight.flatten(-2).logsumexp(-1) - math.log(strata * n)
    weight = (log_weight - log_mean[..., None, None]).exp()  # mean 1
    off = weight - weight.mean(-1, keepdim=True)
    variance = off.square().sum((-2, -1)) / ((n - 1) * n * strata**2)
    third = off.pow(3).sum((-2, -1)) / (n**3 * strata**3)
    share = weight.square().mean((-2, -1)) / (strata * n)
    return _Moments(log_mean + 0.5 * variance, variance, third, share)


def _estimated(
    log_weight: Tensor, temperature: float, confidence: float, limit: float | None = None
) -> Certificate:
    """The certificate of log-weights ``(strata, n)``.

    The studentised log-mean-exp is not normal: weights are skewed, and large ones come with a large
    standard error. Its quantiles are, by Cornish and Fisher to the first order, ``+-z + ((sqrt(v) /
    2 - s / 3) z^2 - s / 6)``, with v the relative variance of the mean and s its skewness. Both
    ends move by the same amount.
    """
    log_mean, v, third, share = (float(part) for part in _moments(log_weight))
    shift = 0.0
    if v > 0:
        square = _quantile(confidence) ** 2
        shift = square * (third / (3 * v) - v / 2) + third / (6 * v) - v / 2
    bound = Estimate(temperature * log_mean, temperature * math.sqrt(v))
    return Certificate.of(
        bound,
        confidence,
        1 / share,
        log_weight.numel(),
        shift=temperature * shift,
        limit=limit,
    )


def _quantile(confidence: float) -> float:
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))


def certificate_of(
    returns: Tensor,
    temperature: float,
    confidence: float = CONFIDENCE,
    reward_bound: float | None = None,
) -> Certificate:
    """The certificate from uncontrolled returns ``(n,)``.

    With ``reward_bound``, which no return exceeds, it has a ``limit`` too.
    """
    check_returns(returns, temperature)
    limit = (
        None
        if reward_bound is None
        else finite_sample_limit(returns, temperature, reward_bound, confidence)
    )
    return _estimated(returns.double()[None] / temperature, temperature, confidence, limit)


def check_returns(returns: Tensor, temperature: float) -> None:
    """Raise a ValueError unless these are finite returns ``(n,)``, n >= 2, and a temperature."""
    if not (isinstance(returns, Tensor) and returns.dim() == 1 and len(returns) >= 2):
        raise ValueError(f"returns must be a tensor (n,), n >= 2; got {shown(returns)}")
    finite_rewards(returns, "returns")
    check_positive("temperature", temperature)


def finite_sample_limit(
    returns: Tensor, temperature: float, reward_bound: float, confidence: float = CONFIDENCE
) -> float:
    """What ``beta log E^0[exp(return / beta)]`` does not exceed with probability ``confidence``.

    The empirical Bernstein bound of Maurer and Pontil (2009, Theorem 4) for ``exp((return -
    reward_bound) / beta)``, which lies in [0, 1]. It holds for any n, modes that no path met
    included. ValueError: a return above ``reward_bound``.
    """
    check_share("confidence", confidence)
    n, highest = len(returns), float(returns.max())
    if highest > reward_bound + 1e-5 * max(1.0, abs(reward_bound)):
        raise ValueError(
            f"reward_bound must be at least every return; got {reward_bound} and a return of"
            f" {highest}"
        )
    u = ((returns.double() - reward_bound) / temperature).clamp(max=0).exp()
    log_odds = math.log(2 / (1 - confidence))
    mean = float(u.mean()) + math.sqrt(2 * float(u.var()) * log_odds / n)
    return reward_bound + temperature * math.log(min(1.0, mean + 7 * log_odds / (3 * (n - 1))))


def reward_bound_of(problem: Problem) -> float | None:
    """The problem's ``reward_bound``, where it offers one."""
    return getattr(problem, "reward_bound", None)


@torch.no_grad()
def certificate(
    problem: Problem, n: int, generator: torch.Generator, batch: int = 4096
) -> Certificate:
    """Estimate the upper bound on every policy's objective from ``n`` uncontrolled paths."""
    check_problem(problem)
    check_integer("n", n, 2)
    check_integer("batch", batch)
    sizes = [min(batch, n - start) for start in range(0, n, batch)]
    returns = torch.cat([rollout(problem, None, size, generator).reward for size in sizes])
    return certificate_of(returns, problem.temperature, reward_bound=reward_bound_of(problem))


@torch.no_grad()
def pooled_certificate(
    problem: Problem,
    policies: Mapping[str, Policy],
    n_each: int,
    generator: torch.Generator,
    confidence: float = CONFIDENCE,
    batch: int = 1024,
) -> Pooled:
    """Estimate the upper bound from ``n_each`` uncontrolled paths and as many of each policy.

    Args:
        problem: whose bound.
        policies: by name; their controls are computed along all paths.
        n_each: paths of each proposal, at least 2.
        generator: on the problem's device.
        confidence: of the intervals.
        batch: paths at a time.

    Returns:
        The pooled certificate, that of the uncontrolled paths, and their difference with the
        standard error of a difference between estimates that share paths.
    """
    check_integer("n_each", n_each, 2)
    check_integer("batch", batch)
    check_share("confidence", confidence)
    check_generator("generator", generator)
    beta, acting = problem.temperature, [None, *policies.values()]
    sizes = [min(batch, n_each - start) for start in range(0, n_each, batch)]
    parts = [
        [_weigh(problem, acting, i, problem.initial(size, generator), generator) for size in sizes]
        for i in range(len(acting))
    ]
    returns = torch.stack([torch.cat([part.returns for part in row]) for row in parts])
    log_weight = torch.stack([torch.cat([part.log_weight for part in row]) for row in parts])
    kl = [torch.cat([part.kl for part in row]) for row in parts]
    pooled = _estimated(log_weight, beta, confidence)
    uncontrolled = certificate_of(returns[0], beta, confidence, reward_bound_of(problem))
    return Pooled(
        pooled._replace(limit=uncontrolled.limit),
        uncontrolled,
        _difference(log_weight, returns[0] / beta, beta),
        {name: Estimate.of(returns[i] - beta * kl[i]) for i, name in enumerate(policies, start=1)},
    )


def _difference(log_weight: Tensor, log_plain: Tensor, temperature: float) -> Estimate:
    """The pooled log-mean-exp of ``(strata, n)`` minus that of the first stratum's plain weights
    ``(n,)``.
    """
    strata, n = log_weight.shape
    ours = log_weight.flatten().logsumexp(0) - math.log(strata * n)
    plain = log_plain.logsumexp(0) - math.log(n)
    influence = (log_weight - ours).exp() / strata
    influence[0] -= (log_plain - plain).exp()
    return Estimate(
        temperature * float(ours - plain),
        temperature * math.sqrt(float(influence.var(1).sum()) / n),
    )


class _Weighed(NamedTuple):
    returns: Tensor  # float64 (n,)
    kl: Tensor  # sum_k |a_k|^2 / 2 of the policy that acted
    log_weight: Tensor  # return / beta + log dP^0/dq


def _weigh(
    problem: Problem,
    policies: list[Policy | None],
    acting: int,
    x: Tensor,
    generator: torch.Generator,
) -> _Weighed:
    """Paths of one policy from the states ``x``, weighted against the mixture of all; only the
    present step is kept.
    """
    n = len(x)
    returns = torch.zeros(n, dtype=torch.float64, device=x.device)
    kl, log_ratio = returns.clone(), returns.new_zeros(len(policies), n)
    for k in range(problem.horizon):
        shape = (n, *problem.noise_shape)
        z = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        controls = [None if policy is None else policy(k, x) for policy in policies]
        if (own := controls[acting]) is not None:
            z = z + own
            kl += 0.5 * squared_norm(own.double())
        for ratio, a in zip(log_ratio, controls, strict=True):
            if a is not None:
                a = a.double()
                ratio += (a * (z - 0.5 * a)).flatten(1).sum(1)
        returns += problem.running_reward(k, x)
        x = problem.transition(k, x, z)
    returns += problem.terminal_reward(x)
    finite_rewards(returns, f"{type(problem).__name__}'s rewards")
    log_mixture = log_ratio.logsumexp(0) - math.log(len(policies))
    return _Weighed(returns, kl, returns / problem.temperature - log_mixture)


@torch.no_grad()
def certificate_by_start(
    problem: Problem,
    starts: int,
    paths: int,
    generator: torch.Generator,
    confidence: float = CONFIDENCE,
    batch: int = 16_384,
    policies: Mapping[str, Policy] | None = None,
) -> Certificate:
    """Estimate ``E[V_0(X_0)]`` from ``paths`` uncontrolled paths of each of ``starts`` states.

    With ``policies`` as many paths of each of them are pooled with the uncontrolled ones. The
    interval is that of the mean over starts. At most ``batch`` paths, or those of one start, are
    run at once. ValueError: an argument out of its range.
    """
    for name, given, least in (("starts", starts, 2), ("paths", paths, 2), ("batch", batch, 1)):
        check_integer(name, given, least)
    check_share("confidence", confidence)
    check_generator("generator", generator)
    acting: list[Policy | None] = [None, *(policies or {}).values()]
    x, at_once = problem.initial(starts, generator), max(1, batch // paths)
    found = []
    for first in range(0, starts, at_once):
        some = x[first : first + at_once].repeat_interleave(paths, 0)
        weighed = [_weigh(problem, acting, i, some, generator) for i in range(len(acting))]
        log_weight = torch.stack([part.log_weight.view(-1, paths) for part in weighed], 1)
        found.append(_moments(log_weight))
    value = problem.temperature * torch.cat([part.log_mean for part in found])
    ess = 1 / float(torch.cat([part.share for part in found]).mean())
    n = starts * paths * len(acting)
    return Certificate.of(Estimate.of(value), confidence, ess, n, starts)
