"""A user's script: passes a type checker that finds girsanov's types, and none that does not."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import girsanov
from girsanov.agents import PDE
from girsanov.envs.problem import Problem


def steps(problem: Problem) -> int:
    """The horizon."""
    return problem.horizon


model: PDE = PDE("MlpPolicy", "girsanov/Pendulum-v0")
girsanov.Budget("many")  # type: ignore[arg-type]
steps(3)  # type: ignore[arg-type]
