"""Your own denoiser as a problem: a network, its tables, what it predicts, and a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..problem import check_integer
from ..rewards.conversion import rewards_of
from .adapters import freeze
from .denoising import DenoisingProblem, Schedule
from .last_call import LastCall
from .step_table import StepTable


class NetworkDenoiser(DenoisingProblem):
    """The chain of any network, over states of any shape: ``DenoisingProblem.from_network``.

    Args:
        network: ``(x (n, *shape), t (n,), **conditioning) -> (n, *shape)``; ``t`` is the schedule's
            timestep. A module is frozen and used, not copied.
        schedule: noise tables, a ``Schedule`` or any ``StepTable``.
        prediction: what the network predicts of ``x = a x0 + b e``: ``epsilon`` (e), ``sample``
            (x0), ``v`` (``a e - b x0``), ``velocity`` (``e - x0``) or ``score`` (``-e / b``).
        shape: of one sample.
        reward: ``(n, *shape) -> (n,)`` of finished samples, or what ``rewards_of`` takes for it.
        temperature: price of one nat of KL.
        batch_size: rows that the network is given at once; all if absent.
        dtype: of states and tables; that of the network's weights, at least float32, if absent.
        **conditioning: further arguments of the network: a tensor of one row is repeated for each
            sample, everything else is passed on as it is.

    Raises:
        ValueError: a bad argument, or the network's output has another shape than its input.
    """

    model_methods = ("_predict",)  # what memory does not answer

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule | StepTable,
        prediction: str = "epsilon",
        *,
        shape: tuple[int, ...],
        reward: Callable[[Tensor], Tensor],
        temperature: float,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        **conditioning: Any,
    ) -> None:
        for name, value in (("network", network), ("reward", reward)):
            if not callable(value):
                raise ValueError(f"{name} must be callable; got {value!r}")
        if batch_size is not None:
            check_integer("batch_size", batch_size)
        own = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        if dtype is None:
            dtype = torch.float32
            if own is not None:
                dtype = torch.promote_types(own.dtype, dtype)
        super().__init__(schedule, shape, temperature, dtype, prediction)
        self.network = freeze(network) if isinstance(network, nn.Module) else network
        self.reward = reward.requires_grad_(False) if isinstance(reward, nn.Module) else reward
        self.batch_size = batch_size
        # tuples, which move to a device with the problem
        self._names, self._given = tuple(conditioning), tuple(conditioning.values())
        self._last = LastCall()
        with torch.no_grad():
            x = torch.zeros(2, *shape, dtype=dtype, device=None if own is None else own.device)
            found = tuple(self._predict(torch.tensor([0, 0], device=x.device), x).shape)
        if found != tuple(x.shape):
            raise ValueError(
                f"network must return what it is given, shape {tuple(x.shape)}; got {found}"
            )

    def predict(self, k: int | Tensor, x: Tensor) -> Tensor:
        """What the network says; asked again about the same ``x``, it answers from memory."""
        if not isinstance(self.network, nn.Module):
            return self._predict(k, x)
        return self._last(self._predict, self.network, k, x)

    def _predict(self, k: int | Tensor, x: Tensor) -> Tensor:
        times = self.schedule.timesteps.to(x.device)[k].expand(len(x))
        weight = next(self.network.parameters(), x) if isinstance(self.network, nn.Module) else x
        parts = []
        for rows in torch.arange(len(x), device=x.device).split(self.batch_size or len(x)):
            given = {
                name: value.expand(len(rows), *value.shape[1:])
                if isinstance(value, Tensor) and value.dim() and len(value) == 1
                else value
                for name, value in zip(self._names, self._given, strict=True)
            }
            parts.append(self.network(x[rows].to(weight.dtype), times[rows], **given).to(x.dtype))
        return torch.cat(parts)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """The reward of finished samples."""
        return rewards_of(self.reward, x)
