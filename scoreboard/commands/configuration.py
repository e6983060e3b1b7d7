"""Settings of a command in one JSON or YAML file: its own arguments, by their names.

    {"env": "girsanov/Digits-v0", "agent": "pde", "agent_kwargs": {"batch_size": 256}}

The nested form of ``spec.json`` is read too: ``budget`` as ``{"amount": 2000, "unit":
"reward_queries"}``, and ``plan``. ``about`` is a note. What else is given on the command line comes
on top.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .suggestions import did_you_mean

_KWARGS = ("env_kwargs", "agent_kwargs")
#: Arguments that no file holds.
_NOT_KEPT = ("config", "dry_run")
_BRACKETS = 1000  #: in a YAML file at most
_TYPES = {int: "integer", float: "number", str: "string", Path: "string", bool: "boolean"}


def pairs(name: str, given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` strings as a dict, values read as Python literals where they are such."""
    out = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"{name} must be key=value pairs; got {text!r}")
        try:
            out[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[key] = value
    return out


def by_agent(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``agent.key=value`` strings as a dict of dicts."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in pairs("agent-kwargs", given).items():
        agent, dot, name = key.rpartition(".")
        if not (agent and dot):
            raise ValueError(f"agent-kwargs must be agent.key=value pairs; got {key!r}")
        out.setdefault(agent, {})[name] = value
    return out


def expanded(arguments: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The command line with the settings of the file that ``--config`` names written out, but those
    that it gives itself.
    """
    given = list(arguments)
    flags = [text.split("=")[0].replace("_", "-") for text in given]
    if not given or "config" not in _parameters(commands.get(given[0])) or "--config" not in flags:
        return given
    at = flags.index("--config")
    path = given[at].partition("=")[2] or (given[at + 1] if at + 1 < len(given) else "")
    if not path:
        return given
    settings = read(Path(path), commands[given[0]])
    if "--agents" in flags and isinstance(own := settings.get("agent_kwargs"), dict):
        usual = _parameters(commands[given[0]])["agents"].default
        chosen, listed = _values(given, flags.index("--agents")), settings.get("agents", usual)
        left_out = set(listed) - set(chosen)  # by the command line: no settings for them
        settings["agent_kwargs"] = {k: v for k, v in own.items() if k not in left_out}
    for name in _KWARGS:  # merged: the command line's come later, and count
        flag = "--" + name.replace("_", "-")
        nested = name == "agent_kwargs" and "agents" in _parameters(commands[given[0]])
        words = _words(settings.pop(name, {}), nested)
        if words and flag in flags:
            place = flags.index(flag) + 1
            given[place:place] = words
            flags[place:place] = words
        elif words:
            given, flags = [*given, flag, *words], [*flags, flag, *words]
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if flag not in flags and value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            given += [flag, *map(str, values)]
    return given


def _values(arguments: Sequence[str], at: int) -> list[str]:
    """What follows the flag at that place."""
    return list(takewhile(lambda text: not text.startswith("--"), arguments[at + 1 :]))


def read(path: Path, command: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a file, flat.

    Raises:
        ValueError: it can't be read, or says what the command does not take.
    """
    yaml_file = path.suffix in (".yaml", ".yml")
    kind = "YAML" if yaml_file else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        from ...agents.archive import parse_json  # here: help needs no torch

        values = _yaml(text) if yaml_file else parse_json(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"config must be a readable {kind} file; got {str(path)!r} ({error})"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"config must hold an object of settings; {str(path)!r} does not")
    values.pop("about", None)
    if isinstance(values.get("budget"), dict):
        budget = values.pop("budget")
        values |= {"budget": budget.get("amount"), "budget_unit": budget.get("unit")}
    plan = values.pop("plan", {})
    if not isinstance(plan, dict):
        from ...envs.checks import shown

        raise ValueError(f"config: plan must be an object; got {shown(plan)}")
    values |= plan
    known = [name for name in _parameters(command) if name not in _NOT_KEPT]
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"config must hold arguments of {command.__name__}, {known}; {str(path)!r} holds"
                f" {name!r}{did_you_mean(name, known)}"
            )
        if (name in _KWARGS) != isinstance(value, dict):
            wanted = "an object" if name in _KWARGS else "a value or a list"
            raise ValueError(f"config: {name} must be {wanted}; got {value!r}")
    return values


def schema(command: Callable[..., Any]) -> dict[str, Any]:
    """The JSON Schema of a command's settings file."""
    from docstring_parser import parse

    described = {
        entry.arg_name: " ".join((entry.description or "").split())
        for entry in parse(inspect.getdoc(command) or "").params
    }
    hints = get_type_hints(command)
    properties: dict[str, Any] = {"about": {"type": "string", "description": "a note"}}
    for name, parameter in _parameters(command).items():
        if name in _NOT_KEPT:
            continue
        kind = {"type": "object"} if name in _KWARGS else _kind(hints[name])
        properties[name] = {**kind, "description": described.get(name, "")}
        default = parameter.default
        if name not in _KWARGS and default is not parameter.empty and default is not None:
            plain = list(default) if isinstance(default, tuple) else default
            properties[name]["default"] = str(plain) if isinstance(plain, Path) else plain
    nested = {"type": "object", "description": "amount and unit"}
    properties["budget"] = {"anyOf": [properties["budget"], nested]} | {
        "description": described["budget"]
    }
    properties["plan"] = {"type": "object", "description": "the evaluation's numbers, together"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"girsanov {command.__name__} --config",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _kind(get_args(hint)[0])}
    options = [option for option in get_args(hint) if option is not type(None)] or [hint]
    return {"type": _TYPES[options[0]]}


def _parameters(command: Callable[..., Any] | None) -> Mapping[str, inspect.Parameter]:
    return {} if command is None else inspect.signature(command).parameters


def _words(settings: Mapping[str, Any], nested: bool) -> list[str]:
    """``key=value`` words, or ``agent.key=value`` ones."""
    if not nested:
        return [f"{name}={value!r}" for name, value in settings.items()]
    if not all(isinstance(own, dict) for own in settings.values()):
        raise ValueError(f"config: agent_kwargs must hold an object an agent; got {settings!r}")
    return [
        f"{agent}.{name}={value!r}"
        for agent, own in settings.items()
        for name, value in own.items()
    ]


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ValueError("YAML needs PyYAML: pip install pyyaml") from error
    if text.count("[") + text.count("{") > _BRACKETS:  # PyYAML takes the square of their number
        raise ValueError(f"it must have at most {_BRACKETS} brackets")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases are not taken: a few lines of them make any amount")
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for a word, and nobody means that."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    exponent = isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value)
    return float(value) if exponent else value
