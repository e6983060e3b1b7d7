"""LoRA adapters inside a frozen network: many by name, at most one at work, and none outside
``active``.

peft's own switches also clear and set ``requires_grad`` of every adapter, which would stop one
agent from learning whenever another one, or the pre-trained model, is asked. These only say which
adapter a forward pass goes through.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def tuner_layers(network: nn.Module) -> dict[str, Any]:
    """The layers of ``network`` that hold adapters (peft's ``LoraLayer``), by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if hasattr(layer, "_disable_adapters")
    }


def _layers(network: nn.Module) -> Iterator[Any]:
    return (layer for layer in network.modules() if hasattr(layer, "_disable_adapters"))


def current(network: nn.Module) -> str | None:
    """The adapter at work; None for the network as it was pre-trained."""
    for layer in _layers(network):  # all are switched together
        return None if layer._disable_adapters else layer._active_adapter[0]
    return None


@contextmanager
def active(network: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, ``network`` computes with the adapter ``name``; with none of them if it is None."""
    before = current(network)
    if before == name:
        yield
        return
    layers = list(_layers(network))
    if name is not None and not any(name in layer.lora_A for layer in layers):
        known = sorted({key for layer in layers for key in layer.lora_A})
        raise ValueError(f"adapter must be one of {known}; got {name!r}")
    _switch(layers, name)
    try:
        yield
    finally:
        _switch(layers, before)


def _switch(layers: Sequence[Any], name: str | None) -> None:
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = [] if name is None else [name]


def attach(
    network: Any, name: str, config: Any, parameters: Sequence[nn.Parameter] | None = None
) -> dict[str, nn.Parameter]:
    """Add an adapter, which is at work only inside ``active``; the network's own weights stay
    frozen.

    Args:
        network: a diffusers model.
        name: of the adapter; no other may bear it.
        config: a ``peft.LoraConfig``.
        parameters: what to use in place of fresh ones, in the order that is returned.

    Returns:
        The adapter's parameters by layer, in float32 or, over a float64 network, in float64.
    """
    import peft

    if name in getattr(network, "peft_config", {}):
        raise ValueError(f"name must be one that no other adapter bears; got {name!r}")
    kept = [p for layer in _layers(network) for p in _weights(layer)]
    frozen = [p for p in network.parameters() if not p.requires_grad]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config`"
            )  # several adapters are the point
            peft.inject_adapter_in_model(config, network, name)
    except ValueError as error:
        getattr(network, "peft_config", {}).pop(name, None)
        where = type(network).__name__
        raise ValueError(
            f"target_modules must name layers of {where}; got {config.target_modules} ({error})"
        ) from error
    if hasattr(network, "_hf_peft_config_loaded"):
        network._hf_peft_config_loaded = True  # diffusers' own methods ask
    for p in frozen:
        p.requires_grad_(False)
    for p in kept:  # peft turned the other adapters off
        p.requires_grad_(True)
    layers = tuner_layers(network)
    _switch(list(layers.values()), None)
    found: dict[str, nn.Parameter] = {}
    for place, layer in layers.items():
        if name not in layer.lora_A:
            continue
        for side in ("lora_A", "lora_B"):
            linear = getattr(layer, side)[name]
            if parameters is None:
                wide = torch.promote_types(linear.weight.dtype, torch.float32)
                linear.weight = nn.Parameter(linear.weight.detach().to(wide))
            else:
                linear.weight = parameters[len(found)]
            found[f"{place}.{side}"] = linear.weight
    return found


def detach(network: Any, name: str) -> None:
    """Remove an adapter, if it is there."""
    for layer in _layers(network):
        layer.delete_adapter(name)
    getattr(network, "peft_config", {}).pop(name, None)


def _weights(layer: Any) -> list[nn.Parameter]:
    return [linear.weight for side in (layer.lora_A, layer.lora_B) for linear in side.values()]


class Checkpointing:
    """A diffusers model's gradient checkpointing that runs a block again with the adapter it was
    first run with.

    Args:
        network: a diffusers model, whose blocks it sees to from now on.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        network.enable_gradient_checkpointing(self)

    def __call__(self, block: Any, *args: Any) -> Tensor:
        """What ``block(*args)`` gives; its activations are computed again in the backward pass."""
        name = current(self.network)

        def run(*inputs: Any) -> Any:
            with active(self.network, name):
                return block(*inputs)

        return checkpoint(run, *args, use_reentrant=False)
