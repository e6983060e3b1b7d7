from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from girsanov.baselines.sb3 import make_ppo_control, make_sac_control
from girsanov.envs import make_problem
from girsanov.envs.certificates import Certificate, SuccessRate, certificate
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Estimate, Problem, objective
from girsanov.scoreboard.evaluation import (
    Reached,
    Reference,
    evaluate,
    policy_of,
    reference_of,
)
from girsanov.scoreboard.storage.references import cached_reference

MIXTURE = "girsanov/GaussianMixture-v0"


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(MIXTURE, steps=10)


@pytest.mark.parametrize("make", [make_ppo_control, make_sac_control])
def test_policy_is_what_the_model_predicts(make: Any, problem: Problem) -> None:
    model = make(
        ProblemEnv(problem, action_bound=0.7), seed=0, device="cpu", batch_size=160, n_envs=16
    )
    with torch.no_grad():  # away from zero, some beyond the bound
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    x = 3 * torch.randn(64, 2)
    seen = model.get_env().get_attr("observation")[0].of(problem)(4, x)
    wanted, _ = model.predict(seen.numpy(), deterministic=True)
    found = policy_of(model, problem)(4, x).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(found).max() > 0.3  # PPO's control is bounded smoothly, SAC's noise by 5


def test_evaluation_in_batches_is_the_objective(problem: Problem) -> None:
    def policy(k: int, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * torch.ones_like(x)

    found = evaluate(problem, policy, 3000, torch.Generator().manual_seed(0), batch=700)
    wanted = objective(problem, policy, 20_000, torch.Generator().manual_seed(1))
    assert found.states.shape == (3000, 2) and found.success is None
    assert found.value.kl.mean == pytest.approx(
        10 * 0.3**2, rel=1e-5
    )  # 10 steps of |a|^2 / 2 in two dimensions
    for part, other in zip(found.value, wanted, strict=True):
        assert abs(part.mean - other.mean) < 4 * np.hypot(part.stderr, other.stderr) + 1e-5


def _reference(
    j0: Estimate, bound: Estimate, ess: float = 500.0, optimum: float | None = None
) -> Reference:
    margin = 1.96 * bound.stderr
    made = Certificate(
        bound.mean, bound.stderr, bound.mean - margin, bound.mean + margin, ess, 1000
    )
    return Reference(j0, made, optimum, None, None)


def test_standard_error_of_the_score_by_simulation() -> None:
    j0, bound, j = Estimate(-4.0, 0.05), Estimate(-1.0, 0.08), Estimate(-1.5, 0.06)
    score = _reference(j0, bound).score(j)
    draw = np.random.default_rng(0).normal(size=(3, 400_000))
    low, high, value = (e.mean + e.stderr * w for e, w in zip((j0, bound, j), draw, strict=True))
    simulated = (value - low) / (high - low)
    assert score is not None
    assert score.mean == pytest.approx(2.5 / 3)
    assert score.stderr == pytest.approx(simulated.std(), rel=0.02)


def test_no_score_without_something_certain_to_measure_against() -> None:
    j0, bound = Estimate(-4.0, 0.05), Estimate(-1.0, 0.08)
    refused = _reference(j0, bound, ess=12.0)
    assert (
        refused.target is None
        and refused.score(j0) is None
        and refused.holds(Estimate(9.0, 0.1)) is None
    )
    exact = _reference(j0, bound, ess=12.0, optimum=-2.0)
    assert exact.score(Estimate(-2.0, 0.0)) == pytest.approx((1.0, 0.0))
    assert _reference(j0, Estimate(-3.9, 0.05)).score(j0) is None  # nothing to gain


def test_certificate_is_checked_with_both_standard_errors() -> None:
    reference = _reference(Estimate(-4.0, 0.05), Estimate(-1.0, 0.03))
    assert reference.holds(Estimate(-1.0 + 2.9 * 0.05, 0.04)) is True
    assert reference.holds(Estimate(-1.0 + 3.1 * 0.05, 0.04)) is False


def test_reference_of_the_mixture(problem: Problem) -> None:
    reference = reference_of(problem, 4096, closed_form_paths=2048)
    alone = certificate(problem, 4096, torch.Generator().manual_seed(5))
    spread = 4 * np.hypot(alone.stderr, reference.certificate.stderr)
    assert abs(reference.certificate.bound - alone.bound) < spread
    assert reference.optimum is None and reference.closed_form is not None
    closed = reference.score(reference.closed_form.objective)
    assert closed is not None and 0.8 < closed.mean < 1.0
    assert reference.holds(reference.closed_form.objective)
    assert Reference.from_json(reference.to_json()) == reference


def test_certificate_over_given_starts_is_the_target_and_no_lower_than_the_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make_problem("girsanov/LinearQuadratic-v0")
    monkeypatch.setattr("girsanov.scoreboard.evaluation._PATHS_OF_A_START", 512)
    reference = reference_of(problem, 2048, starts=64)
    assert (
        reference.by_start is not None
        and reference.by_start.starts == 64
        and reference.by_start.n == 64 * 512
    )
    assert Reference.from_json(reference.to_json()) == reference
    without = reference._replace(optimum=None)
    assert without.target == (reference.by_start.bound, reference.by_start.stderr)
    assert (
        without.holds(Estimate(reference.by_start.bound + 2.9 * reference.by_start.stderr, 0.0))
        is True
    )
    assert (
        without.holds(Estimate(reference.by_start.bound + 3.1 * reference.by_start.stderr, 0.0))
        is False
    )
    vague = without._replace(by_start=reference.by_start._replace(ess=12.0))
    assert vague.bound == reference.certificate


def test_exact_optimum_is_the_target_where_there_is_one() -> None:
    problem = make_problem("girsanov/LinearQuadratic-v0")
    reference = reference_of(problem, 2048)
    assert reference.optimum == pytest.approx(float(problem.optimal_objective()))  # type: ignore[attr-defined]
    assert reference.target == (reference.optimum, 0.0)
    assert reference.closed_form is not None
    score = reference.score(reference.closed_form.objective)
    assert score is not None and abs(score.mean - 1) < 4 * score.stderr


def test_reference_is_computed_once(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"env": MIXTURE, "env_kwargs": {"steps": 10}, "reference_paths": 512}
    path = tmp_path / "env" / "reference.json"
    first = cached_reference(problem, settings, path)
    monkeypatch.setattr(
        "girsanov.scoreboard.storage.references.reference_of", None
    )  # would raise if called again
    assert cached_reference(problem, settings, path) == first
    with pytest.raises(
        ValueError, match=r"reference\.json was computed with .* use another output folder"
    ):
        cached_reference(problem, {**settings, "reference_paths": 1024}, path)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", '{"settings": {}, "reference": {}}', '{"settings": {}, "reference": null}'],
)
def test_a_corrupt_reference_is_named(content: str, problem: Problem, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(content)
    with pytest.raises(
        ValueError,
        match=r".*reference\.json holds no reference; delete it, or use another output folder",
    ):
        cached_reference(problem, {}, path)


def test_success_is_reported_where_the_problem_defines_it(problem: Problem) -> None:
    class Right(type(problem)):  # type: ignore[misc]
        def success(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0] > 0

    right = make_problem(MIXTURE, steps=10)
    right.__class__ = Right
    reference = reference_of(right, 2048)
    assert reference.success is not None
    assert abs(reference.success.mean - 0.5) < 4 * reference.success.stderr
    best, closed = reference.success_at_bound, reference.closed_form_success
    assert best is not None and closed is not None
    assert 0.9 < closed.mean < best.low < best.mean < best.high <= 1  # the reward asks for a side
    assert Reference.from_json(reference.to_json()) == reference
    certificate = reference.certificate._replace(ess=12.0)
    assert reference._replace(certificate=certificate).success_at_bound is None


def test_success_at_the_bound_is_told_by_the_closest_bound_that_stands() -> None:
    reference = _reference(Estimate(-4.0, 0.05), Estimate(-1.0, 0.08))
    far, near = SuccessRate(0.9, 0.8, 0.95), SuccessRate(0.7, 0.6, 0.8)
    far_bound = reference.certificate._replace(success=far)
    closer = far_bound._replace(bound=-1.2, success=near, starts=4)
    both = reference._replace(certificate=far_bound, by_start=closer)
    assert both.success_at_bound == near
    assert both._replace(by_start=closer._replace(success=None)).success_at_bound == far
    refuted = both._replace(best=Reached("pde", Estimate(-0.9, 0.01)))  # more than -1.2
    assert refuted.success_at_bound == far
    assert reference.success_at_bound is None
