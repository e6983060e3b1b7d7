"""The build backend: setuptools, but for editable installs.

The repository root is the package, whatever its folder is called. For that setuptools installs an
import hook, which type checkers do not see. A folder with a link of the right name is seen by
everybody; where the system gives no links, the hook stays.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks of PEP 517

ROOT = Path(__file__).resolve().parents[1]
LINKS = ROOT / ".editable"


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """The editable wheel: a path to the folder with the link, in place of the hook."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    if linked():
        replace_hook(Path(wheel_directory) / name)
    return name


def linked() -> bool:
    """Make the link, and say whether it is there."""
    link = LINKS / "girsanov"
    try:
        LINKS.mkdir(exist_ok=True)
        if link.is_symlink():
            link.unlink()
        os.symlink(ROOT, link, target_is_directory=True)
    except OSError:
        return False
    return True


def replace_hook(wheel: Path) -> None:
    """Write the wheel again with the path alone."""
    with zipfile.ZipFile(wheel) as old:
        files = {n: old.read(n) for n in old.namelist() if not n.startswith("__editable__")}
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    del files[record]
    files["__editable__.girsanov.pth"] = f"{LINKS}\n".encode()
    rows = [f"{name},sha256={digest(content)},{len(content)}" for name, content in files.items()]
    files[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in files.items():
            new.writestr(name, content)


def digest(content: bytes) -> str:
    """As RECORD files have it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
