"""The controls that DPOK, DDPO and adjoint matching train, by single steps of sampled paths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from ..agents.checks import check_whole
from ..agents.control import ControlPolicy
from ..agents.lora_control import TARGETS, AdapterControl
from ..agents.networks import EnsembleMLP, Standardise, encode, time_features
from ..envs.actions import steered_steps
from ..envs.problem import Problem, device_of

_POOLED = 8  # pixels a side of the latents that a critic sees


class StepPolicy(ControlPolicy):
    """A control, differentiable in its parameters at any rows of steps."""

    steered: Tensor  #: ``(T,)`` bool: the steps with noise
    standardise: Standardise
    #: The most rows that are differentiated at once, to bound memory; all of a batch's if None.
    micro_batch: int | None = None

    @abstractmethod
    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What is kept of states to ask about them again, ``(n, p)``."""

    @abstractmethod
    def output(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Controls ``(n, noise size)`` of what was kept; the only way to the parameters."""

    @abstractmethod
    def features(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """What a critic takes, ``(n, q)``, standardised."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Their number, q."""

    @abstractmethod
    def start(self, inputs: Tensor) -> None:
        """Take units from the inputs ``(n, p)`` of the first paths; the control is zero still and
        stays so.
        """

    def steered_steps(self, problem: Problem) -> Tensor:
        """Which steps carry noise, ``(T,)`` bool."""
        return steered_steps(problem)

    def act(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Controls ``(n, *noise_shape)`` and the inputs that they are made of."""
        inputs = self.inputs(k, x)
        return self.output(k, inputs).view(len(x), *self.problem.noise_shape).to(x.dtype), inputs

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        return self.output(k, self.inputs(k, x)).view(len(x), *self.problem.noise_shape).to(x.dtype)


class MlpPolicy(StepPolicy):
    """The control as a network of the encoded state and the time, smoothly within the action bound.

    It begins at zero: the pre-trained model. At steps without noise it stays there.

    Args:
        hidden: widths of the hidden layers.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        with torch.no_grad():
            two = problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))
            n_inputs = self.inputs(0, two).shape[1]
        self.standardise = Standardise(n_inputs)
        self._n_features = n_inputs + time_features(torch.zeros(1), 1).shape[1]
        self.network = EnsembleMLP(
            self._n_features, int(torch.Size(problem.noise_shape).numel()), hidden, members=1
        )
        self.register_buffer("steered", self.steered_steps(problem))

    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The encoded state: the terminal estimate where the problem offers one, else the state."""
        return encode(self.problem, k, x).float()

    def features(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """What networks take: standardised inputs and features of the time."""
        time = time_features(torch.as_tensor(k / self.problem.horizon).to(inputs), len(inputs))
        return torch.cat([self.standardise(inputs), time], 1)

    @property
    def n_features(self) -> int:
        """See StepPolicy."""
        return self._n_features

    def start(self, inputs: Tensor) -> None:
        """See StepPolicy."""
        self.standardise.fit(inputs)

    def output(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """See StepPolicy."""
        raw = self.network(self.features(k, inputs))[0]
        return (
            self.action_bound * torch.tanh(raw / self.action_bound) * self.steered[k].reshape(-1, 1)
        )


class LoraPolicy(AdapterControl, StepPolicy):
    """The control that low-rank adapters of the pipeline's own network make; for problems made of a
    diffusers pipeline.

    Of a step the state itself is kept, and both networks are asked about it again: the ratio of a
    policy to itself is exactly
    1. Critics see the latents averaged down to 8 pixels a side, the time and, of several, the
       prompt.

    Args:
        rank: of the adapters.
        lora_alpha: the adapter's output is scaled by ``lora_alpha / rank``; the rank if absent.
        target_modules: names of the layers that are adapted.
        micro_batch: the most steps that are differentiated at once; all of a batch's if absent.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        rank: int = 4,
        lora_alpha: float | None = None,
        target_modules: Sequence[str] = TARGETS,
        micro_batch: int | None = None,
    ) -> None:
        if micro_batch is not None:
            check_whole("micro_batch", micro_batch, 1)
        super().__init__(observation_space, action_space, problem, rank, lora_alpha, target_modules)
        self.micro_batch = micro_batch
        with torch.no_grad():
            two = problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))
            self.standardise = Standardise(self._pooled(two).shape[1])
        self.register_buffer("steered", self.steered_steps(problem))

    def steered_steps(self, problem: Any) -> Tensor:
        """See StepPolicy; read off the schedule, without asking the network."""
        return problem.schedule.sigma.ne(0)

    def _states(self, inputs: Tensor) -> Tensor:
        return inputs.view(len(inputs), *self.problem.state_shape)

    def _pooled(self, x: Tensor) -> Tensor:
        problem: Any = self.problem
        latents = problem.latents(x).float()
        height, width = (min(side, _POOLED) for side in latents.shape[-2:])
        return F.adaptive_avg_pool2d(latents, (height, width)).flatten(1)

    def act(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """See StepPolicy; asked about ``x`` itself, so that the transition's question is answered
        from memory.
        """
        return self.control(k, x), x.flatten(1)

    def inputs(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The state, flattened."""
        return x.flatten(1)

    def output(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """See StepPolicy."""
        return self.control(k, self._states(inputs)).flatten(1)

    def features(self, k: int | Tensor, inputs: Tensor) -> Tensor:
        """See StepPolicy."""
        x = self._states(inputs)
        pooled = self.standardise(self._pooled(x))
        given = [
            pooled,
            time_features(torch.as_tensor(k / self.problem.horizon).to(pooled), len(x)),
        ]
        if self._n_prompts > 1:
            problem: Any = self.problem
            given.append(F.one_hot(problem.prompt_index(x), self._n_prompts).to(pooled))
        return torch.cat(given, 1)

    @property
    def _n_prompts(self) -> int:
        return len(getattr(self.problem, "prompts", ""))

    @property
    def n_features(self) -> int:
        """See StepPolicy."""
        prompts = self._n_prompts if self._n_prompts > 1 else 0
        return len(self.standardise.centre) + time_features(torch.zeros(1), 1).shape[1] + prompts

    def start(self, inputs: Tensor) -> None:
        """See StepPolicy; a part of the states at a time."""
        self.standardise.fit(
            torch.cat([self._pooled(self._states(part)) for part in inputs.split(1024)])
        )
