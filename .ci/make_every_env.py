"""Make, reset and step every registered environment of the installed package, single and batched."""

from pathlib import Path

import gymnasium as gym

import girsanov
from girsanov.envs import NEED_WEIGHTS

checkout = Path(__file__).resolve().parents[1]
assert checkout not in Path(girsanov.__file__).resolve().parents, f"not the installed package: {girsanov.__file__}"
ids = sorted(spec for spec in gym.registry if spec.startswith("girsanov/"))
assert ids, "no environment is registered"
for env_id in ids:
    if env_id in NEED_WEIGHTS:  # the tests make it on a pipeline of random weights; here it must say what it lacks
        try:
            gym.make(env_id)
        except ValueError as error:
            print(f"{env_id}: not made, for want of weights or packages: {error}")
            continue
    env = gym.make(env_id)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    envs = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point")
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    envs.close()
    print(env_id)
