"""Networks, units and times, against closed forms."""

import pytest
import torch

from girsanov.agents.networks import EnsembleMLP, NeuralValue, Standardise, encode, time_features
from girsanov.envs import make_problem

HORIZON = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ensemble_starts_at_zero_and_its_members_differ():
    net = EnsembleMLP(3, 2, (8,), members=3)
    x = torch.randn(5, 3)
    assert net(x).shape == (3, 5, 2) and not net(x).any()
    assert not torch.equal(net.weights[0][0], net.weights[0][1])


def test_ensemble_is_its_members_one_by_one():
    net = EnsembleMLP(3, 2, (8, 5), members=3)
    torch.nn.init.normal_(net.weights[-1])
    x = torch.randn(4, 3)
    for m in range(3):
        h = x
        for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = (torch.nn.functional.silu(h) if i else h) @ weight[m] + bias[m]
        assert torch.allclose(net(x)[m], h, atol=1e-5)


def test_neural_value_starts_at_its_offset_and_is_the_mean_of_its_members():
    value = NeuralValue(2, HORIZON, (8,), members=3)
    value.offset.fill_(-1.5)
    x = torch.randn(5, 2)
    assert torch.equal(value(3, x), torch.full((5,), -1.5))
    torch.nn.init.normal_(value.network.weights[-1])
    members = value.members(3, x)
    assert (
        members.shape == (3, 5)
        and members.std(0).min() > 0
        and torch.allclose(value(3, x), members.mean(0))
    )


def test_standardise_does_not_blow_up_constant_inputs():
    layer = Standardise(2)
    data = torch.stack([torch.randn(100), torch.full((100,), 3.0)], 1)
    layer.fit(data)
    assert layer(data).abs().max() < 10 and layer(data)[:, 1].abs().max() < 1e-5
    assert float(layer(data)[:, 0].std()) == pytest.approx(1, rel=1e-4)


def test_standardise_when_every_input_is_the_same():
    """Rounding of the mean must not be taken for a signal."""
    layer = Standardise(3)
    data = torch.tensor([123.4, -0.1, 1e4]).repeat(999, 1)
    layer.fit(data)
    assert layer(data).abs().max() < 10


def test_time_features_take_one_time_or_one_per_row():
    t = torch.tensor(0.3)
    assert torch.equal(time_features(t, 4), time_features(torch.full((4,), 0.3), 4))
    assert time_features(torch.ones(1), 2)[0, 0] == 1


def test_the_clock_runs_where_states_move_and_plainly_where_it_cannot_tell():
    value = NeuralValue(1, 4, hidden=[4])
    path = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])[None, :, None]
    value.wind(torch.arange(5)[None], path)
    assert torch.allclose(value.clock, torch.tensor([0.0, 0.125, 0.25, 0.625, 1.0]))
    other = NeuralValue(1, 4, hidden=[4])
    other.wind(torch.tensor([[0, 2, 4]]), path[:, :3])
    assert torch.allclose(other.clock, torch.linspace(0, 1, 5))


def test_encode_uses_the_terminal_estimate_where_there_is_one():
    mixture, pendulum = (
        make_problem("girsanov/GaussianMixture-v0"),
        make_problem("girsanov/Pendulum-v0"),
    )
    x = mixture.initial(3, generator())
    assert torch.equal(encode(mixture, 5, x), mixture.terminal_estimate(5, x))
    y = pendulum.initial(3, generator())
    assert torch.equal(encode(pendulum, 5, y), y)
