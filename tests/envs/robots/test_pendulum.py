"""The pendulum against Gymnasium's own, and against a solution on a grid."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs.certificates import certificate
from girsanov.envs.problem import Estimate, objective, rollout
from girsanov.envs.robots.pendulum import Pendulum


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_steps_equal_gymnasiums(seed: int) -> None:
    theirs = gym.make("Pendulum-v1").unwrapped
    theirs.reset(seed=seed)
    ours = Pendulum(dtype=torch.float64)
    angle, speed = theirs.state
    x = torch.tensor([[math.cos(angle), math.sin(angle), speed]], dtype=torch.float64)
    rng = np.random.default_rng(seed)
    fastest = 0.0
    for k in range(200):
        # pump energy in, so that the speed limit and many turns are met
        torque = (
            float(np.clip(2 * np.sign(theirs.state[1]) + rng.normal(), -2, 2))
            if seed
            else float(rng.uniform(-2, 2))
        )
        reward = float(ours.running_reward(k, x))
        _, gym_reward, *_ = theirs.step(np.array([torque]))
        x = ours.transition(k, x, torch.tensor([[torque / ours.torque_scale]], dtype=torch.float64))
        angle, speed = theirs.state
        expected = torch.tensor([[math.cos(angle), math.sin(angle), speed]], dtype=torch.float64)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
        assert reward == pytest.approx(0.05 * (gym_reward + 0.001 * torque**2), abs=1e-6)
        fastest = max(fastest, abs(speed))
    assert seed == 0 or fastest == 8.0


def test_the_state_stays_on_the_circle(generator: torch.Generator) -> None:
    states = rollout(Pendulum(steps=400), None, 200, generator).states
    torch.testing.assert_close(
        states[-1, :, :2].square().sum(1), torch.ones(200), rtol=0, atol=1e-4
    )
    assert states[..., 2].abs().max() <= 8


def test_start_and_success(generator: torch.Generator) -> None:
    problem = Pendulum()
    x = problem.initial(10_000, generator)
    hanging = math.pi - problem.angle(x).abs()
    assert (
        hanging.max() <= 0.1 + 1e-4
        and hanging.mean() == pytest.approx(0.05, abs=0.002)
        and x[:, 2].abs().max() <= 0.1
    )
    assert not problem.success(x).any()
    anywhere = Pendulum(angle_spread=math.pi, speed_spread=1.0).initial(
        10_000, generator
    )  # Gymnasium's own law
    assert problem.success(anywhere).float().mean() == pytest.approx(0.2 / math.pi, abs=0.01)
    assert anywhere[:, 2].std() == pytest.approx(1 / math.sqrt(3), abs=0.02)
    upright = torch.tensor([[math.cos(a), math.sin(a), 0.0] for a in (-0.19, 0.19, 0.21, -0.21)])
    assert problem.success(upright).tolist() == [True, True, False, False]


def test_rewards_are_bounded_and_best_at_the_top() -> None:
    problem = Pendulum()
    top, worst = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 8.0]])
    assert float(problem.running_reward(0, top)) == float(problem.terminal_reward(top)) == 0
    assert float(problem.running_reward(0, worst)) == pytest.approx(-0.05 * (math.pi**2 + 6.4))
    assert float(problem.terminal_reward(worst)) == pytest.approx(-8 * (math.pi**2 + 6.4))


class Grid:
    """The Cole-Hopf recursion on a grid of angles and speeds; nothing of it is in the package.

    ``f_k = exp(r / beta) E_W f_{k+1}`` by Gauss-Hermite quadrature and linear interpolation, and
    the path-integral control ``E[W f_{k+1}] / E[f_{k+1}]``: the mean of the noise under the
    optimally tilted law.
    """

    def __init__(
        self, problem: Pendulum, angles: int = 180, speeds: int = 161, nodes: int = 21
    ) -> None:
        self.angles, self.speeds = angles, speeds
        z, weight = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(nodes))
        angle = torch.arange(angles, dtype=torch.float64) * 2 * math.pi / angles - math.pi
        angle, speed = torch.cartesian_prod(
            angle, torch.linspace(-8, 8, speeds, dtype=torch.float64)
        ).unbind(1)
        x = torch.stack([angle.cos(), angle.sin(), speed], 1)
        cells = [self._locate(problem.transition(0, x, node.expand(len(x), 1))) for node in z]
        value, controls = problem.terminal_reward(x), []
        for k in reversed(range(problem.horizon)):
            exponent = (
                torch.stack([self._read(value, cell) for cell in cells]) / problem.temperature
            )
            exponent += (weight / weight.sum()).log()[:, None]
            controls.append(torch.softmax(exponent, 0).T @ z)
            value = problem.running_reward(k, x) + problem.temperature * torch.logsumexp(
                exponent, 0
            )
        self._value, self._controls = value, controls[::-1]

    def control(self, k: int, x: Tensor) -> Tensor:
        return self._read(self._controls[k], self._locate(x.double())).to(x)[:, None]

    def start_value(self, x: Tensor) -> Tensor:
        return self._read(self._value, self._locate(x.double()))

    def _locate(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        column = (torch.atan2(x[:, 1], x[:, 0]) + math.pi) * self.angles / (2 * math.pi)
        row = (x[:, 2] + 8) * (self.speeds - 1) / 16
        left, low = column.floor(), row.floor().clamp(0, self.speeds - 2)
        a, b = column - left, row - low
        left, low = left.long() % self.angles, low.long()
        right = (left + 1) % self.angles
        return [
            (left * self.speeds + low, (1 - a) * (1 - b)),
            (right * self.speeds + low, a * (1 - b)),
            (left * self.speeds + low + 1, (1 - a) * b),
            (right * self.speeds + low + 1, a * b),
        ]

    def _read(self, table: Tensor, cells: list[tuple[Tensor, Tensor]]) -> Tensor:
        return sum(table[index] * share for index, share in cells)  # type: ignore[return-value]


@pytest.mark.slow
def test_the_certificate_is_nearly_attained_by_a_grid_solution(generator: torch.Generator) -> None:
    problem = Pendulum()
    free = objective(problem, None, 20_000, generator).objective
    bound = certificate(problem, 20_000, generator)
    assert 0.02 < bound.ess / bound.n < 0.2
    grid = Grid(problem)
    paths = rollout(problem, grid.control, 5_000, generator)
    # the mean of V_0 is below the certificate, which also tilts the (narrow) initial law
    assert (
        abs(float(grid.start_value(paths.states[0]).mean()) - bound.bound) < 3 * bound.stderr + 0.3
    )
    best = Estimate.of(paths.reward - problem.temperature * paths.kl)
    score = (best.mean - free.mean) / (bound.bound - free.mean)
    upright = problem.success(paths.states[-1]).float().mean()
    near = (problem.angle(paths.states[-1]).abs() < 0.5).float().mean()
    inside = (paths.controls.abs() <= 1).float().mean()
    print(
        f"J(0) {free}, {bound}, grid {best}, {score=:.3f}, {upright=:.3f}, {near=:.3f},"
        f" {inside=:.4f}, KL {paths.kl.mean():.2f}"
    )
    assert 0.9 < score < 1 and upright > 0.2
    assert inside > 0.98  # the default action bound takes little away


def energy_shaping(problem: Pendulum) -> Any:
    """By hand: push along the speed while the energy is short of the upright rest's, and hold near
    the top.
    """

    def control(k: int, x: Tensor) -> Tensor:
        cosine, sine, speed = x.unbind(1)
        shortage = torch.tanh((15 * (1 - cosine) - 0.5 * speed.square()) / 14)
        held = torch.sigmoid(20 * (cosine - 0.93))
        torque = (1 - held) * 1.2 * shortage * torch.tanh(speed) - held * (5 * sine + 1.5 * speed)
        return (torque / problem.torque_scale)[:, None]

    return control


def test_a_hand_written_controller_beats_none(generator: torch.Generator) -> None:
    problem = Pendulum()
    free, by_hand = (
        objective(problem, policy, 4_000, generator).objective
        for policy in (None, energy_shaping(problem))
    )
    assert by_hand.mean - free.mean > 10 * math.hypot(by_hand.stderr, free.stderr)
    ends = [
        rollout(problem, policy, 4_000, generator).states[-1]
        for policy in (None, energy_shaping(problem))
    ]
    shares = [float(problem.success(x).float().mean()) for x in ends]
    assert shares[0] < 0.04 and shares[1] > 3 * shares[0]
    backwards = objective(
        problem, lambda k, x: -energy_shaping(problem)(k, x), 4_000, generator
    ).objective
    assert backwards.mean < free.mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be a positive number; got 0"),
        ({"torque_scale": -1.0}, "torque_scale must be a positive number; got -1.0"),
        ({"steps": 0}, "steps must be an integer of at least 1; got 0"),
        ({"angle_spread": -0.1}, "angle_spread must be a number of at least 0; got -0.1"),
        ({"terminal_weight": math.inf}, "terminal_weight must be a finite number; got inf"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pendulum(**change)
