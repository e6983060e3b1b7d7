"""Tuned settings of the baselines, one table each: the only place where they are kept.

The key is the class name of the problem (or of one of its bases, nearest first), so that an id, an
environment and a bare Problem find the same entry; ``default`` serves everybody's own problems. How
each entry was found: TUNING.md.

Names are those of the constructors; DPOK, DDPO and adjoint matching list only what differs from
their classes' defaults. PPO and SAC list everything, and have these names of ours:

* ``n_envs``: lanes of the vector environment,
* ``control_bound``: largest control in any coordinate (PPO),
* ``action_bound``: largest noise in any coordinate (SAC), absent: the form's own,
* ``observation``: ``features`` or ``state``,
* ``anneal``: let the learning rate fall linearly to zero,
* ``net_arch``, ``activation``: of the policy,
* ``n_steps`` of PPO, absent: one whole episode a lane.
"""

from __future__ import annotations

from typing import Any

_PPO: dict[str, Any] = {
    "n_envs": 20,
    "batch_size": 1000,
    "n_epochs": 10,
    "learning_rate": 3e-3,
    "anneal": True,
    "gamma": 1.0,
    "gae_lambda": 0.8,
    "clip_range": 0.4,
    "max_grad_norm": 0.5,
    "net_arch": [64, 64],
    "activation": "SiLU",
    "control_bound": 2.0,
    "observation": "features",
}
#: More and smaller updates: robots' rewards come on the way too.
_PPO_ROBOTS: dict[str, Any] = {
    **_PPO,
    "batch_size": 250,
    "n_epochs": 20,
    "gae_lambda": 0.9,
    "clip_range": 0.2,
    "control_bound": 1.0,
}
PPO: dict[str, dict[str, Any]] = {
    "default": _PPO,
    "Diffusion": _PPO_ROBOTS,
    "Pendulum": _PPO_ROBOTS,
    "Robot": _PPO_ROBOTS,
    "Digits": {
        **_PPO,
        "n_envs": 40,
        "n_epochs": 5,
        "learning_rate": 1e-3,
        "gae_lambda": 0.6,
        "control_bound": 1.0,
        "net_arch": [256, 256],
    },
}

_SAC: dict[str, Any] = {
    "n_envs": 20,
    "buffer_size": 200_000,
    "learning_starts": 0,
    "batch_size": 1024,
    "gradient_steps": 1,
    "learning_rate": 2e-3,
    "anneal": True,
    "gamma": 1.0,
    "tau": 0.05,
    "n_steps": 1,  # given the noise the next state is sure: longer returns only add chance
    "net_arch": [128, 128],
    "activation": "ReLU",
    "observation": "features",
}
_SAC_ROBOTS: dict[str, Any] = {**_SAC, "batch_size": 256, "gradient_steps": 4}
SAC: dict[str, dict[str, Any]] = {
    "default": _SAC,
    "Diffusion": _SAC_ROBOTS,
    "Pendulum": _SAC_ROBOTS,
    "Robot": _SAC_ROBOTS,
    "Digits": {**_SAC, "learning_rate": 1e-3},
}

#: Of ``Dyna``, and of the PPO that dreams in it.
DYNA: dict[str, dict[str, Any]] = {
    "default": {"learning_rate": 3e-3, "n_trajectories": 50, "imagined": 1000},
}

#: Arguments of the classes ``DPOK``, ``DDPO`` and ``AdjointMatching``, on top of their own
#: defaults.
DPOK: dict[str, dict[str, Any]] = {
    "default": {},
    # the public code's, but for the clip range: it averages log likelihoods over dimensions
    "DiffusersChain": {
        "n_trajectories": 10,
        "gradient_steps": 10,
        "batch_size": 50,
        "learning_rate": 1e-5,
        "anneal": False,
        "max_grad_norm": 0.1,
        "memory": 2,
        "critic_learning_rate": 1e-4,
        "critic_hidden": [256, 256],
    },
    "GaussianMixture": {
        "n_trajectories": 20,
        "gradient_steps": 5,
        "batch_size": 1024,
        "learning_rate": 4.94e-4,
        "max_grad_norm": 0.1,
        "policy_kwargs": {"hidden": [64, 64]},
        "memory": 2,
        "clip_range": 0.4,
        "critic_steps": 5,
        "critic_learning_rate": 3e-3,
    },
    "Digits": {
        "n_trajectories": 40,
        "gradient_steps": 5,
        "batch_size": 1024,
        "learning_rate": 1.305e-3,
        "policy_kwargs": {"hidden": [64, 64]},
        "memory": 1,
        "clip_range": 0.1,
        "critic_learning_rate": 3e-3,
    },
}
DDPO: dict[str, dict[str, Any]] = {
    "default": {},
    "DiffusersChain": {
        "batch_size": 50,
        "learning_rate": 3e-4,
        "anneal": False,
    },  # the paper's rate
    "GaussianMixture": {
        "n_trajectories": 40,
        "gradient_steps": 40,
        "batch_size": 1024,
        "learning_rate": 3.33e-4,
        "max_grad_norm": 0.1,
        "policy_kwargs": {"hidden": [64, 64]},
        "clip_range": 0.2,
    },
}
ADJOINT_MATCHING: dict[str, dict[str, Any]] = {
    "default": {},
    "DiffusersChain": {
        "n_trajectories": 10,
        "batch_size": 50,
        "learning_rate": 3e-4,
        "anneal": False,
    },  # not tuned: PI-FT's
}


def settings_for(table: dict[str, dict[str, Any]], problem: object) -> dict[str, Any]:
    """A copy of the entry of ``table`` nearest to the problem's class, ``default`` if none is."""
    for base in type(problem).__mro__:
        if base.__name__ in table:
            return dict(table[base.__name__])
    return dict(table["default"])
