"""Integrators, angles and refinement of diffusions; and what every registered one must keep."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from girsanov.envs import PROBLEMS, make_problem
from girsanov.envs.certificates import certificate
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import objective, rollout
from girsanov.envs.robots.control_affine import ControlAffine, saturated

ROBOTS = [
    f"girsanov/{name}-v0"
    for name in (
        "CartPoleSwingUp",
        "DoubleIntegratorNavigation",
        "PlanarQuadrotor",
        "TwoLinkArm",
        "UnicycleNavigation",
    )
]
every_robot = pytest.mark.parametrize("env_id", ROBOTS)


def test_the_robots_are_registered() -> None:
    assert set(ROBOTS) <= set(PROBLEMS)


def made(**change: Any) -> ControlAffine:
    arguments: dict[str, Any] = {
        "drift": lambda t, q: torch.zeros_like(q),
        "control_matrix": [[1.0]],
        "terminal_reward": lambda q: q[:, 0],
        "initial": lambda n, generator: torch.ones(n, 1, dtype=torch.float64),
        "step_size": 0.1,
        "horizon": 10,
        "temperature": 1.0,
    }
    return ControlAffine(**{**arguments, **change})


# --- integrators


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("rk4", 4)])
def test_order_of_the_drifts_integrator(integrator: str, order: int) -> None:
    """``dq/dt = t q cos q`` has no closed form, so an adaptive integrator of its own gives the
    truth.
    """
    truth = solve_ivp(lambda t, q: t * q * np.cos(q), (0, 2), [1.0], rtol=1e-12, atol=1e-12).y[
        0, -1
    ]
    steps = [8, 16, 32, 64]
    errors = []
    for n in steps:
        problem = made(
            drift=lambda t, q: t * q * q.cos(), integrator=integrator, step_size=2 / n, horizon=n
        )
        q = torch.ones(1, 1, dtype=torch.float64)
        for k in range(n):
            q = problem.transition(k, q, torch.zeros(1, 1, dtype=torch.float64))
        errors.append(abs(float(q) - truth))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.25)


@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_the_limit_is_itos(integrator: str) -> None:
    """``dX = X dB`` is a martingale in Ito's sense; in Stratonovich's its mean would grow by
    ``exp(D / 2)`` in a step.
    """
    problem = made(control_matrix=lambda t, q: q[:, :, None], integrator=integrator)
    z, weight = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(20))
    after = problem.transition(0, torch.full((20, 1), 3.0, dtype=torch.float64), z[:, None])
    assert float(weight @ after[:, 0] / weight.sum()) == pytest.approx(3.0, rel=1e-12)


def test_rk4_holds_the_push_over_the_step() -> None:
    """Of ``p' = v, v' = push / D`` it is the exact solution: positions move by half of it at once,
    unlike Euler's.
    """
    drift = lambda t, q: torch.stack([q[:, 1], 0 * q[:, 1]], 1)  # noqa: E731
    start, z = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.7]])
    common: dict[str, Any] = {
        "drift": drift,
        "control_matrix": [[0.0], [3.0]],
        "initial": lambda n, g: torch.zeros(n, 2),
    }
    push = 3.0 * math.sqrt(0.1) * 0.7
    held = made(integrator="rk4", **common).transition(0, start, z)
    torch.testing.assert_close(held, torch.tensor([[2.0 - 0.1 + 0.05 * push, -1.0 + push]]))
    euler = made(**common).transition(0, start, z)
    torch.testing.assert_close(
        euler, torch.tensor([[2.0 - 0.1, -1.0 + push]])
    )  # m < d: the noise is in the actuator only


def test_one_step_per_row_of_a_drift_that_knows_the_time() -> None:
    problem = made(drift=lambda t, q: torch.sin(3 * t * q), integrator="rk4")
    x, z = torch.rand(2, 4, 1, dtype=torch.float64)
    k = torch.tensor([0, 3, 9, 3])
    together = problem.transition(k, x, z)
    alone = torch.cat(
        [problem.transition(int(i), x[j : j + 1], z[j : j + 1]) for j, i in enumerate(k)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


# --- angles


def turning(**change: Any) -> ControlAffine:
    """An angle between a position and a speed."""
    return made(
        drift=lambda t, q: torch.stack([q[:, 1].sin(), q[:, 2], -q[:, 1].sin()], 1),
        control_matrix=[[0.0], [0.0], [1.0]],
        initial=lambda n, generator: torch.tensor([[0.5, 3.0, 2.0]], dtype=torch.float64).repeat(
            n, 1
        ),
        angles=(1,),
        **change,
    )


def test_an_angle_is_held_as_its_cosine_and_sine() -> None:
    problem = turning()
    assert problem.state_shape == (4,)
    q = torch.tensor([[1.0, -3.0, 7.0], [2.0, 0.5, 8.0]], dtype=torch.float64)
    x = problem.state(q)
    torch.testing.assert_close(x, torch.stack([q[:, 0], q[:, 1].cos(), q[:, 1].sin(), q[:, 2]], 1))
    torch.testing.assert_close(problem.coordinates(x), q)
    turned = q + torch.tensor([0.0, 6 * math.pi, 0.0])
    torch.testing.assert_close(problem.state(turned), x)


def test_wrapped_and_unwrapped_chains_are_the_same_over_many_turns(
    generator: torch.Generator,
) -> None:
    wrapped = turning(integrator="rk4", horizon=400)
    free = made(
        drift=wrapped.drift,
        control_matrix=[[0.0], [0.0], [1.0]],
        initial=wrapped.start,
        integrator="rk4",
        horizon=400,
    )
    noises = 0.3 * torch.randn(400, 5, 1, generator=generator, dtype=torch.float64) + 0.3
    here, there = (
        rollout(problem, None, 5, generator, noises=noises).states for problem in (wrapped, free)
    )
    assert there[-1, :, 1].abs().min() > 4 * math.pi  # turned over and over
    torch.testing.assert_close(here[-1], wrapped.state(there[-1]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        here[..., 1:3].square().sum(2), torch.ones(401, 5, dtype=torch.float64)
    )


def test_gradients_cross_the_cut_of_the_angle() -> None:
    problem = turning()
    x = problem.state(
        torch.tensor([[0.0, math.pi - 0.01, 1.0]], dtype=torch.float64)
    )  # this step crosses pi
    z = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: problem.transition(1, problem.transition(0, x, z), z), z
    )


# --- rewards


def test_saturated() -> None:
    square = torch.tensor([0.0, 1e-6, 4.0, 1e12], dtype=torch.float64)
    torch.testing.assert_close(
        saturated(square, 4.0),
        torch.tensor([0.0, 1e-6, 2.0, 4.0], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    assert torch.equal(saturated(square, math.inf), square)


@every_robot
def test_rewards_are_bounded(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    far = problem.coordinates(problem.initial(1000, generator)).clone()
    far = problem.state(far * 10 ** (6 * torch.rand(far.shape, generator=generator)))
    for reward in (problem.terminal_reward(far), problem.horizon * problem.running_reward(0, far)):
        assert reward.max() <= 0 and reward.min() > -70


# --- refinement


@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_refinement_keeps_time_reward_noise_and_control(
    integrator: str, generator: torch.Generator
) -> None:
    coarse, fine = (
        made(
            control_matrix=[[2.0]],
            running_reward=lambda t, q: 3 * t + 0 * q[:, 0],
            refine=refine,
            integrator=integrator,
        )
        for refine in (1, 4)
    )
    assert (fine.horizon, fine.step_size) == (40, 0.025)
    assert fine.time(40) == pytest.approx(coarse.time(10)) == pytest.approx(1.0)
    noise = torch.randn(40, 6, 1, generator=generator, dtype=torch.float64)
    # the coarse noise is the fine ones' sum over sqrt(4): the same Brownian path
    paths = rollout(fine, None, 6, generator, noises=noise)
    same = rollout(coarse, None, 6, generator, noises=noise.view(10, 4, 6, 1).sum(1) / 2)
    torch.testing.assert_close(paths.states[::4], same.states)
    assert paths.states[-1].std() > 0.5
    # Riemann sums of 3 t over [0, 1]
    assert float(paths.running_rewards.sum(0)[0]) == pytest.approx(1.5 - 1.5 * 0.025)
    assert float(same.running_rewards.sum(0)[0]) == pytest.approx(1.5 - 1.5 * 0.1)
    # a control u for the same time moves as far and costs as much: a = u sqrt(D)
    moved = [
        rollout(
            p,
            lambda k, x, p=p: torch.full_like(x, 0.8 * math.sqrt(p.step_size)),
            1,
            generator,
            noises=0 * noise[: p.horizon, :1],
        )
        for p in (coarse, fine)
    ]
    assert [float(m.states[-1]) for m in moved] == pytest.approx([1 + 2 * 0.8] * 2)
    assert [float(m.kl) for m in moved] == pytest.approx([0.5 * 0.8**2] * 2)


DRIFT = torch.tensor([[0.0, 1.0], [1.5, -0.3]], dtype=torch.float64)
CONTROL, STATE_COST = (
    torch.tensor([[0.0], [0.8]], dtype=torch.float64),
    torch.diag(torch.tensor([0.6, 0.2])).double(),
)
TERMINAL_COST, TARGET = (
    2 * torch.eye(2, dtype=torch.float64),
    torch.tensor([0.5, 0.0], dtype=torch.float64),
)
START, TEMPERATURE = torch.tensor([-0.8, 1.0], dtype=torch.float64), 0.7


def riccati() -> float:
    """The diffusion's optimum ``V_0(START)``: the Riccati equations, integrated adaptively by
    SciPy.
    """
    A, G, R = DRIFT.numpy(), CONTROL.numpy(), STATE_COST.numpy()

    def back(_: float, y: np.ndarray) -> np.ndarray:
        P, p = y[:4].reshape(2, 2), y[4:6]
        pull = G.T @ p
        dP = A.T @ P + P @ A - P @ G @ G.T @ P / TEMPERATURE + R
        dc = pull @ pull / (2 * TEMPERATURE) - 0.5 * np.trace(G.T @ P @ G)
        return np.concatenate([dP.ravel(), A.T @ p - P @ G @ pull / TEMPERATURE, [dc]])

    Q, target, x = TERMINAL_COST.numpy(), TARGET.numpy(), START.numpy()
    end = np.concatenate([Q.ravel(), Q @ target, [-0.5 * target @ Q @ target]])
    y = solve_ivp(back, (0, 1), end, rtol=1e-11, atol=1e-12).y[:, -1]
    return float(-0.5 * x @ y[:4].reshape(2, 2) @ x + y[4:6] @ x + y[6])


def refined(refine: int, integrator: str) -> ControlAffine:
    """An unstable oscillator pushed through its speed, to be brought to the target."""
    return ControlAffine(
        drift=lambda t, q: q @ DRIFT.T,
        control_matrix=CONTROL,
        running_reward=lambda t, q: -0.5 * ((q @ STATE_COST) * q).sum(1),
        terminal_reward=lambda q: -0.5 * (((q - TARGET) @ TERMINAL_COST) * (q - TARGET)).sum(1),
        initial=lambda n, generator: START.repeat(n, 1),
        step_size=0.025,
        horizon=40,
        temperature=TEMPERATURE,
        refine=refine,
        integrator=integrator,
    )


def exact(problem: ControlAffine, temperature: float = TEMPERATURE) -> LinearQuadratic:
    """The same chain, its matrices read off the transition: the optimum is then exact to
    rounding.
    """
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    return LinearQuadratic(
        drift_matrix=problem.transition(0, eye, zero).T,
        noise_matrix=problem.transition(0, torch.zeros(1, 2, dtype=torch.float64), one).T,
        running_matrix=STATE_COST * problem.step_size,
        terminal_matrix=TERMINAL_COST,
        target=TARGET,
        initial_mean=START,
        horizon=problem.horizon,
        temperature=temperature,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_the_optimum_converges_in_first_order_under_refinement(
    integrator: str, generator: torch.Generator
) -> None:
    limit, refinements = riccati(), [1, 2, 4, 8, 16]
    problems = [refined(refine, integrator) for refine in refinements]
    optima = [exact(problem).optimal_objective() for problem in problems]
    slope = np.polyfit(np.log(refinements), np.log(np.abs(np.array(optima) - limit)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)
    scores = []
    for problem in problems[:3]:
        solved, free = exact(problem), exact(problem, 1e9).optimal_objective()
        scores.append((solved.optimal_objective() - free) / (solved.log_moment_objective() - free))
    print(f"{integrator}: optimum {optima}, limit {limit}, optimal score {scores}")
    assert abs(scores[2] - scores[0]) < 0.02
    # and the chain is the one solved: its best policy attains the optimum
    solved = exact(problems[1])
    best = objective(problems[1], solved.optimal_control, 20_000, generator).objective
    assert abs(best.mean - optima[1]) < 3 * best.stderr < 0.05


@pytest.mark.parametrize("env_id", [*ROBOTS, "girsanov/Pendulum-v0"])
def test_refined_tasks_are_the_same_tasks(env_id: str, generator: torch.Generator) -> None:
    """Uncontrolled returns, and the share of them that carries the certificate, change by no more
    than a few percent.
    """
    coarse, fine = make_problem(env_id), make_problem(env_id, refine=2)
    assert fine.horizon == 2 * coarse.horizon
    returns = [rollout(problem, None, 6_000, generator).reward for problem in (coarse, fine)]
    means, spreads = [float(r.mean()) for r in returns], [float(r.std()) for r in returns]
    stderr = math.hypot(*spreads) / 6_000**0.5
    assert abs(means[0] - means[1]) < 0.03 * abs(means[0]) + 3 * stderr
    assert spreads[0] == pytest.approx(spreads[1], rel=0.15)


# --- every robot


@every_robot
def test_tasks_are_certified_by_8192_paths(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    bound = certificate(problem, 8192, generator)
    assert bound.certified and bound.ess < 0.1 * bound.n  # neither hopeless nor trivial
    free = rollout(problem, None, 8192, generator)
    assert 0.002 < problem.success(free.states[-1]).double().mean() < 0.05


@every_robot
def test_gradients_flow_through_a_rollout(env_id: str, generator: torch.Generator) -> None:
    """Of the return by a constant push, against differences; noise as it comes."""
    problem = make_problem(env_id).to(dtype=torch.float64)
    m = problem.noise_shape[0]
    noises = torch.randn(problem.horizon, 3, m, generator=generator, dtype=torch.float64)

    def worth(push: Tensor) -> Tensor:
        start = torch.Generator().manual_seed(5)
        return rollout(
            problem, lambda k, x: push.expand(len(x), m), 3, start, noises=noises
        ).reward.mean()

    push = torch.full((m,), 0.02, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(worth(push), push)
    assert (slope.abs() > 1e-3).any()
    for i in range(m):
        step = 1e-6 * torch.eye(m, dtype=torch.float64)[i]
        difference = float(worth(push.detach() + step) - worth(push.detach() - step)) / 2e-6
        assert float(slope[i]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


# --- wrong arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"integrator": "heun"}, r"integrator must be one of \['euler', 'rk4'\]; got 'heun'"),
        ({"refine": 0}, "refine must be an integer of at least 1; got 0"),
        ({"horizon": 2.5}, "horizon must be an integer of at least 1; got 2.5"),
        ({"angles": (1,)}, r"angles must be coordinates in 0..0; got \(1,\)"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("CartPoleSwingUp", {"damping": -1.0}, "damping must be a number of at least 0; got -1.0"),
        ("CartPoleSwingUp", {"force_scale": 0}, "force_scale must be a positive number; got 0"),
        ("CartPoleSwingUp", {"refine": 1.5}, "refine must be an integer of at least 1; got 1.5"),
        (
            "TwoLinkArm",
            {"target": (1.0, 0.0)},
            r"target must be \(x, y\) within the arm's length of 0.63 m; got \(1.0, 0.0\)",
        ),
        ("TwoLinkArm", {"friction": math.inf}, "friction must be a finite number; got inf"),
        ("PlanarQuadrotor", {"drag": -0.1}, "drag must be a number of at least 0; got -0.1"),
        (
            "UnicycleNavigation",
            {"turn_scale": 0.0},
            "turn_scale must be a positive number; got 0.0",
        ),
        (
            "UnicycleNavigation",
            {"obstacles": [(0, 0)]},
            r"obstacles must be circles \(x, y, radius > 0\); got \[\(0, 0\)\]",
        ),
        (
            "DoubleIntegratorNavigation",
            {"cost_limit": 0},
            "cost_limit must be a positive number or infinite; got 0",
        ),
        ("Pendulum", {"refine": 0}, "refine must be an integer of at least 1; got 0"),
    ],
)
def test_wrong_arguments_of_tasks_are_named(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_problem(f"girsanov/{name}-v0", **change)
