"""Which arguments agents and environments take, and what somebody may have meant who wrote another.

Read from signatures and docstrings along the classes that pass ``**kwargs`` on, so nothing is
listed twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from importlib import import_module
from typing import Any, NamedTuple, get_type_hints

from docstring_parser import parse

from ...envs import PROBLEMS
from ...envs.checks import shown, words_of
from ...envs.problem import Problem
from ..learners import AGENTS
from ..spec import base_of
from .suggestions import did_you_mean

_METHODS = "girsanov.baselines.fine_tuning_methods"
#: The class behind an agent's name, and the table of settings that it starts from.
_CLASSES = {
    "pde": ("girsanov.agents", "PDE"),
    "pde-mou": ("girsanov.agents.pde.mou.agent", "MouPDE"),
    "pi-ft": ("girsanov.agents", "PIFT"),
    "pi-ft-algorithm1": ("girsanov.agents", "PIFT"),
    "ppo": ("stable_baselines3", "PPO"),
    "sac": ("stable_baselines3", "SAC"),
    "ppo-control": ("stable_baselines3", "PPO"),
    "sac-control": ("stable_baselines3", "SAC"),
    "dyna": ("girsanov.baselines.dyna", "Dyna"),
    "dpok": (f"{_METHODS}.dpok", "DPOK"),
    "ddpo": (f"{_METHODS}.ddpo", "DDPO"),
    "adjoint-matching": (f"{_METHODS}.adjoint_matching", "AdjointMatching"),
    "grpo": (f"{_METHODS}.grpo", "GRPO"),
    "draft": (f"{_METHODS}.draft", "DRaFT"),
    "log-variance": (f"{_METHODS}.log_variance", "LogVariance"),
    "best-of-n": ("girsanov.baselines.guided_agents", "BestOfN"),
    "feynman-kac": ("girsanov.baselines.guided_agents", "FeynmanKac"),
    "posterior-guidance": ("girsanov.baselines.guided_agents", "PosteriorGuidance"),
}
_STRONG = "girsanov.baselines.hyperparameters"
_CONTROL = "girsanov.baselines.hyperparameters_control"
_TABLES = {
    "ppo": (_STRONG, "PPO"),
    "sac": (_STRONG, "SAC"),
    "dyna": (_STRONG, "PPO"),  # of the PPO that dreams
    "ppo-control": (_CONTROL, "PPO"),
    "sac-control": (_CONTROL, "SAC"),
}
#: Where the arguments are that hold settings, each of which is an argument too.
_GROUPS = {"pde": "girsanov.agents.pde.settings"}
#: Set by the scoreboard, or by who makes the agent.
_NOT_YOURS = {"self", "env", "seed", "device", "_init_setup_model", "tensorboard_log", "verbose"}
_NOT_YOURS |= {"total_timesteps"}


class Argument(NamedTuple):
    """An argument and what is known of it."""

    name: str
    default: str  # as Python writes it; "required" where there is none
    about: str  # from the docstring; may be empty


#: What the environment around a problem takes.
_SHELL = (
    Argument("action_bound", "1.0", "largest action in any coordinate"),
    Argument("actions", "'control'", "control, or noise"),
    Argument("observation", "'state'", "state, or features"),
)


def check_name(kind: str, given: str, known: Iterable[str]) -> None:
    """Raise a ValueError that says what was perhaps meant, unless ``given`` is known, or
    ``module:attribute``.
    """
    known = sorted(known)
    if given not in known and ":" not in given:
        hint = did_you_mean(given, known)
        raise ValueError(f"{kind} must be one of {known} or module:attribute; got {given!r}{hint}")


def suggestions(given: Iterable[str], known: Mapping[str, Argument]) -> str:
    """What to add to an error about keyword arguments: for each unknown one what is near, else the
    list.
    """
    unknown = [name for name in given if name not in known]
    if not (unknown and known):
        return ""
    hints = [f"{name!r}{did_you_mean(name, known)}" for name in unknown]
    listed = "" if all("?" in hint for hint in hints) else f"; there are {', '.join(known)}"
    return f": unknown {', '.join(hints)}{listed}"


def unsuitable(agent: str, given: Mapping[str, Any], error: Exception) -> ValueError:
    """What to say of an agent that could not be made of ``agent_kwargs``."""
    if not given:
        wanted = "make an algorithm or a policy of an environment, here without agent_kwargs"
        return ValueError(f"agent {agent!r} must {wanted} ({words_of(error)})")
    hint = suggestions(given, agent_arguments(agent))
    got = f"{shown(dict(given))} ({words_of(error)})"
    return ValueError(f"agent_kwargs must suit {agent}; got {got}{hint}")


def unknown_of_env(
    name: str, make: Callable[..., Any], given: Mapping[str, Any], error: TypeError
) -> str:
    """What to say of ``env_kwargs`` that Python refused for an argument's name; nothing where it
    refused them for something else, or the names that there are can't be read.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    try:
        known = list(env_arguments(name) if name in PROBLEMS else arguments_of(make, "env"))
    except (TypeError, ValueError, NameError):  # no signature, or hints of names that are not there
        return ""
    if found is None or found[1] not in given or found[1] in known:
        return ""
    known += [argument.name for argument in _SHELL if argument.name not in known]
    hint = did_you_mean(found[1], known)
    return f"env_kwargs of {name} must be among {', '.join(known)}; got {found[1]!r}{hint}"


def agent_class(name: str) -> Any:
    """The class behind an agent's name, or what makes it."""
    if name not in _CLASSES:
        return AGENTS[name].make
    module, attribute = _CLASSES[name]
    return getattr(import_module(module), attribute)


def agent_arguments(name: str) -> dict[str, Argument]:
    """The arguments that ``agent_kwargs`` may hold; empty where they can't be known."""
    name = base_of(name)
    if name not in _CLASSES:
        return {}
    kind = agent_class(name)
    groups = import_module(_GROUPS[name]).GROUPS if name in _GROUPS else {}
    found: dict[str, Argument] = {}
    for key, argument in _arguments(kind):  # a group of settings is told as what is in it
        group = groups.get(key)
        found |= {key: argument} if group is None else dict(_arguments(group))
    if name in _TABLES:
        module, table = _TABLES[name]
        default = getattr(import_module(module), table)["default"]
        extra = {
            "action_bound": "a tighter box of actions, in noise units",
            "activation": "of the networks, a name in torch.nn",
            "anneal": "let the learning rate fall linearly to zero",
            "control_bound": "largest control in any coordinate",
            "log_std_init": "log of the first exploration noise",
            "n_envs": "lanes of the vector environment",
            "net_arch": "widths of the networks",
            "observation": "state or features; the table's, else the environment's",
        }
        for key, about in extra.items():
            if key not in default and key not in ("action_bound", "observation"):
                continue
            found[key] = Argument(key, repr(default.get(key)), about)
        if name in ("ppo", "sac"):
            about = "keep what they learn from as tensors on the problem's device"
            found["on_device"] = Argument("on_device", "False", about)
        for key, value in default.items():
            if key in found:
                found[key] = found[key]._replace(default=repr(value))
    return found


def is_problem(found: Any) -> bool:
    """Whether something is a Problem, or a class of them."""
    return isinstance(found, Problem) or (isinstance(found, type) and issubclass(found, Problem))


def makes_agents(make: Any) -> bool:
    """Whether something of your own has to be given an environment, as what makes agents has."""
    if not callable(make) or is_problem(make):
        return False
    parameters = list(inspect.signature(make).parameters.values())[:1]
    return any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)


def arguments_of(make: Callable[..., Any], kind: str) -> dict[str, Argument]:
    """The arguments of what makes an ``env`` or an ``agent`` of your own."""
    found = dict(_arguments(make))
    if kind == "agent":  # the environment comes first, whatever its name
        found.pop(next(iter(inspect.signature(make).parameters)), None)
    return found


def env_arguments(name: str) -> dict[str, Argument]:
    """The arguments that ``env_kwargs`` may hold for an id; ``action_bound`` is the
    environment's.
    """
    make: Any = PROBLEMS.get(name)
    if not hasattr(make, "load"):
        return {}
    make = make.load()
    found = dict(_arguments(make))
    return {**{argument.name: argument for argument in _SHELL}, **found}


def _arguments(make: Callable[..., Any]) -> Iterator[tuple[str, Argument]]:
    seen: set[str] = set()
    for place, callable_ in enumerate(_chain(make)):
        signature = inspect.signature(callable_)
        described = {
            entry.arg_name: " ".join((entry.description or "").split())
            for entry in parse(inspect.getdoc(callable_) or "").params
        }
        for name, parameter in signature.parameters.items():
            if name in seen | _NOT_YOURS or parameter.kind in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                continue
            seen.add(name)
            required = parameter.default is parameter.empty
            if required and place:  # given by who passes the others on
                continue
            default = "required" if required else _written(parameter.default)
            yield name, Argument(name, default, described.get(name, ""))


def _chain(make: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """``make``, and those to whom it passes ``**kwargs``: the classes above it; whose arguments its
    docstring says they are; or the class that it returns.
    """
    if isinstance(make, type):
        for base in make.__mro__:
            if "__init__" in vars(base) and base is not object:
                yield base
                if not _passes_on(base):
                    return
        return
    yield make
    if _passes_on(make):
        target = getattr(make, "__self__", None) or _named(make)
        target = target or get_type_hints(make).get("return")
        if callable(target):
            yield from _chain(target)


def _named(make: Callable[..., Any]) -> Any:
    """What "``**others``: further arguments of ``X``" in a docstring names, if it does."""
    found = re.search(r"\*\*\w+: [\w ]*arguments of ``([\w.]+)``", inspect.getdoc(make) or "")
    place = vars(inspect.getmodule(inspect.unwrap(make)) or object)
    first, *rest = found[1].split(".") if found else ("",)
    return reduce(lambda part, name: getattr(part, name, None), rest, place.get(first))


def _passes_on(make: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(make).parameters.values())


def _written(default: Any) -> str:
    return default.__name__ if isinstance(default, type) else repr(default)


def check_names(env: str, agent: str) -> None:
    """``check_name`` of both names of a run."""
    check_name("env", base_of(env), PROBLEMS)
    check_name("agent", base_of(agent), AGENTS)
