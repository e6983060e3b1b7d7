"""The card of a folder of trained agents: what the Hugging Face hub shows, and its search reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..plots import name_of
from ..spec import base_of, slug
from ..storage.files import escaped_within, printable

_METRICS = {"score": "score", "objective": "objective", "kl": "KL (nats)", "success": "success"}
_NOTES = """Score 0 is the pre-trained model, 1 the bound of Donsker and Varadhan (or the exact
optimum, where it is known): objective = reward - temperature x KL, on fresh paths. Models are
safetensors and JSON; loading them runs no code."""


def card(runs: Sequence[dict[str, Any]], repo: str = "") -> str:
    """The card as Markdown, with the hub's metadata before it.

    Args:
        runs: records of finished runs, as ``archive.finished`` gives them.
        repo: its name on the hub, ``owner/name``, if it has one.
    """
    envs = list(dict.fromkeys(base_of(run["spec"]["env"]) for run in runs))
    metadata = {
        "library_name": "girsanov",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "stable-baselines3", "girsanov", *map(slug, envs)],
        "model-index": [_entry(run) for run in runs],
    }
    head = "\n".join(f"{name}: {json.dumps(value)}" for name, value in metadata.items())
    title = f"# Trained agents: {', '.join(slug(str(env)) for env in envs)}"
    parts = [f"---\n{head}\n---", title, _NOTES, _table(runs), _usage(runs, repo), _made(runs)]
    return "\n\n".join(parts) + "\n"


def _entry(run: dict[str, Any]) -> dict[str, Any]:
    """One line of the hub's ``model-index``."""
    spec, final = run["spec"], run["final"]
    metrics = [
        {"type": name, "name": words, "value": final[name]}
        for name, words in _METRICS.items()
        if final.get(name) is not None
    ]
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    dataset = {"type": base_of(spec["env"]), "name": spec["env"]}
    return {
        "name": f"{spec['agent']}, seed {spec['seed']}",
        "results": [{"task": task, "dataset": dataset, "metrics": metrics}],
    }


def _table(runs: Sequence[dict[str, Any]]) -> str:
    heads = ["environment", "agent", "seed", *_METRICS.values(), "reward queries", "CPU seconds"]
    lines = [heads, ["---"] * len(heads)]
    for run in map(escaped_within, runs):
        spec, final = run["spec"], run["final"]
        cells = [slug(spec["env"]), name_of(spec["agent"]), str(spec["seed"])]
        for name in _METRICS:
            value, error = final.get(name), final.get(f"{name}_stderr")
            cells.append("" if value is None else f"{value:.3f} (s.e. {error or 0:.3f})")
        cells += [f"{final['reward_queries']:,}", f"{final.get('cpu_seconds', 0):,.0f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _usage(runs: Sequence[dict[str, Any]], repo: str) -> str:
    spec = runs[0]["spec"]
    name = json.dumps(f"{spec['agent']}/{slug(spec['env'])}")
    names, folder = "zoo", '"path/to/this/folder"'
    if repo:
        names, folder = "from_hub, zoo", f'from_hub({json.dumps(repo)}, "agents")'
    lines = [f"from girsanov import {names}", "", f"agent = zoo.load({name}, {folder})"]
    return "\n".join(["```python", *lines, "```"])


def _made(runs: Sequence[dict[str, Any]]) -> str:
    commands = dict.fromkeys(" ".join(printable(run["command"]).split()) for run in runs)
    lines = [f"- `{command.replace('`', chr(39))}`" for command in commands if command]
    versions = escaped_within(runs[0]["versions"])
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join(["Made by", "", *lines, f"- {told}"])
