"""The id registry: the only place where problems meet Gymnasium ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch

from .cartpole import CartPoleSwingUp
from .denoising import Schedule
from .digits import digits
from .double_well import DoubleWell
from .env import ProblemEnv, ProblemVectorEnv
from .gaussian_mixture import GaussianMixture, QuadraticReward
from .gymnasium_robots import HalfCheetah, Hopper, InvertedDoublePendulum, InvertedPendulum, Reacher
from .linear_quadratic import LinearQuadratic
from .mujoco import Robot
from .navigation import DoubleIntegratorNavigation, UnicycleNavigation
from .pendulum import Pendulum
from .problem import Problem
from .quadrotor import PlanarQuadrotor
from .stable_diffusion import stable_diffusion
from .two_link_arm import TwoLinkArm


def gaussian_mixture(temperature: float = 0.5, steps: int = 50, dimension: int = 2, **schedule: Any) -> GaussianMixture:
    """``girsanov/GaussianMixture-v0``: four modes at (+-1, +-1), rewarded by minus the squared distance to the first.

    In an even ``dimension`` above 2 the two directions that tell the modes apart are spread over all coordinates: each is
    the diagonal of one half of them, so that distances between modes stay what they are in the plane.
    """
    if not isinstance(dimension, int) or dimension < 2 or dimension % 2:
        raise ValueError(f"dimension must be an even integer of at least 2; got {dimension!r}")
    plane = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    means = (plane / (dimension / 2) ** 0.5).repeat_interleave(dimension // 2, 1)
    reward = QuadraticReward(2.0 * torch.eye(dimension), means[0])
    return GaussianMixture(means, 0.3, reward, temperature, schedule=Schedule.ddpm(steps, **schedule))


#: What makes the problem of each id. Every factory takes keyword arguments only, so ``gym.make(id, temperature=0.1)`` works.
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "girsanov/CartPoleSwingUp-v0": CartPoleSwingUp,
    "girsanov/Digits-v0": digits,
    "girsanov/DoubleIntegratorNavigation-v0": DoubleIntegratorNavigation,
    "girsanov/DoubleWell-v0": DoubleWell,
    "girsanov/GaussianMixture-v0": gaussian_mixture,
    "girsanov/HalfCheetah-v0": HalfCheetah,
    "girsanov/Hopper-v0": Hopper,
    "girsanov/InvertedDoublePendulum-v0": InvertedDoublePendulum,
    "girsanov/InvertedPendulum-v0": InvertedPendulum,
    "girsanov/LinearOrnsteinUhlenbeck-v0": LinearQuadratic.linear_ornstein_uhlenbeck,
    "girsanov/LinearQuadratic-v0": LinearQuadratic.damped_rotation,
    "girsanov/OrnsteinUhlenbeck-v0": LinearQuadratic.ornstein_uhlenbeck,
    "girsanov/Pendulum-v0": Pendulum,
    "girsanov/PlanarQuadrotor-v0": PlanarQuadrotor,
    "girsanov/Reacher-v0": Reacher,
    "girsanov/StableDiffusion-v0": stable_diffusion,
    "girsanov/TwoLinkArm-v0": TwoLinkArm,
    "girsanov/UnicycleNavigation-v0": UnicycleNavigation,
}
#: Ids whose weights do not come with the package: their factories say what to obtain, and where to name it.
NEED_WEIGHTS = frozenset({"girsanov/StableDiffusion-v0"})
#: Ids that want ``pip install girsanov[mujoco]``.
NEED_MUJOCO = frozenset(name for name, make in PROBLEMS.items() if isinstance(make, type) and issubclass(make, Robot))
_SHELL_ARGUMENTS = ("action_bound", "render_mode", "num_envs", "autoreset_mode", "tensors")


def make_problem(env_id: str, device: str | torch.device = "cpu", **kwargs: Any) -> Problem:
    """The bare Problem of a registered id, for those who need no environment."""
    if env_id not in PROBLEMS:
        raise ValueError(f"env must be one of {sorted(PROBLEMS)}; got {env_id!r}")
    return PROBLEMS[env_id](**kwargs).to(device)


def _make(shell: type, env_id: str, device: str = "cpu", **kwargs: Any) -> Any:
    shell_kwargs = {name: kwargs.pop(name) for name in _SHELL_ARGUMENTS if name in kwargs}
    kwargs.pop("max_episode_steps", None)
    return shell(make_problem(env_id, device, **kwargs), **shell_kwargs)


def make_env(env_id: str, **kwargs: Any) -> ProblemEnv:
    """Entry point of ``gym.make``."""
    return _make(ProblemEnv, env_id, **kwargs)


def make_vector_env(env_id: str, **kwargs: Any) -> ProblemVectorEnv:
    """Entry point of ``gym.make_vec``."""
    return _make(ProblemVectorEnv, env_id, **kwargs)


def register_all() -> None:
    """Make the ids known to Gymnasium; called once by ``import girsanov``."""
    for env_id in PROBLEMS:
        gym.register(
            env_id,
            entry_point="girsanov.envs:make_env",
            vector_entry_point="girsanov.envs:make_vector_env",
            kwargs={"env_id": env_id},
        )
