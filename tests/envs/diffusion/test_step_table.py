"""Chains of every family are rows of one table: against the formulas of their papers and diffusers'
own schedulers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from girsanov.envs.diffusion.denoising import DenoisingProblem, Schedule
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from girsanov.envs.diffusion.step_table import PREDICTIONS, Reading, StepTable, predictions
from girsanov.envs.problem import rollout

STEPS = 7
DOUBLE = torch.float64
EXACT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}
TIMES = torch.tensor([1.0, 0.9, 0.7, 0.65, 0.3, 0.1, 0.0], dtype=DOUBLE)
FAMILIES: dict[str, Any] = {
    "ddpm": lambda: Schedule.ddpm(STEPS),
    "ddpm-large": lambda: Schedule.ddpm(STEPS, variance_type="fixed_large"),
    "flow": lambda: StepTable.rectified_flow(STEPS, shift=3.0),
    "flow-half": lambda: StepTable.rectified_flow(STEPS, eta=0.5),
    "flow-grpo": lambda: StepTable.flow_grpo(TIMES, 0.7),
    "karras": lambda: StepTable.karras(STEPS, sigma_max=20.0),
    "exploding": lambda: StepTable.variance_exploding([9.0, 3.0, 1.0, 0.3], eta=0.7),
}
EACH = pytest.mark.parametrize("family", FAMILIES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def mixture(schedule: Any, **change: Any) -> GaussianMixture:
    arguments: dict[str, Any] = {
        "means": [[-1.0, 0.5], [1.0, 0.0]],
        "std": [0.4, 0.3],
        "weights": [1.0, 2.0],
        "reward": QuadraticReward([[0.5, 0.1], [0.1, 0.2]], [0.3, 0.0], [1.0, -0.5]),
        "temperature": 0.7,
        "dtype": DOUBLE,
    }
    return GaussianMixture(**{**arguments, "schedule": schedule, **change})


def step(table: StepTable, prediction: str, k: int, x: Tensor, y: Tensor) -> Tensor:
    """The mean of a step, as a problem computes it."""
    reading = Reading.of(table, prediction)
    return reading.shrink[k] * x - reading.slope[k] * y


# --- the table


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_and_ddpm_are_rows(eta: float) -> None:
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    found = Schedule.from_scheduler(DDIMScheduler(), 10, "ddim", eta)
    bar = torch.cat([found.alpha_bar, found.alpha_bar.new_ones(1)])
    wanted = StepTable.of(bar.sqrt(), (1 - bar).sqrt(), found.timesteps, eta)
    for ours, theirs in zip(found.table(), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    if eta == 1:
        for ours, theirs in zip(Schedule.ddpm(10).table(), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("eta", [0.2, 1.0])
@pytest.mark.parametrize(
    "a, b", [(1 - TIMES, TIMES), (torch.ones(7, dtype=DOUBLE), 5 * TIMES)], ids=["flow", "ve"]
)
def test_the_step_is_the_family_of_eta(a: Tensor, b: Tensor, eta: float) -> None:
    table = StepTable.of(a, b, None, eta)
    ratio = a[:-1] / a[1:]
    sigma = eta * b[1:] / b[:-1] * (b[:-1] ** 2 - ratio**2 * b[1:] ** 2).sqrt()
    torch.testing.assert_close(table.sigma, sigma, **EXACT)
    torch.testing.assert_close(table.kept, (b[1:] ** 2 - sigma**2).sqrt(), **EXACT)
    torch.testing.assert_close(table.timesteps, b[:-1])


def test_eta_one_is_the_posterior_of_the_next_state() -> None:
    """By conditioning the joint law of ``(x', x)`` given x0, in which x is x' noised further."""
    table = StepTable.rectified_flow(STEPS)
    for k in range(1, STEPS):
        a, b, after, least = (float(t[k]) for t in table[:2] + table[2:3] + table[4:5])
        late = 1 - after
        cross = a / after * late**2  # of x' and x given x0
        x0, x = 0.7, -0.4
        mean = after * x0 + cross / b**2 * (x - a * x0)
        ours = after * x0 + float(table.kept[k]) * (x - a * x0) / b
        assert ours == pytest.approx(mean, abs=1e-12)
        assert least**2 == pytest.approx(late**2 - cross**2 / b**2, abs=1e-12)
    assert table.kept[0] == 0  # no memory of the noise that the chain starts from
    assert table.sigma[-1] == 0 and (table.sigma[:-1] > 0).all()


@EACH
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_is_read(family: str, prediction: str) -> None:
    table = FAMILIES[family]().table()
    if table.signal[0] == 0 and prediction in ("epsilon", "score"):
        with pytest.raises(ValueError, match=f"prediction '{prediction}' can't be read at a step"):
            Reading.of(table, prediction)
        return
    x0, e = draw(2, len(table.sigma), 5)
    a, b = table.signal[:, None], table.noise[:, None]
    x = a * x0 + b * e
    c, d = (t[:, None] for t in predictions(prediction, table.signal, table.noise))
    y = c * x0 + d * e
    reading = Reading(*(t[:, None] for t in Reading.of(table, prediction)))
    scale = max(1.0, float(x.abs().max()))
    near: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10 * scale}
    torch.testing.assert_close(reading.clean_x * x - reading.clean_y * y, x0, **near)
    torch.testing.assert_close(reading.noise_x * x + reading.noise_y * y, e, **near)
    mean = table.next_signal[:, None] * x0 + table.kept[:, None] * e
    torch.testing.assert_close(reading.shrink * x - reading.slope * y, mean, **near)


# --- diffusers' own schedulers

FLOWS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"shift_terminal": 0.1},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
]


@pytest.mark.parametrize("config", FLOWS, ids=str)
def test_a_flow_steps_as_its_scheduler(config: dict[str, Any]) -> None:
    scheduler = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(**config)
    mu = 0.8 if "use_dynamic_shifting" in config else None
    table = StepTable.from_scheduler(scheduler, STEPS, eta=1e-8, mu=mu)
    assert len(scheduler.timesteps) == 1000  # the user's own is as it was
    scheduler.set_timesteps(STEPS, **({} if mu is None else {"mu": mu}))
    assert torch.equal(table.timesteps, scheduler.timesteps.double())
    x, v = draw(2, STEPS, 9)
    for k, t in enumerate(scheduler.timesteps):
        ours = step(table, "velocity", k, x[k], v[k])
        times = scheduler.sigmas.double()
        torch.testing.assert_close(ours, x[k] + (times[k + 1] - times[k]) * v[k], **EXACT)
        theirs = scheduler.step(v[k].float(), t, x[k].float()).prev_sample
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-5)


def test_flow_grpo_is_euler_maruyama() -> None:
    pytest.importorskip("diffusers")
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = StepTable.from_scheduler(scheduler, STEPS, "flow-grpo", noise_level=0.6)
    scheduler.set_timesteps(STEPS)
    times, (x, v) = scheduler.sigmas.double(), draw(2, STEPS, 9)
    for k in range(STEPS):
        t, s = times[k], times[k + 1]
        spread = 0.6 * math.sqrt(t / (1 - (s if t == 1 else t)))
        drift = v[k] + spread**2 / (2 * t) * (x[k] + (1 - t) * v[k])
        torch.testing.assert_close(
            step(table, "velocity", k, x[k], v[k]), x[k] + drift * (s - t), **EXACT
        )
        assert float(table.sigma[k]) == pytest.approx(spread * math.sqrt(t - s), abs=1e-12)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_ancestral_euler_is_exploding_variance() -> None:
    pytest.importorskip("diffusers")
    from diffusers import EDMEulerScheduler, EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    table = StepTable.variance_exploding(scheduler.sigmas[:-1])
    x, e = draw(2, STEPS, 9)
    for k, t in enumerate(scheduler.timesteps):
        generator = torch.Generator().manual_seed(k)
        noise = torch.randn(9, generator=torch.Generator().manual_seed(k))
        theirs = scheduler.step(e[k].float(), t, x[k].float(), generator=generator).prev_sample
        ours = step(table, "epsilon", k, x[k], e[k]) + table.sigma[k] * noise
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-5)
    edm = EDMEulerScheduler()
    edm.set_timesteps(STEPS)
    karras = StepTable.karras(STEPS, eta=1e-8)
    torch.testing.assert_close(karras.noise.float(), edm.sigmas[:-1], rtol=1e-5, atol=0)
    for k in range(STEPS - 1):  # Euler's: x + (b' - b) e
        wanted = x[k] + (karras.noise[k + 1] - karras.noise[k]) * e[k]
        torch.testing.assert_close(step(karras, "epsilon", k, x[k], e[k]), wanted, **EXACT)


REFUSED = ["ScoreSdeVe", "CMStochasticIterative", "KarrasVe", "EDMEuler", "EDMDPMSolverMultistep"]
REFUSED += ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "CogVideoXDDIM", "IPNDM", "UnCLIP"]


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_of_another_family_are_refused_by_name(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    with pytest.raises(ValueError, match=f"scheduler must .*; got {name}Scheduler"):
        Schedule.from_scheduler(scheduler, 20)
    if name != "FlowMatchEulerDiscrete":
        with pytest.raises(ValueError, match=f"FlowMatchEulerDiscreteScheduler; got {name}"):
            StepTable.from_scheduler(scheduler, 20)


def test_a_flow_in_disguise_is_refused() -> None:
    diffusers = pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match="got DPMSolverMultistepScheduler, a flow's"):
        Schedule.from_scheduler(
            diffusers.DPMSolverMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction"
            ),
            20,
        )


# --- problems


@EACH
def test_kl_is_the_monte_carlo_log_ratio(family: str) -> None:
    problem = mixture(FAMILIES[family]())
    paths = rollout(
        problem,
        lambda k, x: (
            (problem.schedule.sigma[k] > 0)
            * problem.control_of(k, x, 0.4 * torch.sin(x) + 0.2).clamp(-0.5, 0.5)
        ),
        20_000,
        torch.Generator().manual_seed(0),
    )
    ratio = torch.zeros(20_000, dtype=DOUBLE)
    for k in range(problem.horizon):
        x, after, a = paths.states[k], paths.states[k + 1], paths.controls[k]
        mean, sigma = problem.gaussian_kernel(k, x)
        if sigma > 0:
            laws = (torch.distributions.Normal(m, sigma) for m in (mean + sigma * a, mean))
            steered, free = (law.log_prob(after).sum(1) for law in laws)
            ratio += steered - free
    assert 0.05 < paths.kl.mean() < 10
    gap = ratio - paths.kl
    assert abs(gap.mean()) < 3 * gap.std() / math.sqrt(len(gap))
    assert gap.std() > 0.1  # they agree in the mean only


@EACH
def test_a_change_of_the_prediction_is_its_control(family: str) -> None:
    problem = mixture(FAMILIES[family]())
    table, x, z = FAMILIES[family]().table(), *draw(2, 5, 2)
    for k in range(problem.horizon):
        if table.sigma[k] == 0:
            continue
        change = 0.3 * torch.sin(x + k)
        wanted = step(table, problem.prediction, k, x, problem.predict(k, x) + change)
        found = problem.transition(k, x, z + problem.control_of(k, x, change))
        torch.testing.assert_close(found, wanted + table.sigma[k] * z, rtol=1e-9, atol=1e-9)


@EACH
def test_the_mixture_tells_the_posterior_means(family: str) -> None:
    """Noise and clean sample from the density's gradient; one step a row too."""
    problem = mixture(FAMILIES[family]())
    a, b = problem.schedule.table().signal, problem.schedule.table().noise
    for k in range(problem.horizon):
        x = (a[k].hypot(b[k]) * draw(6, 2)).requires_grad_()
        (score,) = torch.autograd.grad(problem.log_density(k, x).sum(), x)
        x = x.detach()
        rows = torch.full((6,), k)
        scale = max(1.0, float(x.abs().max()))
        for which in (k, rows):
            torch.testing.assert_close(problem.predict_noise(which, x), -b[k] * score, **EXACT)
            clean = problem.terminal_estimate(which, x)
            near = {"rtol": 1e-9, "atol": 1e-9 * scale}
            torch.testing.assert_close(a[k] * clean + b[k] * -b[k] * score, x, **near)
            kernel = DenoisingProblem.gaussian_kernel(problem, which, x)
            torch.testing.assert_close(kernel[0], problem.gaussian_kernel(k, x)[0], **near)


def test_a_flow_is_the_preserved_variance_of_its_states_in_other_units() -> None:
    """``x / sqrt(a^2 + b^2)`` is noised as DDPM's with the same ratio of signal and noise."""
    flow = mixture(StepTable.rectified_flow(STEPS))
    a, b = flow.schedule.table().signal[1:], flow.schedule.table().noise[1:]
    share = a**2 / (a**2 + b**2)
    preserved = mixture(
        StepTable.of(
            torch.cat([share.sqrt(), share.new_ones(1)]),
            torch.cat([(1 - share).sqrt(), share.new_zeros(1)]),
        )
    )
    x = draw(8, 2)
    for k in range(STEPS - 1):
        scale = a[k].hypot(b[k])
        for one, other, unit in (
            (flow.reference_value, preserved.reference_value, 1.0),
            (flow.score, preserved.score, scale),
            (flow.terminal_estimate, preserved.terminal_estimate, 1.0),
        ):
            torch.testing.assert_close(unit * one(k + 1, scale * x), other(k, x), **EXACT)
    torch.testing.assert_close(flow.reference_value(STEPS, x), flow.terminal_reward(x), **EXACT)
    before = flow.reference_value(0, x)  # pure noise tells nothing
    torch.testing.assert_close(before, before[:1].expand(8), **EXACT)


# --- your own network


class Conditioned(nn.Module):
    """What a mixture's exact network says, in any parametrisation, shifted by a label."""

    def __init__(self, problem: GaussianMixture, prediction: str) -> None:
        super().__init__()
        self.problem, self.prediction, self.seen = problem, prediction, []
        self.weight = nn.Parameter(torch.zeros((), dtype=DOUBLE))
        self.table = problem.schedule.table()

    def forward(self, x: Tensor, t: Tensor, label: Tensor, scale: float = 1.0) -> Tensor:
        assert t.shape == (len(x),) and label.shape == (len(x), 1)
        self.seen.append((len(x), scale))
        k = (self.table.timesteps == t[:, None]).nonzero()[:, 1]  # one step per row
        flat = x.flatten(1) - label
        c, d = (part[k, None] for part in predictions(self.prediction, *self.table[:2]))
        clean, noise = self.problem.terminal_estimate(k, flat), self.problem.predict_noise(k, flat)
        return (c * clean + d * noise).view_as(x)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("family", ["ddpm", "flow", "karras"])
def test_a_network_of_ones_own_is_a_problem(family: str, prediction: str) -> None:
    exact = mixture(FAMILIES[family]())
    network = Conditioned(exact, prediction)
    make = partial(
        DenoisingProblem.from_network,
        *(network, FAMILIES[family](), prediction),
        shape=(1, 2, 1),
        reward=lambda x: x.flatten(1).sum(1),
        temperature=0.5,
        batch_size=3,
    )
    if exact.schedule.table().signal[0] == 0 and prediction in ("epsilon", "score"):
        with pytest.raises(ValueError, match="can't be read at a step without signal"):
            make(label=torch.zeros(1, 1, dtype=DOUBLE))
        return
    problem = make(label=torch.zeros(1, 1, dtype=DOUBLE), scale=2.0)
    problem.validate()
    assert problem.state_shape == (1, 2, 1) and not network.weight.requires_grad
    ours = rollout(problem, None, 5, torch.Generator().manual_seed(0))
    theirs = rollout(exact, None, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.states.flatten(2), theirs.states, rtol=1e-8, atol=1e-8)
    assert {rows for rows, _ in network.seen[-6:]} == {3, 2}
    assert {scale for _, scale in network.seen} == {2.0}
    moved = make(label=torch.full((1, 1), 0.3, dtype=DOUBLE)).transition(
        2, ours.states[2], ours.noises[2]
    )
    assert not torch.allclose(moved, ours.states[3])


def test_a_network_may_be_any_function_and_learns_from_nobody() -> None:
    problem = DenoisingProblem.from_network(
        lambda x, t: torch.zeros_like(x) * t[:, None],
        StepTable.rectified_flow(STEPS),
        "velocity",
        shape=(3,),
        reward=lambda x: x.sum(1),
        temperature=1.0,
    )
    problem.validate()
    assert problem.initial(2, torch.Generator()).dtype == torch.float32
    x = torch.ones(2, 3)
    assert torch.equal(problem.terminal_estimate(3, x), x)  # no velocity: it is there
    half = problem.to(dtype=DOUBLE)
    assert half.transition(0, x.double(), x.double()).dtype == DOUBLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": 3}, "network must be callable; got 3"),
        ({"reward": 3}, "reward must be callable; got 3"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"prediction": "flow"}, "prediction must be one of .*; got 'flow'"),
        (
            {"network": lambda x, t: x.sum(1)},
            r"return what it is given, shape \(2, 3\); got \(2,\)",
        ),
        ({"temperature": 0}, "temperature must be a positive number; got 0"),
    ],
)
def test_bad_networks_are_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"network": lambda x, t: x, "schedule": StepTable.rectified_flow(4)}
    good |= {"shape": (3,), "reward": lambda x: x.sum(1), "temperature": 1.0}
    with pytest.raises(ValueError, match=message):
        DenoisingProblem.from_network(**{**good, "prediction": "velocity", **change})


# --- the door


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepTable.rectified_flow(1), "noise in one step at least.*got 1 steps without"),
        (lambda: StepTable.rectified_flow(0), "steps must be an integer of at least 1; got 0"),
        (lambda: StepTable.rectified_flow(5, shift=0), "shift must be a positive number; got 0"),
        (lambda: StepTable.rectified_flow(5, eta=0), "eta must be above 0 and at most 1; got 0"),
        (lambda: StepTable.of([0, 1], [1]), r"got shapes \(2,\) and \(1,\)"),
        (lambda: StepTable.of([0, 0.5, 1], [1, 1, 0], [3, 2, 1]), "timesteps must be one number"),
        (lambda: StepTable.of([0.5, 0.4, 1], [0.5, 0.5, 0]), "noise / signal must fall"),
        (lambda: StepTable.karras(5, sigma_min=3, sigma_max=2), "sigma_max must exceed sigma_min"),
        (lambda: StepTable.flow_grpo([1.0, 0.5, 0.1]), "times must fall to 0"),
        (lambda: StepTable.flow_grpo([1.0, 0.0]), "below it for one step"),
        (lambda: StepTable.flow_grpo(TIMES, 0), "noise_level must be a positive number; got 0"),
        (lambda: Reading.of(StepTable.karras(3), "x0"), "prediction must be one of .*; got 'x0'"),
    ],
)
def test_bad_tables_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        ({"use_dynamic_shifting": True}, {}, "mu must be a number for a scheduler with"),
        ({}, {"mu": 1.0}, "mu must be absent for a scheduler with"),
        ({"invert_sigmas": True}, {}, "must not have invert_sigmas; got invert_sigmas=True"),
        ({"stochastic_sampling": True}, {}, "must not have stochastic_sampling"),
        ({}, {"kind": "sde"}, "kind must be 'posterior' or 'flow-grpo'; got 'sde'"),
    ],
)
def test_bad_flows_are_named(config: Any, kwargs: Any, message: str) -> None:
    scheduler = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(**config)
    with pytest.raises(ValueError, match=message):
        StepTable.from_scheduler(scheduler, 5, **kwargs)


def test_a_chain_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule must have noise in one step at least.*; got 1"):
        mixture(Schedule.ddpm(1))
