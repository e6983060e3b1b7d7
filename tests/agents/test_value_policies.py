"""Controls that networks make: the gradient of log f where it curves within one step's noise."""

from typing import Any

import pytest
import torch
from torch import nn

from girsanov.agents import PDE
from girsanov.agents.value_policies import MlpPolicy
from girsanov.envs import make_problem
from girsanov.envs.control_affine import ControlAffine


class Parabola(nn.Module):
    """``log f = slope x - curvature x^2 / 2`` at every step."""

    def __init__(self, slope: float, curvature: float) -> None:
        super().__init__()
        self.slope, self.curvature = slope, curvature

    def forward(self, k: object, x: torch.Tensor) -> torch.Tensor:
        return (self.slope * x - 0.5 * self.curvature * x.square()).sum(1)


class NewtonPolicy(MlpPolicy):
    newton = True


def control(curvature: float, policy_class: Any = "MlpPolicy", **policy_kwargs: int) -> float:
    """Of ``x' = x + a + W`` at x = 0, with a slope of 0.6."""
    walk = ControlAffine(
        drift=lambda t, q: 0 * q,
        control_matrix=[[1.0]],
        terminal_reward=lambda q: 0 * q[:, 0],
        initial=lambda n, generator: torch.zeros(n, 1),
        step_size=1.0,
        horizon=2,
        temperature=1.0,
    )
    policy = PDE(policy_class, walk, seed=0, device="cpu", policy_kwargs=policy_kwargs).policy
    policy.value = Parabola(0.6, curvature)
    return float(policy.control(0, torch.zeros(1, 1)))


@pytest.mark.parametrize("curvature", [-0.4, 0.0, 0.5, 1.0, 1.5])
def test_networks_curved_within_the_noise_do_not_overshoot(curvature: float) -> None:
    """The best control is ``slope / (1 + curvature)`` (it is the mean of the tilted noise, too)."""
    best = 0.6 / (1 + curvature)
    once = abs(control(curvature, draws=0, iterations=1) - best)  # the gradient at the uncontrolled mean
    assert once > 0.15 or not curvature
    assert abs(control(curvature) - best) <= 0.5 * once + 1e-4
    assert control(curvature, iterations=30) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("curvature", [0.0, 0.5, 1.5, 4.0])
def test_one_newton_step_is_exact_for_a_parabola(curvature: float) -> None:
    """However it curves: the damped iteration is off by more than 0.1 after three steps at a curvature of 4."""
    best = 0.6 / (1 + curvature)
    assert control(curvature, NewtonPolicy, iterations=1) == pytest.approx(best, abs=1e-4)
    assert curvature < 4 or abs(control(curvature, iterations=3) - best) > 0.1


@pytest.mark.parametrize(
    ("name", "draws", "iterations", "rate"), [("GaussianMixture", 0, 1, 2e-3), ("CartPoleSwingUp", 2, 3, 6e-3)]
)
def test_denoisers_have_settings_of_their_own(name: str, draws: int, iterations: int, rate: float) -> None:
    agent = PDE("MlpPolicy", make_problem(f"girsanov/{name}-v0"), seed=0, device="cpu")
    assert (agent.policy.draws, agent.policy.iterations, agent.learning_rate) == (draws, iterations, rate)
    given = PDE("MlpPolicy", agent.env, 1e-3, device="cpu", policy_kwargs={"draws": 0, "iterations": 2})
    assert (given.policy.draws, given.policy.iterations, given.learning_rate) == (0, 2, 1e-3)
