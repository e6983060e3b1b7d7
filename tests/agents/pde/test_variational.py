"""The empirical variational inequality against closed forms: the truth is its solution, whoever
gathered the data, and how.
"""

import math

import pytest
import torch
from torch import Tensor

from girsanov.agents import PDE
from girsanov.agents.networks import NeuralValue
from girsanov.agents.pde import regression, variational
from girsanov.agents.pde.classes.length_scale import KernelValue, RadialValue
from girsanov.agents.pde.classes.linear import LinearValue, PolynomialValue
from girsanov.agents.pde.classes.system import System, assemble
from girsanov.agents.pde.collecting.batches import kept, starting_values
from girsanov.agents.pde.lookahead import FreshNoise, Generator, Lookahead, Observed
from girsanov.agents.pde.norms import control_error, sobolev_errors
from girsanov.agents.pde.replay import Replay, sample_spans, spans
from girsanov.agents.pde.variational import (
    capped_exp,
    densities,
    divergence,
    log_targets,
    relative_residual_loss,
)
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout
from girsanov.envs.recording import Recording

HORIZON = 8
N = 40_000
MANY = 1e6  # observations, among which no target is so heavy that it is cut off


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain() -> LinearQuadratic:
    """Warm enough that no target of one step is capped."""
    return LinearQuadratic.damped_rotation(2, steps=HORIZON, temperature=2.0).to(
        dtype=torch.float64
    )


def some_control(k: int, x: Tensor) -> Tensor:
    return 0.15 * x.cos() + 0.02 * k


def truth(problem: LinearQuadratic, shift: float = 0.0) -> PolynomialValue:
    """``log f*``, exactly, with a feature of time for every step; ``shift`` bends it by that much
    ``x_1^2``.
    """
    value = PolynomialValue(2, HORIZON, times=HORIZON + 1)
    x = torch.randn(40, 2, generator=generator(9), dtype=torch.float64)
    space = value.space(0, x)
    rows = []
    for k in range(HORIZON + 1):
        target = problem.log_moment_value(k, x) / problem.temperature + shift * x[:, 0].square()
        rows.append(torch.linalg.lstsq(space, target[:, None]).solution[:, 0])
    value.weights.copy_(torch.linalg.solve(value.time_table, torch.stack(rows)))
    return value


def gathered(kind: str, n: int = N, seed: int = 0) -> Replay:
    problem = chain()
    with torch.no_grad():
        recording = Recording.of(
            rollout(
                problem, some_control if kind.startswith("controlled") else None, n, generator(seed)
            )
        )
    if "random times" in kind:
        recording = recording.at_random_times(5, generator(seed + 1))
    return Replay.of(problem, recording)


def parts(data: Replay, size: int) -> list[Replay]:
    return [data.at(rows) for rows in torch.arange(data.n).split(size)]


def form(name: str) -> Lookahead:
    return {
        "observed": Observed(),
        "fresh": FreshNoise(chain(), 2, generator(5)),
        "generator": Generator(chain()),
    }[name]


def z_scores(
    value: LinearValue, data: Replay, lookahead: Lookahead, max_weight: float = 5.0, span: int = 1
) -> Tensor:
    """Residual of every weight in standard errors, from 50 independent batches of paths."""
    batches = parts(data, data.n // 50)
    found = torch.stack(
        [assemble(value, [part], lookahead, max_weight, span).residual for part in batches]
    )
    return found.mean(0) / (found.std(0) / math.sqrt(len(found)))


# --- scalars of the gap


def test_divergence_is_the_integral_of_the_capped_exponential():
    """Zero and flat at zero, never negative, its derivative the residual, also beyond the cap."""
    gap = torch.linspace(-20, 20, 801, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(divergence(gap, 100).sum(), gap)
    assert torch.allclose(slope, capped_exp(gap.detach(), 100))
    assert (divergence(gap, 100) >= 0).all() and float(divergence(torch.zeros(()), 100)) == 0
    small = torch.tensor([-3.0, 0.5, 2.3], dtype=torch.float64)
    assert torch.allclose(capped_exp(small, 100), torch.exp(small) - 1)
    huge = torch.tensor([1e4, -1e4])
    assert torch.isfinite(divergence(huge, 100)).all()
    assert torch.isfinite(capped_exp(huge, 100)).all()


# --- the linear system


@pytest.mark.parametrize(
    "kind", ["uncontrolled", "controlled", "uncontrolled, random times", "controlled, random times"]
)
def test_the_truth_solves_the_equation_and_nothing_beside_it(kind):
    """All 54 residuals of quadratics within 4 standard errors; a bent function is 10 and more
    away.
    """
    data, problem = gathered(kind), chain()
    assert z_scores(truth(problem), data, Observed()).abs().max() < 4
    assert z_scores(truth(problem, 0.1), data, Observed()).abs().max() > 10


def test_forgetting_the_control_is_seen():
    """Without its Girsanov weights controlled data solve another equation."""
    data = gathered("controlled")
    wrong = data._replace(log_weight=data.log_reward)
    assert z_scores(truth(chain()), wrong, Observed()).abs().max() > 10


@pytest.mark.parametrize("name", ["fresh", "generator"])
@pytest.mark.parametrize("kind", ["uncontrolled", "controlled"])
def test_the_forms_that_know_the_transition(name, kind):
    """They are conditional means: the residual at the truth is small in the trajectory form's own
    standard errors.
    """
    problem = chain()
    data = gathered(kind, 8000)
    value, bent = truth(problem), truth(problem, 0.1)
    if name == "fresh":
        assert z_scores(value, data, form(name)).abs().max() < 4
    batches = torch.stack(
        [assemble(value, [part], Observed(), 5.0).residual for part in parts(data, 400)]
    )
    scale = batches.std(0) * math.sqrt(len(batches))
    mine = assemble(value, [data], form(name), 5.0).residual
    assert (mine / scale).abs().max() < (
        1.5 if name == "generator" else 4
    )  # the generator errs by the square of the step
    assert (assemble(bent, [data], form(name), 5.0).residual / scale).abs().max() > 5


@pytest.mark.parametrize("name", ["fresh", "generator"])
def test_fresh_forms_refuse_paths_with_gaps(name):
    """They know the next step, not the reward of one step among those recorded together."""
    data = gathered("uncontrolled, random times", 50)
    with pytest.raises(ValueError, match="lookahead"):
        assemble(truth(chain()), [data], form(name), 5.0)
    agent = PDE("MlpPolicy", chain(), seed=0, device="cpu", lookahead=name)
    whole = Recording.of(rollout(chain(), None, 50, generator()))
    with pytest.raises(ValueError, match="lookahead must be 'observed'.*got steps 4 and 6"):
        agent.fit(whole.at_random_times(5, generator(1)), gradient_steps=1)


@pytest.mark.parametrize("span", [3, 100])
def test_the_truth_solves_the_equation_over_longer_spans(span):
    assert z_scores(truth(chain()), gathered("controlled"), Observed(), span=span).abs().max() < 4


def test_density_ratios_are_those_of_the_optimal_process():
    """Uncapped at the truth they average to one at every visit, under either control, given each
    path's start.
    """
    problem = chain()
    for kind in ("uncontrolled", "controlled"):
        data = gathered(kind)
        row = torch.arange(data.n)
        for visit in (0, 3, HORIZON):
            here = torch.full_like(row, visit)
            ratio = densities(
                truth(problem), spans(data, row, here, here, HORIZON), math.inf
            ).double()
            if visit == 0:
                assert torch.allclose(ratio, torch.ones_like(ratio))
            else:
                assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(data.n)
                assert ratio.std() > 0.1


def test_what_is_kept_of_a_batch_has_its_weighted_means():
    data = gathered("controlled", 4000)
    row = torch.arange(data.n)
    batch = spans(data, row, torch.full_like(row, 3), torch.full_like(row, 4), HORIZON)
    starts = starting_values(truth(chain()), data)
    weight = densities(truth(chain()), batch, 5.0, starts)
    assert torch.allclose(weight, densities(truth(chain()), batch, 5.0))
    few, equal = kept(batch, weight, 40_000, generator())
    assert bool((equal == weight.mean()).all()) and few.x.shape == (40_000, 2)
    assert torch.equal(few.x, data.inputs[few.row, 3])
    wanted, found = (weight[:, None] * batch.x).mean(0), (equal[:, None] * few.x).mean(0)
    assert bool(((found - wanted).abs() < 4 * few.x.std(0) * weight.mean() / 200).all())
    assert ((batch.x.mean(0) - wanted).abs() > 0.02).any(), "the weights matter"


@pytest.mark.parametrize("kind", ["controlled", "controlled, random times"])
@pytest.mark.parametrize("neutral", [False, True])
def test_a_stream_is_the_sum_of_its_parts(kind, neutral):
    data = gathered(kind, 500)
    radial = RadialValue(2, HORIZON, centres=20)
    radial.standardise.fit(data.inputs.flatten(0, 1))
    radial.place(data.steps.flatten(), data.inputs.flatten(0, 1), generator())
    settings = {"risk_neutral": neutral, "others": MANY}
    for value in (truth(chain(), 0.1), radial):
        whole = assemble(value, [data], Observed(), 5.0, **settings)
        streamed = assemble(value, iter(parts(data, 77)), Observed(), 5.0, **settings)
        summed = assemble(value, [data.at(torch.arange(200))], Observed(), 5.0, **settings).plus(
            assemble(
                value,
                [data.at(torch.arange(200, data.n))],
                Observed(),
                5.0,
                risk_neutral=neutral,
                others=MANY,
            )
        )
        for other in (streamed, summed):
            for a, b in zip(whole, other, strict=True):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(a.abs().max()))


def test_visits_at_every_step_make_random_times_whole():
    problem = chain()
    with torch.no_grad():
        recording = Recording.of(rollout(problem, some_control, 300, generator()))
    whole = Replay.of(problem, recording)
    seen = Replay.of(problem, recording.at_random_times(HORIZON, generator(1)))
    value = truth(problem, 0.1)
    for a, b in zip(
        assemble(value, [whole], Observed(), 5.0),
        assemble(value, [seen], Observed(), 5.0),
        strict=True,
    ):
        assert torch.allclose(
            a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max())
        )  # sums are kept in float32


def test_repeated_last_visits_and_unseen_ends_add_nothing():
    """Padding to a common number of visits changes no sum; a terminal reward that was not seen is
    not looked at.
    """
    problem = chain()
    with torch.no_grad():
        recording = Recording.of(rollout(problem, some_control, 50, generator()))
    value = truth(problem, 0.1)
    plain = assemble(value, [Replay.of(problem, recording)], Observed(), 5.0)
    padded = Recording(
        torch.cat([recording.steps, recording.steps[:, -1:]], 1),
        torch.cat([recording.states, recording.states[:, -1:]], 1),
        torch.cat([recording.rewards, torch.zeros(50, 1, dtype=torch.float64)], 1),
        recording.terminal_reward,
        torch.cat([recording.log_ratios, torch.zeros(50, 1, dtype=torch.float64)], 1),
    )
    cut = Recording(
        *(part[:, :5] for part in recording[:2]),
        recording.rewards[:, :4],
        torch.full((50,), torch.nan),
    )
    short = assemble(value, [Replay.of(problem, cut)], Observed(), 5.0)
    assert int(short.total) == 4 * 50
    assert int(plain.total) == (HORIZON + 1) * 50
    found = assemble(value, [Replay.of(problem, padded)], Observed(), 5.0)
    assert torch.allclose(plain.matrix, found.matrix) and torch.allclose(
        plain.residual, found.residual
    )
    assert int(found.total) == int(plain.total)


def test_matrix_is_the_derivative_of_the_residual():
    """Gauss-Newton is Newton here but for the weights, which the derivative holds: risk-neutral,
    with weights capped to one.
    """
    problem, data = chain(), gathered("uncontrolled", 200)
    value = truth(problem, 0.1)
    tiny = 1e-30  # so small that every weight is capped, hence constant
    before = value.weights.clone()
    system = assemble(value, [data], Observed(), tiny)
    direction = torch.randn(value.weights.shape, generator=generator(4), dtype=torch.float64)
    neutral = assemble(value, [data], Observed(), tiny, risk_neutral=True)
    for risk_neutral, one in ((False, system), (True, neutral)):
        sides = []
        for sign in (1, -1):
            value.weights.copy_(before + sign * 1e-4 * direction)
            sides.append(
                assemble(value, [data], Observed(), tiny, risk_neutral=risk_neutral).residual
            )
        numeric = (sides[0] - sides[1]) / 2e-4
        expected = -one.matrix @ direction.flatten()
        if risk_neutral:
            assert torch.allclose(
                numeric, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max())
            )
        # tau (exp(gap) - 1) has the derivative tau exp(gap) (tau' - tau): the matrix weighs both by
        # exp(gap) alike
        else:
            assert float((numeric - expected).norm() / expected.norm()) < 1e-5
    value.weights.copy_(before)


def test_where_f_is_linear_one_step_is_lstsq():
    """Radial bases: the step's solution does not depend on where it starts, for weights held at one
    and gaps below the cap.
    """
    data = gathered("uncontrolled", 400)
    value = RadialValue(2, HORIZON, centres=12, width=3.0, span=1.0, floor=0.0)
    value.standardise.fit(data.inputs.flatten(0, 1))
    value.place(data.steps.flatten(), data.inputs.flatten(0, 1), generator())
    value.offset.copy_(data.log_returns.double().exp().mean().log())
    value.weights.fill_(0.15)
    system = assemble(value, [data], Observed(), 1e-30)
    f = {k: value.space(k, data.inputs[:, k]) @ value.weights[0] for k in range(HORIZON + 1)}
    matrix, vector = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for k in range(HORIZON + 1):
        phi = value.space(k, data.inputs[:, k])
        tested = phi / f[k][:, None].square() * 1e-30
        if (
            k >= HORIZON - 1
        ):  # the terminal reward itself, not f_T, stands at the end of the last step
            target = (
                data.log_terminal.double()
                - value.offset[k]
                + (data.log_weight[:, -1] - data.log_weight[:, k]).double()
            )
            assert (target - f[k].log()).max() < 1.5
            matrix += tested.T @ phi
            vector += tested.T @ target.exp()
        else:
            gain = (data.log_weight[:, k + 1] - data.log_weight[:, k]).double().exp()
            assert (gain * f[k + 1] / f[k]).log().max() < 1.5
            matrix += tested.T @ (phi - gain[:, None] * value.space(k + 1, data.inputs[:, k + 1]))
    assert torch.allclose(system.matrix, matrix, rtol=1e-6, atol=1e-6 * float(matrix.abs().max()))
    assert torch.allclose(
        system.residual + system.matrix @ value.weights[0], vector, rtol=1e-6, atol=1e-36
    )


def test_systems_add_up():
    one = System(*(torch.ones(()) for _ in System._fields))
    assert all(float(total) == 2 for total in one.plus(one))


# --- the same equation for networks


class Exact(NeuralValue):
    """``log f*`` with a trainable shift."""

    def __init__(self, problem: LinearQuadratic, shift: float, offset: float) -> None:
        super().__init__(2, problem.horizon, (4,), 1)
        self.true = truth(problem, shift)
        self.move = torch.nn.Parameter(torch.tensor(offset))

    def members(self, k, inputs):
        return (self.true(k, inputs).float() + self.move)[None]


@pytest.mark.parametrize("kind", ["uncontrolled", "controlled", "controlled, random times"])
def test_the_loss_is_stationary_at_the_true_function_and_not_beside_it(kind):
    """The gradient by a constant vanishes in expectation at log f*, not at a bent and not at a
    shifted one.
    """
    problem = chain()

    def gradients(shift: float, offset: float) -> Tensor:
        value = Exact(problem, shift, offset)
        found = []
        for seed in range(40):
            data = gathered(kind, 500, seed)
            batch = sample_spans(data, 2000, 1.0, HORIZON, generator(seed))
            target = log_targets(value, batch, data, Observed())
            weight = densities(value, batch, 5.0)
            loss = relative_residual_loss(value, batch, target, weight, data.steps.numel())
            found.append(torch.autograd.grad(loss, value.move)[0])
        return torch.stack(found)

    def score(found: Tensor) -> float:
        return float(found.mean() / (found.std() / math.sqrt(len(found))))

    assert abs(score(gradients(0.0, 0.0))) < 4
    assert abs(score(gradients(0.2, 0.0))) > 8
    # a constant shift is seen through the terminal condition alone
    assert score(gradients(0.0, 0.5)) > 8


@pytest.mark.parametrize("name", ["fresh", "generator"])
def test_fresh_targets_are_means_of_the_observed_ones(name):
    """At the truth the log target of the known transition is log f itself, up to its noise or the
    square of the step.
    """
    problem = chain()
    data = gathered("controlled", 2000)
    value = truth(problem)
    batch = sample_spans(data, 3000, 1.0, HORIZON, generator(1))
    gap = log_targets(value, batch, data, form(name)) - value(batch.k, batch.x)
    if name == "generator":
        assert gap.abs().max() < 0.05
    else:
        excess = gap.exp() - 1
        assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(3000) + 1e-6
    at_end = batch.k == HORIZON
    assert at_end.any() and gap[at_end].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["fresh", "generator"])
def test_fresh_targets_of_paths_without_an_end(name):
    """The last visit of a path that was not seen at its end must not be taken for a terminal reward
    of zero.
    """
    problem = chain()
    with torch.no_grad():
        recording = Recording.of(rollout(problem, None, 200, generator()))
    cut = Recording(
        *(part[:, :5] for part in recording[:2]),
        recording.rewards[:, :4],
        torch.full((200,), torch.nan),
    )
    data, value = Replay.of(problem, cut), truth(problem)
    row = torch.arange(200)
    last = torch.full_like(row, 4)
    batch = spans(data, row, last, last, HORIZON)
    gap = log_targets(value, batch, data, form(name)) - value(batch.k, batch.x)
    assert gap.abs().max() < 0.3, "an observation that says nothing has no gap"


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("name", ["generator", "branches", "energy"])
def test_what_a_gpu_computes_of_every_row_is_what_a_cpu_does_of_some(name, ends, monkeypatch):
    """Visits at the end have no next state; what is computed of them must not be seen."""
    problem = chain()
    recording = Recording.of(rollout(problem, some_control, 60, generator()))
    if not ends:
        never = torch.full((60,), torch.nan)
        recording = Recording(
            *(part[:, :5] for part in recording[:2]), recording.rewards[:, :4], never
        )
    data, found = Replay.of(problem, recording), []
    if name == "branches":
        data = data.branched(FreshNoise(problem, 1, generator()).branches)
    batch = sample_spans(data, 60, 1.0, HORIZON, generator(1))
    agent = PDE("MlpPolicy", problem, seed=0, device="cpu", gradient_penalty=1.0)
    agent.policy.value.network.weights[-1].data.normal_()
    for every in (False, True):
        if every:
            for module in (variational, regression):
                monkeypatch.setattr(module, "counted", lambda mask: torch.arange(len(mask)))
        if name == "energy":
            weight = torch.rand(60, generator=generator(2))
            found.append(agent._energy(agent.policy.value, batch, data, weight).detach())
        else:
            own = Generator(problem) if name == "generator" else FreshNoise(problem, 1, generator())
            found.append(log_targets(truth(problem), batch, data, own))
    assert found[0].abs().max() > 0.01
    torch.testing.assert_close(*found)


# --- norms


def test_sobolev_errors_of_a_constant_factor():
    """``fhat = c f`` is off by ``c - 1`` in both norms; the truth by nothing."""
    problem = chain()
    paths = rollout(problem, None, 100, generator())

    def log_truth(k, x):
        return problem.log_moment_value(k, x) / problem.temperature

    assert max(sobolev_errors(problem, paths, log_truth, log_truth)) == 0
    found = sobolev_errors(problem, paths, lambda k, x: log_truth(k, x) + math.log(1.1), log_truth)
    assert found.energy == pytest.approx(0.1) and found.integral == pytest.approx(0.1)


def test_sobolev_errors_against_the_formula():
    """A linear error of log f at first order: squares of f and of its slope in units of the noise,
    summed by hand.
    """
    problem = chain()
    with torch.no_grad():
        paths = rollout(problem, None, 5000, generator())
    direction = 1e-4 * torch.tensor([1.0, -2.0], dtype=torch.float64)

    def log_truth(k, x):
        return 0.3 * x[:, 1]

    found = sobolev_errors(problem, paths, lambda k, x: log_truth(k, x) + x @ direction, log_truth)
    slope = torch.tensor([0.0, 0.3], dtype=torch.float64)
    total = torch.zeros(2, 2, dtype=torch.float64)
    for k in range(HORIZON + 1):
        x = paths.states[k]
        f, off = log_truth(k, x).exp(), x @ direction
        for i, (value, gradient) in enumerate(
            ((f * off, f[:, None] * (direction + off[:, None] * slope)), (f, f[:, None] * slope))
        ):
            total[i, 0] += 0.5 * (k in (0, HORIZON)) * value.square().mean()
            total[i, 1] += value.square().mean() / HORIZON
            if k:
                size = (gradient @ problem.noise_matrix[k - 1]).square().sum(1).mean()
                total[i] += torch.tensor([0.5, 1.0], dtype=torch.float64) * size
    wanted = (total[0] / total[1]).sqrt()
    assert found.energy == pytest.approx(float(wanted[0]), rel=1e-3)
    assert found.integral == pytest.approx(float(wanted[1]), rel=1e-3)


def test_control_error_is_a_share_of_the_optimum():
    problem = chain()
    paths = rollout(problem, problem.optimal_control, 50, generator())
    best = problem.optimal_control
    assert control_error(problem, paths, best, best) == 0
    assert control_error(problem, paths, lambda k, x: 0.9 * best(k, x), best) == pytest.approx(0.01)
    assert control_error(problem, paths, lambda k, x: 0 * x, best) == pytest.approx(1.0)


def test_kernel_systems_stay_finite_when_all_states_are_equal():
    data = gathered("uncontrolled", 20)
    data = data._replace(inputs=torch.ones_like(data.inputs), states=torch.ones_like(data.states))
    value = KernelValue(2, HORIZON, centres=8)
    value.standardise.fit(data.inputs.flatten(0, 1))
    value.place(data.steps.flatten(), data.inputs.flatten(0, 1), generator())
    system = assemble(value, [data], Observed(), 5.0)
    assert all(torch.isfinite(part).all() for part in system)


def test_the_risk_neutral_matrix_is_that_of_the_gap():
    """``d gap = (tau' - tau) dw``, also where f is linear in the weights: no exponential is left to
    weigh tau' by.
    """
    data = gathered("uncontrolled", 100)
    value = RadialValue(2, HORIZON, centres=8, width=3.0, span=1.0)
    value.standardise.fit(data.inputs.flatten(0, 1))
    value.place(data.steps.flatten(), data.inputs.flatten(0, 1), generator())
    tau = [value.tangent(k, data.inputs[:, k]).space for k in range(HORIZON + 1)]
    wanted = sum(t.T @ t for t in tau) - sum(
        t.T @ later for t, later in zip(tau[:-2], tau[1:-1], strict=True)
    )
    found = assemble(value, [data], Observed(), 1e-30, risk_neutral=True).matrix / 1e-30
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
