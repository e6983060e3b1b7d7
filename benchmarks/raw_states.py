"""PDE and Mou's estimator as functions of the state itself, without the denoiser's estimate of the
clean sample: agents for ``compare``.

    girsanov compare --config benchmarks/configs/mixture/from_mou.json
"""

from __future__ import annotations

import copy
from typing import Any

from girsanov.agents import PDE
from girsanov.agents.pde.mou.agent import MouPDE
from girsanov.envs.env import ProblemEnv, shell_of


def _without_estimate(env: ProblemEnv) -> ProblemEnv:
    problem: Any = copy.copy(env.problem)
    problem.terminal_estimate = None
    return ProblemEnv(problem, **shell_of(env))


def pde(env: Any, policy: str = "MlpPolicy", **settings: Any) -> PDE:
    """PDE with its defaults."""
    return PDE(policy, _without_estimate(env), **settings)


def mou(env: Any, **settings: Any) -> MouPDE:
    """Mou's estimator, on uncontrolled paths seen at random times."""
    return MouPDE.tuned(_without_estimate(env), **settings)
