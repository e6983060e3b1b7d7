"""Upper bounds that no policy can pass, estimated from paths."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Estimate, Problem, check_integer, rollout


class Certificate(NamedTuple):
    """The Donsker-Varadhan bound ``J(pi) <= temperature * log E^0[exp(return / temperature)]``,
    estimated from ``n`` paths.

    With ``starts`` it is the closer bound ``J(pi) <= E[V_0(X_0)]``: the mean over that many starts
    of the bound from each. The initial law is not controlled, while the mean of all paths may lean
    to the starts that end well.
    """

    bound: float
    stderr: float
    low: float  # 95% confidence interval of the bound
    high: float
    # effective number of uncontrolled paths that carry the mean (from each start: the harmonic
    # mean)
    ess: float
    n: int
    starts: int = 0

    @classmethod
    def of(
        cls, bound: Estimate, confidence: float, ess: float, n: int, starts: int = 0
    ) -> Certificate:
        """With a normal interval around ``bound``."""
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
        return cls(
            *bound, bound.mean - z * bound.stderr, bound.mean + z * bound.stderr, ess, n, starts
        )

    @property
    def certified(self) -> bool:
        """False when fewer than 50 effective paths carry the estimate: its interval then means
        little.
        """
        return self.ess >= 50.0


def certificate_of(returns: Tensor, temperature: float, confidence: float = 0.95) -> Certificate:
    """The certificate from uncontrolled returns ``(n,)``; the interval is normal in ``log E exp``
    (delta method).
    """
    n = len(returns)
    log_weight = returns.double() / temperature
    log_mean = torch.logsumexp(log_weight, 0) - math.log(n)
    weight = torch.exp(log_weight - log_mean)  # mean 1
    bound = Estimate(
        temperature * float(log_mean), temperature * float(weight.std()) / math.sqrt(n)
    )
    return Certificate.of(bound, confidence, float(weight.sum() ** 2 / weight.square().sum()), n)


@torch.no_grad()
def certificate(
    problem: Problem, n: int, generator: torch.Generator, batch: int = 4096
) -> Certificate:
    """Estimate the upper bound on every policy's objective from ``n`` uncontrolled paths (MATH
    section 2).
    """
    sizes = [min(batch, n - start) for start in range(0, n, batch)]
    returns = torch.cat([rollout(problem, None, size, generator).reward for size in sizes])
    return certificate_of(returns, problem.temperature)


@torch.no_grad()
def certificate_by_start(
    problem: Problem,
    starts: int,
    paths: int,
    generator: torch.Generator,
    confidence: float = 0.95,
    batch: int = 16_384,
) -> Certificate:
    """Estimate ``E[V_0(X_0)]`` from ``paths`` uncontrolled paths of each of ``starts`` states (MATH
    section 2).

    The logarithm of a mean of m weights is on average too low by half their variance over m times
    their squared mean (second order in the noise): that is added, since a bound that is too low
    would flatter policies. The interval is that of the mean over starts. At most ``batch`` paths,
    or those of one start, are run at once. ValueError: fewer than two starts or paths.
    """
    check_integer("starts", starts, 2)
    check_integer("paths", paths, 2)
    x, at_once = problem.initial(starts, generator), max(1, batch // paths)
    values, shares = [], []
    for first in range(0, starts, at_once):
        some = x[first : first + at_once]
        returns = rollout(
            problem, None, len(some) * paths, generator, start=some.repeat_interleave(paths, 0)
        ).reward
        log_weight = returns.view(len(some), paths).double() / problem.temperature
        log_sum = log_weight.logsumexp(1)
        share = torch.exp(
            (2 * log_weight).logsumexp(1) - 2 * log_sum
        )  # one over the effective number
        values.append(problem.temperature * (log_sum - math.log(paths) + 0.5 * (share - 1 / paths)))
        shares.append(share)
    ess = 1 / float(torch.cat(shares).mean())
    return Certificate.of(Estimate.of(torch.cat(values)), confidence, ess, starts * paths, starts)
