"""benchmarks/stable_diffusion.py: what is compared, when a claim holds, and what is resumed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
import stable_diffusion as sd  # noqa: E402
import stable_diffusion_report as report  # noqa: E402


def line(
    agent: str,
    reward: list[float],
    kl: float = 0.0,
    beta: float = 0.1,
    study: str = "prompts",
    **cell: Any,
) -> dict[str, Any]:
    policy = "-" if agent == report.PRETRAINED else "mlp"
    base = {
        "study": study,
        "policy": policy,
        "prompt": report.SWEPT,
        "agent": agent,
        "temperature": beta,
        "seed": 0,
    }
    return {"job": {**base, **cell}, "reward": reward, "kl": [kl] * len(reward)}


def test_every_prompt_has_a_model_of_every_agent_and_names_are_unique() -> None:
    found = sd.jobs((0, 1), False, {})
    names = [job.name for job in found]
    assert len(set(names)) == len(names)
    main = [job for job in found if job.study == "prompts"]
    assert len(main) == 4 * (1 + (2 + 1) * len(sd.AGENTS["lora"]))  # LoRA's seeds, and one
    betas = {job.temperature for job in found if job.study == "betas"}
    assert betas | {sd.TEMPERATURE} == set(report.BETAS)
    assert all(job.seed == 0 for job in found if job.study != "prompts")
    agents = [job.agent for job in main if job.policy != "mlp"][:12]
    assert agents == [report.PRETRAINED] * 4 + ["pi-ft"] * 4 + ["dpok"] * 4


def test_differences_are_paired_over_noises() -> None:
    shared = np.linspace(-3, 0, 40)
    wobble = 0.01 * np.cos(np.arange(40))
    gap, error = report.difference(
        [line("pi-ft", list(shared + 0.2 + wobble))], [line("dpok", list(shared))]
    )
    assert gap == pytest.approx(0.2 + wobble.mean()) and error == pytest.approx(
        wobble.std(ddof=1) / math.sqrt(40)
    )
    two = [line("pi-ft", list(shared + 0.1), seed=0), line("pi-ft", list(shared + 0.3), seed=1)]
    gap, error = report.difference(two, [line("dpok", list(shared))])
    assert gap == pytest.approx(0.2) and error == pytest.approx(
        math.sqrt(0.02 / 2)
    )  # the seeds' own spread


def test_a_claim_holds_only_beyond_two_standard_errors() -> None:
    base = list(np.linspace(-2, -1, 50))
    noise = np.sin(np.arange(50.0))
    clear, unclear = [[b + g + n for b, n in zip(base, noise, strict=True)] for g in (1.0, 0.01)]
    lines = [line(report.PRETRAINED, base), line("dpok", unclear), line("pi-ft", clear, kl=1.0)]
    lines.append(line("pi-ft", unclear, kl=0.5, beta=0.3, study="betas"))
    found = {words: holds for words, holds, _ in report.claims(lines, "mlp")}
    assert found == {
        f"PI-FT above DPOK: {report.SWEPT}": "yes",
        f"DPOK above pre-trained: {report.SWEPT}": "**no**",
        "reward rises as beta falls": "yes",
        "KL rises as beta falls": "yes",
    }
    lines[-1]["kl"] = [2.0] * 50
    assert report.claims(lines, "mlp")[-1][:2] == ["KL rises as beta falls", "**no**"]
