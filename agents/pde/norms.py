"""The two Sobolev norms of Mou's theory, and distances of estimates and controls in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ...envs.problem import Policy, Problem, Trajectories
from .replay import Replay


class SobolevErrors(NamedTuple):
    """Relative errors of an estimate of f in the two norms."""

    energy: float  #: ``|fhat - f|_E / |f|_E``
    integral: float  #: ``|fhat - f|_V / |f|_V``


def sobolev_errors(
    problem: Problem,
    paths: Trajectories,
    log_f: Policy,
    log_truth: Policy,
) -> SobolevErrors:
    """Distance to a known f in Mou's two Sobolev norms.

    What they are exactly is our reading of his abstract.

        |f|_E^2 = E f_0^2 / 2 + E f_T^2 / 2 + sum_k E |D f_k|^2 / 2,
        |f|_V^2 = sum_k E[ f_k^2 / T + |D f_k|^2 ],

    with ``D f = J_z^T grad f``, the gradient in standard deviations of one step's noise: its
    squares sum to the integral of ``|Lambda^{1/2} grad f|^2`` over time.

    Args:
        problem: whose transition is differentiable in its noise.
        paths: uncontrolled.
        log_f: ``(k, x) -> (n,)``, the estimate of log f.
        log_truth: the same of the truth.
    """
    total = torch.zeros(2, 2, dtype=torch.float64)  # (error, truth) x (E, V)
    scale = None
    for k in range(problem.horizon + 1):
        with torch.enable_grad():
            if k == 0:
                x = paths.states[0]
                pair = (log_f(0, x), log_truth(0, x))
                slopes = None
            else:
                before = paths.states[k - 1]
                z = (paths.noises[k - 1] + paths.controls[k - 1]).detach().requires_grad_()
                x = problem.transition(k - 1, before, z)
                pair = (log_f(k, x), log_truth(k, x))
                slopes = [
                    torch.autograd.grad(v.sum(), z, retain_graph=True)[0].flatten(1).double()
                    for v in pair
                ]
        mine, truth = (v.detach().double() for v in pair)
        if scale is None:
            scale = truth.mean()
        f, g = (mine - scale).exp(), (truth - scale).exp()
        squares = torch.stack([(f - g).square().mean(), g.square().mean()])
        ends = 0.5 * (k in (0, problem.horizon))
        total[:, 0] += ends * squares
        total[:, 1] += squares / problem.horizon
        if slopes is not None:
            df, dg = f[:, None] * slopes[0], g[:, None] * slopes[1]
            squares = torch.stack([(df - dg).square().sum(1).mean(), dg.square().sum(1).mean()])
            total[:, 0] += 0.5 * squares
            total[:, 1] += squares
    energy, integral = (total[0] / total[1].clamp(min=1e-300)).sqrt().tolist()
    return SobolevErrors(energy, integral)


@torch.no_grad()
def energy_error(
    data: Replay, horizon: int, policy: Policy, optimum: Policy, most: int = 64
) -> float:
    """Relative error of ``log f`` in the energy seminorm, under the law of the data.

    ``(sum_k E |D(log fhat - log f)|^2 / sum_k E |D log f|^2)^(1/2)``. ``D log f = J_z^T grad log
    f`` is the control that f makes, so it is taken between controls, as they act (clipped, say). 0
    is the optimum, 1 no control; the absolute error where the optimum is none.

    Args:
        data: regression data; all their visits before the horizon.
        horizon: of the problem.
        policy: the estimate's control.
        optimum: the truth's.
        most: paths, evenly chosen, as an estimate is enough.
    """
    rows = torch.linspace(0, data.n - 1, min(data.n, most), device=data.steps.device).long()
    off = size = 0.0
    for k, x in zip(data.steps[rows].unbind(1), data.states[rows].unbind(1), strict=True):
        k, x = k[k < horizon], x[k < horizon]
        if len(k):
            step: Any = int(k[0]) if bool((k == k[0]).all()) else k
            best = optimum(step, x).double()
            off += float((policy(step, x) - best).square().sum())
            size += float(best.square().sum())
    return math.sqrt(off / size) if size else math.sqrt(off)


def known_error(problem: Any, data: Replay, policy: Policy) -> Callable[[], float] | None:
    """What computes ``energy_error`` where the optimum, or a closed form near it, is known."""
    optimum = getattr(problem, "optimal_control", None)
    optimum = optimum or getattr(problem, "reference_control", None)
    if optimum is None:
        return None
    return lambda: energy_error(data, problem.horizon, policy, optimum)


@torch.no_grad()
def control_error(problem: Problem, paths: Trajectories, policy: Policy, optimum: Policy) -> float:
    """``sum_k E |a_k - a*_k|^2 / sum_k E |a*_k|^2`` along ``paths``.

    The paths are best those of the optimum.
    """
    off = size = 0.0
    for k in range(problem.horizon):
        a, best = policy(k, paths.states[k]), optimum(k, paths.states[k])
        off += float((a - best).double().square().sum())
        size += float(best.double().square().sum())
    return off / size if size else off
