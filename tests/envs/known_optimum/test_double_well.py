"""The double well against simulation, against the partial differential equation, and against its
own Bellman equations.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from girsanov.envs.certificates import certificate
from girsanov.envs.env import problem_of
from girsanov.envs.known_optimum.double_well import DoubleWell
from girsanov.envs.problem import Estimate, rollout


@pytest.fixture(scope="module")
def registered() -> DoubleWell:
    """The default problem; its solution takes more than a second, so it is found once."""
    return DoubleWell()


def continuous_control(problem: DoubleWell) -> Any:
    """Optimal up to the step size: ``s sqrt(D) grad L_{k+1}`` at the mean of the next state, over
    the temperature.
    """

    def control(k: int, x: Tensor) -> Tensor:
        with torch.enable_grad():
            mean = problem.transition(k, x, torch.zeros_like(x)).requires_grad_()
            (gradient,) = torch.autograd.grad(problem.log_moment_value(k + 1, mean).sum(), mean)
        return problem.noise * math.sqrt(problem.step_size) * gradient / problem.temperature

    return control


def worth(problem: DoubleWell, policy: Any, n: int, seed: int = 0) -> Tensor:
    """The objective's samples, on the same noises for every policy."""
    paths = rollout(problem, policy, n, torch.Generator().manual_seed(seed))
    return (paths.reward - problem.temperature * paths.kl).double()


def test_simulation_finds_the_optimum_and_no_policy_above_it(registered: DoubleWell) -> None:
    problem, n = registered, 8_000
    samples = worth(problem, problem.optimal_control, n)
    best = Estimate.of(samples)
    assert abs(best.mean - problem.optimal_objective()) < 3 * best.stderr < 0.3
    assert best.mean + 3 * best.stderr < problem.log_moment_objective()
    approximate = continuous_control(problem)
    others = {
        "nothing": None,
        "a steady push": lambda k, x: torch.full_like(x, 0.3),
        "continuous time": approximate,
        "less": lambda k, x: 0.9 * problem.optimal_control(k, x),
        "more": lambda k, x: 1.1 * problem.optimal_control(k, x),
        "late": lambda k, x: problem.optimal_control(max(k - 1, 0), x),
        "clipped": lambda k, x: problem.optimal_control(k, x).clamp(-1, 1),
    }
    for name, policy in others.items():
        loss = Estimate.of(samples - worth(problem, policy, n))
        assert loss.mean > 3 * loss.stderr, (name, loss)
    # how far controls are from the best, relative to it, where the best one leads: 1 is no control
    # at all
    paths = rollout(problem, problem.optimal_control, 1_000, torch.Generator().manual_seed(1))

    def error(policy: Any) -> float:
        controls = torch.stack([policy(k, x) for k, x in enumerate(paths.states[:-1])])
        return float((controls - paths.controls).square().sum() / paths.controls.square().sum())

    assert error(lambda k, x: torch.zeros_like(x)) == 1 and error(problem.optimal_control) == 0
    assert 0.001 < error(approximate) < 0.5


def test_girsanov_weights_of_optimal_paths_find_the_log_moment(registered: DoubleWell) -> None:
    """Uncontrolled paths of the registered problem cannot: fewer than 50 of 20,000 carry the
    mean.
    """
    problem = DoubleWell(2, kappa=1.0, nu=1.0)  # in deep wells these weights, too, have heavy tails
    paths = rollout(problem, problem.optimal_control, 20_000, torch.Generator().manual_seed(2))
    exponent = (paths.reward / problem.temperature + paths.log_ratios.sum(0)).double()
    weight = torch.exp(exponent - problem.log_moment_objective() / problem.temperature)
    found = Estimate.of(weight)
    assert abs(found.mean - 1) < 3 * found.stderr < 0.02
    assert not certificate(registered, 20_000, torch.Generator().manual_seed(3)).certified


@pytest.mark.parametrize(
    "change",
    [{"kappa": 1.0, "nu": 1.0}, {"kappa": 3.0, "nu": 2.0, "noise": 0.7, "temperature": 0.6}],
)
def test_bellmans_equations_by_gauss_hermite(change: dict[str, Any]) -> None:
    problem = DoubleWell(1, **change, dtype=torch.float64)
    beta = problem.temperature
    z, weight = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(150))
    z, weight = z[:, None], weight / weight.sum()
    for k, start in ((49, -1.2), (40, 0.1), (20, -0.3), (0, -1.0), (0, 0.9)):
        x = torch.tensor([[start]], dtype=torch.float64)
        ahead = problem.transition(k, x.expand(len(z), 1), z)
        moment = beta * torch.logsumexp(
            problem.log_moment_value(k + 1, ahead) / beta + weight.log(), 0
        )
        assert float(problem.log_moment_value(k, x)) == pytest.approx(float(moment), abs=1e-5)

        def steered(a: float, k: int = k, x: Tensor = x) -> float:
            ahead = problem.transition(k, x.expand(len(z), 1), a + z)
            return float(weight @ problem.optimal_value(k + 1, ahead)) - 0.5 * beta * a * a

        best = float(problem.optimal_control(k, x))
        assert float(problem.optimal_value(k, x)) == pytest.approx(steered(best), abs=1e-5)
        assert (
            steered(best)
            > max(steered(a) for a in (best - 0.1, best + 0.1, *np.arange(-4.0, 4.5, 0.5))) - 1e-7
        )
    assert float(problem.optimal_value(problem.horizon, x)) == pytest.approx(
        float(problem.terminal_reward(x)), abs=1e-12
    )


def test_the_optimum_is_accurate_where_the_best_control_jumps(registered: DoubleWell) -> None:
    """Deep wells at this step: the grid's estimate of its own error holds against one of twice the
    nodes and noises.
    """
    from girsanov.envs.known_optimum import double_well

    def finer(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(nodes=513, most_nodes=1025, spacing=0.2, tolerance=1.0)
        return refine(*args, **kwargs)

    refine, exact, found = double_well.refine, DoubleWell(1, steps=30), DoubleWell(1, steps=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(double_well, "refine", finer)
        wanted = exact.optimal_objective(), exact.log_moment_objective()
    assert found.optimal_objective() == pytest.approx(wanted[0], abs=1e-6)
    assert found.log_moment_objective() == pytest.approx(wanted[1], abs=1e-6)
    assert (
        found._truth is not None and found._truth.error < 3e-5 and found._truth.value.nodes == 513
    )
    x = torch.linspace(-1.6, -0.4, 241, dtype=torch.float64)[:, None]
    jumps = found.optimal_control(0, x).diff(dim=0).abs()
    assert 0.1 < jumps.max() and jumps.median() < 0.02  # the best control does jump


def fokker_planck_value(
    problem: DoubleWell, x: float, intervals: int = 500, width: float = 3.0
) -> float:
    """``beta log f(0, x)`` of the diffusion: ``d_t f + s^2 f'' / 2 + b f' = 0`` by finite volumes
    and a matrix exponential.
    """
    nodes = np.linspace(-width, width, intervals + 1)
    h, kappa, s2 = nodes[1] - nodes[0], float(problem.kappa), problem.noise**2
    potential = kappa * (nodes**2 - 1) ** 2
    middle = kappa * ((nodes[:-1] + h / 2) ** 2 - 1) ** 2
    up = 0.5 * s2 / h**2 * np.exp(-2 * (middle - potential[:-1]) / s2)
    down = 0.5 * s2 / h**2 * np.exp(-2 * (middle - potential[1:]) / s2)
    generator = np.diag(up, 1) + np.diag(down, -1) - np.diag(np.append(up, 0) + np.append(0, down))
    terminal = np.exp(-float(problem.nu) * (nodes - 1) ** 2 / problem.temperature)
    f = expm(generator * problem.horizon * problem.step_size) @ terminal
    return problem.temperature * math.log(np.interp(x, nodes, f))


def test_first_order_convergence_to_the_diffusion() -> None:
    """Against the literature's reference: the linear equation of the diffusion, on a mesh of its
    own.
    """
    problems = [DoubleWell(1, kappa=0.5, nu=1.0, steps=n, step_size=1 / n) for n in (25, 50, 100)]
    x = torch.tensor([[-1.0]], dtype=torch.float64)
    exact = fokker_planck_value(problems[0], -1.0)
    errors = [float(p.log_moment_value(0, x)) - exact for p in problems]
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], abs=0.3)
    gaps = [float(p.log_moment_value(0, x) - p.optimal_value(0, x)) for p in problems]
    assert 0 < gaps[2] and [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx([2, 2], rel=0.1)


def test_coordinates_add_up() -> None:
    arguments = {
        "kappa": [2.0, 1.0, 2.0],
        "nu": [1.0, 2.0, 1.0],
        "start": [-1.0, -0.5, 0.3],
        "steps": 10,
    }
    whole = DoubleWell(3, **arguments, dtype=torch.float64)
    parts = [
        DoubleWell(
            1,
            **{name: v if name == "steps" else v[i] for name, v in arguments.items()},
            dtype=torch.float64,
        )
        for i in range(3)
    ]
    x = torch.randn(7, 3, dtype=torch.float64)
    k = torch.tensor([0, 3, 9, 1, 1, 2, 8])
    for name in ("optimal_value", "log_moment_value"):
        alone = sum(getattr(part, name)(k, x[:, i : i + 1]) for i, part in enumerate(parts))
        torch.testing.assert_close(getattr(whole, name)(k, x), alone, rtol=0, atol=2e-5)
    controls = torch.cat(
        [part.optimal_control(k, x[:, i : i + 1]) for i, part in enumerate(parts)], 1
    )
    torch.testing.assert_close(whole.optimal_control(k, x), controls, rtol=0, atol=1e-3)
    assert whole.optimal_objective() == pytest.approx(
        sum(p.optimal_objective() for p in parts), abs=2e-5
    )
    assert (
        whole._truth is not None and whole._truth.rows == 2
    )  # coordinates that are alike are solved once


def test_a_distant_particle_comes_back() -> None:
    problem = DoubleWell(dtype=torch.float64)
    x = torch.tensor(
        [-1e4, -50.0, -2.5, -1.9, -1.0, 0.3, 1.8, 2.6, 30.0, 1e6], dtype=torch.float64
    )[:, None].expand(-1, 10)
    still = torch.zeros_like(x)
    ahead = problem.transition(0, x, still)
    limit = (1 + 1 / (4 * problem.kappa * problem.step_size)).sqrt().expand_as(x)
    plain = x - 4 * problem.kappa * problem.step_size * x * (x * x - 1)
    inside = x.abs() <= limit
    torch.testing.assert_close(ahead[inside], plain[inside])
    torch.testing.assert_close(
        ahead[~inside], (x - x.sign() * limit)[~inside]
    )  # nearer by the clamp's size
    assert (
        inside.any() and (plain[:2].abs() > 2 * x[:2].abs()).all()
    )  # where plain steps would go farther and farther
    for _ in range(50):
        x = problem.transition(
            0, x, 8 * torch.randn(x.shape, dtype=torch.float64)
        )  # eight times the noise
    assert x[1:-1].abs().max() < 12


def test_the_noise_and_the_start(generator: torch.Generator) -> None:
    problem = DoubleWell(2, noise=0.5, start=[-1.0, 0.5], spread=0.2)
    x = problem.initial(50_000, generator)
    torch.testing.assert_close(x.mean(0), torch.tensor([-1.0, 0.5]), rtol=0, atol=0.005)
    torch.testing.assert_close(x.std(0), torch.tensor([0.2, 0.2]), rtol=0, atol=0.005)
    z = torch.randn(5, 2, generator=generator)
    moved = problem.transition(0, x[:5], z) - problem.transition(0, x[:5], 0 * z)
    torch.testing.assert_close(moved, 0.5 * math.sqrt(0.02) * z)
    point = DoubleWell(2, kappa=1.0, nu=1.0, spread=0.0)
    start = point.initial(3, generator)
    assert (start == -1).all()
    assert point.optimal_objective() == pytest.approx(
        float(point.optimal_value(0, start)[0]), abs=1e-5
    )
    assert point.log_moment_objective() == pytest.approx(
        float(point.log_moment_value(0, start)[0]), abs=1e-5
    )
    right = torch.tensor([[0.1, 2.0], [0.1, -0.1]])
    assert point.success(right).tolist() == [True, False]


def test_the_solution_is_found_when_asked_for_and_follows_the_dtype() -> None:
    env = gym.make("girsanov/DoubleWell-v0", dimension=2, kappa=1.0, nu=1.0, steps=5)
    problem = problem_of(env)
    assert isinstance(problem, DoubleWell) and problem._truth is None
    x = torch.zeros(3, 2)
    assert problem.optimal_value(0, x).dtype == problem.optimal_control(0, x).dtype == torch.float32
    assert problem._truth is not None and problem.to("cpu")._truth is not None
    double = problem.to(dtype=torch.float64)
    assert double._truth is None
    torch.testing.assert_close(
        double.optimal_value(0, x.double()),
        problem.optimal_value(0, x).double(),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number; got 0.0"),
        ({"step_size": -0.1}, "step_size must be a positive number; got -0.1"),
        ({"noise": 0.0}, "noise must be a positive number; got 0.0"),
        ({"dimension": 0}, "dimension must be an integer of at least 1; got 0"),
        ({"steps": 1.5}, "steps must be an integer of at least 1; got 1.5"),
        ({"spread": -1.0}, "spread must be a number of at least 0; got -1.0"),
        ({"kappa": [1.0, 2.0]}, r"kappa must be a finite number or 10 of them; got \[1.0, 2.0\]"),
        ({"nu": math.nan}, "nu must be a finite number or 10 of them; got nan"),
        ({"kappa": 0.0}, "kappa must be positive and nu at least 0; got"),
        ({"nu": -1.0}, "kappa must be positive and nu at least 0; got"),
        ({"step_size": 0.05}, r"step_size must be below 1 / \(4 max kappa\) = 0.05; got 0.05"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DoubleWell(**change)
