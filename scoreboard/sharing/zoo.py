"""Trained agents with their records, by name: those that ship, or those of a folder.

    from girsanov import zoo

    zoo.names()                                        # ['pde/GaussianMixture-v0', ...]
    agent = zoo.load("ppo/GaussianMixture-v0")         # acts, is evaluated, learns on
    zoo.record("ppo/GaussianMixture-v0")["final"]      # its score, and what it cost

Any folder of a comparison is a zoo of its own, and so is one that came from the hub
(``hub.from_hub``). Nothing in it is run: models are tensors and settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...envs import PROBLEMS
from ..commands.suggestions import did_you_mean
from ..learners import AGENTS
from ..spec import RunSpec, base_of, slug
from ..storage import archive
from ..storage.files import inside
from ..storage.records import RunFolder

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

#: The agents that ship with the package; ``benchmarks/configs/zoo.json`` made them.
SHIPPED = Path(__file__).resolve().parent / "agents"


def names(folder: Path | str = SHIPPED) -> list[str]:
    """The agents that can be loaded, as ``agent/environment``."""
    return sorted(_models(Path(folder)))


def record(name: str, folder: Path | str = SHIPPED) -> dict[str, Any]:
    """What an agent's run was, what it cost, and what came out, with the ``rows`` of its curve.

    Raises:
        ValueError: there is none of that name.
    """
    return _found(name, Path(folder))[0]


def path(name: str, folder: Path | str = SHIPPED) -> Path:
    """An agent's file, for ``run --load``; a ValueError if there is none of that name."""
    return _found(name, Path(folder))[1]


def load(
    name: str, folder: Path | str = SHIPPED, env: Any = None, device: str = "auto"
) -> BaseAlgorithm:
    """An agent, on the environment that it learnt.

    Args:
        name: ``agent/environment``, such as ``"ppo/GaussianMixture-v0"``.
        folder: of a comparison; the agents that ship if absent. Of several seeds, the first.
        env: another environment of the same shape, a Problem or an id. Another temperature is
            warned of.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: there is none of that name, or it is of another shape than ``env``.
    """
    from ..registry import make_env, resolve_device

    run, file = _found(name, Path(folder))
    spec = RunSpec.from_json(run["spec"])
    if env is None:
        if base_of(spec.env) not in PROBLEMS:  # whose module may come from anybody
            raise ValueError(f"env must be given: {name} learnt {spec.env!r}, which has no id")
        env = make_env(spec.env, spec.env_kwargs, device)
    read = AGENTS[spec.agent].load
    assert read is not None
    return read(str(file), env, resolve_device(device))


def _found(name: str, folder: Path) -> tuple[dict[str, Any], Path]:
    models = _models(folder)
    if name not in models:
        raise ValueError(
            f"name must be one of {sorted(models)}; got {name!r}{did_you_mean(str(name), models)}"
        )
    return models[name]


def _models(folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Records and files by name: the first seed of each agent that is a named one and can be read
    again.
    """
    found: dict[str, tuple[dict[str, Any], Path]] = {}
    runs = sorted(archive.finished(folder), key=lambda run: run["spec"]["seed"])
    for run in runs:
        spec = RunSpec.from_json(run["spec"])
        file = inside(folder, RunFolder(folder, spec).model)
        if spec.agent in AGENTS and AGENTS[spec.agent].load and file.is_file():
            found.setdefault(f"{spec.agent}/{slug(spec.env)}", (run, file))
    return found
