"""What one run is: frozen parameters that survive a round trip through JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..agents.archive import parse_json
from ..envs.checks import (
    MOST,
    check_flag,
    check_integer,
    check_keywords,
    check_one_of,
    check_positive,
    check_seed,
    shown,
)
from .storage.files import printable

UNITS = ("env_steps", "reward_queries", "seconds")
#: How devices are named where JSON keeps them.
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")
#: What ``learn`` is told when the budget is not in steps: never reached, and harmless in a
#: division.
_ENDLESS = 10**12


class Spent(NamedTuple):
    """What a run has used so far, in every unit; evaluation is in none of them."""

    env_steps: int
    reward_queries: int  # terminal rewards seen
    seconds: float
    model_evaluations: int = 0  # rows of states whose transition or denoiser was computed
    cpu_seconds: float = 0.0  # of this process, all threads: what a busy machine does not change


@dataclass(frozen=True)
class Budget:
    """How long to learn: ``amount`` of one ``unit`` (``env_steps``, ``reward_queries`` or
    ``seconds``).
    """

    amount: float
    unit: str = "reward_queries"

    def __post_init__(self) -> None:
        check_one_of("budget unit", self.unit, UNITS)
        try:
            check_positive("budget", self.amount)
        except ValueError:
            raise ValueError(
                f"budget must be a positive number of {self.unit}; got {shown(self.amount)}"
            ) from None
        if self.amount > MOST:
            raise ValueError(f"budget must be at most {MOST:g} {self.unit}; got {self.amount!r}")
        if not isinstance(self.amount, (int, float)):  # numpy's numbers are none of JSON's
            object.__setattr__(self, "amount", self.amount.item())

    def fraction(self, spent: Spent) -> float:
        """Share of the budget that is spent; 1 is all of it."""
        return getattr(spent, self.unit) / self.amount

    def timesteps(self, horizon: int, lanes: int = 1) -> int:
        """``total_timesteps`` for SB3's ``learn`` on ``lanes`` copies of a problem of ``horizon``
        steps, which end together.
        """
        check_integer("horizon", horizon)
        check_integer("lanes", lanes)
        if self.unit == "reward_queries":
            return math.ceil(self.amount / lanes) * lanes * horizon
        return math.ceil(self.amount) if self.unit == "env_steps" else _ENDLESS


@dataclass(frozen=True)
class EvaluationPlan:
    """How closely runs are watched. Evaluation costs no budget: its rewards are not counted and its
    clock is stopped.

    Args:
        points: evaluations while learning, the one before the first step included; the final one
            comes on top.
        paths: fresh paths at each of them.
        final_paths: fresh paths of the final evaluation.
        reference_paths: uncontrolled paths behind J(0) and the certificate.
        samples: terminal states kept of each agent, all from the same noises.
        reference_starts: initial states over which a closer certificate is taken, ``E[V_0(X_0)]``,
            with 4,096 more uncontrolled paths from each; 0: none. Where starts differ much, the
            certificate of all paths is one that no policy reaches.
    """

    points: int = 10
    paths: int = 128
    final_paths: int = 1000
    reference_paths: int = 8192
    samples: int = 256
    reference_starts: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("points", 1),
            ("paths", 2),
            ("final_paths", 2),
            ("reference_paths", 2),
            ("samples", 1),
        ):
            check_integer(name, getattr(self, name), least)
            object.__setattr__(self, name, int(getattr(self, name)))
        check_integer("reference_starts", self.reference_starts, 0)
        object.__setattr__(self, "reference_starts", int(self.reference_starts))
        if self.reference_starts == 1:
            raise ValueError("reference_starts must be 0 or at least 2; got 1")

    def fractions(self) -> list[float]:
        """Budget fractions to evaluate at, from 0, denser early on, without 1."""
        return [(i / self.points) ** 1.5 for i in range(self.points)]


@dataclass(frozen=True)
class RunSpec:
    """One agent on one environment with one seed.

    Args:
        env: a registered id, or ``module:attribute`` of your own: a Problem or what makes one; with
            a note after ``#``, an environment of its own: ``girsanov/GaussianMixture-v0#beta 2``.
        agent: a name in ``learners.AGENTS``, or ``module:attribute`` of your own (see
            ``registry``); with a note after ``#``, a row of its own: ``pde#no averaging``.
        seed: of the agent.
        budget: how long to learn.
        env_kwargs: of the problem (and ``action_bound`` of its environment).
        agent_kwargs: of the agent, on top of its defaults.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        plan: how to evaluate.
        load: a saved model to start from.
        trust_pickle: let ``load`` be a file whose reading runs the code in it, as those of
            stable-baselines3 do.

    Raises:
        ValueError: a name that is no folder's, or a seed that is no integer of at least 0.
    """

    env: str
    agent: str
    seed: int = 0
    budget: Budget = field(default_factory=lambda: Budget(3000))
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    agent_kwargs: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    plan: EvaluationPlan = EvaluationPlan()
    load: str | None = None
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        for name in ("env", "agent"):
            given = getattr(self, name)
            if not isinstance(given, str) or slug(given) in ("", ".", "..") or "\0" in given:
                raise ValueError(f"{name} must be an id or module:attribute; got {given!r}"[:300])
        for name, kind in (("budget", Budget), ("plan", EvaluationPlan)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} must be {kind.__name__}(...); got {shown(getattr(self, name))}"
                )
        for name in ("env_kwargs", "agent_kwargs"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be a dict of arguments; got None")
            check_keywords(name, getattr(self, name))
        if not (isinstance(self.device, str) and DEVICES.fullmatch(self.device)):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {shown(self.device)}")
        if not (self.load is None or isinstance(self.load, str)):
            raise ValueError(f"load must be the name of a file, or None; got {shown(self.load)}")
        check_flag("trust_pickle", self.trust_pickle)
        if self.seed is None:
            raise ValueError("seed must be an integer of at least 0; got None")
        check_seed("seed", self.seed)
        object.__setattr__(self, "seed", int(self.seed))  # numpy's integers are none of JSON's

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunSpec:
        """The inverse of ``to_json``."""
        return cls(
            **{
                **values,
                "budget": Budget(**values["budget"]),
                "plan": EvaluationPlan(**values["plan"]),
            }
        )

    @classmethod
    def read(cls, path: Path) -> RunSpec:
        """A configuration file: the JSON of ``to_json``, of which ``env`` and ``agent`` must be
        there; ``about`` is a note.

        Raises:
            ValueError: the file is not there, is no JSON, or says what no run has.
        """
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"config must be a readable JSON file; got {str(path)!r} ({error})"
            ) from error
        if not isinstance(values, dict):
            raise ValueError(
                f"config must hold a JSON object of settings; {str(path)!r} holds {values!r}"[:500]
            )
        try:
            values.pop("about", None)
            for name in ("env_kwargs", "agent_kwargs"):
                if not isinstance(values.get(name, {}), dict):
                    raise TypeError(f"{name} must be an object; got {shown(values[name])}")
            if not isinstance(values.get("seed", 0), int):
                raise TypeError(f"seed must be an integer; got {shown(values['seed'])}")
            return cls(**{key: _nested(key, value) for key, value in values.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"config must hold the settings of a run; {str(path)!r} does not:"
                f" {printable(error)}"
            ) from error

    def offered(self, horizon: int) -> dict[str, Any]:
        """What a learner of your own may ask for by name."""
        total = self.budget.timesteps(horizon)
        return {"seed": self.seed, "device": self.device, "total_timesteps": total}

    def env_folder(self, out: Path) -> Path:
        """``<out>/<environment>``."""
        return out / slug(self.env)

    def folder(self, out: Path) -> Path:
        """``<out>/<environment>/<agent>/seed<k>``."""
        return self.env_folder(out) / slug(self.agent) / f"seed{self.seed}"


def _nested(name: str, value: Any) -> Any:
    made = {"budget": Budget, "plan": EvaluationPlan}.get(name)
    return value if made is None else made(**value)


def base_of(name: str) -> str:
    """The agent or environment that a name stands for, without the note that sets its row apart
    from others.
    """
    return name.partition("#")[0]


def slug(name: str) -> str:
    """A folder name for an id or a ``module:attribute``: ``girsanov/Digits-v0`` gives
    ``Digits-v0``, and ``yours/Digits-v0`` gives ``yours+Digits-v0``.
    """
    return name.replace("\\", "/").removeprefix("girsanov/").replace("/", "+").replace(":", ".")
