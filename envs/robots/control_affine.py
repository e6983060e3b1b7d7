"""Control-affine diffusions ``dX = b(t, X) dt + G(t, X) (u dt + dB)`` with reward rate r and cost
``beta |u|^2 / 2``.

``ControlAffine`` makes a problem from functions, ``Diffusion`` from a class that writes them as
methods, as the robots do.

One step of length D is ``F_k(x, z)``, in which noise and control enter together as the push ``G(t,
x) sqrt(D) z``; a control in noise units is ``a = u sqrt(D)``, and ``r_k = r D``. Whatever
integrates the drift, ``|a|^2 / 2`` stays the exact KL of the chain, because the control enters
where the noise does. G may be ``d x m`` with m < d: a motor moves its joint, not the hand.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_positive, checked
from ..problem import Problem

#: Time: a float, or a column ``(n, 1)`` with one time per row, so that it broadcasts against
#: coordinates ``(n, d)``.
Time = float | Tensor
Drift = Callable[[Time, Tensor], Tensor]


def euler(drift: Drift, t: Time, q: Tensor, step: float, push: Tensor) -> Tensor:
    """Euler-Maruyama: ``q + b D + push``."""
    return q + drift(t, q) * step + push


def rk4(drift: Drift, t: Time, q: Tensor, step: float, push: Tensor) -> Tensor:
    """The classical Runge-Kutta step of ``dq/dt = b(t, q) + push / D``.

    Fourth order in D where nothing pushes. The push is held over the step, as a digital controller
    holds its output, and its direction is G's at the start of the step, so that the limit is Ito's
    diffusion for every G.
    """
    held, half = push / step, 0.5 * step
    first = drift(t, q) + held
    second = drift(t + half, q + half * first) + held
    third = drift(t + half, q + half * second) + held
    fourth = drift(t + step, q + step * third) + held
    return q + step / 6 * (first + 2 * (second + third) + fourth)


INTEGRATORS = {"euler": euler, "rk4": rk4}


def saturated(square: Tensor, limit: float) -> Tensor:
    """``square / (1 + square / limit)``: ``square`` near 0, bounded by ``limit``, and smooth (Geman
    and McClure, 1987).

    The rewards of a problem must be bounded for ``exp(return / beta)`` to have a mean; an infinite
    ``limit`` changes nothing.
    """
    return square / (1 + square / limit)


def check_at_least_zero(**values: float) -> None:
    """Raise a ValueError unless every one of the named ``values`` is a finite number of at least
    zero.
    """
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number of at least 0; got {value!r}")


class Diffusion(Problem):
    """A chain on coordinates q, ``(n, d)``, whose subclass writes ``start``, ``drift``,
    ``control_matrix`` and the rewards.

    Where a coordinate is an angle, the state holds its cosine and sine in its place: continuous
    over any number of turns, as functions of the state (networks, kernels) need it, and an
    observation as it is. The methods see the angle itself, in [-pi, pi], and must be periodic in
    it; every step starts from a point on the circle, so no error gathers.

    Args:
        dimension: d, number of coordinates.
        noises: m, number of noises and controls.
        step_size: D, in units of time.
        horizon: number of steps T.
        temperature: price of one nat of KL.
        angles: which coordinates are angles, rad.
        integrator: ``"euler"`` or ``"rk4"``; see the functions of these names.
        refine: number of steps that each of the ``horizon`` steps is cut into: the same diffusion
            and the same rewards in steps of ``D / refine``. A control of one noise unit is then
            ``sqrt(refine)`` times as strong.
        dtype: of the states.

    Raises:
        ValueError: an argument is out of its range.
    """

    @checked
    def __init__(
        self,
        dimension: int,
        noises: int,
        step_size: float,
        horizon: int,
        temperature: float,
        angles: Sequence[int] = (),
        integrator: str = "euler",
        refine: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_positive("step_size", step_size)
        check_positive("temperature", temperature)
        for name, whole in (("horizon", horizon), ("refine", refine)):
            check_integer(name, whole)
        if integrator not in INTEGRATORS:
            raise ValueError(f"integrator must be one of {sorted(INTEGRATORS)}; got {integrator!r}")
        if not set(angles) <= set(range(dimension)):
            raise ValueError(
                f"angles must be coordinates in 0..{dimension - 1}; got {tuple(angles)}"
            )
        self.state_shape, self.noise_shape = (dimension + len(set(angles)),), (noises,)
        self.horizon, self.temperature, self.step_size = (
            horizon * refine,
            temperature,
            step_size / refine,
        )
        self._is_angle = tuple(i in angles for i in range(dimension))
        self._integrate = INTEGRATORS[integrator]
        self._like = torch.empty(
            0, dtype=dtype
        )  # carries the device and dtype of the states through `to`

    @abstractmethod
    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` initial coordinates ``(n, d)`` on the generator's device, in any dtype."""

    @abstractmethod
    def drift(self, t: Time, q: Tensor) -> Tensor:
        """``b(t, q)``, ``(n, d)``."""

    @abstractmethod
    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """``G(t, q)``, ``(n, d, m)``, or ``(d, m)`` if it is constant."""

    @abstractmethod
    def final_reward(self, q: Tensor) -> Tensor:
        """``y(q)``, ``(n,)``."""

    def reward_rate(self, t: Time, q: Tensor) -> Tensor:
        """``r(t, q)``, ``(n,)``, per unit of time; zero unless overridden."""
        return q.new_zeros(len(q))

    def time(self, k: int | Tensor) -> Time:
        """The time of step ``k``: a float, or a column for one step per row."""
        return (
            k * self.step_size
            if isinstance(k, int)
            else (k.to(self._like.dtype) * self.step_size)[:, None]
        )

    def state(self, q: Tensor) -> Tensor:
        """States of coordinates ``(n, d)``: every angle becomes its cosine and sine."""
        if not any(self._is_angle):
            return q
        columns = zip(self._is_angle, q.unbind(1), strict=True)
        return torch.stack(
            [part for turns, c in columns for part in ((c.cos(), c.sin()) if turns else (c,))], 1
        )

    def coordinates(self, x: Tensor) -> Tensor:
        """Coordinates ``(n, d)`` of states, angles in [-pi, pi]; the inverse of ``state``."""
        if not any(self._is_angle):
            return x
        columns, q = iter(x.unbind(1)), []
        for turns in self._is_angle:
            c = next(columns)
            q.append(torch.atan2(next(columns), c) if turns else c)
        return torch.stack(q, 1)

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """The states of ``start``."""
        return self.state(self.start(n, generator).to(self._like))

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """One step of the integrator, pushed by ``G sqrt(D) z``."""
        t, q = self.time(k), self.coordinates(x)
        matrix = self.control_matrix(t, q)
        push = z @ matrix.T if matrix.dim() == 2 else torch.einsum("nij,nj->ni", matrix, z)
        return self.state(
            self._integrate(self.drift, t, q, self.step_size, math.sqrt(self.step_size) * push)
        )

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``r(t, q) D``."""
        return self.reward_rate(self.time(k), self.coordinates(x)) * self.step_size

    def terminal_reward(self, x: Tensor) -> Tensor:
        """``y(q)``."""
        return self.final_reward(self.coordinates(x))


class ControlAffine(Diffusion):
    """A ``Diffusion`` made of functions of the coordinates.

    Args:
        drift: ``b(t, q) -> (n, d)``.
        control_matrix: ``G``, ``(d, m)``, or a function ``G(t, q) -> (n, d, m)``.
        terminal_reward: ``y(q) -> (n,)``.
        initial: ``initial(n, generator) -> (n, d)``; moved to the problem's device and dtype.
        step_size: D, in units of time.
        horizon: number of steps T.
        temperature: price of one nat of KL.
        running_reward: rate ``r(t, q) -> (n,)``, per unit of time; zero if absent.
        others: ``angles``, ``integrator`` and ``refine``, as in ``Diffusion``.

    Functions that are ``nn.Module`` follow ``to``; others must take device and dtype from their
    arguments.

    Raises:
        ValueError: an argument is out of its range, or what a function returns has the wrong shape.

    Example: a particle in a double well, rewarded for ending in the right one::

        double_well = ControlAffine(
            drift=lambda t, q: 4 * q * (1 - q**2),
            control_matrix=[[1.0]],
            terminal_reward=lambda q: -(q[:, 0] - 1).square(),
            initial=lambda n, generator: torch.full((n, 1), -1.0),
            step_size=0.02,
            horizon=100,
            temperature=0.3,
        )
    """

    @checked
    def __init__(
        self,
        *,
        drift: Drift,
        control_matrix: Any,
        terminal_reward: Callable[[Tensor], Tensor],
        initial: Callable[[int, torch.Generator], Tensor],
        step_size: float,
        horizon: int,
        temperature: float,
        running_reward: Callable[[Time, Tensor], Tensor] | None = None,
        **others: Any,
    ) -> None:
        q = initial(1, torch.Generator().manual_seed(0))
        if not (isinstance(q, Tensor) and q.dim() == 2):
            got = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
            raise ValueError(
                f"initial(n, generator) must return a tensor of shape (n, d); got {got} for n = 1"
            )
        d = q.shape[1]
        matrix = (
            control_matrix(0.0, q)
            if callable(control_matrix)
            else torch.as_tensor(control_matrix, dtype=q.dtype)
        )
        if tuple(matrix.shape[:-1]) != ((1, d) if callable(control_matrix) else (d,)):
            allowed = f"(d, m), or (n, d, m) from a function, with d = {d}"
            raise ValueError(f"control_matrix must have shape {allowed}; got {tuple(matrix.shape)}")
        super().__init__(
            d, matrix.shape[-1], step_size, horizon, temperature, **{"dtype": q.dtype, **others}
        )
        self._drift, self._control_matrix = (
            drift,
            control_matrix if callable(control_matrix) else matrix,
        )
        self._reward_rate, self._final_reward, self._start = (
            running_reward,
            terminal_reward,
            initial,
        )

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """The given ``initial``."""
        return self._start(n, generator)

    def drift(self, t: Time, q: Tensor) -> Tensor:
        """The given ``drift``."""
        return self._drift(t, q)

    def control_matrix(self, t: Time, q: Tensor) -> Tensor:
        """The given ``control_matrix``."""
        return (
            self._control_matrix(t, q) if callable(self._control_matrix) else self._control_matrix
        )

    def final_reward(self, q: Tensor) -> Tensor:
        """The given ``terminal_reward``."""
        return self._final_reward(q)

    def reward_rate(self, t: Time, q: Tensor) -> Tensor:
        """The given ``running_reward``."""
        return super().reward_rate(t, q) if self._reward_rate is None else self._reward_rate(t, q)
