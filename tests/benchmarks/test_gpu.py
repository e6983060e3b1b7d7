"""The benchmark of a GPU, but for the measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu
import pytest
import torch

from girsanov.scoreboard.storage.records import read_json


def test_cut_off_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    made: list[gpu.Row] = []

    def measured(job: gpu.Row, seconds: float) -> gpu.Row:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(job)
        return job | {"seconds": 1.0}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "provenance", lambda: {"versions": {}, "hardware": "one GPU"})
    out = tmp_path / "gpu.json"
    small: Any = {"agents": ("pde", "ppo"), "envs": ("a", "b"), "lanes": (8,)}
    with pytest.raises(KeyboardInterrupt):
        gpu.main(**small, out=out)
    kept = read_json(out)["rows"]
    assert [(row.get("agent"), row.get("device")) for row in kept[:4]] == [
        ("pde", "cuda"),
        ("ppo", "cuda"),
        ("pde", "cpu"),
        ("ppo", "cpu"),
    ]
    made.clear()
    assert gpu.main(**small, out=out) == 0
    rows = read_json(out)["rows"]
    assert rows[:5] == kept and len(rows) == 2 * 4 + 2 and len(made) == 5
    assert gpu.main(**small, out=out) == 0 and len(made) == 5


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main() == 2
    assert "needs a CUDA device" in capsys.readouterr().err
