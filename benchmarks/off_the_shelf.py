"""Stable-baselines3's PPO and SAC as they come, in both forms of the action: which suits which?

    python train.py compare --config benchmarks/configs/action_forms/off_the_shelf.json

Nothing of ours but the environments: ``MlpPolicy``, SB3's own settings, the state as observation.
What the problem itself fixes is set: no discount, and in the noise form the entropy coefficient is
the temperature.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3 import PPO, SAC

from girsanov import ProblemVecEnv

#: Lanes at once; a rollout of PPO is then two episodes a lane or more on the problems above.
LANES = 16


def _make(algorithm: Any, actions: str, env: Any, seed: int, device: str, **settings: Any) -> Any:
    lanes = ProblemVecEnv(env, LANES, actions=actions, observation="state")
    if actions == "noise":
        settings = {"ent_coef": lanes.problem.temperature, **settings}
    settings = {"gamma": 1.0, **settings}
    return algorithm("MlpPolicy", lanes, seed=seed, device=device, **settings)


def ppo_control(env: Any, seed: int = 0, device: str = "auto", **settings: Any) -> PPO:
    """PPO whose action is the control."""
    return _make(PPO, "control", env, seed, device, **{"n_steps": 128, **settings})


def ppo_noise(env: Any, seed: int = 0, device: str = "auto", **settings: Any) -> PPO:
    """PPO whose action is the chain's noise."""
    return _make(PPO, "noise", env, seed, device, **{"n_steps": 128, **settings})


def sac_control(env: Any, seed: int = 0, device: str = "auto", **settings: Any) -> SAC:
    """SAC whose action is the control; as many updates as steps, SB3's way with several lanes."""
    return _make(SAC, "control", env, seed, device, **{"gradient_steps": -1, **settings})


def sac_noise(env: Any, seed: int = 0, device: str = "auto", **settings: Any) -> SAC:
    """SAC whose action is the chain's noise."""
    return _make(SAC, "noise", env, seed, device, **{"gradient_steps": -1, **settings})
