"""Whole comparisons in processes of their own: killed, continued, failing."""

import errno
import importlib
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.engines import local
from girsanov.scoreboard.engines.local import threads_of
from girsanov.scoreboard.engines.ray_cluster import RayCluster
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
from girsanov.scoreboard.storage.checkpoints import Checkpoints
from girsanov.scoreboard.storage.records import cores

PROBLEM = """
import torch
from girsanov.envs.problem import Problem


class Walk(Problem):
    state_shape = noise_shape = (1,)

    def __init__(self, horizon=4, bad=False):
        self.horizon, self.temperature, self.bad = horizon, 1.0, bad
        self.scale = torch.ones(1)

    def initial(self, n, generator):
        return torch.zeros(n, 1, device=generator.device)

    def transition(self, k, x, z):
        return x + z

    def terminal_reward(self, x):
        return -(x[:, 0] - 2).abs()


def agent(env, seed, device, wait=0.0, crash=False):
    from girsanov.baselines.sb3 import make_ppo
    if crash:
        raise RuntimeError("as it was told")
    model = make_ppo(env, seed=seed, device="cpu", n_envs=4, batch_size=16, n_epochs=1)
    train = model.train

    def slow():
        import time
        time.sleep(wait)
        train()

    model.train = slow
    model.save = lambda path: open(path, "wb").write(b"a model")
    return model
"""
PLAN = EvaluationPlan(points=2, paths=8, final_paths=16, reference_paths=256, samples=4)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def _comparison(out: Path, **changes: object) -> Comparison:
    settings = {
        "agents": ("mine:agent",),
        "envs": ("mine:Walk",),
        "seeds": (0,),
        "budget": Budget(12),
        "plan": PLAN,
        "out": out,
    }
    return Comparison(**{**settings, **changes})  # type: ignore[arg-type]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _wait(condition: object, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="finds child processes as Linux shows them"
)
def test_killed_and_continued(mine: Path) -> None:
    out = mine / "out"
    arguments = [
        "compare",
        "--agents",
        "mine:agent",
        "--envs",
        "mine:Walk",
        "--seeds",
        "0",
        "1",
        "--budget",
        "12",
    ]
    arguments += ["--out", str(out), "--workers", "1", "--agent-kwargs", "mine:agent.wait=0.3"]
    arguments += [
        "--points",
        "2",
        "--paths",
        "8",
        "--final-paths",
        "16",
        "--reference-paths",
        "256",
    ]
    command = [sys.executable, "-m", "girsanov.train", *arguments]
    runs = [out / "mine.Walk" / "mine.agent" / f"seed{seed}" for seed in range(2)]

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # the second run has begun to learn: it is cut off between its first and its last row
    _wait(
        lambda: (
            (runs[1] / "progress.jsonl").is_file()
            and (runs[1] / "progress.jsonl").stat().st_size > 0
        )
    )
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    _wait(lambda: not any(_alive(pid) for pid in workers), 30.0)  # no orphan goes on writing
    first = (runs[0] / "record.json").stat().st_mtime_ns
    assert not (runs[1] / "record.json").exists() and not (out / "report.md").exists()
    reference = (out / "mine.Walk" / "reference.json").stat().st_mtime_ns

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (runs[0] / "record.json").stat().st_mtime_ns == first
    assert (out / "mine.Walk" / "reference.json").stat().st_mtime_ns == reference
    for run in runs:
        rows = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
        assert [row["reward_queries"] for row in rows] == sorted(
            {row["reward_queries"] for row in rows[:-1]} | {12}
        )
        assert rows[-1] == json.loads((run / "record.json").read_text())["final"]
        # the curves and the hyperparameters of one run, or those of one that went on
        assert len(list(run.glob("events*"))) in (2, 3)
        assert (run / "model.zip").is_file() and (run / "samples.npy").is_file()
    assert "mine:agent (2 seeds)" in (out / "report.md").read_text()

    stamps = [(run / "record.json").stat().st_mtime_ns for run in runs]
    compare(
        _comparison(
            out, seeds=(0, 1), agent_kwargs={"mine:agent": {"wait": 0.3}}, plan=_plan_of(runs[0])
        ),
        progress=False,
    )
    assert [
        (run / "record.json").stat().st_mtime_ns for run in runs
    ] == stamps  # all finished: nothing to do


def _plan_of(run: Path) -> EvaluationPlan:
    return EvaluationPlan(**json.loads((run / "spec.json").read_text())["plan"])


def test_one_failure_does_not_stop_the_others(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (mine / "broken.py").write_text(
        "from mine import agent as works\ndef make(env, **kw): return works(env, crash=True,"
        " **kw)\n"
    )
    out = mine / "out"
    with pytest.raises(
        ValueError,
        match=r"1 of 2 runs failed; the first: .*broken\.make/seed0: RuntimeError: as it was told",
    ):
        compare(_comparison(out, agents=("broken:make", "mine:agent"), workers=2), progress=False)
    failed, worked = (out / "mine.Walk" / name / "seed0" for name in ("broken.make", "mine.agent"))
    threads = json.loads((worked / "record.json").read_text())["threads"]
    assert threads == max(1, cores() // 2)  # two workers
    assert [p.name for p in failed.iterdir()] == ["error.txt"]
    assert "Traceback" in (failed / "error.txt").read_text()


def test_other_settings_are_refused_before_anything_runs(mine: Path) -> None:
    out = mine / "out"
    spec = _comparison(out).specs()[0]
    folder = spec.folder(out)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({**spec.to_json(), "seed": 5}))
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        compare(_comparison(out, seeds=(1, 0)), progress=False)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agents": ()}, "agents must hold at least one"),
        ({"seeds": (1, 1)}, "seeds must hold at least one name, each once"),
        ({"workers": 0}, "workers must be a whole number of at least 1"),
        ({"agent_kwargs": {"ppo": {}}}, "agent_kwargs must be for agents of this comparison"),
    ],
)
def test_comparison_is_checked_at_the_door(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        _comparison(tmp_path, **changes)


def test_settings_of_all_runs_are_tried_before_the_first(mine: Path) -> None:
    out = mine / "out"
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        compare(
            _comparison(
                out,
                agents=("mine:agent", "pde"),
                agent_kwargs={"pde": {"learning_rte": 1e-3}},
            ),
            progress=False,
        )
    assert not list(out.rglob("*seed*"))
    with pytest.raises(ValueError, match=r"agent_kwargs must suit mine:agent.*'wiat'"):
        compare(_comparison(out, agent_kwargs={"mine:agent": {"wiat": 1}}), progress=False)


def test_two_names_of_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a\.X' and 'a:X' would share 'a\.X'"):
        _comparison(tmp_path, envs=("a.X", "a:X"))


def test_a_failure_shows_in_the_bar_and_in_the_report(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from girsanov.train import main

    (mine / "grim.py").write_text(
        "def make(env, **kw): raise RuntimeError('gr\\u00fcn')\n", encoding="utf-8"
    )
    arguments = ["compare", "--agents", "grim:make", "mine:agent", "--envs", "mine:Walk"]
    arguments += ["--seeds", "0", "--budget", "12", "--points", "2", "--paths", "8"]
    arguments += ["--final-paths", "16", "--reference-paths", "256", "--out", "out"]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert (
        "1 of 2 runs failed" in told.err and "1 failed" in told.err and "runs: 100%" not in told.err
    )
    report = (mine / "out" / "report.md").read_text("utf-8")
    assert "mine:agent (1 seed)" in report
    assert "- mine.Walk/grim.make/seed0: RuntimeError: grün" in report
    assert "**Failed** (the same command tries again" in report and "Not finished" not in report
    error = (mine / "out" / "mine.Walk" / "grim.make" / "seed0" / "error.txt").read_text("utf-8")
    assert "grün" in error


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 6)
    for asked, wanted in (("", [6, 3, 1]), ("2", [2, 2, 1]), ("4,2", [4, 3, 1]), ("x", [6, 3, 1])):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert [threads_of(workers) for workers in (1, 2, 9)] == wanted


def test_a_word_that_the_locale_has_not_fails_one_run_alone(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a worker that succeeds has said is kept."""
    (mine / "stutters.py").write_text(
        "import warnings\nfrom mine import agent as works\n"
        "def make(env, **kw): raise RuntimeError('gr\\u00fcn')\n"
        "def warns(env, **kw): warnings.warn('bl\\u00e4ulich'); return works(env, **kw)\n"
    )
    for name in ("LC_ALL", "LANG"):
        monkeypatch.setenv(name, "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii", raising=False)
    out, agents = mine / "out", ("stutters:make", "stutters:warns")
    with pytest.raises(ValueError, match="1 of 2 runs failed; the first: .*RuntimeError: gr"):
        compare(_comparison(out, agents=agents, workers=2), progress=False)
    failed, worked = (
        out / "mine.Walk" / name / "seed0" for name in ("stutters.make", "stutters.warns")
    )
    assert "RuntimeError: gr" in (failed / "error.txt").read_text(encoding="utf-8")
    assert (worked / "record.json").is_file()
    assert "ulich" in (worked / "warnings.txt").read_text(encoding="utf-8")


def test_a_problem_that_has_changed_is_not_scored_against_the_old_reference(mine: Path) -> None:
    out = mine / "out"
    compare(_comparison(out), progress=False)
    changed = PROBLEM.replace("return -(x[:, 0] - 2).abs()", "return -10 * (x[:, 0] - 2).abs()")
    assert changed != PROBLEM
    (mine / "mine.py").write_text(changed)
    sys.modules.pop("mine")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"reference\.json belongs to another problem: its code"):
        compare(_comparison(out, seeds=(0, 1)), progress=False)
    assert not (out / "mine.Walk" / "mine.agent" / "seed1").exists()


@pytest.mark.parametrize("agent", ["pi-ft", "dpok", "ppo"])
@pytest.mark.parametrize("kind", ["InterruptedError", "ConnectionResetError"])
def test_what_a_reward_raises_ends_the_run(mine: Path, agent: str, kind: str) -> None:
    (mine / "remote.py").write_text(
        "from mine import Walk\n"
        "class Remote(Walk):\n"
        "    asked = 0\n"
        "    def terminal_reward(self, x):\n"
        "        Remote.asked += 1\n"
        f"        if Remote.asked > 12: raise {kind}('the judge is gone')\n"
        "        return super().terminal_reward(x)\n"
    )
    sys.modules.pop("remote", None)
    spec = RunSpec("remote:Remote", agent, 0, Budget(2000), device="cpu", plan=PLAN)
    with pytest.raises(OSError, match="the judge is gone"):
        execute(spec, mine / "out")
    assert not (spec.folder(mine / "out") / "record.json").exists()


def test_a_full_disk_fails_runs_and_not_the_comparison(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files end at a size, as they do on a full disk; what a worker said can't be kept either."""
    begin = subprocess.Popen

    def crowded(*args: Any, **kwargs: Any) -> Any:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))  # noqa: E731
        return begin(*args, **kwargs, preexec_fn=limit)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.subprocess, "Popen", crowded)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match="2 of 2 runs failed; the first: .*(too large|space)"):
        compare(_comparison(mine / "out", seeds=(0, 1)), progress=False)
    assert not list((mine / "out").glob("*/*/seed*/record.json"))
    monkeypatch.undo()
    monkeypatch.chdir(mine)
    compare(_comparison(mine / "out", seeds=(0, 1)), progress=False)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, {"model": {"a": torch.ones(3)}, "random": {}, "instrument": {}})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("girsanov.agents.archive._write", full)
    with pytest.raises(OSError, match="a file that can be written .No space left .*9.zip"):
        checkpoints.save(9, {"model": {}, "random": {}, "instrument": {}})
    kept = checkpoints.latest()
    assert (
        kept is not None and kept["number"] == 7 and torch.equal(kept["model"]["a"], torch.ones(3))
    )
    assert [file.name for file in checkpoints.path.iterdir()] == ["7.zip"]


def test_shares_of_machines_are_checked() -> None:
    with pytest.raises(ValueError, match="gpus_per_run must be at least 0; got -1"):
        RayCluster(gpus_per_run=-1)
    with pytest.raises(ValueError, match="cpus_per_run must be an integer of at least 1; got 0"):
        RayCluster(cpus_per_run=0)


def test_one_agent_in_several_rows_of_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An ablation: each row the same agent with settings of its own."""
    from girsanov.train import main

    few = {"n_envs": 4, "batch_size": 20, "n_epochs": 1}
    settings = {
        "agents": ["ppo#two epochs", "ppo"],
        "envs": ["girsanov/GaussianMixture-v0"],
        "seeds": [0],
        "budget": 8,
        "env_kwargs": {"steps": 5},
        "agent_kwargs": {"ppo": few, "ppo#two epochs": {**few, "n_epochs": 2}},
        "plan": {"points": 2, "paths": 20, "final_paths": 40, "reference_paths": 256},
        "device": "cpu",
    }
    file, out = tmp_path / "ablation.json", tmp_path / "out"
    file.write_text(json.dumps(settings))
    assert main(["compare", "--config", str(file), "--out", str(out)]) == 0
    records = [json.loads(path.read_text()) for path in out.rglob("record.json")]
    asked = {run["spec"]["agent"]: run["spec"]["agent_kwargs"]["n_epochs"] for run in records}
    assert asked == {"ppo": 1, "ppo#two epochs": 2}
    assert {run["access_class"] for run in records} == {"noise seen"}
    rows, names = (out / "report.md").read_text().splitlines(), ("PPO", "PPO: two epochs")
    first, second = (next(row for row in rows if row.startswith(f"| {name} (1")) for name in names)
    assert rows.index(first) + 1 == rows.index(second)
    capsys.readouterr()
    wrong = ["compare", "--agents", "pqo#two epochs", "--out", str(tmp_path / "bad")]
    assert main(wrong) == 2 and "did you mean 'ppo'?" in capsys.readouterr().err
