"""A step of the shell is quick, and to the bit what its formulas say."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs import make_problem
from girsanov.envs.env import ProblemVectorEnv
from girsanov.envs.problem import Problem, row_sums, squared_norm

NAMES = ("Pendulum", "LinearQuadratic", "GaussianMixture", "TwoLinkArm", "DoubleWell", "Digits")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_rows_are_summed_as_torch_sums_them(dtype: torch.dtype) -> None:
    for width in range(1, 9):
        rows = torch.randn(2000, width, dtype=dtype, generator=torch.Generator().manual_seed(width))
        rows *= torch.logspace(-6, 6, width, dtype=dtype)
        assert torch.equal(row_sums(rows), rows.sum(1)), width
        assert torch.equal(squared_norm(rows.view(2000, width, 1)), rows.square().sum(1))
    assert row_sums(torch.zeros(3, 0)).tolist() == [0.0] * 3
    leaf = rows[:, :3].clone().requires_grad_()
    row_sums(leaf * leaf).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(leaf.grad, 2 * leaf)  # type: ignore[arg-type]


def by_the_formulas(
    problem: Problem, k: int, x: Tensor, action: Tensor, noise: bool, g: Any
) -> Any:
    """What a step returns, as its docstrings say it, and the next states."""
    a = action.view(len(action), *problem.noise_shape).clamp(-0.7, 0.7)
    rows = a.flatten(1)
    if noise:
        z, kl = a, 0.5 * (rows.square().sum(1) - rows.shape[1])
        log_ratio = torch.zeros_like(kl)
    else:
        z = torch.randn(a.shape, generator=g) + a
        kl = 0.5 * rows.square().sum(1)
        log_ratio = kl - (a * z).flatten(1).sum(1)
    reward, x = x.new_zeros(len(x)) + problem.running_reward(k, x), problem.transition(k, x, z)
    if k + 1 == problem.horizon:
        reward = reward + problem.terminal_reward(x)
    time = torch.full((len(x), 1), (k + 1) / problem.horizon)
    seen = torch.cat([x.reshape(len(x), -1), time], 1)
    return x, seen, reward - problem.temperature * kl, (reward, kl, log_ratio, z, x)


@pytest.mark.parametrize("actions", ["control", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_its_formulas_to_the_bit(name: str, actions: str) -> None:
    problem = make_problem(f"girsanov/{name}-v0", **({} if name == "Digits" else {"steps": 4}))
    lanes: dict[str, Any] = {"num_envs": 33, "action_bound": 0.7, "actions": actions}
    env = ProblemVectorEnv(problem, tensors=True, autoreset_mode="disabled", **lanes)
    twin = ProblemVectorEnv(problem, autoreset_mode="disabled", **lanes)
    env.reset(seed=5), twin.reset(seed=5)
    state = env.training_state()
    x, g = state["x"], torch.Generator()
    g.set_state(state["generator"])
    merged = env.episode_length < problem.horizon  # the last action carries on two steps
    for k in range(env.episode_length - merged):
        action = torch.randn(*env.action_space.shape, generator=torch.Generator().manual_seed(k))
        x, *wanted, said = by_the_formulas(problem, k, x, action, actions == "noise", g)
        seen, paid, over, cut, infos = env.step(action)
        arrays = twin.step(action.numpy())
        for ours, theirs in zip((seen, paid), wanted, strict=True):
            assert torch.equal(ours, theirs)
        assert over.tolist() == [k + 1 == problem.horizon] * 33 and not cut.any()
        for key, theirs in zip(
            ("task_reward", "kl", "log_ratio", "noise", "state"), said, strict=True
        ):
            assert torch.equal(infos[key], theirs) and infos[f"_{key}"].all()
            np.testing.assert_array_equal(arrays[4][key], theirs.numpy())
        np.testing.assert_array_equal(arrays[0], seen.numpy())
        np.testing.assert_array_equal(arrays[1], paid.double().numpy())
        assert arrays[1].dtype == np.float64 and arrays[0].dtype == np.float32


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("actions", ["control", "noise"])
@pytest.mark.parametrize(
    "name", ["Pendulum", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[1:])]
)
def test_a_compiled_transition_is_equal_up_to_rounding(name: str, actions: str) -> None:
    problem = make_problem(f"girsanov/{name}-v0", **({} if name == "Digits" else {"steps": 5}))
    lanes: dict[str, Any] = {"num_envs": 9, "actions": actions, "tensors": True}
    envs = [ProblemVectorEnv(problem, compile=flag, **lanes) for flag in (False, True)]
    asked: list[int] = []
    transition = problem.transition
    vars(problem)["transition"] = lambda k, x, z: asked.append(k) or transition(k, x, z)
    torch.testing.assert_close(*(env.reset(seed=0)[0] for env in envs), rtol=0, atol=0)
    for k in range(envs[0].episode_length):
        action = torch.randn(
            *envs[0].action_space.shape, generator=torch.Generator().manual_seed(k)
        )
        ours, theirs = (env.step(0.3 * action) for env in envs)
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert ours[2].all() and asked == list(range(problem.horizon))  # the plain one alone asks


def test_what_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no working\nC++ compiler")

    monkeypatch.setattr(torch, "compile", lambda call: broken)
    words = r"compile must be False for Pendulum here; got True \(no working C\+\+ compiler\)"
    with pytest.raises(ValueError, match=words):
        ProblemVectorEnv(make_problem("girsanov/Pendulum-v0"), 3, compile=True)


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        value = call(*given, **named)
        spent[0] += time.process_time() - start
        return value

    return timed


@pytest.mark.slow  # a clock decides
@pytest.mark.parametrize("name", ["Pendulum", "LinearQuadratic", "GaussianMixture"])
def test_the_shell_takes_no_longer_than_the_chain(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, chain, rest = make_problem(f"girsanov/{name}-v0"), [0.0], [0.0]
    env = ProblemVectorEnv(problem, 4096, autoreset_mode="same_step", tensors=True)
    env.reset(seed=0)
    actions = torch.zeros(env.action_space.shape or ())
    for holder, method, spent in (
        (problem, "transition", chain),
        (torch, "randn", chain),
        (problem, "running_reward", rest),
        (problem, "terminal_reward", rest),
    ):
        monkeypatch.setattr(holder, method, _timed(getattr(holder, method), spent))
    shares = []
    for _ in range(600):
        chain[0] = rest[0] = 0.0
        start = time.process_time()
        env.step(actions)
        shell = time.process_time() - start - chain[0] - rest[0]
        shares.append(shell / chain[0])
    assert sorted(shares)[60] < 1.15, sorted(shares)[60]
