"""References that folders share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from girsanov.envs import make_problem
from girsanov.envs.fingerprint import fingerprint
from girsanov.envs.problem import Problem
from girsanov.scoreboard.storage import references
from girsanov.scoreboard.storage.cache import cache_folder
from girsanov.scoreboard.storage.references import cached_reference

MIXTURE = "girsanov/GaussianMixture-v0"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def problem() -> Problem:
    return make_problem(MIXTURE, steps=5)


def _settings(problem: Problem, paths: int = 256) -> dict[str, Any]:
    return {
        "env": MIXTURE,
        "env_kwargs": {"steps": 5},
        "reference_paths": paths,
        "fingerprint": fingerprint(problem),
    }


class _Counter:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.honest = 0, references.reference_of
        monkeypatch.setattr(references, "reference_of", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.honest(*args, **kwargs)


def test_another_folder_finds_it_equal_to_the_bit(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, settings = _Counter(monkeypatch), _settings(problem)
    first = cached_reference(problem, settings, tmp_path / "a" / "reference.json")
    second = cached_reference(problem, settings, tmp_path / "b" / "reference.json")
    assert first == second and counter.calls == 1
    files = [(tmp_path / name / "reference.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    third = cached_reference(problem, settings, tmp_path / "c" / "reference.json", cache=False)
    assert counter.calls == 2 and third == first  # computed anew, the same


def test_what_differs_is_not_shared(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, settings = _Counter(monkeypatch), _settings(problem)
    first = cached_reference(problem, settings, tmp_path / "a.json")
    cached_reference(problem, _settings(problem, 128), tmp_path / "b.json")
    problem.temperature *= 2
    cached_reference(problem, settings, tmp_path / "c.json")  # though the fingerprint is the same
    problem.temperature /= 2
    honest = problem.terminal_reward
    problem.terminal_reward = lambda x: honest(x) - 1.0  # type: ignore[method-assign]
    fourth = cached_reference(problem, settings, tmp_path / "d.json")
    assert counter.calls == 4
    assert fourth.uncontrolled.mean == pytest.approx(first.uncontrolled.mean - 1.0)


@pytest.mark.parametrize("content", ["", "[]", '{"key": {}, "value": {}}', "\x00"])
def test_an_entry_that_cannot_be_read_is_computed_anew(
    content: str, problem: Problem, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, settings = _Counter(monkeypatch), _settings(problem)
    first = cached_reference(problem, settings, tmp_path / "a.json")
    (entry,) = own.rglob("*.json")
    entry.write_text(content)
    assert cached_reference(problem, settings, tmp_path / "b.json") == first
    assert counter.calls == 2
    kept = json.loads(entry.read_text())
    kept["value"] = {"uncontrolled": None}  # of another version
    entry.write_text(json.dumps(kept))
    assert cached_reference(problem, settings, tmp_path / "c.json") == first


def test_nobody_needs_a_cache(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "file" / "below"))
    first = cached_reference(problem, _settings(problem), tmp_path / "a.json")
    assert cached_reference(problem, _settings(problem), tmp_path / "b.json") == first


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GIRSANOV_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "girsanov"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "girsanov"
