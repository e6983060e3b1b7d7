"""Films of policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from girsanov.envs import make_problem
from girsanov.scoreboard.animation import CAPTION, film, film_run, main, write_gif
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec


def test_a_film_shows_each_policy_on_the_same_noises() -> None:
    problem = make_problem("girsanov/Pendulum-v0", steps=10)
    push = lambda k, x: torch.ones(len(x), 1)  # noqa: E731
    frames = film(problem, {"uncontrolled": None, "again": None, "pushed": push}, frames=4)
    assert len(frames) == 4 and frames[0].shape == (300 + CAPTION, 900, 3)
    first, again, pushed = np.split(frames[-1][CAPTION:], 3, axis=1)
    assert np.array_equal(first, again) and not np.array_equal(first, pushed)
    begun = np.split(frames[0][CAPTION:], 3, axis=1)
    assert np.array_equal(begun[0], begun[2])  # all begin together


def test_a_gif_plays_in_its_time(tmp_path: Path) -> None:
    frames = [np.full((40, 60, 3), shade, np.uint8) for shade in (0, 80, 160, 240)]
    write_gif(tmp_path / "shades.gif", frames, seconds=2.0)
    with Image.open(tmp_path / "shades.gif") as image:
        assert image.n_frames == 4 and image.size == (60, 40)  # type: ignore[attr-defined]
        shades, times = [], []
        for k in range(4):
            image.seek(k)
            shades.append(int(np.asarray(image.convert("RGB"))[0, 0, 0]))
            times.append(image.info["duration"])
    assert np.abs(np.array(shades) - [0, 80, 160, 240]).max() <= 4
    assert times == [500, 500, 500, 1000]


def test_a_finished_run_is_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = EvaluationPlan(points=1, paths=4, final_paths=4, reference_paths=8, samples=2)
    spec = RunSpec(
        "girsanov/Pendulum-v0", "ppo", 0, Budget(32), {"steps": 5}, device="cpu", plan=plan
    )
    execute(spec, tmp_path)
    assert main([str(spec.folder(tmp_path))]) == 0
    with Image.open(spec.folder(tmp_path) / "behaviour.gif") as image:
        assert image.size == (600, 300 + CAPTION) and image.n_frames == 6  # type: ignore[attr-defined]
    assert "behaviour.gif" in capsys.readouterr().out


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="folder must be that of a finished run"):
        film_run(tmp_path)
    assert main([str(tmp_path)]) == 2 and main([]) == 2
    assert "usage: python -m girsanov.scoreboard.animation" in capsys.readouterr().err
