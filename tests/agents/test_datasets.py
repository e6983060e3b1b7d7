"""Minari's datasets in, and what its collector makes of our environments."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import girsanov  # noqa: F401
from girsanov.agents import PDE
from girsanov.agents.datasets import is_dataset, recording_of
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.recording import Recording

MIXTURE = "girsanov/GaussianMixture-v0"
STEPS = 4


class _Dataset:
    """As much of a ``MinariDataset`` as is read."""

    def __init__(self, episodes: list[Any]) -> None:
        self.episodes, self.total_episodes = episodes, len(episodes)

    def iterate_episodes(self) -> Any:
        return iter(self.episodes)


def _episodes(env: ProblemEnv, n: int, seed: int = 0) -> list[Any]:
    """Recorded by hand, as ``DataCollector`` does."""
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        infos, actions, over = [env.reset(seed=i)[1]], [], False
        while not over:
            action = rng.normal(0, 0.4, env.action_space.shape).astype(np.float32)
            _, _, over, _, info = env.step(action)
            infos.append(info)
            actions.append(action)
        columns = {key: np.stack([np.asarray(info[key]) for info in infos]) for key in infos[0]}
        terminations = np.arange(1, len(infos)) == len(infos) - 1
        found.append(
            SimpleNamespace(infos=columns, actions=np.stack(actions), terminations=terminations)
        )
    return found


@pytest.fixture
def env() -> ProblemEnv:
    return ProblemEnv(make_problem(MIXTURE, steps=STEPS))


def test_the_paths_are_those_of_the_problem(env: ProblemEnv) -> None:
    problem = env.problem
    episodes = _episodes(env, 3)
    paths = recording_of(_Dataset(episodes), problem)
    paths.validate(problem)
    for k in range(STEPS):  # the noise leads from one state to the next
        assert paths.noises is not None
        reached = problem.transition(k, paths.states[:, k], paths.noises[:, k])
        assert torch.allclose(reached, paths.states[:, k + 1], atol=1e-5)
    ends = paths.states[:, -1]
    assert torch.allclose(paths.terminal_reward, problem.terminal_reward(ends), atol=1e-4)
    total = torch.tensor([sum(e.infos["task_reward"]) for e in episodes]).float()
    assert torch.allclose(paths.rewards.sum(1) + paths.terminal_reward, total, atol=1e-4)
    assert paths.log_ratios is not None and (paths.log_ratios != 0).all()


def test_pde_learns_from_one(env: ProblemEnv) -> None:
    dataset = _Dataset(_episodes(env, 40))
    assert is_dataset(dataset) and not is_dataset([]) and not is_dataset("a.safetensors")
    settings = {"seed": 0, "device": "cpu"}
    ours = PDE("PolynomialPolicy", env, **settings).fit(dataset)
    recording = recording_of(dataset, env.problem)
    theirs = PDE("PolynomialPolicy", env, **settings).fit(recording)
    x = env.problem.initial(5, torch.Generator().manual_seed(0))
    assert torch.equal(ours.policy.control(1, x), theirs.policy.control(1, x))
    assert ours.policy.control(1, x).abs().max() > 0


def test_what_cannot_be_learnt_from_says_why(env: ProblemEnv) -> None:
    (episode,) = _episodes(env, 1)
    other = make_problem(MIXTURE, steps=STEPS + 1)
    with pytest.raises(ValueError, match=f"episodes of {STEPS + 1} steps.*; got one of {STEPS}"):
        recording_of(_Dataset([episode]), other)
    cut = SimpleNamespace(infos=episode.infos, terminations=np.zeros(STEPS, bool))
    (noisy,) = _episodes(ProblemEnv(env.problem, actions="noise"), 1)
    with pytest.raises(ValueError, match='with actions="control"; its actions are the noise'):
        recording_of(_Dataset([noisy]), env.problem)
    with pytest.raises(ValueError, match="must hold a finished episode; got none"):
        recording_of(_Dataset([cut]), env.problem)
    bare = SimpleNamespace(infos={}, terminations=episode.terminations)
    with pytest.raises(ValueError, match=r"record_infos=True\); it lacks \['state', 'noise'"):
        recording_of(_Dataset([bare]), env.problem)
    wide = SimpleNamespace(
        infos={**episode.infos, "state": np.zeros((STEPS + 1, 3))},
        actions=episode.actions,
        terminations=[True],
    )
    with pytest.raises(ValueError, match=r"must hold state of shape \(2,\)"):
        recording_of(_Dataset([wide]), env.problem)


def test_minaris_collector_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: ProblemEnv
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari")
    for needed in ("pyarrow", "jax"):
        pytest.importorskip(needed)
    collector = minari.DataCollector(
        gym.make(MIXTURE, steps=STEPS), record_infos=True, data_format="arrow"
    )
    rng = np.random.default_rng(0)
    for i in range(3):
        collector.reset(seed=i)
        over = False
        while not over:
            over = collector.step(rng.normal(0, 0.4, 2).astype(np.float32))[2]
    collector.create_dataset("mixture/test-v0", algorithm_name="random")
    paths = recording_of(minari.load_dataset("mixture/test-v0"), env.problem)
    by_hand = recording_of(_Dataset(_episodes(env, 3)), env.problem)
    for name, value in Recording._asdict(paths).items():
        expected = getattr(by_hand, name)
        assert value is expected is None or torch.allclose(value, expected, atol=1e-6), name
