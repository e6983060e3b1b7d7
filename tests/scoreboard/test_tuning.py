"""The tuner: the default first, the same for all, kept as it goes, and never on reported seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from girsanov.scoreboard.registry import AGENTS
from girsanov.scoreboard.spec import Budget
from girsanov.scoreboard.tuning.spaces import ADAPTERS, SPACES, Choice, Log, searched
from girsanov.scoreboard.tuning.study import FLOOR, Tuning, open_study, spread, tune
from girsanov.scoreboard.tuning.summary import importances, write

pytest.importorskip("optuna")


def small(agent: str, trials: int) -> Tuning:
    return Tuning(
        agent,
        "girsanov/GaussianMixture-v0",
        ({"steps": 4, "temperature": 1.0},),
        budget=Budget(40),
        trials=trials,
        paths=64,
        reference_paths=2000,
    )


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    first = tune(small("ppo", 2), tmp_path, said.append)
    values = [trial.value for trial in first.trials]
    assert len(said) == 2 and first.trials[0].user_attrs["settings"] == {}  # the default
    second = tune(small("ppo", 4), tmp_path, said.append)
    assert len(said) == 4 and [trial.value for trial in second.trials][:2] == values
    tune(small("ppo", 4), tmp_path, said.append)
    assert len(said) == 4  # nothing is missing
    reopened = open_study(small("ppo", 4).name, tmp_path)
    chosen = reopened.trials[3].user_attrs["settings"]
    assert chosen.keys() == SPACES["ppo"].keys()
    assert reopened.best_value == max(trial.value for trial in reopened.trials)


def test_what_is_held_is_in_every_trial_and_not_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: two studies of one agent, a note in the name of the second."""
    from girsanov import train

    asked = ["tune", "--env", "girsanov/GaussianMixture-v0", "--env-kwargs", "steps=4", "--agents"]
    held = ["--agent-kwargs", "ddpo#wide.policy_kwargs={'hidden': [8]}", "ddpo#wide.batch_size=16"]
    sizes = ["--budget", "40", "--trials", "2", "--paths", "64", "--reference-paths", "2000"]
    assert train.main([*asked, "ddpo", "ddpo#wide", *held, *sizes, "--out", str(tmp_path)]) == 0
    plain, wide = (
        open_study(f"GaussianMixture-v0-{name}", tmp_path) for name in ("ddpo", "ddpo#wide")
    )
    given = {"policy_kwargs": {"hidden": [8]}, "batch_size": 16}
    assert [trial.user_attrs["settings"] for trial in plain.trials][0] == {}
    assert wide.trials[0].user_attrs["settings"] == given
    second = wide.trials[1]
    assert second.user_attrs["settings"] == {**second.user_attrs["settings"], **given}
    assert second.user_attrs["settings"].keys() == SPACES["ddpo"].keys()
    assert second.params.keys() == SPACES["ddpo"].keys() - given.keys()
    parts = (tmp_path / "report.md").read_text().split("\n## ")
    (study,) = (part for part in parts if part.startswith("GaussianMixture-v0-ddpo#wide"))
    assert "Held: `policy_kwargs={'hidden': [8]}`, `batch_size=16`." in study
    assert "- `learning_rate`" in study and "- `batch_size`" not in study
    assert train.main([*asked, "ddpo", *held, "--out", str(tmp_path)]) == 2
    assert "agent_kwargs must be for one of ('ddpo',); got ['ddpo#wide']" in capsys.readouterr().err


def test_minutes_end_a_study_too(tmp_path: Path) -> None:
    tuning = Tuning(**{**vars(small("ppo", 50)), "minutes": 1e-6})
    assert len(tune(tuning, tmp_path, lambda _: None).trials) == 1


def test_a_wreck_counts_as_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wreck = {"learning_rate": Choice((1e30,))}
    monkeypatch.setitem(SPACES, "pde", wreck)
    study = tune(small("pde", 2), tmp_path, lambda _: None)
    assert study.trials[1].value == FLOOR < study.trials[0].value


def test_every_agent_of_the_comparison_has_a_space_and_the_default_is_inside() -> None:
    drawn = {"best-of-n", "feynman-kac", "posterior-guidance"}  # without training
    own = {"pde-mou", "pi-ft-algorithm1"}  # to the letter of their papers
    control = {"ppo-control", "sac-control"}  # by an older search
    assert SPACES.keys() == AGENTS.keys() - drawn - own - control
    for space in SPACES.values():
        for setting in space.values():
            assert str(setting) and isinstance(setting, (Choice, Log))


def test_the_first_draws_are_spread_evenly() -> None:
    """Halves, then quarters, in every direction by another prime: no two alike."""
    space = {"rate": Log(1e-4, 1e-2), "size": Choice(("small", "middle", "large"))}
    points = [spread(space, number) for number in (1, 2, 3)]
    assert [point["size"] for point in points] == [1, 2, 0]
    for point, rate in zip(points, (1e-3, 10**-3.5, 10**-2.5), strict=True):
        assert point["rate"] == pytest.approx(rate)


def test_adapters_have_steps_of_their_own() -> None:
    for agent in ("pi-ft", "dpok", "ddpo", "grpo", "adjoint-matching", "draft", "log-variance"):
        plain, adapted = searched(agent, {}), searched(f"{agent}#lora", {"policy": "LoraPolicy"})
        assert adapted.keys() == plain.keys() - {"policy_kwargs"}
        assert adapted["learning_rate"] == ADAPTERS["learning_rate"] != plain["learning_rate"]
        assert "learning_rate" not in searched(agent, {"learning_rate": 1e-3})


def test_bad_studies_are_named() -> None:
    with pytest.raises(ValueError, match="agent must be one of .*'ppo'.*; got 'nobody'"):
        Tuning("nobody", "girsanov/GaussianMixture-v0")
    with pytest.raises(ValueError, match="trials at least 1"):
        Tuning("ppo", "girsanov/GaussianMixture-v0", trials=0)


def test_the_summary_tells_default_best_and_what_mattered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out must hold studies with trials; got none"):
        write(tmp_path)
    study = tune(small("ppo", 10), tmp_path, lambda _: None)
    (tmp_path / "by_hand.jsonl").write_text('{"agent": "ppo", "score": 0.5}\n')  # no study's
    text = write(tmp_path).read_text()
    values = [trial.value for trial in study.trials]
    assert f"| {values[0]:.3f} | {max(values):.3f} |" in text
    shares = importances(open_study(small("ppo", 10).name, tmp_path))
    assert shares.keys() == SPACES["ppo"].keys() and abs(sum(shares.values()) - 1) < 1e-6
    assert (tmp_path / "importance.png").stat().st_size > 5000
