"""PI-FT with low-rank adapters (LoRA, Hu et al. 2021) of a diffusers pipeline's own network, as in the paper's experiments.

The adapted network's noise prediction takes the place of the pre-trained one, so the control is their difference in noise
units, ``a_k(x) = control_of(k, x, adapted - pre-trained)``, and ``|a|^2 / 2`` the KL between their steps (Lemma 2.5). At the
start the adapter adds exactly zero. Only adapters are learnt and saved; the network belongs to the problem and stays frozen.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..envs.adapters import attach, detach
from ..envs.problem import Problem
from .base import check_range
from .gradient_policies import GradientPolicy, PathwiseGradient, ScoreGradient

if TYPE_CHECKING:
    from .policy_iteration import PIFT

_numbers = itertools.count()
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class LoraWeights(nn.Module):
    """The parameters of one adapter, which live in the network that it adapts.

    Args:
        parameters: by layer.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "-"), parameter)


class LoraControl(GradientPolicy):
    """The control that an adapter of the problem's network makes.

    Weights are float32 over a half-precision network (float64 over a float64 one): small steps are not rounded away. The
    learning rate is the paper's and constant: it was tuned without a decay, and a run that is prolonged or resumed goes on as
    if it had been planned so.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: one that offers ``adapted_noise``.
        rank: of the adapters.
        lora_alpha: the adapter's output is scaled by ``lora_alpha / rank``; the rank if absent.
        target_modules: names of the layers that are adapted.
        micro_batch: the most paths that are sampled and differentiated at once; all of a gradient's if absent.
        temperatures: see IterationPolicy.

    Raises:
        ValueError: the problem has no such network, or an argument is out of its range.
    """

    n_trajectories = 10
    learning_rate: ClassVar[float] = 3e-4
    anneal: ClassVar[bool] = False

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        rank: int = 4,
        lora_alpha: float | None = None,
        target_modules: Sequence[str] = TARGETS,
        micro_batch: int | None = None,
        temperatures: float | Sequence[float] | None = None,
    ) -> None:
        if not hasattr(problem, "adapted_noise"):
            raise ValueError(
                f"policy {type(self).__name__!r} must have a problem made of a diffusers pipeline, whose network it adapts; "
                f"got {type(problem).__name__}"
            )
        check_range("rank", rank, 1)
        if micro_batch is not None:
            check_range("micro_batch", micro_batch, self.least_paths)
        super().__init__(observation_space, action_space, problem, temperatures)
        from peft import LoraConfig

        self.micro_batch = micro_batch
        self.adapter = f"girsanov{next(_numbers)}"  # several policies may share one network
        scale: Any = rank if lora_alpha is None else lora_alpha  # peft says int, and takes what multiplies
        self._config = LoraConfig(
            r=rank,
            lora_alpha=scale,
            init_lora_weights="gaussian",
            target_modules=list(target_modules),
        )
        unet = self._unet
        self.network = LoraWeights(attach(unet, self.adapter, self._config))
        self._release = weakref.finalize(self, detach, unet, self.adapter)

    @property
    def _unet(self) -> Any:
        return self._problem[0].unet  # type: ignore[attr-defined]

    @property
    def problem(self) -> Problem:
        """The problem that the control steers; the adapter moves along when another one brings another network."""
        return self._problem[0]

    @problem.setter
    def problem(self, problem: Problem) -> None:
        before = self._unet
        self._problem = [problem]
        if self._unet is not before:
            self._release()
            attach(self._unet, self.adapter, self._config, list(self.network.parameters()))
            self._release = weakref.finalize(self, detach, self._unet, self.adapter)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        problem: Any = self.problem
        difference = problem.adapted_noise(k, x, self.adapter) - problem.predict_noise(k, x)
        return problem.control_of(k, x, difference).clamp(-self.action_bound, self.action_bound)

    def improve(self, agent: PIFT) -> None:
        """One gradient step; of several processes each samples its share of the paths, and all take the mean gradient's."""
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
            gradient = self.sampled_gradient(agent, share)
        finally:
            agent.generator = common
        agent.ascend(average(gradient))

    def save_lora(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter in diffusers' format: ``pipeline.load_lora_weights(folder)`` then draws with the fine-tuned model.

        The file is ``pytorch_lora_weights.safetensors``; its metadata keep ``lora_alpha``. Controls beyond the action bound
        are not cut off there.
        """
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(self._unet, adapter_name=self.adapter),
            unet_lora_adapter_metadata=self._config.to_dict(),
        )


class LoraPolicy(LoraControl, PathwiseGradient):
    """An adapter that follows the pathwise gradient, for differentiable rewards; arguments: ``LoraControl``'s."""


class LoraScorePolicy(LoraControl, ScoreGradient):
    """An adapter that follows the score-function gradient, for black-box rewards; arguments: ``LoraControl``'s."""


def processes(device: torch.device) -> Any:
    """The state that accelerate keeps of this run if it has several processes, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu")


def average(gradient: Sequence[Tensor]) -> list[Tensor]:
    """The mean over processes of gradients; all in one message (what ``Accelerator.reduce`` does)."""
    from accelerate.utils import reduce

    flat = reduce(torch.cat([part.flatten() for part in gradient]), "mean")
    pieces = flat.split([part.numel() for part in gradient])
    return [piece.view_as(part) for piece, part in zip(pieces, gradient, strict=True)]
