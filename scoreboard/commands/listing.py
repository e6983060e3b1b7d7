"""What there is: environments, agents, rewards, and the arguments of each."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...envs import NEED_DIFFUSERS, NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS
from ...envs.extras import install_command
from ..registry import AGENTS, Agent, imported
from .arguments import (
    Argument,
    agent_arguments,
    agent_class,
    arguments_of,
    check_name,
    env_arguments,
    is_problem,
    makes_agents,
)

_WIDTH = 100


def everything() -> str:
    """All names, a line each."""
    envs = {name: _sentence(_made_by(name)) + _needs(name) for name in sorted(PROBLEMS)}
    agents = {
        name: f"{_sentence(agent_class(name))} Needs: {agent.access}."
        for name, agent in AGENTS.items()
    }
    hint = f"{program()} show NAME tells the arguments. Your own goes by module:attribute."
    parts = [_titled("environments", envs), _titled("agents", agents), hint]
    return "\n\n".join(parts)


def one(name: str) -> str:
    """An environment or an agent: what it is, and its arguments with their defaults.

    Raises:
        ValueError: there is none of that name.
    """
    full = name if name in PROBLEMS or name in AGENTS else f"girsanov/{name}"
    full = full if full in PROBLEMS or full in AGENTS else f"girsanov/{name}-v0"
    if full in PROBLEMS:
        about, arguments = _made_by(full), env_arguments(full)
        return _page(full, about, _needs(full).strip(), arguments, "env")
    if name in AGENTS:
        about, arguments = agent_class(name), agent_arguments(name)
        return _page(name, about, f"Needs: {AGENTS[name].access}.", arguments, "agent")
    check_name("name", name, [*PROBLEMS, *AGENTS])
    found = imported("name", name)
    make = found.make if isinstance(found, Agent) else found
    kind = "agent" if make is not found or makes_agents(found) else "env"
    if not (callable(make) or is_problem(make)):
        raise ValueError(f"name must be a problem, an agent, or what makes one; got {found!r}")
    about = type(make) if is_problem(make) and not isinstance(make, type) else make
    return _page(name, about, "", arguments_of(make, kind) if callable(make) else {}, kind)


def _page(name: str, about: Any, needs: str, arguments: Mapping[str, Argument], kind: str) -> str:
    how = f"{program()} run --{kind} {name} --{kind}-kwargs name=value ..."
    sentence = _sentence(about)
    head = [f"{name}: {sentence}" if sentence else name, needs]
    return "\n\n".join([*filter(None, head), _table(arguments), how])


def program() -> str:
    """How this was called: ``girsanov``, or ``python train.py`` from a checkout."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else "girsanov"


def _made_by(env: str) -> Any:
    make: Any = PROBLEMS[env]
    return make.load() if hasattr(make, "load") else make


def _needs(env: str) -> str:
    if env in NEED_MUJOCO:
        return f" Needs: {install_command('mujoco')}"
    if env in NEED_DIFFUSERS:
        weights = ", and weights." if env in NEED_WEIGHTS else ""
        return f" Needs: {install_command('sd')}{weights}"
    return ""


def _sentence(thing: Any) -> str:
    """The first sentence of a docstring, or of its module's where it begins with the bare id."""
    doc = getattr(thing, "__doc__", None) or ""  # not that of the classes above
    text = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())
    if text.startswith("``girsanov/"):
        _, colon, rest = text.partition("``: ")
        text = rest if colon else " ".join((inspect.getdoc(inspect.getmodule(thing)) or "").split())
    first = text.partition(". ")[0].partition(", This impl")[0].replace("``", "").rstrip(".")
    first = first.removesuffix("; see the module")
    return first[:1].upper() + first[1:] + "." if first else ""


def _titled(title: str, entries: Mapping[str, str]) -> str:
    wide = max(len(name) for name in entries) + 2
    lines = [_wrapped(f"  {name:<{wide}}", about) for name, about in entries.items()]
    return "\n".join([f"{title}:", *lines])


def _table(arguments: Mapping[str, Argument]) -> str:
    if not arguments:
        return "(no arguments are known)"
    lines = [
        _wrapped(f"  {argument.name} = {argument.default}  ", argument.about.replace("``", ""))
        for argument in arguments.values()
    ]
    return "\n".join(["arguments:", *lines])


def _wrapped(head: str, about: str) -> str:
    indent = " " * min(len(head), 30)
    return textwrap.fill(about, _WIDTH, initial_indent=head, subsequent_indent=indent) or head
