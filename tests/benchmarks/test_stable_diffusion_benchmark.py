"""benchmarks/stable_diffusion.py: what is compared, when a claim holds, and what is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
import stable_diffusion as sd  # noqa: E402
import stable_diffusion_report as report  # noqa: E402
from resumable import as_array, runs_of  # noqa: E402


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
    found = sd.cells(("prompts", "betas", "brightness"), "mlp", (0, 1), 40, 256)
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names)
    main = [cell for cell in found if cell.study == "prompts"]
    assert len(main) == 4 * (1 + 2 * len(sd.AGENTS["mlp"]))
    assert {cell.temperature for cell in found if cell.study == "betas"} | {sd.TEMPERATURE} == set(
        report.BETAS
    )
    assert all(cell.seed == 0 for cell in found if cell.study != "prompts")
    assert [cell.agent for cell in found[:12]] == [report.PRETRAINED] * 4 + ["pi-ft"] * 4 + [
        "dpok"
    ] * 4


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
        f"PI-FT above DPOK: {report.SWEPT}": True,
        f"DPOK above pre-trained: {report.SWEPT}": False,
        "reward rises as beta falls": True,
        "KL rises as beta falls": True,
    }
    lines[-1]["kl"] = [2.0] * 50
    assert ("KL rises as beta falls", False) in [
        (words, holds) for words, holds, _ in report.claims(lines, "mlp")
    ]


def test_a_tiny_run_is_resumed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sd, "PROMPTS", sd.PROMPTS[1:2])
    monkeypatch.setattr(
        sd, "AGENTS", {"mlp": {name: sd.AGENTS["mlp"][name] for name in ("pi-ft", "dpok")}}
    )
    tiny = [
        "--policy",
        "mlp",
        "--studies",
        "prompts",
        "--seeds",
        "0",
        "--rounds",
        "2",
        "--workers",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert sd.main([*tiny, "--paths", "4"]) == 0
    lines = list(runs_of(tmp_path).values())
    assert [found["job"]["agent"] for found in lines] == [report.PRETRAINED, "pi-ft", "dpok"]
    before, mine, other = lines
    assert (
        before["kl"] == [0.0] * 4
        and len(mine["reward"]) == 4
        and mine["reward_queries"] == other["reward_queries"] == 20
    )
    assert [step["reward_queries"] for step in mine["curve"]] == [10, 20] and mine["curve"][0][
        "kl"
    ] == 0
    assert mine["curve"][0]["reward"] == pytest.approx(
        other["curve"][0]["reward"]
    )  # the same seed, the same first noises
    assert all(step["gradient_norm"] > 0 for found in (mine, other) for step in found["curve"])
    assert set(json.loads((tmp_path / "report.json").read_text())) == {"mlp"}
    for name in ("report.md", "rewards_mlp.png", "samples_mlp.png"):
        assert (tmp_path / name).stat().st_size > 500, name
    assert as_array(mine["samples"]).shape[0] == 16
    capsys.readouterr()
    assert sd.main([*tiny, "--paths", "4"]) == 0  # nothing is made twice
    assert len(runs_of(tmp_path).values()) == 3
    assert sd.main([*tiny, "--paths", "5"]) == 2
    assert "with other settings" in capsys.readouterr().err
    assert sd.main(["report", "--out", str(tmp_path / "nowhere")]) == 2
