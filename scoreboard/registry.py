"""From names to objects: environments by id, agents by name, and either by ``module:attribute`` for
your own.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..envs import PROBLEMS, make_problem
from ..envs.env import ProblemEnv
from ..envs.fingerprint import fingerprint
from ..envs.problem import Problem, slopes_of

if TYPE_CHECKING:  # SB3 takes a second to import: only those who make an agent pay for it
    from stable_baselines3.common.base_class import BaseAlgorithm


@dataclass(frozen=True)
class Agent:
    """How the scoreboard makes a learner.

    Args:
        make: ``make(env, seed=..., device=..., **agent_kwargs)`` returns an SB3 algorithm on a
            ``ProblemEnv``.
        load: ``load(path, env, device)`` reads one that ``save`` wrote; absent: it can't be loaded.
        access: what the method has to know of the problem, for the table.
        access_class: one of ``ACCESS_CLASSES``; methods are compared within a class.
        load_pickled: as ``load``, of a file whose reading runs the code in it; only for those who
            trust it (``--trust-pickle``).
    """

    make: Callable[..., BaseAlgorithm]
    load: Callable[[str, ProblemEnv, str], BaseAlgorithm] | None = None
    access: str = "not stated"
    access_class: str = "not stated"
    load_pickled: Callable[[str, ProblemEnv, str], BaseAlgorithm] | None = None


def _pde(env: ProblemEnv, policy: str | None = None, **kwargs: Any) -> BaseAlgorithm:
    from ..agents import PDE

    if policy is None and hasattr(
        env.problem, "adapted_noise"
    ):  # latents or images of a diffusers pipeline
        policy = "CnnPolicy"
    return PDE(
        policy or ("MlpPolicy" if slopes_of(env.problem).transition else "ModelPolicy"),
        env,
        **kwargs,
    )


def _pi_ft(env: ProblemEnv, policy: str | None = None, **kwargs: Any) -> BaseAlgorithm:
    from ..agents import PIFT

    if policy is None and hasattr(
        env.problem, "adapted_noise"
    ):  # a diffusers pipeline: adapt its own network
        differentiable = getattr(getattr(env.problem, "reward", None), "differentiable", False)
        policy = "LoraPolicy" if differentiable else "LoraValuePolicy"
    return PIFT(
        policy or ("MlpPolicy" if all(slopes_of(env.problem)) else "ScorePolicy"), env, **kwargs
    )


def _ppo(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.sb3 import make_ppo

    return make_ppo(env, **kwargs)


def _sac(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.sb3 import make_sac

    return make_sac(env, **kwargs)


def _ppo_control(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.sb3 import make_ppo_control

    return make_ppo_control(env, **kwargs)


def _sac_control(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.sb3 import make_sac_control

    return make_sac_control(env, **kwargs)


def _dyna(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.dyna import Dyna

    return Dyna.tuned(env, **kwargs)


def _dpok(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.dpok import DPOK

    return DPOK.tuned(env, **kwargs)


def _ddpo(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.ddpo import DDPO

    return DDPO.tuned(env, **kwargs)


def _adjoint_matching(env: ProblemEnv, **kwargs: Any) -> BaseAlgorithm:
    from ..baselines.adjoint_matching import AdjointMatching

    return AdjointMatching.tuned(env, **kwargs)


def _load_pde(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from ..agents import PDE

    return PDE.load(path, env=env, device=device)


def _load_pi_ft(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from ..agents import PIFT

    return PIFT.load(path, env=env, device=device)


def _load_ppo(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from stable_baselines3 import PPO

    return _load_sb3(PPO, path, env, device)


def _load_sac(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from stable_baselines3 import SAC

    return _load_sb3(SAC, path, env, device)


def _load_dyna(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from ..baselines.dyna import Dyna

    return Dyna.load(path, env=env, device=device)


def _load_pickled_ppo(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from stable_baselines3 import PPO

    return _load_pickled(PPO, path, env, device)


def _load_pickled_sac(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from stable_baselines3 import SAC

    return _load_pickled(SAC, path, env, device)


def _load_dpok(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from ..baselines.dpok import DPOK

    return DPOK.load(path, env=env, device=device)


def _load_ddpo(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from ..baselines.ddpo import DDPO

    return DDPO.load(path, env=env, device=device)


def _load_adjoint_matching(path: str, env: ProblemEnv, device: str) -> BaseAlgorithm:
    from ..baselines.adjoint_matching import AdjointMatching

    return AdjointMatching.load(path, env=env, device=device)


_SAID_OF_BAD_FILES = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)


def _load_sb3(
    algorithm: type[BaseAlgorithm], path: str, env: ProblemEnv, device: str
) -> BaseAlgorithm:
    """What a run has kept; stable-baselines3's own zip is refused, since it runs code."""
    from ..baselines.sb3_checkpoint import is_pickled, load_sb3

    if is_pickled(path):
        raise ValueError(
            f"load must name a model that a run has kept; {path} was written by stable-baselines3,"
            " whose files run code when they are read: give --trust-pickle if you trust who made it"
        )
    try:
        return load_sb3(path, env, device, algorithm)
    except ValueError as error:
        wanted = f"a checkpoint of {algorithm.__name__} for this environment"
        raise ValueError(f"load must name {wanted}; got {path} ({error})") from error


def _load_pickled(
    algorithm: type[BaseAlgorithm], path: str, env: ProblemEnv, device: str
) -> BaseAlgorithm:
    """SB3's own ``load``, whose many ways to fail on a bad file become one ValueError; what a run
    has kept is read without it.
    """
    from ..baselines.sb3_checkpoint import is_pickled

    if not is_pickled(path):
        return _load_sb3(algorithm, path, env, device)
    from stable_baselines3.common.save_util import load_from_zip_file

    from ..baselines.sb3 import lanes_like, link

    try:
        data, _, _ = load_from_zip_file(path, device="cpu")
        assert data is not None
        return link(algorithm.load(path, env=lanes_like(data, env), device=device))
    except OSError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, *_SAID_OF_BAD_FILES) as error:
        wanted = f"a checkpoint of {algorithm.__name__} for this environment"
        raise ValueError(
            f"load must name {wanted}; got {path} ({type(error).__name__}: {error})"
        ) from error


# MATH.md section 5. PDE's policy is a gradient through one transition of the pre-trained model,
# never through the reward.
_PDE_ACCESS = "black-box reward; pre-trained transition, differentiable in its noise"
_PI_FT_ACCESS = "reward's gradient; pre-trained transition, differentiable"
_RL_ACCESS = "black-box reward; interaction"
_DYNA_ACCESS = "black-box reward; pre-trained transition, simulated"
# The likelihood of a step is that of its noise, which is therefore seen; where there is a denoiser,
# its estimate is the input.
_SCORE_ACCESS = "black-box reward; interaction with the noise seen; pre-trained estimate as input"

#: From the least that a method may use to the most; each holds what those before it hold.
ACCESS_CLASSES = (
    "interaction",
    "noise seen",
    "transition known",
    "transition differentiable",
    "reward gradient",
)
_INTERACTION, _NOISE, _TRANSITION, _DIFFERENTIABLE, _GRADIENT = ACCESS_CLASSES

#: The agents by name; yours may join: ``AGENTS["mine"] = Agent(make)``, or name it
#: ``module:attribute`` on the command line.
AGENTS: dict[str, Agent] = {
    "pde": Agent(_pde, _load_pde, _PDE_ACCESS, _DIFFERENTIABLE),
    "pi-ft": Agent(_pi_ft, _load_pi_ft, _PI_FT_ACCESS, _GRADIENT),
    "ppo": Agent(_ppo, _load_ppo, _SCORE_ACCESS, _NOISE, _load_pickled_ppo),
    "sac": Agent(_sac, _load_sac, _SCORE_ACCESS, _NOISE, _load_pickled_sac),
    "dyna": Agent(_dyna, _load_dyna, _DYNA_ACCESS, _TRANSITION),
    "dpok": Agent(_dpok, _load_dpok, _SCORE_ACCESS, _NOISE),
    "ddpo": Agent(_ddpo, _load_ddpo, _SCORE_ACCESS, _NOISE),
    "adjoint-matching": Agent(_adjoint_matching, _load_adjoint_matching, _PI_FT_ACCESS, _GRADIENT),
    "ppo-control": Agent(_ppo_control, _load_ppo, _RL_ACCESS, _INTERACTION, _load_pickled_ppo),
    "sac-control": Agent(_sac_control, _load_sac, _RL_ACCESS, _INTERACTION, _load_pickled_sac),
}


def find_agent(name: str) -> Agent:
    """The agent of a name, or of ``module:attribute``: an ``Agent`` or its ``make`` alone."""
    if name in AGENTS:
        return AGENTS[name]
    if ":" not in name:
        raise ValueError(f"agent must be one of {sorted(AGENTS)} or module:attribute; got {name!r}")
    found = _imported("agent", name)
    if not (isinstance(found, Agent) or callable(found)):
        raise ValueError(f"agent {name!r} must be an Agent or what makes one; got {found!r}")
    return found if isinstance(found, Agent) else Agent(found)


def make_env(name: str, kwargs: Mapping[str, Any], device: str = "auto") -> ProblemEnv:
    """The environment of an id or of ``module:attribute`` (a Problem, or a callable that returns
    one), checked.

    ``kwargs`` go to the problem; ``action_bound``, ``actions`` and ``observation`` among them to
    its environment.
    """
    kwargs = dict(kwargs)
    names = ("action_bound", "actions", "observation")
    shell = {key: kwargs.pop(key) for key in names if key in kwargs}
    place = resolve_device(device)
    if name in PROBLEMS:
        factory: Any = lambda **kw: make_problem(name, place, **kw)  # noqa: E731
    elif ":" in name:
        factory = _imported("env", name)
    else:
        raise ValueError(f"env must be one of {sorted(PROBLEMS)} or module:attribute; got {name!r}")
    if isinstance(factory, Problem) and not kwargs:
        problem = factory
    else:
        try:
            problem = factory(**kwargs)
        except TypeError as error:
            raise ValueError(f"env_kwargs must suit {name}; got {kwargs} ({error})") from error
    if not isinstance(problem, Problem):
        raise ValueError(
            f"env {name!r} must be or return a girsanov Problem; got {type(problem).__name__}"
        )
    env = ProblemEnv(problem.to(place), **shell)
    env.fingerprint = fingerprint(env.problem)  # type: ignore[attr-defined]  # before agents adapt it
    return env


def resolve_device(device: str) -> str:
    """``auto`` is ``cuda`` where there is one, else ``cpu``; ``cuda:1`` is the second."""
    if not (isinstance(device, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", device)):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N; got {device!r}")
    if device.startswith("cuda"):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= found:
            there = f"{found} of them" if found else "no CUDA device"
            raise ValueError(
                f"device {device!r} was asked for, but torch finds {there}; use auto or cpu"
            )
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _imported(what: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look where it is called
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what} must name module:attribute that can be imported; got {name!r} ({error})"
        ) from error
