"""GPU against CPU of the same machine: environment steps a second.

    python benchmarks/gpu.py              # killed and started again, it goes on

MuJoCo's robots step by MuJoCo Warp on the GPU and by ``mujoco.rollout`` over all cores on the CPU.
Writes ``benchmarks/results/gpu.json``, anew after every row. Without a CUDA device it says so and
ends with code 2. What agents take to learn on either: ``girsanov compare --device cuda``, and cpu.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import resumable as bench
import torch
import tyro

from girsanov.envs import NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS, make_problem
from girsanov.envs.env import ProblemVectorEnv
from girsanov.scoreboard.storage.records import provenance, read_json, write_json

HERE = bench.RESULTS / "gpu.json"
#: Steps between two looks at the clock.
CHUNK = 25


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


def main(
    envs: tuple[str, ...] = tuple(sorted(PROBLEMS.keys() - NEED_WEIGHTS)),
    lanes: tuple[int, ...] = (4096, 65536),
    seconds: float = 0.3,
    out: Path = HERE,
) -> int:
    """Measure, print and write.

    Args:
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
    done = {(row["env"], row["lanes"]) for row in rows}
    for n, name in itertools.product(lanes, envs):
        if (name, n) not in done:
            rate = {
                device: steps_per_second(name, device, n, seconds) for device in ("cpu", "cuda")
            }
            rows.append({"env": name, "lanes": n, **rate, "ratio": rate["cuda"] / rate["cpu"]})
            print(rows[-1], flush=True)
            write_json(out, {**made, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
