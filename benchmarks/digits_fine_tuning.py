"""PI-FT on real digits: against DPOK, DDPO, adjoint matching, PPO and SAC at equal cost, and the
paper's Figures 1 and 3.

    python benchmarks/digits_fine_tuning.py                              # everything; killed and
        started again it goes on
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

import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from frontier import Curve
from resumable import append, command_line, read_lines
from stable_baselines3.common.base_class import BaseAlgorithm

from girsanov.agents import PIFT
from girsanov.baselines.adjoint_matching import AdjointMatching
from girsanov.baselines.ddpo import DDPO
from girsanov.baselines.dpok import DPOK
from girsanov.baselines.sb3 import make_ppo, make_sac
from girsanov.envs import make_problem
from girsanov.envs.problem import Policy, Problem
from girsanov.scoreboard.evaluation import (
    CURVE_SEED,
    FINAL_SEED,
    SAMPLE_SEED,
    Reference,
    cached_reference,
    evaluate,
    generator_on,
    policy_of,
)
from girsanov.scoreboard.plots import samples
from girsanov.scoreboard.records import check_writable, provenance, write_whole
from girsanov.scoreboard.spec import Budget

RESULTS = Path(__file__).parent / "results" / "digits_fine_tuning"
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


SWEEPS = {
    "betas": Sweep("figure3", "the default learning rate"),
    "betas-slow": Sweep(
        "figure3_slow", "a quarter of the default learning rate", settings={"learning_rate": SLOW}
    ),
    "betas-many": Sweep(
        "figure3_many", "the default learning rate", 100, 50, 4, {"n_trajectories": 50}
    ),
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
        return (
            {"n_trajectories": 10, "gradient_steps": 10}
            if (self.part, self.agent) == ("paper", "dpok")
            else {}
        )

    @property
    def points(self) -> list[int]:
        """Reward queries after which the policy is measured."""
        sweep = SWEEPS.get(self.part)
        apart = sweep.apart * sweep.paths if sweep else 250 if self.queries <= 4 * QUERIES else 1000
        return [*range(0, self.queries, apart), self.queries]


def runs(part: str, seeds: Sequence[int], done: dict[str, dict[str, Any]]) -> list[Run]:
    """All of a part, seed by seed; ``seconds`` only where seed 0 has told what a query costs."""
    made = []
    for seed in seeds:
        if part == "queries":
            made += [Run(part, agent, BETA, QUERIES, seed) for agent in AGENTS]
        if part == "seconds":
            made += [
                Run(part, agent, BETA, queries, seed) for agent, queries in longer(done).items()
            ]
        if sweep := SWEEPS.get(part):
            made += [
                Run(part, "pi-ft", beta, sweep.iterations * sweep.paths, seed)
                for beta in reversed(BETAS)
            ]
        if part == "paper":
            made += [Run(part, agent, BETA, 10_000, seed) for agent in ("pi-ft", "dpok")]
    return made


def longer(done: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Reward queries that cost the methods cheaper than PI-FT as many seconds, rounded up to 250,
    by their seed 0.
    """
    first = {agent: done.get(Run("queries", agent, BETA, QUERIES, 0).name) for agent in AGENTS}
    ours = first.pop("pi-ft")
    if ours is None:
        return {}
    ratios = {
        agent: ours["seconds"] / found["seconds"]
        for agent, found in first.items()
        if found is not None
    }
    return {
        agent: 250 * math.ceil(QUERIES / 250 * ratio)
        for agent, ratio in ratios.items()
        if ratio > 1
    }


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


def reference_of(problem: Problem, paths: int, out: Path) -> Reference:
    """J(0) and the bound at ``BETA``, from the folder's file."""
    return cached_reference(
        problem, {"env": ENV, "beta": BETA, "reference_paths": paths}, out / "reference.json"
    )


def execute(
    run: Run, out: Path, reference_paths: int, paths: int = 128, final_paths: int = 2000
) -> dict[str, Any]:
    """Learn, then measure on fresh paths."""
    torch.set_num_threads(1)
    problem = make_problem(ENV, temperature=run.beta)
    reference = reference_of(problem, reference_paths, out) if run.beta == BETA else None
    model = AGENTS[run.agent](problem, seed=run.seed, device="cpu", **run.settings)
    curve: list[dict[str, float]] = []
    watch = Watch(Gauge(problem, reference, paths), run.points, math.inf, curve.append)  # type: ignore[arg-type]
    model.learn(Budget(run.queries).timesteps(problem.horizon, model.n_envs), watch)
    policy = policy_of(model, problem)
    final = Gauge(problem, reference, final_paths).measure(policy, FINAL_SEED)
    if run.part in ("queries", "paper") and run.seed == 0:
        keep_samples(problem, policy, out / f"samples_{run.part}_{run.agent}.npz")
        keep_samples(problem, None, out / "samples_pre-trained.npz")
    digits = [
        {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in row.items()
        }
        for row in curve
    ]
    spent = {name: digits[-1][name] for name in ("queries", "env_steps", "seconds")}
    return {**spent, **final, "curve": digits, "gradient_norms": watch.norms}


def keep_samples(problem: Problem, policy: Policy | None, path: Path) -> None:
    """The first images that the policy makes of the noises of ``SAMPLE_SEED``, the same for all."""
    states = evaluate(problem, policy, 32, generator_on(problem, SAMPLE_SEED)).states
    np.savez_compressed(path, images=states.half().numpy())


def finished(out: Path) -> dict[str, dict[str, Any]]:
    """Runs by name; a torn last line does not count."""
    return {line["run"]: line for line in read_lines(out / "runs.jsonl")}


def run(
    parts: tuple[PartName, ...] = (
        "queries",
        "betas",
        "betas-slow",
        "betas-many",
        "seconds",
        "paper",
    ),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    agents: tuple[str, ...] = tuple(AGENTS),
    reference_paths: int = 1 << 14,
    out: Path = RESULTS,
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
    check_writable(out)
    command = shlex.join(["python", "benchmarks/digits_fine_tuning.py", *sys.argv[1:]])
    for part in parts:
        for one in runs(part, seeds, finished(out)):
            if one.agent not in agents or one.name in finished(out):
                continue
            found = execute(one, out, reference_paths)
            append(
                out / "runs.jsonl",
                {"run": one.name, **asdict(one), **found, "command": command, **provenance()},
            )
            print(
                f"{one.name}: J {found['objective']:.3f}, KL {found['kl']:.2f},"
                f" {found['seconds']:.0f} CPU s",
                flush=True,
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


def convergence(line: dict[str, Any]) -> dict[str, float]:
    """Iterations until a run of ``betas`` has converged, by all three answers."""
    curve = line["curve"]
    at = [row["queries"] // SWEEPS[line["part"]].paths for row in curve]
    column = {name: [row[name] for row in curve] for name in ("objective", "reward", "kl")}
    policy = max(settled(column["reward"], 0.1), settled(column["kl"], 0.1))
    objective, nat = settled(column["objective"], 0.05), settled(column["kl"], within=1.0)
    return {"policy": at[policy], "objective": at[objective], "nat": at[nat]}


def _spread(values: Sequence[float], digits: int = 3) -> str:
    low, middle, high = (
        f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def _groups(lines: Sequence[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    found: dict[Any, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line[key], []).append(line)
    return found


def score_table(lines: Sequence[dict[str, Any]], rivals: Sequence[dict[str, Any]]) -> list[str]:
    """Medians by agent, and how many of PI-FT's seeds score above the same seed of the agent."""
    ours = {line["seed"]: line["score"] for line in rivals if line["agent"] == "pi-ft"}
    text = [
        (
            "| method | reward queries | score | KL | taken for a 3 | CPU s | PI-FT's 2,000 queries"
            " minus it, by seed |"
        ),
        "|" + " --- |" * 7,
    ]
    for agent, group in _groups(lines, "agent").items():
        column = {
            key: [line[key] for line in group] for key in ("score", "kl", "success", "seconds")
        }
        ahead = [
            ours[line["seed"]] - line["score"]
            for line in group
            if line["seed"] in ours and agent != "pi-ft"
        ]
        cells = (
            f"{group[0]['queries']:,}",
            _spread(column["score"]),
            _spread(column["kl"], 2),
            _spread(column["success"], 2),
        )
        seconds = f"{statistics.median(column['seconds']):.0f}"
        text.append(f"| {' | '.join((agent, *cells, seconds, _spread(ahead) if ahead else ''))} |")
    return text


def beta_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    text = [
        "| beta | converged as a policy | in its worth | KL within a nat | KL | reward | objective"
        " | seeds |"
    ]
    text += ["|" + " --- |" * 8]
    for beta, group in sorted(_groups(lines, "beta").items()):
        when = [convergence(line) for line in group]
        cells = [_spread([w[name] for w in when], 0) for name in ("policy", "objective", "nat")]
        cells += [
            _spread([line[name] for line in group], 2) for name in ("kl", "reward", "objective")
        ]
        text.append(f"| {beta:g} | {' | '.join(cells)} | {len(group)} |")
    return text


def draw_betas(lines: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), dpi=100, layout="constrained")
    panels = figure.subplots(1, 3)
    for i, (beta, group) in enumerate(sorted(_groups(lines, "beta").items())):
        norms = np.median([line["gradient_norms"] for line in group], 0)
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(norms, 20), 1)
        curves = [(np.arange(len(smooth)) + 20, smooth)]
        for name in ("reward", "kl"):
            at = [row["queries"] // SWEEPS[group[0]["part"]].paths for row in group[0]["curve"]]
            curves.append(
                (
                    np.array(at),
                    np.median([[row[name] for row in line["curve"]] for line in group], 0),
                )
            )
        for axes, (x, y) in zip(panels, curves, strict=True):
            axes.plot(x, y, color=f"C{i}", label=f"beta {beta:g}")
    for axes, name in zip(
        panels, ("gradient norm (running median of 20)", "reward", "KL (nats)"), strict=True
    ):
        axes.set(xlabel="iterations", title=name)
    panels[0].set_yscale("log")
    panels[2].set_yscale("symlog", linthresh=1)
    panels[2].legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def draw_curves(lines: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part, unit in zip(
        panels, ("queries", "seconds"), ("queries", "seconds"), strict=True
    ):
        for i, agent in enumerate(AGENTS):
            chosen = [x for x in lines if x["agent"] == agent and x["part"] == part]
            if not chosen:  # no cheaper than PI-FT: one run serves for both
                chosen = [x for x in lines if x["agent"] == agent and x["part"] == "queries"]
            for number, line in enumerate(chosen):
                x, y = ([row[name] for row in line["curve"]] for name in (unit, "score"))
                axes.plot(x, y, color=f"C{i}", linewidth=1, label=agent if number == 0 else None)
        axes.set(
            xlabel="reward queries" if unit == "queries" else "CPU seconds of training",
            ylim=(-1, 1.02),
        )
    panels[0].set_ylabel("score")
    panels[0].legend(loc="lower right", fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def draw_samples(part: str, agents: Sequence[str], title: str, out: Path) -> str | None:
    """One grid an agent, from the same noises; None if there are none."""
    files = {"pre-trained": out / "samples_pre-trained.npz"}
    files |= {
        agent: path for agent in agents if (path := out / f"samples_{part}_{agent}.npz").is_file()
    }
    if len(files) < 2 or not files["pre-trained"].is_file():
        return None
    figure = samples(
        {name: np.load(path)["images"].astype(np.float32) for name, path in files.items()}, title
    )
    figure.savefig(out / f"samples_{part}.png")
    return f"![samples](samples_{part}.png)"


def report(out: Path = RESULTS) -> None:
    """Write ``report.md`` and its figures: medians over seeds, and the worst and the best."""
    lines = sorted(
        finished(out).values(), key=lambda line: (list(AGENTS).index(line["agent"]), line["seed"])
    )
    if not lines:
        raise ValueError(f"out must hold finished runs; got none in {out}")
    parts = _groups(lines, "part")
    queries = parts.get("queries", [])
    text = [
        "# Fine-tuning Digits-v0",
        "",
        (
            "Medians over seeds; brackets hold the least and the largest. What each part is:"
            " `benchmarks/digits_fine_tuning.py`."
        ),
    ]
    if queries:
        bound = Reference.from_json(
            json.loads((out / "reference.json").read_text())["reference"]
        ).certificate
        text += [
            "",
            f"## Equal reward queries and environment steps (beta {BETA})",
            "",
            *score_table(queries, queries),
            "",
        ]
        text.append(
            f"Scores: 0 the pre-trained model, 1 the bound {bound.bound:.3f} ({bound.ess:.0f} of"
            f" {bound.n} paths carry it)."
        )
        draw_curves([*queries, *parts.get("seconds", [])], out / "curves.png")
        text += ["", "![scores against cost](curves.png)", ""]
        text += (
            [line]
            if (line := draw_samples("queries", list(AGENTS), "the same noises", out))
            else []
        )
    if "seconds" in parts:
        text += ["", "## Equal CPU seconds", "", *score_table(parts["seconds"], queries), ""]
        text.append(
            "Cheaper methods that are missing here were not run; those that are not cheaper need no"
            " second run."
        )
    for part, sweep in SWEEPS.items():
        if part in parts:
            draw_betas(parts[part], out / f"{sweep.figure}.png")
            text += [
                "",
                (
                    f"## Figure 3: {sweep.iterations} iterations of {sweep.paths} paths at five"
                    f" temperatures, {sweep.words}"
                ),
            ]
            text += ["", *beta_table(parts[part]), "", f"![Figure 3]({sweep.figure}.png)"]
    if "paper" in parts:
        text += [
            "",
            "## Figure 1: the paper's costs",
            "",
            *score_table(parts["paper"], queries),
            "",
        ]
        text += (
            [line]
            if (line := draw_samples("paper", ["dpok", "pi-ft"], "the same noises", out))
            else []
        )
    made = sorted(
        {
            f"`{x['command']}` (torch {x['versions']['torch']}, {x['hardware']['cpu']})"
            for x in lines
        }
    )
    write_whole(
        out / "report.md", "\n".join([*text, "", "Made by " + "; ".join(made) + ".", ""]).encode()
    )
    print(out / "report.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """See ``command_line``."""
    return command_line("digits_fine_tuning.py", __doc__, run, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
