"""The classes that are worth a try on a problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ....envs.problem import Problem, device_of, slopes_of
from ...networks import encode

#: Effective number of uncontrolled paths below which they say too little of log f: weights of their
#: own at every step, and paths that are pushed, need no path weights.
_FEW_PATHS = 5.0


@dataclass(frozen=True)
class Candidate:
    """A policy by name, with settings of PDE.

    Args:
        policy: its name.
        settings: keyword arguments of PDE.
        word: what it is called in a sentence.
    """

    policy: str
    settings: dict[str, Any] = field(default_factory=dict)
    word: str = ""


QUADRATIC = Candidate("PolynomialPolicy", word="a quadratic")
#: Sums of powers of single coordinates, each step's weights its own; the gradient's mean over
#: noise, as log f may curve within a step.
SEPARABLE = Candidate(
    "PolynomialPolicy",
    {
        "exploration": 1.0,
        "policy_kwargs": {
            "degree": 8,
            "interaction": 1,
            "times": None,
            "draws": 2,
            "iterations": 5,
        },
    },
    "sums of powers, fitted step by step",
)
CANDIDATES = (QUADRATIC, SEPARABLE)


def network_for(problem: Problem) -> str:
    """The network that the problem's transition allows."""
    if hasattr(problem, "adapted_noise"):
        return "CnnPolicy"  # latents or images of a diffusers pipeline
    return "MlpPolicy" if slopes_of(problem).transition else "ModelPolicy"


def candidates_for(problem: Problem, paths: int, effective: float) -> list[Candidate]:
    """The linear classes to try beside the network, none where they cannot serve.

    Their control is a gradient through the transition, so autograd must follow it; and a class of
    more weights than the first paths have visits is not tried: on images, that is.

    Args:
        problem: to be solved.
        paths: uncontrolled ones, of the first round.
        effective: their effective number under the optimum's weights.
    """
    if hasattr(problem, "adapted_noise") or not slopes_of(problem).transition:
        return []
    with torch.no_grad():
        x = problem.initial(2, torch.Generator(device_of(problem)).manual_seed(0))
        inputs = encode(problem, 0, x).shape[1]
    visits = paths * (problem.horizon + 1)
    found = [QUADRATIC] if 8 * math.comb(inputs + 2, 2) <= visits else []
    denoises = getattr(problem, "terminal_estimate", None) is not None
    if effective < _FEW_PATHS and not denoises and 8 * inputs < paths:
        found.append(SEPARABLE)
    return found
