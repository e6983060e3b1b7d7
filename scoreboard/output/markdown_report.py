"""The report as Markdown."""

from __future__ import annotations

from textwrap import TextWrapper
from typing import Any
from urllib.parse import quote

from ...envs.problem import Estimate
from ..evaluation import Reference
from ..intervals import FEWEST, Interval
from ..plots import name_of
from ..storage.files import escaped_within, printable
from . import bounds, levels, sampling_costs, unfinished
from .tables import table

_UNIT_WORDS = {
    "env_steps": "env steps",
    "reward_queries": "reward queries",
    "seconds": "seconds",
    "model_evaluations": "model evaluations",
    "cpu_seconds": "CPU seconds",
}
_NOTES = """`score = (J - J(0)) / (J_ref - J(0))`: 0 is the pre-trained model, 1 is J_ref, the exact
optimum where it is known. Else J_ref lies between the best J that anybody reached and the bound,
and a score between two values: against the bound, and against the best. So the second number is
1.000 for the best run whatever it is worth: it compares the agents, and (best) marks whose it is.
J = reward - temperature x KL, on fresh paths that cost no budget.

Every figure over seeds is an interquartile mean, brackets are its 95% stratified bootstrap interval
(as rliable computes them): the spread of seeds and of their evaluations, not the error of the
bound. Five seeds give rough ones, fewer no verdict. Seconds are training time without evaluation;
model evaluations are calls of the transition or the denoiser while learning. Agents with the same
seed are evaluated on the same noises: differences are paired by seed. **Bold** is the winner of an
access class: clearly better, pair by pair, than every other method that may use the same. Across
classes nothing is claimed."""


def markdown(summary: dict[str, Any]) -> str:
    """The whole report of ``report.report``'s summary, in which every text counts as words."""
    commands = [" ".join(printable(text).split()) for text in summary["commands"]]
    pictures = [env["pictures"] for env in summary["environments"]]  # quoted where they are named
    summary = {**escaped_within(summary), "commands": [text.replace("`", "'") for text in commands]}
    for env, drawn in zip(summary["environments"], pictures, strict=True):
        env["pictures"] = drawn
    parts = ["# Report", _NOTES, *levels.told(summary)]
    parts += map(_environment, summary["environments"])
    if summary["overall"]:
        parts += ["## All environments", _overall(summary["overall"])]
    parts += unfinished.told(summary)
    parts.append(_made_with(summary))
    lines = "\n\n".join(parts).splitlines()
    return "\n".join(_wrapped(line) for line in lines) + "\n"


def _wrapped(line: str) -> str:
    """Prose in lines of 100 characters; tables, headings, pictures and code stay as they are."""
    if line.startswith(("|", "#", "!")) or "`" in line:
        return line
    indent = "  " if line.startswith("- ") else ""
    wrapper = TextWrapper(100, subsequent_indent=indent, break_on_hyphens=False)
    wrapper.break_long_words = False
    return wrapper.fill(line)


def _environment(env: dict[str, Any]) -> str:
    settings = "".join(f", {key}={value}" for key, value in env["env_kwargs"].items())
    parts = [
        f"## {name_of(env['env'])}",
        (
            f"Temperature {env['temperature']:g}, {env['horizon']} steps{settings}."
            f" {_budgets(env['budgets'])}"
        ),
        bounds.told(env["reference"]),
        _agents(env),
        *(f"Note: {note}." for note in env.get("notes", ())),
        *sampling_costs.told(env["agents"]),
    ]
    if env["equal_cost"]:
        told = "Read off the learning curves where the cheapest run stops."
        parts += [
            f"### {env['compared'].capitalize()} at equal cost\n\n{told}{_without(env)}",
            _equal_cost(env),
        ]
    if len(env["agents"]) > 1 and env["equal_cost"]:
        told = (
            "Env steps, calls of the model where they were counted, and seconds, until an agent's"
            " curve is where another's ends; medians over seeds."
        )
        parts += [f"### The cost of another's {env['compared']}\n\n{told}", _cost_of_equals(env)]
    if env["differences"]:
        parts += [
            f"### Differences in {env['compared']}, paired by seed",
            _differences(env),
        ]
    parts += [
        f"![{name.replace('_', ' ')}]({quote(path)})" for name, path in env["pictures"].items()
    ]
    return "\n\n".join(parts)


def _budgets(budgets: list[dict[str, Any]]) -> str:
    words = [f"{budget['amount']:g} {_UNIT_WORDS[budget['unit']]}" for budget in budgets]
    return (
        f"Budget: {words[0]} for each run."
        if len(words) == 1
        else f"**Budgets differ**: {'; '.join(words)}."
    )


def _agents(env: dict[str, Any]) -> str:
    reference = Reference.from_json(env["reference"])
    success = reference.success is not None
    shares = ["success"] if success else []
    costs = [unit for unit in _UNIT_WORDS if all(a.get(unit) for a in env["agents"])]
    classes = ["access class"] if any(a["access_class"] for a in env["agents"]) else []
    heads = ["agent", *classes, "score", "objective", "reward", "KL (nats)", *shares]
    heads += ["J <= bound + 3 s.e.", *(_UNIT_WORDS[unit] for unit in costs), "access"]
    rest = [""] * (len(costs) + 2)
    no_score = _no_score(reference)
    best = None if reference.best is None else reference.best.by
    rows = []
    for first, *cells in _reference_rows(env, reference):
        rows.append([first, *([""] * len(classes)), *cells, *rest])
    for agent in env["agents"]:
        seeds, holds = len(agent["seeds"]), agent["certificate_holds"]
        score, mark = _score(agent, no_score, best), "**" if agent["best_of_class"] else ""
        cells = [f"{name_of(agent['agent'])} ({seeds} seed{'s' if seeds > 1 else ''})"]
        cells += [agent["access_class"] or "" for _ in classes]
        cells.append(f"{mark}{score}{mark}")
        cells += [_cell(agent[name]) for name in ("objective", "reward", "kl", *shares)]
        cells.append("not certified" if holds is None else f"{holds} of {seeds}")
        cells += [f"{agent[unit]['iqm']:,.{1 if 'seconds' in unit else 0}f}" for unit in costs]
        rows.append([*cells, agent["access"]])
    return table(heads, rows)


def _no_score(reference: Reference) -> str:
    """Why there is no score, where there is none (``Reference.score``)."""
    if reference.target is not None:
        return "nothing to gain"
    return (
        "refuted"
        if any(c.certified for c in bounds.certificates_of(reference))
        else "not certified"
    )


def _score(agent: dict[str, Any], no_score: str, best: str | None) -> str:
    """The score over seeds, from its lower end to its upper one, the brackets around both, and a
    mark where the upper one is against a run of its own.
    """
    low, high = agent["score"], agent["score_of_best"]
    if low is None:
        known = high is not None and no_score != "nothing to gain"
        return f"{no_score}; at most {_cell(high)}" if known else no_score
    if high is None or f"{low['iqm']:.3f}" == f"{high['iqm']:.3f}":
        return _cell(low)
    text = f"{low['iqm']:.3f} to {high['iqm']:.3f}"
    text += "" if low["low"] is None else f" [{low['low']:.3f}, {high['high']:.3f}]"
    return f"{text} (best)" if agent["agent"] == best else text


def _overall(agents: list[dict[str, Any]]) -> str:
    rows = [[name_of(line["agent"]), f"{line['tasks']}", _cell(line)] for line in agents]
    return table(["agent", "environments", "score (lower end)"], rows)


def _reference_rows(env: dict[str, Any], reference: Reference) -> list[list[str]]:
    """What no agent has learnt: the pre-trained model, a closed form, and the bound where its paths
    tell how often it succeeds.
    """
    worth, closed = f"{reference.uncontrolled.mean:.3f}", reference.closed_form
    start = _plain(env["uncontrolled_score"])
    rows = [["pre-trained", start, worth, worth, "0.000", _mean(reference.success)]]
    if closed is not None:
        share, known = reference.closed_form_success, env["closed_form_score"]
        told = _plain(None if known is None else known["mean"])
        rows.append(["closed form", told, *map(_mean, closed), _mean(share)])
    if reference.optimum is None and reference.success_at_bound is not None:
        middle, low, high = reference.success_at_bound
        target = reference.target
        score = None if target is None else reference.score(target)
        told = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
        rows.append(["at the bound", _mean(score), _mean(target), "", "", told])
    return rows if reference.success is not None else [row[:-1] for row in rows]


def _mean(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:.3f}"


def _equal_cost(env: dict[str, Any]) -> str:
    names = [agent["agent"] for agent in env["agents"]]
    rows = []
    for line in env["equal_cost"]:
        cells = [
            f"{line['amount']:,.{1 if 'seconds' in line['unit'] else 0}f}"
            f" {_UNIT_WORDS[line['unit']]}"
        ]
        for name in names:
            if line["agents"][name] is None:
                cells.append("no curve")
                continue
            solved = (
                "" if line["success"] is None else f"; {line['success'][name]['iqm']:.0%} succeed"
            )
            cells.append(f"{_cell(line['agents'][name])}{solved}")
        rows.append(cells)
    return table(["at", *map(name_of, names)], rows)


def _without(env: dict[str, Any]) -> str:
    """Who has no learning curve, in words."""
    names = [agent["agent"] for agent in env["agents"]]
    lacking = [name_of(name) for name in names if name not in env["cost_of_equals"][0]["spent"]]
    if not lacking:
        return ""
    return (
        f" {', '.join(lacking)}: no curve, as it was measured before and after learning alone. It"
        " counts from its own end on."
    )


def _cost_of_equals(env: dict[str, Any]) -> str:
    names = list(env["cost_of_equals"][0]["spent"])
    rows = []
    for line in env["cost_of_equals"]:
        spent = [line["spent"][name] for name in names]
        cells = ["never" if s["env_steps"] is None else _spent(s) for s in spent]
        goal = env["compared"] if line["agent"] is None else f"{name_of(line['agent'])}:"
        rows.append([f"{goal} {line['target']:.3f}", *cells])
    return table(["to be as good as", *map(name_of, names)], rows)


def _spent(amounts: dict[str, float]) -> str:
    calls = amounts.get("model_evaluations")
    told = "" if calls is None else f"{calls:,.0f} calls; "
    return f"{amounts['env_steps']:,.0f}; {told}{amounts['seconds']:,.1f} s"


def _differences(env: dict[str, Any]) -> str:
    classes = {agent["agent"]: agent["access_class"] for agent in env["agents"]}
    told = any(classes.values())
    rows = []
    for line in env["differences"]:
        low, high, first, second = line["low"], line["high"], line["first"], line["second"]
        if low is None or high is None or line["n"] < FEWEST:
            clear = "too few seeds" if line["n"] > 1 else "one seed"
        else:
            clear = "yes" if low > 0 or high < 0 else "no"
        same = "same" if classes[first] == classes[second] else "differs: no claim"
        pair = f"{name_of(first)} - {name_of(second)}"
        rows.append([pair, _cell(line), clear, *([same] if told else [])])
    heads = ["pair", "difference [95% interval]", "interval leaves out 0"]
    return table([*heads, *(["access class"] if told else [])], rows)


def _made_with(summary: dict[str, Any]) -> str:
    lines = ["## Made with"]
    lines += [f"- Command: `{command}`" for command in summary["commands"]]
    for found in summary["hardware"]:
        gpu = f", {found['gpu']}" if found["gpu"] else ", no GPU"
        cores = f"{found['cores']} core{'s' * (found['cores'] != 1)}"
        told = (
            f"{found['cpu']}, {cores}{gpu}; {found['system']}; device"
            f" {found['device']}, {found['threads']} thread(s) a run"
        )
        lines.append(f"- Hardware: {told}")
    for versions in summary["versions"]:
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"- Versions: {told}")
    return "\n".join([lines[0], "", *lines[1:]])


def _cell(value: dict[str, Any] | None) -> str:
    return "" if value is None else str(Interval(**{key: value[key] for key in Interval._fields}))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
