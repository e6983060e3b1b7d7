"""One comparison over environments with settings of their own: the cells of a problem."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from finished_runs import run as _run

from girsanov import zoo
from girsanov.envs.env import problem_of
from girsanov.scoreboard.commands.configuration import expanded
from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.output.export import export
from girsanov.scoreboard.report import report
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan
from girsanov.scoreboard.storage import archive, cache
from girsanov.train import COMMANDS, main

MIXTURE, FEW = "girsanov/GaussianMixture-v0", {"n_envs": 4, "batch_size": 20, "n_epochs": 1}
#: Names as somebody would write them: dots, equals signs, commas, brackets, a percent sign.
SHORT, LONG = f"{MIXTURE}#steps=4, beta 0.5", f"{MIXTURE}#steps=12 [x], 50%"
SETTINGS: dict[str, Any] = {
    "agents": ["ppo", "ppo#fast"],
    "envs": [LONG, SHORT],
    "seeds": [0],
    "budget": 8,
    "env_kwargs": {SHORT: {"steps": 4, "temperature": 0.5}, LONG: {"steps": 12}},
    "agent_kwargs": {
        "ppo": FEW,
        "ppo#fast": FEW,
        f"ppo#fast @ {SHORT}": {"learning_rate": 0.01},
    },
    "plan": {"points": 2, "paths": 8, "final_paths": 16, "reference_paths": 64, "samples": 4},
    "device": "cpu",
}


def _comparison(out: Path, **changes: Any) -> Comparison:
    plan = EvaluationPlan(**SETTINGS["plan"])
    names = ("agents", "envs", "seeds", "env_kwargs", "agent_kwargs", "device")
    given = {name: SETTINGS[name] for name in names} | {"budget": Budget(8), "plan": plan}
    return Comparison(**{**given, "out": out, **changes})


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of two agents on two environments, and their report."""
    out = tmp_path_factory.mktemp("cells")
    for spec in _comparison(out).specs():
        execute(spec, out)
    report(out)
    return out


def test_each_environment_has_its_settings_and_its_folder(cells: Path) -> None:
    folders = {path.name for path in cells.iterdir() if path.is_dir()}
    assert folders == {name.removeprefix("girsanov/") for name in (SHORT, LONG)}
    runs = {(r["spec"]["env"], r["spec"]["agent"]): r for r in archive.finished(cells)}
    assert len(runs) == 4
    for (env, agent), record in runs.items():
        short = env == SHORT
        assert record["horizon"] == (4 if short else 12)
        assert record["spec"]["env_kwargs"] == SETTINGS["env_kwargs"][env]
        faster = {"learning_rate": 0.01} if short and agent == "ppo#fast" else {}
        assert record["spec"]["agent_kwargs"] == FEW | faster
    known = {name: record["reference"]["certificate"] for name, record in runs.items()}
    assert known[SHORT, "ppo"] == known[SHORT, "ppo#fast"] != known[LONG, "ppo"]


def test_the_report_tells_each_under_its_name(cells: Path) -> None:
    text = (cells / "report.md").read_text()
    heads = re.findall(r"^## (girsanov.*)", text, re.M)
    # numbers count as numbers: 4 before 12
    assert heads == [f"{MIXTURE}: steps=4, beta 0.5", f"{MIXTURE}: steps=12 \\[x\\], 50%"]
    assert "Temperature 0.5, 4 steps, steps=4, temperature=0.5." in text
    for name in (SHORT, LONG):
        path = f"{name.removeprefix('girsanov/')}/learning_curves.png"
        assert f"]({quote(path)})" in text and (cells / path).is_file()
    page = (cells / "report.html").read_text(encoding="utf-8")
    assert page.count('aria-label="learning curves"') == 2
    summary = json.loads((cells / "report.json").read_text())
    assert [env["env"] for env in summary["environments"]] == [SHORT, LONG]
    assert {line["tasks"] for line in summary["overall"]} <= {2}
    assert len(list((cells / SHORT.removeprefix("girsanov/") / "ppo").glob("events*"))) == 1


def test_a_table_for_other_programs_names_them(cells: Path, tmp_path: Path) -> None:
    with open(export(cells, tmp_path / "runs.csv"), newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert sorted((line["env"], json.loads(line["env_kwargs"])["steps"]) for line in lines) == [
        *[(LONG, 12)] * 2,
        *[(SHORT, 4)] * 2,
    ]


def test_a_learnt_agent_is_found_and_its_environment_made(cells: Path) -> None:
    agent = zoo.load(f"ppo/{SHORT.removeprefix('girsanov/')}", cells, device="cpu")
    problem = problem_of(agent.get_env())
    assert problem.horizon == 4 and problem.temperature == 0.5


def test_a_file_says_the_same_and_goes_on_from_an_archive(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "cells.json", tmp_path / "archived"
    file.write_text(json.dumps(SETTINGS))
    out.mkdir()
    archive.pack(cells, out)
    asked = ["compare", "--config", str(file), "--out", str(out)]
    before = sorted(tmp_path.rglob("*"))
    assert main([*asked, "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "0 of 4 runs to do" and all(t.endswith(": finished") for t in told[:-1])
    assert main([*asked, "--dry-run", "--seeds", "0", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "4 of 8 runs to do" and len([t for t in told if "12 steps an ep" in t]) == 2
    assert main([*asked, "--dry-run", "--budget", "16"]) == 2
    assert "holds a run with other settings (budget: " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written
    compare(_comparison(out), progress=False)  # nor is anything run
    for path in cells.rglob("record.json"):
        assert (out / path.relative_to(cells)).read_bytes() == path.read_bytes()
    assert not list(out.rglob("model.zip"))


def test_what_the_command_line_leaves_out_loses_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "cells.json"
    file.write_text(json.dumps(SETTINGS))
    words = expanded(["compare", "--config", str(file), "--envs", LONG], COMMANDS)
    assert not [word for word in words if SHORT in word]
    assert f"{LONG}.steps=12" in words and "ppo#fast.n_envs=4" in words
    words = expanded(["compare", "--config", str(file), "--agents", "ppo"], COMMANDS)
    assert not [word for word in words if "#fast" in word] and f"{SHORT}.steps=4" in words


def test_cells_share_the_reference_of_the_same_problem(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note of a name is not the problem's."""
    monkeypatch.setattr(
        "girsanov.scoreboard.storage.references.reference_of", lambda *_, **__: pytest.fail("anew")
    )
    assert list((cache.cache_folder() / "references").glob("*.json"))
    plain = _comparison(
        tmp_path, envs=[MIXTURE], env_kwargs={"steps": 12}, agents=["ppo"], agent_kwargs={}
    )
    from girsanov.scoreboard.registry import make_env
    from girsanov.scoreboard.runner import prepare_env

    (spec,) = plain.specs()
    reference = prepare_env(spec, make_env(spec.env, spec.env_kwargs, "cpu"), tmp_path)
    (there,) = cells.glob("*12*/reference.json")
    assert json.loads(there.read_text())["reference"] == reference.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"env_kwargs": {"steps": 4, SHORT: {"steps": 4}}},
            "env_kwargs must be arguments of every environment, or an object of them an"
            rf" environment, by its name; got both: \['steps'\] and \['{re.escape(SHORT)}'\]",
        ),
        (
            {"env_kwargs": {f"{MIXTURE}#beta": {"steps": 4}}},
            rf"for environments of this comparison, .*; got \['{MIXTURE}#beta'\]",
        ),
        ({"env_kwargs": {SHORT: 4}}, "env_kwargs of .*beta 0.5 must be a dict of arguments"),
        ({"env_kwargs": [SHORT]}, "env_kwargs must be a dict of arguments"),
        (
            {"agent_kwargs": {f"ppo @ {MIXTURE}": {}}},
            r"agent_kwargs must be for agents of this comparison, .*'AGENT @ ENVIRONMENT'; got",
        ),
        ({"envs": [f"{MIXTURE}#a/b", f"{MIXTURE}#a+b"], "env_kwargs": {}}, "would share"),
    ],
)
def test_the_door(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _comparison(tmp_path, **{"agent_kwargs": {}, **changes})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--env-kwargs", "steps=3"], "by its name; got both: ['steps'] and "),
        (["--env-kwargs", "ppo.steps=3"], "env-kwargs must be key=value pairs; got 'ppo.steps'"),
        (["--envs", SHORT, "--env-kwargs", f"{SHORT}.stps=3"], "got 'stps'; did you mean 'steps'?"),
        (["--envs", "girsanov/GaussianMixtre-v0#x"], "did you mean 'girsanov/GaussianMixture-v0'?"),
    ],
)
def test_the_command_lines_door(
    tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cells.json"
    file.write_text(json.dumps(SETTINGS))
    asked = ["compare", "--config", str(file), "--out", str(tmp_path / "out"), *more]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_flat_settings_are_of_every_environment(tmp_path: Path) -> None:
    flat = _comparison(tmp_path, env_kwargs={"steps": 4}, agent_kwargs={})
    assert [spec.env_kwargs for spec in flat.specs()] == [{"steps": 4}] * 4
    some = _comparison(tmp_path, env_kwargs={SHORT: {"steps": 4}}, agent_kwargs={})
    assert [spec.env_kwargs for spec in some.specs()] == [{}, {}, {"steps": 4}, {"steps": 4}]


def test_environments_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["d 2, beta 0.5", "d 2, beta 2", "d 8, beta 0.1", "d 32, beta 0.1"]
    for note in (names[i] for i in (3, 1, 0, 2)):
        _run(tmp_path, "ppo", 0, [0.0, 0.5, 0.9], 5.0, 200.0, (3,), f"girsanov/Fake-v0#{note}")
    heads = re.findall(r"^## girsanov/Fake-v0: (.*)", report(tmp_path).read_text(), re.M)
    assert heads == names
