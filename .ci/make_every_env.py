"""Make, reset and step every registered environment of the installed package, single and
batched.
"""

from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym

import girsanov
from girsanov.envs import NEED_DIFFUSERS, NEED_MUJOCO, NEED_WEIGHTS

checkout = Path(__file__).resolve().parents[1]
assert checkout not in Path(girsanov.__file__).resolve().parents, (
    f"not the installed package: {girsanov.__file__}"
)
lacking = set(NEED_WEIGHTS)
lacking |= NEED_MUJOCO if find_spec("mujoco") is None else set()
lacking |= NEED_DIFFUSERS if find_spec("diffusers") is None else set()
ids = sorted(spec for spec in gym.registry if spec.startswith("girsanov/"))
assert ids, "no environment is registered"
for env_id in ids:
    # the tests make the first on a pipeline of random weights; here both must say what they lack
    if env_id in lacking:
        try:
            gym.make(env_id)
        except ValueError as error:
            print(f"{env_id}: not made, for want of weights or packages: {error}")
            continue
        raise SystemExit(f"{env_id} was made without what it needs")
    env = gym.make(env_id)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    envs = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point")
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    envs.close()
    print(env_id)
