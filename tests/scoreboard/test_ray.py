"""Runs on a Ray cluster of several nodes, here on one machine, which lose their workers and a
node.
"""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_resume import PLAN, Case, same

from girsanov.scoreboard.compare import Comparison, RunsFailed, compare
from girsanov.scoreboard.engines.ray_cluster import RayCluster
from girsanov.scoreboard.report import report
from girsanov.scoreboard.spec import Budget
from girsanov.scoreboard.storage.checkpoints import Saving
from girsanov.scoreboard.storage.records import RunFolder
from girsanov.scoreboard.tuning.study import Tuning, tune

ray = pytest.importorskip("ray")
#: Ray's own, and of what it talks to.
pytestmark = [
    pytest.mark.slow,  # a cluster's processes and those of every run
    pytest.mark.filterwarnings("ignore"),
]
KILLS = 20
CASES = (Case("dpok", {"n_trajectories": 10}), Case("pi-ft", {"n_trajectories": 10}))


class Nodes:
    """A cluster of a head without cores and three nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        # all now: Ray adds a node in the main thread alone
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]
        self.cluster.wait_for_nodes()

    @property
    def engine(self) -> RayCluster:
        return RayCluster(self.cluster.address, losses=100)

    def lose(self) -> None:
        """One node ends without a word."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    yield found
    found.cluster.shutdown()


def comparison(out: Path, engine: RayCluster | None, **changes: Any) -> Comparison:
    case = CASES[0]
    settings: dict[str, Any] = {
        "agents": tuple(case.agent for case in CASES),
        "envs": (case.env,),
        "seeds": (0, 1),
        "budget": Budget(300),
        "env_kwargs": case.env_kwargs,
        "agent_kwargs": {case.agent: case.agent_kwargs for case in CASES},
        "device": "cpu",
        "plan": PLAN,
        "saving": Saving(minutes=1e-9),
    }
    return Comparison(out=out, engine=engine, **{**settings, **changes})


def workers() -> list[Any]:
    """The processes of this cluster that host a run."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Host"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def without_times(text: str) -> list[str]:
    """A report without its seconds: cells of one decimal, and what costs add to queries."""
    lines = [line for line in text.splitlines() if "second" not in line]
    return [re.sub(r"\| \d+\.\d (?=\|)|; [\d,.]+ s (?=\|)", "| ", line) for line in lines]


def test_a_cluster_that_loses_workers_and_a_node_reports_what_one_machine_does(
    nodes: Nodes, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    asked, kills, over = comparison(there, nodes.engine), [0], threading.Event()
    moments = random.Random(0)

    def kill() -> None:
        """Every time that a run has come a checkpoint further, until there were enough."""
        seen: set[Path] = set()
        while not over.wait(0.1) and kills[0] < KILLS:
            new = {*there.glob("*/*/*/checkpoint/*.zip")} - seen
            hosts = workers()
            if new and hosts:
                seen |= new
                moments.choice(hosts).send_signal(signal.SIGKILL)
                kills[0] += 1
                if kills[0] == KILLS // 2:
                    nodes.lose()

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill)
        try:
            compare(asked, progress=False)
        finally:
            over.set()
        killer.result()
    assert kills[0] == KILLS and len(nodes.nodes) == 2
    compare(comparison(here, None), progress=False)
    for spec in asked.specs():
        same(spec, here, there)
        assert not (spec.folder(there) / "checkpoint").exists()
    texts = [without_times(report(out).read_text()) for out in (here, there)]
    assert texts[0] == texts[1]


def test_failures_are_told_and_others_go_on(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "grim.py").write_text("def make(env, **kw): raise RuntimeError('gr\\u00fcn')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(str(tmp_path))
        asked = comparison(
            tmp_path / "out",
            nodes.engine,
            agents=("grim:make", "dpok"),
            agent_kwargs={},
            seeds=(0,),
            budget=Budget(20),
        )
        with pytest.raises(RunsFailed, match="1 of 2 runs failed; the first: .*RuntimeError: gr"):
            compare(asked, progress=False)
    specs = asked.specs()
    assert "RuntimeError" in RunFolder(asked.out, specs[0]).error.read_text(encoding="utf-8")
    assert RunFolder(asked.out, specs[1]).finished()


def test_ctrl_c_brings_checkpoints_home(nodes: Nodes, tmp_path: Path) -> None:
    asked = comparison(tmp_path, nodes.engine, seeds=(0,), budget=Budget(20_000))
    folders = [spec.folder(tmp_path) for spec in asked.specs()]

    def interrupt() -> None:
        while not all(list(folder.glob("checkpoint/*.zip")) for folder in folders):
            time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(asked, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    for folder in folders:
        assert list(folder.glob("checkpoint/*.zip")) and not (folder / "record.json").exists()
        json.loads((folder / "spec.json").read_text())


def test_a_study_is_the_same(nodes: Nodes, tmp_path: Path) -> None:
    tuning = Tuning(
        "pi-ft", CASES[0].env, (CASES[0].env_kwargs,), (1, 2), Budget(20), 2, 60.0, 8, 16
    )
    engines = {"here": None, "there": nodes.engine}
    found = [
        tune(tuning, tmp_path / name, lambda line: None, engine) for name, engine in engines.items()
    ]
    assert [t.value for t in found[0].trials] == [t.value for t in found[1].trials]
    assert all(t.user_attrs["cpu_seconds"] > 0 for t in found[1].trials)
