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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_integer, check_positive, check_share, shown
from ..problem import Estimate, Problem, check_problem, finite_rewards, rollout
from .confidence import CONFIDENCE, quantile
from .limit import finite_sample_limit, reward_bound_of
from .success import SuccessRate, joined, solved_of, weighted_shares


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
    #: of the law that attains it; None where the problem does not say what solves its task
    success: SuccessRate | None = None

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
        success: SuccessRate | None = None,
    ) -> Certificate:
        """With a normal interval around ``bound``, moved by ``shift``."""
        check_share("confidence", confidence)
        half, middle = quantile(confidence) * bound.stderr, bound.mean + shift
        return cls(*bound, middle - half, middle + half, ess, n, starts, limit, success)

    @property
    def certified(self) -> bool:
        """False when fewer than 50 effective paths carry the estimate: its interval then means
        little.

        True says that the paths at hand agree, not that no path is missing.
        """
        return self.ess >= 50.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``from_json`` and for the reader."""
        values = self._asdict()
        success = values.pop("success")
        told = {} if success is None else {"success": success._asdict()}
        return {**values, **told, "certified": self.certified}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Certificate:
        """The inverse of ``to_json``."""
        kept = {key: value for key, value in values.items() if key != "certified"}
        if (success := kept.get("success")) is not None:  # absent where it is not known
            kept["success"] = SuccessRate(**success)
        return cls(**kept)


class Moments(NamedTuple):
    """A log-mean-exp over strata of equal size, the last dimension being their paths."""

    log_mean: Tensor  # bias taken out to second order
    variance: Tensor  # of the mean of the weights, relative to its square
    third: Tensor  # third cumulant of that mean, relative to its cube
    share: Tensor  # one over the effective number of paths


def moments(log_weight: Tensor) -> Moments:
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
    return Moments(log_mean + 0.5 * variance, variance, third, share)


def estimated(
    log_weight: Tensor,
    temperature: float,
    confidence: float,
    limit: float | None = None,
    solved: Tensor | None = None,
) -> Certificate:
    """The certificate of log-weights ``(strata, n)``, and of which paths solved the task.

    The studentised log-mean-exp is not normal: weights are skewed, and large ones come with a large
    standard error. Its quantiles are, by Cornish and Fisher to the first order, ``+-z + ((sqrt(v) /
    2 - s / 3) z^2 - s / 6)``, with v the relative variance of the mean and s its skewness. Both
    ends move by the same amount.
    """
    log_mean, v, third, share = (float(part) for part in moments(log_weight))
    shift = 0.0
    if v > 0:
        square = quantile(confidence) ** 2
        shift = square * (third / (3 * v) - v / 2) + third / (6 * v) - v / 2
    success = None
    if solved is not None:
        succeed, variance = (float(part) for part in weighted_shares(log_weight, solved))
        success = SuccessRate.of(Estimate(succeed, math.sqrt(variance)), 1 / share, confidence)
    return Certificate.of(
        Estimate(temperature * log_mean, temperature * math.sqrt(v)),
        confidence,
        1 / share,
        log_weight.numel(),
        shift=temperature * shift,
        limit=limit,
        success=success,
    )


def certificate_of(
    returns: Tensor,
    temperature: float,
    confidence: float = CONFIDENCE,
    reward_bound: float | None = None,
    solved: Tensor | None = None,
) -> Certificate:
    """The certificate from uncontrolled returns ``(n,)``.

    With ``reward_bound``, which no return exceeds, it has a ``limit`` too; with ``solved``, 1 for
    the paths that solve the task and 0 for others, ``(n,)``, its ``success``.
    """
    check_returns(returns, temperature)
    limit = (
        None
        if reward_bound is None
        else finite_sample_limit(returns, temperature, reward_bound, confidence)
    )
    if solved is not None:
        if not (isinstance(solved, Tensor) and solved.shape == returns.shape):
            raise ValueError(
                f"solved must have the shape of returns, {tuple(returns.shape)}; got"
                f" {shown(solved)}"
            )
        solved = solved.double()[None]
    return estimated(returns.double()[None] / temperature, temperature, confidence, limit, solved)


def check_returns(returns: Tensor, temperature: float) -> None:
    """Raise a ValueError unless these are finite returns ``(n,)``, n >= 2, and a temperature."""
    if not (isinstance(returns, Tensor) and returns.dim() == 1 and len(returns) >= 2):
        raise ValueError(f"returns must be a tensor (n,), n >= 2; got {shown(returns)}")
    finite_rewards(returns, "returns")
    check_positive("temperature", temperature)


@torch.no_grad()
def certificate(
    problem: Problem, n: int, generator: torch.Generator, batch: int = 4096
) -> Certificate:
    """Estimate the upper bound on every policy's objective from ``n`` uncontrolled paths."""
    check_problem(problem)
    check_integer("n", n, 2)
    check_integer("batch", batch)
    parts, solved = [], list[Tensor | None]()
    for start in range(0, n, batch):
        paths = rollout(problem, None, min(batch, n - start), generator)
        parts.append(paths.reward)
        solved.append(solved_of(problem, paths.states[-1]))
    return certificate_of(
        torch.cat(parts),
        problem.temperature,
        reward_bound=reward_bound_of(problem),
        solved=joined(solved),
    )
