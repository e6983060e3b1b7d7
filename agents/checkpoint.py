"""Checkpoints: tensors as safetensors and settings as JSON, in one zip. Loading never runs code."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

_TENSORS, _SETTINGS = "tensors.safetensors", "settings.json"


class Checkpoint(NamedTuple):
    """What one file holds."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """SB3's habit: a path without a suffix means ``path.zip``."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def write(path: str | os.PathLike[str] | io.BufferedIOBase, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write a checkpoint; a file appears under its name only when it is complete."""
    if not isinstance(path, (str, os.PathLike)):
        return _write(path, tensors, settings)
    target = with_suffix(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            _write(file, tensors, settings)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: Any, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_SETTINGS, json.dumps(settings, indent=1))
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        archive.writestr(_TENSORS, safetensors.torch.save(plain))


def read(path: str | os.PathLike[str] | io.BufferedIOBase, agent: str) -> Checkpoint:
    """Read a checkpoint that ``agent`` wrote.

    Raises:
        ValueError: the file is corrupt or truncated, was written by something else (a stable-baselines3 zip, say), or
            holds another agent.
    """
    source = with_suffix(path) if isinstance(path, (str, os.PathLike)) else path
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"path must name a checkpoint of {agent}; there is no file {str(source)!r}")
    try:
        with zipfile.ZipFile(source) as archive:
            names = set(archive.namelist())
            if not {_TENSORS, _SETTINGS} <= names:
                maker = "stable-baselines3" if "data" in names else "another program"
                raise ValueError(f"path must name a checkpoint of {agent}; {str(path)!r} was written by {maker}")
            settings = json.loads(archive.read(_SETTINGS))
            tensors = safetensors.torch.load(archive.read(_TENSORS))
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError, EOFError) as error:
        raise ValueError(f"path must name a checkpoint of {agent}; {str(path)!r} is corrupt or truncated ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"path must name a checkpoint of {agent}; {str(path)!r} was written by another program")
    if settings.get("agent") != agent:
        raise ValueError(f"path must name a checkpoint of {agent}; {str(path)!r} holds a {settings.get('agent')!r}")
    return Checkpoint(tensors, settings)
