"""PPO's and SAC's models as tensors and plain settings, which are read without pickle.

Stable-baselines3's own zips hold pickles: to read one is to run what its author wrote. A model that
``save_sb3`` wrote holds names that are looked up in the tables below, numbers and tensors, so that
one from anybody can be looked at.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from ..agents.archive import bounded, read, write
from ..agents.checkpoint import flatten, restore, signature
from ..agents.checks import warn_of_temperature
from ..envs.checks import words_of
from ..envs.env import problem_of
from ..envs.observations import OBSERVATIONS
from .kl_policies import KLActorCriticPolicy, KLSACPolicy
from .sb3 import GentleSACPolicy, lanes_for, link
from .sb3_state import COUNTERS, buffer_rows, fill_buffer, loose_tensors, parts_of, rows_of, whole

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"PPO": PPO, "SAC": SAC}
#: What a file may name: by algorithm, the policy classes that it can have.
POLICIES: dict[str, dict[str, type[BasePolicy]]] = {
    "PPO": {"KLActorCriticPolicy": KLActorCriticPolicy, "MlpPolicy": ActorCriticPolicy},
    "SAC": {
        "KLSACPolicy": KLSACPolicy,
        "MlpPolicy": SACPolicy,
        "GentleSACPolicy": GentleSACPolicy,
    },
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in ("ELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Tanh")
}
_COMMON = (
    *("learning_rate", "n_steps", "batch_size", "gamma", "ent_coef", "use_sde"),
    *("sde_sample_freq", "seed"),
)
#: Constructor arguments that are kept.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "PPO": (
        *_COMMON,
        *("n_epochs", "gae_lambda", "clip_range", "clip_range_vf", "normalize_advantage"),
        *("vf_coef", "max_grad_norm", "target_kl"),
    ),
    "SAC": (
        *_COMMON,
        *("buffer_size", "learning_starts", "tau", "train_freq", "gradient_steps"),
        *("target_update_interval", "target_entropy"),
    ),
}
#: Bytes of paths that a model may keep at most: SAC's buffer, PPO's rollout.
MEMORY_LIMIT = 8 * 2**30


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """``save_sb3`` for PPO and SAC themselves, else the model's own ``save``."""
    if type(model) in ALGORITHMS.values() and "save" not in vars(model):
        save_sb3(model, path)
    else:
        model.save(path)


def save_sb3(
    model: BaseAlgorithm, path: str | os.PathLike[str], replay_buffer: bool = False
) -> None:
    """Write networks, optimizers, counters and constructor settings; a path without a suffix means
    ``path.zip``.

    Args:
        model: a PPO or a SAC on a problem, as ``make_ppo`` and ``make_sac`` make them.
        path: the file.
        replay_buffer: write SAC's past steps too.

    Raises:
        ValueError: the model has what is no plain setting: a schedule that is neither constant nor
            linear, a policy class that is not in ``POLICIES``.
        OSError: the file can't be written.
    """
    name = type(model).__name__
    if ALGORITHMS.get(name) is not type(model):
        raise ValueError(f"model must be a PPO or a SAC of stable-baselines3; got a {name}")
    env: Any = model.get_env()
    if env is None:
        raise ValueError("model must have its environment to be saved; got one without")
    tensors = loose_tensors(model)
    for key, part in parts_of(model).items():
        tensors.update({f"{key}/{k}": v for k, v in flatten(part.state_dict()).items()})
    settings = {
        "agent": name,
        "policy": _name_of("policy", model.policy_class, POLICIES[name]),
        "policy_kwargs": _policy_as_data(model.policy_kwargs),
        "arguments": {key: _as_data(key, getattr(model, key)) for key in ARGUMENTS[name]},
        "counters": {key: int(getattr(model, key)) for key in COUNTERS},
        "lanes": env.num_envs,
        "observation": env.get_attr("observation")[0].name,
        "problem": signature(problem_of(env), env.action_space),
        "temperature": float(problem_of(env).temperature),
    }
    if replay_buffer and name == "SAC":
        buffer: Any = model.replay_buffer  # type: ignore[attr-defined]
        for key, rows in buffer_rows(buffer).items():
            tensors[f"buffer/{key}"] = torch.from_numpy(rows.copy())
        settings["buffer"] = {"pos": buffer.pos, "full": bool(buffer.full)}
    write(path, tensors, settings)


def load_sb3(
    path: str | os.PathLike[str],
    env: Any,
    device: str = "auto",
    algorithm: type[BaseAlgorithm] | None = None,
) -> BaseAlgorithm:
    """Read what ``save_sb3`` wrote; no code in it is run.

    Args:
        path: the file.
        env: a Problem, an id or an environment of the kind that the model was trained on.
        device: of the networks; ``"auto"`` is stable-baselines3's choice.
        algorithm: which it must be; PPO or SAC if absent.

    A model that learnt at another temperature says so; SAC then goes on at that of ``env``.

    Raises:
        ValueError: the file is corrupt, was written by something else (stable-baselines3 itself,
            say), or belongs to another environment.
    """
    wanted = ("PPO", "SAC") if algorithm is None else (algorithm.__name__,)
    tensors, settings = read(path, wanted)
    misfit = f"path must name a model as save_sb3 writes it; {str(path)!r} does not fit"
    try:
        name = settings["agent"]
        lanes, found = settings["lanes"], settings["problem"]
        policy, observation = POLICIES[name][settings["policy"]], settings["observation"]
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation must be one of {sorted(OBSERVATIONS)}")
        venv = lanes_for(policy, env, *_lanes_and_bound(lanes, found), observation)
        ours = signature(problem_of(venv), venv.action_space)
        if ours != found:
            raise ValueError(
                f"env must be the kind that the model was trained on, {str(found)[:500]}; got"
                f" {ours}"
            )
        arguments = {key: _from_data(key, settings["arguments"][key]) for key in ARGUMENTS[name]}
        _check_memory(name, arguments, venv)
        with bounded(f"settings of {str(path)!r}"):
            model: Any = ALGORITHMS[name](
                policy,
                venv,
                device=device,
                policy_kwargs=_policy_from_data(settings["policy_kwargs"]),
                **arguments,
            )
        _fill(link(model), name, tensors, settings)
        learnt, given = settings.get("temperature"), problem_of(venv).temperature
        warn_of_temperature(path, learnt, given)
        _take_temperature(model, learnt, given)
    except _SAID_OF_MISFITS as error:
        said = f"{type(error).__name__}: {words_of(error, 1000)}"  # torch's takes several lines
        raise ValueError(f"{misfit} ({said})") from error
    return model


_SAID_OF_MISFITS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
)


def _fill(model: Any, name: str, tensors: dict[str, Tensor], settings: Mapping[str, Any]) -> None:
    for key, part in parts_of(model).items():
        chosen = {
            k.removeprefix(f"{key}/"): v for k, v in tensors.items() if k.startswith(f"{key}/")
        }
        restore(part, chosen)
    for key, held in loose_tensors(model).items():
        if tensors[key].shape != held.shape:
            raise ValueError(f"{key} has the shape {tuple(tensors[key].shape)}")
        held.data.copy_(tensors[key])
    for key in COUNTERS:
        setattr(model, key, whole(key, settings["counters"][key]))
    if "buffer" in settings and name == "SAC":
        rows = {key: tensors[f"buffer/{key}"].numpy() for key in rows_of(model.replay_buffer)}
        fill_buffer(model.replay_buffer, rows, **settings["buffer"])


def _take_temperature(model: Any, learnt: Any, given: float) -> None:
    """A SAC whose entropy coefficient was the temperature takes over that of its environment."""
    if isinstance(model, SAC) and model.ent_coef == learnt:
        model.ent_coef = given
        model.ent_coef_tensor.fill_(given)


def _lanes_and_bound(lanes: Any, problem: Any) -> tuple[int, float]:
    bound = float(problem["action_bound"])
    if not 0 < bound < float("inf"):
        raise ValueError(f"action_bound must be a positive number; got {bound}")
    if not 1 <= whole("lanes", lanes) <= 2**20:
        raise ValueError(f"lanes must be between 1 and {2**20}; got {lanes}")
    return lanes, bound


def _check_memory(name: str, arguments: Mapping[str, Any], venv: Any) -> None:
    sizes = [int(np.prod(space.shape)) for space in (venv.observation_space, venv.action_space)]
    rows = whole("n_steps", arguments["n_steps"]) * venv.num_envs
    if name == "SAC":
        rows = whole("buffer_size", arguments["buffer_size"])
    asked = 4 * rows * (2 * sizes[0] + sizes[1] + 4)
    if asked > MEMORY_LIMIT:
        limit = MEMORY_LIMIT / 2**30
        raise ValueError(f"its steps must take at most {limit:g} GiB; got {asked / 2**30:.3g} GiB")


def _name_of(what: str, value: Any, table: Mapping[str, Any]) -> str:
    for name, known in table.items():
        if value is known:
            return name
    raise ValueError(f"{what} must be one of {sorted(table)} to be saved; got {value!r}")


def _policy_as_data(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: (
            _name_of(key, value, ACTIVATIONS)
            if key == "activation_fn"
            else _as_data(f"policy_kwargs[{key!r}]", value)
        )
        for key, value in kwargs.items()
    }


def _policy_from_data(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    known = {"net_arch", "log_std_init", "use_sde", "ortho_init", "n_critics", "use_expln"}
    known |= {"control_bound", "full_std", "squash_output", "clip_mean", "share_features_extractor"}
    unknown = sorted(kwargs.keys() - known - {"activation_fn"})
    if unknown:
        raise ValueError(f"policy_kwargs must be among {sorted(known)}; got {unknown}")
    made = {key: _plain(key, value) for key, value in kwargs.items()}
    if "activation_fn" in made:
        made["activation_fn"] = ACTIVATIONS[made["activation_fn"]]
    return made


def _as_data(name: str, value: Any) -> Any:
    """A setting as JSON: schedules are ``{"linear": [start, end, end_fraction]}`` or numbers."""
    if isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        value = value.val
    if isinstance(value, LinearSchedule):
        return {"linear": [float(v) for v in (value.start, value.end, value.end_fraction)]}
    if isinstance(value, TrainFreq):
        return [value.frequency, value.unit.value]
    if isinstance(value, np.generic):
        value = value.item()
    return _plain(name, list(value) if isinstance(value, tuple) else value)


def _from_data(name: str, value: Any) -> Any:
    if name == "train_freq":
        frequency, unit = value
        return frequency, unit
    if isinstance(value, dict):
        if name not in ("learning_rate", "clip_range", "clip_range_vf") or set(value) != {"linear"}:
            raise ValueError(f"{name} must be plain; got {str(value)[:100]}")
        start, end, fraction = (float(v) for v in value["linear"])
        return LinearSchedule(start, end, fraction)
    return _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    """``value`` itself if it is what JSON has."""
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _plain(name, part)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise ValueError(
            f"{name} must be plain to be saved: a number, a word, a list, or a schedule that is"
            f" constant or linear; got {value!r}"
        )
    return value


def is_pickled(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip as stable-baselines3 writes it."""
    try:
        with zipfile.ZipFile(Path(path)) as archive:
            return "data" in archive.namelist()
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return False
