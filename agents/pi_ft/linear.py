"""A control that is linear in features, with its exact gradient (Han et al., section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.problem import Problem, Trajectories
from ..least_squares import least_squares
from .form import Iteration, IterationPolicy, some_states
from .value_gradients import value_gradients


class LinearPolicy(IterationPolicy):
    """``a_k = K_k phi_k(x)`` with the exact gradient (77).

    A subclass may bring other ``features`` than ``[1, x]``. One iteration moves K_k by ``damping``
    times the gradient, estimated along the paths, in the metric of ``beta_k E[phi phi^T]``: the
    least-squares fit to the fixed-point update, whatever the units of the features. Its only
    stationary points are those of the objective. The fit has the step's noise W_k as further
    regressors: they are independent of the features, so they bias nothing, and on linear-quadratic
    chains with affine features they leave no noise in the update at the optimum: K then converges
    to it linearly, without a floor.

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
        a = (self.gain[k] @ self.features(k, x)[..., None])[..., 0].view(
            len(x), *self.problem.noise_shape
        )
        return a.clamp(-self.action_bound, self.action_bound)

    @torch.no_grad()
    def improve(self, agent: Iteration) -> None:
        """Sample, and step up the gradient.

        Raises:
            ValueError: there are fewer paths than regressors.
        """
        paths = agent.collect(self.control)
        rise, phi = self._regression(paths)
        regressors = torch.cat([phi, paths.noises.flatten(2)], 2)
        n, least = phi.shape[1], regressors.shape[2] + 1
        if n < least:
            raise ValueError(
                f"n_trajectories must be at least {least}, more than features and noises together;"
                f" got {n}"
            )
        agent.logger.record("train/gradient_norm", float((rise.mT @ phi / n).norm()))
        betas = rise.new_tensor(self.betas)[:, None, None]
        slopes = least_squares(regressors.double(), (rise / betas).double())[:, : phi.shape[2]]
        self.gain.add_(agent.damping * slopes.mT)

    def gradient(self, paths: Trajectories) -> Tensor:
        """Estimate of the objective's gradient by K, eq. (77), ``(T, noise size, p)``.

        From paths of this control.
        """
        rise, phi = self._regression(paths)
        return rise.mT @ phi / phi.shape[1]

    def _regression(self, paths: Trajectories) -> tuple[Tensor, Tensor]:
        """``J_z^T grad V_{k+1} - beta_k a_k``, and the features.

        ``(T, n, noise size)`` and ``(T, n, p)``.
        """
        phi = torch.stack([self.features(k, x) for k, x in enumerate(paths.states[:-1])])
        return (
            value_gradients(self, paths).by_noise - self.prices(paths) * paths.controls
        ).flatten(2), phi
