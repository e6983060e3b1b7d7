"""What a problem's steps cost, told by what it offers."""

from __future__ import annotations

from torch import nn

from ....envs.problem import Problem


def denoises(problem: Problem) -> bool:
    """Whether it predicts the clean sample."""
    return getattr(problem, "terminal_estimate", None) is not None


def has_network(problem: Problem) -> bool:
    """Whether a network is among what the problem consists of, but for its reward's."""
    parts = {name: part for name, part in vars(problem).items() if name != "reward"}
    return any(isinstance(part, nn.Module) for part in parts.values())
