"""Names that are imported when they are first asked for (PEP 562), and modules under the names that
they had before.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

#: Modules that README or docs once named, and where they are now.
MOVED = {
    "girsanov.baselines.adjoint_matching": (
        "girsanov.baselines.fine_tuning_methods.adjoint_matching"
    ),
    "girsanov.baselines.ddpo": "girsanov.baselines.fine_tuning_methods.ddpo",
    "girsanov.baselines.dpok": "girsanov.baselines.fine_tuning_methods.dpok",
    "girsanov.envs.control_affine": "girsanov.envs.robots.control_affine",
    "girsanov.envs.digits": "girsanov.envs.diffusion.digits",
    "girsanov.envs.double_well": "girsanov.envs.known_optimum.double_well",
    "girsanov.envs.gaussian_mixture": "girsanov.envs.diffusion.gaussian_mixture",
    "girsanov.envs.grid": "girsanov.envs.known_optimum.grid",
    "girsanov.envs.gymnasium_robots": "girsanov.envs.robots.gymnasium_robots",
    "girsanov.envs.image_rewards": "girsanov.envs.rewards.images",
    "girsanov.envs.linear_quadratic": "girsanov.envs.known_optimum.linear_quadratic",
    "girsanov.envs.mujoco": "girsanov.envs.robots.mujoco",
    "girsanov.envs.stable_diffusion": "girsanov.envs.diffusion.stable_diffusion",
}


def lazily(
    package: str, places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A module's ``__getattr__``, which imports ``places[name]``, a module relative to ``package``,
    and its ``__dir__``: the public names, those of ``__all__``.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(places[name], package), name)
        setattr(sys.modules[package], name, value)  # asked for once
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return get, names


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module that was moved: the very same object under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Any:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; that it is what its own name says is put right again."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def keep_old_paths() -> None:
    """Let the names in ``MOVED`` be imported; called once by ``import girsanov``."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
