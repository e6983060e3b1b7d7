"""Stable-baselines3's own PPO and SAC, set up for finite-horizon problems whose price is KL.

Everywhere ``gamma`` is 1: the objective is undiscounted and time is part of the observation.
``make_ppo`` and ``make_sac`` are the strong form: the action is the chain's noise, the observation
holds what regression is given, and the policy knows its KL (``kl_policies``). ``make_ppo_control``
and ``make_sac_control`` take the control as action. There exploration is noise on top of the
chain's, and each coordinate of each step pays ``temperature * std^2 / 2`` for it. All settings are
in ``hyperparameters`` and ``hyperparameters_control``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from ..agents.checks import seen
from ..envs.checks import (
    check_device,
    check_flag,
    check_integer,
    check_keywords,
    check_positive,
    check_range,
    check_seed,
    shown,
)
from ..envs.env import as_env, problem_of
from ..envs.observations import Observation, StateObservation
from ..envs.problem import Policy, Problem
from . import hyperparameters, hyperparameters_control
from .hyperparameters import settings_for
from .kl_policies import (
    KLActorCriticPolicy,
    KLSACPolicy,
    MeanPriced,
    PricedReplayBuffer,
    RatioKept,
)
from .on_device.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
from .on_device.lanes import DeviceVecEnv, device_for
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
    env: Any,
    seed: int | None = None,
    device: torch.device | str = "auto",
    on_device: bool = False,
    **overrides: Any,
) -> PPO:
    """SB3's PPO whose action is the chain's noise and whose policy knows its KL.

    Args:
        env: a Problem, an id, or an environment, whose problem is taken; of a VecEnv its number of
            lanes, too.
        seed: fixes networks, exploration and environment.
        device: of the networks. ``"auto"`` is the CPU: these are small MLPs fed from numpy, which a
            GPU slows down.
        on_device: keep observations, rewards and past steps as tensors on the problem's device,
            where the networks then are, too (``on_device``). On a CPU it changes no result.
        overrides: any entry of ``hyperparameters.PPO`` or argument of ``stable_baselines3.PPO``.
    """
    venv, settings = _prepare(env, hyperparameters.PPO, "noise", overrides, seed, device, on_device)
    if on_device:
        settings, device = {**_ON_DEVICE[PPO], **settings}, device_for(venv, device)
    settings["policy_kwargs"].setdefault("control_bound", settings.pop("control_bound"))
    _fit_rollouts(settings, venv)
    priced = MeanPriced(venv, venv.problem.temperature)  # rewards in units of it
    knows = {"policy": KLActorCriticPolicy, "normalize_advantage": False, "ent_coef": 1.0}
    settings = {**knows, **settings}
    model = PPO(
        env=priced,
        seed=None if seed is None else int(seed),
        device="cpu" if device == "auto" else device,
        **settings,
    )
    return link(model)


def make_sac(
    env: Any,
    seed: int | None = None,
    device: torch.device | str = "auto",
    on_device: bool = False,
    **overrides: Any,
) -> SAC:
    """SB3's SAC whose action is the chain's noise and whose entropy coefficient is the temperature;
    arguments as in ``make_ppo``.

    ``device="auto"`` is the GPU if there is one (SB3's own rule).
    """
    venv, settings = _prepare(env, hyperparameters.SAC, "noise", overrides, seed, device, on_device)
    if on_device:
        settings, device = {**_ON_DEVICE[SAC], **settings}, device_for(venv, device)
        if settings.get("n_steps", 1) != 1:
            raise ValueError(f"n_steps must be 1 with on_device=True; got {settings['n_steps']!r}")
    settings = {"policy": KLSACPolicy, "ent_coef": venv.problem.temperature, **settings}
    number = None if seed is None else int(seed)
    return link(SAC(env=RatioKept(venv), seed=number, device=device, **settings))


def make_ppo_control(
    env: Any, seed: int | None = None, device: torch.device | str = "auto", **overrides: Any
) -> PPO:
    """SB3's PPO whose action is the control; arguments as in ``make_ppo``."""
    venv, settings = _prepare(env, hyperparameters_control.PPO, "control", overrides, seed, device)
    _fit_rollouts(settings, venv)
    settings = {"policy": "MlpPolicy", **settings}
    return PPO(
        env=venv,
        seed=None if seed is None else int(seed),
        device="cpu" if device == "auto" else device,
        **settings,
    )


def make_sac_control(
    env: Any, seed: int | None = None, device: torch.device | str = "auto", **overrides: Any
) -> SAC:
    """SB3's SAC whose action is the control; arguments as in ``make_ppo``."""
    venv, settings = _prepare(env, hyperparameters_control.SAC, "control", overrides, seed, device)
    settings = {"policy": GentleSACPolicy, **settings}
    return SAC(env=venv, seed=None if seed is None else int(seed), device=device, **settings)


def lanes_for(policy: type, env: Any, lanes: int, bound: float, observation: str) -> VecEnv:
    """The environment that a policy of that class learns in, on the problem of ``env``.

    Args:
        policy: class of the model's policy.
        env: as in ``make_ppo``.
        lanes: their number.
        bound: of the actions, which may be tighter than the environment's.
        observation: as in ``ProblemEnv``.
    """
    actions = "noise" if issubclass(policy, (KLActorCriticPolicy, KLSACPolicy)) else "control"
    venv = ProblemVecEnv(env, lanes, bound, actions=actions, observation=observation)
    if issubclass(policy, KLActorCriticPolicy):
        return MeanPriced(venv, venv.problem.temperature)
    return RatioKept(venv) if issubclass(policy, KLSACPolicy) else venv


def lanes_like(saved: dict[str, Any], env: Any) -> VecEnv:
    """The environment that a model saved by stable-baselines3 itself was trained on.

    Args:
        saved: the attributes of the model.
        env: as in ``make_ppo``.
    """
    seen = StateObservation(problem_of(env)).space.shape
    observation = "state" if saved["observation_space"].shape == seen else "features"
    bound = float(saved["action_space"].high.max())
    return lanes_for(saved["policy_class"], env, saved["n_envs"], bound, observation)


def link(model: BaseAlgorithm) -> Any:
    """The model, after telling its environment which policy its paths are charged by, and SAC's
    memory of several steps what they cost.
    """
    venv: Any = model.get_env()
    if isinstance(venv, MeanPriced | RatioKept):
        policy: Any = model.policy
        venv.policy = policy
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(venv, RatioKept) and isinstance(buffer, NStepReplayBuffer):
        model.replay_buffer = PricedReplayBuffer(buffer, venv)  # type: ignore[attr-defined]
    return model


#: What keeps the past on the device.
_ON_DEVICE: dict[type, dict[str, Any]] = {
    PPO: {"rollout_buffer_class": DeviceRolloutBuffer},
    SAC: {"replay_buffer_class": DeviceReplayBuffer},
}


def _fit_rollouts(settings: dict[str, Any], venv: ProblemVecEnv) -> None:
    """Whole episodes, and minibatches of one size."""
    settings.setdefault("n_steps", venv.episode_length)
    size = settings["n_steps"] * venv.num_envs
    settings["batch_size"] = _fitting(settings["batch_size"], size)


def _fitting(batch_size: int, rollout: int) -> int:
    """The divisor of the rollout's size that is nearest in ratio: PPO wants minibatches of one
    size.
    """
    divisors = (d for d in range(2, rollout + 1) if rollout % d == 0)
    return min(divisors, key=lambda d: abs(math.log(d / batch_size)), default=rollout)


def _prepare(
    env: Any,
    table: dict[str, dict[str, Any]],
    actions: str,
    overrides: dict[str, Any],
    seed: Any,
    device: Any,
    on_device: bool = False,
) -> tuple[ProblemVecEnv, dict[str, Any]]:
    """The lanes, and the arguments of SB3's constructor: the table's entry with the overrides on
    top.
    """
    check_seed("seed", seed)
    check_device("device", device, auto=True)
    check_flag("on_device", on_device)
    env = as_env(seen(env))
    settings = {**settings_for(table, problem_of(env)), **overrides}
    _check_settings(settings)
    lanes, bound = settings.pop("n_envs"), settings.pop("action_bound", None)
    observation = settings.pop("observation", None)
    if isinstance(env, VecEnv):
        lanes = env.num_envs
    kind = DeviceVecEnv if on_device else ProblemVecEnv
    venv = kind(env, lanes, bound, actions=actions, observation=observation)
    activation = settings.pop("activation")
    network = {
        "net_arch": settings.pop("net_arch"),
        "activation_fn": _activation(activation),
    }
    if "log_std_init" in settings:
        network["log_std_init"] = settings.pop("log_std_init")
    settings["policy_kwargs"] = {**network, **(settings.get("policy_kwargs") or {})}
    if settings.pop("anneal", False) and not callable(settings["learning_rate"]):
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
    return venv, settings


def _check_settings(settings: dict[str, Any]) -> None:
    """What SB3 would not say, or not in one line: the settings that everybody changes."""
    for name in ("n_envs", "batch_size", "n_epochs", "n_steps", "buffer_size"):
        if name in settings:
            check_integer(name, settings[name])
    if not callable(settings["learning_rate"]):
        check_positive("learning_rate", settings["learning_rate"])
        settings["learning_rate"] = float(settings["learning_rate"])
    check_flag("anneal", settings.get("anneal", False))
    check_keywords("policy_kwargs", settings.get("policy_kwargs"))
    for name in ("gamma", "gae_lambda", "tau"):
        if name in settings:
            check_range(name, settings[name], 0, 1)
    for name in ("control_bound", "max_grad_norm"):
        if name in settings:
            check_positive(name, settings[name])


def _activation(activation: Any) -> type[nn.Module]:
    found = getattr(nn, activation, None) if isinstance(activation, str) else activation
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"activation must be a class of torch.nn, or its name; got {shown(activation)}"
        )
    return found


def deterministic_policy(model: BaseAlgorithm, problem: Problem) -> Policy:
    """What the model would do without exploration, as a batched torch policy for ``rollout`` and
    ``objective``: the mean of its noise, or the control itself.
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
    venv = model.get_env()
    seen: Observation = StateObservation(problem)
    if venv is not None:
        seen = venv.get_attr("observation")[0].of(problem)

    if hasattr(policy, "lstm_actor"):
        return _remembering(model, problem, seen)

    def act(k: int, x: Tensor) -> Tensor:
        with torch.no_grad():
            action = policy._predict(seen(k, x).to(model.device), deterministic=True)
        if policy.squash_output:
            action = action * bound  # SB3 squashes to [-1, 1]
        action = action.clamp(-bound, bound)
        return action.to(x).reshape(x.shape[0], *problem.noise_shape)

    return act


def _remembering(model: Any, problem: Problem, seen: Observation) -> Policy:
    """A recurrent policy of sb3-contrib, which forgets where a batch of paths begins."""
    memory: Any = None

    def act(k: int, x: Tensor) -> Tensor:
        nonlocal memory
        if not isinstance(k, int):
            raise ValueError("k must be one step: a recurrent policy follows whole paths")
        observations = seen(k, x).cpu().numpy()
        starts = np.full(len(x), k == 0)
        if k == 0:
            memory = None
        action, memory = model.predict(observations, memory, starts, deterministic=True)
        return torch.as_tensor(action).to(x).reshape(len(x), *problem.noise_shape)

    return act
