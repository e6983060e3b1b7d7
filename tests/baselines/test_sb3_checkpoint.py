"""PPO and SAC without pickle: to the bit what stable-baselines3's own files give, and no code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from girsanov.agents import archive
from girsanov.baselines.kl_policies import KLActorCriticPolicy, KLSACPolicy
from girsanov.baselines.sb3 import (
    GentleSACPolicy,
    lanes_like,
    link,
    make_ppo,
    make_ppo_control,
    make_sac,
    make_sac_control,
)
from girsanov.baselines.sb3_checkpoint import is_pickled, load_sb3, save_model, save_sb3
from girsanov.baselines.vec_env import ProblemVecEnv
from girsanov.envs.known_optimum.double_well import DoubleWell

MAKERS = pytest.mark.parametrize("make", [make_ppo, make_sac])


def small(make: Any, **kwargs: Any) -> Any:
    return make(DoubleWell(), seed=0, device="cpu", n_envs=4, net_arch=[16], **kwargs)


def parameters(model: Any) -> list[torch.Tensor]:
    loose = [model.log_ent_coef] if getattr(model, "log_ent_coef", None) is not None else []
    return [*model.policy.state_dict().values(), *loose]


@pytest.mark.filterwarnings("ignore:`n_steps=")
@pytest.mark.parametrize(
    ("make", "kwargs"),
    [
        (make_ppo, {"learning_rate": LinearSchedule(1e-2, 1e-3, 0.9), "clip_range_vf": 0.3}),
        (make_sac, {"ent_coef": "auto_0.01", "learning_rate": LinearSchedule(1e-2, 1e-3, 0.9)}),
        (make_sac_control, {"ent_coef": 0.01, "policy": "MlpPolicy", "n_steps": 1}),
        (make_ppo_control, {}),
    ],
)
def test_it_goes_on_as_from_stable_baselines3_s_own_file(
    make: Any, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    model = small(make, **kwargs).learn(160)
    model.save(tmp_path / "theirs.zip")
    save_sb3(model, tmp_path / "ours")
    kinds = ("policy_class", "n_envs", "action_space", "observation_space")
    alike = lanes_like({name: getattr(model, name) for name in kinds}, DoubleWell())
    theirs = link(type(model).load(tmp_path / "theirs.zip", env=alike))
    ours = load_sb3(tmp_path / "ours.zip", DoubleWell(), "cpu")
    assert type(ours) is type(theirs) and ours.policy_class is theirs.policy_class
    assert ours.num_timesteps == theirs.num_timesteps == model.num_timesteps > 0
    assert ours._n_updates == model._n_updates > 0
    for part, again, wanted in zip(*map(parameters, (model, ours, theirs)), strict=True):
        assert torch.equal(part, again) and torch.equal(part, wanted)
    for again in (ours, theirs):
        again.set_random_seed(1)
        again.learn(160, reset_num_timesteps=False)
    for again, wanted in zip(parameters(ours), parameters(theirs), strict=True):
        assert torch.equal(again, wanted)
    assert any(
        not torch.equal(a, b) for a, b in zip(parameters(model), parameters(ours), strict=True)
    )


@MAKERS
def test_another_temperature_is_told(make: Any, tmp_path: Path) -> None:
    model = small(make)
    save_sb3(model, tmp_path / "model")
    load_sb3(tmp_path / "model.zip", DoubleWell(), "cpu")  # which warns of nothing
    words = "learnt at temperature 1 and is loaded into 0.5"
    with pytest.warns(UserWarning, match=words):
        other = load_sb3(tmp_path / "model.zip", DoubleWell(temperature=0.5), "cpu")
    if isinstance(other, SAC):  # what it learns next is the new problem's optimum
        assert other.ent_coef == 0.5 and float(other.ent_coef_tensor) == 0.5


def test_sac_takes_its_past_along_when_asked(tmp_path: Path) -> None:
    model = small(make_sac, buffer_size=400, ent_coef=0.01, n_steps=3).learn(160)
    save_sb3(model, tmp_path / "m", replay_buffer=True)
    again: Any = load_sb3(tmp_path / "m", DoubleWell(), "cpu", SAC)
    assert (again.replay_buffer.pos, again.replay_buffer.full) == (40, False)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(
            getattr(again.replay_buffer, name), getattr(model.replay_buffer, name)
        )
    save_sb3(model, tmp_path / "m")
    empty: Any = load_sb3(tmp_path / "m", DoubleWell(), "cpu")
    assert empty.replay_buffer.pos == 0


@MAKERS
def test_the_file_holds_tensors_and_json_alone(make: Any, tmp_path: Path) -> None:
    save_model(small(make), tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as file:
        assert sorted(file.namelist()) == ["settings.json", "tensors.safetensors"]
        settings = json.loads(file.read("settings.json"))
    assert settings["policy_kwargs"]["activation_fn"] in ("SiLU", "ReLU")
    assert not is_pickled(tmp_path / "m.zip")


def test_the_policy_is_found_by_its_name(tmp_path: Path) -> None:
    for make, wanted in (
        (make_ppo, KLActorCriticPolicy),
        (make_sac, KLSACPolicy),
        (make_sac_control, GentleSACPolicy),
    ):
        save_sb3(small(make), tmp_path / "m")
        again = load_sb3(tmp_path / "m", DoubleWell())
        assert again.policy_class is wanted
        shown = "state" if make is make_sac_control else "features"
        assert again.get_env().get_attr("observation")[0].name == shown


def test_what_is_no_plain_setting_is_not_saved(tmp_path: Path) -> None:
    for model, message in (
        (small(make_ppo, learning_rate=lambda progress: 1e-3), "learning_rate must be plain to be"),
        (small(make_ppo, activation=nn.Softplus), "activation_fn must be one of"),
        (TD3("MlpPolicy", ProblemVecEnv(DoubleWell(), 2)), "model must be a PPO or a SAC"),
    ):
        with pytest.raises(ValueError, match=message):
            save_sb3(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def changed(path: Path, change: Any) -> None:
    tensors, settings = archive.read(path, ("PPO", "SAC"))
    change(tensors, settings)
    archive.write(path, tensors, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s: s.update(policy="os.system"), "KeyError: 'os.system'"),
        (lambda t, s: s["policy_kwargs"].update(activation_fn="__class__"), "KeyError"),
        (
            lambda t, s: s["policy_kwargs"].update(features_extractor_class="x"),
            "policy_kwargs must",
        ),
        (lambda t, s: s["policy_kwargs"].update(net_arch=[60_000, 60_000]), "GiB of networks"),
        (lambda t, s: s["arguments"].update(n_steps=10**12), "its steps must take at most 8 GiB"),
        (lambda t, s: s.update(lanes=10**9), "lanes must be between 1 and"),
        (lambda t, s: s.update(lanes=True), "lanes must be a whole number; got True"),
        (lambda t, s: s["arguments"].pop("n_epochs"), "KeyError: 'n_epochs'"),
        (lambda t, s: s["counters"].update(num_timesteps=-1), "num_timesteps must be a whole"),
        (lambda t, s: s["arguments"].update(gamma={"linear": [1, 1, 1]}), "gamma must be plain"),
        (lambda t, s: t.pop("policy/action_net.bias"), "Missing key"),
        (lambda t, s: t.update({"policy/action_net.bias": torch.zeros(7)}), "size mismatch"),
        (lambda t, s: s["problem"].update(horizon=3), "env must be the kind that the model was"),
    ],
)
def test_a_file_that_does_not_fit_is_named(change: Any, message: str, tmp_path: Path) -> None:
    save_sb3(small(make_ppo).learn(1), tmp_path / "m.zip")
    changed(tmp_path / "m.zip", change)
    with pytest.raises(ValueError, match=rf"m\.zip' does not fit .*{message}"):
        load_sb3(tmp_path / "m.zip", DoubleWell(), "cpu", PPO)


def test_stable_baselines3_s_own_file_is_not_opened(tmp_path: Path) -> None:
    small(make_ppo).save(tmp_path / "m.zip")
    assert is_pickled(tmp_path / "m.zip")
    with pytest.raises(ValueError, match="m.zip' was written by stable-baselines3"):
        load_sb3(tmp_path / "m.zip", DoubleWell())
    save_sb3(small(make_ppo), tmp_path / "m.zip")
    with pytest.raises(ValueError, match="must name a checkpoint of SAC; .* holds a 'PPO'"):
        load_sb3(tmp_path / "m.zip", DoubleWell(), algorithm=SAC)
