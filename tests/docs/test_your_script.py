"""The learners of other libraries that the how-to shows, compared as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "your_script.md"
FILES = dict(
    re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
)
NEEDED = {"one_file_ppo": "torch", "torchrl_ppo": "torchrl", "tianshou_ppo": "tianshou"}


def test_every_learner_of_the_page_is_tried_and_named_in_a_command() -> None:
    assert {name.removesuffix(".py") for name in FILES} == set(NEEDED)
    commands = re.findall(
        r"^girsanov compare --agents pde (\w+):train ", PAGE.read_text("utf-8"), re.M
    )
    assert commands == list(NEEDED)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDED)
def test_it_is_compared(name: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDED[name])
    (tmp_path / f"{name}.py").write_text(FILES[f"{name}.py"], encoding="utf-8")
    command = [sys.executable, "-m", "girsanov.train", "run", "--agent", f"{name}:train"]
    command += ["--env", "girsanov/GaussianMixture-v0", "--budget", "210", "--out", "out"]
    command += ["--paths", "256", "--final-paths", "1024", "--reference-paths", "2048"]
    command += ["--env-kwargs", "steps=5", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "out").glob("*/*/seed0")
    final = json.loads((folder / "record.json").read_text())["final"]
    first = json.loads((folder / "progress.jsonl").read_text().splitlines()[0])
    assert 1000 <= final["env_steps"] <= 1050 and 200 <= final["reward_queries"] <= 210
    # it has learnt something in its 200 episodes: more than no control is worth, by the evaluation
    error = (final["objective_stderr"] ** 2 + first["objective_stderr"] ** 2) ** 0.5
    assert final["kl"] > 0 and final["objective"] > first["objective"] + 3 * error
