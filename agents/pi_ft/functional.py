"""Functional PI-FT: Algorithm 1 of Han et al. (2025) with fitted value functions.

One policy iteration goes backwards through time once. At step k, on states that the present policy
and the uncontrolled process visit, ``V_{k+1}`` gives a control by the fixed-point update (35) and,
through it, values and gradients of ``V_k`` by the backup (36); a network is then fitted to both. No
sampled return enters: the noise of a target is that of one step, and pairs of opposite draws remove
its first order.

There is one network a step. Its values span one step's range, it can be as small as V_k is simple,
and its neighbour, one step later, is almost the answer to start from; one network of state and time
would have to unlearn no step while it fits another, which takes updates that go through all of
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.problem import Problem, squared_norm
from ..checks import check_range, check_whole
from ..networks import EnsembleMLP, Standardise
from .form import Iteration, IterationPolicy

RIDGE = 1e-6
FLOOR = 0.05
#: Share of the way where full steps don't contract.
_DAMPING = 0.7


class StepValue(nn.Module):
    """``V_k / beta_k`` of one step as a network of the flattened state.

    Args:
        n_inputs: size of the state.
        hidden: widths of the hidden layers.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.standardise = Standardise(n_inputs)
        self.network = EnsembleMLP(n_inputs, 1, hidden, members=1)
        for bias in self.network.biases[:-1]:
            nn.init.normal_(bias)  # features must differ before the first gradient step
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.offset: Tensor
        self.scale: Tensor

    def features(self, x: Tensor) -> Tensor:
        """What the last layer combines, a constant among it: ``(n, p) -> (n, features)``."""
        h = self.standardise(x)[None]
        for weight, bias in zip(self.network.weights[:-1], self.network.biases[:-1], strict=True):
            h = torch.baddbmm(bias, h, weight)
            h = h * torch.sigmoid(h)
        return torch.cat([h[0], torch.ones_like(h[0, :, :1])], 1)

    @torch.no_grad()
    def solve(
        self,
        x: Tensor,
        value: Tensor,
        gradient: Tensor,
        share: Tensor,
        directions: Tensor,
        weight: float,
        ridge: float = 1e-6,
    ) -> None:
        """Put the last layer at the minimum of the Sobolev loss, by least squares in float64.

        Args:
            x: ``(n, p)``.
            value: targets ``(n,)``.
            gradient: targets ``(n, p)``.
            share: of each row in the loss, ``(n,)``; they sum to 1.
            directions: along which gradients are compared, ``(q, p)``.
            weight: of the squared gradients.
            ridge: added to the normal matrix, as a share of its mean diagonal.
        """
        root = share.double().sqrt()
        table = self.features(x).double() * root[:, None]
        target = ((value - self.offset) / self.scale).double() * root
        matrix, vector = table.T @ table, table.T @ target
        for direction in directions:
            slope = (
                torch.func.jvp(self.features, (x,), (direction.expand_as(x),))[1].double()
                * root[:, None]
            )
            wanted = (gradient @ direction / self.scale).double() * root
            matrix, vector = matrix + weight * slope.T @ slope, vector + weight * slope.T @ wanted
        matrix = matrix + ridge * matrix.diagonal().mean() * torch.eye(
            len(matrix), dtype=matrix.dtype, device=matrix.device
        )
        found = torch.linalg.solve(matrix, vector).float()
        self.network.weights[-1].copy_(found[None, :-1, None])
        self.network.biases[-1].copy_(found[None, None, -1:])

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *state_shape) -> (n,)``."""
        out = self.network(self.standardise(x.flatten(1).float()))[0, :, 0]
        return (self.offset + self.scale * out).to(x.dtype)


class Backup(NamedTuple):
    """Targets of one step from (35) and (36)."""

    value: Tensor  # V_k (n,)
    gradient: Tensor  # its gradient (n, *state_shape)
    # |change of the update| / |change of the control| in the first inner iteration, (n,)
    contraction: Tensor


class FunctionalPolicy(IterationPolicy):
    """Policy iteration with one fitted value function a step.

    Of ``PIFT``'s settings it uses ``n_trajectories`` (paths of the present policy, and as many
    uncontrolled ones), ``gradient_steps`` of ``batch_size`` states at each of the T steps, and
    ``learning_rate``, which falls to zero within a step.

    Gradients of targets treat the control as a constant: exact at the fixed point (the envelope
    theorem), and off by what the inner iterations leave, ``(1 - damping)^m_k`` of the control where
    lambda is small, which adds up over the steps. The control of a state is computed from
    ``V_{k+1}`` whenever it is asked for.

    Args:
        hidden: widths of the hidden layers.
        iterations: m_k, inner iterations from ``a = 0``.
        damping: share of the way to the update that an inner iteration goes. The paper's is 1;
            below, iterations converge also where lambda is not below 1, as long as it is the
            concave directions in which it is not. None: 1 at the steps whose iterations are seen to
            contract, as Theorem 3.1 asks, and 0.7 at the others.
        draws: antithetic pairs of noise in a target.
        control_draws: antithetic pairs of noise in a control, orthogonal and the same for every
            state.
        gradient_weight: of the gradients' square error against the values'.
        temperatures: see IterationPolicy.
    """

    noise: Tensor
    fitted: Tensor
    damping: Tensor  # at each step

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (64, 64),
        iterations: int = 5,
        damping: float | None = 0.7,
        draws: int = 8,
        control_draws: int = 2,
        gradient_weight: float = 1.0,
        temperatures: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, problem, temperatures)
        check_whole("iterations", iterations, 1)
        if damping is not None:
            check_range("damping", damping, 0, 1)
        check_whole("draws", draws, 1)
        check_whole("control_draws", control_draws, 1)
        self.iterations, self.full = iterations, damping is None
        self.draws, self.gradient_weight = draws, gradient_weight
        n_inputs, n_noises = (
            int(torch.Size(shape).numel()) for shape in (problem.state_shape, problem.noise_shape)
        )
        #: V_1 .. V_{T-1}; V_T is the reward itself, and no control needs V_0.
        self.values = nn.ModuleList(StepValue(n_inputs, hidden) for _ in range(problem.horizon - 1))
        generator = torch.Generator().manual_seed(1)
        blocks = [
            torch.linalg.qr(torch.randn(n_noises, n_noises, generator=generator)).Q
            for _ in range(math.ceil(control_draws / n_noises))
        ]
        half = torch.cat(blocks)[:control_draws].reshape(-1, *problem.noise_shape) * math.sqrt(
            n_noises
        )
        self.register_buffer("noise", torch.cat([half, -half])[:, None])
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        share = torch.full(
            (problem.horizon,), 1.0 if damping is None else damping, dtype=torch.float64
        )
        self.register_buffer("damping", share)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        if isinstance(k, int):
            return (
                self._improved(k, x, self.noise.to(x))[0]
                if self.fitted
                else x.new_zeros(len(x), *self.problem.noise_shape)
            )
        a = x.new_zeros(len(x), *self.problem.noise_shape)
        for step in k.unique().tolist():
            a[k == step] = self.control(step, x[k == step])
        return a

    def value(self, k: int, x: Tensor) -> Tensor:
        """``V_k(x)`` for ``k = 1..T``, ``(n,)``."""
        if k == self.problem.horizon:
            return self.problem.terminal_reward(x)
        return self.betas[k] * self.values[k - 1](x)

    def _ahead(self, k: int, x: Tensor, z: Tensor) -> Tensor:
        """Mean of ``V_{k+1}(F_k(x, z))`` over the first dimension of z, ``(n,)``.

        z is ``(draws, n, *noise_shape)``.
        """
        many = x.expand(len(z), *x.shape).flatten(0, 1)
        return (
            self.value(k + 1, self.problem.transition(k, many, z.flatten(0, 1)))
            .view(len(z), -1)
            .mean(0)
        )

    def _improved(self, k: int, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Inner iterations of (35), within the action bound, and the contraction of the first.

        See Backup.
        """
        a = x.new_zeros(len(x), *self.problem.noise_shape)
        damping = self.damping[k].to(a)
        controls, updates = [], []
        for _ in range(self.iterations):
            with torch.enable_grad():
                z = a.detach().requires_grad_()
                (update,) = torch.autograd.grad(self._ahead(k, x, z + noise).sum(), z)
            update = update / self.betas[k]
            controls.append(a)
            updates.append(update)
            a = torch.lerp(a, update, damping).clamp(-self.action_bound, self.action_bound)
        if self.iterations == 1:
            return a, a.new_zeros(len(a))
        moved, answer = (
            squared_norm(controls[1] - controls[0]),
            squared_norm(updates[1] - updates[0]),
        )
        return a, (answer / moved.clamp(min=1e-12)).sqrt()

    def backup(self, k: int, x: Tensor, generator: torch.Generator) -> Backup:
        """Targets for ``V_k`` at states ``(n, *state_shape)`` from ``V_{k+1}``.

        Over fresh antithetic noise.
        """
        shape = (self.draws, len(x), *self.problem.noise_shape)
        half = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        noise = torch.cat([half, -half])
        a, contraction = self._improved(k, x, noise)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self._ahead(k, x, a + noise) + self.problem.running_reward(k, x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return Backup(value.detach() - 0.5 * self.betas[k] * squared_norm(a), gradient, contraction)

    def improve(self, agent: Iteration) -> None:
        """Algorithm 1: one sweep backwards through time, each V_k fitted to (35) and (36)."""
        states = torch.cat([agent.collect(None).states, agent.collect(self.control).states], 1)
        # how many of them are uncontrolled
        n = states.shape[1] // 2 if self.fitted else states.shape[1]
        rate = agent.lr_schedule(agent._current_progress_remaining)
        losses, contractions = [], []
        for k in reversed(range(1, self.problem.horizon)):
            x = states[k]
            targets = self.backup(k, x, agent.generator)
            if self.full and self.damping[k] == 1 and targets.contraction.quantile(0.99) >= 1:
                self.damping[k] = _DAMPING  # lambda_k is not below 1: full steps diverge
                targets = self.backup(k, x, agent.generator)
                self._asked(k, len(x), agent)
            contractions.append(targets.contraction.quantile(0.99))
            self._asked(k, len(x), agent)
            if not self.fitted:
                self._start(k, x, targets)
            losses.append(self._fit(k, x, targets, self._shares(k, targets.value, n), rate, agent))
        if self.full and self.problem.horizon > 1:
            self.damping[0] = self.damping[1]  # no value is fitted at step 0
        self.fitted.fill_(True)
        agent._n_updates += agent.gradient_steps * len(losses)
        agent.logger.record("train/loss", float(torch.stack(losses).mean()))
        agent.logger.record("train/contraction", float(torch.stack(contractions).max()))

    def _asked(self, k: int, n: int, agent: Iteration) -> None:
        """Count the terminal rewards behind a backup of ``n`` states."""
        if k == self.problem.horizon - 1:
            agent.reward_queries += (self.iterations + 1) * 2 * self.draws * n

    def _start(self, k: int, x: Tensor, targets: Backup) -> None:
        """Units from the first data at the last step.

        Elsewhere a copy of the next step's function.
        """
        step: Any = self.values[k - 1]
        if k < self.problem.horizon - 1:
            step.load_state_dict(self.values[k].state_dict())
            return
        step.standardise.fit(x.flatten(1).float())
        step.offset.copy_(targets.value.mean() / self.betas[k])
        step.scale.copy_((targets.value.std() / self.betas[k]).clamp(min=1e-6))

    def _shares(self, k: int, value: Tensor, n: int) -> Tensor:
        """Of each state in the loss, ``(n,)``.

        Uncontrolled ones, the first n, are tilted to the law that the optimum visits.
        """
        tilted = torch.softmax(value[:n] / self.betas[k], 0)
        shares = torch.cat([(1 - FLOOR) * n * tilted + FLOOR, value.new_ones(len(value) - n)])
        return shares / len(value)

    def _fit(
        self, k: int, x: Tensor, targets: Backup, shares: Tensor, rate: float, agent: Iteration
    ) -> Tensor:
        """Regress on values and gradients (a Sobolev norm), in units of the step; the last loss."""
        step: Any = self.values[k - 1]
        beta = self.betas[k]
        optimizer = torch.optim.Adam(step.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, agent.gradient_steps)
        unit = step.standardise.scale / step.scale
        loss = x.new_zeros(())
        for _ in range(agent.gradient_steps):
            row = torch.multinomial(
                shares, agent.batch_size, replacement=True, generator=agent.generator
            )
            at = x[row].detach().requires_grad_()
            value = step(at)
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
            error = (value - targets.value[row] / beta) / step.scale
            bend = (slope - targets.gradient[row] / beta).flatten(1) * unit
            loss = error.square().mean() + self.gradient_weight * bend.square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        unit = unit.expand(x[0].numel())
        directions = torch.diag(step.standardise.scale)
        flat = targets.gradient.flatten(1).float() / beta
        step.solve(
            x.flatten(1).float(),
            targets.value.float() / beta,
            flat,
            shares,
            directions,
            self.gradient_weight,
            RIDGE,
        )
        return loss.detach()
