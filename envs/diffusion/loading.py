"""Pipelines of diffusers from a folder or a name on the hub: whole, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..extras import install_command, lacking


def check_folder(model: Any) -> None:
    """Raise a ValueError if ``model`` is a path, and no name on the hub, where no pipeline lies."""
    if not isinstance(model, (str, Path)):
        return
    folder, name = Path(model), str(model)
    if (folder / "model_index.json").is_file():
        return
    if folder.exists():
        raise ValueError(
            f"model must be a folder that holds a diffusers pipeline; {name!r} has no"
            " model_index.json"
        )
    if (
        isinstance(model, Path)
        or folder.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
    ):
        raise ValueError(
            f"model must be a folder that holds a diffusers pipeline; there is no folder {name!r}"
        )


def load_pipeline(model: Any, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A diffusers pipeline: ``model`` itself if it is one, else a local folder or a name on the
    Hugging Face hub.

    Args:
        model: pipeline, folder or hub name.
        dtype: of its networks; a pipeline that is given keeps its own.
        kwargs: of ``from_pretrained``; entries that are None are left out.

    Raises:
        ValueError: diffusers is missing, or there is no such folder and nothing can be fetched.
    """
    if not isinstance(model, (str, Path)):
        return model
    try:
        diffusers, _, _ = (import_module(name) for name in ("diffusers", "peft", "transformers"))
    except ImportError as error:
        raise ValueError(
            f"diffusers pipelines need {lacking(error)}: {install_command('sd')}"
        ) from error
    check_folder(model)
    # the argument's name, by the presence of what tells its old name from its new one
    renamed = hasattr(import_module("diffusers.utils.deprecation_utils"), "_resolve_dtype")
    given: dict[str, Any] = {"dtype" if renamed else "torch_dtype": dtype}
    given |= {key: value for key, value in kwargs.items() if value is not None}
    left_out = {key for key, value in kwargs.items() if value is None}
    try:
        given |= _absent(Path(model))
        given |= _whole_encoders(Path(model), dtype, kwargs.get("variant"), left_out)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(str(model), **given)
    except _Incomplete:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError) as error:
        reason = (
            str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        )
        raise ValueError(
            "model must be a local diffusers pipeline or a hub name that can be fetched; got"
            f" {str(model)!r}, which is neither ({type(error).__name__}: {reason}). Where there is"
            f" a network: hf download {model} --local-dir FOLDER; then pass model=FOLDER, the"
            " folder with model_index.json"
        ) from error
    return pipeline


def _index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder holds; nothing for a name on the hub."""
    file = folder / "model_index.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _absent(folder: Path) -> dict[str, None]:
    """The parts that a pipeline was saved without, as Stable Diffusion 3 is without its T5:
    diffusers wants to be told so again.
    """
    return {name: None for name, entry in _index(folder).items() if entry == [None, None]}


class _Incomplete(ValueError):
    """A network's file does not hold all of its weights."""


def _whole_encoders(
    folder: Path, dtype: torch.dtype, variant: str | None, left_out: Collection[str]
) -> dict[str, Any]:
    """The networks of transformers in a pipeline's folder, by their names there.

    A name that another version of transformers gave a weight leaves it random, with a warning at
    best: here it is an error.
    """
    index = _index(folder)
    if not index:
        return {}
    transformers = import_module("transformers")
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    given: dict[str, Any] = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    given |= {"variant": variant, "output_loading_info": True}
    found = {}
    for name, entry in index.items():
        kind = (
            getattr(transformers, entry[1], None)
            if isinstance(entry, list) and entry[0] == "transformers" and name not in left_out
            else None
        )
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            continue
        network, report = kind.from_pretrained(folder / name, **given)  # type: ignore[attr-defined]
        missing = sorted(report["missing_keys"])
        if missing:
            raise _Incomplete(
                f"model must hold all weights of its {name}; of {str(folder)!r} transformers"
                f" {transformers.__version__} finds none for {len(missing)} of"
                f" {len(network.state_dict())}, {missing[0]!r} the first. Where another version"
                " wrote the folder: pip install -U transformers"
            )
        found[name] = network
    return found


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A network's type from its name; float64, float32, bfloat16 or float16."""
    allowed = {
        "float64": torch.float64,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    found = allowed.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in allowed.values():
        raise ValueError(f"dtype must be one of {sorted(allowed)}; got {dtype!r}")
    return found
