"""benchmarks/throughput.py: the rival by hand is the same chain, and what is timed takes turns."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
import throughput  # noqa: E402

from girsanov.envs import make_problem  # noqa: E402


def test_without_noise_the_numpy_chain_is_the_problems() -> None:
    """Or the comparison would be worth nothing."""
    problem: Any = make_problem(throughput.ENV)
    mine, ours = throughput.NumpyMixture(problem), problem.initial(1, torch.Generator())
    silent: Any = SimpleNamespace(standard_normal=np.zeros)
    mine.rng, mine.k, mine.x = silent, 0, ours[0].numpy().copy()
    for k in range(problem.horizon):
        observation, reward, done, _, info = mine.step(np.array([0.3, -2.0], np.float32))
        ours = problem.transition(k, ours, torch.tensor([[0.3, -1.0]]))
        np.testing.assert_allclose(observation[:2], ours[0].numpy(), rtol=1e-4, atol=1e-5)
    assert done
    np.testing.assert_allclose(info["reward"], float(problem.terminal_reward(ours)), rtol=1e-4)
    price = problem.temperature * 0.5 * (0.3**2 + 1.0)
    np.testing.assert_allclose(reward, info["reward"] - price, rtol=1e-4)


def test_both_sides_take_turns_and_a_step_is_what_is_told() -> None:
    now, order = [0.0], []

    def side(name: str, seconds: float, steps: int) -> Any:
        def run() -> int:
            order.append(name)
            now[0] += seconds
            return steps

        return run

    sides = side("ours", 2e-6, 2), side("theirs", 3e-6, 1)
    found = throughput.compare(*sides, 3, lambda: now[0])
    assert found == pytest.approx([1.0, 3.0, 3.0]) and order == ["ours", "theirs"] * 4


@pytest.mark.slow
def test_every_ratio_is_measured_once(tmp_path: Path) -> None:
    throughput.main(repetitions=1, lanes=64, out=tmp_path / "throughput.json")
    found = json.loads((tmp_path / "throughput.json").read_text())
    rows = [row for row in found.values() if isinstance(row, dict) and "ours" in row]
    robots = list(found["mujoco_1024_one_thread"].values())
    assert len(rows) >= 6 and len(robots) >= 4
    assert all(row["ours"] > 0 for row in (*rows, *robots))
    assert found["single"]["time_ratio"] > 0 and found["versions"]["mujoco"]
