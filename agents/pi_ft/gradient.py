"""Forms of PI-FT that follow the gradient of the objective in their parameters.

Han, Razaviyayn and Xu 2025, section 4.1. Whatever the parameters theta of a control are (their eq.
77 is the case ``u = K_k phi_k(x)``),

    dJ / dtheta = E sum_k (da_k / dtheta)^T ( J_z^T grad V_{k+1}(X_{k+1}) - beta_k a_k ),

with grad V from the adjoint of the sampled chain (pathwise: what differentiating the chain gives),
or, for rewards that are black boxes, with ``W_k V_{k+1}(X_{k+1})`` in place of ``J_z^T grad
V_{k+1}`` (Stein's identity: the score function). ``FittedGradient`` has a third way: grad V of a
regression.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from ...envs.problem import Problem, Trajectories, at
from ..checks import check_whole
from .form import Iteration, IterationPolicy, NetworkControl, some_states
from .kernel_values import KernelValues
from .value_gradients import adjoint_sweep, gains


class GradientPolicy(IterationPolicy):
    """A control that takes AdamW steps up the gradient of J, whatever the network that makes it.

    One an iteration, mostly. A form is one of the gradients below and a control, with the
    parameters that are learnt in ``network``.
    """

    n_trajectories = 10  # as in the paper's experiments
    #: The most paths that are sampled and differentiated at once, to bound memory; all of a
    #: gradient's if None.
    micro_batch: int | None = None
    least_paths: ClassVar[int] = 1  #: that a gradient can be estimated from

    @abstractmethod
    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """What each step adds to ``n`` times the objective's gradient.

        By the network's parameters.
        """

    def start(self, paths: Trajectories) -> None:
        """Take units from the first paths."""

    def improve(self, agent: Iteration) -> None:
        """Sample ``agent.n_trajectories`` paths and step up their gradient."""
        for gradient in self.ascent(agent, agent.n_trajectories):
            agent.ascend(gradient)

    def ascent(self, agent: Iteration, n: int) -> Iterator[list[Tensor]]:
        """The gradients of one iteration, from ``n`` fresh paths.

        Each is followed before the next is taken.
        """
        yield self.sampled_gradient(agent, n)

    def sampled_gradient(self, agent: Iteration, n: int) -> list[Tensor]:
        """The gradient from ``n`` fresh paths, at most ``micro_batch`` of them at a time."""
        total: list[Tensor] = []
        for size in self.parts(n):
            paths = agent.collect(self.control, size)
            if agent.n_updates == 0 and not total:
                self.start(paths)
            share = [part * (size / n) for part in self.gradient(paths)]
            more = zip(total, share, strict=True)
            total = [sum_ + part for sum_, part in more] if total else share
        return total

    def of_all_processes(self, rows: Tensor) -> Tensor:
        """``rows`` of every process that shares the paths, one after the other.

        Here there is one.
        """
        return rows

    def parts(self, n: int) -> list[int]:
        """Sizes, as even as can be, of the micro-batches that ``n`` paths make.

        Raises:
            ValueError: one of them would be too small.
        """
        count = math.ceil(n / (self.micro_batch or n))
        sizes = [n // count + (i < n % count) for i in range(count)]
        if sizes[-1] < self.least_paths:
            raise ValueError(
                f"micro_batch must leave at least {self.least_paths} paths in each part of {n} for"
                f" {type(self).__name__}; got {self.micro_batch}"
            )
        return sizes

    def gradient(self, paths: Trajectories) -> list[Tensor]:
        """Estimate of the objective's gradient by the network's parameters.

        From paths of this control.
        """
        total = [torch.zeros_like(p) for p in self.network.parameters()]
        for share in self.gradients(paths):
            for sum_, part in zip(total, share, strict=True):
                sum_ += part / paths.states.shape[1]
        return total


class PathwiseGradient(GradientPolicy):
    """The pathwise gradient through the sampled chain, for differentiable rewards and transitions.

    One step is differentiated at a time (per-step checkpointing, written as the adjoint recursion),
    always: beyond the paths themselves memory does not grow with the horizon, and the price is
    evaluating every step twice.
    """

    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """See GradientPolicy."""
        return (
            step.by_parameters
            for step in adjoint_sweep(self, paths, list(self.network.parameters()))
        )


class ScoreGradient(GradientPolicy):
    """The score-function gradient: neither reward nor transition need a derivative.

    Each step's noise is weighted with the return after it, less the mean over the other paths at
    that step (a baseline that leaves the estimate unbiased). The price of the step's own control is
    differentiated exactly.
    """

    least_paths = 2  # one is the other's baseline
    #: less than the other forms', for the scoreboard
    access = "black-box reward; interaction with the noise seen"
    access_class = "noise seen"

    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """See GradientPolicy."""
        n = paths.states.shape[1]
        after = (
            torch.cat([gains(paths, self.betas)[1:], paths.terminal_reward[None]])
            .flip(0)
            .cumsum(0)
            .flip(0)
        )
        advantage = (after - after.mean(1, keepdim=True)) * (n / (n - 1))
        for k, beta in enumerate(self.betas):
            weight = advantage[k].view(-1, *[1] * (paths.noises.dim() - 2))
            with torch.enable_grad():
                a = self.control(k, paths.states[k])
                rise = weight * paths.noises[k] - beta * a.detach()
                yield torch.autograd.grad(a, list(self.network.parameters()), rise)


class FittedGradient(GradientPolicy):
    """The gradient of fitted values, for black-box rewards: Algorithm 1.

    The transition's noise must be one that can be differentiated.

    Evaluation: the returns of the last paths, whichever policy made them, give ``V_{k+1}`` by
        kernel regression on the states.
    Improvement: one pass over the transitions of the newest paths, in ``gradient_steps`` batches,
        each with fresh antithetic noise around the control as it is by then.

    No noise of a return reaches the gradient, as it does with the score function; the price is the
    regression's bias.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: what the control steers.
        temperatures: see IterationPolicy.
        memory: paths that values are fitted to; their states are kept, on the device and in
            checkpoints.
        gradient_steps: in an iteration, at most one a transition; ``micro_batch`` bounds how many
            are differentiated at once.
    """

    #: less than the pathwise form's, for the scoreboard
    access = "black-box reward; pre-trained transition, differentiable in its noise"
    access_class = "transition differentiable"
    recent: Tensor  # X_{k+1}, (T, memory, *state_shape)
    returns: Tensor  # earned from there on, (T, memory)
    seen: Tensor  # number of paths ever

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        temperatures: float | Sequence[float] | None = None,
        memory: int = 200,
        gradient_steps: int = 10,
    ) -> None:
        check_whole("memory", memory, 2)
        check_whole("gradient_steps", gradient_steps, 1)
        super().__init__(observation_space, action_space, problem, temperatures)
        self.gradient_steps = gradient_steps
        like = some_states(problem)
        self.register_buffer(
            "recent", like.new_zeros(problem.horizon, memory, *problem.state_shape)
        )
        self.register_buffer(
            "returns", like.new_zeros(problem.horizon, memory, dtype=torch.float64)
        )
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forget(self) -> None:
        """See IterationPolicy."""
        self.seen.zero_()

    @torch.no_grad()
    def remember(self, paths: Trajectories) -> None:
        """Put paths, those of all processes, in the place of the oldest."""
        earned = torch.cat([gains(paths, self.betas)[1:], paths.terminal_reward[None]])
        new = paths.states[1:].transpose(0, 1), earned.flip(0).cumsum(0).flip(0).T
        size = self.returns.shape[1]
        for table, column in zip(
            (self.recent, self.returns), map(self.of_all_processes, new), strict=True
        ):
            rows = torch.arange(len(column), device=column.device)[-size:]
            table[:, (self.seen + rows) % size] = column[rows].transpose(0, 1).to(table.dtype)
        self.seen += len(column)

    def values(self) -> KernelValues:
        """``V_{k+1}`` fitted to the paths that are remembered."""
        n = min(int(self.seen), self.returns.shape[1])
        states = self.recent[:, :n]
        flat = torch.stack([self._moved(x).flatten(1) for x in states])
        return KernelValues(flat, self.returns[:, :n], self._contexts(states[0]))

    def ascent(self, agent: Iteration, n: int) -> Iterator[list[Tensor]]:
        """See GradientPolicy."""
        parts: list[Tensor] = []
        for size in self.parts(n):
            paths = agent.collect(self.control, size)
            if agent.n_updates == 0 and not parts:
                self.start(paths)
            self.remember(paths)
            parts.append(paths.states[:-1])
        states, values = torch.cat(parts, 1), self.values()
        agent.logger.record("train/value_explained", float(values.explained.mean()))
        horizon, device = len(states), states.device
        for rows in torch.randperm(horizon * n, generator=agent.generator, device=device).chunk(
            self.gradient_steps
        ):
            total = [torch.zeros_like(p) for p in self.network.parameters()]
            for some in rows.split(self.micro_batch or len(rows)):
                x = states.flatten(0, 1)[some]
                shape = (len(x), *self.problem.noise_shape)
                noise = torch.randn(shape, generator=agent.generator, device=device, dtype=x.dtype)
                for sum_, part in zip(
                    total, self._slopes(some // n, x, noise, values), strict=True
                ):
                    sum_ += part * (horizon / len(rows))
            yield total

    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """See GradientPolicy; by the values of the paths that are remembered."""
        values = self.values()
        for k, (x, noise) in enumerate(zip(paths.states[:-1], paths.noises, strict=True)):
            yield self._slopes(torch.full((len(x),), k, device=x.device), x, noise, values)

    def _slopes(
        self, k: Tensor, x: Tensor, noise: Tensor, values: KernelValues
    ) -> tuple[Tensor, ...]:
        """``(da / dtheta)^T (J_z^T grad V - beta a)`` at one step and state a row, summed.

        Over both signs of the noise.
        """
        contexts = self._contexts(x)
        with torch.enable_grad():
            a = self.control(k, x)
            rise = -at(a.new_tensor(self.betas), k, a) * a.detach()
            for one in (noise, -noise):
                z = (a.detach() + one).requires_grad_()
                ahead = self._moved(self.problem.transition(k, x, z))
                slope = values.gradient(k, ahead.detach().flatten(1), contexts).view_as(ahead)
                rise += 0.5 * torch.autograd.grad(ahead, z, slope)[0]
            return torch.autograd.grad(a, list(self.network.parameters()), rise)

    def _moved(self, x: Tensor) -> Tensor:
        """What of states the noise moves: latents without the number of their prompt."""
        return self.problem.latents(x) if hasattr(self.problem, "latents") else x

    def _contexts(self, x: Tensor) -> Tensor:
        index = getattr(self.problem, "prompt_index", None)
        return index(x) if index else torch.zeros(len(x), dtype=torch.long, device=x.device)


class _NetworkGradient(NetworkControl, GradientPolicy):
    def start(self, paths: Trajectories) -> None:
        """Standardise the network's inputs."""
        with torch.no_grad():
            self.standardise.fit(torch.cat([self.inputs(k, x) for k, x in enumerate(paths.states)]))


class PathwisePolicy(_NetworkGradient, PathwiseGradient):
    """A network that follows the pathwise gradient; arguments: ``NetworkControl``'s."""


class ScorePolicy(_NetworkGradient, ScoreGradient):
    """A network that follows the score-function gradient; arguments: ``NetworkControl``'s."""


class FittedPolicy(_NetworkGradient, FittedGradient):
    """A network that follows the gradient of fitted values.

    Arguments: ``NetworkControl``'s and ``FittedGradient``'s.
    """
