"""The regression behind PDE against closed forms."""

import math

import pytest
import torch

from girsanov.agents.function_classes import EnsembleMLP, NeuralValue, RadialValue, Standardise, encode, time_features
from girsanov.agents.variational import Replay, relative_residual_loss, sample_spans, solve_positive
from girsanov.envs import make_problem
from girsanov.envs.problem import rollout


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_replay(paths: int = 64, steps: int = 10) -> Replay:
    g = generator()
    inputs = torch.randn(paths, steps + 1, 2, generator=g)
    gain = 0.1 * torch.randn(paths, steps, generator=g)
    summed = torch.cat([torch.zeros(paths, 1), gain.cumsum(1)], 1)
    return Replay(inputs, summed, summed, torch.randn(paths, generator=g))


@pytest.mark.parametrize("seed", range(5))
def test_solve_positive_meets_the_complementarity_conditions(seed):
    """w >= 0, A w - b >= 0 and w . (A w - b) = 0 say the same as the variational inequality over the cone."""
    g = generator(seed)
    root = torch.randn(40, 40, generator=g, dtype=torch.float64)
    skew = torch.randn(40, 40, generator=g, dtype=torch.float64)
    matrix = root @ root.T / 40 + 0.05 * torch.eye(40, dtype=torch.float64) + 0.3 * (skew - skew.T)
    vector = torch.randn(40, generator=g, dtype=torch.float64)
    w = solve_positive(matrix, vector)
    slack = matrix @ w - vector
    assert (w >= 0).all() and slack.min() > -1e-8
    assert abs(float(w @ slack)) < 1e-8
    assert 0 < int((w > 0).sum()) < 40  # the constraint binds somewhere, or the test would be about a linear solve
    u = torch.rand(1000, 40, generator=g, dtype=torch.float64)
    assert ((u - w) @ slack).min() > -1e-8


def test_solve_positive_is_a_linear_solve_where_nothing_binds():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    vector = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert torch.allclose(solve_positive(matrix, vector), vector / matrix.diagonal())


def test_bounds_hold_every_reward_to_go():
    data = toy_replay()
    low, high = data.bounds
    to_go = torch.stack([data.log_reward[:, -1] - data.log_reward[:, k] + data.log_terminal for k in range(11)])
    assert low == pytest.approx(float(to_go.min())) and high == pytest.approx(float(to_go.max()))


def test_spans_carry_exactly_what_was_seen_between():
    data = toy_replay()
    batch = sample_spans(data, 4000, 3.0, generator(1))
    assert (batch.later_k > batch.k).logical_or(batch.k == 10).all() and batch.later_k.max() == 10
    assert torch.equal(batch.terminal, batch.later_k == 10)
    for i in range(0, 4000, 97):
        row = int((data.inputs[:, int(batch.k[i])] == batch.x[i]).all(1).nonzero()[0])
        wanted = data.log_weight[row, batch.later_k[i]] - data.log_weight[row, batch.k[i]]
        wanted = wanted + data.log_terminal[row] * batch.terminal[i]
        assert torch.allclose(batch.log_gain[i], wanted)
        assert torch.equal(batch.later_x[i], data.inputs[row, batch.later_k[i]])
        assert torch.equal(batch.first_x[i], data.inputs[row, 0])


@pytest.mark.parametrize("mean", [1.0, 4.0])
def test_span_lengths_are_geometric(mean):
    data = toy_replay(steps=200)
    batch = sample_spans(data, 40_000, mean, generator(2))
    inside = batch.k < 150  # far from the horizon nothing is cut off
    span = (batch.later_k - batch.k)[inside].double()
    assert abs(span.mean() - mean) < 5 * span.std() / math.sqrt(len(span)) + 1e-9


def test_the_loss_is_stationary_at_the_true_function_and_not_beside_it():
    """On uncontrolled LQ paths the semi-gradient vanishes in expectation at log f* and not at a shifted one."""
    problem = make_problem("girsanov/LinearQuadratic-v0")
    paths = rollout(problem, None, 4000, generator())
    beta = problem.temperature
    gain = torch.cat([torch.zeros(4000, 1), (paths.running_rewards / beta).cumsum(0).T], 1).float()
    data = Replay(
        torch.stack(list(paths.states), 1).float(),
        gain,
        gain,
        (paths.terminal_reward / beta).float(),
    )

    class Exact(NeuralValue):
        def __init__(self, tilt: float) -> None:
            super().__init__(problem.state_shape[0], problem.horizon, (4,), 1)
            self.shift = torch.nn.Parameter(torch.tensor(0.0))
            self.tilt = tilt

        def members(self, k, inputs):
            x = inputs.to(problem.initial(1, generator()).dtype)
            out = torch.empty(len(inputs))
            for j in k.unique():
                out[k == j] = (problem.log_moment_value(int(j), x[k == j]) / beta).float()
            return (out + self.shift + self.tilt)[None]

    def shift_gradient(tilt: float) -> torch.Tensor:
        value = Exact(tilt)
        grads = []
        for seed in range(20):
            batch = sample_spans(data, 2000, 1.0, generator(seed))
            loss = relative_residual_loss(value, value, batch, (-50.0, 50.0), 5.0)
            grads.append(torch.autograd.grad(loss, value.shift)[0])
        return torch.stack(grads)

    at_truth = shift_gradient(0.0)
    assert abs(at_truth.mean()) < 4 * at_truth.std() / math.sqrt(20) + 2e-3
    # a constant shift is seen through the terminal condition alone: one step in T + 1, and cut by the tangent
    assert shift_gradient(1.0).mean() > 0.004


def test_ensemble_starts_at_zero_and_its_members_differ():
    net = EnsembleMLP(3, 2, (8,), members=3)
    x = torch.randn(5, 3)
    assert net(x).shape == (3, 5, 2) and not net(x).any()
    assert not torch.equal(net.weights[0][0], net.weights[0][1])


def test_standardise_does_not_blow_up_constant_inputs():
    layer = Standardise(2)
    data = torch.stack([torch.randn(100), torch.full((100,), 3.0)], 1)
    layer.fit(data)
    assert layer(data).abs().max() < 10 and abs(layer(data)[:, 1]).max() < 1e-5


def test_time_features_take_one_step_or_one_per_row():
    x = torch.zeros(4, 1)
    assert torch.equal(time_features(3, 10, 4, x), time_features(torch.full((4,), 3), 10, 4, x))


def test_encode_uses_the_terminal_estimate_where_there_is_one():
    mixture, pendulum = make_problem("girsanov/GaussianMixture-v0"), make_problem("girsanov/Pendulum-v0")
    x = mixture.initial(3, generator())
    assert torch.equal(encode(mixture, 5, x), mixture.terminal_estimate(5, x))
    y = pendulum.initial(3, generator())
    assert torch.equal(encode(pendulum, 5, y), y)


def test_radial_value_is_positive_everywhere():
    value = RadialValue(2, 10, centres=20)
    value.standardise.fit(torch.randn(100, 2))
    value.place(torch.randint(11, (20,)), torch.randn(20, 2))
    assert torch.isfinite(value(3, 1e3 * torch.randn(50, 2))).all()
