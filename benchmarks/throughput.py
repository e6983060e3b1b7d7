"""Steps per second of the environments' shells, as ratios measured side by side in one run, on the
mixture and the pendulum.

    python benchmarks/throughput.py

Each ratio's two sides take turns, and medians are compared. What runs on one thread is timed by its
CPU time, which other processes hardly change; two threads wait for each other when others want the
cores, so believe ``vector_4096`` on an idle machine only, and ``pendulum_4096`` likewise. Targets:
the vector environment at least 20 times the speed of SB3's DummyVecEnv over single ones, and on the
pendulum at least 10 times that of Gymnasium's SyncVectorEnv over its own, at 4,096 lanes; SB3's
adapter at least half the speed of the vector environment, at 256 lanes; a step of the single
environment within 3 times the time of plain NumPy, written by hand for this one problem; MuJoCo's
robots at least 0.8 of the speed of ``mujoco.rollout`` alone, from the same states under the same
controls, at 1,024 lanes. Where gymnax is installed (``pip install gymnax six``; it is no
dependency), its pendulum too, twenty steps of all lanes in one jitted scan: at least 0.5 of its
speed, one thread each, by the wall clock, as other threads of XLA's might be counted otherwise.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import resumable as bench
import torch
import tyro
from mujoco.rollout import Rollout
from stable_baselines3.common.vec_env import DummyVecEnv

import girsanov  # noqa: F401  registers the ids
from girsanov.baselines.vec_env import ProblemVecEnv
from girsanov.envs import NEED_MUJOCO, make_problem
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture
from girsanov.envs.env import ProblemEnv, ProblemVectorEnv
from girsanov.envs.robots.mujoco import Robot
from girsanov.scoreboard.storage.records import provenance, write_json

ENV = "girsanov/GaussianMixture-v0"
PENDULUM = "girsanov/Pendulum-v0"
HERE = bench.RESULTS / "throughput.json"


class NumpyMixture:
    """The 2-D mixture chain in plain NumPy: what somebody would write who wants this one
    environment and no other.

    Same observation, reward, info and errors as ``ProblemEnv``; tables are precomputed to one row a
    step.
    """

    def __init__(self, problem: GaussianMixture, action_bound: float = 1.0) -> None:
        names = ("alpha_bar", "alpha", "sigma")
        bar, alpha, sigma = (getattr(problem.schedule, name).double().numpy() for name in names)
        std, means = problem.std.double().numpy(), problem.means.double().numpy()
        variance = bar[:, None] * std**2 + 1 - bar[:, None]
        scaled = np.sqrt(bar)[:, None, None] * means
        constant = -0.5 * means.shape[1] * np.log(variance) - 0.5 * (scaled**2).sum(-1) / variance
        single = np.float32
        self.pull = (scaled / variance[..., None]).astype(single)
        self.pull_transposed = np.ascontiguousarray(self.pull.transpose(0, 2, 1))
        self.precision, self.constant = (1 / variance).astype(single), constant.astype(single)
        # (x - slope' (precision x - pull)) folded: x_{k+1} = (shrink - slope precision) x + slope
        # pull + sigma z
        self.slope = ((1 - alpha) / np.sqrt(alpha)).astype(single).tolist()
        self.shrink = (1 / np.sqrt(alpha)).astype(single).tolist()
        self.sigma = sigma.astype(single).tolist()
        self.target = problem.reward.target.numpy().astype(single)
        self.matrix = problem.reward.matrix.numpy().astype(single)
        self.horizon, self.temperature = problem.horizon, problem.temperature
        self.time = (np.arange(self.horizon + 1) / self.horizon).astype(single).tolist()
        self.bound, self.k, self.rng = single(action_bound), self.horizon, np.random.default_rng()

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Standard normal noise."""
        self.k, self.x = 0, self.rng.standard_normal(2, np.float32)
        return self.observation(), {"reward": 0.0, "kl": 0.0, "state": self.x.copy()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One denoising step."""
        action = np.asarray(action, np.float32)
        if action.shape != (2,):
            raise ValueError(f"action must have shape (2,); got {action.shape}")
        k, x = self.k, self.x
        if k >= self.horizon:
            raise RuntimeError("call reset() before step()")
        a = np.minimum(np.maximum(action, -self.bound), self.bound)
        share = x @ self.pull_transposed[k]
        share += self.constant[k]
        share -= x.dot(x) * (0.5 * self.precision[k])
        share -= share.max()
        np.exp(share, out=share)
        share /= share.sum()
        slope = self.slope[k]
        z = self.rng.standard_normal(2, np.float32)
        z += a
        z *= self.sigma[k]
        x = x * (self.shrink[k] - slope * float(share @ self.precision[k]))
        x += slope * (share @ self.pull[k])
        x += z
        self.x, self.k = x, k + 1
        done, reward = self.k == self.horizon, 0.0
        if done:
            off = x - self.target
            reward = -0.5 * float(off @ self.matrix @ off)
        kl = 0.5 * float(a.dot(a))
        if not np.isfinite(reward):
            raise ValueError(f"the reward must be finite; got {reward}")
        info = {"reward": reward, "kl": kl, "state": x.copy()}
        return self.observation(), reward - self.temperature * kl, done, False, info

    def observation(self) -> np.ndarray:
        """State and time."""
        observation = np.empty(3, np.float32)
        observation[:2] = self.x
        observation[2] = self.time[self.k]
        return observation


#: Takes some steps, and returns how many of one lane.
Run = Callable[[], int]


def compare(first: Run, second: Run, repetitions: int, clock: Callable[[], float]) -> list[float]:
    """Microseconds for one step of one lane of both, which take turns, and the speed of the first
    over that of the second: medians.
    """
    first(), second()  # warm up
    rows = []
    for _ in range(repetitions):
        times = []
        for run in (first, second):
            start = clock()
            steps = run()
            times.append((clock() - start) / steps * 1e6)
        rows.append((*times, times[1] / times[0]))
    return [median(column) for column in zip(*rows, strict=True)]


def batched(env: Any, lanes: int, steps: int) -> Run:
    """``steps`` steps of an environment of many lanes that resets itself."""
    env.reset()
    # SB3's action space is of one lane
    shape = getattr(env, "single_action_space", env.action_space).shape
    actions = np.random.default_rng(0).uniform(-1, 1, (lanes, *shape)).astype(np.float32)

    def run() -> int:
        for _ in range(steps):
            env.step(actions)
        return steps * lanes

    return run


def episode(env: Any, horizon: int) -> Run:
    """A whole episode of a single environment."""
    action = np.array([0.3, -0.4], np.float32)

    def run() -> int:
        env.reset()
        for _ in range(horizon):
            env.step(action)
        return horizon

    return run


def stepped(problem: Robot, lanes: int, steps: int, bare: bool) -> Run:
    """``steps`` transitions of ``lanes`` robots that all begin afresh, or what ``mujoco.rollout``
    alone takes for the same.
    """
    generator = torch.Generator().manual_seed(0)
    x = problem.initial(lanes, generator)
    z = torch.randn(steps, lanes, *problem.noise_shape, generator=generator)
    engine = problem.engine
    model, substeps, size = engine.model, engine.frame_skip, engine.size + 1
    control = (problem.offset + problem.scale * z.double()).clamp(problem.low, problem.high)
    held = np.repeat(control.numpy()[:, :, None], substeps, 2)
    scratch, begun = [mujoco.MjData(model)], np.zeros((lanes, size))
    begun[:, 1:] = x[:, :-2].numpy()
    path, sensed = np.empty((lanes, substeps, size)), np.empty((lanes, substeps, model.nsensordata))
    pool = Rollout(nthread=0)

    def run_ours() -> int:
        state = x
        for k in range(steps):
            state = problem.transition(k, state, z[k])
        return lanes * steps

    def run_bare() -> int:
        state = begun
        told: Any = {"skip_checks": True, "nstep": substeps, "state": path, "sensordata": sensed}
        for k in range(steps):
            pool.rollout([model] * lanes, scratch, state, held[k], **told)
            state = path[:, -1].copy()
        return lanes * steps

    return run_bare if bare else run_ours


def scanned(lanes: int, steps: int) -> Run | None:
    """The pendulum of gymnax, which resets itself, compiled for one thread of the CPU; None where
    gymnax is not installed.
    """
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.update(XLA_FLAGS=flags, JAX_PLATFORMS="cpu")  # read when jax is first imported
    try:
        import gymnax
        import jax
    except ImportError:
        return None
    env, params = gymnax.make("Pendulum-v1")
    drawn = np.random.default_rng(0).uniform(-1, 1, (lanes, 1)).astype(np.float32)
    actions, step_all = jax.numpy.asarray(drawn), jax.vmap(env.step, in_axes=(0, 0, 0, None))

    def step(carry: Any, _: None) -> Any:
        key, state = carry
        key, noise = jax.random.split(key)
        each = jax.random.split(noise, lanes)
        # what ends an episode is one flag before gymnax 1, and two since
        observation, state, reward, *ends, _ = step_all(each, state, actions, params)
        return (key, state), (observation, reward, ends)

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))
    key = jax.random.PRNGKey(0)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, lanes), params)
    now = [(key, state)]

    def run() -> int:
        now[0], seen = scan(now[0])
        jax.block_until_ready(seen)
        return steps * lanes

    return run


def main(repetitions: int = 100, lanes: int = 4096, out: Path = HERE) -> None:
    """Measure the ratios and write them with the machine and the versions.

    Args:
        repetitions: paired repetitions behind each median (a tenth for DummyVecEnv, which takes
            long).
        lanes: of the vector environments; names and targets are those of 4,096.
        out: JSON file to write.
    """
    problem, few = make_problem(ENV), 1 + repetitions // 10
    found: dict[str, bench.Line] = {}

    def measure(name: str, rival: str, sides: Any, times: int, clock: Any, **least: float) -> None:
        ours, theirs, speed = compare(*sides, times, clock)
        found[name] = {"ours": ours, rival: theirs, "speed_ratio": speed, **least}
        print(f"{name}: {speed:.3g} times the speed of {rival}", flush=True)

    wide = ProblemVectorEnv(problem, lanes, autoreset_mode="same_step")
    single = DummyVecEnv([lambda: gym.make(ENV)] * lanes)
    ours = ProblemVectorEnv(make_problem(PENDULUM), lanes)
    theirs = gym.make_vec("Pendulum-v1", lanes, vectorization_mode="sync")
    many = batched(wide, lanes, 20), batched(single, lanes, 1)
    swinging = batched(ours, lanes, 20), batched(theirs, lanes, 1)
    wall, cpu = time.perf_counter, time.process_time
    torch.set_num_threads(2)
    measure("vector_4096", "dummy_vec_env", many, few, wall, at_least=20)
    measure("pendulum_4096", "sync_vector_env", swinging, few, wall, at_least=10)
    torch.set_num_threads(1)  # from here on one thread, whose CPU time no other process adds to
    measure("vector_4096_one_thread", "dummy_vec_env", many, few, cpu)
    measure("pendulum_4096_one_thread", "sync_vector_env", swinging, few, cpu)
    if (rival := scanned(lanes, 20)) is not None:
        name, sides = "pendulum_4096_gymnax_one_thread", (swinging[0], rival)
        measure(name, "gymnax", sides, repetitions, wall, at_least=0.5)
    raw = ProblemVectorEnv(problem, 256, autoreset_mode="same_step")
    sides = batched(ProblemVecEnv(problem, 256), 256, 50), batched(raw, 256, 50)
    measure("adapter_256", "raw", sides, repetitions, cpu, at_least=0.5)
    sides = episode(ProblemEnv(problem), 50), episode(NumpyMixture(problem), 50)
    measure("single", "numpy", sides, 3 * repetitions, cpu)
    found["single"] |= {"time_ratio": 1 / found["single"].pop("speed_ratio"), "at_most": 3}
    for name in sorted(NEED_MUJOCO):
        robot: Any = make_problem(name)
        pair = [stepped(robot, lanes // 4, 5, bare) for bare in (False, True)]
        measure(name, "bare_rollout", pair, few, cpu, at_least=0.8)
    made = provenance()
    packages = ("mujoco", "gymnax", "jax") if rival is not None else ("mujoco",)
    made["versions"] |= {package: version(package) for package in packages}
    report = {
        "command": bench.command(),
        "units": "microseconds for one step of one lane, medians",
        "clock": "wall for two threads and beside gymnax, CPU else",
        **{name: row for name, row in found.items() if name not in NEED_MUJOCO},
        "mujoco_1024_one_thread": {name: found[name] for name in sorted(NEED_MUJOCO)},
        "repetitions": repetitions,
        # processes that wanted a core in the last minute, this one among them
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **made,
    }
    write_json(out, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
