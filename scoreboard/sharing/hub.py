"""Trained agents on the Hugging Face hub: a folder with a card, pushed and fetched.

The folder is that of a comparison, reduced to what others need: records and curves in one file
(``runs.jsonl``), a model a run, and a card. ``report`` and ``zoo`` read it as they read any other.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ...agents.archive import read, write
from ...envs.checks import check_flag, shown
from ...envs.extras import install_command
from ..spec import RunSpec
from ..storage import archive
from ..storage.files import inside, write_whole
from ..storage.records import RunFolder
from .card import card

#: A repository on the hub.
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
#: What a folder holds that is fetched.
_PATTERNS = ["README.md", archive.FILE, "*/*/seed*/model.zip"]
#: How an optimizer's tensors are named in a model's file: part, number, statistic.
_MOMENTS = re.compile(r".*optimizer.*/\d+/\w+")


def pack(out: Path | str, to: Path | str, optimizers: bool = True, repo: str = "") -> Path:
    """Write what others need of a comparison: records, models and a card.

    Args:
        out: its folder.
        to: where to write.
        optimizers: keep their moments, with which learning goes on as if it had never stopped;
            without them files have a third of the size.
        repo: the name on the hub that the card tells, ``owner/name``.

    Returns:
        ``to``.

    Raises:
        ValueError: no finished run there whose model was kept in a form that is read without
            running code.
    """
    out, to = _folder("out", out), _folder("to", to)
    check_flag("optimizers", optimizers)
    kept = []
    for run in archive.finished(out):
        spec = RunSpec.from_json(run["spec"])
        source = inside(out, RunFolder(out, spec).model)
        if source.is_file() and (agent := _agent_of(source)) is not None:
            tensors, settings = read(source, agent)
            if not optimizers:
                tensors = {k: v for k, v in tensors.items() if not _MOMENTS.fullmatch(k)}
            write(RunFolder(to, spec).model, tensors, settings)
            kept.append(run)
    if not kept:
        raise ValueError(f"out must hold finished runs with their models; got {str(out)!r}")
    archive.pack(out, to)
    write_whole(to / "README.md", card(kept, repo).encode())
    return to


def push_to_hub(
    out: Path | str,
    repo: str,
    private: bool = False,
    token: str | None = None,
    optimizers: bool = True,
) -> str:
    """Push the trained agents of a comparison to the hub; its address.

    Args:
        out: the comparison's folder.
        repo: ``owner/name``; made if it is not there.
        private: whether to make it for its owner alone.
        token: of the hub; what ``hf auth login`` has kept if absent.
        optimizers: see ``pack``.

    Raises:
        ValueError: a bad name, nothing to push, or no huggingface_hub.
    """
    check_flag("private", private)
    _check_words(repo, token=token)
    with tempfile.TemporaryDirectory() as folder:
        pack(out, folder, optimizers, repo)
        api = _hub().HfApi(token=token)
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained agents")
    return str(address)


def from_hub(
    repo: str, to: Path | str, revision: str | None = None, token: str | None = None
) -> Path:
    """Fetch a folder of trained agents: a zoo, and a comparison that ``report`` reads.

    Args:
        repo: ``owner/name``.
        to: where to write.
        revision: a branch, tag or commit.
        token: of the hub; what ``hf auth login`` has kept if absent.

    Raises:
        ValueError: a bad name, or no huggingface_hub.
    """
    _check_words(repo, revision=revision, token=token)
    to, fetch = _folder("to", to), _hub().snapshot_download
    # into plain files: links that lead out of a folder are not followed
    fetch(repo, revision=revision, token=token, local_dir=to, allow_patterns=_PATTERNS)
    return to


def _agent_of(path: Path) -> str | None:
    """Whose model a file is; None for one that is not of ``agents.archive``."""
    try:
        with zipfile.ZipFile(path) as file:
            return str(json.loads(file.read("settings.json"))["agent"])
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None


def _check_words(repo: str, **others: str | None) -> None:
    if not (isinstance(repo, str) and _REPO.fullmatch(repo)):
        raise ValueError(f"repo must be owner/name; got {shown(repo)}")
    for name, value in others.items():
        if not (value is None or isinstance(value, str)):
            raise ValueError(f"{name} must be a word, or None; got {shown(value)}")


def _folder(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{name} must be a folder; got {shown(value)}")
    return Path(value)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"the hub needs huggingface_hub: {install_command('hub')}") from error
    return huggingface_hub
