"""The id registry: the only place where problems meet Gymnasium ids. What an id needs is imported
when it is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    import torch

    from .env import ProblemEnv, ProblemVectorEnv
    from .problem import Problem


class Factory:
    """What makes a problem: a class or a function of a module that is imported at the first call.

    Args:
        module: its name, relative to this package.
        attribute: path of the class or function in it.
    """

    def __init__(self, module: str, attribute: str) -> None:
        self.module, self.attribute = module, attribute

    def load(self) -> Callable[..., Problem]:
        """The class or function itself."""
        found: Any = import_module(f".{self.module}", __package__)
        for name in self.attribute.split("."):
            found = getattr(found, name)
        return found

    def __call__(self, **kwargs: Any) -> Problem:
        """Import, and make."""
        return self.load()(**kwargs)


_ROBOTS = "robots.gymnasium_robots"
#: What makes the problem of each id. Every factory takes keyword arguments only, so ``gym.make(id,
#: temperature=0.1)`` works.
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "girsanov/CartPoleSwingUp-v0": Factory("robots.cartpole", "CartPoleSwingUp"),
    "girsanov/Digits-v0": Factory("diffusion.digits", "digits"),
    "girsanov/DoubleIntegratorNavigation-v0": Factory(
        "robots.navigation", "DoubleIntegratorNavigation"
    ),
    "girsanov/DoubleWell-v0": Factory("known_optimum.double_well", "DoubleWell"),
    "girsanov/FlowDigits-v0": Factory("diffusion.stable_diffusion", "flow_digits"),
    "girsanov/GaussianMixture-v0": Factory("diffusion.gaussian_mixture", "gaussian_mixture"),
    "girsanov/HalfCheetah-v0": Factory(_ROBOTS, "HalfCheetah"),
    "girsanov/Hopper-v0": Factory(_ROBOTS, "Hopper"),
    "girsanov/InvertedDoublePendulum-v0": Factory(_ROBOTS, "InvertedDoublePendulum"),
    "girsanov/InvertedPendulum-v0": Factory(_ROBOTS, "InvertedPendulum"),
    "girsanov/LinearOrnsteinUhlenbeck-v0": Factory(
        "known_optimum.linear_quadratic", "LinearQuadratic.linear_ornstein_uhlenbeck"
    ),
    "girsanov/LinearQuadratic-v0": Factory(
        "known_optimum.linear_quadratic", "LinearQuadratic.damped_rotation"
    ),
    "girsanov/OrnsteinUhlenbeck-v0": Factory(
        "known_optimum.linear_quadratic", "LinearQuadratic.ornstein_uhlenbeck"
    ),
    "girsanov/Pendulum-v0": Factory("robots.pendulum", "Pendulum"),
    "girsanov/PlanarQuadrotor-v0": Factory("robots.quadrotor", "PlanarQuadrotor"),
    "girsanov/Reacher-v0": Factory(_ROBOTS, "Reacher"),
    "girsanov/StableDiffusion-v0": Factory("diffusion.stable_diffusion", "stable_diffusion"),
    "girsanov/TwoLinkArm-v0": Factory("robots.two_link_arm", "TwoLinkArm"),
    "girsanov/UnicycleNavigation-v0": Factory("robots.navigation", "UnicycleNavigation"),
}
#: Ids whose weights do not come with the package: their factories say what to obtain, and where to
#: name it.
NEED_WEIGHTS = frozenset({"girsanov/StableDiffusion-v0"})
#: Ids that want ``pip install -e ".[sd]"``.
NEED_DIFFUSERS = NEED_WEIGHTS | {"girsanov/FlowDigits-v0"}
#: Ids that want ``pip install -e ".[mujoco]"``.
NEED_MUJOCO = frozenset(
    name for name, make in PROBLEMS.items() if isinstance(make, Factory) and make.module == _ROBOTS
)
_SHELL_ARGUMENTS = (
    *("action_bound", "actions", "observation"),
    *("render_mode", "num_envs", "autoreset_mode", "tensors", "compile"),
)
_PROCESS = os.getpid()


def make_problem(env_id: str, device: str | torch.device = "cpu", **kwargs: Any) -> Problem:
    """The bare Problem of a registered id, for those who need no environment."""
    from .checks import check_device, shown

    if not isinstance(env_id, str) or env_id not in PROBLEMS:
        raise ValueError(f"env must be one of {sorted(PROBLEMS)}; got {shown(env_id)}")
    check_device("device", device)
    return PROBLEMS[env_id](**kwargs).to(device)


def _make(shell: type, env_id: str, device: str = "cpu", **kwargs: Any) -> Any:
    shell_kwargs = {name: kwargs.pop(name) for name in _SHELL_ARGUMENTS if name in kwargs}
    if kwargs.pop("max_episode_steps", None) is not None:
        raise ValueError(
            "max_episode_steps must be absent: an episode is one path of the chain, and ends at its"
            " horizon; shorten the problem itself"
        )
    if os.getpid() != _PROCESS:  # forked, as by AsyncVectorEnv: torch's threads did not come along
        import torch

        torch.set_num_threads(1)
    return shell(make_problem(env_id, device, **kwargs), **shell_kwargs)


def make_env(env_id: str, **kwargs: Any) -> ProblemEnv:
    """Entry point of ``gym.make``."""
    from .env import ProblemEnv

    return _make(ProblemEnv, env_id, **kwargs)


#: ``gym.make`` looks here for what ``render_mode`` may be, wrapped modes included.
make_env.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[attr-defined]


def make_vector_env(env_id: str, **kwargs: Any) -> ProblemVectorEnv:
    """Entry point of ``gym.make_vec``."""
    from .env import ProblemVectorEnv

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
