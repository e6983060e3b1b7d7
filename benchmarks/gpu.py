"""GPU against CPU of the same machine: environment steps a second, and what agents take to learn.

    python benchmarks/gpu.py              # killed and started again, it goes on
    python benchmarks/gpu.py --seeds      # throughput alone

MuJoCo's robots step by MuJoCo Warp on the GPU and by ``mujoco.rollout`` over all cores on the CPU.
Writes ``benchmarks/results/gpu.json``, anew after every row. Without a CUDA device it says so and
ends with code 2.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import resumable as bench
import torch
import tyro

from girsanov.envs import NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS, make_problem
from girsanov.envs.env import ProblemVectorEnv
from girsanov.scoreboard.compare import Comparison, compare
from girsanov.scoreboard.spec import Budget, EvaluationPlan
from girsanov.scoreboard.storage.records import provenance, read_json, write_json

HERE = bench.RESULTS / "gpu.json"
#: Steps between two looks at the clock.
CHUNK = 25
PLAN = EvaluationPlan(points=1, paths=64, final_paths=1000, reference_paths=8192, samples=32)


def steps_per_second(env_id: str, device: str, lanes: int, seconds: float = 1.0) -> float:
    """Environment steps in all lanes of the vector environment, whose tensors stay on the device,
    under the uncontrolled process.
    """
    engine = {"engine": "warp"} if device == "cuda" and env_id in NEED_MUJOCO else {}
    problem = make_problem(env_id, device, **engine)
    env = ProblemVectorEnv(problem, lanes, autoreset_mode="same_step", tensors=True)
    env.reset(seed=0)
    actions = torch.zeros(env.action_space.shape or (), device=device)

    def chunk() -> None:
        for _ in range(CHUNK):
            env.step(actions)
        if device == "cuda":
            torch.cuda.synchronize()

    chunk()  # kernels and caches
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        chunk()
        count += CHUNK
    return count * lanes / (time.perf_counter() - start)


def learnt(agent: str, env: str, seed: int, device: str, queries: float) -> bench.Line:
    """Seconds of learning, and the score."""
    with tempfile.TemporaryDirectory() as out:
        told: Any = {"device": device, "plan": PLAN, "command": bench.command()}
        job = Comparison((agent,), (env,), (seed,), Budget(queries), Path(out), **told)
        final = read_json(compare(job)[0] / "record.json")["final"]
    return {name: final[name] for name in ("seconds", "cpu_seconds", "model_evaluations", "score")}


def missing(rows: list[bench.Line], wanted: Iterator[bench.Line]) -> Iterator[bench.Line]:
    """What is asked for and not in ``rows``."""
    return (job for job in wanted if not any(job.items() <= row.items() for row in rows))


def jobs(
    agents: tuple[str, ...],
    env: str,
    queries: float,
    seeds: tuple[int, ...],
    envs: tuple[str, ...],
    lanes: tuple[int, ...],
) -> Iterator[bench.Line]:
    """Agents of the first seed on both devices, environments, the other seeds on the GPU."""

    def learning(device: str, few: tuple[int, ...]) -> Iterator[bench.Line]:
        told = {"env": env, "queries": queries, "device": device}
        return ({"agent": agent, "seed": seed, **told} for seed in few for agent in agents)

    yield from learning("cuda", seeds[:1])
    yield from learning("cpu", seeds[:1])
    yield from ({"env": name, "lanes": n} for n in lanes for name in envs)
    yield from learning("cuda", seeds[1:])


def measured(job: bench.Line, seconds: float) -> bench.Line:
    """The row of a job."""
    if "agent" in job:
        args = (job[name] for name in ("agent", "env", "seed", "device", "queries"))
        return job | learnt(*args)
    rate = {d: steps_per_second(job["env"], d, job["lanes"], seconds) for d in ("cpu", "cuda")}
    return job | rate | {"ratio": rate["cuda"] / rate["cpu"]}


def main(
    agents: tuple[str, ...] = ("pde", "pi-ft", "ppo", "sac"),
    env: str = "girsanov/Digits-v0",
    queries: float = 2000,
    seeds: tuple[int, ...] = (0, 1, 2),
    envs: tuple[str, ...] = tuple(sorted(PROBLEMS.keys() - NEED_WEIGHTS)),
    lanes: tuple[int, ...] = (4096, 65536),
    seconds: float = 0.3,
    out: Path = HERE,
) -> int:
    """Measure, print and write.

    Args:
        agents: to compare.
        env: to compare them on.
        queries: reward queries of each.
        seeds: of the agents; none: throughput alone. The CPU makes the first.
        envs: whose throughput to measure.
        lanes: of the vector environments.
        seconds: for each throughput.
        out: JSON file; what this machine has put there is not made again.
    """
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device; torch finds none here", file=sys.stderr)
        return 2
    made = {"command": bench.command(), **provenance(), "cpu_threads": torch.get_num_threads()}
    before = read_json(out) if out.exists() else {}
    same = all(before.get(name) == made[name] for name in ("versions", "hardware"))
    rows: list[bench.Line] = before["rows"] if same else []
    for job in list(missing(rows, jobs(agents, env, queries, seeds, envs, lanes))):
        rows.append(measured(job, seconds))
        print(rows[-1], flush=True)
        write_json(out, {**made, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
