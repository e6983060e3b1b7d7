"""Bounds to which policies lend their paths, and the closer bound from given starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_generator, check_integer, check_share
from ..problem import Estimate, Policy, Problem, finite_rewards, squared_norm
from .bound import Certificate, certificate_of, estimated, moments
from .confidence import CONFIDENCE
from .limit import reward_bound_of
from .success import SuccessRate, joined, solved_of, weighted_shares


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

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``from_json`` and for the reader."""
        return {
            "certificate": self.certificate.to_json(),
            "uncontrolled": self.uncontrolled.to_json(),
            "difference": self.difference._asdict(),
            "refutes": self.refutes,
            "objectives": {name: value._asdict() for name, value in self.objectives.items()},
            "by_start": None if self.by_start is None else self.by_start.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Pooled:
        """The inverse of ``to_json``."""
        by_start = values["by_start"]
        return cls(
            Certificate.from_json(values["certificate"]),
            Certificate.from_json(values["uncontrolled"]),
            Estimate(**values["difference"]),
            {name: Estimate(**value) for name, value in values["objectives"].items()},
            None if by_start is None else Certificate.from_json(by_start),
        )


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
    solved = [joined([part.solved for part in row]) for row in parts]
    judged = None if solved[0] is None else torch.stack([row for row in solved if row is not None])
    pooled = estimated(log_weight, beta, confidence, solved=judged)
    bounded = reward_bound_of(problem)
    uncontrolled = certificate_of(returns[0], beta, confidence, bounded, solved[0])
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
    solved: Tensor | None  # 1 for the paths that solved the task


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
    log_weight = returns / problem.temperature - log_mixture
    return _Weighed(returns, kl, log_weight, solved_of(problem, x))


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
    found, shares = [], []
    for first in range(0, starts, at_once):
        some = x[first : first + at_once].repeat_interleave(paths, 0)
        weighed = [_weigh(problem, acting, i, some, generator) for i in range(len(acting))]
        log_weight = torch.stack([part.log_weight.view(-1, paths) for part in weighed], 1)
        found.append(moments(log_weight))
        solved = [part.solved.view(-1, paths) for part in weighed if part.solved is not None]
        if solved:
            shares.append(weighted_shares(log_weight, torch.stack(solved, 1))[0])
    value = problem.temperature * torch.cat([part.log_mean for part in found])
    ess = 1 / float(torch.cat([part.share for part in found]).mean())
    n = starts * paths * len(acting)
    success = None
    if shares:
        success = SuccessRate.of(Estimate.of(torch.cat(shares)), starts, confidence)
    return Certificate.of(Estimate.of(value), confidence, ess, n, starts, success=success)
