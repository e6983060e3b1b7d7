"""What the README shows is what CI runs; its blocks: ``tests/docs/test_blocks.py``."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(containing: str) -> str:
    (found,) = [b for b in re.findall(r"```\w+\n(.*?)```", README, re.S) if containing in b]
    return found


def test_ci_runs_the_readmes_test_command() -> None:
    assert block("pytest").strip() in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_examples_are_as_short_as_it_says() -> None:
    assert len(block("class DoubleWell").splitlines()) <= 35
    assert len(block('PDE("MlpPolicy", env, seed=0').splitlines()) <= 10
