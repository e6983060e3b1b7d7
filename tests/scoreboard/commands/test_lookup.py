"""Names and arguments: listed, shown, and guessed from what was mistyped."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from girsanov import __version__
from girsanov.envs import PROBLEMS
from girsanov.scoreboard.commands import listing
from girsanov.scoreboard.commands.arguments import agent_arguments, agent_class, env_arguments
from girsanov.scoreboard.commands.suggestions import did_you_mean
from girsanov.scoreboard.registry import AGENTS
from girsanov.train import main


def test_every_name_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in [*PROBLEMS, *AGENTS]:
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert len(line.split()) > 3, line
    assert any('pip install -e ".[mujoco]"' in line or "[mujoco]" in line for line in lines)


def test_arguments_are_those_of_the_signature() -> None:
    from girsanov.agents import PDE
    from girsanov.agents.pde.settings import GROUPS
    from girsanov.envs.robots.pendulum import Pendulum

    shell = {"action_bound", "actions", "observation"}
    assert set(env_arguments("girsanov/Pendulum-v0")) - shell == set(
        inspect.signature(Pendulum).parameters
    )
    own = agent_arguments("pde")
    names = set(inspect.signature(PDE).parameters) - {"env", "kwargs"} - set(GROUPS)
    # each setting of a group, and no None in the place of all of them
    assert own["averaging"].default == "0.9" and own["averaging"].about
    assert (
        names < set(own) and not set(GROUPS) & set(own) and "policy_kwargs" in own
    )  # and those of the classes above
    assert own["gradient_steps"].default == "100" and own["gradient_steps"].about
    assert "model" not in env_arguments("girsanov/Hopper-v0")  # set by the class below
    assert env_arguments("girsanov/Digits-v0")["beta_end"].default == "0.02"  # of the schedule
    assert "train_steps" in env_arguments("girsanov/GaussianMixture-v0")
    assert "dtype" not in env_arguments("girsanov/Digits-v0")  # of the class, not of the function
    assert "spread" in env_arguments("girsanov/Hopper-v0")  # passed on to the class above


def test_tuned_defaults_are_shown() -> None:
    from girsanov.baselines.hyperparameters import PPO

    shown = agent_arguments("ppo")
    assert shown["learning_rate"].default == repr(PPO["default"]["learning_rate"])
    assert shown["n_envs"].default == repr(PPO["default"]["n_envs"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("pift", "pi-ft"),
        ("Digit-v0", "girsanov/Digits-v0"),
        ("girsanov/pendulum-v0", "girsanov/Pendulum-v0"),
        ("zzz", None),
    ],
)
def test_what_was_meant(given: str, meant: str | None) -> None:
    expected = "" if meant is None else f"; did you mean {meant!r}?"
    assert did_you_mean(given, [*PROBLEMS, *AGENTS]) == expected


def test_show_takes_short_names_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "Digits"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("girsanov/Digits-v0: ") and "temperature = 0.3" in out
    assert main(["show", "Digitz"]) == 2
    assert "did you mean 'girsanov/Digits-v0'?" in capsys.readouterr().err


def test_every_sentence_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "An Ornstein-Uhlenbeck process with quadratic rewards" in capsys.readouterr().out
    for name, make in {**PROBLEMS, **AGENTS}.items():
        about = listing._sentence(agent_class(name) if name in AGENTS else make.load())
        first = about.split()[0]
        assert "_" not in first and "=" not in about.partition(",")[0], (name, about)
        assert first[0].isupper() and "the module" not in about, (name, about)


OWN = """
from girsanov import Problem


class Wind(Problem):
    '''A balloon in the wind.

    Args:
        gusts: how strong they are.
    '''

    def __init__(self, gusts=0.5):
        pass


class Calm(Wind):
    def __init__(self):
        pass


def storm(gusts=3.0):
    return Wind(gusts)


def make(environment, seed, width=64):
    '''A learner of my own.'''
"""


@pytest.mark.parametrize(
    ("name", "shown", "how"),
    [
        ("Wind", "wind:Wind: A balloon in the wind.", "--env wind:Wind --env-kwargs"),
        ("Calm", "(no arguments are known)", "--env wind:Calm --env-kwargs"),
        ("storm", "gusts = 3.0", "--env wind:storm --env-kwargs"),
        ("make", "width = 64", "--agent wind:make --agent-kwargs"),
    ],
)
def test_your_own_is_shown(
    name: str,
    shown: str,
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "wind.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wind", raising=False)
    assert main(["show", f"wind:{name}"]) == 0
    told = capsys.readouterr().out
    assert shown in told and told.rstrip().endswith(f"girsanov run {how} name=value ...")
    assert "environment" not in told and "seed" not in told
    if name == "Wind":
        assert "gusts = 0.5  how strong they are." in told
    assert main(["show", f"wind:{name}x"]) == 2
    assert "must name module:attribute that can be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "given", "told"),
    [
        ("girsanov/Digits-v0", "temprature=0.3", "did you mean 'temperature'?"),
        ("girsanov/Digits-v0", "zzz=1", "reward, checkpoint, beta_schedule, "),
        ("girsanov/Pendulum-v0", "temprature=0.3", "did you mean 'temperature'?"),
        ("wind:Wind", "gust=1", "must be among gusts, action_bound, actions, observation; got"),
        ("wind:Wind", "action_bond=1", "did you mean 'action_bound'?"),
        ("wind:Calm", "gusts=1", "must be among action_bound, actions, observation; got 'gusts'"),
        ("wind:storm", "gust=1", "got 'gust'; did you mean 'gusts'?"),
    ],
)
def test_an_unknown_argument_of_an_environment_is_named_at_the_door(
    env: str,
    given: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = "from girsanov.envs.known_optimum.double_well import DoubleWell as Problem"
    (tmp_path / "wind.py").write_text(OWN.replace("from girsanov import Problem", whole))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wind", raising=False)
    asked = ["run", "--env", env, "--agent", "pde", "--out", str(tmp_path / "out")]
    assert main([*asked, "--env-kwargs", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: env_kwargs of {env} must be among ") and told in line
    assert "unexpected keyword" not in line and not (tmp_path / "out").exists()


def test_what_can_not_be_read_is_told_in_pythons_words() -> None:
    from girsanov.scoreboard.commands.arguments import unknown_of_env

    refused = TypeError("f() got an unexpected keyword argument 'steps'")
    assert unknown_of_env("girsanov/Digits-v0", dict, {"steps": 1}, refused) == ""  # it is known
    assert unknown_of_env("girsanov/Digits-v0", dict, {"x": 1}, TypeError("no number")) == ""
    assert unknown_of_env("a:b", dict, {"steps": 1}, refused) == ""  # which has no signature


def test_what_it_says_to_type_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, program in (("/x/bin/girsanov", "girsanov"), ("train.py", "python train.py")):
        monkeypatch.setattr(sys, "argv", [typed])
        how = f"{program} run --agent pde --agent-kwargs name=value ..."
        assert listing.one("pde").endswith("\n" + how)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"girsanov {__version__}\n"
