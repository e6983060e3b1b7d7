"""The lean adjoint against finite differences, and the regression's fixed point against the Riccati
solution.
"""

import torch
from stable_baselines3.common.logger import configure

from girsanov.baselines.fine_tuning_methods.adjoint_matching import AdjointMatching, lean_adjoint
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout


def chain(dtype=torch.float64):
    return LinearQuadratic.damped_rotation(dimension=2, steps=6, temperature=0.3).to(dtype=dtype)


def test_lean_adjoint_is_the_derivative_with_the_controls_held():
    """Central differences of the rewards in the noise of one step, along the same path with the
    same inputs elsewhere.
    """
    for problem in (
        chain(),
        make_problem("girsanov/GaussianMixture-v0", steps=8).to(dtype=torch.float64),
    ):
        g = torch.Generator().manual_seed(0)
        paths = rollout(problem, lambda k, x: 0.1 * (k + 1) * x.cos(), 3, g)
        z = paths.noises + paths.controls

        def reward(z, problem=problem, start=paths.states[0]):
            x, total = start, 0.0
            for k in range(problem.horizon):
                total = total + problem.running_reward(k, x)
                x = problem.transition(k, x, z[k])
            return total + problem.terminal_reward(x)

        adjoint, step = lean_adjoint(problem, paths), 1e-5
        assert adjoint.shape == paths.noises.shape
        for k in (0, 3, problem.horizon - 1):
            for i in range(2):
                shift = torch.zeros_like(z)
                shift[k, :, i] = step
                numeric = (reward(z + shift) - reward(z - shift)) / (2 * step)
                torch.testing.assert_close(adjoint[k, :, i], numeric, rtol=1e-6, atol=1e-8)


def moments(problem, control, n=20_000):
    """z-scores of ``(J_z^T p_{k+1} / temperature - a_k) (1, x)``, which vanish in the mean at the
    regression's fixed point.
    """
    paths = rollout(problem, control, n, torch.Generator().manual_seed(0))
    error = lean_adjoint(problem, paths) / problem.temperature - paths.controls
    ones = torch.ones_like(paths.states[:-1, :, :1])
    product = error[..., :, None] * torch.cat([ones, paths.states[:-1]], 2)[..., None, :]
    return (product.mean(1) / (product.std(1) / n**0.5)).abs()


def test_the_optimum_is_a_fixed_point_and_others_are_not():
    problem = chain()
    assert moments(problem, problem.optimal_control).max() < 4.5  # 36 of them
    assert moments(problem, lambda k, x: 0.9 * problem.optimal_control(k, x)).max() > 20
    assert moments(problem, None).max() > 20


def test_iterating_the_regression_reaches_the_riccati_gains():
    """Least squares on (1, x) at each step, from the uncontrolled chain."""
    problem = chain()
    gain = torch.zeros(problem.horizon, 2, 3, dtype=torch.float64)

    def control(k, x):
        return torch.cat([torch.ones_like(x[:, :1]), x], 1) @ gain[k].T

    g = torch.Generator().manual_seed(0)
    wanted = torch.cat([problem.solution.shift[..., None], problem.solution.gain], 2)
    history = []
    for _ in range(12):
        paths = rollout(problem, control, 20_000, g)
        target = lean_adjoint(problem, paths) / problem.temperature
        for k in range(problem.horizon):
            inputs = torch.cat([torch.ones_like(paths.states[k][:, :1]), paths.states[k]], 1)
            fitted = torch.linalg.lstsq(inputs, target[k]).solution.T
            gain[k] += 0.5 * (fitted - gain[k])
        history.append(float((gain - wanted).abs().max()))
    assert history[0] > 0.3 and history[-1] < 0.03


def test_long_targets_are_shortened_and_keep_their_direction():
    problem = make_problem("girsanov/GaussianMixture-v0", steps=6, temperature=0.1)
    targets = []
    for bound in (1e9, 0.5):
        model = AdjointMatching(
            "MlpPolicy", problem, seed=0, device="cpu", n_trajectories=20, max_target=bound
        )
        model.set_logger(configure(None, []))
        targets.append(model.prepare(*model.sample()).target)
    free, short = targets
    long = free.norm(dim=1) > 0.5
    assert 0.1 < long.float().mean() < 1
    torch.testing.assert_close(short[~long], free[~long])
    torch.testing.assert_close(short[long], 0.5 * free[long] / free[long].norm(dim=1, keepdim=True))
