"""The films of the robots that an engine moves: made again by one command, training included.

    python docs/films.py                 # all of them: about four CPU minutes
    python docs/films.py reacher hopper  # some

It trains each agent as ``FILMS`` says, on one core, and films it beside the uncontrolled robot,
from the same start and with the same noise, into docs/films/. ``films.json`` there keeps what was
seen: how often each of the two succeeded, and what it was worth.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from girsanov.scoreboard.animation import film_run
from girsanov.scoreboard.runner import execute
from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec

FOLDER = Path(__file__).resolve().parent / "films"
KEPT = FOLDER / "films.json"


class Film(NamedTuple):
    """Who steers what in a film, and after how many episodes."""

    env: str
    agent: str
    episodes: int
    env_kwargs: dict[str, Any] = {}
    agent_kwargs: dict[str, Any] = {}


FILMS = {
    "inverted_pendulum": Film("InvertedPendulum-v0", "ppo", 1000, {"action_bound": 2.0}),
    "inverted_double_pendulum": Film(
        "InvertedDoublePendulum-v0", "ppo", 1000, {"action_bound": 5.0}
    ),
    "reacher": Film("Reacher-v0", "ppo", 1000),
    "half_cheetah": Film("HalfCheetah-v0", "ppo", 1000),
    "hopper": Film("Hopper-v0", "ppo", 1000),
}


def make(name: str, out: Path) -> dict[str, Any]:
    """Train, film, and tell; a run in ``out`` that was begun goes on."""
    film = FILMS[name]
    spec = RunSpec(
        f"girsanov/{film.env}",
        film.agent,
        0,
        Budget(film.episodes),
        film.env_kwargs,
        film.agent_kwargs,
        device="cpu",
        plan=EvaluationPlan(points=2, paths=100, final_paths=500, reference_paths=1000),
    )
    record = execute(spec, out, "python docs/films.py")
    shutil.copyfile(film_run(spec.folder(out), frames=40), FOLDER / f"{name}.gif")
    final, reference = record["final"], record["reference"]
    return {
        "env": film.env,
        "agent": film.agent,
        "episodes": film.episodes,
        "env_kwargs": film.env_kwargs,
        "agent_kwargs": film.agent_kwargs,
        "objective": [reference["uncontrolled"]["mean"], final["objective"]],
        "success": [reference["success"]["mean"], final["success"]],
        "cpu_seconds": round(final["cpu_seconds"]),
    }


def main(wanted: list[str]) -> None:
    """Make films, and keep what was seen."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            kept[name] = make(name, Path(folder))
            print(name, json.dumps(kept[name]), flush=True)
            text = json.dumps({name: kept[name] for name in FILMS if name in kept}, indent=1)
            KEPT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(FILMS))
