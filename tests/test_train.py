"""The command line: what it prints, and one clear line for what can go wrong."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from girsanov.train import COMMANDS, compare, main, pairs, run

MIXTURE = "girsanov/GaussianMixture-v0"
SMALL = [
    "--points",
    "2",
    "--paths",
    "20",
    "--final-paths",
    "40",
    "--reference-paths",
    "256",
    "--device",
    "cpu",
]
PPO = ["--agent-kwargs", "n_envs=4", "batch_size=20", "n_epochs=1"]
RUN = [
    "run",
    "--env",
    MIXTURE,
    "--env-kwargs",
    "steps=5",
    "--agent",
    "ppo",
    *PPO,
    "--budget",
    "8",
    *SMALL,
]


def _replaced(arguments: list[str], flag: str, *values: str) -> list[str]:
    at = arguments.index(flag)
    end = next(
        (i for i in range(at + 1, len(arguments)) if arguments[i].startswith("--")), len(arguments)
    )
    return [*arguments[: at + 1], *values, *arguments[end:]]


def test_run_tells_which_class_pde_chose_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--agent-kwargs", "n_uncontrolled=16", "n_trajectories=8", "gradient_steps=2"]
    some = _replaced(_replaced(RUN, "--agent", "pde"), "--budget", "60")
    at = some.index("--agent-kwargs")
    arguments = [*some[:at], *few, *some[at + 1 + len(PPO) - 1 :], "--out", str(tmp_path)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "GaussianMixture-v0/pde/seed0/record.json").read_text())
    assert f"its function class: {record['choice']}" in told
    assert "residual" in record["choice"] and "no control: objective" in record["choice"]
    assert record["final"]["reward_queries"] == 60, "no more than the budget"


def test_run_writes_a_folder_and_prints_its_last_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*RUN, "--out", str(tmp_path)]
    assert main(arguments) == 0
    folder = tmp_path / "GaussianMixture-v0" / "ppo" / "seed0"
    names = {path.name for path in folder.iterdir()}
    assert {"spec.json", "progress.jsonl", "record.json", "model.zip", "samples.npy"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert f"{folder}: J " in capsys.readouterr().out
    record = json.loads((folder / "record.json").read_text())
    assert (
        record["spec"]["env_kwargs"] == {"steps": 5}
        and record["horizon"] == 5
        and record["final"]["reward_queries"] == 8
    )
    stamp = (folder / "record.json").stat().st_mtime_ns
    assert main(arguments) == 0  # finished: shown again, not run again
    assert (folder / "record.json").stat().st_mtime_ns == stamp

    capsys.readouterr()
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "PPO (1 seed)" in capsys.readouterr().out

    more = [
        *_replaced(RUN, "--agent-kwargs"),
        "--out",
        str(tmp_path / "more"),
        "--load",
        str(folder / "model.zip"),
    ]
    assert main(more) == 0
    rows = (
        (tmp_path / "more" / "GaussianMixture-v0" / "ppo" / "seed0" / "progress.jsonl")
        .read_text()
        .splitlines()
    )
    assert json.loads(rows[0])["env_steps"] == 0 and json.loads(rows[-1])["reward_queries"] == 8

    (tmp_path / "cut.zip").write_bytes((folder / "model.zip").read_bytes()[:2000])
    (tmp_path / "text.zip").write_text("not a zip")
    for bad in ("cut.zip", "text.zip", "absent.zip"):
        assert main([*more[:-1], str(tmp_path / bad), "--out", str(tmp_path / "bad")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and bad in error
    elsewhere = _replaced(_replaced(more, "--env", "girsanov/Pendulum-v0"), "--env-kwargs")
    assert main([*elsewhere, "--out", str(tmp_path / "bad")]) == 2
    assert (
        "error: load must name a checkpoint of PPO for this environment" in capsys.readouterr().err
    )
    assert not (tmp_path / "bad").exists()


def test_a_configuration_file_gives_defaults_that_the_command_line_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.json"
    plan = {
        "points": 2,
        "paths": 20,
        "final_paths": 40,
        "reference_paths": 256,
        "samples": 3,
        "reference_starts": 2,
    }
    agent_kwargs = {"n_envs": 4, "batch_size": 20, "n_epochs": 1}
    settings = {
        "env": MIXTURE,
        "agent": "ppo",
        "budget": {"amount": 8, "unit": "reward_queries"},
        "device": "cpu",
        "plan": plan,
    }
    config.write_text(
        json.dumps(
            {
                **settings,
                "env_kwargs": {"steps": 5, "temperature": 0.7},
                "agent_kwargs": agent_kwargs,
            }
        )
    )
    out = ["--out", str(tmp_path), "--env-kwargs", "temperature=0.9", "--seed", "3"]
    assert main(["run", "--config", str(config), *out]) == 0
    spec = json.loads(
        (tmp_path / "GaussianMixture-v0" / "ppo" / "seed3" / "record.json").read_text()
    )["spec"]
    assert (
        spec["env_kwargs"] == {"steps": 5, "temperature": 0.9}
        and spec["agent_kwargs"] == agent_kwargs
    )
    assert spec["plan"] == plan and spec["budget"] == {"amount": 8, "unit": "reward_queries"}
    config.write_text("{")
    assert main(["run", "--config", str(config), *out]) == 2
    assert "error: config must be a readable JSON file" in capsys.readouterr().err


def test_the_shipped_configuration_fine_tunes_the_shipped_text_to_image_model(
    tmp_path: Path,
) -> None:
    pytest.importorskip("diffusers")
    config = Path(__file__).parents[1] / "benchmarks" / "configs" / "latent_digits.json"
    few = [
        "--budget",
        "4",
        "--env-kwargs",
        "steps=2",
        "--agent-kwargs",
        "n_trajectories=2",
        *SMALL,
        "--out",
        str(tmp_path),
    ]
    assert main(["run", "--config", str(config), *few]) == 0
    record = json.loads(
        (tmp_path / "StableDiffusion-v0" / "pi-ft" / "seed0" / "record.json").read_text()
    )
    assert (
        record["final"]["reward_queries"] == 4
        and record["final"]["kl"] > 0
        and 0 <= record["final"]["success"] <= 1
    )
    assert record["spec"]["agent_kwargs"]["policy"] == "LoraPolicy" and record["horizon"] == 2


LACKING = """
from girsanov import Problem


class Lacking(Problem):
    state_shape = noise_shape = (1,)
    horizon, temperature = 2, 1.0

    def initial(self, n, generator):
        pass

    def terminal_reward(self, x):
        pass


def wanting(size):
    pass


def learner(env, size):
    pass
"""
BAD = {
    "unknown id": (
        {"--env": ["girsanov/X-v0"]},
        "env must be one of .*GaussianMixture-v0.*; got 'girsanov/X-v0'",
    ),
    "unknown agent": (
        {"--agent": ["dqn"]},
        r"agent must be one of \['adjoint-matching', .*'ppo', 'ppo-control', .*\].*; got 'dqn'",
    ),
    "no budget": (
        {"--budget": ["0"]},
        "budget must be a positive number of reward_queries; got 0.0",
    ),
    "negative temperature": (
        {"--env-kwargs": ["temperature=-1"]},
        "temperature must be a positive number; got -1",
    ),
    "temperature in words": (
        {"--env-kwargs": ["temperature=hot"]},
        "temperature must be a positive number; got 'hot'",
    ),
    "unknown argument": (
        {"--env-kwargs": ["colour=1"]},
        "env_kwargs of girsanov/GaussianMixture-v0 must be among ",
    ),
    "no pair": (
        {"--env-kwargs": ["temperature"]},
        "env-kwargs must be key=value pairs; got 'temperature'",
    ),
    "unknown agent argument": ({"--agent-kwargs": ["colour=1"]}, "agent_kwargs must suit ppo"),
    "no module": (
        {"--env": ["nowhere:make"]},
        "env must name module:attribute that can be imported",
    ),
    "no attribute": (
        {"--env": ["girsanov.envs:nothing"]},
        "env must name module:attribute that can be imported",
    ),
    "a problem that lacks a method": (
        {"--env": ["lacking:Lacking"]},
        r"env 'lacking:Lacking' must have all methods of a problem; it lacks \['transition'\]",
    ),
    "a problem that wants an argument": (
        {"--env": ["lacking:wanting"], "--env-kwargs": []},
        "env 'lacking:wanting' must be what makes a problem, here without env_kwargs .*'size'",
    ),
    "a problem as an agent": (
        {"--agent": ["lacking:Lacking"]},
        "agent 'lacking:Lacking' is a problem, not an agent: it can be an env",
    ),
    "an agent that wants an argument": (
        {"--agent": ["lacking:learner"], "--agent-kwargs": []},
        "agent 'lacking:learner' must make an algorithm or a policy of an environment, here"
        " without agent_kwargs .*'size'",
    ),
    "no problem": (
        {"--env": ["builtins:dict"]},
        "'builtins:dict' must be or return a girsanov Problem; got dict",
    ),
    "an agent that is none": (
        {"--agent": ["math:pi"]},
        "agent 'math:pi' must be an Agent or what makes one; got 3.14",
    ),
    "a device that is not there": (
        {"--device": ["cuda:99"]},
        "device 'cuda:99' was asked for, but torch finds",
    ),
    "one path": ({"--paths": ["1"]}, "paths must be an integer of at least 2; got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_no_trace(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lacking.py").write_text(LACKING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lacking", raising=False)
    changes, message = BAD[case]
    arguments = RUN
    for flag, values in changes.items():
        arguments = _replaced(arguments, flag, *values)
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    written = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", written), written  # and no empty progress bar
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "compare"])
def test_an_output_folder_that_cannot_be_written_to(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = (
        RUN if command == "run" else ["compare", "--envs", MIXTURE, "--agents", "ppo", *SMALL]
    )
    assert main([*arguments, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "error: out must be a folder that can be written to" in capsys.readouterr().err


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def few_bytes() -> None:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (40_000, 40_000)
        )  # room for the rows, not for the model

    command = [sys.executable, "-m", "girsanov.train", *RUN, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=few_bytes)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert not list(tmp_path.rglob("seed0"))


def test_nan_rewards_of_your_own_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes_nan.py").write_text(
        "from girsanov.envs import make_problem\n"
        "def make(steps):\n"
        "    problem = make_problem('girsanov/GaussianMixture-v0', steps=steps)\n"
        "    problem.reward = lambda x: (x[:, 0] - 1).sqrt() if len(x) > 2 else x[:, 0]\n"
        "    return problem\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main([*_replaced(RUN, "--env", "sometimes_nan:make"), "--out", "out"]) == 2
    assert (
        "error: GaussianMixture.terminal_reward(x) must return finite numbers; got "
        in capsys.readouterr().err
    )
    assert not list((tmp_path / "out").rglob("*"))


def test_an_agent_of_your_own_that_returns_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "returns_nothing.py").write_text("def make(env, **kwargs):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    arguments = [
        *_replaced(_replaced(RUN, "--agent", "returns_nothing:make"), "--agent-kwargs"),
        "--out",
        "out",
    ]
    assert main(arguments) == 2
    assert (
        "'returns_nothing:make' must return a stable-baselines3 algorithm or a policy; got None"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_compare_checks_agents_and_their_arguments_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = ["compare", "--envs", MIXTURE, "--out", str(tmp_path / "out")]
    assert main([*compare, "--agents", "ppo", "dqn"]) == 2
    assert "got 'dqn'" in capsys.readouterr().err
    assert main([*compare, "--agents", "pdee"]) == 2
    assert "got 'pdee'; did you mean 'pde'?" in capsys.readouterr().err
    assert main([*compare, "--agent-kwargs", "learning_rate=1"]) == 2
    assert (
        "agent-kwargs must be agent.key=value pairs; got 'learning_rate'" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_budget_of_few_rounds_is_told_before_it_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["compare", "--envs", MIXTURE, "--env-kwargs", "steps=5", "--dry-run"]
    small += ["--agents", "pde", "ppo", "--seeds", "0", "1", "--out", str(tmp_path / "out")]
    assert main([*small, "--budget", "200"]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("warning: 200 episodes are 3 rounds of pde")
    assert "Take 250 or more" in told
    for enough in (
        ["--budget", "201"],
        ["--budget", "1005", "--budget-unit", "env_steps"],
        ["--budget", "9", "--budget-unit", "seconds"],
        ["--budget", "200", "--agent-kwargs", "pde.n_trajectories=40"],
    ):
        assert main([*small, *enough]) == 0
        assert capsys.readouterr().err == ""
    few = ["policy=MlpPolicy", "n_uncontrolled=4", "gradient_steps=1"]
    words = [*RUN, "--agent-kwargs", *few, "--out", str(tmp_path)]
    assert main(_replaced(words, "--agent", "pde")) == 0
    assert "warning: 8 episodes are 2 rounds of pde" in capsys.readouterr().err
    assert main(["report", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.index("\nNote: 8 episodes are 2 rounds of pde") > told.index("\n| PDE (1 seed)")


def test_every_command_is_in_the_reference_and_no_list_of_agents_in_the_help() -> None:
    table = (Path(__file__).parents[1] / "docs/reference/scoreboard.md").read_text()
    for name in COMMANDS:
        assert f"`girsanov {name}" in table, name
    for command in (run, compare):
        assert "girsanov list" in (command.__doc__ or "")
        assert "adjoint-matching" not in (command.__doc__ or "")


def test_without_arguments_it_points_to_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "girsanov --help" in capsys.readouterr().err


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: out must hold finished runs")


def test_help_is_quick() -> None:
    script = Path(sys.modules["girsanov.train"].__file__ or "")
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--help']\ntry:"
        f" runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    code += (
        "except SystemExit: pass\nassert 'torch' not in sys.modules and 'stable_baselines3' not in"
        " sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("run", "compare", "report"))


def test_pairs_read_python_literals() -> None:
    assert pairs("x", ["a=1e-3", "b=[64,64]", "c=tanh", "d=k=v", "e=None"]) == {
        "a": 1e-3,
        "b": [64, 64],
        "c": "tanh",
        "d": "k=v",
        "e": None,
    }


def test_pretrain_refuses_what_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--path", str(tmp_path / "digits.bin"), "--device", "cpu"]) == 2
    assert "error: path must end in .safetensors" in capsys.readouterr().err
