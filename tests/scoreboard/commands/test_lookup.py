"""Names and arguments: listed, shown, and guessed from what was mistyped."""

from __future__ import annotations

import inspect

import pytest

from girsanov import __version__
from girsanov.envs import PROBLEMS
from girsanov.scoreboard.commands.arguments import agent_arguments, env_arguments
from girsanov.scoreboard.commands.near import did_you_mean
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
    from girsanov.envs.robots.pendulum import Pendulum

    shell = {"action_bound", "actions", "observation"}
    assert set(env_arguments("girsanov/Pendulum-v0")) - shell == set(
        inspect.signature(Pendulum).parameters
    )
    own = agent_arguments("pde")
    names = set(inspect.signature(PDE).parameters) - {"env", "kwargs"}
    assert names < set(own) and "policy_kwargs" in own  # and those of the classes above
    assert own["gradient_steps"].default == "100" and own["gradient_steps"].about
    assert "model" not in env_arguments("girsanov/Hopper-v0")  # set by the class below
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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"girsanov {__version__}\n"
