"""Scores against the reference that the runs of a comparison refine: what a report and a table
show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...envs.certificates import Pooled
from ...envs.problem import Estimate, Policy
from ..evaluation import (
    Reached,
    Reference,
    policy_of,
    pooled_reference,
)
from ..plots import name_of
from ..spec import RunSpec, slug
from ..storage import archive
from ..storage.records import RunFolder, read_json, write_json

#: Paths of a pooled certificate at most: those of learnt policies carry far more than free ones.
_LENT_PATHS = 2048


def grouped(records: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Records by environment or agent, the known agents in their usual order, seeds in theirs."""
    from ..registry import AGENTS, base_of

    order = {name: i for i, name in enumerate(AGENTS)}
    ranked = sorted(
        records,
        key=lambda r: (
            order.get(base_of(r["spec"]["agent"]), len(order)),
            r["spec"]["agent"],
            r["spec"]["seed"],
        ),
    )
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in ranked:
        groups[record["spec"][key]].append(record)
    return dict(groups)


def refined(
    out: Path, records: list[dict[str, Any]], refine: bool, on_stage: Callable[[str], None]
) -> Reference:
    """The reference with the best J that anybody reached, and with pooled certificates."""
    reference = Reference.from_json(records[0]["reference"])
    top = max(records, key=lambda record: record["final"]["objective"])
    best = Reached(top["spec"]["agent"], _objective(top["final"]))
    closed = reference.closed_form
    if closed is not None and closed.objective.mean > best.objective.mean:
        best = Reached("closed form", closed.objective)
    runs = [[r["spec"]["agent"], r["spec"]["seed"], r["final"]["objective"]] for r in records]
    name, pooled = slug(top["spec"]["env"]), None
    path = out / name / "pooled.json"
    kept = read_json(path) if path.is_file() else archive.read(out).pooled.get(Path(name))
    if kept is not None and kept["runs"] == runs:
        pooled = Pooled.from_json(kept["pooled"])
    elif refine and (lent := _lent(out, records)):
        spec = RunSpec.from_json(top["spec"])
        plan = spec.plan
        problem, policies = lent
        paths = min(plan.reference_paths, _LENT_PATHS)
        lenders = ", ".join(map(name_of, policies))
        on_stage(
            f"{name_of(spec.env)}: the bound, anew from {paths:,} paths, uncontrolled and of"
            f" {lenders}; this may take minutes"
        )
        pooled = pooled_reference(problem, policies, paths, plan.reference_starts)
        write_json(path, {"runs": runs, "pooled": pooled.to_json()})
    return reference._replace(pooled=pooled, best=best)


def _lent(out: Path, records: list[dict[str, Any]]) -> tuple[Any, dict[str, Policy]] | None:
    """The problem and the policy of each agent's best run, where models were kept that load."""
    from ..registry import find_agent, make_env

    policies, env = {}, None
    for name, group in grouped(records, "agent").items():
        top = max(group, key=lambda record: record["final"]["objective"])
        spec = RunSpec.from_json(top["spec"])
        model = RunFolder(out, spec).model
        if not model.is_file() or (load := find_agent(name).load) is None:
            continue
        try:
            env = env or make_env(spec.env, spec.env_kwargs)
            agent = load(str(model), env, "auto")
        except (ValueError, ImportError, OSError):  # of another version, or not to be loaded safely
            continue
        if not hasattr(agent, "draw"):  # which has no control to lend
            agent.policy.set_training_mode(False)
            policies[name] = policy_of(agent, env.problem)
    return (env.problem, policies) if env is not None and policies else None


def _objective(row: dict[str, Any]) -> Estimate:
    return Estimate(row["objective"], row["objective_stderr"])


def measured(record: dict[str, Any], reference: Reference) -> dict[str, Any]:
    """A record whose rows have their scores against the refined reference."""

    def scored(row: dict[str, Any]) -> dict[str, Any]:
        objective = _objective(row)
        low, high = reference.score(objective), reference.score_of_best(objective)
        return {
            **row,
            "score": None if low is None else low.mean,
            "score_stderr": None if low is None else low.stderr,
            "score_of_best": None if high is None else high.mean,
            "certificate_holds": reference.holds(objective),
        }

    rows = [scored(row) for row in record["rows"]]
    return {**record, "final": scored(record["final"]), "rows": rows}
