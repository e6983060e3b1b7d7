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
AGENTS = {"dpok": "DPOK", "ddpo": "DDPO", "pde": "PDE guidance", "pi-ft": "PI-FT"}
POLICIES = {"lora": "LoRA adapters of rank 4", "mlp": "a network on the clean estimate"}
COLOURS = {PRETRAINED: "0.6", "dpok": "C1", "ddpo": "C4", "pde": "C2", "pi-ft": "C0"}


# --- figures out of lines


def value_of(line: Line) -> np.ndarray:
    """Reward less the price of KL, path by path."""
    return np.array(line["reward"]) - line["job"]["temperature"] * np.array(line["kl"])


def of_method(lines: Sequence[Line], method: str, policy: str, **wanted: Any) -> list[Line]:
    """Lines of a method by seed; the pre-trained model has no policy."""
    policy = "-" if method == PRETRAINED else policy
    return chosen(lines, agent=method, policy=policy, **wanted)


def difference(
    one: Sequence[Line], two: Sequence[Line], of: Any = lambda line: np.array(line["reward"])
) -> tuple[float, float]:
    """Mean of ``one`` less ``two`` and its standard error, of path-wise means over seeds: both saw
    the same noises.
    """
    gap = np.mean([of(line) for line in one], 0) - np.mean([of(line) for line in two], 0)
    spread = [np.mean(of(line)) for line in one]
    seeds = np.var(spread, ddof=1) / len(spread) if len(spread) > 1 else 0.0
    return float(gap.mean()), float(math.sqrt(gap.var(ddof=1) / len(gap) + seeds))


def sweep(lines: Sequence[Line], policy: str) -> list[Line]:
    """PI-FT on the swept prompt by falling beta, one seed."""
    mine = {"policy": policy, "prompt": SWEPT, "agent": "pi-ft", "seed": 0}
    found = [line for study in ("betas", "prompts") for line in chosen(lines, study=study, **mine)]
    return sorted(found, key=lambda line: -line["job"]["temperature"])


def smooth(values: Sequence[float], over: int = 7) -> np.ndarray:
    """Running mean, shorter at the ends."""
    values = np.asarray(values, float)
    half = over // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def claims(lines: Sequence[Line], policy: str) -> list[tuple[str, bool, str]]:
    """What the paper says, whether it holds here, and the figures: ``holds`` means by more than two
    standard errors.
    """
    found = []
    for prompt in PROMPTS:
        before, other, mine = (
            of_method(lines, method, policy, study="prompts", prompt=prompt)
            for method in (PRETRAINED, "dpok", "pi-ft")
        )
        pairs = {"PI-FT above DPOK": (mine, other), "DPOK above pre-trained": (other, before)}
        for words, (one, two) in pairs.items():
            if one and two:
                gap, error = difference(one, two)
                found.append((f"{words}: {prompt}", gap > 2 * error, f"{gap:+.3f} +- {error:.3f}"))
    rising = sweep(lines, policy)
    betas = [f"{line['job']['temperature']:g}" for line in rising]
    for what, name in (("reward", "reward"), ("kl", "KL")):
        means = [float(np.mean(line[what])) for line in rising]
        if len(means) > 1:
            text = ", ".join(f"{b}: {m:.3f}" for b, m in zip(betas, means, strict=True))
            holds = all(a < b for a, b in zip(means, means[1:], strict=False))
            found.append((f"{name} rises as beta falls", holds, text))
    return found


# --- words


def report(out: Path = HERE) -> None:
    """Write report.md, report.json and the figures for the finished cells.

    Args:
        out: folder that ``stable_diffusion.py`` filled.
    """
    lines = list(bench.runs_of(out, some=True).values())
    drawn = {"rewards": bars, "samples": pictures, "betas": curves, "samples_betas": beta_pictures}
    parts, figures, summary = [HEAD.strip()], {}, {}
    for policy, words in POLICIES.items():
        if not chosen(lines, policy=policy):
            continue
        parts.append(f"## What is trained: {words}")
        for kind, draw in drawn.items():
            if (figure := draw(lines, policy)) is not None:
                name = f"{kind}_{policy}"
                figures[name] = figure
                parts.append(f"![{name.replace('_', ' ')}]({name}.png)")
        said = (_main_table, _claims_table, _beta_table, _brightness)
        parts += [tell(lines, policy) for tell in said]
        found = claims(lines, policy)
        summary[policy] = [{"claim": c, "holds": h, "figures": f} for c, h, f in found]
    bench.write(out, [*parts, _made_with(lines)], summary, **figures)


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


def _pm(values: np.ndarray) -> str:
    return f"{values.mean():.3f} +- {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def _figures(group: Sequence[Line]) -> list[str]:
    """Reward, KL, J, judged share, CPU seconds: means over seeds of path-wise figures."""
    reward, kl = (np.mean([line[name] for line in group], 0) for name in ("reward", "kl"))
    value = np.mean([value_of(line) for line in group], 0)
    judged = np.mean([line["judged"]["both"] for line in group])
    seconds = np.mean([line["cpu_seconds"] for line in group])
    return [_pm(reward), f"{kl.mean():.2f}", _pm(value), f"{judged:.0%}", f"{seconds:.0f}"]


_SHORT = ["method", "reward", "KL", "J", "judged right", "CPU s"]


def _main_table(lines: Sequence[Line], policy: str) -> str:
    rows = []
    for prompt in PROMPTS:
        before = chosen(lines, study="prompts", prompt=prompt, agent=PRETRAINED)
        if before:
            bound = before[0]["bounds"][f"{before[0]['job']['temperature']:g}"]
            said = f"{bound['bound']:.3f}" + ("" if bound["certified"] else " (not certified)")
            rows.append([prompt, f"pre-trained; no J above {said}", "-", *_figures(before)])
        for agent, words in AGENTS.items():
            group = of_method(lines, agent, policy, study="prompts", prompt=prompt)
            if group:
                rows.append([prompt, words, str(len(group)), *_figures(group)])
    heads = "prompt|method|seeds|reward|KL|J = reward - beta KL|judged right|CPU s".split("|")
    beta = min(line["job"]["temperature"] for line in chosen(lines, study="prompts"))
    paths = " or ".join(str(n) for n in sorted({len(line["reward"]) for line in lines}))
    mine = chosen(lines, study="prompts", policy=policy)
    spent = sorted({line["reward_queries"] for line in mine})
    queries = " to ".join(f"{n:,}" for n in dict.fromkeys((spent[0], spent[-1])))
    text = (
        f"Means over {paths} noises, the same for all, with their standard errors; beta {beta:g};"
        f" every method saw {queries} rewards a model. Judged right: a forest that the reward knows"
        " nothing of takes the image for the digit, and the ink is nearest to the colour."
    )
    return f"{text} {TUNING[policy]}\n\n{bench.table(heads, rows)}"


def _claims_table(lines: Sequence[Line], policy: str) -> str:
    rows = [[c, "yes" if holds else "**no**", told] for c, holds, told in claims(lines, policy)]
    head = (
        "The paper's claims; differences of rewards are paired over the noises and hold when above"
        " two standard errors."
    )
    return f"{head}\n\n{bench.table(['claim', 'holds', 'figures'], rows)}" if rows else ""


def _beta_table(lines: Sequence[Line], policy: str) -> str:
    found = sweep(lines, policy)
    rows = [[f"{line['job']['temperature']:g}", *_figures([line])] for line in found]
    head = f'PI-FT on "{SWEPT}" by beta, seed 0.'
    return f"{head}\n\n{bench.table(['beta', *_SHORT[1:]], rows)}" if len(found) > 1 else ""


def _brightness(lines: Sequence[Line], policy: str) -> str:
    before = chosen(lines, study="brightness", agent=PRETRAINED)
    rows = []
    for agent, words in AGENTS.items():
        group = of_method(lines, agent, policy, study="brightness")
        if group and before:
            gap, error = difference(group, before)
            told = f"{words} ({gap:+.4f} +- {error:.4f} against pre-trained)"
            rows.append([told, *_figures(group)])
    if not rows:
        return ""
    beta = before[0]["job"]["temperature"]
    head = (
        f'Another reward, brightness (mean intensity, 0 to 1), on "{SWEPT}", beta {beta:g}, seed 0.'
    )
    return f"{head}\n\n{bench.table(_SHORT, [[PRETRAINED, *_figures(before)], *rows])}"


def _made_with(lines: Sequence[Line]) -> str:
    made = bench.made_with(
        sorted({line["command"] for line in lines}),
        bench.distinct(line["hardware"] for line in lines),
        bench.distinct(line["versions"] for line in lines),
        "{cpu}, {cores} cores, {system}; one thread a model",
    )
    minutes = sum(line["cpu_seconds"] for line in lines) / 60
    return f"## Made with\n{made}\n- {minutes:.0f} CPU minutes of training in all"


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
    for i, (method, words) in enumerate(methods.items()):
        label: str | None = words
        for j, prompt in enumerate(PROMPTS):
            group = of_method(lines, method, policy, study="prompts", prompt=prompt)
            if not group:
                continue
            mean = np.mean([line["reward"] for line in group], 0)
            x = j + (i - (len(methods) - 1) / 2) * 0.16
            look: Any = {"yerr": mean.std(ddof=1) / math.sqrt(len(mean)), "capsize": 2}
            axes.bar(x, mean.mean(), 0.15, color=COLOURS[method], label=label, **look)
            label = None
            if len(group) > 1:
                dots = [np.mean(line["reward"]) for line in group]
                axes.plot([x] * len(group), dots, "k.", markersize=3)
    axes.set_xticks(range(len(PROMPTS)), [f'"{prompt}"' for prompt in PROMPTS])
    axes.set_ylabel("reward (log-probability)")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.grid(alpha=0.2, axis="y")
    axes.legend(ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    return figure


def _strip(axes: Any, line: Line | None, columns: int, words: str = "") -> None:
    axes.set(xticks=[], yticks=[], frame_on=False)
    if line is not None and "samples" in line:
        images = bench.as_array(line["samples"])[:columns] / 127.5 - 1
        axes.imshow(grid_of(images, 1, columns), interpolation="nearest")
    if words:
        axes.set_ylabel(words, fontsize=8, rotation=0, ha="right", va="center")


def pictures(lines: Sequence[Line], policy: str, columns: int = 8) -> Any:
    """Figure 2: prompts down, methods across, the same noises everywhere; the first seed of
    each.
    """
    methods = _methods(lines, policy)
    figure = bench.figure(2.6 * len(methods), 0.37 * len(PROMPTS) + 0.3, 150)
    panels = figure.subplots(len(PROMPTS), len(methods), squeeze=False)
    for row, prompt in zip(panels, PROMPTS, strict=True):
        for axes, method in zip(row, methods, strict=True):
            group = of_method(lines, method, policy, study="prompts", prompt=prompt)
            words = prompt if method == PRETRAINED else ""
            _strip(axes, group[0] if group else None, columns, words)
            if prompt == PROMPTS[0]:
                axes.set_title(methods[method], fontsize=10)
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
    before = chosen(lines, study="prompts", prompt=SWEPT, agent=PRETRAINED)
    found = {PRETRAINED: before[0]} if before else {}
    found |= {f"beta {line['job']['temperature']:g}": line for line in sweep(lines, policy)}
    if len(found) < 3:
        return None
    figure = bench.figure(7.5, 0.62 * len(found) + 0.1, 150)
    for axes, (words, line) in zip(figure.subplots(len(found), 1), found.items(), strict=True):
        _strip(axes, line, columns, words)
    return figure
