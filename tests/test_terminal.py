"""Bars as a person sees them: in a terminal, with a clock that the test turns."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from girsanov import train
from girsanov.scoreboard import compare as comparisons
from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.engines.engine import _show
from girsanov.scoreboard.spec import Budget

ID = "girsanov/LinearQuadratic-v0"
ROW = {
    "objective": -1.0,
    "objective_stderr": 0.1,
    "score": 0.5,
    "score_stderr": 0.1,
    "reward": 0.0,
    "kl": 1.0,
    "success": None,
    "env_steps": 0,
    "seconds": 1.0,
}


class Terminal:
    """What a screen of 200 columns has shown, and the time that goes by before it."""

    def __init__(self, reading: int, stream: TextIO, patch: pytest.MonkeyPatch) -> None:
        self.reading, self.stream, self.patch = reading, stream, patch
        self.now, self.text = 1e9, ""

    def connect(self) -> None:
        """From here on; pytest puts its own stream there before each test's call."""
        self.patch.setattr(sys, "stderr", self.stream)
        self.patch.setattr("tqdm.std.time", self.clock)
        self.patch.setattr("time.time", self.clock)

    def clock(self) -> float:
        return self.now

    def shown(self) -> list[str]:
        """The lines, one after the other, that were written over each other."""
        while True:
            try:
                self.text += os.read(self.reading, 65536).decode()
            except BlockingIOError:
                return [line.strip() for line in re.split(r"[\r\n]+", self.text) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))  # no Windows
    reading, writing = pty.openpty()
    os.set_blocking(reading, False)
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    with os.fdopen(writing, "w") as stream:
        yield Terminal(reading, stream, monkeypatch)
    os.close(reading)


def test_a_run_speaks_at_once_and_judges_what_remains_by_its_own_learning(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def execute(
        spec: Any, out: Any, command: str, on_row: Any, on_stage: Any, *_: Any
    ) -> dict[str, Any]:
        on_stage("reference")
        seen.append(terminal.shown()[-1])
        terminal.now += 300.0  # the reference
        for queries, seconds in ((60.0, 0.0), (70.0, 20.0), (100.0, 60.0)):  # goes on at 60%
            terminal.now += seconds
            on_row({**ROW, "reward_queries": queries})
            seen.append(terminal.shown()[-1])
        return {"final": {**ROW, "reward_queries": 100}}

    monkeypatch.setattr("girsanov.scoreboard.runner.execute", execute)
    terminal.connect()
    train.run(env=ID, agent="pde", budget=100, out=tmp_path)
    first, begun, later, last = seen
    assert first.startswith("pde: reference:   0%|")  # nothing was waited for
    assert begun.startswith("pde:  60%|") and "[00:00<?" in begun  # not 0 s, nor hours
    assert later.startswith("pde:  70%|") and "[00:20<01:00" in later  # 30% at 10% in 20 s
    assert last.startswith("pde: 100%|") and "[01:20<00:00" in last
    assert "score 0.5" in later


def test_a_comparison_names_its_reference_and_counts_no_time_for_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def prepare(*_: Any) -> None:
        seen.append(terminal.shown()[-1])
        terminal.now += 300.0

    class Engine:
        def run(self, missing: list[Any], job: Any, bar: Any) -> list[str]:
            for share, seconds in ((0.5, 30.0), (1.0, 30.0)):
                terminal.now += seconds
                _show(bar, 0, [(share, f"LinearQuadratic-v0/0 {share:.0%} score 0.50")])
                seen.append(terminal.shown()[-1])
            return []

    monkeypatch.setattr(comparisons, "prepare_env", prepare)
    terminal.connect()
    compare(
        Comparison(
            agents=("pde",),
            envs=(ID,),
            seeds=(0, 1),
            budget=Budget(100),
            out=tmp_path,
            engine=Engine(),  # type: ignore[arg-type]
        ),
        progress=True,
    )
    first, half, one = seen
    assert first.startswith("runs:   0%|") and f"reference of {ID}" in first
    assert "0.5/2 [00:30<01:30" in half and "50% score 0.50" in half
    assert "1.0/2 [01:00<01:00" in one
