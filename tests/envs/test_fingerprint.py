"""What changes a problem changes its fingerprint, and nothing else does."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.envs import make_problem
from girsanov.envs.fingerprint import fingerprint
from girsanov.envs.problem import rollout

WALK = '''
import torch
from girsanov import Problem
from helper import bonus

SCALE = 2.0

class Walk(Problem):
    """A walk."""
    state_shape = noise_shape = (1,)
    horizon, temperature = 5, 1.0

    def __init__(self, offset=0.0):
        self.offset = offset
        self.weights = torch.arange(3.0)
        self._seen = []

    def initial(self, n, generator):
        return torch.randn(n, 1, generator=generator)

    def transition(self, k, x, z):
        return x + z

    def terminal_reward(self, x):
        return paid(x) + bonus(x)

def paid(x):
    return SCALE * x.sum(1)

class Agent:
    rate = 1.0
'''
HELPER = "def bonus(x):\n    return 0 * x.sum(1)\ndef other(x):\n    return x\n"


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(source: str = WALK, helper: str = HELPER, **kwargs: Any) -> Any:
        for name, text in (("walk_of_mine", source), ("helper", helper)):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True  # files change within a second here
        return importlib.import_module("walk_of_mine").Walk(**kwargs)

    yield made
    sys.dont_write_bytecode = False
    for name in ("walk_of_mine", "helper"):
        sys.modules.pop(name, None)


def test_code_and_numbers_count(walk: Any) -> None:
    first = fingerprint(walk())
    assert fingerprint(walk()) == first and len(first) == 32
    for source, helper in (
        (WALK.replace("return x + z", "return x + 2 * z"), HELPER),
        (WALK.replace("SCALE = 2.0", "SCALE = 20.0"), HELPER),
        (WALK.replace("SCALE * x.sum(1)", "10 * x.sum(1)"), HELPER),
        (WALK.replace("arange(3.0)", "arange(4.0)"), HELPER),
        (WALK, HELPER.replace("0 * x", "1 * x")),
    ):
        assert fingerprint(walk(source, helper)) != first
    assert fingerprint(walk(offset=1.0)) != first


def test_words_agents_and_what_was_computed_do_not(walk: Any) -> None:
    problem = walk()
    first = fingerprint(problem)
    problem._seen.append(torch.zeros(2))
    assert fingerprint(problem) == first
    for source, helper in (
        (WALK.replace('"""A walk."""', '"""Another word."""  # and a remark'), HELPER),
        (WALK.replace("rate = 1.0", "rate = 2.0"), HELPER),
        (WALK, HELPER.replace("return x\n", "return 2 * x\n")),
    ):
        assert fingerprint(walk(source, helper)) == first


@pytest.mark.parametrize("env_id", ["Digits", "GaussianMixture", "Reacher", "LinearQuadratic"])
def test_use_does_not_change_it(env_id: str, generator: torch.Generator) -> None:
    pytest.importorskip("mujoco")
    problem = make_problem(f"girsanov/{env_id}-v0")
    before = fingerprint(problem)
    rollout(problem, None, 2, generator)
    problem.validate()
    assert fingerprint(problem) == before
    assert fingerprint(make_problem(f"girsanov/{env_id}-v0")) == before
    assert fingerprint(make_problem(f"girsanov/{env_id}-v0", temperature=3.0)) != before


def test_weights_and_models_count() -> None:
    pytest.importorskip("mujoco")
    digits = make_problem("girsanov/Digits-v0")
    before = fingerprint(digits)
    with torch.no_grad():
        next(p for p in digits.denoiser.parameters()).mul_(1.001)  # type: ignore[attr-defined]
    assert fingerprint(digits) != before
    reacher: Any = make_problem("girsanov/Reacher-v0")
    before = fingerprint(reacher)
    reacher.engine.model.body_mass[1] *= 1.1
    assert fingerprint(reacher) != before


def test_files_hidden_networks_and_what_wraps_functions_count(walk: Any, tmp_path: Path) -> None:
    def different(change: Any, *values: Any) -> bool:
        found = set()
        for value in values:
            problem = walk()
            change(problem, value)
            found.add(fingerprint(problem))
        return len(found) == len(values)

    def written(problem: Any, word: str) -> None:
        file = tmp_path / "judge.onnx"
        file.write_bytes(b"0" * 10**6 + word.encode() + b"0" * 100)
        problem.judge = str(file)
        problem.path = file

    assert different(written, "a", "b", "ab")
    assert different(lambda p, w: setattr(p, "_net", torch.nn.Linear(1, 1, bias=w)), True, False)
    assert different(lambda p, w: setattr(p, "reward", partial(torch.mul, w)), 1.0, 2.0)
    assert different(lambda p, w: setattr(p, "kind", w), int, type(walk()))

    def one_of_many(problem: Any, place: int) -> None:
        problem.table = torch.zeros(20_001)
        problem.table[place] = 1.0  # in between those that are read

    assert different(one_of_many, 0, 3) and not different(lambda p, w: None, 1, 2)


def test_default_arguments_by_name_count() -> None:
    def of(scale: float) -> Any:
        def reward(x: Any, *, by: float = scale) -> Any:
            return x * by

        return reward

    one, two = (make_problem("girsanov/GaussianMixture-v0", steps=5) for _ in range(2))
    one.extra, two.extra = of(1.0), of(2.0)  # type: ignore[attr-defined]
    assert fingerprint(one) != fingerprint(two)
