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
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product, takewhile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .suggestions import did_you_mean

_KWARGS = ("env_kwargs", "agent_kwargs")
#: ``key=value``, or ``name.key=value``, whose name may hold dots and equals signs of its own.
_PAIR = re.compile(r"(?:(.+?)\.)??([^\W\d]\w*)=(.*)", re.S)
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
        out[key] = _literal(value)
    return out


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def by_agent(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``agent.key=value`` strings as a dict of dicts."""
    out: dict[str, dict[str, Any]] = {}
    for agent, key, value in _owned("agent-kwargs", given):
        if agent is None:
            raise ValueError(f"agent-kwargs must be agent.key=value pairs; got {key!r}")
        out.setdefault(agent, {})[key] = value
    return out


def of_envs(given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` strings, for every environment, as a dict; ``environment.key=value`` ones as a
    dict of dicts.
    """
    out: dict[str, Any] = {}
    for env, key, value in _owned("env-kwargs", given):
        if env is not None and env.isidentifier():
            raise ValueError(f"env-kwargs must be key=value pairs; got {f'{env}.{key}'!r}")
        (out if env is None else out.setdefault(env, {}))[key] = value
    return out


def _owned(name: str, given: Sequence[str]) -> Iterator[tuple[str | None, str, Any]]:
    """Whose, if it is told, which, and what."""
    for text in given:
        found = _PAIR.fullmatch(text)
        if found is None:
            raise ValueError(f"{name} must be key=value pairs; got {text!r}")
        yield found[1], found[2], _literal(found[3])


def by_name(env_kwargs: Mapping[str, Any]) -> bool:
    """Whether these are settings by environment: its name is no name of an argument.

    Raises:
        ValueError: some are, and some are for every environment.
    """
    flat = [key for key in env_kwargs if str(key).isidentifier()]
    named = [key for key in env_kwargs if not str(key).isidentifier()]
    if flat and named:
        raise ValueError(
            "env_kwargs must be arguments of every environment, or an object of them an"
            f" environment, by its name; got both: {flat} and {named}"
        )
    return bool(named)


def at(agent: str, env: str) -> str:
    """What names the settings of an agent on one environment of several."""
    return f"{agent} @ {env}"


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
    several = "agents" in _parameters(commands[given[0]])
    if several:
        _leave_out(settings, given, flags, commands[given[0]])
    for name in _KWARGS:  # merged: the command line's come later, and count
        flag = "--" + name.replace("_", "-")
        own = settings.pop(name, {})
        words = _words(name, own, several and (name == "agent_kwargs" or by_name(own)))
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


def _leave_out(
    settings: dict[str, Any], given: list[str], flags: list[str], command: Callable[..., Any]
) -> None:
    """Drop the settings of those whom the file names and the command line leaves out."""
    listed: dict[str, list[str]] = {}
    lost: dict[str, set[str]] = {}
    for name in ("agents", "envs"):
        flag, said = f"--{name}", settings.get(name, _parameters(command)[name].default)
        listed[name] = [str(item) for item in said] if isinstance(said, (list, tuple)) else []
        kept = _values(given, flags.index(flag)) if flag in flags else listed[name]
        lost[name] = set(listed[name]) - set(kept)
    pairs = product(listed["agents"], listed["envs"])
    together = {at(a, e) for a, e in pairs if a in lost["agents"] or e in lost["envs"]}
    for name, gone in (("agent_kwargs", lost["agents"] | together), ("env_kwargs", lost["envs"])):
        own = settings.get(name, {})
        settings[name] = {key: value for key, value in own.items() if key not in gone}


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


def _words(name: str, settings: Mapping[str, Any], nested: bool) -> list[str]:
    """``key=value`` words, or ``owner.key=value`` ones."""
    if not nested:
        return [f"{key}={value!r}" for key, value in settings.items()]
    if not all(isinstance(own, dict) for own in settings.values()):
        owner = {"agent_kwargs": "agent", "env_kwargs": "environment"}[name]
        raise ValueError(f"config: {name} must hold an object an {owner}; got {settings!r}")
    return [
        f"{owner}.{key}={value!r}" for owner, own in settings.items() for key, value in own.items()
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
