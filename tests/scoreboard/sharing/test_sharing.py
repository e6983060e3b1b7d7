"""Trained agents for others: the zoo that ships, folders with a card, and the hub without one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from girsanov import from_hub, objective, push_to_hub, zoo
from girsanov.envs.env import problem_of
from girsanov.scoreboard.evaluation import policy_of
from girsanov.scoreboard.report import report
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.sharing import hub
from girsanov.scoreboard.sharing.card import card
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage import archive
from girsanov.train import main

NAMES = zoo.names()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two agents that learnt next to nothing."""
    folder = tmp_path_factory.mktemp("runs")
    plan = EvaluationPlan(2, 16, 16, 64, 8)
    settings: dict[str, dict[str, Any]] = {"ppo": {"n_envs": 4}, "pde": {"gradient_steps": 2}}
    for agent, own in settings.items():
        spec = RunSpec("girsanov/DoubleWell-v0", agent, 3, Budget(60), {}, own, "cpu", plan)
        execute(spec, folder, "train.py compare <b>", cache=False)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_agent_is_worth_what_its_record_says(name: str) -> None:
    final = zoo.record(name)["final"]
    agent = zoo.load(name, device="cpu")
    problem = problem_of(agent.get_env())
    torch.manual_seed(0)
    value = objective(
        problem, policy_of(agent, problem), 512, torch.Generator().manual_seed(1)
    ).objective
    error = (value.stderr**2 + final["objective_stderr"] ** 2) ** 0.5
    assert abs(value.mean - final["objective"]) < 4 * error
    assert final["score"] > 0.5  # it has learnt something worth shipping
    assert zoo.path(name).is_file()


def test_the_shipped_ones_are_several_and_small() -> None:
    assert len(NAMES) >= 6 and len({name.split("/")[0] for name in NAMES}) == 4
    sizes = [path.stat().st_size for path in zoo.SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 1_000_000


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match="name must be one of .*did you mean 'ppo/Gaussian"):
        zoo.load("ppo/GausianMixture-v0")


def test_a_packed_agent_is_the_same_and_goes_on(out: Path, tmp_path: Path) -> None:
    packed = hub.pack(out, tmp_path / "packed", optimizers=False)
    assert zoo.names(packed) == zoo.names(out) == ["pde/DoubleWell-v0", "ppo/DoubleWell-v0"]
    for name in zoo.names(out):
        assert zoo.record(name, packed) == zoo.record(name, out)
        ours, theirs = (zoo.load(name, folder, device="cpu") for folder in (out, packed))
        for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
            assert torch.equal(a, b)
        assert zoo.path(name, packed).stat().st_size < 0.6 * zoo.path(name, out).stat().st_size
        before = [p.clone() for p in theirs.policy.parameters()]
        theirs.learn(400, reset_num_timesteps=False)  # Adam begins anew
        after = list(theirs.policy.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_packed_folder_has_a_report(out: Path, tmp_path: Path) -> None:
    packed = hub.pack(out, tmp_path / "packed")
    assert "DoubleWell-v0" in report(packed, refine=False).read_text(encoding="utf-8")


def test_the_card_says_what_the_records_say(out: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    runs = archive.finished(out)
    text = card(runs, "me/agents")
    read = huggingface_hub.ModelCard(text)
    told = {
        (r.model_name if hasattr(r, "model_name") else "", r.metric_type): r.metric_value
        for r in read.data.eval_results or []
    }
    scores = {round(run["final"]["objective"], 9) for run in runs}
    assert {round(v, 9) for (_, kind), v in told.items() if kind == "objective"} <= scores
    assert "DoubleWell-v0" in read.data.tags and read.data.library_name == "girsanov"
    assert "train.py compare <b>" in text  # in a code span
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None and 'from_hub("me/agents", "agents")' in code[1]


class _Api:
    """As much of the hub as is used, in a folder."""

    def __init__(self, place: Path) -> None:
        self.place, self.said = place, list[Any]()

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
        self.said.append((repo, private, exist_ok))
        return f"https://hub/{repo}"

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
        shutil.copytree(folder_path, self.place / repo_id)


def test_what_is_pushed_is_fetched(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = _Api(tmp_path / "hub")

    def snapshot_download(repo: str, local_dir: Path, allow_patterns: list[str], **_: Any) -> None:
        for pattern in allow_patterns:
            for path in (api.place / repo).glob(pattern):
                target = local_dir / path.relative_to(api.place / repo)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)

    there = SimpleNamespace(HfApi=lambda token: api, snapshot_download=snapshot_download)
    monkeypatch.setattr(hub, "_hub", lambda: there)
    assert push_to_hub(out, "me/agents", private=True) == "https://hub/me/agents"
    assert api.said == [("me/agents", True, True)]
    fetched = from_hub("me/agents", tmp_path / "fetched")
    assert (fetched / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name")
    agent = zoo.load("ppo/DoubleWell-v0", fetched, device="cpu")
    assert agent.num_timesteps > 0
    assert main(["publish", "--out", str(out), "--repo", "me/again"]) == 0
    assert "pushed: https://hub/me/again" in capsys.readouterr().out


def test_the_real_hub_takes_these_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of arguments, where huggingface_hub is installed."""
    import inspect

    real = pytest.importorskip("huggingface_hub")
    for function, names in (
        (real.HfApi.create_repo, {"private", "exist_ok"}),
        (real.HfApi.upload_folder, {"repo_id", "folder_path", "commit_message"}),
        (real.snapshot_download, {"revision", "token", "local_dir", "allow_patterns"}),
    ):
        assert names <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["publish"], "to or repo must be given, one of them"),
        (["publish", "--out", "nowhere", "--to", "x"], "out must hold finished runs"),
        (["publish", "--repo", "agents"], "repo must be owner/name; got 'agents'"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_module_in_a_record_is_not_imported(out: Path, tmp_path: Path) -> None:
    packed = hub.pack(out, tmp_path / "packed")
    lines = (packed / archive.FILE).read_text(encoding="utf-8").splitlines()
    kept = []
    for line in map(json.loads, lines):
        if line["kind"] == "run" and line["spec"]["agent"] == "ppo":
            line["spec"]["env"] = "evil:make"
            kept.append(json.dumps(line) + "\n")
    (packed / archive.FILE).write_text("".join(kept), encoding="utf-8")
    shutil.move(packed / "DoubleWell-v0", packed / "evil.make")
    with pytest.raises(ValueError, match="env must be given: .* learnt 'evil:make'"):
        zoo.load("ppo/evil.make", packed)
