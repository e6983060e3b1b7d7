"""What tuning may choose for each agent: declared here, for rivals and for our own alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..spec import base_of


class Space(ABC):
    """The values that one setting may take."""

    @abstractmethod
    def suggest(self, trial: Any, name: str) -> Any:
        """A value for an Optuna trial."""

    @abstractmethod
    def at(self, share: float) -> Any:
        """What Optuna keeps of the value at that share of the way through, in [0, 1)."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Choice(Space):
    """One of a few values."""

    options: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """See Space."""
        return self.options[trial.suggest_categorical(name, list(range(len(self.options))))]

    def at(self, share: float) -> int:
        """See Space: the number of an option."""
        return int(share * len(self.options))

    def __str__(self) -> str:
        return ", ".join(map(str, self.options))


@dataclass(frozen=True)
class Log(Space):
    """A positive number, uniform in its logarithm."""

    low: float
    high: float

    def suggest(self, trial: Any, name: str) -> float:
        """See Space; rounded to three digits, which a table can hold."""
        return float(f"{trial.suggest_float(name, self.low, self.high, log=True):.3g}")

    def at(self, share: float) -> float:
        """See Space."""
        return self.low * (self.high / self.low) ** share

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} (logarithmic)"


_NETWORKS = Choice(([64, 64], [128, 128], [256, 256]))
_HIDDEN = Choice(({"hidden": [64, 64]}, {"hidden": [128, 128]}, {"hidden": [256, 256]}))

_PPO: dict[str, Space] = {
    "learning_rate": Log(3e-5, 1e-2),
    "n_envs": Choice((10, 20, 40)),
    "batch_size": Choice((250, 500, 1000)),
    "n_epochs": Choice((3, 5, 10, 20)),
    "gae_lambda": Choice((0.4, 0.6, 0.8, 0.9, 0.95)),
    "clip_range": Choice((0.1, 0.2, 0.4)),
    "max_grad_norm": Choice((0.5, 2.0)),
    "net_arch": _NETWORKS,
    "control_bound": Choice((0.5, 1.0, 2.0)),
}
_SAC: dict[str, Space] = {
    "learning_rate": Log(3e-5, 1e-2),
    "n_envs": Choice((5, 10, 20)),
    "batch_size": Choice((256, 512, 1024)),
    "gradient_steps": Choice((1, 2, 4, 8)),
    "tau": Choice((0.005, 0.01, 0.02, 0.05)),
    "n_steps": Choice((1, 3, 5)),
    "net_arch": _NETWORKS,
}
_ROUNDS: dict[str, Space] = {  # of all fine-tuning methods
    "learning_rate": Log(3e-5, 1e-2),
    "n_trajectories": Choice((10, 20, 40)),
    "max_grad_norm": Choice((0.1, 1.0)),
    "policy_kwargs": _HIDDEN,
}
_STEPS: dict[str, Space] = {  # of those that sample steps of their paths
    **_ROUNDS,
    "gradient_steps": Choice((5, 10, 20, 40)),
    "batch_size": Choice((512, 1024)),
}
_CLIPPED: dict[str, Space] = {"clip_range": Choice((0.1, 0.2, 0.4)), **_STEPS}

#: By the name of the agent.
SPACES: dict[str, Mapping[str, Space]] = {
    "pde": {
        "learning_rate": Log(5e-4, 1e-2),
        "n_uncontrolled": Choice((50, 100, 200)),
        "n_trajectories": Choice((25, 50, 100)),
        "gradient_steps": Choice((50, 100, 200)),
        "batch_size": Choice((256, 512, 1024)),
        "averaging": Choice((0.8, 0.9, 0.97)),
        "policy_kwargs": _HIDDEN,
    },
    "pi-ft": {
        "learning_rate": Log(5e-4, 1e-2),
        "n_trajectories": Choice((25, 50, 100)),
        "memory": Choice((1, 2, 4)),
        "damping": Choice((0.1, 0.2, 0.4)),
        "gradient_steps": Choice((10, 20, 40)),
        "policy_kwargs": _HIDDEN,
    },
    "ppo": _PPO,
    "sac": _SAC,
    "dyna": {"imagined": Choice((1000, 2000, 4000)), **_PPO},
    "dpok": _CLIPPED,
    "ddpo": _CLIPPED,
    "grpo": _CLIPPED,
    "adjoint-matching": _STEPS,
    "draft": {**_ROUNDS, "truncation": Choice((1, 5, 20, None))},
    "log-variance": {**_ROUNDS, "gradient_steps": Choice((1, 2, 5, 10))},
}

#: Of adapters in the model's own network, whoever trains them: every row asks the whole network,
#: and a small change of its weights is a long way for the sample.
ADAPTERS: Mapping[str, Space] = {
    "learning_rate": Log(3e-6, 3e-3),
    "gradient_steps": Choice((1, 2, 5, 10)),
    "batch_size": Choice((50, 100, 200)),
}


def searched(agent: str, held: Mapping[str, Any]) -> dict[str, Space]:
    """The space of an agent less what is ``held``; the note after ``#`` in its name is not looked
    at.
    """
    space = dict(SPACES[base_of(agent)])
    if held.get("policy") == "LoraPolicy":
        space.pop("policy_kwargs", None)  # widths
        space = {name: ADAPTERS.get(name, values) for name, values in space.items()}
    return {name: values for name, values in space.items() if name not in held}
