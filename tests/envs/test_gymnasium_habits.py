"""What Gymnasium's own tools ask of an environment: forks, wrappers, lists of frames."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import girsanov.envs
from girsanov.envs.env import ProblemEnv

ASYNC = """
import gymnasium as gym, torch, girsanov
torch.set_num_threads(2)
x = torch.randn(600, 600)
(x @ x).sum()  # the threads are there when the lanes are forked
envs = gym.make_vec({env!r}, num_envs=2, vectorization_mode="async")
envs.reset(seed=0)
print(envs.step(envs.action_space.sample())[1].shape)
envs.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="lanes are forked on Linux")
@pytest.mark.parametrize("name", ["GaussianMixture", "Digits"])
def test_lanes_in_processes_of_their_own_step_with_threads_on(name: str) -> None:
    code = ASYNC.format(env=f"girsanov/{name}-v0")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.strip() == "(2,)", done.stderr


def test_frames_in_a_list() -> None:
    env = gym.make("girsanov/GaussianMixture-v0", render_mode="rgb_array_list")
    env.reset(seed=0)
    for _ in range(2):
        env.step(env.action_space.sample())
    frames = env.render()
    assert len(frames) == 3 and not np.array_equal(frames[0], frames[2])


def test_the_entry_point_tells_the_environments_metadata() -> None:
    assert girsanov.envs.make_env.metadata == ProblemEnv.metadata  # type: ignore[attr-defined]
