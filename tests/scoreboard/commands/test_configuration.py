"""Settings of run and compare in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from girsanov.scoreboard.commands.configuration import expanded, schema
from girsanov.train import COMMANDS, compare, main, run

SETTINGS = {
    "about": "a note",
    "agents": ["ppo", "sac"],
    "envs": ["girsanov/GaussianMixture-v0"],
    "seeds": [0],
    "budget": {"amount": 8, "unit": "env_steps"},
    "plan": {"points": 2, "paths": 20},
    "env_kwargs": {"steps": 5},
    "agent_kwargs": {"ppo": {"n_envs": 4, "activation": "Tanh"}},
    "device": "cpu",
}


def test_a_file_becomes_a_command_line_that_can_be_added_to(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(SETTINGS))
    more = ["--budget", "16", "--agent-kwargs", "ppo.n_envs=2"]
    words = expanded(["compare", "--config", str(file), *more], COMMANDS)
    text = " ".join(words)
    assert "--budget 16" in text and text.count("--budget ") == 1
    assert "--agent-kwargs ppo.n_envs=4 ppo.activation='Tanh' ppo.n_envs=2" in text
    assert "--agents ppo sac" in text and "--budget-unit env_steps" in text
    assert "--points 2 --paths 20" in text and "a note" not in text


def test_yaml_says_the_same(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    for suffix, text in (("json", json.dumps(SETTINGS)), ("yaml", yaml.safe_dump(SETTINGS))):
        (tmp_path / f"c.{suffix}").write_text(text)
    first, second = (
        expanded(["compare", "--config", str(tmp_path / f"c.{suffix}")], COMMANDS)[3:]
        for suffix in ("json", "yaml")
    )
    assert sorted(first) == sorted(second)
    (tmp_path / "r.yaml").write_text("agent: pde\nagent_kwargs: {learning_rate: 1e-3}\n")
    words = expanded(["run", "--config", str(tmp_path / "r.yaml")], COMMANDS)
    assert "learning_rate=0.001" in words  # YAML 1.1 would have a string


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config must be a readable JSON file"),
        ("[]", "config must hold an object of settings"),
        ('{"agents": ["ppo"], "budgte": 3}', "holds 'budgte'; did you mean 'budget'?"),
        ('{"agent_kwargs": {"ppo": 3}}', "agent_kwargs must hold an object an agent"),
        ('{"env_kwargs": 3}', "env_kwargs must be an object; got 3"),
    ],
)
def test_bad_files_are_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(text)
    assert main(["compare", "--config", str(tmp_path / "c.json")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_schema_admits_good_files_and_refuses_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert main(["schema", "run"]) == 0
    assert json.loads(capsys.readouterr().out) == schema(run)
    good = {"agents": ["pde"], "seeds": [0, 1], "budget": 100, "agent_kwargs": {"pde": {}}}
    jsonschema.validate(good, schema(compare))
    jsonschema.validate(SETTINGS, schema(compare))
    for file in (Path(__file__).parents[3] / "benchmarks" / "configs").glob("*.json"):
        jsonschema.validate(json.loads(file.read_text()), schema(run))
    for bad in ({"seeds": ["a"]}, {"seed": 0}, {"budget_unit": "hours"}, {"agent_kwargs": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema(compare))
    described = schema(compare)["properties"]
    assert all(entry["description"] for entry in described.values())


def test_a_dry_run_tells_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(json.dumps(SETTINGS))
    out = tmp_path / "out"
    arguments = ["compare", "--config", str(tmp_path / "c.json"), "--out", str(out), "--dry-run"]
    assert main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("ppo/seed0: to do: 8 env_steps, 5 steps an episode")
    assert told[-1] == "2 of 2 runs to do" and not out.exists()
    assert main([*arguments, "--agent-kwargs", "sac.tua=1"]) == 2
    assert "unknown 'tua'; did you mean 'tau'?" in capsys.readouterr().err


def test_a_file_s_settings_of_agents_that_the_command_leaves_out_are_left_out(
    tmp_path: Path,
) -> None:
    file = tmp_path / "c.json"
    own = {"pde": {"draws": 2}, "ppo": {"n_envs": 4}, "pqo": {"n_envs": 4}}
    file.write_text(json.dumps({"agent_kwargs": own}))
    words = expanded(["compare", "--config", str(file), "--agents", "ppo", "sac"], COMMANDS)
    # what names no agent of the file is a mistake, and is told
    assert words[-3:] == ["--agent-kwargs", "ppo.n_envs=4", "pqo.n_envs=4"]
