"""benchmarks/image_rewards.py: units, pairing, the report, and one cell of each pipeline from start
to end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
import image_rewards as ir  # noqa: E402
import reports
from resumable import append  # noqa: E402


def line(agent: str, seed: int, gains: list[float], kl: float = 1.0, **cell: Any) -> dict[str, Any]:
    before = np.linspace(-2, 2, len(gains))
    named = {
        "model": "random",
        "reward": "jpeg",
        "agent": agent,
        "price": 0.01,
        "seed": seed,
        "rounds": 3,
        "paths": len(gains),
        **cell,
    }
    measured = {
        "before": list(before),
        "reward": list(before + gains),
        "kl": [kl] * len(gains),
        "reward_queries": 30,
    }
    made = {
        "cpu_seconds": 4.0,
        "command": "c",
        "versions": {"torch": "t"},
        "hardware": {"cpu": "p"},
    }
    return {"run": f"{agent}{seed}", "job": named, **measured, **made}


def gain(lines: list[dict[str, Any]]) -> tuple[float, float]:
    found = ir.columns(lines)
    return reports.paired(found["J"], found["before"])


def test_gains_are_paired_and_their_error_counts_seeds() -> None:
    alike = [line("pi-ft", seed, [0.5] * 8) for seed in (0, 1)]
    assert gain(alike) == pytest.approx((0.5 - 0.01, 0.0))
    apart = [line("pi-ft", 0, [0.0] * 8), line("pi-ft", 1, [1.0] * 8)]
    assert gain(apart) == pytest.approx((0.5 - 0.01, 0.5))  # variance 1/2 over 2 seeds
    uneven = [line("pi-ft", 0, [0.0, 1.0] * 4)]
    assert gain(uneven)[1] == pytest.approx(np.std([0.0, 1.0] * 4, ddof=1) / 8**0.5)


def test_the_report_sets_the_others_against_pi_ft_on_the_seeds_that_both_have(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="out must hold finished runs"):
        ir.main.report(tmp_path)
    for row in (
        line("pi-ft", 0, [0.5] * 8),
        line("dpok", 0, [0.2] * 8),
        line("dpok", 1, [0.4] * 8),
    ):
        append(tmp_path / "runs.jsonl", row)
    ir.main.report(tmp_path)
    dpok = next(
        text for text in (tmp_path / "report.md").read_text().splitlines() if "| dpok |" in text
    )
    assert [cell.strip() for cell in dpok.split("|")][3:9] == [
        *("2", "30", "+0.300 +- 0.100", "1.00", "+0.290 +- 0.100", "-0.300 +- 0.000"),
    ]  # fmt: skip


def test_a_nat_costs_a_hundredth_of_the_deviation() -> None:
    problem, spread = ir.make("latent-digits", "brightness", 0.01, paths=16)
    assert problem.temperature == pytest.approx(0.01 * spread)
