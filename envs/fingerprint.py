"""What a problem is, in one line: its code, its tensors, its numbers and the files that it names.
Two problems of the same name whose fingerprints differ are not the same problem.

Code counts by its meaning: comments, docstrings and layout do not. Of a large tensor some of its
entries are read and the bits of all are summed, of a large file parts are read, so that a network
of a billion weights costs no more than a second.
"""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

#: Entries read of a tensor, evenly spaced.
_ENTRIES = 4096
#: Bytes read of a file at a time, and at how many places of it at most.
_BLOCK, _BLOCKS = 2**16, 64
#: Nested this deep, things count by their types alone.
_DEPTH = 6
_PACKAGE = __name__.partition(".")[0]
#: The base class of all, which says how problems are checked and drawn, not what one is.
_SEAM = f"{_PACKAGE}.envs.problem"


def fingerprint(problem: Any) -> str:
    """32 hexadecimal digits. Attributes that begin with an underscore count only where they are
    functions or networks: problems keep what they have computed there.
    """
    digest = hashlib.sha256()
    for part in _parts(problem, _DEPTH, set()):
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def _parts(value: Any, depth: int, seen: set[int]) -> Iterator[str | bytes]:
    yield type(value).__name__
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield repr(value)
        if isinstance(value, str):
            yield from _file(value)
    elif isinstance(value, os.PathLike):
        yield os.fsdecode(value)
        yield from _file(value)
    elif isinstance(value, (torch.dtype, torch.Size)):
        yield str(value)
    elif isinstance(value, (Tensor, np.ndarray)):
        yield from _entries(torch.as_tensor(value) if value.dtype != object else torch.empty(0))
    elif depth == 0 or id(value) in seen:
        return
    elif isinstance(value, nn.Module):
        seen.add(id(value))
        yield from _code(type(value))
        for name, tensor in value.state_dict().items():
            yield name
            if isinstance(tensor, Tensor):
                yield from _entries(tensor)
    elif isinstance(value, Mapping):
        seen.add(id(value))
        for key in sorted(value, key=str):
            yield str(key)
            yield from _parts(value[key], depth - 1, seen)
    elif isinstance(value, (tuple, list)):
        seen.add(id(value))
        for part in value:
            yield from _parts(part, depth - 1, seen)
    elif isinstance(value, (FunctionType, MethodType)):
        seen.add(id(value))
        yield from _function(value, depth, seen)
    elif isinstance(value, partial):
        for part in (value.func, value.args, value.keywords):
            yield from _parts(part, depth - 1, seen)
    elif isinstance(value, type):
        yield value.__qualname__
        yield from _code(value)
    elif not isinstance(value, (ModuleType, torch.device, torch.Generator)):
        seen.add(id(value))
        yield from _object(value, depth, seen)


def _object(value: Any, depth: int, seen: set[int]) -> Iterator[str | bytes]:
    yield from _code(type(value))
    try:
        attributes = vars(value)
    except TypeError:  # one written in C: a MuJoCo model, say
        yield from _pickled(value)
        return
    for name in sorted(attributes):
        found = attributes[name]
        cached = isinstance(getattr(type(value), name, None), cached_property)
        if cached or (name.startswith("_") and not isinstance(found, _MEANT)):
            continue
        yield name
        yield from _parts(found, depth - 1, seen)


#: What counts whatever it is called.
_MEANT = (FunctionType, MethodType, partial, nn.Module)


def _file(path: Any) -> Iterator[str | bytes]:
    """What is in a file, if ``path`` names one."""
    try:
        size = os.stat(path).st_size if os.path.isfile(path) else None
        if size is None:
            return
        yield f"file of {size}"
        with open(path, "rb") as file:
            for start in range(0, size, max(_BLOCK, -(-size // _BLOCKS))):
                file.seek(start)
                yield file.read(_BLOCK)
    except (OSError, ValueError):  # no file name, or one that can't be read
        return


def _function(value: Any, depth: int, seen: set[int]) -> Iterator[str | bytes]:
    if isinstance(value, MethodType):
        yield from _parts(value.__self__, depth - 1, seen)
        value = value.__func__
    yield value.__qualname__
    source = list(_reached(value.__module__, value.__qualname__.partition(".")[0], set()))
    yield from source or [value.__code__.co_code]  # typed at a prompt: no file to read
    cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    for part in (*cells, *(value.__defaults__ or ()), value.__kwdefaults__):
        yield from _parts(part, depth - 1, seen)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _entries(tensor: Tensor) -> Iterator[str | bytes]:
    flat = tensor.detach().flatten()
    yield f"{tuple(tensor.shape)} {tensor.dtype}"
    chosen = flat[:: max(1, -(-len(flat) // _ENTRIES))].cpu().contiguous()
    if len(chosen):
        yield chosen.view(torch.uint8).numpy().tobytes()
    if len(flat) > _ENTRIES and flat.element_size() in _BITS:
        yield str(int(flat.contiguous().view(_BITS[flat.element_size()]).sum(dtype=torch.int64)))


#: Integers of as many bytes.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _code(kind: type) -> Iterator[str]:
    """Of a class and its bases, and of what they call in their own files."""
    for base in kind.__mro__:
        if base.__module__ != _SEAM:
            yield from _reached(base.__module__, base.__qualname__.partition(".")[0], set())


def _reached(module: str, name: str, done: set[tuple[str, str]]) -> Iterator[str]:
    """The definition of a name in a module, and those that it mentions, there and in what is
    imported from the user's other files; installed packages are not followed.
    """
    if (module, name) in done or _is_installed(module):
        return
    done.add((module, name))
    definitions = _definitions(module)
    found = definitions.get(name)
    if found is None:
        there = getattr(sys.modules.get(module), name, None)
        origin = there.__name__ if isinstance(there, ModuleType) else None
        if (
            origin is None
            and isinstance(there, (type, FunctionType))
            and there.__module__ != module
        ):
            origin, name = there.__module__, there.__qualname__.partition(".")[0]
            if origin.partition(".")[0] != _PACKAGE:
                yield from _reached(origin, name, done)
        elif (origin is not None and origin.partition(".")[0] != _PACKAGE) or name == "<lambda>":
            for other in sorted(_definitions(origin or module)):
                yield from _reached(origin or module, other, done)
        return
    yield found.meaning
    for other in found.mentioned:
        yield from _reached(module, other, done)


def _is_installed(module: str) -> bool:
    """Whether a module comes with Python or with a package, but for this one."""
    root = module.partition(".")[0]
    if root == _PACKAGE:
        return False
    path = getattr(sys.modules.get(module), "__file__", None)
    return (
        root in sys.stdlib_module_names
        and root != "__main__"
        or path is None
        or "site-packages" in Path(path).parts
    )


class _Definition(NamedTuple):
    meaning: str  # the syntax tree, without docstrings
    mentioned: tuple[str, ...]


def _definitions(module: str) -> dict[str, _Definition]:
    """What a module's file defines at its top level."""
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return _parsed(path, os.stat(path).st_mtime_ns) if path else {}
    except (OSError, ValueError, SyntaxError):
        return {}


@lru_cache(maxsize=256)
def _parsed(path: str, changed: int) -> dict[str, _Definition]:
    found: dict[str, _Definition] = {}
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            stored = (part for part in ast.walk(node) if isinstance(part, ast.Name))
            names = [part.id for part in stored if isinstance(part.ctx, ast.Store)]
        mentioned = set()
        for part in ast.walk(node) if names else ():
            if isinstance(part, ast.Name):
                mentioned.add(part.id)
            elif isinstance(part, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(part):
                part.body[0] = ast.Pass()
        for name in names:
            before = found.get(name, _Definition("", ()))  # one that is changed further down
            found[name] = _Definition(
                before.meaning + ast.dump(node), tuple(sorted({*before.mentioned, *mentioned}))
            )
    return found


def _pickled(value: Any) -> Iterator[bytes]:
    try:
        yield pickle.dumps(value)
    except (TypeError, AttributeError, pickle.PicklingError, NotImplementedError):
        return
