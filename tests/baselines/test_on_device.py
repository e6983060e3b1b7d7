"""PPO and SAC on lanes and buffers whose tensors stay where they are: what they learn is the same,
and nothing is copied but what stable-baselines3's own loops copy.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from girsanov.baselines.on_device import lanes
from girsanov.baselines.on_device.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
from girsanov.baselines.on_device.lanes import SEEN, DeviceVecEnv
from girsanov.baselines.sb3 import deterministic_policy, make_ppo, make_sac
from girsanov.baselines.sb3_checkpoint import load_sb3, save_sb3
from girsanov.baselines.vec_env import ProblemVecEnv
from girsanov.envs import make_problem

MIXTURE, DIGITS = "girsanov/GaussianMixture-v0", "girsanov/Digits-v0"
SMALL: dict[Any, dict[str, Any]] = {
    make_ppo: {"n_envs": 4, "batch_size": 8, "n_epochs": 2, "net_arch": [8]},
    make_sac: {"n_envs": 4, "batch_size": 8, "net_arch": [8], "buffer_size": 48},
}
BOTH = pytest.mark.parametrize("make", [make_ppo, make_sac])


def learnt(make: Any, on_device: bool, env_id: str = MIXTURE, **settings: Any) -> Any:
    problem = make_problem(env_id, steps=5)
    model = make(problem, seed=0, device="cpu", on_device=on_device, **SMALL[make], **settings)
    return model.learn(60 if make is make_sac else 100)


@pytest.mark.parametrize("env_id", [MIXTURE, DIGITS])
@pytest.mark.parametrize("observation", ["state", "features"])
@BOTH
def test_what_is_learnt_is_the_same_to_the_bit(make: Any, observation: str, env_id: str) -> None:
    """A buffer that is filled more than once among them, and steps that carry no noise."""
    plain, kept = (learnt(make, flag, env_id, observation=observation) for flag in (False, True))
    for ours, theirs in zip(kept.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert kept.logger.name_to_value == plain.logger.name_to_value
    assert [e["r"] for e in kept.ep_info_buffer] == [e["r"] for e in plain.ep_info_buffer]
    kind, theirs = {
        make_ppo: (DeviceRolloutBuffer, RolloutBuffer),
        make_sac: (DeviceReplayBuffer, ReplayBuffer),
    }[make]
    name = "rollout_buffer" if make is make_ppo else "replay_buffer"
    assert type(getattr(kept, name)) is kind and type(getattr(plain, name)) is theirs
    problem = make_problem(env_id, steps=5)
    x = problem.initial(8, torch.Generator().manual_seed(0))
    acted = [deterministic_policy(model, problem)(1, x) for model in (kept, plain)]
    assert torch.equal(*acted) and bool(acted[0].any())


class Copies(TorchFunctionMode):
    """Where tensors come to the host or from it, as ``file:function``."""

    BACK = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__)
    THERE = (torch.as_tensor, torch.tensor, torch.from_numpy)

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.BACK or func in self.THERE and isinstance(args[0], np.ndarray):
            frames = [f for f in traceback.extract_stack()[:-1] if "/torch/" not in f.filename]
            place = f"{Path(frames[-1].filename).stem}:{frames[-1].name}"
            self.at[place] = self.at.get(place, 0) + 1
        return func(*args, **(kwargs or {}))


def copies(make: Any, on_device: bool) -> dict[str, int]:
    """Of three episodes of four actions."""
    problem = make_problem(MIXTURE, steps=5)
    model = make(problem, seed=0, device="cpu", on_device=on_device, **SMALL[make])
    assert model.get_env().get_attr("episode_length")[0] == 4
    model.learn(16)
    with Copies() as seen:
        model.learn(48)
    return seen.at


#: Where stable-baselines3's own loops do: the actions, twice a step, what they log of each batch,
#: and torch's looks at the arguments of distributions.
CHECKS = {"distributions:proba_distribution", "distributions:log_prob"}
STEPS = {make_ppo: "on_policy_algorithm:collect_rollouts", make_sac: "policies:predict"}
THEIRS = {make_ppo: {"ppo:train", *CHECKS}, make_sac: {"sac:train", *CHECKS}}
#: Where ours do.
OURS = {
    "env:_given": 12,  # the actions, an array still, are looked at
    "vec_env:_final_infos": 2 * 3,  # once an episode
    "checks:is_finite": 2 * 3,
}


@BOTH
def test_nothing_is_copied_within_an_episode_but_by_stable_baselines(make: Any) -> None:
    found = copies(make, True)
    ours = OURS | ({"buffers:values": 2 * 3, "buffers:returns": 2 * 3} if make is make_ppo else {})
    theirs = {name: found.pop(name) for name in THEIRS[make]}
    assert found.pop(STEPS[make]) == 2 * 12 and found == ours
    usual = copies(make, False)
    assert {name: usual[name] for name in THEIRS[make]} == theirs
    assert usual["vec_env:_numpy"] >= 12 and usual["buffers:to_torch"] >= 12


@BOTH
def test_what_is_kept_is_read_by_lanes_of_numpy(make: Any, tmp_path: Path) -> None:
    """A model is the same whatever it learnt on; SAC's past comes along."""
    model = learnt(make, True)
    save_sb3(model, tmp_path / "model", replay_buffer=True)
    loaded: Any = load_sb3(tmp_path / "model", model.get_env().get_attr("problem")[0], "cpu")
    for ours, theirs in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    if make is make_sac:
        assert type(loaded.replay_buffer) is ReplayBuffer and loaded.replay_buffer.full
        for name in ("observations", "next_observations", "actions", "rewards", "dones"):
            rows = getattr(model.replay_buffer, name).numpy()
            np.testing.assert_array_equal(getattr(loaded.replay_buffer, name), rows)
    loaded.learn(16, reset_num_timesteps=False)


def test_lanes_show_tensors_and_the_numbers_are_the_usual_ones() -> None:
    problem = make_problem(MIXTURE, steps=2)
    kept, plain = DeviceVecEnv(problem, 3), ProblemVecEnv(problem, 3)
    for venv in (kept, plain):
        venv.seed(0)
    ours: Any = kept.reset()
    np.testing.assert_array_equal(ours[SEEN].numpy(), plain.reset())
    for _ in range(problem.horizon):
        actions = np.full((3, 2), 0.3, np.float32)
        (seen, reward, done, infos), (wanted, paid, over, told) = (
            venv.step(actions) for venv in (kept, plain)
        )
        assert isinstance(reward, Tensor) and reward.dtype == torch.float32
        np.testing.assert_array_equal(seen[SEEN].numpy(), wanted)
        np.testing.assert_array_equal(reward.numpy(), paid)
        np.testing.assert_array_equal(done, over)
    assert done.all()
    for info, other in zip(infos, told, strict=True):
        last = info.pop("terminal_observation")[SEEN]
        np.testing.assert_array_equal(last.numpy(), other.pop("terminal_observation"))
        assert info["episode"].pop("t") > 0 and other["episode"].pop("t") > 0 and info == other


def test_states_that_are_no_numbers_are_found_at_the_end() -> None:
    problem = make_problem(MIXTURE, steps=2)
    transition = problem.transition
    venv = DeviceVecEnv(problem, 3)
    venv.reset()
    problem.terminal_reward = lambda x: torch.zeros(len(x))
    problem.transition = lambda k, x, z: transition(k, x, z) * float("nan")
    actions = np.zeros((3, 2), np.float32)
    venv.step(actions)
    with pytest.raises(ValueError, match="states of GaussianMixture must be finite.*at step 2"):
        venv.step(actions)


def test_bad_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(MIXTURE, steps=3)
    for make in (make_ppo, make_sac):
        with pytest.raises(ValueError, match="on_device must be True or False; got 'no'"):
            make(problem, on_device="no")
    with pytest.raises(ValueError, match="n_steps must be 1 with on_device=True; got 3"):
        make_sac(problem, on_device=True, n_steps=3)
    space = ProblemVecEnv(problem, 2).observation_space, ProblemVecEnv(problem, 2).action_space
    with pytest.raises(ValueError, match="optimize_memory_usage must be False"):
        DeviceReplayBuffer(
            10, *space, "cpu", optimize_memory_usage=True, handle_timeout_termination=False
        )
    monkeypatch.setattr(lanes, "device_of", lambda problem: torch.device("meta"))
    with pytest.raises(ValueError, match="device must be the problem's, meta.*; got cpu"):
        make_ppo(problem, device="cpu", on_device=True)
