"""Controls that networks make: the gradient of log f where it curves within one step's noise."""

from typing import Any

import pytest
import torch
from torch import nn

from girsanov.agents import PDE
from girsanov.agents.pde.policies import MlpPolicy
from girsanov.agents.pde.replay import sample_spans
from girsanov.agents.pde.variational import relative_residual_loss
from girsanov.envs import make_problem
from girsanov.envs.robots.control_affine import ControlAffine


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
    once = abs(
        control(curvature, draws=0, iterations=1) - best
    )  # the gradient at the uncontrolled mean
    assert once > 0.15 or not curvature
    assert abs(control(curvature) - best) <= 0.5 * once + 1e-4
    assert control(curvature, iterations=30) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("curvature", [0.0, 0.5, 1.5, 4.0])
def test_one_newton_step_is_exact_for_a_parabola(curvature: float) -> None:
    """However it curves: the damped iteration is off by more than 0.1 after three steps at a
    curvature of 4.
    """
    best = 0.6 / (1 + curvature)
    assert control(curvature, NewtonPolicy, iterations=1) == pytest.approx(best, abs=1e-4)
    assert curvature < 4 or abs(control(curvature, iterations=3) - best) > 0.1


@pytest.mark.parametrize(
    ("name", "draws", "iterations", "rate", "layers", "resamples"),
    [("GaussianMixture", 0, 1, 2e-3, 2, False), ("CartPoleSwingUp", 2, 3, 6e-3, 3, True)],
)
def test_denoisers_have_settings_of_their_own(
    name: str, draws: int, iterations: int, rate: float, layers: int, resamples: bool
) -> None:
    agent = PDE("MlpPolicy", make_problem(f"girsanov/{name}-v0"), seed=0, device="cpu")
    assert (agent.policy.draws, agent.policy.iterations, agent.learning_rate) == (
        draws,
        iterations,
        rate,
    )
    assert (
        agent.policy.resamples is resamples
        and len(agent.policy.value.network.weights) == layers + 1
    )
    settings = {"draws": 0, "iterations": 2, "hidden": [16]}
    given = PDE("MlpPolicy", agent.env, 1e-3, device="cpu", policy_kwargs=settings)
    assert (given.policy.draws, given.policy.iterations, given.learning_rate) == (0, 2, 1e-3)
    assert [len(w[0]) for w in given.policy.value.network.weights[1:]] == [16]


def test_robots_learn_from_observations_drawn_by_their_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Paths that the optimal process would not take are hardly ever drawn, and every one drawn
    counts alike.
    """
    from girsanov.agents.pde import regression
    from girsanov.agents.pde.collecting import batches

    drawn, weights = [], []

    def sample(
        data: Any, n: int, span: float, horizon: int, generator: Any, chances: Any = None
    ) -> Any:
        found = sample_spans(data, n, span, horizon, generator, chances)
        drawn.append(float(data.log_returns[found.row].mean() - data.log_returns.mean()))
        return found

    def loss(value: Any, batch: Any, target: Any, weight: torch.Tensor, n: int) -> torch.Tensor:
        weights.append(weight)
        return relative_residual_loss(value, batch, target, weight, n)

    monkeypatch.setattr(batches, "sample_spans", sample)
    monkeypatch.setattr(regression, "relative_residual_loss", loss)
    problem = make_problem("girsanov/DoubleIntegratorNavigation-v0")
    for resamples in (True, False):
        agent = PDE("MlpPolicy", problem, seed=0, device="cpu", gradient_steps=20)
        agent.policy.resamples = resamples
        agent.learn(100 * problem.horizon)
    by_weight, alike = (
        sum(drawn[:20]) / 20,
        sum(drawn[20:]) / 20,
    )  # nats above the mean of all paths
    assert by_weight > 0.5 and abs(alike) < 0.2
    assert all(bool((w == 1).all()) for w in weights[:20]) and not any(
        bool((w == 1).all()) for w in weights[20:]
    )


def test_of_many_paths_some_are_weighed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from girsanov.agents.pde.collecting import batches

    pools: dict[bytes, int] = {}  # by what is in them

    def sample(data: Any, *others: Any) -> Any:
        pools[data.log_terminal.numpy().tobytes()] = data.n
        return sample_spans(data, *others)

    monkeypatch.setattr(batches, "sample_spans", sample)
    monkeypatch.setattr(batches, "_AT_ONCE", 40)
    problem = make_problem("girsanov/DoubleIntegratorNavigation-v0")
    PDE("MlpPolicy", problem, seed=0, device="cpu", gradient_steps=60).learn(100 * problem.horizon)
    assert list(pools.values()) == [40, 40, 40]  # drawn anew after 25 steps and after 50


def test_half_of_the_later_rounds_are_free_where_a_denoiser_is_dear():
    """And three evaluations of the model a controlled visit are enough, two a free one."""
    problem = make_problem("girsanov/Digits-v0", steps=4, temperature=2.0)
    model = PDE(
        "MlpPolicy",
        problem,
        seed=0,
        device="cpu",
        n_uncontrolled=20,
        n_trajectories=5,
        gradient_steps=2,
    )
    asked = []
    denoiser = model.problem.denoiser
    denoiser.register_forward_hook(lambda _, inputs, out: asked.append(len(inputs[0])))
    model.learn((20 + 4 * 5) * 4)
    steered = [bool(data.controls.any()) for data in model.rounds]
    assert steered == [False, True, False, True, False]
    assert 4 * 40 < sum(asked) <= 4 * (30 * 2 + 10 * 3)
    assert model.rounds[0].effective_share > 0.03
    always = PDE("MlpPolicy", problem, seed=0, device="cpu", controlled=1.0, n_uncontrolled=5,
                 n_trajectories=5, gradient_steps=2).learn(15 * 4)  # fmt: skip
    assert [bool(data.controls.any()) for data in always.rounds] == [False, True, True]


def test_all_later_rounds_are_controlled_where_free_paths_say_too_little():
    problem = make_problem("girsanov/Digits-v0", steps=4, temperature=0.01)
    model = PDE("MlpPolicy", problem, seed=0, device="cpu", n_uncontrolled=40, n_trajectories=5,
                gradient_steps=2).learn(50 * 4)  # fmt: skip
    assert model.rounds[0].effective_share < 0.03
    assert [bool(data.controls.any()) for data in model.rounds] == [False, True, True]
