"""Girsanov's theorem, the objective and the certificate, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from walks import IDS, Walk, state_feedback

from girsanov.envs import make_problem
from girsanov.envs.counting import counted
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Estimate, objective, rollout
from girsanov.envs.robots.control_affine import ControlAffine


def test_lemma_2_5_is_half_the_squared_control(generator: torch.Generator) -> None:
    """In Han et al.'s variables: u replaces the score s, KL = (1 - alpha)^2 / (2 alpha sigma^2) |u
    - s|^2.
    """
    problem = make_problem("girsanov/GaussianMixture-v0")
    paths = rollout(problem, state_feedback(problem), 500, generator)
    steps = range(problem.horizon - 1)  # the last step adds no noise
    alpha, sigma = problem.schedule.alpha, problem.schedule.sigma
    kl = torch.zeros(500)
    for k in steps:
        x, a, w = paths.states[k], paths.controls[k], paths.noises[k]
        score = problem.score(k, x)
        difference = sigma[k] * alpha[k].sqrt() * a / (1 - alpha[k])
        moved = (x + (1 - alpha[k]) * (score + difference)) / alpha[k].sqrt() + sigma[k] * w
        torch.testing.assert_close(
            moved, paths.states[k + 1], rtol=1e-5, atol=2e-6
        )  # u is the drift of the same step
        step_kl = (1 - alpha[k]) ** 2 / (2 * alpha[k] * sigma[k] ** 2) * difference.square().sum(1)
        torch.testing.assert_close(step_kl, 0.5 * a.square().sum(1), rtol=1e-6, atol=1e-6)
        kl += step_kl
    torch.testing.assert_close(
        kl, paths._replace(controls=paths.controls[:-1]).kl, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("env_id", IDS)
def test_girsanov_weights_turn_controlled_paths_into_uncontrolled_ones(
    env_id: str, generator: torch.Generator
) -> None:
    problem = make_problem(env_id)
    paths = rollout(problem, state_feedback(problem), 20_000, generator)
    weight = paths.log_ratios.sum(0).double().exp()
    mean = Estimate.of(weight)
    assert abs(mean.mean - 1) < 3 * mean.stderr < 0.1
    wrong = Estimate.of(
        (-paths.controls * paths.noises).flatten(2).sum((0, 2)).double().exp()
    )  # |a|^2 / 2 left out
    assert abs(wrong.mean - 1) > 10 * wrong.stderr
    weighted = Estimate.of(weight * paths.reward)
    free = Estimate.of(rollout(problem, None, 20_000, generator).reward)
    assert abs(weighted.mean - free.mean) < 3 * math.hypot(weighted.stderr, free.stderr)
    # the KL is minus the mean log ratio
    log_ratio = Estimate.of(-paths.log_ratios.sum(0) - paths.kl)
    assert abs(log_ratio.mean) < 3 * log_ratio.stderr


def test_two_policies_can_share_their_noise(generator: torch.Generator) -> None:
    problem = Walk()
    noises = torch.randn(4, 6, 1, generator=generator)
    free = rollout(problem, None, 6, generator, noises=noises)
    pushed = rollout(problem, lambda k, x: torch.full_like(x, 0.3), 6, generator, noises=noises)
    assert torch.equal(free.noises, noises) and not free.controls.any() and not free.kl.any()
    torch.testing.assert_close(
        pushed.states - free.states, 0.5 * 0.3 * torch.arange(5.0)[:, None, None].expand(5, 6, 1)
    )
    torch.testing.assert_close(pushed.kl, torch.full((6,), 4 * 0.5 * 0.3**2))
    torch.testing.assert_close(pushed.reward, pushed.states[-1, :, 0])
    torch.testing.assert_close(pushed.log_ratios, -(0.3 * noises[..., 0] + 0.045))


def test_gradients_flow_through_a_rollout(generator: torch.Generator) -> None:
    push = torch.tensor(0.3, requires_grad=True)
    paths = rollout(Walk(), lambda k, x: push.expand_as(x), 5, generator)
    (paths.reward - paths.kl).mean().backward()
    assert push.grad == pytest.approx(4 * 0.5 - 4 * 0.3)


def test_a_rollout_can_be_stopped(generator: torch.Generator) -> None:
    seen: list[int] = []
    with pytest.raises(InterruptedError):
        rollout(Walk(), None, 2, generator, on_step=lambda k: seen.append(k) or k < 2)
    assert seen == [0, 1, 2]


def test_estimate() -> None:
    estimate = Estimate.of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert estimate.mean == 3.0
    assert estimate.stderr == pytest.approx(
        math.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    )  # the unbiased variance, over n


def test_the_objective_of_the_walk(generator: torch.Generator) -> None:
    worth = objective(Walk(), lambda k, x: torch.full_like(x, 0.4), 10_000, generator)
    assert abs(worth.reward.mean - (1 + 4 * 0.5 * 0.4)) < 3 * worth.reward.stderr
    assert worth.kl == pytest.approx((4 * 0.4**2 / 2, 0.0), abs=1e-6)
    assert worth.objective.mean == pytest.approx(worth.reward.mean - worth.kl.mean, abs=1e-5)
    assert worth.reward.stderr == pytest.approx(0.5 * math.sqrt(4) / 100, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "Walk.temperature must be a positive number; got -1.0"),
        ({"temperature": None}, "Walk.temperature must be a positive number; got None"),
        ({"horizon": 0}, "Walk.horizon must be an integer of at least 1; got 0"),
        (
            {"temperature": np.float32("inf")},
            "Walk.temperature must be a positive number; got .*inf",
        ),
        ({"horizon": np.float64(2.0)}, "Walk.horizon must be an integer of at least 1; got .*2.0"),
        ({"horizon": 2.0}, "Walk.horizon must be an integer of at least 1; got 2.0"),
        (
            {"state_shape": (2,)},
            r"Walk.initial\(3, generator\) must return a tensor of shape \(3, 2\); got \(3, 1\)",
        ),
        (
            {"terminal_reward": lambda x: x},
            r"Walk.terminal_reward\(x\) must return a tensor of shape \(3,\); got \(3, 1\)",
        ),
        (
            {"terminal_reward": lambda x: 0.0},
            r"Walk.terminal_reward\(x\) must return a tensor of shape \(3,\); got float",
        ),
        (
            {"state_shape": 1},
            "Walk.state_shape must be a tuple of at least one positive integer; got 1",
        ),
        (
            {"noise_shape": ()},
            r"Walk.noise_shape must be a tuple of at least one positive integer; got \(\)",
        ),
        (
            {"initial": lambda n, g: torch.zeros(n, 1, dtype=torch.long)},
            "floating-point numbers; got torch.int64",
        ),
        ({"initial": lambda n, g: np.zeros((n, 1))}, "floating-point numbers; got ndarray"),
        (
            {"transition": lambda k, x, z: x.add_(z)},
            r"Walk.transition\(0, x, z\) must leave x as it is",
        ),
        (
            {"transition": lambda k, x, z: x + [0.1, 0.2, 0.3, 0.4][k] * z},
            "Walk.* must also take k as a LongTensor.*; got TypeError",
        ),
        (
            {"transition": lambda k, x, z: x + (z if k == 0 else 2 * z)},
            "must also take k as a LongTensor.*; got RuntimeError",
        ),
        (
            {"initial": lambda n, g: torch.randn(n, 1)},
            r"Walk.initial\(n, generator\) must draw by the generator alone",
        ),
        ({"scale": float("nan")}, r"Walk.transition\(0, x, z\) must return finite numbers"),
    ],
)
def test_validate_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    problem = Walk()
    problem.validate()
    vars(problem).update(change)
    with pytest.raises(ValueError, match=message):
        problem.validate()


def in_place_late(k: Any, x: Tensor, z: Tensor) -> Tensor:
    late = torch.as_tensor(k).reshape(-1, 1) >= 2
    return x.add_(late * z) + ~late * z


def nan_midway(k: Any, x: Tensor, z: Tensor) -> Tensor:
    return x + z * torch.where(torch.as_tensor(k) == 2, torch.nan, 1.0).reshape(-1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transition": in_place_late},
            r"Walk.transition\(2, x, z\) must leave x as it is; it was changed in place",
        ),
        (
            {"transition": lambda k, x, z: x + z.mul_(0.5)},
            r"Walk.transition\(0, x, z\) must leave z as it is",
        ),
        (
            {"terminal_reward": lambda x: x if len(x) > 2 else x[:, 0]},
            r"Walk.terminal_reward\(x\) must return a tensor of shape \(3,\); got \(3, 1\)",
        ),
        (
            {"terminal_reward": lambda x: x.squeeze()},
            r"Walk.terminal_reward\(x\) must return a tensor of shape \(1,\); got \(\)",
        ),
        (
            {"running_reward": lambda k, x: x.squeeze()},
            r"Walk.running_reward\(1, x\) must return a tensor of shape \(1,\); got \(\)",
        ),
        (
            {"success": lambda x: x > 0},
            r"Walk.success\(x\) must return a bool tensor of shape \(3,\); got torch.bool of"
            r" shape \(3, 1\)",
        ),
        ({"success": lambda x: x[:, 0]}, r"bool tensor of shape \(3,\); got torch.float32"),
        (
            {"initial": lambda n, g: torch.zeros(3, 1)},
            r"Walk.initial\(1, generator\) must return a tensor of shape \(1, 1\); got \(3, 1\)",
        ),
        ({"transition": nan_midway}, r"Walk.transition\(2, x, z\) must return finite numbers"),
        (
            {"transition": lambda k, x, z: x + z + torch.randn_like(x)},
            "Walk.transition must depend on its arguments alone.*differ by",
        ),
        (
            {"running_reward": lambda k, x: torch.rand(len(x))},
            "Walk.running_reward must depend on its arguments alone",
        ),
        (
            {"transition": lambda k, x, z: x + (z if isinstance(k, int) else 2 * z)},
            "Walk.transition must depend on its arguments alone, and take one step per row",
        ),
        (
            {"terminal_reward": lambda x: x[:, 0] > 0},
            r"Walk.terminal_reward\(x\) must return floating-point numbers; got torch.bool",
        ),
        (
            {"running_reward": lambda k, x: x[:, 0] + 0j},
            r"Walk.running_reward\(0, x\) must return floating-point numbers; got torch.complex64",
        ),
        (
            {"initial": lambda n, g: torch.ones(n, 1, requires_grad=True)},
            r"Walk.initial\(3, generator\) must return states without gradient",
        ),
        (
            {"terminal_reward": lambda x: (x[:, 0] - torch.zeros(3)).square()},
            r"Walk.terminal_reward\(x\) must return a tensor of shape \(1,\); got \(3,\)",
        ),
        (
            {"transition": lambda k, x, z: x + torch.eye(2) @ z},
            r"Walk.transition\(0, x, z\) must take 3 states at once; got RuntimeError: ",
        ),
    ],
)
def test_validate_looks_at_several_numbers_of_states_and_several_steps(
    change: dict[str, Any], message: str
) -> None:
    problem = Walk()
    vars(problem).update(change)
    with pytest.raises(ValueError, match=message):
        ProblemEnv(problem)


def test_the_door_costs_few_rows_and_no_random_number() -> None:
    asked: dict[str, int] = dict.fromkeys(("transition", "running_reward", "terminal_reward"), 0)

    class Asked(Walk):
        def transition(self, k: Any, x: Tensor, z: Tensor) -> Tensor:
            asked["transition"] += len(x)
            return super().transition(k, x, z)

        def running_reward(self, k: Any, x: Tensor) -> Tensor:
            asked["running_reward"] += len(x)
            return super().running_reward(k, x)

        def terminal_reward(self, x: Tensor) -> Tensor:
            asked["terminal_reward"] += len(x)
            return super().terminal_reward(x)

    before = torch.get_rng_state()
    problem, evaluations = counted(Asked(horizon=50))
    ProblemEnv(problem)
    assert asked == {"transition": 8, "running_reward": 8, "terminal_reward": 4}
    assert evaluations.count == 0  # no agent pays for it
    assert torch.equal(torch.get_rng_state(), before)


def test_numpy_s_numbers_become_python_s() -> None:
    problem = Walk(horizon=np.int64(3), temperature=np.float32(0.5))  # type: ignore[arg-type]
    env = ProblemEnv(problem)
    assert type(problem.horizon) is int and problem.horizon == 3
    assert type(problem.temperature) is float and problem.temperature == 0.5
    env.reset(seed=0)
    assert [type(value) for value in env.step(env.action_space.sample())[1:4]] == [
        float,
        bool,
        bool,
    ]


def test_validate_names_what_is_missing() -> None:
    problem = Walk()
    del problem.horizon
    with pytest.raises(ValueError, match="Walk.horizon must be set; it is missing"):
        problem.validate()


def test_a_rollout_refuses_rewards_that_are_not_finite(generator: torch.Generator) -> None:
    problem = Walk()
    problem.terminal_reward = lambda x: torch.where(x[:, 0] > 1, torch.nan, 0.0)  # type: ignore[method-assign]
    with pytest.raises(
        ValueError,
        match=r"Walk.terminal_reward must be finite; got \d+ NaN or infinite of 64 values",
    ):
        rollout(problem, None, 64, generator)


def test_to_copies_modules_and_leaves_the_original() -> None:
    problem = Walk()
    problem.network, problem.table, problem.steps = nn.Linear(1, 1), torch.ones(2), torch.arange(2)  # type: ignore[attr-defined]
    moved = problem.to(dtype=torch.float64)
    assert (
        moved.network.weight.dtype == moved.table.dtype == torch.float64
        and moved.steps.dtype == torch.int64
    )
    assert problem.network.weight.dtype == problem.table.dtype == torch.float32
    assert moved.network is not problem.network


def ornstein_uhlenbeck(**change: Any) -> ControlAffine:
    arguments: dict[str, Any] = {
        "drift": lambda t, x: -x + t,
        "control_matrix": [[0.0], [2.0]],
        "running_reward": lambda t, x: x.sum(1),
        "terminal_reward": lambda x: -x[:, 0],
        "initial": lambda n, generator: torch.ones(n, 2),
        "step_size": 0.25,
        "horizon": 5,
        "temperature": 0.5,
    }
    return ControlAffine(**{**arguments, **change})


def test_control_affine_is_euler_maruyama(generator: torch.Generator) -> None:
    problem = ornstein_uhlenbeck()
    problem.validate()
    assert (problem.state_shape, problem.noise_shape) == ((2,), (1,))
    x, z = torch.tensor([[1.0, 3.0], [0.0, 1.0]]), torch.tensor([[1.0], [-2.0]])
    expected = torch.tensor(
        [[1 - 0.25 + 0.125, 3 - 0.75 + 0.125 + 1.0], [0.125, 1 - 0.25 + 0.125 - 2.0]]
    )
    torch.testing.assert_close(problem.transition(2, x, z), expected)
    torch.testing.assert_close(problem.running_reward(2, x), torch.tensor([1.0, 0.25]))
    k = torch.tensor([2, 4])
    assert torch.equal(problem.transition(k, x, z)[0], expected[0])
    assert torch.equal(problem.transition(k, x, z)[1], problem.transition(4, x, z)[1])
    torch.testing.assert_close(problem.time(k), torch.tensor([[0.5], [1.0]]))
    varying = ornstein_uhlenbeck(
        control_matrix=lambda t, x: torch.stack([0 * x, 2 + 0 * x], 1)[:, :, :1]
    )
    torch.testing.assert_close(varying.transition(k, x, z), problem.transition(k, x, z))
    double = problem.to(dtype=torch.float64)
    assert rollout(double, None, 3, generator).reward.dtype == torch.float64
    assert not ornstein_uhlenbeck(running_reward=None).running_reward(0, x).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be a positive number; got 0"),
        ({"step_size": -0.1}, "step_size must be a positive number; got -0.1"),
        (
            {"initial": lambda n, g: torch.ones(n)},
            r"initial\(.*\) must return a tensor of shape \(n, d\); got \(1,\)",
        ),
        (
            {"control_matrix": [[1.0]]},
            r"control_matrix must have shape \(d, m\), .* with d = 2; got \(1, 1\)",
        ),
        ({"control_matrix": lambda t, x: x}, r"control_matrix must have shape .*; got \(1, 2\)"),
    ],
)
def test_control_affine_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ornstein_uhlenbeck(**change)
