"""Fitting linear classes: what is held out, how it judges, and that Gauss-Newton lands on the
solution.
"""

import math

import pytest
import torch

from girsanov.agents import PDE
from girsanov.agents.pde.classes.length_scale import KernelValue, RadialValue
from girsanov.agents.pde.classes.linear import ExponentialValue, LinearValue, PolynomialValue
from girsanov.agents.pde.classes.system import assemble
from girsanov.agents.pde.lookahead import Observed
from girsanov.agents.pde.replay import Replay
from girsanov.agents.pde.selection import (
    Judge,
    Split,
    _first_good,
    _longest,
    clearly_less,
    fit_linear,
)
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout
from girsanov.envs.recording import Recording

HORIZON = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain() -> LinearQuadratic:
    return LinearQuadratic.damped_rotation(2, steps=HORIZON, temperature=2.0).to(
        dtype=torch.float64
    )


def replay(n: int, seed: int = 0) -> Replay:
    problem = chain()
    with torch.no_grad():
        return Replay.of(problem, Recording.of(rollout(problem, None, n, generator(seed))))


def prepared(value: LinearValue, data: Replay) -> LinearValue:
    value.standardise.fit(data.inputs.flatten(0, 1))
    value.place(data.steps.flatten(), data.inputs.flatten(0, 1), generator())
    value.offset.copy_(data.log_returns.double().logsumexp(0) - math.log(data.n))
    value.bounds.copy_(data.bounds(value.offset))
    return value


def truth(shift: float = 0.0, times: int = HORIZON + 1) -> PolynomialValue:
    problem, value = chain(), PolynomialValue(2, HORIZON, times=times)
    x = torch.randn(40, 2, generator=generator(9), dtype=torch.float64)
    rows = []
    for k in range(HORIZON + 1):
        target = problem.log_moment_value(k, x) / problem.temperature + shift * x[:, 0].square()
        rows.append(torch.linalg.lstsq(value.space(k, x), target[:, None]).solution[:, 0])
    value.weights.copy_(torch.linalg.solve(value.time_table, torch.stack(rows)))
    return value


# --- what is held out


@pytest.mark.parametrize("n", [20, 21, 24, 100, 6003])
def test_every_path_is_on_one_side_and_each_once(n):
    data = Replay.of(chain(), Recording.of(_numbered(n)))
    split = Split.of([data, data])
    assert split.held is not None and split.held.n == min(n // 5, 1000)
    train = list(split.train())
    ids = torch.cat([train[0].states[:, 0, 0], split.held.states[:, 0, 0]]).sort().values
    assert torch.equal(ids, torch.arange(n, dtype=torch.float64))
    assert train[1].n == n, "only the first part lends paths"
    assert [part.n for part in split.train()] == [part.n for part in train], "again and again"


def _numbered(n: int):
    problem = chain()
    with torch.no_grad():
        paths = rollout(problem, None, n, generator())
    paths.states[:, :, 0] = torch.arange(n, dtype=torch.float64)
    return paths


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 19])
def test_few_paths_are_all_for_training(n):
    split = Split.of([replay(n)])
    assert split.held is None and [part.n for part in split.train()] == [n]


def test_nothing_is_held_out_that_could_not_judge():
    """All paths held out would be without an end."""
    data = replay(40)
    rows = torch.arange(40)
    blind = data._replace(seen=rows % 5 != 4)
    assert Split.of([blind]).held is None


# --- how it judges


def test_the_truth_has_the_least_residual_on_paths_not_seen():
    """Against bends to either side, weighted alike; by 4 paired standard errors."""
    data, incumbent = replay(20_000), truth()
    batches = [data.at(rows) for rows in torch.arange(data.n).split(500)]

    def scores(shift: float) -> torch.Tensor:
        return torch.stack(
            [Judge(part, incumbent, 5.0).residuals(truth(shift)).mean() for part in batches]
        )

    best = scores(0.0)
    assert (best > 0).all()
    for shift in (-0.2, 0.2):
        worse = scores(shift) - best
        assert worse.mean() > 4 * worse.std() / math.sqrt(len(worse))


def test_paths_without_an_end_do_not_judge():
    data, value = replay(60), truth(0.1)
    rows = torch.arange(60)
    half = data._replace(
        seen=rows < 30, log_terminal=torch.where(rows < 30, data.log_terminal, 1e6)
    )
    found = Judge(half, value, 5.0).residuals(value)
    assert found.shape == (30,) and torch.equal(
        found, Judge(data.at(rows[:30]), value, 5.0).residuals(value)
    )


def test_nan_counts_as_infinite():
    data, value = replay(20), truth()
    x, good = data.inputs[3, 2], truth()
    found = Judge(data, good, 5.0).residuals(_Spoilt(value, x))
    assert math.isinf(found[3]) and torch.isfinite(found[torch.arange(20) != 3]).all()


class _Spoilt(torch.nn.Module):
    """NaN at one state."""

    def __init__(self, value: PolynomialValue, at: torch.Tensor) -> None:
        super().__init__()
        self.value, self.at, self.horizon = value, at, value.horizon

    def bounded(self, k: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.where((x == self.at).all(1), math.nan, self.value.bounded(k, x))


def test_clearly_less_takes_more_than_noise():
    noise = torch.randn(400, generator=generator(), dtype=torch.float64)
    base = 100 * torch.rand(
        400, generator=generator(1), dtype=torch.float64
    )  # common to both: pairs cancel it
    assert clearly_less(base - 0.2 + noise, base) and not clearly_less(base, base - 0.2 + noise)
    flat = noise - noise.mean()
    assert (
        not clearly_less(base + flat, base)
        and not clearly_less(base, base + flat)
        and not clearly_less(base, base)
    )


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_never_wins_and_always_loses(bad):
    good, spoilt = torch.full((9,), 1e6), torch.zeros(9)
    spoilt[4] = bad
    assert (
        clearly_less(good, spoilt)
        and not clearly_less(spoilt, good)
        and not clearly_less(spoilt, spoilt)
    )


# --- the fit


@pytest.mark.parametrize("kind", ["polynomial", "kernel", "radial"])
def test_the_fit_solves_the_inequality_over_its_set(kind):
    """At the end the residual itself is what the ridge leaves, and points out of the set where that
    binds.
    """
    data = replay(400)
    value = prepared(
        {
            "polynomial": PolynomialValue(2, HORIZON, times=4),
            "kernel": KernelValue(2, HORIZON, centres=10, times=3),
            "radial": RadialValue(2, HORIZON, centres=15, width=2.0, span=0.5),
        }[kind],
        data,
    )
    ridge = 1e-7
    fit = fit_linear(value, Split([data], None), Observed(), truth(), [ridge], 5.0, passes=40)
    assert fit.value is value and fit.ridge == ridge and len(fit.held_out) == 0
    system = assemble(value, [data], Observed(), 5.0)
    w = value.weights.flatten()
    slack = -system.residual  # A w - b at the solution, but for the ridge
    if isinstance(value, ExponentialValue):
        assert slack.abs().max() < 1e-6 * float(system.total)
    else:
        slack = slack + ridge * system.matrix.diagonal().mean() * w
        assert (w >= 0).all() and (w == 0).any()
        assert slack.min() > -1e-5 * float(system.total) and float(
            (w * slack).abs().max()
        ) < 1e-5 * float(system.total)


def test_the_ball_binds():
    data = replay(200)
    free, held = (
        prepared(PolynomialValue(2, HORIZON, times=3, radius=r), data) for r in (1e6, 0.05)
    )
    for value in (free, held):
        fit_linear(value, Split([data], None), Observed(), truth(), [1e-6], 5.0)
    assert free.weights.norm() > 0.1 and float(held.weights.norm()) == pytest.approx(0.05, rel=1e-6)


def test_the_ridge_of_the_least_held_out_residual_is_taken():
    data = replay(400)
    split = Split.of([data])
    ridges = [1e-6, 1e-3, 1e2]
    value = prepared(PolynomialValue(2, HORIZON, times=4), data)
    fit = fit_linear(value, split, Observed(), truth(), ridges, 5.0, passes=6)
    scores = {}
    for ridge in ridges:
        other = prepared(PolynomialValue(2, HORIZON, times=4), data)
        trained = fit_linear(
            other, Split(list(split.train()), None), Observed(), truth(), [ridge], 5.0, passes=6
        )
        scores[ridge] = float(Judge(split.held, truth(), 5.0).residuals(trained.value).mean())
    assert scores[1e2] > min(scores.values())  # a choice there is
    assert fit.ridge == min(scores, key=scores.get)
    assert float(fit.held_out.mean()) == pytest.approx(scores[fit.ridge], rel=0.05)


def test_a_ridge_must_win_clearly_or_be_first():
    """Candidates come in the order of preference, with residuals on 200 paths; where data are few
    one per cent is enough.
    """
    noise = torch.randn(200, generator=generator(), dtype=torch.float64)
    best = torch.ones(200, dtype=torch.float64)
    uncertain = best + 0.01 + noise - noise.mean()
    clear = best + 0.01 + 1e-3 * noise
    close = best + 1e-3
    assert _first_good([uncertain, close, best], few=False) == 0
    assert _first_good([clear, close, best], few=False) == 1
    assert _first_good([uncertain + 0.02, close, best], few=True) == 1
    assert _first_good([best * math.inf, best], few=False) == 1


def test_later_rounds_are_judged_on_paths_near_the_optimum():
    """Held-out residuals of one's own paths are far smaller, and so tell ridges apart that
    uncontrolled paths don't.
    """
    held_out = []

    class Watched(PDE):
        def iterate(self):
            super().iterate()
            held_out.append(self.logger.name_to_value["train/held_out_residual"])

    problem = LinearQuadratic.damped_rotation(2, steps=20)
    model = Watched(
        "PolynomialPolicy", problem, seed=0, device="cpu", n_uncontrolled=200, n_trajectories=200
    )
    model.learn(400 * 20)
    assert 0 < held_out[1] < 0.1 * held_out[0]


def test_one_ridge_is_judged_on_paths_not_seen_too():
    """Settings are compared by ``held_out``: it must not come from weights that saw the judges."""
    data = replay(60)
    split = Split.of([data])
    value = prepared(
        PolynomialValue(2, HORIZON, degree=4, times=6), data
    )  # many weights for few paths
    one = fit_linear(value, split, Observed(), truth(), [1e-6], 5.0, passes=4)
    other = prepared(PolynomialValue(2, HORIZON, degree=4, times=6), data)
    trained = fit_linear(
        other, Split(list(split.train()), None), Observed(), truth(), [1e-6], 5.0, passes=4
    )
    honest = Judge(split.held, truth(), 5.0).residuals(trained.value).mean()
    in_sample = Judge(split.held, truth(), 5.0).residuals(one.value).mean()
    assert honest > 1.2 * in_sample  # the two differ, or the test would be about nothing
    found = one.held_out.mean()
    assert abs(found - honest) < abs(found - in_sample)


def test_all_paths_serve_the_last_step():
    """After the choice held-out paths are used as well: the fit is that of all the data with the
    chosen ridge.
    """
    data = replay(200)
    split = Split.of([data])
    first = prepared(PolynomialValue(2, HORIZON, times=4), data)
    chosen = fit_linear(first, split, Observed(), truth(), [1e-6, 1e-5], 5.0, passes=30)
    other = prepared(PolynomialValue(2, HORIZON, times=4), data)
    fit_linear(other, Split([data], None), Observed(), truth(), [chosen.ridge], 5.0, passes=30)
    x = data.inputs[:, 2]
    assert torch.allclose(first(2, x), other(2, x), atol=1e-5)
    assert int(chosen.system.total) == 200 * (HORIZON + 1)


def test_a_step_that_is_too_long_is_shortened():
    """Steps to weights that are far off are not taken, steps to the solution are, steps beyond it
    in part.
    """
    data = replay(200)
    value = prepared(PolynomialValue(2, HORIZON, times=4), data)
    fit_linear(value, Split([data], None), Observed(), truth(), [1e-6], 5.0, passes=10)
    guard, solved = Judge(data, truth(), 5.0), value.weights.clone()
    wild = solved + 30 * torch.randn(solved.shape, generator=generator(4), dtype=torch.float64)
    assert _longest(value, guard, solved, wild, 1.02) == 0.0
    assert _longest(value, guard, torch.zeros_like(solved), solved, 1.02) == 1.0
    assert 0.0 < _longest(value, guard, torch.zeros_like(solved), 8 * solved, 1.02) < 1.0


def test_settings_are_judged_on_paths_that_they_are_not_fitted_to():
    data = Replay.of(chain(), Recording.of(_numbered(1000)))
    few = Split.few(data)
    fitted, judges = next(few.train()).states[:, 0, 0], few.held.states[:, 0, 0]
    assert len(fitted) == 300 and len(judges) == 200
    assert not set(fitted.tolist()) & set(judges.tolist())


def test_a_warm_start_at_the_solution_stays_there():
    data = replay(200)
    value = prepared(PolynomialValue(2, HORIZON, times=4), data)
    fit_linear(value, Split([data], None), Observed(), truth(), [1e-6], 5.0, passes=40)
    before = value.weights.clone()
    fit_linear(value, Split([data], None), Observed(), truth(), [1e-6], 5.0, passes=3, cold=False)
    assert torch.allclose(value.weights, before, atol=1e-6)


@pytest.mark.parametrize("given", [{}, {"length": 0.7}])
def test_pde_tries_settings_but_keeps_to_the_given_ones(given):
    problem = LinearQuadratic.damped_rotation(2, steps=HORIZON)
    model = PDE(
        "FourierPolicy",
        problem,
        seed=0,
        device="cpu",
        policy_kwargs={"features": 10, "times": 3, **given},
    )
    with torch.no_grad():
        model.fit(rollout(problem, None, 100, generator()))
    length = model.policy_kwargs["length"]
    assert length in ((0.7,) if given else (0.5, 1.0, 2.0)) and model.policy.value.length == length
