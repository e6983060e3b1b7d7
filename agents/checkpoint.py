"""Agents that are saved as tensors and settings (``archive``). Loading never runs code."""

from __future__ import annotations

import io
import os
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from ..envs.checks import check_device
from ..envs.env import as_env, problem_of
from ..envs.problem import Problem
from .archive import bounded, read, write
from .checks import warn_of_temperature

SelfSaved = TypeVar("SelfSaved", bound="SavedAgent")


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
                {f"{name}/{key}": value for key, value in flatten(part.state_dict()).items()}
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
            "temperature": float(self.problem.temperature),
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
        check_device("device", device, auto=True)
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
        wrong = sorted(name for name in _READ.keys() - missing if not _is(settings, name))
        if missing or wrong:
            raise ValueError(f"{misfit} (missing: {sorted(missing)}, of another type: {wrong})")
        unknown = settings["hyperparameters"].keys() - set(cls.hyperparameters)
        if unknown:
            raise ValueError(f"{misfit} (unknown: {sorted(unknown)})")
        ours, theirs = signature(problem_of(env), env.action_space), settings["problem"]
        if ours != theirs:
            raise ValueError(
                f"env must be the kind that the checkpoint was trained on, {str(theirs)[:500]};"
                f" got {ours}"
            )
        warn_of_temperature(path, settings.get("temperature"), problem_of(env).temperature)
        arguments = {
            **settings["hyperparameters"],
            "seed": settings["seed"],
            "policy_kwargs": settings["policy_kwargs"],
        }
        try:
            with bounded(f"settings of {str(path)!r}"):
                agent = cls(settings["policy"], env, device=device, **{**arguments, **kwargs})
            agent._restore(tensors, settings)
        except _SAID_OF_MISFITS as error:  # torch's words for other names and shapes, and ours
            raise ValueError(f"{misfit} ({' '.join(str(error).split())[:1000]})") from error
        return agent

    @property
    def resumes(self) -> bool:
        """Whether ``training_state`` holds all that lives on."""
        return True

    def training_state(self) -> dict[str, Any]:
        """All that lives on from round to round, as a tree of tensors and plain values (``trees``).

        A twin that was made by the same arguments and takes it over between two rounds goes on as
        if it were this agent, to the bit on a CPU. A subclass adds what is in none of its
        ``networks``.
        """
        policy: Any = self.policy
        return {
            "networks": {name: state_of(part) for name, part in self.networks().items()},
            "policy": policy.training_state(),
            "generator": self.generator.get_state(),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def set_training_state(self, state: dict[str, Any]) -> None:
        """Take over what ``training_state`` gave."""
        for name, part in self.networks().items():
            set_state_of(part, state["networks"][name])
        policy: Any = self.policy
        policy.set_training_state(state["policy"])
        counters = {name: state["counters"][name] for name in _COUNTERS}
        vars(self).update(counters)
        self._set_stream(state["generator"], counters["num_timesteps"])

    def _set_stream(self, stream: Tensor, past: int) -> None:
        if stream.shape == self.generator.get_state().shape:
            self.generator.set_state(stream)
        else:  # the CPU's random streams are none of a GPU's: go on with another
            self.generator.manual_seed((self.seed or 0) + past)

    def _restore(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Take over networks, optimizers, the random stream and the counters."""
        self._set_stream(tensors.pop("generator"), settings["num_timesteps"])
        for name, part in self.networks().items():
            state = {
                key.removeprefix(f"{name}/"): value
                for key, value in tensors.items()
                if key.startswith(f"{name}/")
            }
            restore(part, state)
        self.num_timesteps, self.reward_queries, self._n_updates = (
            settings[name] for name in ("num_timesteps", "reward_queries", "n_updates")
        )


#: What an agent counts.
_COUNTERS = (
    *("num_timesteps", "reward_queries", "_n_updates", "_episode_num"),
    *("_total_timesteps", "_num_timesteps_at_start", "_current_progress_remaining"),
)
#: What ``load`` reads of a checkpoint's settings, and the type of each.
_READ: dict[str, Any] = {
    "policy": str,
    "policy_kwargs": (dict, type(None)),
    "hyperparameters": dict,
    "seed": (int, type(None)),
    "num_timesteps": int,
    "reward_queries": int,
    "n_updates": int,
    "problem": dict,
}
_SAID_OF_MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _is(settings: dict[str, Any], name: str) -> bool:
    value = settings[name]
    counts = not isinstance(value, int) or (type(value) is int and 0 <= value < 2**63)
    return isinstance(value, _READ[name]) and counts


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


def state_of(part: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    """A module's or an optimizer's state as a tree: tensors by name; by number, with the settings
    of each group.
    """
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    state = part.state_dict()
    return {
        "state": {str(i): dict(slot) for i, slot in state["state"].items()},
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]],
    }


def set_state_of(part: nn.Module | torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of ``state_of``, into ``part``.

    Raises:
        RuntimeError, ValueError: names or shapes are not those of ``part``.
    """
    if isinstance(part, nn.Module):
        part.load_state_dict(state)
        return
    own = part.state_dict()["param_groups"]
    groups = [
        {**group, "params": mine["params"]}
        for group, mine in zip(state["groups"], own, strict=True)
    ]
    slots = {int(i): slot for i, slot in state["state"].items()}
    parameters = [p for group in part.param_groups for p in group["params"]]
    for i, slot in slots.items():
        for key, value in slot.items():
            if value.dim() and value.shape != parameters[i].shape:
                raise ValueError(f"{key!r} of tensor {i} has the shape {tuple(value.shape)}")
    part.load_state_dict({"state": slots, "param_groups": groups})


def flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    """A module's or an Adam optimizer's state as named tensors."""
    if "param_groups" not in state:
        return state
    return {
        f"{i}/{key}": torch.as_tensor(value)
        for i, slot in state["state"].items()
        for key, value in slot.items()
    }


def restore(part: nn.Module | torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of ``flatten``, into ``part``.

    Raises:
        RuntimeError, ValueError: names, shapes or types are not those of ``part``.
    """
    if any(value.is_complex() for value in state.values()):
        raise ValueError("its numbers must be real; got complex ones")
    if isinstance(part, nn.Module):
        part.load_state_dict(state)
        return
    parameters = [p for group in part.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        i, _, name = key.partition("/")
        if not (i.isdecimal() and int(i) < len(parameters)):
            raise ValueError(f"an optimizer of {len(parameters)} tensors has no {key[:100]!r}")
        if value.dim() and value.shape != parameters[int(i)].shape:
            raise ValueError(f"{key[:100]!r} has the shape {tuple(value.shape)}")
        slots.setdefault(int(i), {})[name] = value
    if len({frozenset(slot) for slot in slots.values()}) > 1:
        raise ValueError("an optimizer's tensors must all have the same statistics")
    part.load_state_dict({"state": slots, "param_groups": part.state_dict()["param_groups"]})
