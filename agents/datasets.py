"""Datasets of Minari, as recorded paths: what ``minari.DataCollector`` has kept of an environment.

    env = minari.DataCollector(gym.make("girsanov/Pendulum-v0"), record_infos=True)
    ...                                             # step it, by whatever policy
    dataset = env.create_dataset("pendulum/mine-v0")
    agent = PDE(env="girsanov/Pendulum-v0").fit(dataset)

What a recording needs beyond observations and rewards (states in full, the chain's noise, the
log-ratio of a steered step) is in ``info``, hence ``record_infos=True``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..envs.problem import Problem, device_of
from ..envs.recording import Recording

#: Of every step's ``info``, and of the reset's.
_NEEDED = ("state", "noise", "log_ratio", "task_reward")


def is_dataset(data: Any) -> bool:
    """Whether this is a ``MinariDataset``, of whatever version."""
    return hasattr(data, "iterate_episodes") and hasattr(data, "total_episodes")


def recording_of(dataset: Any, problem: Problem) -> Recording:
    """The finished episodes of a Minari dataset as whole paths of ``problem``.

    Args:
        dataset: recorded from an environment of the problem, in the control form of its actions:
            in the noise form the policy alone knows the log-ratios.
        problem: where it was recorded; it tells the last running reward from the terminal one,
            which the environment gives in one sum.

    Raises:
        ValueError: no finished episode, infos that were not recorded, actions that are the noise,
            or shapes that are not the problem's.
    """
    horizon, x = problem.horizon, problem.initial(1, _generator(problem))
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _NEEDED}
    for episode in dataset.iterate_episodes():
        if not episode.terminations[-1]:
            continue  # cut off: it has seen no terminal reward
        infos = episode.infos or {}
        missing = [name for name in _NEEDED if name not in infos]
        if missing:
            raise ValueError(
                "dataset must hold the infos of its steps: record it by"
                f" DataCollector(env, record_infos=True); it lacks {missing}"
            )
        noise = np.asarray(infos["noise"])[1:]
        actions = np.asarray(episode.actions)
        if noise.size == actions.size and (noise.ravel() == actions.ravel()).all():
            raise ValueError(
                'dataset must be recorded from an environment with actions="control"; its actions'
                " are the noise itself, of which the policy alone knows the log-ratios"
            )
        for name in _NEEDED:
            column = np.asarray(infos[name])
            if len(column) != horizon + 1:
                raise ValueError(
                    f"dataset must be of episodes of {horizon} steps, as the problem's are; got one"
                    f" of {len(column) - 1}"
                )
            columns[name].append(column)
    if not columns["state"]:
        raise ValueError("dataset must hold a finished episode; got none")

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        try:
            stacked = np.stack(columns[name]).reshape(len(columns[name]), horizon + 1, *shape)
        except ValueError as error:
            raise ValueError(f"dataset must hold {name} of shape {shape} ({error})") from error
        return torch.from_numpy(stacked).to(x)

    states = tensor("state", tuple(problem.state_shape))
    earned = tensor("task_reward", ())[:, 1:]  # the reset's comes first
    before = problem.running_reward(horizon - 1, states[:, -2])
    rewards = torch.cat([earned[:, :-1], before[:, None]], 1)
    return Recording(
        torch.arange(horizon + 1, device=x.device).expand(len(states), -1),
        states,
        rewards,
        earned[:, -1] - before,
        tensor("log_ratio", ())[:, 1:],
        tensor("noise", tuple(problem.noise_shape))[:, 1:],
    )


def _generator(problem: Problem) -> torch.Generator:
    return torch.Generator(device_of(problem)).manual_seed(0)
