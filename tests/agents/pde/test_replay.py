"""Recorded paths as regression data: sums, bounds, spans, and the martingale that all of it rests
on.
"""

import math

import pytest
import torch

from girsanov.agents.pde.replay import Replay, sample_spans, spans
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Trajectories, rollout
from girsanov.envs.recording import Recording

HORIZON = 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain() -> LinearQuadratic:
    return LinearQuadratic.damped_rotation(2, steps=HORIZON, temperature=2.0).to(
        dtype=torch.float64
    )


def some_control(k: int, x: torch.Tensor) -> torch.Tensor:
    return 0.2 + 0.1 * x.sin() + 0.02 * k


def toy_paths(n: int = 64, controlled: bool = True, seed: int = 0) -> Trajectories:
    with torch.no_grad():
        return rollout(chain(), some_control if controlled else None, n, generator(seed))


def toy_replay(n: int = 64, controlled: bool = True) -> Replay:
    return Replay.of(chain(), Recording.of(toy_paths(n, controlled)))


def test_sums_are_those_of_the_path():
    problem, paths = chain(), toy_paths()
    data = Replay.of(problem, Recording.of(paths))
    assert (
        data.n == 64
        and bool(data.seen.all())
        and not data.log_weight[:, 0].any()
        and (data.precision == 1).all()
    )
    row, k = 5, 7
    reward = (
        sum(problem.running_reward(j, paths.states[j])[row] for j in range(k)) / problem.temperature
    )
    a, w = paths.controls[:k, row], paths.noises[:k, row]
    girsanov = -(a * w).sum() - 0.5 * a.square().sum()
    assert float(data.log_reward[row, k]) == pytest.approx(float(reward), rel=1e-5)
    assert float(data.log_weight[row, k]) == pytest.approx(float(reward + girsanov), rel=1e-5)
    assert float(data.log_terminal[row]) == pytest.approx(
        float(paths.terminal_reward[row] / 2), rel=1e-5
    )
    assert torch.equal(data.states[row, k], paths.states[k, row])
    assert data.noises is not None and torch.equal(data.noises[row, k], paths.noises[k, row])


def test_inputs_are_encoded_step_by_step():
    mixture = make_problem("girsanov/GaussianMixture-v0")
    with torch.no_grad():
        recording = Recording.of(rollout(mixture, None, 6, generator()))
        sparse = recording.at_random_times(3, generator(1))
        data = Replay.of(mixture, sparse)
        for row in range(6):
            for visit in range(4):
                k = int(sparse.steps[row, visit])
                wanted = mixture.terminal_estimate(k, sparse.states[row, visit][None])[0]
                assert torch.allclose(data.inputs[row, visit], wanted.float(), atol=1e-5)


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("visits", [None, 3])
def test_the_mean_exponential_return_is_f(controlled, visits):
    """``log_returns`` average to E f_0 under any known control, however often the paths were seen
    from their start on.
    """
    problem = chain()
    recording = Recording.of(toy_paths(20_000, controlled))
    if visits is not None:
        kept = torch.tensor([0, 3, 4, HORIZON])
        recording = Recording(
            recording.steps[:, kept],
            recording.states[:, kept],
            torch.stack(
                [recording.rewards[:, a:b].sum(1) for a, b in zip(kept, kept[1:], strict=False)], 1
            ),
            recording.terminal_reward,
            torch.stack(
                [recording.log_ratios[:, a:b].sum(1) for a, b in zip(kept, kept[1:], strict=False)],
                1,
            ),
        )
    f = Replay.of(problem, recording).log_returns.double().exp()
    wanted = math.exp(problem.log_moment_objective() / problem.temperature)
    assert abs(float(f.mean()) - wanted) < 4 * float(f.std()) / math.sqrt(20_000)
    if controlled:  # forgetting the control is far off
        wrong = Replay.of(problem, recording._replace(log_ratios=None)).log_returns.double().exp()
        assert abs(float(wrong.mean()) - wanted) > 8 * float(wrong.std()) / math.sqrt(20_000)


def test_bounds_hold_every_reward_to_go_and_no_density_ratio():
    data = toy_replay()
    to_go = torch.stack(
        [
            data.log_reward[:, -1] - data.log_reward[:, k] + data.log_terminal
            for k in range(HORIZON + 1)
        ]
    )
    low, high = data.bounds(torch.zeros(HORIZON + 1)).tolist()
    assert low == pytest.approx(float(to_go.min())) and high == pytest.approx(float(to_go.max()))
    level = torch.linspace(0, 1, HORIZON + 1)
    low, high = data.bounds(level).tolist()
    above = to_go - level[:, None]
    assert low == pytest.approx(float(above.min())) and high == pytest.approx(float(above.max()))
    bare = Replay.of(chain(), Recording.of(toy_paths())._replace(log_ratios=None))
    assert torch.equal(toy_replay(controlled=True).bounds(level), bare.bounds(level))


def test_unseen_ends_count_nowhere():
    recording = Recording.of(toy_paths(8))
    bare = recording._replace(noises=None, controls=None)
    steps = recording.steps.clone()
    steps[:, -1] = torch.where(
        torch.arange(8) % 2 == 0, HORIZON, HORIZON - 1
    )  # the others were never seen at the end
    states = recording.states.clone()
    states[1::2, -1] = states[1::2, -2]
    reward = recording.terminal_reward.clone()
    reward[1::2] = torch.nan
    data = Replay.of(chain(), bare._replace(steps=steps, states=states, terminal_reward=reward))
    assert data.seen.tolist() == [True, False] * 4
    assert torch.isfinite(data.log_terminal).all() and data.log_returns.shape == (4,)
    whole = Replay.of(chain(), Recording.of(toy_paths(8)))
    assert torch.equal(data.log_returns, whole.log_returns[::2])
    level = torch.zeros(HORIZON + 1)
    assert torch.equal(data.bounds(level), whole.at(torch.arange(0, 8, 2)).bounds(level))


def test_rows_and_joined_are_inverse():
    data = toy_replay(10)
    first, second = data.at(torch.arange(4)), data.at(torch.arange(4, 10))
    again = Replay.joined([first, second])
    assert (first.n, second.n) == (4, 6)
    for ours, theirs in zip(again[:-2], data[:-2], strict=True):  # without branches
        assert torch.equal(ours, theirs)
    assert Replay.joined([first, second._replace(noises=None)]).noises is None


def test_joining_parts_seen_at_different_numbers_of_times():
    """The shorter paths wait at their last visit; what was seen does not change, and no noise is
    made up.
    """
    recording = Recording.of(toy_paths(6))
    few = Replay.of(chain(), recording.at_random_times(3, generator()))
    both = Replay.joined([Replay.of(chain(), recording), few])
    assert both.n == 12 and both.steps.shape == (12, HORIZON + 1) and both.noises is None
    assert torch.equal(both.steps[6:, :4], few.steps) and (both.steps[6:, 4:] == HORIZON).all()
    assert torch.equal(both.log_returns[6:], few.log_returns)
    assert torch.equal(both.states[6:, -1], few.states[:, -1])


def test_spans_carry_exactly_what_was_seen_between():
    data = toy_replay()
    batch = sample_spans(data, 4000, 3.0, HORIZON, generator(1))
    assert (batch.later_k > batch.k).logical_or(
        batch.k == HORIZON
    ).all() and batch.later_k.max() == HORIZON
    assert torch.equal(batch.terminal, batch.later_k == HORIZON)
    gain = data.log_weight[batch.row, batch.later_k] - data.log_weight[batch.row, batch.k]
    assert torch.allclose(batch.log_gain, gain + data.log_terminal[batch.row] * batch.terminal)
    assert torch.equal(batch.x, data.inputs[batch.row, batch.k])
    assert torch.equal(batch.later_x, data.inputs[batch.row, batch.later_k])
    assert torch.equal(batch.first_x, data.inputs[batch.row, 0]) and not batch.first_k.any()
    assert torch.equal(batch.log_weight, data.log_weight[batch.row, batch.visit])
    assert 0 < int(batch.terminal.sum()) < 4000


def test_spans_of_paths_seen_at_random_times():
    recording = Recording.of(toy_paths()).at_random_times(3, generator(2))
    data = Replay.of(chain(), recording)
    row = torch.arange(64)
    batch = spans(data, row, torch.zeros_like(row), torch.full_like(row, 3), HORIZON)
    assert (
        torch.equal(batch.k, recording.steps[:, 0])
        and (batch.later_k == HORIZON).all()
        and batch.terminal.all()
    )
    whole = Replay.of(chain(), Recording.of(toy_paths()))
    wanted = (
        whole.log_weight[:, -1] - whole.log_weight[row, recording.steps[:, 0]] + whole.log_terminal
    )
    assert torch.allclose(batch.log_gain, wanted, atol=1e-5)


@pytest.mark.parametrize("mean", [1.0, 1.5, 4.0])
def test_span_lengths_are_geometric(mean):
    visits = 201
    n = 64
    shape = torch.zeros(n, visits)
    data = Replay(
        torch.arange(visits).expand(n, -1),
        shape[..., None],
        shape[..., None],
        shape,
        shape,
        shape[:, 0],
        shape[:, 0] == 0,
        shape[:, 0],
    )
    batch = sample_spans(data, 40_000, mean, visits - 1, generator(2))
    inside = batch.k < 130  # far from the horizon nothing is cut off
    span = (batch.later_k - batch.k)[inside].double()
    assert span.min() == 1
    assert abs(span.mean() - mean) < 4 * span.std() / math.sqrt(len(span)) + 1e-9
    beyond = (span > 2).double().mean()  # P(span > 2) = (1 - 1 / mean)^2
    wanted = (1 - 1 / mean) ** 2
    assert abs(beyond - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / len(span)) + 1e-9


def test_a_long_mean_span_is_monte_carlo():
    batch = sample_spans(toy_replay(), 2000, 1e6, HORIZON, generator(3))
    assert batch.terminal.float().mean() > 0.99


def test_sampling_repeats_with_its_generator():
    data = toy_replay()
    one, two, other = (sample_spans(data, 50, 3.0, HORIZON, generator(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.row, other.row)


def test_wrong_numbers_are_refused():
    recording = Recording.of(toy_paths())
    bad = recording.rewards.clone()
    bad[3, 2] = torch.nan
    with pytest.raises(
        ValueError, match="rewards must be finite; got 1 NaN or infinite of 640 values"
    ):
        Replay.of(chain(), recording._replace(rewards=bad))
