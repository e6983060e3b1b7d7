"""Results that several folders share: in ``$GIRSANOV_CACHE``, else ``$XDG_CACHE_HOME/girsanov``,
else ``~/.cache/girsanov``. Deleting it costs nothing but time.

An entry is found by all that it depends on. One that can't be read counts as absent, and a folder
that can't be written to is left alone: nobody needs a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .files import read_json, write_json


def cache_folder() -> Path:
    """Where the cache is, whether or not it is there."""
    given = os.environ.get("GIRSANOV_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / (
        "girsanov"
    )


def entry(kind: str, key: dict[str, Any]) -> Path:
    """The file of what depends on ``key``, plain JSON values, alone."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / kind / f"{digest[:40]}.json"


def look_up(kind: str, key: dict[str, Any]) -> Any | None:
    """What was kept for exactly this key; None if nothing was."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: no home
        path = entry(kind, key)
        found = read_json(path) if path.is_file() else None
        if isinstance(found, dict) and found.get("key") == json.loads(json.dumps(key)):
            return found.get("value")
    return None


def keep(kind: str, key: dict[str, Any], value: Any) -> None:
    """Keep plain JSON values, in whole or not at all."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        write_json(entry(kind, key), {"key": key, "value": value})
