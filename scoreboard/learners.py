"""The learners by name: how each is made and read again, and what it has to know of the problem.

Each is imported when it is made: SB3 takes a second, and only those who make an agent pay for it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..envs.checks import words_of
from ..envs.env import ProblemEnv

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

_METHODS = "..baselines.fine_tuning_methods"


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


def _found(module: str, path: str) -> Any:
    value: Any = import_module(module, __package__)
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _maker(module: str, path: str) -> Callable[..., BaseAlgorithm]:
    """What ``path`` in ``module`` makes of an environment and keyword arguments."""
    return lambda env, **kwargs: _found(module, path)(env, **kwargs)


def _loader(module: str, path: str) -> Callable[[str, ProblemEnv, str], BaseAlgorithm]:
    """What the class ``path`` in ``module`` reads."""
    return lambda file, env, device: _found(module, path).load(file, env=env, device=device)


def _pde(env: ProblemEnv, policy: str | None = None, **kwargs: Any) -> BaseAlgorithm:
    from ..agents import PDE

    return PDE(policy or "auto", env, **kwargs)


def _pi_ft(env: ProblemEnv, policy: str | None = None, **kwargs: Any) -> BaseAlgorithm:
    from ..agents import PIFT

    if policy is None and hasattr(
        env.problem, "adapted_noise"
    ):  # a diffusers pipeline: adapt its own network
        differentiable = getattr(getattr(env.problem, "reward", None), "differentiable", False)
        policy = "LoraPolicy" if differentiable else "LoraValuePolicy"
    return PIFT(policy, env, **kwargs)


def _algorithm1(env: ProblemEnv, policy: str | None = None, **kwargs: Any) -> BaseAlgorithm:
    """Algorithm 1 of Han et al. to the letter: values fitted backwards in time, full steps."""
    from ..agents import PIFT

    own = {"damping": None, **(kwargs.pop("policy_kwargs", None) or {})}
    return PIFT(policy or "FunctionalPolicy", env, policy_kwargs=own, **kwargs)


def _sb3_loader(name: str) -> Callable[[str, ProblemEnv, str], BaseAlgorithm]:
    return lambda path, env, device: _load_sb3(_found("stable_baselines3", name), path, env, device)


def _pickled_loader(name: str) -> Callable[[str, ProblemEnv, str], BaseAlgorithm]:
    return lambda path, env, device: _load_pickled(
        _found("stable_baselines3", name), path, env, device
    )


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
            f"load must name {wanted}; got {path} ({type(error).__name__}: {words_of(error)})"
        ) from error


# PDE's policy is a gradient through one transition of the pre-trained model,
# never through the reward.
_PDE_ACCESS = "black-box reward; pre-trained transition, differentiable in its noise"
_PI_FT_ACCESS = "reward's gradient; pre-trained transition, differentiable"
_RL_ACCESS = "black-box reward; interaction"
_DYNA_ACCESS = "black-box reward; pre-trained transition, simulated"
# The likelihood of a step is that of its noise, which is therefore seen; where there is a denoiser,
# its estimate is the input.
_SCORE_ACCESS = "black-box reward; interaction with the noise seen; pre-trained estimate as input"
_SAMPLING_ACCESS = "black-box reward of pre-trained estimates; pre-trained transition, simulated"
_SAMPLERS = "..baselines.guided_agents"

#: From the least that a method may use to the most; each holds what those before it hold.
ACCESS_CLASSES = (
    "interaction",
    "noise seen",
    "transition known",
    "transition differentiable",
    "reward gradient",
)
_INTERACTION, _NOISE, _TRANSITION, _DIFFERENTIABLE, _GRADIENT = ACCESS_CLASSES

_PPO = {"load": _sb3_loader("PPO"), "load_pickled": _pickled_loader("PPO")}
_SAC = {"load": _sb3_loader("SAC"), "load_pickled": _pickled_loader("SAC")}


def _of(module: str, name: str, access: str, access_class: str) -> Agent:
    """A class of ours with a constructor ``tuned``."""
    return Agent(_maker(module, f"{name}.tuned"), _loader(module, name), access, access_class)


#: The agents by name; yours may join: ``AGENTS["mine"] = Agent(make)``, or name it
#: ``module:attribute`` on the command line.
AGENTS: dict[str, Agent] = {
    "pde": Agent(_pde, _loader("..agents", "PDE"), _PDE_ACCESS, _DIFFERENTIABLE),
    "pde-mou": _of("..agents.pde.mou.agent", "MouPDE", _PDE_ACCESS, _DIFFERENTIABLE),
    "pi-ft": Agent(_pi_ft, _loader("..agents", "PIFT"), _PI_FT_ACCESS, _GRADIENT),
    "pi-ft-algorithm1": Agent(_algorithm1, _loader("..agents", "PIFT"), _PI_FT_ACCESS, _GRADIENT),
    "ppo": Agent(
        _maker("..baselines.sb3", "make_ppo"),
        access=_SCORE_ACCESS,
        access_class=_NOISE,
        **_PPO,
    ),
    "sac": Agent(
        _maker("..baselines.sb3", "make_sac"),
        access=_SCORE_ACCESS,
        access_class=_NOISE,
        **_SAC,
    ),
    "dyna": _of("..baselines.dyna", "Dyna", _DYNA_ACCESS, _TRANSITION),
    "dpok": _of(f"{_METHODS}.dpok", "DPOK", _SCORE_ACCESS, _NOISE),
    "ddpo": _of(f"{_METHODS}.ddpo", "DDPO", _SCORE_ACCESS, _NOISE),
    "adjoint-matching": _of(
        f"{_METHODS}.adjoint_matching", "AdjointMatching", _PI_FT_ACCESS, _GRADIENT
    ),
    "grpo": _of(f"{_METHODS}.grpo", "GRPO", _SCORE_ACCESS, _NOISE),
    "draft": _of(f"{_METHODS}.draft", "DRaFT", _PI_FT_ACCESS, _GRADIENT),
    "log-variance": _of(f"{_METHODS}.log_variance", "LogVariance", _SCORE_ACCESS, _NOISE),
    "best-of-n": _of(_SAMPLERS, "BestOfN", _SAMPLING_ACCESS, _TRANSITION),
    "feynman-kac": _of(_SAMPLERS, "FeynmanKac", _SAMPLING_ACCESS, _TRANSITION),
    "posterior-guidance": _of(_SAMPLERS, "PosteriorGuidance", _PI_FT_ACCESS, _GRADIENT),
    "ppo-control": Agent(
        _maker("..baselines.sb3", "make_ppo_control"),
        access=_RL_ACCESS,
        access_class=_INTERACTION,
        **_PPO,
    ),
    "sac-control": Agent(
        _maker("..baselines.sb3", "make_sac_control"),
        access=_RL_ACCESS,
        access_class=_INTERACTION,
        **_SAC,
    ),
}
