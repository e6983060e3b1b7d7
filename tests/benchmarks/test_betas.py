"""benchmarks/betas.py: when a run counts as converged, and what is shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import betas
import pytest
from resumable import append


def test_a_curve_is_settled_once_its_running_mean_stays_near_the_last_one() -> None:
    line = [0.0, 3.0, 6.0, 9.0, 10.0, 10.0, 10.0, 10.0]
    assert betas.settled(line, 0.1, window=1) == 3  # 9 is within 1 of 10
    assert betas.settled(line, 0.05, window=1) == 4
    assert betas.settled(line, 0.1, window=3) == 5  # (9 + 10 + 10) / 3
    # being there once is not staying
    assert betas.settled([0.0, 10.0, 4.0, 10.0], 0.1, window=1) == 3
    assert betas.settled([5.0, 5.0, 5.0], 0.1) == 0
    assert betas.settled(line, within=1.0, window=1) == 3
    assert betas.settled(line, within=5.0, window=1) == 2


def test_convergence_waits_for_reward_and_kl() -> None:
    rewards = [-5.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    kls = [0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    curve = [
        {"queries": 100 * i, "objective": r - 0.01 * k, "reward": r, "kl": k}
        for i, (r, k) in enumerate(zip(rewards, kls, strict=True))
    ]
    for part, paths in (("usual", 10), ("many", 50)):
        found = betas.convergence({"job": {"part": part}, "curve": curve})
        assert found["policy"] == 500 // paths
        assert found["objective"] == found["nat"] == 300 // paths  # (1 + 2 + 3) / 3 = 3 - 1


def row(seed: int, objective: float) -> dict[str, Any]:
    job = betas.Job("slow", 0.3, 30, seed)
    figures = {"objective": objective, "reward": -0.5, "kl": 1.0}
    curve = [{"queries": q, "seconds": q / 100, **figures} for q in (0, 100)]
    made = {"command": "python x", "versions": {"torch": "0"}, "hardware": {"cpu": "none"}}
    rest = {"curve": curve, "gradient_norms": [1.0 + seed] * 30, **made}
    return {"run": job.name, "job": asdict(job), **figures, **rest}


def test_the_report_shows_medians_with_the_least_and_the_largest(tmp_path: Path) -> None:
    lines = [row(seed, objective) for seed, objective in enumerate((-1.0, -1.5, -4.0))]
    for line in lines:
        append(tmp_path / "runs.jsonl", line)
    betas.main.report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| -0.50 [-0.50, -0.50] | -1.50 [-4.00, -1.00] | 3 |" in text
    assert "None yet." in text.partition("table: many")[2].partition("end -->")[0]
    assert (tmp_path / "figure3_slow.png").stat().st_size > 1000
    norms = betas.draw(lines).axes[0].lines[0]
    assert list(norms.get_xdata()) == list(range(20, 31)) and set(norms.get_ydata()) == {2.0}
    with pytest.raises(ValueError, match="out must hold finished runs"):
        betas.main.report(tmp_path / "nothing")
