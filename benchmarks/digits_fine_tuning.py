"""PI-FT on real digits: against DPOK, DDPO, adjoint matching, PPO and SAC at equal cost, and the
paper's Figures 1 and 3.

    python benchmarks/digits_fine_tuning.py                   # everything; goes on if killed
    python benchmarks/digits_fine_tuning.py --parts betas --seeds 0 1
    python benchmarks/digits_fine_tuning.py report

girsanov/Digits-v0; PI-FT is its ``PathwisePolicy``, one step up the gradient of 10 fresh paths an
iteration. Parts:

* ``queries``: every method for 2,000 reward queries, hence 100,000 environment steps, at beta 0.3,
  where the bound is certified.
* ``seconds``: each cheaper method again, with as many queries as make it as expensive as PI-FT was,
  by the CPU seconds of their seeds 0.
* ``betas``: Figure 3 of Han, Razaviyayn and Xu (2025): gradient norm, reward and KL against
  iterations for five temperatures, at a constant learning rate.
* ``betas-slow``, ``betas-many``: the same at a quarter of that rate, and with 50 paths an
  iteration. They were added after runs of the parts before them, in which the noise of 10 paths
  drowned the differences that were looked for.
* ``paper``: their Figure 1 at their costs: 1,000 rounds of sampling and 10,000 gradient steps for
  DPOK, 1,000 gradient steps for PI-FT, 10 paths each: 10,000 reward queries both.

When has a run of these converged? Two answers, both laid down before the first run. As a policy:
when the running means (of 3 evaluations: 30 iterations, or 12) of reward and KL are, and stay,
within 10% of the total change of the last one. In what it is worth: when that of the objective is,
and stays, within 5% of its total gain. A third was added after the runs of ``betas``, as both
measure each temperature by a yardstick of its own: when the running mean of the KL is, and stays,
within one nat of the last.

The baselines have the settings of ``baselines/hyperparameters.py``. All policies are measured on
the same fresh noises. Seconds are CPU seconds of one thread in training, evaluation left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import resumable as bench
import torch
from frontier import Curve
from stable_baselines3.common.base_class import BaseAlgorithm

from girsanov.agents import PIFT
from girsanov.baselines.fine_tuning_methods.adjoint_matching import AdjointMatching
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.problem import Policy, Problem
from girsanov.scoreboard.callback import episode_length
from girsanov.scoreboard.evaluation import (
    CURVE_SEED,
    FINAL_SEED,
    SAMPLE_SEED,
    Reference,
    evaluate,
    generator_on,
    policy_of,
)
from girsanov.scoreboard.plots import samples
from girsanov.scoreboard.spec import Budget

HERE = bench.RESULTS / "digits_fine_tuning"
ENV = "girsanov/Digits-v0"
SLOW = 5e-4  # PathwisePolicy has 2e-3
BETA, QUERIES = 0.3, 2000
BETAS = (0.01, 0.03, 0.1, 0.3, 1.0)
PartName = Literal["queries", "seconds", "betas", "betas-slow", "betas-many", "paper"]


class Sweep(NamedTuple):
    """Runs at every temperature."""

    figure: str
    words: str
    iterations: int = 150
    paths: int = 10
    apart: int = 10  # iterations between evaluations
    settings: dict[str, Any] = {}


_DEFAULT = "the default learning rate"
_QUARTER = "a quarter of the default learning rate"
SWEEPS = {
    "betas": Sweep("figure3", _DEFAULT),
    "betas-slow": Sweep("figure3_slow", _QUARTER, settings={"learning_rate": SLOW}),
    "betas-many": Sweep("figure3_many", _DEFAULT, 100, 50, 4, {"n_trajectories": 50}),
}


def pi_ft(problem: Problem, **kwargs: Any) -> BaseAlgorithm:
    """The paper's neural form: the pathwise gradient of 10 paths an iteration."""
    return PIFT("PathwisePolicy", problem, **kwargs)


AGENTS: dict[str, Callable[..., BaseAlgorithm]] = {
    "pi-ft": pi_ft,
    "dpok": DPOK.tuned,
    "ddpo": DDPO.tuned,
    "adjoint-matching": AdjointMatching.tuned,
    "ppo": make_ppo,
    "sac": make_sac,
}


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Args:
        part: what it is for.
        agent: a name of ``AGENTS``.
        beta: temperature.
        queries: reward queries.
        seed: of the agent.
    """

    part: str
    agent: str
    beta: float
    queries: int
    seed: int

    @property
    def name(self) -> str:
        """Unlike any other run's."""
        return f"{self.part}-{self.agent}-beta{self.beta:g}-{self.queries}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What this part changes."""
        if self.part in SWEEPS:
            return {"anneal": False, **SWEEPS[self.part].settings}
        paper = (self.part, self.agent) == ("paper", "dpok")
        return {"n_trajectories": 10, "gradient_steps": 10} if paper else {}

    @property
    def points(self) -> list[int]:
        """Reward queries after which the policy is measured."""
        sweep = SWEEPS.get(self.part)
        apart = sweep.apart * sweep.paths if sweep else 250 if self.queries <= 4 * QUERIES else 1000
        return [*range(0, self.queries, apart), self.queries]


def runs(part: str, seeds: Sequence[int], done: dict[str, bench.Line]) -> list[Run]:
    """All of a part, seed by seed; ``seconds`` only where seed 0 has told what a query costs."""
    made = []
    for seed in seeds:
        if part == "queries":
            made += [Run(part, agent, BETA, QUERIES, seed) for agent in AGENTS]
        if part == "seconds":
            made += [Run(part, agent, BETA, n, seed) for agent, n in longer(done).items()]
        if sweep := SWEEPS.get(part):
            n = sweep.iterations * sweep.paths
            made += [Run(part, "pi-ft", beta, n, seed) for beta in reversed(BETAS)]
        if part == "paper":
            made += [Run(part, agent, BETA, 10_000, seed) for agent in ("pi-ft", "dpok")]
    return made


def longer(done: dict[str, bench.Line]) -> dict[str, int]:
    """Queries that make each cheaper method as expensive as PI-FT, by their seeds 0."""
    first = {agent: done.get(Run("queries", agent, BETA, QUERIES, 0).name) for agent in AGENTS}
    ours = first.pop("pi-ft")
    if ours is None:
        return {}
    ratios = {a: ours["seconds"] / x["seconds"] for a, x in first.items() if x is not None}
    return {a: 250 * math.ceil(QUERIES / 250 * r) for a, r in ratios.items() if r > 1}


class Gauge(NamedTuple):
    """Measures policies on noises that are the same for all of them."""

    problem: Problem
    reference: Reference | None
    paths: int

    def measure(self, policy: Policy, seed: int = CURVE_SEED) -> dict[str, float]:
        """Objective, reward, KL, share of successes, and the score where there is a reference."""
        found = evaluate(self.problem, policy, self.paths, generator_on(self.problem, seed))
        value, success = found.value, found.success
        row = {"objective": value.objective.mean, "reward": value.reward.mean, "kl": value.kl.mean}
        if success is not None:
            row["success"] = success.mean
        score = None if self.reference is None else self.reference.score(value.objective)
        return row if score is None else {**row, "score": score.mean, "score_stderr": score.stderr}


class Watch(Curve):
    """The learning curve, and the gradient norm of every iteration of those who report one."""

    norms: list[float]

    def _on_training_start(self) -> None:
        self.norms = []
        super()._on_training_start()

    def _on_rollout_end(self) -> None:
        norm = self.model.logger.name_to_value.get("train/gradient_norm")
        if norm and isinstance(self.model, PIFT):
            self.norms.append(float(f"{norm:.4g}"))


def execute(
    run: Run, out: Path, reference_paths: int, paths: int = 128, final_paths: int = 2000
) -> bench.Line:
    """Learn, then measure on fresh paths."""
    torch.set_num_threads(1)
    problem, reference = make_problem(ENV, temperature=run.beta), None
    if run.beta == BETA:
        reference = bench.bound_of(out, problem, ENV, BETA, reference_paths)
    model = AGENTS[run.agent](problem, seed=run.seed, device="cpu", **run.settings)
    curve: list[dict[str, float]] = []
    watch = Watch(Gauge(problem, reference, paths), run.points, math.inf, curve.append)  # type: ignore[arg-type]
    model.learn(Budget(run.queries).timesteps(episode_length(model, problem), model.n_envs), watch)
    policy = policy_of(model, problem)
    final = Gauge(problem, reference, final_paths).measure(policy, FINAL_SEED)
    shown: bench.Line = {}
    if run.part in ("queries", "paper") and run.seed == 0:
        shown = {"samples": images(problem, policy)}
        bench.kept(out, "pre-trained samples", {}, lambda: images(problem, None))
    digits = [{key: _rounded(value) for key, value in row.items()} for row in curve]
    spent = {name: digits[-1][name] for name in ("queries", "env_steps", "seconds")}
    return {**spent, **final, "curve": digits, "gradient_norms": watch.norms, **shown}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def images(problem: Problem, policy: Policy | None) -> bench.Line:
    """The first that the policy makes of the noises of ``SAMPLE_SEED``, the same for all."""
    states = evaluate(problem, policy, 32, generator_on(problem, SAMPLE_SEED)).states
    return bench.as_text(states.half().numpy())


def run(
    parts: tuple[PartName, ...] = (
        *("queries", "betas", "betas-slow", "betas-many", "seconds", "paper"),
    ),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    agents: tuple[str, ...] = tuple(AGENTS),
    reference_paths: int = 1 << 14,
    out: Path = HERE,
) -> None:
    """Make every run that is not finished.

    Args:
        parts: which.
        seeds: of each.
        agents: only these.
        reference_paths: uncontrolled paths behind the bound.
        out: folder of everything.
    """
    unknown = sorted(set(agents) - set(AGENTS))
    if unknown:
        raise ValueError(f"agents must be of {sorted(AGENTS)}; got {unknown}")
    for part in parts:
        jobs = runs(part, seeds, bench.runs_of(out))
        bench.resume(
            [job for job in jobs if job.agent in agents],
            out,
            lambda one: execute(one, out, reference_paths),
            lambda x: f"J {x['objective']:.3f}, KL {x['kl']:.2f}, {x['seconds']:.0f} CPU s",
        )


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


def convergence(line: bench.Line) -> dict[str, float]:
    """Iterations until a run of ``betas`` has converged, by all three answers."""
    at, names = _at(line), ("objective", "reward", "kl")
    column = {name: [row[name] for row in line["curve"]] for name in names}
    policy = max(settled(column["reward"], 0.1), settled(column["kl"], 0.1))
    objective, nat = settled(column["objective"], 0.05), settled(column["kl"], within=1.0)
    return {"policy": at[policy], "objective": at[objective], "nat": at[nat]}


def _by(lines: Iterable[bench.Line], key: str) -> dict[Any, list[bench.Line]]:
    return bench.groups(lines, lambda line: line["job"][key])


def score_table(lines: Sequence[bench.Line], rivals: Sequence[bench.Line]) -> str:
    """Medians by agent, and how many of PI-FT's seeds score above the same seed of the agent."""
    ours = {x["job"]["seed"]: x["score"] for x in _by(rivals, "agent").get("pi-ft", [])}
    heads = "method|reward queries|score|KL|taken for a 3|CPU s"
    rows = []
    for agent, group in _by(lines, "agent").items():
        rival = {x["job"]["seed"]: x["score"] for x in group if agent != "pi-ft"}
        ahead = [ours[seed] - score for seed, score in rival.items() if seed in ours]
        figures = (("score", 3), ("kl", 2), ("success", 2))
        cells = [bench.spread([x[name] for x in group], digits) for name, digits in figures]
        cells += [f"{bench.median(group, 'seconds'):.0f}", bench.spread(ahead) if ahead else ""]
        rows.append([agent, f"{group[0]['queries']:,}", *cells])
    return bench.table([*heads.split("|"), "PI-FT's 2,000 queries minus it, by seed"], rows)


def beta_table(lines: Sequence[bench.Line]) -> str:
    heads = "beta|converged as a policy|in its worth|KL within a nat|KL|reward|objective|seeds"
    rows = []
    for beta, group in sorted(_by(lines, "beta").items()):
        when = [convergence(line) for line in group]
        cells = [bench.spread([w[name] for w in when], 0) for name in when[0]]
        final = ("kl", "reward", "objective")
        cells += [bench.spread([line[name] for line in group], 2) for name in final]
        rows.append([f"{beta:g}", *cells, str(len(group))])
    return bench.table(heads.split("|"), rows)


def draw_betas(lines: Sequence[bench.Line]) -> Any:
    figure = bench.figure(12, 3.8)
    panels = figure.subplots(1, 3)
    for i, (beta, group) in enumerate(sorted(_by(lines, "beta").items())):
        norms = np.median([line["gradient_norms"] for line in group], 0)
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(norms, 20), 1)
        curves = [(np.arange(len(smooth)) + 20, smooth)]
        for name in ("reward", "kl"):
            y = np.median([[row[name] for row in line["curve"]] for line in group], 0)
            curves.append((np.array(_at(group[0])), y))
        for axes, (x, y) in zip(panels, curves, strict=True):
            axes.plot(x, y, color=f"C{i}", label=f"beta {beta:g}")
    titles = ("gradient norm (running median of 20)", "reward", "KL (nats)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel="iterations", title=title)
    panels[0].set_yscale("log")
    panels[2].set_yscale("symlog", linthresh=1)
    panels[2].legend(fontsize=8)
    return figure


def draw_curves(parts: dict[str, list[bench.Line]]) -> Any:
    figure = bench.figure(11, 4)
    panels = figure.subplots(1, 2, sharey=True)
    found = {part: _by(parts.get(part, []), "agent") for part in ("queries", "seconds")}
    for axes, unit in zip(panels, found, strict=True):
        for i, agent in enumerate(AGENTS):
            # no cheaper than PI-FT: one run serves for both
            chosen = found[unit].get(agent) or found["queries"].get(agent, [])
            for number, line in enumerate(chosen):
                x, y = ([row[name] for row in line["curve"]] for name in (unit, "score"))
                axes.plot(x, y, color=f"C{i}", linewidth=1, label=None if number else agent)
        words = {"queries": "reward queries", "seconds": "CPU seconds of training"}
        axes.set(xlabel=words[unit], ylim=(-1, 1.02))
    panels[0].set_ylabel("score")
    panels[0].legend(loc="lower right", fontsize=8)
    return figure


def draw_samples(lines: Sequence[bench.Line], agents: Iterable[str], out: Path) -> Any | None:
    """One grid an agent, from the same noises; None if there are none."""
    before = bench.references_of(out).get("pre-trained samples")
    shown = {x["job"]["agent"]: x["samples"] for x in lines if "samples" in x}
    if before is None or not shown:
        return None
    grids = {"pre-trained": before["value"], **{a: shown[a] for a in agents if a in shown}}
    arrays = {name: bench.as_array(text).astype(np.float32) for name, text in grids.items()}
    return samples(arrays, "the same noises")


def report(out: Path = HERE) -> None:
    """Write ``report.md`` and its figures: medians over seeds, and the worst and the best."""
    found = bench.runs_of(out, some=True).values()
    order = list(AGENTS)
    lines = sorted(found, key=lambda x: (order.index(x["job"]["agent"]), x["job"]["seed"]))
    parts, pictures = _by(lines, "part"), {}
    queries = parts.get("queries", [])
    text = [
        "# Fine-tuning Digits-v0",
        "Medians over seeds; brackets hold the least and the largest. What each part is:"
        " `benchmarks/digits_fine_tuning.py`.",
    ]

    def show(part: str, agents: Iterable[str]) -> None:
        if (figure := draw_samples(parts[part], agents, out)) is not None:
            pictures[f"samples_{part}"] = figure
            text.append(f"![samples](samples_{part}.png)")

    if queries:
        known = bench.references_of(out)[f"Digits-v0-beta{BETA:g}"]["value"]
        bound = Reference.from_json(known).certificate
        pictures["curves"] = draw_curves(parts)
        text += [
            f"## Equal reward queries and environment steps (beta {BETA})",
            score_table(queries, queries),
            f"Scores: 0 the pre-trained model, 1 the bound {bound.bound:.3f} ({bound.ess:.0f} of"
            f" {bound.n} paths carry it).",
            "![scores against cost](curves.png)",
        ]
        show("queries", AGENTS)
    if "seconds" in parts:
        text += [
            "## Equal CPU seconds",
            score_table(parts["seconds"], queries),
            "Cheaper methods that are missing here were not run; those that are not cheaper need no"
            " second run.",
        ]
    for part, sweep in SWEEPS.items():
        if part in parts:
            pictures[sweep.figure] = draw_betas(parts[part])
            text += [
                f"## Figure 3: {sweep.iterations} iterations of {sweep.paths} paths at five"
                f" temperatures, {sweep.words}",
                beta_table(parts[part]),
                f"![Figure 3]({sweep.figure}.png)",
            ]
    if "paper" in parts:
        text += ["## Figure 1: the paper's costs", score_table(parts["paper"], queries)]
        show("paper", ("dpok", "pi-ft"))
    bench.write(out, [*text, bench.made_by(lines)], **pictures)


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return bench.command_line("digits_fine_tuning.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
