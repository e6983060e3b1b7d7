"""Derivatives of the value function along a policy's own paths, by the adjoint recursion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ...envs.problem import Problem, Trajectories, device_of
from .form import IterationPolicy

#: States at which rewards are judged, and uncontrolled steps that lead there.
_STATES, _STEPS = 8, 3


class Slope(Enum):
    """What autograd finds of a reward."""

    SMOOTH = "has a gradient"
    FLAT = "has a gradient that is zero at every state tried"
    BLACK_BOX = "returns a detached tensor"
    NONE = "is zero"


class RewardSlopes(NamedTuple):
    """Each reward judged apart: one that slopes must not hide one that does not."""

    running: Slope
    terminal: Slope


def reward_slopes(problem: Problem) -> RewardSlopes:
    """Judge both rewards at 8 states that a few uncontrolled steps lead to.

    A terminal reward that is detached is a black box even where it is zero: prizes are rare.
    Nothing is counted as a query: what is asked for is whether there is a gradient.
    """
    generator = torch.Generator(device_of(problem)).manual_seed(0)
    with torch.no_grad():
        x = problem.initial(_STATES, generator)
        k = min(_STEPS, problem.horizon - 1)
        for step in range(k):
            shape = (_STATES, *problem.noise_shape)
            z = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
            x = problem.transition(step, x, z)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        running, terminal = problem.running_reward(k, x), problem.terminal_reward(x)
        if not running.requires_grad and not bool((running != 0).any()):
            return RewardSlopes(Slope.NONE, _judged(terminal, x))
        return RewardSlopes(_judged(running, x), _judged(terminal, x))


def _judged(reward: Tensor, x: Tensor) -> Slope:
    if not reward.requires_grad:
        return Slope.BLACK_BOX
    (slope,) = torch.autograd.grad(reward.sum(), x, retain_graph=True, allow_unused=True)
    return Slope.SMOOTH if slope is not None and bool((slope != 0).any()) else Slope.FLAT


_DETACHED = (
    "PIFT needs the gradient of the reward; {} returned a detached tensor (policy='FittedPolicy'"
    " learns black boxes)"
)


class StepGradients(NamedTuple):
    """Sampled derivatives at step k."""

    by_noise: Tensor  # (n, *noise_shape): J_z^T grad V_{k+1} at the path's next state
    by_state: Tensor  # (n, *state_shape): grad V_k
    by_next_state: Tensor  # (n, *state_shape): grad V_{k+1}
    by_parameters: tuple[
        Tensor, ...
    ]  # (da_k / dtheta)^T (by_noise - beta_k a_k), summed over paths: dJ / dtheta's share


class ValueGradients(NamedTuple):
    """Sampled derivatives along paths, time first."""

    by_noise: Tensor  # (T, n, *noise_shape): J_z^T grad V_{k+1}
    by_state: Tensor  # (T + 1, n, *state_shape): grad V_k


def gains(paths: Trajectories, betas: Sequence[float]) -> Tensor:
    """``r_k - beta_k (|a_k|^2 / 2 + a_k . W_k)`` of every step, ``(T, n)``.

    The paths' returns are summed from these. ``a_k . W_k`` has mean zero given the state, so sums
    of gains estimate the value without bias. With it they estimate it without variance at the
    optimum, up to O(step size): there V_k(X_k) changes by just minus the gain (Ito and the HJB
    equation). Our control variate, in the paper neither needed nor used; for likelihood ratios it
    is known as "sticking the landing" (Roeder, Wu and Duvenaud 2017).
    """
    price = paths.controls.new_tensor(betas)[:, None]
    return paths.running_rewards + price * paths.log_ratios


def adjoint_sweep(
    policy: IterationPolicy, paths: Trajectories, parameters: Sequence[Tensor] = ()
) -> Iterator[StepGradients]:
    """Differentiate each path's return-to-go from the last step back to the first.

    It is the sum of ``gains``. A step's graph is built, used and dropped before the step before it:
    beyond the paths themselves, memory does not grow with the horizon. Each estimate is unbiased
    for the policy's own value function.

    Args:
        policy: the control that made the paths.
        paths: where to differentiate.
        parameters: of the control; by which ``by_parameters`` is taken.

    Yields:
        The derivatives at k = T - 1, ..., 0.

    Raises:
        ValueError: the reward or the transition cannot be differentiated.
    """
    problem, name = policy.problem, type(policy.problem).__name__
    paid = (paths.running_rewards != 0).any(1).tolist()  # at once: a GPU waits once
    with torch.enable_grad():
        x = paths.states[-1].detach().requires_grad_()
        reward = problem.terminal_reward(x)
        if not reward.requires_grad:
            raise ValueError(_DETACHED.format(f"{name}.terminal_reward"))
        (adjoint,) = torch.autograd.grad(reward.sum(), x)
    for k, beta in reversed(list(enumerate(policy.betas))):
        with torch.enable_grad():
            x = paths.states[k].detach().requires_grad_()
            a = policy.control(k, x)
            z = paths.noises[k] + a
            if not z.requires_grad:
                z.requires_grad_()
            ahead = (adjoint * problem.transition(k, x, z)).sum()
            by_noise = None
            if ahead.requires_grad:
                (by_noise,) = torch.autograd.grad(ahead, z, retain_graph=True, allow_unused=True)
            if by_noise is None:
                raise ValueError(
                    f"PIFT needs a transition that autograd can follow; {name}'s is not"
                )
            by_parameters: tuple[Tensor, ...] = ()
            if parameters:
                # without the gain's a . W, whose derivative by the parameters would add noise at
                # the optimum
                rise = by_noise - beta * a.detach()
                by_parameters = torch.autograd.grad(a, parameters, rise, retain_graph=True)
            running = problem.running_reward(k, x)
            if paid[k] and not running.requires_grad:
                raise ValueError(_DETACHED.format(f"{name}.running_reward"))
            here = running.sum() - beta * (a * (0.5 * a + paths.noises[k])).sum()
            by_next_state = adjoint
            (adjoint,) = torch.autograd.grad(ahead + here, x)
        yield StepGradients(by_noise, adjoint, by_next_state, by_parameters)


def value_gradients(policy: IterationPolicy, paths: Trajectories) -> ValueGradients:
    """Derivatives by every noise and every state of the paths; see ``adjoint_sweep``."""
    steps = list(adjoint_sweep(policy, paths))[::-1]
    by_state = [*(step.by_state for step in steps), steps[-1].by_next_state]
    return ValueGradients(torch.stack([step.by_noise for step in steps]), torch.stack(by_state))
