"""Checkpoints: tensors as safetensors and settings as JSON, in one zip. Loading never runs code."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from ..envs.env import as_env, problem_of
from ..envs.problem import Problem

SelfSaved = TypeVar("SelfSaved", bound="SavedAgent")
_TENSORS, _SETTINGS = "tensors.safetensors", "settings.json"


class Checkpoint(NamedTuple):
    """What one file holds."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """SB3's habit: a path without a suffix means ``path.zip``."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def write(
    path: str | os.PathLike[str] | io.BufferedIOBase,
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
) -> None:
    """Write a checkpoint; a file appears under its name only when it is complete.

    Raises:
        OSError: it can't be written; the message names ``path``.
        ValueError: ``path`` is neither a name nor a file.
    """
    if not isinstance(path, (str, os.PathLike)):
        if not hasattr(path, "write"):
            raise ValueError(f"path must be a file name or a file opened for writing; got {path!r}")
        return _write(path, tensors, settings)
    target = with_suffix(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                _write(file, tensors, settings)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"path must be a file that can be written ({error.strerror})", str(target)
        ) from error


def _write(file: Any, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_SETTINGS, json.dumps(settings, indent=1))
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        archive.writestr(_TENSORS, safetensors.torch.save(plain))


def read(path: str | os.PathLike[str] | io.BufferedIOBase, agent: str) -> Checkpoint:
    """Read a checkpoint that ``agent`` wrote.

    Raises:
        ValueError: the file is corrupt or truncated, was written by something else (a
            stable-baselines3 zip, say), or holds another agent.
    """
    source = with_suffix(path) if isinstance(path, (str, os.PathLike)) else path
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(
            f"path must name a checkpoint of {agent}; there is no file {str(source)!r}"
        )
    try:
        with zipfile.ZipFile(source) as archive:
            names = set(archive.namelist())
            if not {_TENSORS, _SETTINGS} <= names:
                maker = "stable-baselines3" if "data" in names else "another program"
                raise ValueError(
                    f"path must name a checkpoint of {agent}; {str(path)!r} was written by {maker}"
                )
            settings = json.loads(archive.read(_SETTINGS))
            tensors = safetensors.torch.load(archive.read(_TENSORS))
    except (
        zipfile.BadZipFile,
        json.JSONDecodeError,
        UnicodeDecodeError,
        safetensors.SafetensorError,
        EOFError,
    ) as error:
        raise ValueError(
            f"path must name a checkpoint of {agent}; {str(path)!r} is corrupt or truncated"
            f" ({error})"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"path must name a checkpoint of {agent}; {str(path)!r} was written by another program"
        )
    if settings.get("agent") != agent:
        raise ValueError(
            f"path must name a checkpoint of {agent}; {str(path)!r} holds a"
            f" {settings.get('agent')!r}"
        )
    return Checkpoint(tensors, settings)


class SavedAgent(BaseAlgorithm):
    """An SB3 algorithm that ``save`` writes and ``load`` reads without ever unpickling."""

    #: Constructor arguments that a checkpoint restores (besides policy, seed and policy_kwargs).
    hyperparameters: ClassVar[tuple[str, ...]]
    policy_name: str
    generator: torch.Generator
    problem: Problem
    reward_queries: int

    def networks(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint restores, by name.

        A subclass adds its optimizers and target networks.
        """
        return {"policy": self.policy}

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write parameters, optimizers, counters, random stream and settings in one zip.

        The file holds safetensors and JSON. Past paths are not saved: a loaded agent goes on from
        its networks with fresh ones. ``exclude`` and ``include`` are accepted for SB3's sake and
        ignored. A failed write leaves no file behind.
        """
        tensors = {"generator": self.generator.get_state()}
        for name, part in self.networks().items():
            tensors.update(
                {f"{name}/{key}": value for key, value in _flatten(part.state_dict()).items()}
            )
        settings = {
            "agent": type(self).__name__,
            "policy": self.policy_name,
            "policy_kwargs": self.policy_kwargs,
            "hyperparameters": {
                name: _plain(getattr(self, name), name) for name in self.hyperparameters
            },
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "reward_queries": self.reward_queries,
            "n_updates": self._n_updates,
            "problem": signature(self.problem, self.action_space),
        }
        write(path, tensors, settings)

    @classmethod
    def load(
        cls: type[SelfSaved],
        path: str | os.PathLike[str] | io.BufferedIOBase,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSaved:
        """Read an agent that ``save`` wrote.

        Args:
            path: the file.
            env: what to act in; the control of a problem needs the problem itself, so unlike SB3's
                it cannot be absent.
            device: where to put the agent.
            custom_objects: ignored: nothing in a checkpoint is an object.
            print_system_info: ignored.
            force_reset: ignored: the agents keep no episode between calls.
            kwargs: constructor arguments that override the saved ones.

        Raises:
            ValueError: a corrupt, truncated or foreign file, one of a version that this one can't
                read, or a checkpoint from an environment of another shape.
        """
        tensors, settings = read(path, cls.__name__)
        if env is None:
            raise ValueError(
                f"env must be given to {cls.__name__}.load: the control of a problem needs the"
                " problem"
            )
        env = cls._wrap_env(as_env(env))
        misfit = (
            f"path must name a checkpoint of this version of {cls.__name__}; {str(path)!r} does not"
            " fit it"
        )
        missing = {*_READ, "generator"} - {*settings, *tensors}
        unknown = settings.get("hyperparameters", {}).keys() - set(cls.hyperparameters)
        if missing or unknown:
            raise ValueError(f"{misfit} (missing: {sorted(missing)}, unknown: {sorted(unknown)})")
        ours, theirs = signature(problem_of(env), env.action_space), settings["problem"]
        if ours != theirs:
            raise ValueError(
                f"env must be the kind that the checkpoint was trained on, {theirs}; got {ours}"
            )
        arguments = {
            **settings["hyperparameters"],
            "seed": settings["seed"],
            "policy_kwargs": settings["policy_kwargs"],
        }
        agent = cls(settings["policy"], env, device=device, **{**arguments, **kwargs})
        stream = tensors.pop("generator")
        if stream.shape == agent.generator.get_state().shape:
            agent.generator.set_state(stream)
        else:  # the CPU's random streams are none of a GPU's: go on with another
            agent.generator.manual_seed((settings["seed"] or 0) + settings["num_timesteps"])
        for name, part in agent.networks().items():
            state = {
                key.removeprefix(f"{name}/"): value
                for key, value in tensors.items()
                if key.startswith(f"{name}/")
            }
            try:
                part.load_state_dict(_unflatten(state, part))
            except (
                RuntimeError,
                ValueError,
                KeyError,
            ) as error:  # torch's words for other names and shapes
                raise ValueError(f"{misfit} ({error})") from error
        agent.num_timesteps, agent.reward_queries = (
            settings["num_timesteps"],
            settings["reward_queries"],
        )
        agent._n_updates = settings["n_updates"]
        return agent


#: What ``load`` reads of a checkpoint's settings.
_READ = (
    "policy",
    "policy_kwargs",
    "hyperparameters",
    "seed",
    "num_timesteps",
    "reward_queries",
    "n_updates",
    "problem",
)


def signature(problem: Problem, action_space: spaces.Space) -> dict[str, Any]:
    """What must agree between a checkpoint's environment and the one it is loaded into."""
    return {
        "problem": type(problem).__name__,
        "state_shape": list(problem.state_shape),
        "noise_shape": list(problem.noise_shape),
        "horizon": problem.horizon,
        "action_bound": float(np.max(action_space.high)),  # type: ignore[attr-defined]
    }


def _plain(value: Any, name: str) -> Any:
    if callable(value):
        raise ValueError(
            f"{name} must be a plain number to be saved; got {value!r}: a checkpoint holds no code"
        )
    return value.item() if isinstance(value, np.generic) else value


def _flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    """A module's or an Adam optimizer's state as named tensors."""
    if "param_groups" not in state:
        return state
    return {
        f"{i}/{key}": torch.as_tensor(value)
        for i, slot in state["state"].items()
        for key, value in slot.items()
    }


def _unflatten(state: dict[str, Tensor], part: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    if isinstance(part, nn.Module):
        return state
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        i, name = key.split("/", 1)
        slots.setdefault(int(i), {})[name] = value
    return {"state": slots, "param_groups": part.state_dict()["param_groups"]}
