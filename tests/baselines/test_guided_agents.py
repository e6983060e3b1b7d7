"""Guided sampling in a comparison: nothing is learnt, samples are scored, costs are counted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.baselines.guided_agents import BestOfN, FeynmanKac, PosteriorGuidance
from girsanov.baselines.guided_sampling import best_of_n
from girsanov.envs import make_problem
from girsanov.scoreboard.animation import film_run
from girsanov.scoreboard.compare import Comparison
from girsanov.scoreboard.evaluation import evaluate, policy_of
from girsanov.scoreboard.report import report
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan

MIXTURE, STEPS = "girsanov/GaussianMixture-v0", 5


@pytest.fixture
def problem() -> Any:
    return make_problem(MIXTURE, steps=STEPS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_evaluation_is_the_samplers_own_and_counts_what_it_costs(problem: Any) -> None:
    agent = BestOfN(env=problem, candidates=3, device="cpu")
    found = evaluate(problem, policy_of(agent, problem), 64, seeded(), batch=64)
    wanted = best_of_n(problem, 64, seeded(), 3)
    assert torch.equal(found.states, wanted.states)
    assert found.value.objective == pytest.approx(wanted.objective(problem.temperature))
    assert found.sampling is not None
    # three candidates a step: a transition of each, and a guess of each but the finished ones'
    assert found.sampling.sampling_model_evaluations == 3 * STEPS + 3 * (STEPS - 1)
    assert found.sampling.sampling_reward_queries == 3 * STEPS
    assert found.sampling.sampling_cpu_seconds > 0
    assert evaluate(problem, None, 8, seeded()).sampling is None


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (BestOfN, {"candidates": 2, "selection_temperature": 0.0}),
        (FeynmanKac, {"particles": 2, "guidance": 0.5, "resample_below": 1.0}),
        (PosteriorGuidance, {"scale": 0.5, "bound": 2.0}),
    ],
)
def test_learning_is_nothing_and_settings_are_saved(
    problem: Any, kind: Any, settings: dict[str, float], tmp_path: Path
) -> None:
    agent = kind(env=problem, seed=3, device="cpu", **settings).learn(10_000)
    assert agent.num_timesteps == agent.reward_queries == 0
    again = kind.load(agent.save(tmp_path / "model.zip") or tmp_path / "model.zip", problem)
    assert {name: getattr(again, name) for name in settings} == settings
    drawn, known = (one.draw(problem, 16, seeded()) for one in (again, agent))
    assert torch.equal(drawn.states, known.states) and bool(drawn.kl.any())
    assert not agent.policy.control(0, problem.initial(4, seeded())).any()


def test_bad_settings_are_named(problem: Any) -> None:
    with pytest.raises(ValueError, match="candidates must be a whole number of at least 1; got 0"):
        BestOfN(env=problem, candidates=0)
    with pytest.raises(ValueError, match="selection_temperature must be at least 0; got -1"):
        BestOfN(env=problem, selection_temperature=-1.0)
    with pytest.raises(ValueError, match="guidance must be at least 0; got -1"):
        FeynmanKac(env=problem, guidance=-1.0)
    with pytest.raises(ValueError, match="scale must be at least 0"):
        PosteriorGuidance(env=problem, scale=-1.0)
    with pytest.raises(ValueError, match="value must be given for a problem without terminal_est"):
        BestOfN(env=make_problem("girsanov/Pendulum-v0"))


def test_a_comparison_holds_samplers_beside_learners(tmp_path: Path) -> None:
    """What is drawn stands in the table, is paid a sample, and does not end the others' budget."""
    plan = EvaluationPlan(points=3, paths=32, final_paths=200, reference_paths=500, samples=4)
    agents = ("ddpo", "best-of-n", "feynman-kac", "posterior-guidance")
    settings = {"env_kwargs": {"steps": STEPS}, "agent_kwargs": {"ddpo": {"n_trajectories": 20}}}
    asked = Comparison(agents, (MIXTURE,), (0,), Budget(80), tmp_path, plan=plan, **settings)
    for spec in asked.specs():
        final = execute(spec, tmp_path)["final"]
        assert (final["reward_queries"] == 80) == (spec.agent == "ddpo")
    text = report(tmp_path).read_text()
    assert "- Best of n: 36 model evaluations, 20 reward queries, " in text
    # a step of its own, and of the guess a step and an estimate, but of what is finished
    assert "- Posterior guidance: 14 model evaluations, 5 reward queries, " in text
    (line,) = (line for line in text.splitlines() if line.startswith("| Feynman-Kac particles (1"))
    assert "| 0 | 0 |" in line and "transition known" in line
    assert "| 80 reward queries |" in text
    with pytest.raises(ValueError, match="agent 'best-of-n' has no policy to film"):
        film_run(tmp_path / "GaussianMixture-v0" / "best-of-n" / "seed0")
