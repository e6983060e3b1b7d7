"""benchmarks/digits_fine_tuning.py: when a run counts as converged, what equal seconds buy, what is
resumed and shown.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import digits_fine_tuning as dft  # noqa: E402
import pytest
from resumable import append  # noqa: E402


def test_a_curve_is_settled_once_its_running_mean_stays_near_the_last_one() -> None:
    line = [0.0, 3.0, 6.0, 9.0, 10.0, 10.0, 10.0, 10.0]
    assert dft.settled(line, 0.1, window=1) == 3  # 9 is within 1 of 10
    assert dft.settled(line, 0.05, window=1) == 4
    assert dft.settled(line, 0.1, window=3) == 5  # (9 + 10 + 10) / 3
    assert (
        dft.settled([0.0, 10.0, 4.0, 10.0], 0.1, window=1) == 3
    )  # being there once is not staying
    assert dft.settled([5.0, 5.0, 5.0], 0.1) == 0
    assert (
        dft.settled(line, within=1.0, window=1) == 3
        and dft.settled(line, within=5.0, window=1) == 2
    )


def test_convergence_waits_for_reward_and_kl() -> None:
    rewards = [-5.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    kls = [0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    curve = [
        {"queries": 100 * i, "objective": r - 0.01 * k, "reward": r, "kl": k}
        for i, (r, k) in enumerate(zip(rewards, kls, strict=True))
    ]
    for part, paths in (("betas", 10), ("betas-many", 50)):
        found = dft.convergence({"job": {"part": part}, "curve": curve})
        wanted = {
            "policy": 500 // paths,
            "objective": 300 // paths,
            "nat": 300 // paths,
        }  # (1 + 2 + 3) / 3 = 3 - 1
        assert found == wanted


def row(run: dft.Job, **more: Any) -> dict[str, Any]:
    curve = [
        {
            "queries": q,
            "seconds": q / 100,
            "objective": -1.0,
            "reward": -1.0,
            "kl": 1.0,
            "score": 0.5,
        }
        for q in (0, 100)
    ]
    made = {"command": "python x", "versions": {"torch": "0"}, "hardware": {"cpu": "none"}}
    figures = {
        "score": 0.5,
        "objective": -1.0,
        "reward": -1.0,
        "kl": 1.0,
        "success": 0.5,
        "seconds": 20.0,
    }
    rest = {"queries": run.queries, "gradient_norms": [1.0] * 30, **made, **more}
    return {"run": run.name, "job": asdict(run), **figures, "curve": curve, **rest}


def test_equal_seconds_buy_the_cheaper_methods_more_queries() -> None:
    first = {
        agent: dft.Job("queries", agent, dft.BETA, dft.QUERIES, 0)
        for agent in ("pi-ft", "dpok", "sac")
    }
    seconds = {"pi-ft": 100.0, "dpok": 30.0, "sac": 200.0}
    done = {run.name: row(run, seconds=seconds[agent]) for agent, run in first.items()}
    assert dft.longer(done) == {"dpok": 6750}  # 2,000 * 100 / 30, rounded up to 250
    assert dft.longer({}) == {}
    made = [job for job in dft.jobs([0, 1], False, done) if job.part == "seconds"]
    assert [job.queries for job in made] == [6750, 6750]


def test_the_report_shows_medians_and_differences_by_seed(tmp_path: Path) -> None:
    for seed, score in ((0, 0.9), (1, 0.94), (2, 0.95)):
        append(
            tmp_path / "runs.jsonl", row(dft.Job("queries", "pi-ft", 0.3, 2000, seed), score=score)
        )
        append(
            tmp_path / "runs.jsonl",
            row(dft.Job("queries", "dpok", 0.3, 2000, seed), score=0.7 + 0.01 * seed),
        )
        append(tmp_path / "runs.jsonl", row(dft.Job("betas", "pi-ft", 1.0, 1500, seed)))
    estimate = {"mean": -5.0, "stderr": 0.1}
    bound = {
        "bound": -0.8,
        "stderr": 0.01,
        "low": -0.9,
        "high": -0.7,
        "ess": 700.0,
        "n": 8192,
        "certified": True,
    }
    reference = {
        "uncontrolled": estimate,
        "certificate": bound,
        "optimum": None,
        "closed_form": None,
        "success": None,
    }
    append(tmp_path / "runs.jsonl", {"reference": "Digits-v0-beta0.3", "value": reference})
    dft.main.report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| pi-ft | 2,000 | 0.940 [0.900, 0.950] |" in text
    assert "| 0.230 [0.200, 0.230] |" in text
    assert (tmp_path / "figure3.png").stat().st_size > 1000 and (
        tmp_path / "curves.png"
    ).stat().st_size > 1000
    with pytest.raises(ValueError, match="out must hold finished runs"):
        dft.main.report(tmp_path / "nothing")
