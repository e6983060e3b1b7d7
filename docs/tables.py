"""Tables of our own figures, made from committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
FILMS = Path(__file__).resolve().parent / "films"
NAMES = {
    "pde": "PDE",
    "pi-ft": "PI-FT",
    "ppo": "PPO",
    "sac": "SAC",
    "ppo-control": "PPO, control form",
    "sac-control": "SAC, control form",
    "dpok": "DPOK",
    "ddpo": "DDPO",
    "adjoint-matching": "adjoint matching",
    "grpo": "GRPO",
    "draft": "DRaFT-K",
    "log-variance": "log-variance loss",
    "dyna": "Dyna",
    "pde-mou": "Mou's estimator",
    "pi-ft-algorithm1": "PI-FT, Algorithm 1",
    "best-of-n": "best of n",
    "feynman-kac": "Feynman-Kac particles",
    "posterior-guidance": "posterior guidance",
}


def table(report: str, environment: str = "") -> str:
    """The agents of one comparison.

    Args:
        report: a folder of ``benchmarks/results`` with a ``report.json``.
        environment: which of its environments, where it has several.
    """
    (found,) = [e for e in _environments(report) if environment in ("", e["env"])]
    success = found["reference"]["success"] is not None
    scored = any(agent["score"] for agent in found["agents"])
    told = all(agent.get("access_class") for agent in found["agents"])
    counted = all(agent.get("model_evaluations") for agent in found["agents"])
    costs = ("model_evaluations", "cpu_seconds") if counted else ("seconds",)
    head = [
        "agent",
        *(["may use"] if told else []),
        "score" if scored else "objective",
        "KL",
        *(["success"] if success else []),
        "queries",
        *(["model evaluations", "CPU seconds"] if counted else ["seconds"]),
    ]
    rows = []
    for agent in found["agents"]:
        row = [
            NAMES.get(_name(agent), agent["agent"]),
            *([agent["access_class"]] if told else []),
            _interval(agent["score"] if scored else agent["objective"], 2),
            f"{_middle(agent['kl']):.2f}",
            *([f"{_middle(agent['success']):.0%}"] if success else []),
            f"{_middle(agent['reward_queries']):,.0f}",
            *(f"{_middle(agent[cost]):,.0f}" for cost in costs),
        ]
        rows.append(row)
    return _markdown(head, rows)


def robots(scored: str) -> str:
    """All robots of the robotics benchmark, one a row: those with a bound, or those without.

    Args:
        scored: ``scores`` or ``objectives``.
    """
    rows, names = [], []
    for found in _environments("robotics"):
        agents = {_name(agent): agent for agent in found["agents"]}
        has_score = any(agent["score"] for agent in agents.values())
        if has_score != (scored == "scores"):
            continue
        names = [name for name in NAMES if name in agents]
        what, digits = ("score", 2) if has_score else ("objective", 1)
        rows.append(
            [
                found["env"].removeprefix("girsanov/"),
                *(_interval(agents[name][what], digits) for name in names),
            ]
        )
    return _markdown(["robot", *(NAMES[name] for name in names)], rows)


def films() -> str:
    """What is seen in the films that ``films.py`` makes: before, and after learning."""
    kept = json.loads((FILMS / "films.json").read_text(encoding="utf-8"))
    rows = [
        [
            film["env"],
            f"{NAMES[film['agent']]}, {film['episodes']:,} episodes",
            " to ".join(f"{worth:.1f}" for worth in film["objective"]),
            " to ".join(f"{share:.0%}" for share in film["success"]),
        ]
        for film in kept.values()
    ]
    return _markdown(["robot", "steered by", "objective", "success"], rows)


def attribution(*agents: str) -> str:
    """What the form of the action and the inputs are worth to PPO and SAC on Digits.

    Args:
        agents: any of ppo and sac.
    """
    path = RESULTS / "attribution" / "report.json"
    (env,) = json.loads(path.read_text(encoding="utf-8"))["environments"]
    found = {row["agent"]: row["score"] for row in env["agents"]}
    words = {
        "{}-control#the state": "the control as action, the state as input",
        "{}#the state": "the noise as action",
        "{}-control#the features": "the features as input",
        "{}#the features": "both",
    }
    lines = [
        [told, *(_interval(found[row.format(agent)], 2) for agent in agents)]
        for row, told in words.items()
    ]
    return _markdown(["", *(NAMES[agent] for agent in agents)], lines)


def forms() -> str:
    """Stable-baselines3's PPO and SAC without anything of ours, in both forms of the action."""
    columns = [(name, form) for name in ("ppo", "sac") for form in ("control", "noise")]
    rows = []
    for found in _environments("off_the_shelf"):
        scores = {row["agent"].rpartition(":")[2]: row for row in found["agents"]}
        cells = []
        for name, form in columns:
            row = scores[f"{name}_{form}"]
            runs = len(row["seeds"])
            cells.append(f"{_interval(row['score'], 2)}, {runs} run{'s' * (runs > 1)}")
        rows.append([_short(found["env"]), *cells])
    head = [f"{NAMES[name]}, {form}" for name, form in columns]
    return _markdown(["score", *head], rows)


def by_hand() -> str:
    """The search for settings by single trials: what the settings in use gained."""
    lines = (RESULTS / "tuning" / "by_hand.jsonl").read_text(encoding="utf-8").splitlines()
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, lines):
        task = ", ".join(f"{name} {value}" for name, value in line["task"].items())
        key = NAMES[line["agent"]], _short(line["env"]), task
        groups.setdefault(key, []).append(line)
    rows = []
    for key, trials in groups.items():
        before = [trial["score"] for trial in trials if not trial["settings"]]
        minutes = sum(trial["cpu_seconds"] for trial in trials) / 60
        best = max(trial["score"] for trial in trials)
        first = f"{before[0]:.2f}" if before else ""
        rows.append([*key, str(len(trials)), f"{minutes:.1f}", first, f"{best:.2f}"])
    head = ["agent", "environment", "task", "trials", "CPU minutes", "before", "best"]
    return _markdown(head, rows)


def known(*env_ids: str) -> str:
    """What is known of environments: no control, the bound, the optimum."""
    measured = json.loads((RESULTS / "environments.json").read_text(encoding="utf-8"))
    rows = {row["env"]: row for row in measured["environments"]}
    lines = []
    for env_id in env_ids:
        row = rows[env_id]
        share = f"{row['effective_paths']:,.0f} of {row['paths']:,}"
        bound = _estimate(row["bound"]) if row["bound"] else "not certified"
        success = "" if row["success"] is None else f"{row['success']:.1%}"
        exact = "" if row["optimum"] is None else f"{row['optimum']:.3f}"
        limit = "" if row["exact_bound"] is None else f"{row['exact_bound']:.3f}"
        free = _estimate(row["uncontrolled"])
        lines.append([_short(env_id), free, success, bound, share, exact, limit])
    head = ["", "J(0)", "succeeds", "bound", "effective paths", "exact optimum", "exact bound"]
    empty = [i for i in range(len(head)) if i and not any(line[i] for line in lines)]
    lines = [[cell for i, cell in enumerate(line) if i not in empty] for line in lines]
    return _markdown([name for i, name in enumerate(head) if i not in empty], lines)


def _environments(report: str) -> list[dict[str, Any]]:
    path = RESULTS / report / "report.json"
    return json.loads(path.read_text(encoding="utf-8"))["environments"]


def _short(env_id: str) -> str:
    return env_id.removeprefix("girsanov/").removesuffix("-v0")


def _estimate(pair: list[float]) -> str:
    mean, stderr = pair
    return f"{mean:.3f} ± {stderr:.3f}"


def _name(agent: dict[str, Any]) -> str:
    """An agent's name; PPO and SAC of reports from before the noise form saw no noise."""
    before = agent["agent"] in ("ppo", "sac") and agent["access"] == "black-box reward; interaction"
    return agent["agent"] + ("-control" if before else "")


def _middle(found: dict[str, Any]) -> float:
    return found["iqm"] if "iqm" in found else found["mean"]


def _interval(found: dict[str, Any], digits: int) -> str:
    middle = f"{_middle(found):.{digits}f}"
    if found["low"] is None or found["high"] is None:
        return middle
    return f"{middle} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
