"""PI-FT on real digits: against DPOK, DDPO, adjoint matching, PPO and SAC at equal cost, and the
paper's Figures 1 and 3.

    python benchmarks/digits_fine_tuning.py                   # everything; goes on if killed
    python benchmarks/digits_fine_tuning.py --only betas-pi-ft --seeds 0 1
    python benchmarks/digits_fine_tuning.py report

Its parts, and when a run of them has converged, are told in results/digits_fine_tuning/report.md.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import reports
import resumable as bench
from learning import Curve

from girsanov.envs import make_problem
from girsanov.envs.problem import Policy, Problem
from girsanov.scoreboard.evaluation import (
    CURVE_SEED,
    FINAL_SEED,
    SAMPLE_SEED,
    Reference,
    evaluate,
    generator_on,
)
from girsanov.scoreboard.plots import learning_curves, samples

ENV = "girsanov/Digits-v0"
SLOW = 5e-4  # PathwisePolicy has 2e-3
BETA, QUERIES = 0.3, 2000
BETAS = (1.0, 0.3, 0.1, 0.03, 0.01)
#: By their names here: those of the registry.
AGENTS = {name: name for name in ("pi-ft", "dpok", "ddpo", "adjoint-matching")}
AGENTS |= {"ppo": "ppo-control", "sac": "sac-control"}


class Sweep(NamedTuple):
    """Runs at every temperature."""

    figure: str
    iterations: int = 150
    paths: int = 10
    apart: int = 10  # iterations between evaluations
    settings: Mapping[str, Any] = {}


SWEEPS = {
    "betas": Sweep("figure3"),
    "betas-slow": Sweep("figure3_slow", settings={"learning_rate": SLOW}),
    "betas-many": Sweep("figure3_many", 100, 50, 4, {"n_trajectories": 50}),
}
PLAIN = ("queries", "seconds", "paper")  # the other parts


@dataclass(frozen=True)
class Job(bench.Job):
    """One method with one seed."""

    form: ClassVar[str] = "{part}-{agent}-beta{beta:g}-{queries}-{seed}"
    part: str  # what it is for
    agent: str  # a name of ``AGENTS``
    beta: float  # temperature
    queries: int  # reward queries
    seed: int  # of the agent

    @property
    def settings(self) -> dict[str, Any]:
        """What this part changes; the paper's neural form of PI-FT is the pathwise gradient."""
        form = {"policy": "PathwisePolicy"} if self.agent == "pi-ft" else {}
        if self.part in SWEEPS:
            return {**form, "anneal": False, **SWEEPS[self.part].settings}
        paper = (self.part, self.agent) == ("paper", "dpok")
        return {**form, **({"n_trajectories": 10, "gradient_steps": 10} if paper else {})}

    @property
    def points(self) -> list[int]:
        """Reward queries after which the policy is measured."""
        sweep = SWEEPS.get(self.part)
        apart = sweep.apart * sweep.paths if sweep else 250 if self.queries <= 4 * QUERIES else 1000
        return [*range(0, self.queries, apart), self.queries]


def jobs(seeds: Sequence[int], quick: bool, done: dict[str, bench.Line]) -> list[Job]:
    """Part by part, seed by seed; ``seconds`` once seed 0 has told what a query costs."""
    if quick:
        small = {"pi-ft": 20, "dpok": 50, "sac": 20}
        return [Job("queries", agent, BETA, n, s) for s in seeds for agent, n in small.items()]
    made = [Job("queries", agent, BETA, QUERIES, seed) for seed in seeds for agent in AGENTS]
    for part, sweep in SWEEPS.items():
        n = sweep.iterations * sweep.paths
        made += [Job(part, "pi-ft", beta, n, seed) for seed in seeds for beta in BETAS]
    made += [Job("seconds", a, BETA, n, seed) for seed in seeds for a, n in longer(done).items()]
    paper = ("pi-ft", "dpok")
    return [*made, *(Job("paper", agent, BETA, 10_000, s) for s in seeds for agent in paper)]


def longer(done: dict[str, bench.Line]) -> dict[str, int]:
    """Queries that make each cheaper method as expensive as PI-FT, by their seeds 0."""
    first = {agent: done.get(Job("queries", agent, BETA, QUERIES, 0).name) for agent in AGENTS}
    ours = first.pop("pi-ft")
    if ours is None:
        return {}
    ratios = {a: ours["seconds"] / x["seconds"] for a, x in first.items() if x is not None}
    return {a: 250 * math.ceil(QUERIES / 250 * r) for a, r in ratios.items() if r > 1}


def measure(
    policy: Policy,
    problem: Problem,
    bound: Reference | None,
    paths: int = 128,
    seed: int = CURVE_SEED,
) -> dict[str, float]:
    """Objective, reward, KL, share of successes, and the score where there is a bound."""
    value, success, _ = evaluate(problem, policy, paths, generator_on(problem, seed))
    row = {"objective": value.objective.mean, "reward": value.reward.mean, "kl": value.kl.mean}
    if success is not None:
        row["success"] = success.mean
    score = None if bound is None else bound.score(value.objective)
    return row if score is None else {**row, "score": score.mean, "score_stderr": score.stderr}


def execute(job: Job, at: bench.Place) -> bench.Line:
    """Learn, then measure on fresh paths."""
    problem, bound = make_problem(ENV, temperature=job.beta), None
    if job.beta == BETA:
        bound = bench.bound_of(at.out, problem, ENV, BETA, 1 << (10 if at.quick else 14))
    watched = (functools.partial(measure, problem=problem, bound=bound), job.points)
    curve = Curve.of(AGENTS[job.agent], problem, job.seed, *watched, **job.settings)
    policy = curve.learn(job.queries).policy
    final = measure(policy, problem, bound, 256 if at.quick else 2000, FINAL_SEED)
    shown: bench.Line = {}
    if job.part in ("queries", "paper") and job.seed == 0:
        shown = {"samples": images(problem, policy)}
        bench.kept(at.out, "pre-trained samples", {}, lambda: images(problem, None))
    rows = [{key: _rounded(value) for key, value in row.items()} for row in curve.rows]
    norms = curve.norms if job.agent == "pi-ft" else []
    return {**curve.spent(), **final, "curve": rows, "gradient_norms": norms, **shown}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def images(problem: Problem, policy: Policy | None) -> bench.Line:
    """The first that the policy makes of the noises of ``SAMPLE_SEED``, the same for all."""
    states = evaluate(problem, policy, 32, generator_on(problem, SAMPLE_SEED)).states
    return bench.as_text(states.half().numpy())


# --- report


def settled(
    values: Sequence[float], share: float = 0.0, within: float = 0.0, window: int = 3
) -> int:
    """Index from which running means stay within ``share`` of the total change of the last one, or
    ``within`` of it.
    """
    means = np.array([np.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))])
    off = np.abs(means - means[-1]) > max(within, share * abs(means[-1] - values[0]))
    return int(np.flatnonzero(off).max(initial=-1)) + 1


def _at(line: bench.Line) -> list[float]:
    """Iterations at which a run of a sweep was measured."""
    return [row["queries"] // SWEEPS[line["job"]["part"]].paths for row in line["curve"]]


def _column(line: bench.Line, name: str) -> list[float]:
    return [row[name] for row in line["curve"]]


def convergence(line: bench.Line) -> dict[str, float]:
    """Iterations until a run of ``betas`` has converged, by all three answers."""
    at, kl = _at(line), _column(line, "kl")
    policy = max(settled(_column(line, "reward"), 0.1), settled(kl, 0.1))
    worth = settled(_column(line, "objective"), 0.05)
    return {"policy": at[policy], "objective": at[worth], "nat": at[settled(kl, within=1.0)]}


def score_table(lines: Sequence[bench.Line], rivals: Sequence[bench.Line]) -> str:
    """Medians by agent, and how many of PI-FT's seeds score above the same seed of the agent."""
    ours = {x["job"]["seed"]: x["score"] for x in reports.chosen(rivals, agent="pi-ft")}
    rows = []
    for agent, group in reports.groups(lines, "agent").items():
        rival = {x["job"]["seed"]: x["score"] for x in group if agent != "pi-ft"}
        ahead = [ours[seed] - score for seed, score in rival.items() if seed in ours]
        figures = {"score": ".3f", "kl": ".2f", "success": ".2f"}
        cells = [reports.spread([x[name] for x in group], form) for name, form in figures.items()]
        cells += [reports.median(group, "seconds", ".0f"), reports.spread(ahead) if ahead else ""]
        rows.append([agent, f"{group[0]['queries']:,}", *cells])
    heads = "method|reward queries|score|KL|taken for a 3|CPU s"
    return reports.table(f"{heads}|PI-FT's 2,000 queries minus it, by seed", rows)


def beta_table(lines: Sequence[bench.Line]) -> str:
    heads = "beta|converged as a policy|in its worth|KL within a nat|KL|reward|objective|seeds"
    rows = []
    for beta, group in sorted(reports.groups(lines, "beta").items()):
        when = [convergence(line) for line in group]
        cells = [reports.spread([w[name] for w in when], ".0f") for name in when[0]]
        final = ("kl", "reward", "objective")
        cells += [reports.spread([line[name] for line in group], ".2f") for name in final]
        rows.append([f"{beta:g}", *cells, str(len(group))])
    return reports.table(heads, rows)


def draw_betas(lines: Sequence[bench.Line]) -> Any:
    curves = {}
    for beta, group in sorted(reports.groups(lines, "beta").items()):
        norms = np.median([line["gradient_norms"] for line in group], 0)
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(norms, 20), 1)
        reward, kl = (np.median([_column(x, n) for x in group], 0) for n in ("reward", "kl"))
        at = _at(group[0])
        curves[beta] = {
            "gradient norm (running median of 20)": (np.arange(len(smooth)) + 20, smooth),
            "reward": (at, reward),
            "KL (nats)": (at, kl),
        }
    return reports.draw_by_beta(curves, "iterations")


def draw_curves(lines: Sequence[bench.Line]) -> Any:
    """Each method with the most queries that it was given."""
    runs = {}
    for agent in AGENTS:
        # no cheaper than PI-FT: one run serves for both
        found = reports.chosen(lines, part="seconds", agent=agent)
        found = found or reports.chosen(lines, part="queries", agent=agent)
        if found:
            queries = [[{**r, "reward_queries": r["queries"]} for r in x["curve"]] for x in found]
            runs[AGENTS[agent]] = queries
    return learning_curves(runs, "score", ENV)


def draw_samples(lines: Sequence[bench.Line], agents: Iterable[str], out: Path) -> Any | None:
    """One grid an agent, from the same noises; None if there are none."""
    before = bench.references_of(out).get("pre-trained samples")
    shown = {x["job"]["agent"]: x["samples"] for x in lines if "samples" in x}
    if before is None or not shown:
        return None
    grids = {"pre-trained": before["value"], **{a: shown[a] for a in agents if a in shown}}
    arrays = {name: bench.as_array(text).astype(np.float32) for name, text in grids.items()}
    return samples(arrays, "the same noises")


def told(lines: list[bench.Line], out: Path) -> dict[str, Any]:
    """Medians over seeds, and the worst and the best; pictures."""
    order = list(AGENTS)
    lines = sorted(lines, key=lambda x: (order.index(x["job"]["agent"]), x["job"]["seed"]))
    parts = reports.groups(lines, "part")
    queries = parts.get("queries", [])
    known = bench.references_of(out).get(f"Digits-v0-beta{BETA:g}")
    tables = dict.fromkeys(("queries", "bound", "seconds", "paper", *map(_block, SWEEPS)), "")
    tables |= {part: score_table(parts[part], queries) for part in PLAIN if part in parts}
    tables |= {_block(part): beta_table(parts[part]) for part in SWEEPS if part in parts}
    pictures = {s.figure: draw_betas(parts[part]) for part, s in SWEEPS.items() if part in parts}
    if queries and known is not None:
        bound = Reference.from_json(known["value"]).certificate
        tables["bound"] = (
            f"Scores: 0 the pre-trained model, 1 the bound {bound.bound:.3f} ({bound.ess:.0f} of"
            f" {bound.n} paths carry it)."
        )
        pictures["curves"] = draw_curves(lines)
    for part, agents in (("queries", tuple(AGENTS)), ("paper", ("dpok", "pi-ft"))):
        if (figure := draw_samples(parts.get(part, []), agents, out)) is not None:
            pictures[f"samples_{part}"] = figure
    return {**tables, **pictures, "made": reports.made_by(lines)}


def _block(part: str) -> str:
    return part.replace("-", "_")


words = "J {objective:.3f}, KL {kl:.2f}, {seconds:.0f} CPU s".format_map
main = bench.Benchmark(__doc__, "digits_fine_tuning", jobs, execute, words, told)

if __name__ == "__main__":
    sys.exit(main())
