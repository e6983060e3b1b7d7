"""The benchmark of a GPU, but for the measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu
import pytest
import torch

from girsanov.scoreboard.storage.records import read_json


def test_cut_off_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    made: list[tuple[str, str]] = []

    def measured(env: str, device: str, lanes: int, seconds: float) -> float:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append((env, device))
        return 4.0 if device == "cuda" else 2.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "steps_per_second", measured)
    monkeypatch.setattr(gpu, "provenance", lambda: {"versions": {}, "hardware": "one GPU"})
    out = tmp_path / "gpu.json"
    small: Any = {"envs": ("a", "b"), "lanes": (8, 16)}
    with pytest.raises(KeyboardInterrupt):
        gpu.main(**small, out=out)
    kept = read_json(out)["rows"]
    assert kept == [
        {"env": env, "lanes": 8, "cpu": 2.0, "cuda": 4.0, "ratio": 2.0} for env in ("a", "b")
    ]
    made.clear()
    assert gpu.main(**small, out=out) == 0
    rows = read_json(out)["rows"]
    assert rows[:2] == kept and [(row["env"], row["lanes"]) for row in rows[2:]] == [
        ("a", 16),
        ("b", 16),
    ]
    assert made == [(env, device) for env in ("a", "b") for device in ("cpu", "cuda")]
    made.clear()
    assert gpu.main(**small, out=out) == 0 and made == []


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main() == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_steps_of_all_lanes_are_counted_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 11.0, 12.5, 14.0])  # begun; one chunk; two, and over; done
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(now))
    rate = gpu.steps_per_second("girsanov/DoubleIntegratorNavigation-v0", "cpu", 8, 2.0)
    assert rate == gpu.CHUNK * 8 / 4.0
