"""Control through a learned transition, on problems that autograd can't follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.pde.learned_transition import LearnedTransition, ModelPolicy
from girsanov.agents.pde.replay import Replay
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import objective, rollout
from girsanov.envs.recording import Recording
from girsanov.envs.robots.pendulum import Pendulum

SMALL = {"hidden": [32, 32], "model_hidden": [32, 32]}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class BlackBox(LinearQuadratic):
    """Exact optimum known, gradient hidden."""

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            return super().transition(k, x, z)


def black_box() -> LinearQuadratic:
    return BlackBox.damped_rotation(2, steps=10, temperature=0.5)


def test_regression_finds_the_transition_and_its_derivative_by_the_noise() -> None:
    """From 100 uncontrolled paths of a pendulum: on average within 3 per cent of what a step
    changes.
    """
    problem = Pendulum()
    paths = rollout(problem, None, 100, generator())
    data = Replay.of(problem, Recording.of(paths))
    model = LearnedTransition(3, 1, problem.horizon, timed=False)
    model.place(data.inputs[:, :-1].flatten(0, 1), data.inputs[:, 1:].flatten(0, 1))
    model.regress(data, torch.ones(100, problem.horizon + 1), 600, 3e-3, 512, generator())
    fresh = rollout(problem, None, 20, generator(1))
    x, z = fresh.states[:-1].flatten(0, 1), fresh.noises.flatten(0, 1)

    def slopes(function: Any) -> tuple[Tensor, Tensor]:
        at = z.clone().requires_grad_()
        later = function(at)
        return later.detach(), torch.autograd.grad(later[:, 2].sum(), at)[0]

    (mine, my_slope), (truth, slope) = (
        slopes(lambda at: model(0, x, at)),
        slopes(lambda at: problem.transition(0, x, at)),
    )
    assert bool(((mine - truth).abs().mean(0) < 0.03 * (truth - x).abs().mean(0)).all())
    assert float((my_slope - slope).abs().mean()) < 0.05 * float(slope.abs().mean())


def test_the_network_is_told_the_time_only_where_that_matters() -> None:
    timed = {
        name: (
            PDE(
                "ModelPolicy",
                make_problem(f"girsanov/{name}-v0"),
                device="cpu",
                policy_kwargs=SMALL,
            ).policy.model.timed
        )
        for name in ("Pendulum", "GaussianMixture")
    }
    assert timed == {"Pendulum": False, "GaussianMixture": True}


def test_it_learns_a_black_box_better_than_regression_of_the_noise_does() -> None:
    problem = black_box()
    base, best = (
        objective(problem, None, 20_000, generator(1)).objective.mean,
        problem.optimal_objective(),
    )
    scores = {}
    for policy, sizes in (
        ("ModelPolicy", SMALL),
        ("NoisePolicy", {"hidden": [32, 32], "control_hidden": [32, 32]}),
    ):
        model = PDE(policy, problem, seed=0, device="cpu", policy_kwargs=sizes).learn(10 * 400)
        got = objective(problem, model.policy.control, 4000, generator(2)).objective
        assert got.mean <= best + 4 * got.stderr
        scores[policy] = (got.mean - base) / (best - base)
    assert scores["ModelPolicy"] > 0.85
    assert scores["ModelPolicy"] > scores["NoisePolicy"]


def test_a_saved_one_steers_the_same(tmp_path: Path) -> None:
    problem = black_box()
    model = PDE(
        "ModelPolicy", problem, seed=0, device="cpu", policy_kwargs=SMALL, gradient_steps=5
    ).learn(10 * 150)
    model.save(tmp_path / "agent")
    x = torch.randn(20, *problem.state_shape, generator=generator(3))
    twin = PDE.load(tmp_path / "agent", problem, device="cpu").policy
    steered = model.policy.control(3, x)
    assert torch.equal(steered, twin.control(3, x))
    assert float(steered.abs().max()) > 0.01


class Paid(BlackBox):
    """One temperature for every step, wherever it leads."""

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x[:, 0], self.temperature)


def test_rewards_paid_on_the_way_are_known_after_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """log f falls by one at every step; single steps alone have not carried that from the horizon
    to the start.
    """
    problem = Paid.damped_rotation(2, steps=40, temperature=0.5)

    def fall() -> float:
        model = PDE("ModelPolicy", problem, seed=0, device="cpu", policy_kwargs=SMALL).learn(
            40 * 100
        )
        x = problem.initial(50, generator(4))
        with torch.no_grad():
            return float((model.policy.value(5, x) - model.policy.value(35, x)).mean())

    assert fall() == pytest.approx(30, abs=5)
    # the level of every step alone holds it, too
    monkeypatch.setattr(ModelPolicy, "warm", False)
    assert fall() == pytest.approx(30, abs=5)


def test_it_wants_every_noise() -> None:
    problem = black_box()
    paths = Recording.of(rollout(problem, None, 20, generator())).at_random_times(3, generator())
    with pytest.raises(
        ValueError, match="data must hold noises and controls of every step for ModelPolicy"
    ):
        PDE("ModelPolicy", problem, device="cpu", policy_kwargs=SMALL).fit(paths, gradient_steps=5)
