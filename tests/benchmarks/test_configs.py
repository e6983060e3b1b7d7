"""benchmarks/configs: comparisons that replace scripts can be made as their files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import raw_states

from girsanov import make_problem, train
from girsanov.envs.env import ProblemEnv
from girsanov.scoreboard.storage import archive

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "benchmarks" / "configs"
#: As little as shows that it works: an agent has one round, or two.
TINY = ["--budget", "20", "--seeds", "0", "--points", "1", "--paths", "4", "--final-paths", "8"]
TINY += ["--reference-paths", "64", "--samples", "2", "--workers", "1", "--device", "cpu"]
NAMES = ["digits/attribution", "digits/fine_tuning", "digits/paper_costs", "digits/pde_ablation"]
NAMES += ["action_forms/off_the_shelf", "mixture/from_mou", "mixture/frontier"]
IMAGES = ["text_to_image/unet_lora", "text_to_image/unet_guidance"]
IMAGES += ["image_rewards/brightness", "image_rewards/incompressibility"]


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents of ``benchmarks`` are found from the root."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize(
    "name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in IMAGES)]
)
def test_every_agent_takes_its_settings(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in IMAGES:
        pytest.importorskip("diffusers")
    given = ["--config", f"benchmarks/configs/{name}.json", "--out", str(tmp_path / "new")]
    assert train.main(["compare", *given, "--dry-run"]) == 0
    assert not (tmp_path / "new").exists() and "seed" in capsys.readouterr().out


def test_the_frontier_has_nine_cells() -> None:
    settings = json.loads((CONFIGS / "mixture" / "frontier.json").read_text())
    asked = {
        f"girsanov/GaussianMixture-v0#d {d}, beta {beta:g}": {"dimension": d, "temperature": beta}
        for d in (2, 8, 32)
        for beta in (2, 0.5, 0.1)
    }
    assert settings["env_kwargs"] == asked and settings["envs"] == list(asked)


@pytest.mark.parametrize("make", [raw_states.pde, raw_states.mou])
def test_raw_states_do_without_the_estimate(make: Any) -> None:
    """And the environment keeps it for the agents beside it."""
    env = ProblemEnv(make_problem("girsanov/GaussianMixture-v0", steps=5), action_bound=1.5)
    model = make(env, seed=0, device="cpu", n_trajectories=20).learn(2 * 20 * 5)
    assert model.problem.terminal_estimate is None and model.action_space.high[0] == 1.5
    assert env.problem.terminal_estimate is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[-2:], IMAGES[0], IMAGES[-1]])
def test_a_comparison_is_made_and_reported(name: str, tmp_path: Path) -> None:
    if name in IMAGES:
        pytest.importorskip("diffusers")
    file = f"benchmarks/configs/{name}.json"
    few = json.loads(Path(file).read_text())["envs"][:2]
    given = ["--config", file, "--out", str(tmp_path), "--envs", *few]
    assert train.main(["compare", *given, *TINY]) == 0
    assert (
        len(archive.finished(tmp_path)) > 3 and "Made with" in (tmp_path / "report.md").read_text()
    )
