"""PI-FT with low-rank adapters (LoRA) of a diffusers pipeline's own network, as in the paper's experiments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from ..envs.problem import Problem, Trajectories, at
from .base import check_range
from .gradient_policies import GradientPolicy, PathwiseGradient, ScoreGradient
from .iteration_policy import some_states
from .kernel_values import KernelValues
from .lora_control import AdapterControl
from .value_gradients import gains

if TYPE_CHECKING:
    from .policy_iteration import PIFT


class LoraControl(AdapterControl, GradientPolicy):
    """An adapter of the problem's network, moved by gradient steps of the objective.

    The learning rate is the paper's, and constant: a run that is prolonged or resumed goes on as if it had been planned so.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: one that offers ``adapted_noise``.
        micro_batch: the most paths that are sampled and differentiated at once; all of a gradient's if absent.
        temperatures: see IterationPolicy.
        adapter: ``rank``, ``lora_alpha`` and ``target_modules`` of ``AdapterControl``.
    """

    n_trajectories = 10
    learning_rate: ClassVar[float] = 3e-4
    anneal: ClassVar[bool] = False
    shares_paths = True

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        micro_batch: int | None = None,
        temperatures: float | Sequence[float] | None = None,
        **adapter: Any,
    ) -> None:
        if micro_batch is not None:
            check_range("micro_batch", micro_batch, self.least_paths)
        super().__init__(observation_space, action_space, problem, temperatures=temperatures, **adapter)
        self.micro_batch = micro_batch

    def improve(self, agent: PIFT) -> None:
        """See GradientPolicy; of several processes each samples its share of the paths, and all follow the mean gradient."""
        state = processes(agent.device)
        if state is None:
            return super().improve(agent)
        share, rest = divmod(agent.n_trajectories, state.num_processes)
        if rest:
            raise ValueError(
                f"n_trajectories must be a multiple of {state.num_processes} processes; got {agent.n_trajectories}"
            )
        agent.processes = state.num_processes
        # all processes' streams are one and the same, of which each round's seed is drawn; a checkpoint of any holds it
        common = agent.generator
        seed = int(torch.randint(2**62, (), generator=common, device=common.device))
        agent.generator = torch.Generator(common.device).manual_seed(seed + state.process_index)
        try:
            for gradient in self.ascent(agent, share):
                agent.ascend(average(gradient))
        finally:
            agent.generator = common


class LoraPolicy(LoraControl, PathwiseGradient):
    """An adapter that follows the pathwise gradient, for differentiable rewards; arguments: ``LoraControl``'s."""


class LoraScorePolicy(LoraControl, ScoreGradient):
    """An adapter that follows the score-function gradient, for black-box rewards; arguments: ``LoraControl``'s."""


class LoraValuePolicy(LoraControl):
    """An adapter that follows the gradient of a fitted value function, for black-box rewards (the paper's Algorithm 1).

    Evaluation: the returns of the last paths, whichever adapter made them, give ``V_{k+1}`` by kernel regression. Improvement:
    one pass over the transitions of the newest paths, in ``gradient_steps`` batches, each around the control as it is by
    then. The reward is never differentiated. No noise of a return reaches the gradient, as it does with the score function;
    the price is the regression's bias.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: one that offers ``adapted_noise``.
        memory: paths that values are fitted to; their latents are kept, on the device and in checkpoints.
        gradient_steps: in an iteration, at most one a transition.
        micro_batch: the most paths that are sampled, and transitions that are differentiated, at once.
        rest: ``temperatures``, and the adapter's settings; see ``LoraControl``.
    """

    learning_rate = 1e-3
    recent: Tensor  # X_{k+1}, (T, memory, *state_shape)
    returns: Tensor  # earned from there on, (T, memory)
    seen: Tensor  # number of paths ever

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        memory: int = 200,
        gradient_steps: int = 10,
        micro_batch: int | None = None,
        **rest: Any,
    ) -> None:
        check_range("memory", memory, 2)
        check_range("gradient_steps", gradient_steps, 1)
        super().__init__(observation_space, action_space, problem, micro_batch, **rest)
        self.gradient_steps = gradient_steps
        like = some_states(problem)
        self.register_buffer("recent", like.new_zeros(problem.horizon, memory, *problem.state_shape))
        self.register_buffer("returns", like.new_zeros(problem.horizon, memory, dtype=torch.float64))
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
        for table, column in zip((self.recent, self.returns), map(gathered, new), strict=True):
            rows = torch.arange(len(column), device=column.device)[-size:]
            table[:, (self.seen + rows) % size] = column[rows].transpose(0, 1).to(table.dtype)
        self.seen += len(column)

    def values(self) -> KernelValues:
        """``V_{k+1}`` fitted to the paths that are remembered."""
        n = min(int(self.seen), self.returns.shape[1])
        states = self.recent[:, :n]
        flat = torch.stack([self._latents(x) for x in states])
        return KernelValues(flat, self.returns[:, :n], self._contexts(states[0]))

    def ascent(self, agent: PIFT, n: int) -> Iterator[list[Tensor]]:
        """See GradientPolicy."""
        parts = []
        for size in self.parts(n):
            paths = agent.collect(self.control, size)
            self.remember(paths)
            parts.append(paths.states[:-1])
        states, values = torch.cat(parts, 1), self.values()
        agent.logger.record("train/value_explained", float(values.explained.mean()))
        horizon, device = len(states), states.device
        for rows in torch.randperm(horizon * n, generator=agent.generator, device=device).chunk(self.gradient_steps):
            total = [torch.zeros_like(p) for p in self.network.parameters()]
            for some in rows.split(self.micro_batch or len(rows)):
                x = states.flatten(0, 1)[some]
                noise = torch.randn(len(x), *self.problem.noise_shape, generator=agent.generator, device=device, dtype=x.dtype)
                for sum_, part in zip(total, self._slopes(some // n, x, noise, values), strict=True):
                    sum_ += part * (horizon / len(rows))
            yield total

    def gradients(self, paths: Trajectories) -> Iterable[tuple[Tensor, ...]]:
        """See GradientPolicy; by the values of the paths that are remembered."""
        values = self.values()
        for k, (x, noise) in enumerate(zip(paths.states[:-1], paths.noises, strict=True)):
            yield self._slopes(torch.full((len(x),), k, device=x.device), x, noise, values)

    def _slopes(self, k: Tensor, x: Tensor, noise: Tensor, values: KernelValues) -> tuple[Tensor, ...]:
        """``(da / dtheta)^T (J_z^T grad V - beta a)`` at one step and state a row, summed; over both signs of the noise."""
        problem: Any = self.problem
        with torch.enable_grad():
            a = self.control(k, x)
            mean, scale = problem.gaussian_kernel(k, x)  # here, the prediction that the control has just used is at hand
        with torch.no_grad():
            slope, contexts = torch.zeros_like(a), self._contexts(x)
            for z in (a + noise, a - noise):
                slope += 0.5 * values.gradient(k, (mean + scale * z).flatten(1), contexts).view_as(a)
            rise = scale * slope - at(a.new_tensor(self.betas), k, a) * a
        return torch.autograd.grad(a, list(self.network.parameters()), rise)

    def _latents(self, x: Tensor) -> Tensor:
        return self.problem.latents(x).flatten(1)  # type: ignore[attr-defined]

    def _contexts(self, x: Tensor) -> Tensor:
        index = getattr(self.problem, "prompt_index", None)
        return index(x) if index else torch.zeros(len(x), dtype=torch.long, device=x.device)


def processes(device: torch.device) -> Any:
    """The state that accelerate keeps of this run if it has several processes, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    # one process evaluates while the others wait for its next gradient, however long that takes
    return PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))


def gathered(rows: Tensor) -> Tensor:
    """``rows`` of all processes, which have as many each: the same tensor in all of them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return rows
    from accelerate.utils import gather

    return gather(rows.contiguous())


def average(gradient: Sequence[Tensor]) -> list[Tensor]:
    """The mean over processes of gradients; all in one message (what ``Accelerator.reduce`` does)."""
    from accelerate.utils import reduce

    flat = reduce(torch.cat([part.flatten() for part in gradient]), "mean")
    pieces = flat.split([part.numel() for part in gradient])
    return [piece.view_as(part) for piece, part in zip(pieces, gradient, strict=True)]
