"""References on disk: one a folder of a comparison, and one a problem that folders share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from ...envs import certificates
from ...envs.checks import words_of
from ...envs.env import device_of
from ...envs.problem import Problem, rollout
from .. import evaluation
from ..evaluation import REFERENCE_SEED, Reference, generator_on, reference_of
from ..spec import base_of
from .cache import keep, look_up
from .files import read_json, write_json

_CACHED = "references"  # the folder of the cache


def cached_reference(
    problem: Problem, settings: dict[str, Any], path: Path, cache: bool = True
) -> Reference:
    """The reference of an environment from the file ``path``; written, if it is not there, from
    what another folder had computed for the same problem, or computed.

    ``settings`` (id, keyword arguments, ``reference_paths``, ``reference_starts`` and the problem's
    ``fingerprint`` if any) must be those of the file, or ValueError names it. Without a
    fingerprint, or with ``cache`` False, folders share nothing.
    """
    if path.is_file():
        found = read_json(path)
        try:
            made_with, reference = found["settings"], Reference.from_json(found["reference"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} holds no reference; delete it, or use another output folder"
                f" ({type(error).__name__}: {words_of(error)})"
            ) from error
        asked = settings.get("fingerprint")
        if made_with.get("fingerprint", asked) != asked:
            raise ValueError(
                f"{path} belongs to another problem: its code, weights or model file have changed"
                f" since; use another output folder, or delete {path.parent} to begin again"
            )
        if {**made_with, "fingerprint": asked} != {**settings, "fingerprint": asked}:
            raise ValueError(
                f"{path} was computed with {made_with}, not {settings}; use another output folder"
            )
        return reference
    key = _key(problem, settings) if cache and settings.get("fingerprint") else None
    kept = None if key is None else _kept(key)
    if kept is None:
        starts = settings.get("reference_starts", 0)
        kept = reference_of(problem, settings["reference_paths"], starts=starts)
        if key is not None:
            keep(_CACHED, key, kept.to_json())
    write_json(path, {"settings": settings, "reference": kept.to_json()})
    return kept


def _kept(key: dict[str, Any]) -> Reference | None:
    try:
        return Reference.from_json(look_up(_CACHED, key) or {})
    except (AttributeError, KeyError, TypeError):  # nothing there, or nothing of ours
        return None


@torch.no_grad()
def _key(problem: Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """All that a reference depends on, which the note of a name is not. A fingerprint does not see
    everything, so a few paths are looked at, too.
    """
    paths = rollout(problem, None, 4, generator_on(problem, REFERENCE_SEED))
    folder = Path(str(certificates.__file__)).parent
    files = [*sorted(folder.glob("*.py")), Path(str(evaluation.__file__))]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    return {
        **settings,
        "env": base_of(settings["env"]),
        "temperature": problem.temperature,
        "returns": [value.hex() for value in paths.reward.double().tolist()],
        "device": device_of(problem).type,
        "torch": torch.__version__,
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }
