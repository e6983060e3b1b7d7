"""The form that PIFT takes by itself: what each reward allows, judged apart."""

import pytest
import torch

from girsanov.agents import PIFT
from girsanov.agents.pi_ft.value_gradients import Slope, reward_slopes
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, rollout
from girsanov.scoreboard.registry import find_agent


class Race(Problem):
    """A random walk with a cost on the way and something at the end."""

    state_shape = noise_shape = (1,)
    horizon, temperature = 5, 0.5

    def __init__(self, cost: str = "smooth", end: str = "smooth", follows: bool = True) -> None:
        self.cost, self.end, self.follows = cost, end, follows

    def initial(self, n, generator):
        return torch.zeros(n, 1, device=generator.device)

    def transition(self, k, x, z):
        return x + (z if self.follows else z.detach()) / self.horizon**0.5

    def running_reward(self, k, x):
        paid = -0.1 * x[:, 0].square()
        return {"smooth": paid, "black box": paid.detach(), "none": 0 * paid.detach()}[self.cost]

    def terminal_reward(self, x):
        kinds = {
            "smooth": lambda y: y,
            "flat": torch.sign,
            "prize": lambda y: (y > 1).float(),
            "far prize": lambda y: (y > 100).float(),
        }
        return kinds[self.end](x[:, 0])


@pytest.mark.parametrize(
    ("problem", "slopes", "form"),
    [
        (Race(), (Slope.SMOOTH, Slope.SMOOTH), "MlpPolicy"),
        (Race("none"), (Slope.NONE, Slope.SMOOTH), "MlpPolicy"),
        (Race("smooth", "prize"), (Slope.SMOOTH, Slope.BLACK_BOX), "FittedPolicy"),
        (Race("none", "far prize"), (Slope.NONE, Slope.BLACK_BOX), "FittedPolicy"),
        (Race("black box", "smooth"), (Slope.BLACK_BOX, Slope.SMOOTH), "FittedPolicy"),
        (Race("smooth", "smooth", False), (Slope.SMOOTH, Slope.SMOOTH), "ScorePolicy"),
    ],
)
def test_each_reward_is_judged_apart_and_the_form_follows(problem, slopes, form):
    assert reward_slopes(problem) == slopes
    assert PIFT(env=problem, device="cpu").policy_name == form
    assert find_agent("pi-ft").make(ProblemEnv(problem), device="cpu").policy_name == form


@torch.no_grad()
def reached(model, problem: Problem) -> float:
    """Gain of the objective over no control."""
    paths = [
        rollout(problem, control, 4000, torch.Generator().manual_seed(1))
        for control in (model.policy.control, None)
    ]
    ours, none = (float((p.reward - problem.temperature * p.kl).mean()) for p in paths)
    return ours - none


def test_a_smooth_cost_with_a_prize_runs():
    problem = Race("smooth", "prize")
    model = PIFT(env=problem, seed=0, device="cpu").learn(60 * problem.horizon)
    assert model.reward_queries >= 60 and model.policy.control(0, torch.zeros(1, 1)).abs() > 0


def test_a_gradient_of_zero_is_named_and_learnt_all_the_same():
    problem = Race("smooth", "flat")
    with pytest.warns(UserWarning, match=r"gradient of Race\.terminal_reward is zero at every"):
        model = PIFT(env=problem, seed=0, device="cpu")
    assert model.policy_name == "FittedPolicy"
    assert reached(model.learn(400 * problem.horizon), problem) > 0.15


def test_a_detached_running_reward_is_not_passed_over():
    with pytest.raises(ValueError, match=r"gradient of the reward; Race\.running_reward returned"):
        PIFT("MlpPolicy", Race("black box"), device="cpu").learn(10)
    PIFT("MlpPolicy", Race("none"), device="cpu", gradient_steps=1).learn(10)


@pytest.mark.filterwarnings("ignore:at temperature 0.02 convergence of policy iteration")
def test_algorithm_1_takes_full_steps_where_they_contract_and_damped_ones_elsewhere():
    for temperature, contracts in ((2.0, True), (0.02, False)):
        problem = LinearQuadratic.damped_rotation(1, steps=3, temperature=temperature)
        env = ProblemEnv(problem, action_bound=50.0)
        settings = {"hidden": [8], "draws": 2, "control_draws": 1}
        model = find_agent("pi-ft-algorithm1").make(
            env, seed=0, device="cpu", policy_kwargs=settings, gradient_steps=30, n_trajectories=50
        )
        assert model.policy_name == "FunctionalPolicy" and bool((model.policy.damping == 1).all())
        model.learn(1)
        full = model.policy.damping == 1
        assert bool(full.all()) if contracts else not bool(full[1:].any())
