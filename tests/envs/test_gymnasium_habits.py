"""What Gymnasium's own tools ask of an environment: forks, wrappers, lists of frames."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_a_window_opens_and_shows_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gymnasium's own wrapper does it, on SDL's driver for no screen."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    shown = []
    flip = pygame.display.flip
    monkeypatch.setattr(pygame.display, "flip", lambda: (flip(), shown.append(pixels(pygame))))
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        env = gym.make("girsanov/Pendulum-v0", render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    assert len(shown) == 2 and not np.array_equal(*shown)
    expected = gym.make("girsanov/Pendulum-v0", render_mode="rgb_array")
    expected.reset(seed=0)
    assert np.array_equal(shown[0], expected.render())


def pixels(pygame: Any) -> np.ndarray:
    """What the window holds, rows first."""
    return pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1).copy()


def test_a_video_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = gym.make("girsanov/GaussianMixture-v0", render_mode="rgb_array", steps=5)
    env = gym.wrappers.RecordVideo(env, str(tmp_path / "films"), disable_logger=True)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    env.close()
    (video,) = tmp_path.glob("films/*.mp4")
    assert video.stat().st_size > 500


def test_observations_have_bounds_that_wrappers_can_reckon_with() -> None:
    """Those of the largest float overflow as soon as one is taken from the other."""
    env = gym.make("girsanov/Pendulum-v0")
    space = env.observation_space
    assert isinstance(space, gym.spaces.Box) and space.dtype == np.float32
    assert np.isfinite((space.high - space.low) ** 2).all()
    env = gym.wrappers.NormalizeObservation(gym.wrappers.FrameStackObservation(env, 2))
    observation, info = env.reset(seed=0)
    assert np.isfinite(observation).all()
    assert "reward" not in env.step(env.action_space.sample())[4] | info  # TorchRL's own key
