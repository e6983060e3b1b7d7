"""GPU against CPU of the same machine: environment steps a second, as ratios.

    python benchmarks/gpu.py

MuJoCo's robots step by MuJoCo Warp on the GPU and by ``mujoco.rollout`` over all cores on the CPU.
Writes ``benchmarks/results/gpu.json``. Without a CUDA device it says so and ends with code 2. What
agents gain is told by ``girsanov compare``, with ``--device cuda`` and ``--device cpu``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import resumable as bench
import torch
import tyro

from girsanov.envs import NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS, make_problem
from girsanov.envs.env import ProblemVectorEnv
from girsanov.scoreboard.spec import slug
from girsanov.scoreboard.storage.records import provenance, write_json

HERE = bench.RESULTS / "gpu.json"
#: Steps between two looks at the clock.
CHUNK = 25


def steps_per_second(env_id: str, device: str, lanes: int, seconds: float = 1.0) -> float:
    """Environment steps a second of ``ProblemVectorEnv`` with tensors on ``device``, under the
    uncontrolled process.
    """
    engine = {"engine": "warp"} if device == "cuda" and env_id in NEED_MUJOCO else {}
    problem = make_problem(env_id, device, **engine)
    env = ProblemVectorEnv(problem, lanes, autoreset_mode="same_step", tensors=True)
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


def main(
    envs: tuple[str, ...] = tuple(sorted(PROBLEMS.keys() - NEED_WEIGHTS)),
    lanes: tuple[int, ...] = (256, 4096, 65536),
    seconds: float = 1.0,
    out: Path = HERE,
) -> int:
    """Measure, print and write.

    Args:
        envs: whose throughput to measure.
        lanes: of the vector environments.
        seconds: for each throughput.
        out: JSON file, written anew after every row.
    """
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device; torch finds none here", file=sys.stderr)
        return 2
    rows: list[bench.Line] = []
    made = {"command": bench.command(), **provenance(), "cpu_threads": torch.get_num_threads()}
    for env_id in envs:
        for n in lanes:
            rate = {d: steps_per_second(env_id, d, n, seconds) for d in ("cpu", "cuda")}
            rows.append({"env": env_id, "lanes": n, **rate, "ratio": rate["cuda"] / rate["cpu"]})
            told = f"{rate['cuda']:14,.0f} steps/s, {rows[-1]['ratio']:8.2f} x CPU"
            print(f"{slug(env_id):32} {n:7,} lanes: {told}", flush=True)
            write_json(out, {**made, "throughput": rows})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
