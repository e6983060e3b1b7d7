import json
from pathlib import Path

import numpy as np
import pytest

from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec, Spent, slug

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"


@pytest.mark.parametrize(
    ("unit", "wanted"), [("env_steps", 0.5), ("reward_queries", 0.1), ("seconds", 0.025)]
)
def test_each_unit_counts_its_own_cost(unit: str, wanted: float) -> None:
    assert Budget(100, unit).fraction(Spent(50, 10, 2.5)) == pytest.approx(wanted)


def test_steps_that_a_budget_buys() -> None:
    assert Budget(7, "reward_queries").timesteps(50) == 350
    assert (
        Budget(7, "reward_queries").timesteps(50, lanes=4) == 400
    )  # lanes end together: two rounds of four
    assert Budget(99.5, "env_steps").timesteps(50) == 100
    assert Budget(1, "seconds").timesteps(50) > 1e9


@pytest.mark.parametrize("amount", [0, -1, float("nan"), float("inf"), "3"])
def test_a_budget_must_be_positive(amount: float) -> None:
    with pytest.raises(ValueError, match="budget must be a positive number of reward_queries; got"):
        Budget(amount)


def test_a_budget_must_have_a_known_unit() -> None:
    with pytest.raises(ValueError, match="budget unit must be one of"):
        Budget(1, "hours")


def test_spec_survives_json_and_names_its_folder() -> None:
    spec = RunSpec(
        "a/B-v0",
        "m:make",
        3,
        Budget(5, "seconds"),
        {"steps": 7},
        {"net_arch": [8]},
        "cpu",
        EvaluationPlan(points=2),
    )
    assert RunSpec.from_json(spec.to_json()) == spec
    assert spec.folder(Path("o")) == Path("o/a+B-v0/m.make/seed3")
    assert slug("my_problem:make") == "my_problem.make"
    assert slug("girsanov/X-v0") == "X-v0" and slug("a/X") == slug("a\\X") == "a+X"
    assert len({slug(name) for name in ("girsanov/X", "a/X", "b/X", "a:X")}) == 4


def test_evaluation_points_begin_at_zero_and_stop_before_the_end() -> None:
    fractions = EvaluationPlan(points=15).fractions()
    assert len(fractions) == 15 and fractions[0] == 0 and fractions[-1] < 1
    assert (np.diff(fractions) > 0).all()
    with pytest.raises(ValueError, match="paths must be an integer of at least 2; got 1"):
        EvaluationPlan(paths=1)
    with pytest.raises(ValueError, match=r"points must be an integer of at least 1; got 2\.5"):
        EvaluationPlan(points=2.5)  # type: ignore[arg-type]


def test_a_configuration_file_is_a_spec(tmp_path: Path) -> None:
    spec = RunSpec(
        "a/B-v0",
        "m:make",
        3,
        Budget(5, "seconds"),
        {"steps": 7},
        {"rate": 1e-3},
        "cpu",
        EvaluationPlan(points=2),
    )
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"about": "words", **spec.to_json()}))
    assert RunSpec.read(path) == spec
    path.write_text(json.dumps({"env": "a/B-v0", "agent": "ppo", "budget": {"amount": 7}}))
    assert RunSpec.read(path) == RunSpec("a/B-v0", "ppo", budget=Budget(7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config must be a readable JSON file"),
        ("{", "config must be a readable JSON file"),
        ("[1]", r"config must hold a JSON object of settings; '.*c.json' holds \[1\]"),
        ("null", "config must hold a JSON object of settings; '.*c.json' holds None"),
        ('{"agent": "ppo"}', "config must hold the settings of a run.*'env'"),
        (
            '{"env": "a", "agent": "b", "colour": 1}',
            "config must hold the settings of a run.*colour",
        ),
        (
            '{"env": "a", "agent": "b", "env_kwargs": "steps=4"}',
            "config must hold the .*env_kwargs must be an object",
        ),
        (
            '{"env": "a", "agent": "b", "seed": "x"}',
            "config must hold the .*seed must be an integer; got 'x'",
        ),
        (
            '{"env": "a", "agent": "b", "budget": {"hours": 1}}',
            "config must hold the settings of a run.*hours",
        ),
        (
            '{"env": "a", "agent": "b", "budget": {"amount": -1}}',
            "budget must be a positive number",
        ),
    ],
)
def test_a_bad_configuration_file_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        RunSpec.read(path)


def test_the_paper_s_table_of_hyperparameters() -> None:
    """Han, Razaviyayn and Xu (2025), section 5, number by number."""
    spec = RunSpec.read(CONFIGS / "stable_diffusion_v1_5.json")
    env, agent = spec.env_kwargs, spec.agent_kwargs
    assert spec.env == "girsanov/StableDiffusion-v0" and spec.agent == "pi-ft"
    assert (
        env["model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        and env["reward"] == "image-reward"
    )
    assert env["prompts"] == "Four wolves in the park" and agent["policy"] == "LoraPolicy"
    assert (env["temperature"], env["guidance_scale"], env["steps"], env["eta"]) == (
        0.01,
        7.5,
        50,
        1.0,
    )
    assert (
        agent["policy_kwargs"]["rank"] == 4
        and agent["learning_rate"] == 3e-4
        and agent["n_trajectories"] == 10
    )
    assert (
        spec.budget.unit == "reward_queries"
        and spec.budget.amount / agent["n_trajectories"] == 1000
    )  # gradient steps
