"""What ``stable_diffusion.py`` measured, laid out as the paper's Figures 1 to 4: bars, samples,
curves for a sweep of beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import resumable as bench
from resumable import Line, chosen

from girsanov.scoreboard.plots import grid_of

HERE = bench.RESULTS / "stable_diffusion"
PROMPTS = ("a green six", "a yellow three", "a blue seven", "a white nine")
SWEPT = PROMPTS[1]
BETAS = (0.03, 0.1, 0.3, 1.0)
PRETRAINED = "pre-trained"
#: Methods by their names in the report, and their colours.
AGENTS = {"dpok": "DPOK", "ddpo": "DDPO", "pde": "PDE guidance", "pi-ft": "PI-FT"}
COLOURS = {PRETRAINED: "0.6", "dpok": "C1", "ddpo": "C4", "pde": "C2", "pi-ft": "C0"}
POLICIES = {"lora": "LoRA adapters of rank 4", "mlp": "a network on the clean estimate"}
#: What was tried, on the swept prompt with seed 0 (LoRA's DPOK and DDPO at other rates than 1e-3:
#: after the runs).
TUNING = {
    "lora": (
        "Learning rates, all falling to 0: PI-FT 3e-3 (of 1e-3, 3e-3), DPOK and DDPO 1e-3 (of 3e-4,"
        ' 1e-3, 3e-3, 1e-2, by J on "a yellow three", seed 0: DPOK -0.646, -0.592, -0.595, -0.694;'
        " DDPO -0.742, -0.705, -0.721, -0.793); PDE's are its defaults."
    ),
    "mlp": (
        "Learning rates, all falling to 0: PI-FT 1e-3 (of 3e-4, 1e-3, 3e-3), DPOK 2e-4 (of 2e-4,"
        " 1e-3), DDPO 2e-4 (the only trial); PDE's are its defaults."
    ),
}
HEAD = """
# The paper's experiment on a small text-to-image model

Fine-tuning the latent diffusion model of painted digits that ships with the package, on prompts
whose digit it never saw in that colour, laid out as in Han, Razaviyayn and Xu (2025), section 5.
The reward is the log-probability that the image shows what the prompt says (0 is certainty); no
guidance, 10 DDIM steps with eta = 1. How: `benchmarks/stable_diffusion.py`.
"""


# --- figures out of lines


def of_method(
    lines: Sequence[Line], method: str, policy: str, prompt: str, study: str = "prompts"
) -> list[Line]:
    """Lines of a method by seed; the pre-trained model has no policy."""
    policy = "-" if method == PRETRAINED else policy
    return chosen(lines, agent=method, policy=policy, prompt=prompt, study=study)


def rewards(group: Sequence[Line]) -> np.ndarray:
    """``(seeds, paths)``."""
    return np.array([line["reward"] for line in group])


def difference(one: Sequence[Line], two: Sequence[Line]) -> tuple[float, float]:
    """Mean reward of ``one`` less that of ``two`` over its seeds, and the standard error."""
    return bench.paired(rewards(one), rewards(two).mean(0))


def sweep(lines: Sequence[Line], policy: str) -> list[Line]:
    """PI-FT on the swept prompt by falling beta, one seed."""
    found = [
        x for study in ("betas", "prompts") for x in of_method(lines, "pi-ft", policy, SWEPT, study)
    ]
    return sorted(chosen(found, seed=0), key=lambda line: -line["job"]["temperature"])


def smooth(values: Sequence[float], half: int = 3) -> np.ndarray:
    """Running mean, shorter at the ends."""
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def claims(lines: Sequence[Line], policy: str) -> list[list[str]]:
    """What the paper says, whether it holds here, and the figures: it does by more than two
    standard errors.
    """
    found = []
    for prompt in PROMPTS:
        before, other, mine = (
            of_method(lines, method, policy, prompt) for method in (PRETRAINED, "dpok", "pi-ft")
        )
        pairs = {"PI-FT above DPOK": (mine, other), "DPOK above pre-trained": (other, before)}
        for words, (one, two) in pairs.items():
            if one and two:
                gap, error = difference(one, two)
                found.append((f"{words}: {prompt}", gap > 2 * error, bench.pm(gap, error)))
    rising = sweep(lines, policy)
    for what, name in (("reward", "reward"), ("kl", "KL")):
        means = {f"{x['job']['temperature']:g}": float(np.mean(x[what])) for x in rising}
        if len(means) > 1:
            values = list(means.values())
            holds = all(a < b for a, b in zip(values, values[1:], strict=False))
            text = ", ".join(f"{b}: {m:.3f}" for b, m in means.items())
            found.append((f"{name} rises as beta falls", holds, text))
    return [[claim, "yes" if holds else "**no**", told] for claim, holds, told in found]


# --- words


def report(out: Path = HERE) -> None:
    """Write report.md and the figures for the finished cells."""
    lines = bench.lines_of(out)
    drawn = {"rewards": bars, "samples": pictures, "betas": curves, "samples_betas": beta_pictures}
    parts, figures = [HEAD.strip()], {}
    for policy, words in POLICIES.items():
        if not chosen(lines, policy=policy):
            continue
        parts.append(f"## What is trained: {words}")
        for kind, draw in drawn.items():
            if (figure := draw(lines, policy)) is not None:
                name = f"{kind}_{policy}"
                figures[name] = figure
                parts.append(f"![{name.replace('_', ' ')}]({name}.png)")
        told = [_main_table, _claims_table, _beta_table, _brightness]
        parts += [tell(lines, policy) for tell in told]
    minutes = sum(line["cpu_seconds"] for line in lines) / 60
    made = f"{bench.made_by(lines)} {minutes:.0f} CPU minutes of training in all."
    bench.write(out, [*parts, "## Made with", made], **figures)


def _figures(group: Sequence[Line]) -> list[str]:
    """Reward, KL, J, judged share, CPU seconds: means over seeds of path-wise figures."""

    def told(values: np.ndarray) -> str:
        return bench.pm(values.mean(), values.std(ddof=1) / math.sqrt(len(values)), ".3f")

    reward, kl = rewards(group).mean(0), np.mean([line["kl"] for line in group], 0)
    judged = np.mean([line["judged"]["both"] for line in group])
    seconds = np.mean([line["cpu_seconds"] for line in group])
    value = reward - group[0]["job"]["temperature"] * kl
    return [told(reward), f"{kl.mean():.2f}", told(value), f"{judged:.0%}", f"{seconds:.0f}"]


def _main_table(lines: Sequence[Line], policy: str) -> str:
    rows = []
    for prompt in PROMPTS:
        for agent, words in _methods(lines, policy).items():
            group = of_method(lines, agent, policy, prompt)
            seeds = str(len(group))
            if group and agent == PRETRAINED:
                bound = group[0]["bounds"][f"{group[0]['job']['temperature']:g}"]
                doubt = "" if bound["certified"] else " (not certified)"
                words, seeds = f"{words}; no J above {bound['bound']:.3f}{doubt}", "-"
            rows += [[prompt, words, seeds, *_figures(group)]] if group else []
    mine = chosen(lines, study="prompts", policy=policy)
    beta = mine[0]["job"]["temperature"]
    paths = " or ".join(str(n) for n in sorted({len(line["reward"]) for line in lines}))
    spent = sorted({line["reward_queries"] for line in mine})
    queries = " to ".join(f"{n:,}" for n in dict.fromkeys((spent[0], spent[-1])))
    text = (
        f"Means over {paths} noises, the same for all, with their standard errors; beta {beta:g};"
        f" every method saw {queries} rewards a model. Judged right: a forest that the reward knows"
        " nothing of takes the image for the digit, and the ink is nearest to the colour."
    )
    heads = "prompt|method|seeds|reward|KL|J = reward - beta KL|judged right|CPU s"
    return f"{text} {TUNING[policy]}\n\n{bench.table(heads, rows)}"


def _claims_table(lines: Sequence[Line], policy: str) -> str:
    rows = claims(lines, policy)
    head = (
        "The paper's claims; differences of rewards are paired over the noises and hold when above"
        " two standard errors."
    )
    return f"{head}\n\n{bench.table('claim|holds|figures', rows)}" if rows else ""


def _beta_table(lines: Sequence[Line], policy: str) -> str:
    found = sweep(lines, policy)
    rows = [[f"{line['job']['temperature']:g}", *_figures([line])] for line in found]
    table = bench.table("beta|reward|KL|J|judged right|CPU s", rows)
    return f'PI-FT on "{SWEPT}" by beta, seed 0.\n\n{table}' if len(found) > 1 else ""


def _brightness(lines: Sequence[Line], policy: str) -> str:
    before = chosen(lines, study="brightness", agent=PRETRAINED)
    rows = []
    for agent, words in AGENTS.items():
        group = of_method(lines, agent, policy, SWEPT, "brightness")
        if group and before:
            gap = bench.pm(*difference(group, before), "+.4f")
            rows.append([f"{words} ({gap} against pre-trained)", *_figures(group)])
    if not rows:
        return ""
    beta = before[0]["job"]["temperature"]
    head = (
        f'Another reward, brightness (mean intensity, 0 to 1), on "{SWEPT}", beta {beta:g}, seed 0.'
    )
    rows = [[PRETRAINED, *_figures(before)], *rows]
    return f"{head}\n\n{bench.table('method|reward|KL|J|judged right|CPU s', rows)}"


# --- pictures


def _methods(lines: Sequence[Line], policy: str) -> dict[str, str]:
    """The methods that have been run, and their names."""
    present = {line["job"]["agent"] for line in chosen(lines, study="prompts", policy=policy)}
    return {PRETRAINED: PRETRAINED, **{a: words for a, words in AGENTS.items() if a in present}}


def bars(lines: Sequence[Line], policy: str) -> Any:
    """Figure 1: rewards by prompt and method; dots are seeds, lines standard errors over noises."""
    figure = bench.figure(9, 3.6, 150)
    axes = figure.subplots()
    methods = _methods(lines, policy)
    for i, (method, label) in enumerate(methods.items()):
        groups = [of_method(lines, method, policy, prompt) for prompt in PROMPTS]
        found = {j: rewards(group) for j, group in enumerate(groups) if group}
        x = np.array(list(found)) + (i - (len(methods) - 1) / 2) * 0.16
        means = [values.mean(0) for values in found.values()]
        errors = [mean.std(ddof=1) / math.sqrt(len(mean)) for mean in means]
        look: Any = {"yerr": errors, "capsize": 2, "color": COLOURS[method], "label": label}
        axes.bar(x, [mean.mean() for mean in means], 0.15, **look)
        for at, values in zip(x, found.values(), strict=True):
            if len(values) > 1:
                axes.plot([at] * len(values), values.mean(1), "k.", markersize=3)
    axes.set_xticks(range(len(PROMPTS)), [f'"{prompt}"' for prompt in PROMPTS])
    axes.set_ylabel("reward (log-probability)")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.grid(alpha=0.2, axis="y")
    axes.legend(ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    return figure


def _strip(axes: Any, group: Sequence[Line], columns: int, words: str = "") -> None:
    axes.set(xticks=[], yticks=[], frame_on=False)
    if group and "samples" in group[0]:
        images = bench.as_array(group[0]["samples"])[:columns] / 127.5 - 1
        axes.imshow(grid_of(images, 1, columns), interpolation="nearest")
    axes.set_ylabel(words, fontsize=8, rotation=0, ha="right", va="center")


def pictures(lines: Sequence[Line], policy: str, columns: int = 8) -> Any:
    """Figure 2: prompts down, methods across, the same noises everywhere; the first seed of
    each.
    """
    methods = _methods(lines, policy)
    figure = bench.figure(2.6 * len(methods), 0.37 * len(PROMPTS) + 0.3, 150)
    panels = figure.subplots(len(PROMPTS), len(methods), squeeze=False)
    for row, prompt in zip(panels, PROMPTS, strict=True):
        for axes, (method, title) in zip(row, methods.items(), strict=True):
            words = prompt if method == PRETRAINED else ""
            _strip(axes, of_method(lines, method, policy, prompt), columns, words)
            if prompt == PROMPTS[0]:
                axes.set_title(title, fontsize=10)
    return figure


def curves(lines: Sequence[Line], policy: str) -> Any | None:
    """Figure 3: gradient norm, reward and KL of PI-FT against gradient steps, by beta."""
    found = [line for line in sweep(lines, policy) if line["curve"]]
    if len(found) < 2:
        return None
    figure = bench.figure(12, 3.4, 150)
    panels = figure.subplots(1, 3)
    shown = {"gradient_norm": "gradient norm", "reward": "reward", "kl": "KL divergence"}
    for axes, (what, words) in zip(panels, shown.items(), strict=True):
        for i, line in enumerate(found):
            values = [step[what] for step in line["curve"] if what in step]
            axes.plot(values, color=f"C{i}", linewidth=0.5, alpha=0.35)
            axes.plot(smooth(values), color=f"C{i}", label=f"beta {line['job']['temperature']:g}")
        axes.set(xlabel="gradient steps", ylabel=words)
        axes.grid(alpha=0.2)
    panels[0].set_yscale("log")
    panels[0].legend(fontsize=8)
    title = f'PI-FT on "{SWEPT}": means of 10 trajectories a step, and their running mean'
    figure.suptitle(title, fontsize=10)
    return figure


def beta_pictures(lines: Sequence[Line], policy: str, columns: int = 12) -> Any | None:
    """Figure 4: samples by beta, the same noises in every row; the pre-trained model on top."""
    found = {PRETRAINED: of_method(lines, PRETRAINED, policy, SWEPT)}
    found |= {f"beta {line['job']['temperature']:g}": [line] for line in sweep(lines, policy)}
    if len(found) < 3:
        return None
    figure = bench.figure(7.5, 0.62 * len(found) + 0.1, 150)
    for axes, (words, group) in zip(figure.subplots(len(found), 1), found.items(), strict=True):
        _strip(axes, group, columns, words)
    return figure
