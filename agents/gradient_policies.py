"""Forms of PI-FT that follow the gradient of the objective in their parameters (Han, Razaviyayn and Xu 2025, section 4.1).

Whatever the parameters theta of a control are (their eq. 77 is the case ``u = K_k phi_k(x)``),

    dJ / dtheta = E sum_k (da_k / dtheta)^T ( J_z^T grad V_{k+1}(X_{k+1}) - beta_k a_k ),

with grad V from the adjoint of the sampled chain (pathwise: what differentiating the chain gives), or, for rewards that are
black boxes, with ``W_k V_{k+1}(X_{k+1})`` in place of ``J_z^T grad V_{k+1}`` (Stein's identity: the score function).
``LoraValuePolicy`` in ``lora.py`` has a third way: grad V of a regression.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..envs.problem import Problem, Trajectories
from .iteration_policy import IterationPolicy, NetworkControl, some_states
from .value_gradients import adjoint_sweep, gains, value_gradients

if TYPE_CHECKING:
    from .policy_iteration import PIFT


class GradientPolicy(IterationPolicy):
    """A control that takes AdamW steps up the gradient of J, whatever the network that makes it; one an iteration, mostly.

    A form is one of the gradients below and a control, with the parameters that are learnt in ``network``.
    """

    n_trajectories = 10  # as in the paper's experiments
    resumes = True
    #: The most paths that are sampled and differentiated at once, to bound memory; all of a gradient's if None.
    micro_batch: int | None = None
    least_paths: ClassVar[int] = 1  #: that a gradient can be estimated from

    @abstractmethod
    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """What each step adds to the gradient of ``n`` times the objective by the network's parameters."""

    def start(self, paths: Trajectories) -> None:
        """Take units from the first paths."""

    def improve(self, agent: PIFT) -> None:
        """Sample ``agent.n_trajectories`` paths and step up their gradient."""
        for gradient in self.ascent(agent, agent.n_trajectories):
            agent.ascend(gradient)

    def ascent(self, agent: PIFT, n: int) -> Iterator[list[Tensor]]:
        """The gradients of one iteration, from ``n`` fresh paths; each is followed before the next is taken."""
        yield self.sampled_gradient(agent, n)

    def sampled_gradient(self, agent: PIFT, n: int) -> list[Tensor]:
        """The gradient from ``n`` fresh paths, at most ``micro_batch`` of them at a time."""
        total: list[Tensor] = []
        for size in self.parts(n):
            paths = agent.collect(self.control, size)
            if agent.n_updates == 0 and not total:
                self.start(paths)
            share = [part * (size / n) for part in self.gradient(paths)]
            total = [sum_ + part for sum_, part in zip(total, share, strict=True)] if total else share
        return total

    def parts(self, n: int) -> list[int]:
        """Sizes, as even as can be, of the micro-batches that ``n`` paths make.

        Raises:
            ValueError: one of them would be too small.
        """
        count = math.ceil(n / (self.micro_batch or n))
        sizes = [n // count + (i < n % count) for i in range(count)]
        if sizes[-1] < self.least_paths:
            raise ValueError(
                f"micro_batch must leave at least {self.least_paths} paths in each part of {n} for {type(self).__name__}; "
                f"got {self.micro_batch}"
            )
        return sizes

    def gradient(self, paths: Trajectories) -> list[Tensor]:
        """Estimate of the objective's gradient by the network's parameters, from paths of this control."""
        total = [torch.zeros_like(p) for p in self.network.parameters()]
        for share in self.gradients(paths):
            for sum_, part in zip(total, share, strict=True):
                sum_ += part / paths.states.shape[1]
        return total


class PathwiseGradient(GradientPolicy):
    """The pathwise gradient through the sampled chain, for differentiable rewards and transitions.

    One step is differentiated at a time (per-step checkpointing, written as the adjoint recursion), always: beyond the paths
    themselves memory does not grow with the horizon, and the price is evaluating every step twice.
    """

    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """See GradientPolicy."""
        return (step.by_parameters for step in adjoint_sweep(self, paths, list(self.network.parameters())))


class ScoreGradient(GradientPolicy):
    """The score-function gradient: neither reward nor transition need a derivative.

    Each step's noise is weighted with the return after it, less the mean over the other paths at that step (a baseline that
    leaves the estimate unbiased). The price of the step's own control is differentiated exactly.
    """

    least_paths = 2  # one is the other's baseline

    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """See GradientPolicy."""
        n = paths.states.shape[1]
        after = torch.cat([gains(paths, self.betas)[1:], paths.terminal_reward[None]]).flip(0).cumsum(0).flip(0)
        advantage = (after - after.mean(1, keepdim=True)) * (n / (n - 1))
        for k, beta in enumerate(self.betas):
            weight = advantage[k].view(-1, *[1] * (paths.noises.dim() - 2))
            with torch.enable_grad():
                a = self.control(k, paths.states[k])
                rise = weight * paths.noises[k] - beta * a.detach()
                yield torch.autograd.grad(a, list(self.network.parameters()), rise)


class _NetworkGradient(NetworkControl, GradientPolicy):
    def start(self, paths: Trajectories) -> None:
        """Standardise the network's inputs."""
        with torch.no_grad():
            self.standardise.fit(torch.cat([self.inputs(k, x) for k, x in enumerate(paths.states)]))


class PathwisePolicy(_NetworkGradient, PathwiseGradient):
    """A network that follows the pathwise gradient; arguments: ``NetworkControl``'s."""


class ScorePolicy(_NetworkGradient, ScoreGradient):
    """A network that follows the score-function gradient; arguments: ``NetworkControl``'s."""

    access = "black-box reward; interaction with the noise seen"  #: less than the other forms', for the scoreboard


class LinearPolicy(IterationPolicy):
    """``a_k = K_k phi_k(x)`` with the exact gradient (77); a subclass may bring other ``features`` than ``[1, x]``.

    One iteration moves K_k by ``damping`` times the gradient, estimated along the paths, in the metric of
    ``beta_k E[phi phi^T]``: the least-squares fit to the fixed-point update, whatever the units of the features. Its only
    stationary points are those of the objective. The fit has the step's noise W_k as further regressors: they are independent
    of the features, so they bias nothing, and on linear-quadratic chains with affine features they leave no noise in the
    update at the optimum: K then converges to it linearly, without a floor.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: what the control steers.
        scale: standard deviation of the entries of K at the start.
        temperatures: see IterationPolicy.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        scale: float = 0.0,
        temperatures: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, problem, temperatures)
        with torch.no_grad():
            phi = self.features(0, some_states(problem))
        size = (problem.horizon, torch.Size(problem.noise_shape).numel(), phi.shape[1])
        self.gain = nn.Parameter(scale * torch.randn(size, dtype=phi.dtype))

    def features(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``phi_k(x)``, ``(n, p)``: a one and the flattened state."""
        return torch.cat([x.new_ones(len(x), 1), x.flatten(1)], 1)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        a = (self.gain[k] @ self.features(k, x)[..., None])[..., 0].view(len(x), *self.problem.noise_shape)
        return a.clamp(-self.action_bound, self.action_bound)

    @torch.no_grad()
    def improve(self, agent: PIFT) -> None:
        """Sample, and step up the gradient.

        Raises:
            ValueError: there are fewer paths than regressors.
        """
        paths = agent.collect(self.control)
        rise, phi = self._regression(paths)
        regressors = torch.cat([phi, paths.noises.flatten(2)], 2)
        n, least = phi.shape[1], regressors.shape[2] + 1
        if n < least:
            raise ValueError(f"n_trajectories must be at least {least}, more than features and noises together; got {n}")
        agent.logger.record("train/gradient_norm", float((rise.mT @ phi / n).norm()))
        betas = rise.new_tensor(self.betas)[:, None, None]
        slopes = torch.linalg.lstsq(regressors, rise / betas).solution[:, : phi.shape[2]]
        self.gain.add_(agent.damping * slopes.mT)

    def gradient(self, paths: Trajectories) -> Tensor:
        """Estimate of the objective's gradient by K, eq. (77), from paths of this control, ``(T, noise size, p)``."""
        rise, phi = self._regression(paths)
        return rise.mT @ phi / phi.shape[1]

    def _regression(self, paths: Trajectories) -> tuple[Tensor, Tensor]:
        """``J_z^T grad V_{k+1} - beta_k a_k`` ``(T, n, noise size)``, and features ``(T, n, p)``."""
        phi = torch.stack([self.features(k, x) for k, x in enumerate(paths.states[:-1])])
        return (value_gradients(self, paths).by_noise - self.prices(paths) * paths.controls).flatten(2), phi
