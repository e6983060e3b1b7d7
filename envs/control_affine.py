"""Control-affine diffusions ``dX = b(t, X) dt + G(t, X) (u dt + dB)`` with reward rate r and cost ``beta |u|^2 / 2``.

The Euler-Maruyama chain of step D is ``F_k(x, z) = x + b D + G sqrt(D) z``, ``r_k = r D``; a control in noise units is
``a = u sqrt(D)``. G may be ``d x m`` with m < d: noise and control enter through the actuators only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problem import Problem, check_positive

#: Time: a float, or a column ``(n, 1)`` with one time per row, so that it broadcasts against states ``(n, d)``.
Time = float | Tensor


class ControlAffine(Problem):
    """An Euler-Maruyama chain made of functions.

    Args:
        drift: ``b(t, x) -> (n, d)``.
        control_matrix: ``G``, ``(d, m)``, or a function ``G(t, x) -> (n, d, m)``.
        terminal_reward: ``y(x) -> (n,)``.
        initial: ``initial(n, generator) -> (n, d)``; moved to the problem's device and dtype.
        step_size: D, in units of time.
        horizon: number of steps T.
        temperature: price of one nat of KL.
        running_reward: rate ``r(t, x) -> (n,)``, per unit of time; zero if absent.

    Functions that are ``nn.Module`` follow ``to``; others must take device and dtype from their arguments.

    Example: a particle in a double well, rewarded for ending in the right one::

        double_well = ControlAffine(
            drift=lambda t, x: 4 * x * (1 - x**2),
            control_matrix=[[1.0]],
            terminal_reward=lambda x: -(x[:, 0] - 1).square(),
            initial=lambda n, generator: torch.full((n, 1), -1.0),
            step_size=0.02,
            horizon=100,
            temperature=0.3,
        )
    """

    def __init__(
        self,
        *,
        drift: Callable[[Time, Tensor], Tensor],
        control_matrix: Any,
        terminal_reward: Callable[[Tensor], Tensor],
        initial: Callable[[int, torch.Generator], Tensor],
        step_size: float,
        horizon: int,
        temperature: float,
        running_reward: Callable[[Time, Tensor], Tensor] | None = None,
    ) -> None:
        check_positive("step_size", step_size)
        check_positive("temperature", temperature)
        x = initial(1, torch.Generator().manual_seed(0))
        if not (isinstance(x, Tensor) and x.dim() == 2):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"initial(n, generator) must return a tensor of shape (n, d); got {got} for n = 1")
        matrix = control_matrix(0.0, x) if callable(control_matrix) else torch.as_tensor(control_matrix, dtype=x.dtype)
        if tuple(matrix.shape[:-1]) != ((1, x.shape[1]) if callable(control_matrix) else (x.shape[1],)):
            allowed = f"(d, m), or (n, d, m) from a function, with d = {x.shape[1]}"
            raise ValueError(f"control_matrix must have shape {allowed}; got {tuple(matrix.shape)}")
        self.state_shape, self.noise_shape = (x.shape[1],), (matrix.shape[-1],)
        self.horizon, self.temperature, self.step_size = horizon, temperature, step_size
        self.drift = drift
        self.control_matrix = control_matrix if callable(control_matrix) else matrix
        self._reward_rate, self._terminal_reward, self._initial = running_reward, terminal_reward, initial
        self._like = x.new_empty(0)  # carries the device and dtype of the states through `to`

    def time(self, k: int | Tensor) -> Time:
        """The time of step ``k``: a float, or a column for one step per row."""
        return k * self.step_size if isinstance(k, int) else (k * self.step_size)[:, None]

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the given initial law."""
        return self._initial(n, generator).to(self._like)

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """``x + b D + G sqrt(D) z``."""
        t, matrix = self.time(k), self.control_matrix
        pushed = torch.einsum("nij,nj->ni", matrix(t, x), z) if callable(matrix) else z @ matrix.T
        return x + self.drift(t, x) * self.step_size + math.sqrt(self.step_size) * pushed

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``r(t, x) D``."""
        return x.new_zeros(len(x)) if self._reward_rate is None else self._reward_rate(self.time(k), x) * self.step_size

    def terminal_reward(self, x: Tensor) -> Tensor:
        """``y(x)``."""
        return self._terminal_reward(x)
