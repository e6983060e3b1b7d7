"""What changes a problem changes its fingerprint, and nothing else does."""

from __future__ import annotations

import importlib
import sys
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
