"""Finished runs whose numbers are made up, for what reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from girsanov.envs.certificates import Certificate
from girsanov.envs.problem import Estimate
from girsanov.scoreboard.evaluation import Reference
from girsanov.scoreboard.spec import Budget, RunSpec
from girsanov.scoreboard.storage.records import RunFolder, provenance, write_json


def row(x: float, score: float | None, seconds: float) -> dict[str, Any]:
    """A row of progress."""
    values: dict[str, Any] = {
        "env_steps": int(50 * x),
        "reward_queries": int(x),
        "seconds": seconds,
        "paths": 10,
    }
    for name, value in {
        "score": score,
        "objective": x / 50 - 4 if score is None else -4 + 3 * score,
        "reward": 1.0,
        "kl": 0.5,
        "success": None,
    }.items():
        values |= {name: value, f"{name}_stderr": None if value is None else 0.01}
    return values | {"certificate_holds": None if score is None else True}


def run(
    out: Path,
    agent: str,
    seed: int,
    scores: list[float | None],
    seconds: float,
    ess: float,
    shape: tuple[int, ...],
    env: str = "girsanov/Fake-v0",
) -> None:
    """A finished run on disk, with these scores at equal distances (None: no score)."""
    spec = RunSpec(env, agent, seed, Budget(100), {"steps": 50})
    folder = RunFolder(out, spec)
    reference = Reference(
        Estimate(-4.0, 0.1), Certificate(-1.0, 0.1, -1.2, -0.8, ess, 1000), None, None, None
    )
    rows = [
        row(100 * i / (len(scores) - 1), s, seconds * i / (len(scores) - 1))
        for i, s in enumerate(scores)
    ]
    with folder.begin():
        folder.progress.write_text("".join(json.dumps(row) + "\n" for row in rows))
        np.save(folder.samples, np.full((5, *shape), 1.0, np.float32))
        np.save(spec.env_folder(out) / "samples_before.npy", np.zeros((5, *shape), np.float32))
        record = {
            "spec": spec.to_json(),
            "final": rows[-1],
            "reference": reference.to_json(),
            "access": f"what {agent} needs",
            "temperature": 0.3,
            "horizon": 50,
            "command": "train.py compare",
            "device": "cpu",
            "threads": 1,
            **provenance(),
        }
        write_json(folder.record, record)


def comparison(out: Path) -> Path:
    """Two agents, three seeds."""
    for seed, gain in enumerate((0.0, 0.1, 0.5)):
        run(out, "pde", seed, [0.0, 0.3 + gain, 0.4 + gain], 10.0, 200.0, (1, 2, 2))
        run(out, "ppo", seed, [0.0, 0.1 + gain, 0.2 + gain], 40.0, 200.0, (1, 2, 2))
    return out
