"""Tensors as safetensors and settings as JSON, in one zip. Reading never runs code, and never takes
more memory than the file is long.

What is read may come from anybody: a zip's members must be stored as they are, so that no small
file unpacks to a large one, and sizes are looked up in headers before anything is read.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..envs.checks import words_of

_TENSORS, _SETTINGS = "tensors.safetensors", "settings.json"
#: Bytes of settings.json at most.
SETTINGS_LIMIT = 2**20
#: Bytes of networks that settings may ask for at most, whatever the size of their file.
NETWORKS_LIMIT = 2**30
#: What zipfile, json and safetensors say of bad files.
_BAD = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    safetensors.SafetensorError,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
    ValueError,
)


class Checkpoint(NamedTuple):
    """What one file holds."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """SB3's habit: a path without a suffix means ``path.zip``."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def parse_json(text: str | bytes) -> Any:
    """Strict JSON: a ValueError for NaN and infinite numbers, and for what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refused(word: str) -> Any:
    raise ValueError(f"numbers must be finite; got {word}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text[:40])


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


def read(
    path: str | os.PathLike[str] | io.BufferedIOBase, agent: str | Sequence[str]
) -> Checkpoint:
    """Read a checkpoint that ``agent``, or one of them, wrote.

    Raises:
        ValueError: the file is corrupt or truncated, was written by something else (a
            stable-baselines3 zip, say), or holds another agent.
    """
    if not (isinstance(path, (str, os.PathLike)) or hasattr(path, "seek")):
        raise ValueError(f"path must name a checkpoint, or be an opened one; got {path!r}"[:500])
    source = with_suffix(path) if isinstance(path, (str, os.PathLike)) else path
    agents = [agent] if isinstance(agent, str) else list(agent)
    wanted = f"path must name a checkpoint of {' or '.join(agents)}"
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"{wanted}; there is no file {str(source)!r}")
    try:
        with zipfile.ZipFile(source) as archive:
            maker = _maker(archive)
            if maker is None:
                settings = parse_json(archive.read(_SETTINGS))
                tensors = safetensors.torch.load(archive.read(_TENSORS))
    except _BAD as error:
        raise ValueError(
            f"{wanted}; {str(path)!r} is corrupt or truncated ({words_of(error)})"
        ) from error
    if maker is not None or not isinstance(settings, dict):
        raise ValueError(f"{wanted}; {str(path)!r} was written by {maker or 'another program'}")
    if settings.get("agent") not in agents:
        raise ValueError(f"{wanted}; {str(path)!r} holds a {str(settings.get('agent'))[:100]!r}")
    return Checkpoint(tensors, settings)


def _maker(archive: zipfile.ZipFile) -> str | None:
    """Who else has written it; None: ``write``. A ValueError for members that are not stored."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if not {_TENSORS, _SETTINGS} <= set(names):
        return "stable-baselines3" if "data" in names else "another program"
    if len(names) != 2:
        raise ValueError(f"it must hold {_SETTINGS} and {_TENSORS} alone; got {names[:5]}"[:300])
    archive.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
    if sum(member.file_size for member in members) > archive.fp.tell():  # type: ignore[union-attr]
        raise ValueError("its members must not be longer than the file")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} must be stored as it is, not compressed")
        if member.filename == _SETTINGS and member.file_size > SETTINGS_LIMIT:
            raise ValueError(f"{_SETTINGS} must have at most {SETTINGS_LIMIT} bytes")
    return None


@contextmanager
def bounded(what: str, limit: int = NETWORKS_LIMIT) -> Iterator[None]:
    """Refuse to allocate more than ``limit`` bytes of new tensors within, by one ValueError before
    they are made: settings of a few characters can ask for any amount.
    """
    with _Bounded(what, limit):
        yield


class _Bounded(TorchDispatchMode):
    """Counts what ``torch.empty`` and its like are asked for."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__()
        self.what, self.limit, self.asked = what, limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _FACTORIES and args and isinstance(args[0], (list, tuple)):
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.asked += math.prod(args[0]) * dtype.itemsize
            if self.asked > self.limit:
                raise ValueError(
                    f"{self.what} must ask for at most {self.limit / 2**30:g} GiB of networks; got"
                    f" settings for more, one tensor of them of shape {tuple(args[0])}"
                )
        return func(*args, **kwargs)


_FACTORIES = frozenset({"empty", "zeros", "ones", "full", "rand", "randn", "empty_strided"})
