"""What to type for a part of the package that is not installed."""

from __future__ import annotations

from pathlib import Path


def install_command(extra: str) -> str:
    """The command that installs an extra: of this checkout, or of an installed girsanov.

    Args:
        extra: ``mujoco``, ``sd`` or ``warp``.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        place = "." if Path.cwd() == root else root
        return f'pip install -e "{place}[{extra}]"'
    return f'pip install "girsanov[{extra}]"'


def lacking(error: ImportError) -> str:
    """The package that is not installed; where all are and one of them does not suit another, its
    own words.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name
    return f"versions that suit each other ({str(error).strip().splitlines()[0][:200]})"
