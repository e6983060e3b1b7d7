"""LoRA adapters inside a frozen network: many by name, at most one at work, and none outside
``active``.

Adapters that its owner loaded, or fused, belong to the network: they stay at work as they were,
beneath the one that ``active`` names. peft's switches also clear and set ``requires_grad`` of every
adapter, which would stop one agent from learning whenever another one, or the pre-trained model, is
asked. These only say which adapters a forward pass goes through.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass
class _Attached:
    """What ``attach`` has hung into a network; it is copied and pickled with it."""

    names: set[str] = field(default_factory=set)
    retired: list[str] = field(default_factory=list)  # to be removed at the next call
    at_work: str | None = None
    owners: list[_Switches] = field(default_factory=list)  # what ``at_work`` has put aside


@dataclass
class _Switches:
    """How the owner of a network has set one of its layers."""

    layer: Any
    active: list[str]
    disabled: bool
    merged: list[str]

    @classmethod
    def of(cls, layer: Any) -> _Switches:
        return cls(
            layer, list(layer.active_adapters), layer.disable_adapters, layer.merged_adapters
        )

    def restore(self) -> None:
        _switch(self.layer, self.active, self.disabled, self.merged)

    def beside(self, name: str) -> None:
        """Go through the adapter ``name`` too; a fused one is in the layer's own weights."""
        mine = [] if self.disabled or self.merged else self.active
        _switch(self.layer, [*mine, name], False, [])


def _switch(layer: Any, active: list[str], disabled: bool, merged: list[str]) -> None:
    learning = [(p, p.requires_grad) for p in layer.parameters()]
    layer.set_adapter(active)
    layer.enable_adapters(not disabled)
    layer.merged_adapters = merged
    for p, before in learning:  # which peft's switches set as well
        p.requires_grad_(before)


def _attached(network: nn.Module) -> _Attached:
    found = network.__dict__.get("_attached_adapters")
    if found is None:
        found = network.__dict__["_attached_adapters"] = _Attached()
    return found


def tuner_layers(network: nn.Module) -> dict[str, Any]:
    """The layers of ``network`` that hold adapters (peft's ``LoraLayer``), by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if hasattr(layer, "merged_adapters") and hasattr(layer, "lora_A")
    }


def _layers(network: nn.Module) -> list[Any]:
    return list(tuner_layers(network).values())


def current(network: nn.Module) -> str | None:
    """The adapter at work; None for the network as it was pre-trained."""
    return _attached(network).at_work


@contextmanager
def active(network: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, ``network`` computes with the adapter ``name``; with none of ours if it is None."""
    purge(network)
    before = current(network)
    if before == name:
        yield
        return
    _put_to_work(network, name)
    try:
        yield
    finally:
        _put_to_work(network, before)


def _put_to_work(network: nn.Module, name: str | None) -> None:
    attached = _attached(network)
    if name is not None and name not in attached.names:
        raise ValueError(f"adapter must be one of {sorted(attached.names)}; got {name!r}")
    for switches in attached.owners:
        switches.restore()
    attached.owners, attached.at_work = [], name
    if name is None:
        return
    attached.owners = [_Switches.of(layer) for layer in _layers(network)]
    for switches in attached.owners:
        switches.beside(name)


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

    purge(network)
    if name in getattr(network, "peft_config", {}):
        raise ValueError(f"name must be one that no other adapter bears; got {name!r}")
    switches = [_Switches.of(layer) for layer in _layers(network)]
    learning = [(p, p.requires_grad) for p in network.parameters()]
    for one in switches:  # peft would take fused adapters out of the weights for good
        one.layer.merged_adapters = []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config`"
            )  # several adapters are the point
            if hasattr(network, "add_adapter"):  # so that diffusers' own methods know of it
                network.add_adapter(config, name)
            else:
                peft.inject_adapter_in_model(config, network, name)
    except ValueError as error:
        for one in switches:
            one.restore()
        network.peft_config = getattr(network, "peft_config", {})  # which diffusers looks into
        network.peft_config.pop(name, None)
        where = type(network).__name__
        raise ValueError(
            f"target_modules must name layers of {where}; got {config.target_modules} ({error})"
        ) from error
    _attached(network).names.add(name)
    layers = tuner_layers(network)
    for layer in layers.values():  # those that are new are not the owner's
        _switch(layer, [], False, [])
    for one in switches:
        one.restore()
    for p, before in learning:  # peft turned the other adapters off
        p.requires_grad_(before)
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


def freeze(network: Any) -> Any:
    """The network with nothing in it learnt but the adapters that ``attach`` gave it."""
    mine = {
        id(weight)
        for layer in _layers(network)
        for name in _attached(network).names & set(layer.lora_A)
        for weight in (layer.lora_A[name].weight, layer.lora_B[name].weight)
    }
    for p in network.parameters():
        if id(p) not in mine:
            p.requires_grad_(False)
    return network.eval()


def detach(network: Any, name: str) -> None:
    """Remove an adapter, if it is there."""
    for layer in _layers(network):
        layer.delete_adapter(name)
    getattr(network, "peft_config", {}).pop(name, None)
    _attached(network).names.discard(name)


def retire(network: Any, name: str) -> None:
    """Have an adapter removed by the next ``active``, ``attach`` or ``purge``.

    Garbage collectors may call it: it changes no module, which somebody may be walking through.
    """
    _attached(network).retired.append(name)


def purge(network: Any) -> None:
    """Remove the adapters that are retired, but for one at work."""
    attached = _attached(network)
    if not attached.retired or attached.at_work is not None:
        return
    while attached.retired:
        detach(network, attached.retired.pop())


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
