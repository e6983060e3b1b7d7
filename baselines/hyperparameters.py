"""Tuned settings of the baselines, one table each, in the words of rl-zoo: the only place where
they are kept.

The key is the class name of the problem (or of one of its bases, nearest first), so that an id, an
environment and a bare Problem find the same entry; ``default`` serves everybody's own problems. How
each entry was found: TUNING.md.

Names are those of the constructors; DPOK, DDPO and adjoint matching list only what differs from
their classes' defaults. PPO and SAC list everything, and have these names of ours:

* ``n_envs``: lanes of the vector environment,
* ``action_bound``, absent: the environment's own; a tighter box of actions, in noise units,
* ``net_arch``, ``activation``, ``log_std_init``: of the policy, the last being log of the initial
  exploration noise as a fraction of the action bound (SAC) or in noise units (PPO),
* ``n_steps`` of PPO, absent: one whole episode a lane.
"""

from __future__ import annotations

from typing import Any

#: Trials 1 and 2 of every search of PPO that starts with seed 0: several environments' best.
_LARGE_BATCHES: dict[str, Any] = {
    "n_envs": 80,
    "batch_size": 500,
    "n_epochs": 10,
    "learning_rate": 0.003873,
    "gamma": 1.0,
    "gae_lambda": 0.98,
    "clip_range": 0.3,
    "ent_coef": 0.0,
    "max_grad_norm": 2.0,
    "net_arch": [64, 64],
    "activation": "SiLU",
    "log_std_init": -0.5,
}
_SMALL_BATCHES: dict[str, Any] = {
    "n_envs": 40,
    "batch_size": 100,
    "n_epochs": 10,
    "learning_rate": 0.000337,
    "gamma": 1.0,
    "gae_lambda": 1.0,
    "clip_range": 0.5,
    "ent_coef": 0.0,
    "max_grad_norm": 10.0,
    "net_arch": [64, 64],
    "activation": "Tanh",
    "log_std_init": -0.5,
}

PPO: dict[str, dict[str, Any]] = {
    "default": {
        "n_envs": 32,
        "batch_size": 400,
        "n_epochs": 10,
        "learning_rate": 1e-3,
        "gamma": 1.0,
        "gae_lambda": 0.98,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "max_grad_norm": 0.5,
        "net_arch": [64, 64],
        "activation": "Tanh",
        "log_std_init": -1.5,
    },
    "GaussianMixture": {
        "n_envs": 40,
        "batch_size": 500,
        "n_epochs": 20,
        "learning_rate": 8.9e-4,
        "gamma": 1.0,
        "gae_lambda": 0.98,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "max_grad_norm": 2.0,
        "net_arch": [128, 128],
        "activation": "Tanh",
        "log_std_init": -1.0,
    },
    "Digits": {
        "n_envs": 40,
        "batch_size": 500,
        "n_epochs": 5,
        "learning_rate": 1e-4,
        "gamma": 1.0,
        "gae_lambda": 0.98,
        "clip_range": 0.1,
        "ent_coef": 0.0,
        "max_grad_norm": 0.5,
        "net_arch": [64, 64],
        "activation": "SiLU",
        "log_std_init": -1.0,
    },
    "Pendulum": _LARGE_BATCHES,
    "CartPoleSwingUp": {
        "n_envs": 10,
        "batch_size": 250,
        "n_epochs": 10,
        "learning_rate": 0.000612,
        "gamma": 1.0,
        "gae_lambda": 0.98,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "max_grad_norm": 0.5,
        "net_arch": [64, 64],
        "activation": "Tanh",
        "log_std_init": -1.0,
    },
    "DoubleIntegratorNavigation": _LARGE_BATCHES,
    "UnicycleNavigation": _SMALL_BATCHES,
    "TwoLinkArm": {
        "n_envs": 40,
        "batch_size": 500,
        "n_epochs": 20,
        "learning_rate": 0.001096,
        "gamma": 1.0,
        "gae_lambda": 0.9,
        "clip_range": 0.3,
        "ent_coef": 0.0,
        "max_grad_norm": 0.5,
        "net_arch": [64, 64],
        "activation": "SiLU",
        "log_std_init": -1.5,
    },
    "PlanarQuadrotor": _LARGE_BATCHES,
    "InvertedPendulum": {
        "n_envs": 40,
        "batch_size": 100,
        "n_epochs": 20,
        "learning_rate": 0.004896,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_range": 0.3,
        "ent_coef": 0.0,
        "max_grad_norm": 0.5,
        "net_arch": [64, 64],
        "activation": "ReLU",
        "log_std_init": -1.0,
    },
    "InvertedDoublePendulum": {
        "n_envs": 40,
        "batch_size": 500,
        "n_epochs": 20,
        "learning_rate": 0.00089,
        "gamma": 1.0,
        "gae_lambda": 0.98,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "max_grad_norm": 2.0,
        "net_arch": [128, 128],
        "activation": "Tanh",
        "log_std_init": -1.0,
    },
    "Reacher": _LARGE_BATCHES,
    "Hopper": _SMALL_BATCHES,
    "HalfCheetah": {
        "n_envs": 80,
        "batch_size": 100,
        "n_epochs": 10,
        "learning_rate": 0.000858,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "max_grad_norm": 2.0,
        "net_arch": [64, 64],
        "activation": "Tanh",
        "log_std_init": -2.5,
    },
}

#: Trials 1 and 2 of every search of SAC that starts with seed 0: several environments' best.
_TUNED_ENTROPY: dict[str, Any] = {
    "n_envs": 10,
    "buffer_size": 200_000,
    "learning_starts": 0,
    "batch_size": 256,
    "gradient_steps": 1,
    "learning_rate": 0.003035,
    "gamma": 1.0,
    "tau": 0.05,
    "ent_coef": "auto_0.01",
    "n_steps": 5,
    "net_arch": [128, 128],
    "activation": "ReLU",
    "log_std_init": -1.5,
}
_FEW_LANES: dict[str, Any] = {
    "n_envs": 5,
    "buffer_size": 200_000,
    "learning_starts": 0,
    "batch_size": 512,
    "gradient_steps": 1,
    "learning_rate": 0.005416,
    "gamma": 1.0,
    "tau": 0.005,
    "ent_coef": 0.005486,
    "n_steps": 1,
    "net_arch": [64, 64],
    "activation": "ReLU",
    "log_std_init": -1.0,
}

SAC: dict[str, dict[str, Any]] = {
    "default": {
        "n_envs": 20,
        "buffer_size": 200_000,
        "learning_starts": 0,
        "batch_size": 256,
        "gradient_steps": 2,
        "learning_rate": 2e-3,
        "gamma": 1.0,
        "tau": 0.01,
        "ent_coef": 0.01,
        "n_steps": 5,
        "net_arch": [64, 64],
        "activation": "ReLU",
        "log_std_init": -1.0,
    },
    "GaussianMixture": {
        "n_envs": 10,
        "buffer_size": 200_000,
        "learning_starts": 0,
        "batch_size": 256,
        "gradient_steps": 1,
        "learning_rate": 3.0e-3,
        "gamma": 1.0,
        "tau": 0.05,
        "ent_coef": "auto_0.01",
        "n_steps": 5,
        "net_arch": [128, 128],
        "activation": "ReLU",
        "log_std_init": -1.5,
    },
    "Digits": {
        "n_envs": 20,
        "action_bound": 0.1,
        "buffer_size": 200_000,
        "learning_starts": 0,
        "batch_size": 256,
        "gradient_steps": 2,
        "learning_rate": 2e-3,
        "gamma": 1.0,
        "tau": 0.01,
        "ent_coef": 0.01,
        "n_steps": 5,
        "net_arch": [64, 64],
        "activation": "ReLU",
        "log_std_init": -1.0,
    },
    "DoubleIntegratorNavigation": _FEW_LANES,
    "UnicycleNavigation": {
        "n_envs": 20,
        "buffer_size": 200_000,
        "learning_starts": 2500,
        "batch_size": 256,
        "gradient_steps": 2,
        "learning_rate": 0.002863,
        "gamma": 1.0,
        "tau": 0.01,
        "ent_coef": 0.000307,
        "n_steps": 3,
        "net_arch": [128, 128],
        "activation": "SiLU",
        "log_std_init": -2.0,
    },
    "Pendulum": _TUNED_ENTROPY,
    "TwoLinkArm": _TUNED_ENTROPY,
    "PlanarQuadrotor": _TUNED_ENTROPY,
    "InvertedPendulum": _FEW_LANES,
    "InvertedDoublePendulum": _FEW_LANES,
    "HalfCheetah": _FEW_LANES,
    "Hopper": _TUNED_ENTROPY,
    "Reacher": {
        "n_envs": 5,
        "buffer_size": 200_000,
        "learning_starts": 1000,
        "batch_size": 256,
        "gradient_steps": 1,
        "learning_rate": 0.002139,
        "gamma": 1.0,
        "tau": 0.02,
        "ent_coef": "auto_0.01",
        "n_steps": 5,
        "net_arch": [128, 128],
        "activation": "SiLU",
        "log_std_init": -1.5,
    },
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
