"""What ``stable_diffusion.py`` measured, laid out as the paper's Figures 1 to 4: bars, samples,
curves for a sweep of beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reports
import resumable as bench
from reports import chosen
from resumable import Line

from girsanov.scoreboard.plots import empty_figure, samples

PROMPTS = ("a green six", "a yellow three", "a blue seven", "a white nine")
SWEPT = PROMPTS[1]
BETAS = (0.03, 0.1, 0.3, 1.0)
PRETRAINED = "pre-trained"
#: Methods by their names in the report, and their colours.
AGENTS = {"dpok": "DPOK", "ddpo": "DDPO", "pde": "PDE guidance", "pi-ft": "PI-FT"}
COLOURS = {PRETRAINED: "0.6", "dpok": "C1", "ddpo": "C4", "pde": "C2", "pi-ft": "C0"}


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
    return reports.paired(rewards(one), rewards(two).mean(0))


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
                found.append((f"{words}: {prompt}", gap > 2 * error, reports.pm(gap, error)))
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


def told(lines: Sequence[Line], out: Path) -> dict[str, Any]:
    """Tables and figures of the finished cells."""
    minutes = sum(line["cpu_seconds"] for line in lines) / 60
    found: dict[str, Any] = {
        "made": f"{reports.made_by(lines)} {minutes:.0f} CPU minutes of learning in all."
    }
    for policy in ("lora", "mlp"):
        there = bool(chosen(lines, policy=policy))
        for name, table in _TABLES.items():
            found[f"{policy}_{name}"] = table(lines, policy) if there else ""
        for name, draw in _PICTURES.items():
            found[f"{name}_{policy}"] = draw(lines, policy) if there else None
    return found


def _figures(group: Sequence[Line]) -> list[str]:
    """Reward, KL, J, judged share, CPU seconds: means over seeds of path-wise figures."""

    def told(values: np.ndarray) -> str:
        return reports.pm(values.mean(), values.std(ddof=1) / math.sqrt(len(values)), ".3f")

    reward, kl = rewards(group).mean(0), np.mean([line["kl"] for line in group], 0)
    judged = np.mean([line["judged"]["both"] for line in group])
    seconds = np.mean([line["cpu_seconds"] for line in group])
    value = reward - group[0]["job"]["temperature"] * kl
    return [told(reward), f"{kl.mean():.2f}", told(value), f"{judged:.0%}", f"{seconds:.0f}"]


def _main(lines: Sequence[Line], policy: str) -> str:
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
    heads = "prompt|method|seeds|reward|KL|J = reward - beta KL|judged right|CPU s"
    return reports.table(heads, rows)


def _claims(lines: Sequence[Line], policy: str) -> str:
    return reports.table("claim|holds|figures", claims(lines, policy))


def _betas(lines: Sequence[Line], policy: str) -> str:
    found = sweep(lines, policy)
    rows = [[f"{line['job']['temperature']:g}", *_figures([line])] for line in found]
    return reports.table("beta|reward|KL|J|judged right|CPU s", rows)


def _brightness(lines: Sequence[Line], policy: str) -> str:
    rows = []
    before = of_method(lines, PRETRAINED, policy, SWEPT, "brightness")
    for agent, words in _methods(lines, policy).items():
        group = of_method(lines, agent, policy, SWEPT, "brightness")
        if group and agent != PRETRAINED:
            gap = reports.pm(*difference(group, before), "+.4f")
            words = f"{words} ({gap} against pre-trained)"
        rows += [[words, *_figures(group)]] if group and before else []
    return reports.table("method|reward|KL|J|judged right|CPU s", rows)


# --- pictures


def _methods(lines: Sequence[Line], policy: str) -> dict[str, str]:
    """The methods that have been run, and their names."""
    present = {line["job"]["agent"] for line in chosen(lines, study="prompts", policy=policy)}
    return {PRETRAINED: PRETRAINED, **{a: words for a, words in AGENTS.items() if a in present}}


def bars(lines: Sequence[Line], policy: str) -> Any:
    """Figure 1: rewards by prompt and method; dots are seeds, lines standard errors over noises."""
    figure = empty_figure(9, 3.6, 150)
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


def _images(group: Sequence[Line], n: int) -> np.ndarray:
    """The first ``n`` pictures of the first seed, in [-1, 1]."""
    return bench.as_array(group[0]["samples"])[:n] / 127.5 - 1


def pictures(lines: Sequence[Line], policy: str) -> Any:
    """Figure 2: prompts down, methods across, the same noises everywhere."""
    found = {
        words: [of_method(lines, method, policy, prompt) for prompt in PROMPTS]
        for method, words in _methods(lines, policy).items()
    }
    rows = {
        words: np.concatenate([_images(group, 8) for group in groups])
        for words, groups in found.items()
        if all(groups)
    }
    return samples(rows, f"from above: {', '.join(PROMPTS)}") if rows else None


def curves(lines: Sequence[Line], policy: str) -> Any | None:
    """Figure 3: gradient norm, reward and KL of PI-FT against gradient steps, by beta."""
    found = {}
    for line in reversed(sweep(lines, policy)):
        columns = {n: smooth([step[n] for step in line["curve"]]) for n in _CURVES}
        drawn = {_CURVES[name]: (np.arange(len(y)), y) for name, y in columns.items()}
        found[line["job"]["temperature"]] = drawn
    return reports.draw_by_beta(found, "gradient steps (running means of 7)") if found else None


_CURVES = {"gradient_norm": "gradient norm", "reward": "reward", "kl": "KL (nats)"}


def beta_pictures(lines: Sequence[Line], policy: str) -> Any | None:
    """Figure 4: samples by beta, the same noises everywhere."""
    found = {PRETRAINED: of_method(lines, PRETRAINED, policy, SWEPT)}
    found |= {f"beta {x['job']['temperature']:g}": [x] for x in sweep(lines, policy)}
    shown = {words: _images(group, 16) for words, group in found.items() if group}
    return samples(shown, SWEPT) if len(shown) > 2 else None


_TABLES = {"main": _main, "claims": _claims, "betas": _betas, "brightness": _brightness}
_PICTURES = {"rewards": bars, "samples": pictures, "betas": curves, "samples_betas": beta_pictures}
