"""A control made by low-rank adapters (LoRA, Hu et al. 2021) of a diffusers pipeline's own network.

Whoever trains it, the adapted network's noise prediction takes the place of the pre-trained one, so
the control is their difference in noise units, ``a_k(x) = control_of(k, x, adapted -
pre-trained)``, and ``|a|^2 / 2`` the KL between their steps (Han et al., Lemma 2.5). At the start
the adapter adds exactly zero. Only the adapter is learnt and saved; the network belongs to the
problem and stays frozen.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Sequence
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from ..envs.diffusion.adapters import attach, detach, retire
from ..envs.problem import Problem
from .checks import check_whole
from .control import ControlPolicy

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


class AdapterControl(ControlPolicy):
    """The control that an adapter of the problem's network makes.

    Weights are float32 over a half-precision network (float64 over a float64 one): small steps are
    not rounded away.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        problem: one that offers ``adapted_noise``.
        rank: of the adapters.
        lora_alpha: the adapter's output is scaled by ``lora_alpha / rank``; the rank if absent.
        target_modules: names of the layers that are adapted.
        rest: of the class that this one is mixed into.

    Raises:
        ValueError: the problem has no such network, or an argument is out of its range.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        rank: int = 4,
        lora_alpha: float | None = None,
        target_modules: Sequence[str] = TARGETS,
        **rest: Any,
    ) -> None:
        if not hasattr(problem, "adapted_noise"):
            raise ValueError(
                f"policy {type(self).__name__!r} must have a problem made of a diffusers pipeline,"
                f" whose network takes adapters; got {type(problem).__name__}"
            )
        check_whole("rank", rank, 1)
        super().__init__(observation_space, action_space, problem, **rest)
        from peft import LoraConfig

        self.adapter = f"girsanov{next(_numbers)}"  # several policies may share one network
        # peft says int, and takes any number
        scale: Any = rank if lora_alpha is None else lora_alpha
        self._config = LoraConfig(
            r=rank,
            lora_alpha=scale,
            init_lora_weights="gaussian",
            target_modules=list(target_modules),
        )
        adapted = self._adapted
        self.network = LoraWeights(attach(adapted, self.adapter, self._config))
        self._release = weakref.finalize(self, retire, adapted, self.adapter)

    @property
    def _adapted(self) -> Any:
        return self._problem[0].network  # type: ignore[attr-defined]

    @property
    def problem(self) -> Problem:
        """The problem that the control steers.

        The adapter moves along when another one brings another network.
        """
        return self._problem[0]

    @problem.setter
    def problem(self, problem: Problem) -> None:
        before = self._adapted
        self._problem = [problem]
        if self._adapted is not before:
            self._release.detach()
            detach(before, self.adapter)
            attach(self._adapted, self.adapter, self._config, list(self.network.parameters()))
            self._release = weakref.finalize(self, retire, self._adapted, self.adapter)

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See ControlPolicy."""
        problem: Any = self.problem
        difference = problem.adapted(k, x, self.adapter) - problem.predict(k, x)
        return problem.control_of(k, x, difference).clamp(-self.action_bound, self.action_bound)

    def save_lora(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter: ``pipeline.load_lora_weights(folder)`` then draws with the fine-tuned
        model; for a pipeline without that method, as unconditional ones, PixArt and DiT are,
        ``peft.PeftModel.from_pretrained(pipeline.unet, folder)`` (or ``pipeline.transformer``) puts
        it into the network.

        The file is ``pytorch_lora_weights.safetensors``, whose metadata keep ``lora_alpha``, or
        peft's ``adapter_model.safetensors`` with ``adapter_config.json``. Controls beyond the
        action bound are not cut off there.
        """
        from peft.utils import get_peft_model_state_dict

        weights = get_peft_model_state_dict(self._adapted, adapter_name=self.adapter)
        reader = self.problem.lora_reader  # type: ignore[attr-defined]
        if reader is None:
            from safetensors.torch import save_file

            self._config.save_pretrained(os.fspath(folder))
            file = os.path.join(folder, "adapter_model.safetensors")
            save_file({f"base_model.model.{n}": w.contiguous() for n, w in weights.items()}, file)
            return
        import diffusers

        pipeline, part = reader
        metadata = self._config.to_dict()
        getattr(diffusers, pipeline).save_lora_weights(
            folder,
            **{f"{part}_lora_layers": weights, f"{part}_lora_adapter_metadata": metadata},
        )
