"""The report as Markdown."""

from __future__ import annotations

from typing import Any

from .intervals import Interval

_UNIT_WORDS = {"env_steps": "env steps", "reward_queries": "reward queries", "seconds": "seconds"}
_NOTES = """`score = (J - J(0)) / (J_ref - J(0))`: 0 is the pre-trained model, 1 is J_ref, the exact
optimum where there is one, else the certificate (no policy can be worth more than it; for given
starts, where it was taken so). Brackets: 95% confidence interval over seeds (Student's t). J =
reward - temperature x KL, measured on fresh paths that cost no budget. Seconds are training time
without evaluation. Agents with the same seed are evaluated on the same noises: differences are
paired by seed."""


def markdown(summary: dict[str, Any]) -> str:
    """The whole report of ``report.report``'s summary."""
    parts = ["# Report", _NOTES, *(_environment(env) for env in summary["environments"])]
    if summary["unfinished"]:
        parts.append(
            f"**Not finished** (the same command continues): {', '.join(summary['unfinished'])}."
        )
    parts.append(_made_with(summary))
    return "\n\n".join(parts) + "\n"


def _environment(env: dict[str, Any]) -> str:
    settings = "".join(f", {key}={value}" for key, value in env["env_kwargs"].items())
    parts = [
        f"## {env['env']}",
        (
            f"Temperature {env['temperature']:g}, {env['horizon']} steps{settings}."
            f" {_budgets(env['budgets'])}"
        ),
        _certificate(env["reference"]),
        _agents(env),
        (
            f"### {env['compared'].capitalize()} at equal cost\n\nRead off the learning curves"
            " where the cheapest run stops."
        ),
        _equal_cost(env),
    ]
    if len(env["agents"]) > 1:
        told = (
            "Env steps, and seconds, until an agent's curve is where another's ends; medians over"
            " seeds."
        )
        parts += [f"### The cost of another's {env['compared']}\n\n{told}", _cost_of_equals(env)]
    if env["differences"]:
        parts += [
            f"### Differences in {env['compared']}, paired by seed",
            _differences(env["differences"]),
        ]
    parts += [f"![{name.replace('_', ' ')}]({path})" for name, path in env["pictures"].items()]
    return "\n\n".join(parts)


def _budgets(budgets: list[dict[str, Any]]) -> str:
    words = [f"{budget['amount']:g} {_UNIT_WORDS[budget['unit']]}" for budget in budgets]
    return (
        f"Budget: {words[0]} for each run."
        if len(words) == 1
        else f"**Budgets differ**: {'; '.join(words)}."
    )


def _certificate(reference: dict[str, Any]) -> str:
    found, closer = reference["certificate"], reference["by_start"]
    if found["certified"]:
        text = (
            f"Certificate: no policy is worth more than {found['bound']:.3f} (95% interval"
            f" {found['low']:.3f} to {found['high']:.3f}; {found['ess']:.0f} of {found['n']}"
            f" uncontrolled paths, {found['ess'] / found['n']:.1%}, carry it)."
        )
    elif closer is not None and closer["certified"]:
        text = ""
    else:
        text = (
            f"**Not certified**: only {found['ess']:.1f} of {found['n']} uncontrolled paths carry"
            " the bound, too few to trust it (50 are asked for)."
        )
    if closer is not None:
        paths = closer["n"] // closer["starts"]
        text += (
            f" From given starts, which no policy chooses, no more than {closer['bound']:.3f}"
            f" ({closer['low']:.3f} to {closer['high']:.3f}; {closer['starts']:,} starts,"
            f" {closer['ess']:.0f} of {paths:,} paths of each carry it)"
        )
        used = ": this one is J_ref." if reference["optimum"] is None else "."
        text += used if closer["certified"] else ", **not certified**."
    if reference["optimum"] is not None:
        text += f" Exact optimum: {reference['optimum']:.4f}."
    return text


def _agents(env: dict[str, Any]) -> str:
    success = env["reference"]["success"] is not None
    heads = [
        "agent",
        "score",
        "objective",
        "reward",
        "KL (nats)",
        *(["success"] if success else []),
    ]
    heads += ["J <= bound + 3 s.e.", "env steps", "reward queries", "seconds", "access"]
    rows = [_reference_row("pre-trained", env, success)]
    bounds = [
        bound
        for name in ("certificate", "by_start")
        if (bound := env["reference"][name]) is not None
    ]
    known = any(bound["certified"] for bound in bounds) or env["reference"]["optimum"] is not None
    no_score = "nothing to gain" if known else "not certified"  # see Reference.score
    if env["reference"]["closed_form"] is not None:
        rows.append(_reference_row("closed form", env, success))
    for agent in env["agents"]:
        seeds, holds = len(agent["seeds"]), agent["certificate_holds"]
        cells = [f"**{agent['agent']}** ({seeds} seed{'s' if seeds > 1 else ''})"]
        cells.append(_cell(agent["score"]) or no_score)
        cells += [
            _cell(agent[name])
            for name in ("objective", "reward", "kl", *(["success"] if success else []))
        ]
        cells.append("not certified" if holds is None else f"{holds} of {seeds}")
        cells += [f"{agent[unit]['mean']:,.0f}" for unit in ("env_steps", "reward_queries")]
        cells += [f"{agent['seconds']['mean']:,.1f}", agent["access"]]
        rows.append(cells)
    return _table(heads, rows)


def _reference_row(name: str, env: dict[str, Any], success: bool) -> list[str]:
    reference = env["reference"]
    if name == "pre-trained":
        value, share = reference["uncontrolled"], reference["success"]
        cells = [
            _plain(env["uncontrolled_score"]),
            f"{value['mean']:.3f}",
            f"{value['mean']:.3f}",
            "0.000",
        ]
    else:
        closed, score, share = reference["closed_form"], env["closed_form_score"], None
        cells = [_plain(None if score is None else score["mean"])]
        cells += [f"{closed[part]['mean']:.3f}" for part in ("objective", "reward", "kl")]
    if success:
        cells.append("" if share is None else f"{share['mean']:.3f}")
    return [name, *cells, *[""] * 5]


def _equal_cost(env: dict[str, Any]) -> str:
    names = [agent["agent"] for agent in env["agents"]]
    rows = []
    for line in env["equal_cost"]:
        cells = [
            f"{line['amount']:,.{1 if line['unit'] == 'seconds' else 0}f}"
            f" {_UNIT_WORDS[line['unit']]}"
        ]
        for name in names:
            solved = (
                "" if line["success"] is None else f"; {line['success'][name]['mean']:.0%} succeed"
            )
            cells.append(f"{_cell(line['agents'][name])}{solved}")
        rows.append(cells)
    return _table(["at", *names], rows)


def _cost_of_equals(env: dict[str, Any]) -> str:
    names = [agent["agent"] for agent in env["agents"]]
    rows = []
    for line in env["cost_of_equals"]:
        spent = [line["spent"][name] for name in names]
        cells = [
            "never" if s["env_steps"] is None else f"{s['env_steps']:,.0f}; {s['seconds']:,.1f} s"
            for s in spent
        ]
        rows.append([f"{line['agent']}: {line['target']:.3f}", *cells])
    return _table(["to be as good as", *names], rows)


def _differences(differences: list[dict[str, Any]]) -> str:
    rows = []
    for line in differences:
        low, high = line["low"], line["high"]
        clear = (
            "one seed" if low is None or high is None else "yes" if low > 0 or high < 0 else "no"
        )
        rows.append([f"{line['first']} - {line['second']}", _cell(line), clear])
    return _table(["pair", "mean [95% interval]", "interval leaves out 0"], rows)


def _made_with(summary: dict[str, Any]) -> str:
    lines = ["## Made with"]
    lines += [f"- Command: `{command}`" for command in summary["commands"]]
    for found in summary["hardware"]:
        gpu = f", {found['gpu']}" if found["gpu"] else ", no GPU"
        lines.append(
            f"- Hardware: {found['cpu']}, {found['cores']} cores{gpu}; {found['system']}; device"
            f" {found['device']}, {found['threads']} thread(s) a run"
        )
    for versions in summary["versions"]:
        lines.append(
            "- Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())
        )
    return "\n".join([lines[0], "", *lines[1:]])


def _cell(value: dict[str, Any] | None) -> str:
    return "" if value is None else str(Interval(**{key: value[key] for key in Interval._fields}))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines
    )
