"""GPU against CPU of the same machine: the environments' throughput and the four-agent comparison,
as ratios.

    python benchmarks/gpu.py

MuJoCo's robots step by MuJoCo Warp on the GPU and by ``mujoco.rollout`` over all cores on the CPU.
Writes ``benchmarks/results/gpu.json``. Without a CUDA device it says so and ends with code 2.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import resumable as bench
import torch
import tyro

from girsanov.envs import NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS, make_problem
from girsanov.envs.env import ProblemVectorEnv
from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.spec import Budget, EvaluationPlan, slug
from girsanov.scoreboard.storage.records import provenance, read_json, write_json

HERE = bench.RESULTS / "gpu.json"

#: Steps between two looks at the clock.
CHUNK = 25


def steps_per_second(env_id: str, device: str, lanes: int, seconds: float = 1.0) -> float:
    """Environment steps a second of ``ProblemVectorEnv`` with tensors on ``device``, under the
    uncontrolled process.
    """
    engine = {"engine": "warp"} if device == "cuda" and env_id in NEED_MUJOCO else {}
    env = ProblemVectorEnv(
        make_problem(env_id, device, **engine), lanes, autoreset_mode="same_step", tensors=True
    )
    env.reset(seed=0)
    actions = torch.zeros(env.action_space.shape or (), device=device)

    def run(steps: int) -> None:
        for _ in range(steps):
            env.step(actions)
        if device == "cuda":
            torch.cuda.synchronize()

    run(1)  # the first allocates and compiles
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        run(CHUNK)
        count += CHUNK
    return count * lanes / (time.perf_counter() - start)


def throughput(
    envs: tuple[str, ...], lanes: tuple[int, ...], seconds: float
) -> list[dict[str, Any]]:
    """Both devices side by side, for every environment and number of lanes."""
    rows = []
    for env_id in envs:
        for n in lanes:
            rate = {d: steps_per_second(env_id, d, n, seconds) for d in ("cpu", "cuda")}
            ratio = rate["cuda"] / rate["cpu"]
            rows.append({"env": env_id, "lanes": n, **rate, "ratio": ratio})
            told = f"{rate['cuda']:14,.0f} steps/s, {ratio:8.2f} x CPU"
            print(f"{slug(env_id):32} {n:7,} lanes: {told}", flush=True)
    return rows


def comparison(agents: tuple[str, ...], env: str, budget: float) -> list[dict[str, Any]]:
    """Seconds of training of each agent on both devices at the same budget of reward queries, one
    seed, one at a time.
    """
    rows: dict[str, bench.Line] = {
        agent: {"agent": agent, "env": env, "reward_queries": budget} for agent in agents
    }
    plan = EvaluationPlan(points=2, paths=64, final_paths=1000, reference_paths=4096, samples=32)
    told: Any = {"plan": plan, "command": "gpu.py"}
    with tempfile.TemporaryDirectory() as folder:
        for device in ("cuda", "cpu"):
            out = Path(folder) / device
            job = Comparison(agents, (env,), (0,), Budget(budget), out, device=device, **told)
            for path in compare(job):
                record = read_json(path / "record.json")
                row = rows[record["spec"]["agent"]]
                row[device] = record["final"]["seconds"]
                row[f"score_{device}"] = record["final"]["score"]
    for row in rows.values():
        row["ratio"] = row["cpu"] / row["cuda"]
        told = f"{row['cuda']:8.1f} s on the GPU, {row['cpu']:8.1f} s on the CPU"
        print(f"{row['agent']:8} {told}: {row['ratio']:6.2f} x", flush=True)
    return list(rows.values())


def main(
    agents: tuple[str, ...] = ("pde", "pi-ft", "ppo", "sac"),
    env: str = "girsanov/Digits-v0",
    budget: float = 1000,
    envs: tuple[str, ...] = tuple(sorted(PROBLEMS.keys() - NEED_WEIGHTS)),
    lanes: tuple[int, ...] = (256, 4096, 65536),
    seconds: float = 1.0,
    out: Path = HERE,
) -> int:
    """Measure, print and write.

    Args:
        agents: to compare; none: throughput alone.
        env: to compare them on.
        budget: reward queries of each.
        envs: whose throughput to measure.
        lanes: of the vector environments.
        seconds: for each throughput.
        out: JSON file.
    """
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device; torch finds none here", file=sys.stderr)
        return 2
    found = {
        "command": bench.command(),
        **provenance(),
        "cpu_threads": torch.get_num_threads(),
        "throughput": throughput(envs, lanes, seconds),
    }
    write_json(out, found)  # half a result, if the rest is cut off
    found["comparison"] = comparison(agents, env, budget) if agents else []
    write_json(out, found)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
