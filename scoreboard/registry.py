"""From names to objects: environments by id, agents by name, and either by ``module:attribute`` for
your own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ..envs import PROBLEMS, make_problem
from ..envs.checks import shown, words_of
from ..envs.env import ProblemEnv
from ..envs.fingerprint import fingerprint
from ..envs.problem import Problem
from .commands.arguments import is_problem, unknown_of_env
from .commands.suggestions import did_you_mean
from .learners import AGENTS, Agent
from .spec import DEVICES, base_of

__all__ = ["AGENTS", "Agent", "find_agent", "make_env", "resolve_device"]


def find_agent(name: str) -> Agent:
    """The agent of a name, or of ``module:attribute``: an ``Agent`` or its ``make`` alone. A note
    after ``#`` is not looked at.
    """
    name = base_of(name)
    if name in AGENTS:
        return AGENTS[name]
    if ":" not in name:
        hint = did_you_mean(name, AGENTS)
        raise ValueError(
            f"agent must be one of {sorted(AGENTS)} or module:attribute; got {name!r}{hint}"
        )
    found = imported("agent", name)
    if is_problem(found):
        raise ValueError(f"agent {name!r} is a problem, not an agent: it can be an env")
    if not (isinstance(found, Agent) or callable(found)):
        raise ValueError(f"agent {name!r} must be an Agent or what makes one; got {found!r}")
    return found if isinstance(found, Agent) else Agent(found)


def make_env(name: str, kwargs: Mapping[str, Any], device: str = "auto") -> ProblemEnv:
    """The environment of an id or of ``module:attribute`` (a Problem, or a callable that returns
    one), checked. A note after ``#`` is not looked at.

    ``kwargs`` go to the problem; ``action_bound``, ``actions`` and ``observation`` among them to
    its environment.
    """
    name, kwargs = base_of(name), dict(kwargs)
    names = ("action_bound", "actions", "observation")
    shell = {key: kwargs.pop(key) for key in names if key in kwargs}
    place = resolve_device(device)
    if name in PROBLEMS:
        factory: Any = lambda **kw: make_problem(name, place, **kw)  # noqa: E731
    elif ":" in name:
        factory = imported("env", name)
    else:
        hint = did_you_mean(name, PROBLEMS)
        raise ValueError(
            f"env must be one of {sorted(PROBLEMS)} or module:attribute; got {name!r}{hint}"
        )
    if lacking := sorted(getattr(factory, "__abstractmethods__", ())):
        raise ValueError(f"env {name!r} must have all methods of a problem; it lacks {lacking}")
    if isinstance(factory, Problem) and not kwargs:
        problem = factory
    else:
        try:
            problem = factory(**kwargs)
        except TypeError as error:
            if words := unknown_of_env(name, factory, kwargs, error):
                raise ValueError(words) from error
            given = f"env_kwargs must suit {name}; got {shown(kwargs)}"
            alone = f"env {name!r} must be what makes a problem, here without env_kwargs"
            raise ValueError(f"{given if kwargs else alone} ({words_of(error)})") from error
    if not isinstance(problem, Problem):
        raise ValueError(
            f"env {name!r} must be or return a girsanov Problem; got {type(problem).__name__}"
        )
    env = ProblemEnv(problem.to(place), **shell)
    env.fingerprint = fingerprint(env.problem)  # type: ignore[attr-defined]  # before agents adapt it
    return env


def resolve_device(device: str) -> str:
    """``auto`` is ``cuda`` where there is one, else ``cpu``; ``cuda:1`` is the second."""
    if not (isinstance(device, str) and DEVICES.fullmatch(device)):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {device!r}")
    if device.startswith("cuda"):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= found:
            there = f"{found} of them" if found else "no CUDA device"
            raise ValueError(
                f"device {device!r} was asked for, but torch finds {there}; use auto or cpu"
            )
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def imported(what: str, name: str) -> Any:
    """The object that ``module:attribute`` names, looked up where the command was called, too."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look where it is called
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what} must name module:attribute that can be imported; got {shown(name)}"
            f" ({words_of(error)})"
        ) from error
