"""PI-FT with low-rank adapters (LoRA) of a diffusers pipeline's own network.

As in the paper's experiments.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from ...envs.problem import Problem
from ..checks import check_whole
from ..lora_control import AdapterControl
from .form import Iteration
from .gradient import FittedGradient, GradientPolicy, PathwiseGradient, ScoreGradient


class LoraControl(AdapterControl, GradientPolicy):
    """An adapter of the problem's network, moved by gradient steps of the objective.

    The learning rate is the paper's, and constant: a run that is prolonged or resumed goes on as if
    it had been planned so.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: one that offers ``adapted_noise``.
        micro_batch: the most paths that are sampled and differentiated at once; all of a gradient's
            if absent.
        temperatures: see IterationPolicy.
        rest: ``rank``, ``lora_alpha`` and ``target_modules`` of ``AdapterControl``, and what a form
            adds.
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
        **rest: Any,
    ) -> None:
        if micro_batch is not None:
            check_whole("micro_batch", micro_batch, self.least_paths)
        super().__init__(
            observation_space, action_space, problem, temperatures=temperatures, **rest
        )
        self.micro_batch = micro_batch

    def of_all_processes(self, rows: Tensor) -> Tensor:
        """See GradientPolicy."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return rows
        from accelerate.utils import gather

        return gather(rows.contiguous())

    def improve(self, agent: Iteration) -> None:
        """See GradientPolicy.

        Of several processes each samples its share of the paths, and all follow the mean gradient.
        """
        state = processes(agent.device)
        if state is None:
            return super().improve(agent)
        share, rest = divmod(agent.n_trajectories, state.num_processes)
        if rest:
            raise ValueError(
                f"n_trajectories must be a multiple of {state.num_processes} processes; got"
                f" {agent.n_trajectories}"
            )
        agent.processes = state.num_processes
        # all processes' streams are one and the same, of which each round's seed is drawn; a
        # checkpoint of any holds it
        common = agent.generator
        seed = int(torch.randint(2**62, (), generator=common, device=common.device))
        agent.generator = torch.Generator(common.device).manual_seed(seed + state.process_index)
        try:
            for gradient in self.ascent(agent, share):
                agent.ascend(average(gradient))
        finally:
            agent.generator = common


class LoraPolicy(LoraControl, PathwiseGradient):
    """An adapter that follows the pathwise gradient, for differentiable rewards.

    Arguments: ``LoraControl``'s.
    """


class LoraScorePolicy(LoraControl, ScoreGradient):
    """An adapter that follows the score-function gradient, for black-box rewards.

    Arguments: ``LoraControl``'s.
    """


class LoraValuePolicy(LoraControl, FittedGradient):
    """An adapter that follows the gradient of fitted values, for black-box rewards.

    Arguments: both bases'.
    """

    learning_rate = 1e-3


def processes(device: torch.device) -> Any:
    """The state that accelerate keeps of this run if it has several processes, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    # one process evaluates while the others wait for its next gradient, however long that takes
    return PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))


def average(gradient: Sequence[Tensor]) -> list[Tensor]:
    """The mean over processes of gradients.

    All in one message (what ``Accelerator.reduce`` does).
    """
    from accelerate.utils import reduce

    flat = reduce(torch.cat([part.flatten() for part in gradient]), "mean")
    pieces = flat.split([part.numel() for part in gradient])
    return [piece.view_as(part) for piece, part in zip(pieces, gradient, strict=True)]
