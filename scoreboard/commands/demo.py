"""A first look: a diffusion model of digits before and after it was told to draw a 3, and how near
that is to the best there can be.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...envs.rendering import canvas
from ..evaluation import Reference
from ..plots import grid_of
from ..registry import make_env
from ..runner import execute
from ..spec import Budget, EvaluationPlan, RunSpec
from ..storage.records import RunFolder, write_whole

_IMAGES = 32


def demo_spec(queries: int, seed: int) -> RunSpec:
    """PI-FT on Digits at a small budget, watched no more than needed."""
    plan = EvaluationPlan(6, 32, 256, 1024, _IMAGES)
    return RunSpec("girsanov/Digits-v0", "pi-ft", seed, Budget(queries), device="cpu", plan=plan)


def demo(
    out: Path, queries: int = 1000, seed: int = 0, on_stage: Callable[[str], None] = print
) -> tuple[Path, str]:
    """Fine-tune, draw the same noises before and after side by side, and say what came out.

    Args:
        out: folder of everything.
        queries: images whose reward is asked for.
        seed: of the agent.
        on_stage: called with a word on what begins.

    Returns:
        The picture's path, and the paragraph.
    """
    spec = demo_spec(queries, seed)
    begun = False

    def on_row(row: dict[str, Any]) -> None:
        nonlocal begun
        seen = f"{row['reward_queries']:,} of {queries:,} images seen, "
        on_stage(f"{seen}{row['success']:.0%} are taken for a 3" if begun else "learning")
        begun = True

    record = execute(spec, out, "train.py demo", on_row, on_stage)
    on_stage("drawing")
    problem = make_env(spec.env, spec.env_kwargs, spec.device).problem
    files = (spec.env_folder(out) / "samples_before.npy", RunFolder(out, spec).samples)
    grids = [_grid(problem, np.load(file)) for file in files]
    words = _words(record, Reference.from_json(record["reference"]))
    path = out / "demo.png"
    write_whole(path, _picture(grids, record["final"]["success"]))
    return path, words


def _grid(problem: Any, states: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        images = problem.images(torch.from_numpy(states))
    return grid_of((2 * images - 1).float().cpu().numpy())


def _picture(grids: list[np.ndarray], share: float) -> bytes:
    import io

    figure, axes = canvas(8.0, 2.4)
    axes.remove()
    titles = ("pre-trained", f"fine-tuned to draw a 3 ({share:.0%} are taken for one)")
    for place, (grid, title) in enumerate(zip(grids, titles, strict=True), 1):
        panel = figure.add_subplot(1, 2, place)
        panel.imshow(grid)
        panel.set(xticks=[], yticks=[], title=title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _words(record: dict[str, Any], reference: Reference) -> str:
    final, bound = record["final"], reference.bound
    before = reference.uncontrolled.mean
    success = "" if reference.success is None else f" instead of {reference.success.mean:.0%}"
    there = reference.success_at_bound
    success += "" if there is None else f" (at the bound it would be {there.mean:.0%})"
    score = (
        "no score, as too few paths carry the bound"
        if final["score"] is None
        else f"a score of {final['score']:.2f} +- {final['score_stderr']:.2f}"
    )
    return (
        f"A diffusion model of handwritten digits was fine-tuned to draw a 3 in"
        f" {final['seconds']:.0f} seconds, by PI-FT, on {final['reward_queries']:,} images:"
        f" {final['success']:.0%} of its images are now taken for a 3{success}. What it gained,"
        f" reward less the price of leaving the pre-trained model, rose from {before:.2f} to"
        f" {final['objective']:.2f}; nothing can have more than {bound.bound:.2f}"
        f" (Donsker-Varadhan). That is {score}: 0 is the pre-trained model, 1 the bound."
    )
