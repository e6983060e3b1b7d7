"""Recorded paths: what regression learns from, whoever gathered it, in memory or on disk.

A path is a list of visits: the states seen at some of its steps and the reward collected in
between. Whole trajectories are paths visited at every step; ``(k, x, k', x', reward)`` tuples are
paths of two visits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .checks import check_generator, check_integer, shown, words_of
from .problem import Problem, Trajectories, check_problem, device_of, rollout


class Recording(NamedTuple):
    """``n`` paths seen at ``S`` of their steps each, path first.

    A path that was seen less often than others repeats its last visit (with zero reward in
    between): that says nothing new. Steps never fall along a path. The terminal reward of a path
    whose last visit is before the horizon is not used.
    """

    steps: Tensor  # (n, S) integers from 0 to the horizon
    states: Tensor  # (n, S, *state_shape)
    rewards: Tensor  # (n, S - 1): running reward from one visit to the next
    terminal_reward: Tensor  # (n,)
    #: (n, S - 1) log dP^0/dP^pi between visits; None: no control was applied
    log_ratios: Tensor | None = None
    #: (n, S - 1, *noise_shape) of paths seen at every step, None if not logged. Black-box
    #: simulators need them.
    noises: Tensor | None = None
    controls: Tensor | None = None

    @classmethod
    def of(cls, paths: Trajectories) -> Recording:
        """Whole trajectories as a recording."""
        if not isinstance(paths, Trajectories):
            raise ValueError(f"paths must be Trajectories; got {shown(paths)}")
        n_steps, n = paths.noises.shape[:2]
        steps = torch.arange(n_steps + 1, device=paths.states.device).expand(n, -1)
        flipped = (
            paths.states,
            paths.running_rewards,
            paths.log_ratios,
            paths.noises,
            paths.controls,
        )
        states, rewards, log_ratios, noises, controls = (
            tensor.transpose(0, 1) for tensor in flipped
        )
        return cls(steps, states, rewards, paths.terminal_reward, log_ratios, noises, controls)

    def at_random_times(self, visits: int, generator: torch.Generator) -> Recording:
        """The same paths, each seen at ``visits`` random steps and at its end; noises are lost.

        Args:
            visits: from 1 to the number of visits so far.
            generator: draws the steps, each path's own.
        """
        check_generator("generator", generator)
        n, seen = self.steps.shape
        if not (_is_whole(visits) and 1 <= visits < seen):
            raise ValueError(f"visits must be between 1 and {seen - 1}; got {visits!r}")
        order = (
            torch.rand(n, seen - 1, generator=generator, device=self.steps.device)
            .argsort(1)[:, :visits]
            .sort(1)
            .values
        )
        order = torch.cat([order, torch.full_like(order[:, :1], seen - 1)], 1)
        row = torch.arange(n, device=order.device)[:, None]

        def between(parts: Tensor | None) -> Tensor | None:
            if parts is None:
                return None
            total = torch.cat([torch.zeros_like(parts[:, :1]), parts.cumsum(1)], 1)[row, order]
            return total.diff(dim=1)

        rewards = between(self.rewards)
        assert rewards is not None
        return Recording(
            self.steps[row, order],
            self.states[row, order],
            rewards,
            self.terminal_reward,
            between(self.log_ratios),
        )

    def validate(self, problem: Problem) -> None:
        """Raise one clear ValueError unless these are finite numbers in the shapes of
        ``problem``.
        """
        check_problem(problem)
        for name, value in self._asdict().items():
            if not (isinstance(value, Tensor) or value is None and name in _OPTIONAL):
                raise ValueError(f"{name} must be a tensor; got {shown(value)}")
        if (
            self.steps.dim() != 2
            or not len(self.steps)
            or self.steps.shape[1] < 2
            or self.steps.is_floating_point()
        ):
            kind = f"{tuple(self.steps.shape)} of {self.steps.dtype}"
            raise ValueError(
                f"steps must be integers (n, S) with n >= 1 paths of S >= 2 visits; got {kind}"
            )
        n, visits = self.steps.shape
        wanted = {
            "states": (n, visits, *problem.state_shape),
            "rewards": (n, visits - 1),
            "terminal_reward": (n,),
            "log_ratios": (n, visits - 1),
            "noises": (n, visits - 1, *problem.noise_shape),
            "controls": (n, visits - 1, *problem.noise_shape),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}; got {tuple(value.shape)}")
            used = (
                value[self.steps[:, -1] == problem.horizon] if name == "terminal_reward" else value
            )
            if not torch.isfinite(used).all():
                bad = int((~torch.isfinite(used)).sum())
                raise ValueError(
                    f"{name} must be finite; got {bad} NaN or infinite of {used.numel()} values"
                )
        low, high = int(self.steps.min()), int(self.steps.max())
        if low < 0 or high > problem.horizon or (self.steps.diff(dim=1) < 0).any():
            allowed = f"not fall along a path and stay between 0 and the horizon {problem.horizon}"
            raise ValueError(f"steps must {allowed}; got steps from {low} to {high}")
        if (self.noises is not None or self.controls is not None) and (
            self.steps.diff(dim=1) > 1
        ).any():
            raise ValueError(
                "noises and controls must come with paths seen at every step; got steps that are"
                " not neighbours"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears under its name only when it is complete."""
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"path must name a file; got {shown(path)}")
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        # clones: safetensors refuses tensors that share memory
        tensors = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in self._asdict().items()
            if value is not None
        }
        try:
            safetensors.torch.save_file(tensors, partial)
            os.replace(partial, target)
        except safetensors.SafetensorError as error:  # its word for a full disk
            raise OSError(f"{target} could not be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read a whole file that ``save`` wrote; ``RecordedPaths`` reads it in parts."""
        return next(iter(RecordedPaths(path, chunk=None)))


class RecordedPaths:
    """A file written by ``Recording.save``, read in parts: iterate over it as often as you like.

    Args:
        path: the file.
        chunk: paths in a part; None: all in one.

    Raises:
        ValueError: there is no such file, or it is corrupt or foreign.
    """

    def __init__(self, path: str | os.PathLike[str], chunk: int | None = 4096) -> None:
        if chunk is not None and not (_is_whole(chunk) and chunk >= 1):
            raise ValueError(
                f"chunk must be at least 1, or None for all in one part; got {shown(chunk)}"
            )
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"path must name recorded paths; got {shown(path)}")
        self.path, self.chunk = Path(path), chunk
        if not self.path.is_file():
            raise ValueError(f"path must name recorded paths; there is no file {str(path)!r}")
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                names = set(file.keys())
                n = file.get_slice("steps").get_shape()[0] if "steps" in names else 0
            if n < 1 and "steps" in names:
                raise IndexError("it holds no path")
        except (safetensors.SafetensorError, IndexError) as error:
            raise ValueError(
                f"path must name recorded paths; {str(path)!r} is corrupt or foreign"
                f" ({words_of(error)})"
            ) from error
        if missing := {"steps", "states", "rewards", "terminal_reward"} - names:
            raise ValueError(
                f"path must name recorded paths; {str(path)!r} lacks {sorted(missing)}"
            )
        self.names = [name for name in Recording._fields if name in names]
        self.n = n

    def __len__(self) -> int:
        """Number of parts."""
        return 1 if self.chunk is None else -(-self.n // self.chunk)

    def __iter__(self) -> Iterator[Recording]:
        size = self.n if self.chunk is None else self.chunk
        with safetensors.safe_open(self.path, "pt") as file:
            parts = {name: file.get_slice(name) for name in self.names}
            for start in range(0, self.n, size):
                yield Recording(
                    **{name: part[start : start + size] for name, part in parts.items()}
                )


class SimulatedPaths:
    """Uncontrolled paths that are simulated when they are read, always the same: a data set that
    needs no memory.

    Args:
        problem: what to simulate.
        n: number of paths.
        seed: of their noise.
        chunk: paths in a part.
    """

    def __init__(self, problem: Problem, n: int, seed: int, chunk: int = 4096) -> None:
        check_integer("n", n)
        check_integer("chunk", chunk)
        check_integer("seed", seed, 0)
        self.problem, self.n, self.seed, self.chunk = problem, n, seed, chunk

    def __len__(self) -> int:
        """Number of parts."""
        return -(-self.n // self.chunk)

    def __iter__(self) -> Iterator[Recording]:
        generator = torch.Generator(device_of(self.problem)).manual_seed(self.seed)
        for start in range(0, self.n, self.chunk):
            with torch.no_grad():
                yield Recording.of(
                    rollout(self.problem, None, min(self.chunk, self.n - start), generator)
                )


#: What a recording may lack.
_OPTIONAL = ("log_ratios", "noises", "controls")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
