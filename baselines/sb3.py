"""Stable-baselines3's own PPO and SAC, set up for finite-horizon problems whose price is KL.

Three things differ from SB3's defaults everywhere: ``gamma`` is 1 (the objective is undiscounted
and time is part of the observation), both start at the pre-trained model (a control near zero), and
the exploration noise starts small, since each coordinate of each step pays ``temperature * std^2 /
2`` for it. All other settings are in ``hyperparameters.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from ..envs.env import as_env, observe, problem_of
from ..envs.problem import Policy, Problem
from . import hyperparameters
from .vec_env import ProblemVecEnv


class GentleActor(Actor):
    """SAC's actor, begun at a control near zero and at exploration noise ``exp(log_std_init)`` of
    the action bound.

    SB3's own begins with noise of about 0.6 of the bound in every coordinate and a random mean: far
    from the pre-trained model when there are many coordinates. PPO's mean head begins near zero
    already.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.use_sde:
            with torch.no_grad():
                for head, start in ((self.mu, 0.0), (self.log_std, self.log_std_init)):
                    assert isinstance(head, nn.Linear)
                    head.weight.mul_(0.01)  # PPO's gain
                    head.bias.fill_(start)


class GentleSACPolicy(SACPolicy):
    """SAC's MLP policy with a ``GentleActor``."""

    def make_actor(self, features_extractor: Any = None) -> Actor:
        """As in SACPolicy."""
        return GentleActor(
            **self._update_features_extractor(self.actor_kwargs, features_extractor)
        ).to(self.device)


def make_ppo(
    env: Any, seed: int | None = None, device: torch.device | str = "auto", **overrides: Any
) -> PPO:
    """SB3's PPO on a Problem, an id, an environment, or a VecEnv as it is.

    Args:
        env: what to learn on.
        seed: fixes networks, exploration and environment.
        device: of the networks. ``"auto"`` is the CPU: these are small MLPs fed from numpy, which a
            GPU slows down.
        overrides: any entry of ``hyperparameters.PPO`` or argument of ``stable_baselines3.PPO``.
    """
    venv, settings = _prepare(env, hyperparameters.PPO, overrides)
    settings.setdefault("n_steps", problem_of(venv).horizon)
    if "batch_size" not in overrides:
        settings["batch_size"] = _fitting(
            settings["batch_size"], settings["n_steps"] * venv.num_envs
        )
    policy = settings.pop("policy", "MlpPolicy")
    device = "cpu" if device == "auto" else device
    return PPO(policy, venv, seed=seed, device=device, **settings)


def make_sac(
    env: Any, seed: int | None = None, device: torch.device | str = "auto", **overrides: Any
) -> SAC:
    """SB3's SAC on a Problem, an id, an environment, or a VecEnv as it is; arguments as in
    ``make_ppo``.

    ``device="auto"`` is the GPU if there is one (SB3's own rule).
    """
    venv, settings = _prepare(env, hyperparameters.SAC, overrides)
    policy = settings.pop("policy", GentleSACPolicy)
    return SAC(policy, venv, seed=seed, device=device, **settings)


def _fitting(batch_size: int, rollout: int) -> int:
    """The divisor of the rollout's size that is nearest in ratio: PPO wants minibatches of one
    size.
    """
    divisors = (d for d in range(2, rollout + 1) if rollout % d == 0)
    return min(divisors, key=lambda d: abs(math.log(d / batch_size)), default=rollout)


def _prepare(
    env: Any, table: dict[str, dict[str, Any]], overrides: dict[str, Any]
) -> tuple[VecEnv, dict[str, Any]]:
    """The VecEnv, and the arguments of SB3's constructor: the table's entry with the overrides on
    top.
    """
    env = as_env(env)
    settings = {**hyperparameters.settings_for(table, problem_of(env)), **overrides}
    lanes, bound = settings.pop("n_envs"), settings.pop("action_bound", None)
    venv = env if isinstance(env, VecEnv) else ProblemVecEnv(env, lanes, bound)
    activation = settings.pop("activation")
    network = {
        "net_arch": settings.pop("net_arch"),
        "log_std_init": settings.pop("log_std_init"),
        "activation_fn": getattr(nn, activation) if isinstance(activation, str) else activation,
    }
    settings["policy_kwargs"] = {**network, **settings.get("policy_kwargs", {})}
    return venv, settings


def deterministic_policy(model: BaseAlgorithm, problem: Problem) -> Policy:
    """What the model would do without exploration, as a batched torch policy for ``rollout`` and
    ``objective``.
    """
    if model.get_vec_normalize_env() is not None:
        raise ValueError("model must see observations as they are; got one behind VecNormalize")
    policy = model.policy
    space = model.action_space
    assert isinstance(space, spaces.Box)
    bound = torch.as_tensor(space.high, device=model.device)
    if not torch.equal(-bound, torch.as_tensor(space.low, device=model.device)):
        raise ValueError(f"model must have a symmetric action space; got {model.action_space}")
    policy.set_training_mode(False)

    def act(k: int, x: Tensor) -> Tensor:
        with torch.no_grad():
            action = policy._predict(observe(problem, k, x).to(model.device), deterministic=True)
        if policy.squash_output:
            action = action * bound  # SB3 squashes to [-1, 1]
        action = action.clamp(-bound, bound)
        return action.to(x).reshape(x.shape[0], *problem.noise_shape)

    return act
