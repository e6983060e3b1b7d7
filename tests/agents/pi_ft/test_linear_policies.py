"""Every linear class at its defaults learns from few paths on problems of several kinds, and does
no harm.
"""

import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from girsanov.agents import PDE
from girsanov.agents.pde.norms import energy_error
from girsanov.agents.pde.replay import Replay
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Policy, Problem, rollout
from girsanov.envs.recording import Recording

CLASSES = ("PolynomialPolicy", "FourierPolicy", "KernelPolicy", "RadialPolicy")
PROBLEMS = ("LinearQuadratic", "GaussianMixture", "DoubleIntegratorNavigation")


def objectives(problem: Problem, policy: Policy | None) -> torch.Tensor:
    """Of 300 paths on common noises."""
    with torch.no_grad():
        paths = rollout(problem, policy, 300, torch.Generator().manual_seed(7))
    return (paths.reward - problem.temperature * paths.kl).double()


@pytest.mark.parametrize("policy", CLASSES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_few_paths_lead_to_a_policy_that_does_no_harm(name, policy, request):
    """The default of 100 uncontrolled paths for up to 630 weights: J is at most 3 standard errors
    below no control's.
    """
    if (name, policy) == ("DoubleIntegratorNavigation", "RadialPolicy"):
        known = "loses 0.28 (s.e. 0.08) since heavy targets are cut off later"
        request.applymarker(pytest.mark.xfail(reason=known, strict=True))
    problem = make_problem(f"girsanov/{name}-v0")
    model = PDE(policy, problem, seed=0, device="cpu").learn(100 * problem.horizon)
    gain = objectives(problem, model.policy.control) - objectives(problem, None)
    assert torch.isfinite(gain).all()
    assert gain.mean() > -3 * gain.std() / math.sqrt(len(gain))
    if name == "LinearQuadratic":
        assert gain.mean() > 0.4  # of 1.12 that the optimum gains


def logged(folder: Path) -> dict[str, list[float]]:
    """What TensorBoard shows."""
    (run,) = folder.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_sobolev_error_is_logged_where_the_truth_is_known(tmp_path):
    """The energy norm of log f is that of controls: recomputed on the same paths, it is what the
    log says.
    """
    problem = LinearQuadratic.damped_rotation(2, steps=10)
    model = PDE(
        "PolynomialPolicy",
        problem,
        seed=0,
        device="cpu",
        n_uncontrolled=64,
        tensorboard_log=str(tmp_path),
    )
    model.learn(64 * 10)
    (error,) = logged(tmp_path)["pde/sobolev_error"]
    states, steps = model.rounds[0].states, range(10)
    off, size = (
        sum(float(gap(k, states[:, k]).double().square().sum()) for k in steps)
        for gap in (
            lambda k, x: model.policy.control(k, x) - problem.optimal_control(k, x),
            problem.optimal_control,
        )
    )
    assert error == pytest.approx(math.sqrt(off / size), rel=1e-4)
    assert 0 < error < 0.3


def test_the_sobolev_error_of_no_control_is_one_and_of_the_optimum_zero():
    problem = LinearQuadratic.damped_rotation(2, steps=10)
    with torch.no_grad():
        data = Replay.of(
            problem, Recording.of(rollout(problem, None, 100, torch.Generator().manual_seed(0)))
        )
    best = problem.optimal_control
    assert energy_error(data, 10, best, best) == 0.0
    assert energy_error(data, 10, lambda k, x: 0 * best(k, x), best) == pytest.approx(1.0)
    assert energy_error(data, 10, lambda k, x: 0.9 * best(k, x), best) == pytest.approx(
        0.1, rel=1e-5
    )


def test_no_sobolev_error_where_nobody_knows_the_truth(tmp_path):
    class Unknown(Problem):
        state_shape = noise_shape = (1,)
        horizon, temperature = 5, 1.0

        def initial(self, n, generator):
            return torch.randn(n, 1, generator=generator)

        def transition(self, k, x, z):
            return 0.9 * x + 0.3 * z

        def terminal_reward(self, x):
            return -(x[:, 0] - 1).square()

    PDE(
        "PolynomialPolicy",
        Unknown(),
        seed=0,
        device="cpu",
        n_uncontrolled=30,
        tensorboard_log=str(tmp_path),
    ).learn(150)
    tags = logged(tmp_path)
    assert "train/ridge" in tags and "pde/sobolev_error" not in tags


@pytest.mark.slow
def test_radial_bases_fit_recorded_paths_at_their_defaults():
    """At this size a pair of weight and slack that are both almost zero comes up; it once ended the
    fit.
    """
    problem = make_problem("girsanov/LinearQuadratic-v0")
    with torch.no_grad():
        paths = rollout(problem, None, 500, torch.Generator().manual_seed(1_000_003))
    model = PDE("RadialPolicy", problem, seed=0, device="cpu").fit(paths)
    gain = objectives(problem, model.policy.control) - objectives(problem, None)
    assert gain.mean() > 0.4
