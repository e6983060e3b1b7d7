"""A particle in each of d double wells, started in the left ones and paid to be in the right ones;
the truth is on a grid.

    dX_i = -d/dx_i kappa_i (X_i^2 - 1)^2 dt + s (u_i dt + dB_i),      y(x) = -sum_i nu_i (x_i -
    1)^2,

in Euler-Maruyama steps. From Nuesken and Richter (2021), "Solving high-dimensional
Hamilton-Jacobi-Bellman PDEs using neural networks: perspectives from the theory of controlled
diffusions and measures on path space": ten coordinates, three of them with deep wells. Coordinates
share neither noise nor reward, so every value is a sum of functions of one variable (``grid``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_positive, checked
from ..problem import AnyProblem, Problem
from .grid import GridSolution, normal_nodes, refine


class DoubleWell(Problem):
    """``girsanov/DoubleWell-v0``.

    The drift's step is ``-4 kappa D c (c^2 - 1)`` at ``c = x`` clamped to ``|c| <= sqrt(1 + 1 / (4
    kappa D))``, where it leads exactly to 0. Farther out plain Euler-Maruyama overshoots the
    origin, from ``sqrt(1 + 1 / (2 kappa D))`` (2.4 in the deep wells of the defaults) by more than
    it came from, and blows up double-exponentially; as Gaussian noise gets anywhere, the reward of
    the unclamped chain has no mean worth the name. Clamped, a step brings a distant particle nearer
    by the clamp's size, and the chain tends to the same diffusion. At the defaults the clamp (1.87
    in the deep wells) is six standard deviations from a well's bottom.

    Args:
        dimension: d, number of coordinates.
        kappa: height of each barrier, a number or ``(d,)``; 5 for the first three coordinates and 1
            for the rest if absent.
        nu: weight of each reward, a number or ``(d,)``; 3 for the first three coordinates and 1 for
            the rest if absent.
        start: mean of X_0, a number or ``(d,)``.
        spread: standard deviation of X_0 in every coordinate; 0 starts at a point, as in the
            literature.
        noise: s.
        steps: horizon T.
        step_size: D, in units of time.
        temperature: price of one nat of KL.
        dtype: of the states.

    Raises:
        ValueError: an argument is out of its range; ``step_size`` is so large that a well's bottom
            is unstable.
    """

    @checked
    def __init__(
        self,
        dimension: int = 10,
        kappa: Any = None,
        nu: Any = None,
        start: Any = -1.0,
        spread: float = 0.1,
        noise: float = 1.0,
        steps: int = 50,
        step_size: float = 0.02,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, number in (
            ("temperature", temperature),
            ("step_size", step_size),
            ("noise", noise),
        ):
            check_positive(name, number)
        for name, whole in (("dimension", dimension), ("steps", steps)):
            check_integer(name, whole)
        if not (math.isfinite(spread) and spread >= 0):
            raise ValueError(f"spread must be a number of at least 0; got {spread!r}")
        self.state_shape = self.noise_shape = (dimension,)
        self.horizon, self.temperature, self.step_size, self.noise, self.spread = (
            steps,
            temperature,
            step_size,
            noise,
            spread,
        )
        deep = torch.arange(dimension) < 3
        self.kappa = _per_coordinate(
            "kappa", torch.where(deep, 5.0, 1.0) if kappa is None else kappa, dimension, dtype
        )
        self.nu = _per_coordinate(
            "nu", torch.where(deep, 3.0, 1.0) if nu is None else nu, dimension, dtype
        )
        self.start = _per_coordinate("start", start, dimension, dtype)
        if not (self.kappa > 0).all() or not (self.nu >= 0).all():
            raise ValueError(
                f"kappa must be positive and nu at least 0; got {self.kappa.tolist()} and"
                f" {self.nu.tolist()}"
            )
        largest = 1 / (4 * float(self.kappa.max()))
        if step_size >= largest:
            raise ValueError(
                f"step_size must be below 1 / (4 max kappa) = {largest:.4g}; got {step_size!r}"
            )
        self._truth: GridSolution | None = None

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """``start`` plus normal noise of size ``spread``."""
        unit = torch.randn(
            n, len(self.start), generator=generator, device=generator.device, dtype=self.start.dtype
        )
        return self.start + self.spread * unit

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """One Euler-Maruyama step with the clamp of the class's docstring."""
        return self._step(x, z, self.kappa)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """``-sum_i nu_i (x_i - 1)^2``."""
        return -(self.nu * (x - 1).square()).sum(1)

    def success(self, x: Tensor) -> Tensor:
        """Every coordinate right of its barrier."""
        return (x > 0).all(1)

    def optimal_value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``V_k(x)`` of the best policy of the discrete chain, ``(n,)``."""
        truth, row = self._solution(x.device)
        return truth.read(truth.value, k, x, row).sum(1)

    def log_moment_value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``beta log E^0[exp(y / beta) | X_k = x]``, ``(n,)``."""
        truth, row = self._solution(x.device)
        return truth.read(truth.log_moment, k, x, row).sum(1)

    def optimal_control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The best control ``(n, d)``."""
        truth, row = self._solution(x.device)
        return truth.read(truth.control, k, x, row)

    def optimal_objective(self) -> float:
        """``E V_0(X_0)``: the largest objective that any policy attains."""
        return float(self._at_start(self._solution(torch.device("cpu"))[0])[0].sum())

    def log_moment_objective(self) -> float:
        """``beta log E^0 exp(return / beta)``, over the initial law too: what ``certificate``
        estimates.
        """
        return float(self._at_start(self._solution(torch.device("cpu"))[0])[1].sum())

    def to(
        self: AnyProblem, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AnyProblem:
        """As ``Problem.to``; the solution is for the parameters as rounded, so that a new dtype
        needs a new one.
        """
        moved = super().to(device, dtype)
        if dtype is not None:
            moved._truth = None  # type: ignore[attr-defined]
        return moved

    def _step(self, x: Tensor, z: Tensor, kappa: Tensor) -> Tensor:
        limit = (1 + 1 / (4 * self.step_size * kappa)).sqrt()
        c = torch.minimum(torch.maximum(x, -limit), limit)
        return (
            x
            + 4 * self.step_size * kappa * c * (1 - c * c)
            + self.noise * math.sqrt(self.step_size) * z
        )

    def _rows(self) -> tuple[Tensor, Tensor]:
        """The different pairs ``(kappa, nu)``, ``(rows, 2)`` in float64, and which of them each
        coordinate has, ``(d,)``.
        """
        return torch.unique(
            torch.stack([self.kappa, self.nu], 1).double(), dim=0, return_inverse=True
        )

    def _solution(self, device: torch.device) -> tuple[GridSolution, Tensor]:
        """The solution on ``device``, found at the first call, and the row of each coordinate."""
        pairs, row = self._rows()
        if self._truth is None:
            kappa, nu = pairs.cpu()[:, :, None, None].unbind(1)  # (rows, 1, 1)
            # where the density of a particle that has settled in its well is exp(-40) of the
            # bottom's; or, in shallow wells, eight standard deviations of free diffusion from the
            # bottom
            settled = float((1 + self.noise * (20 / kappa).sqrt()).sqrt().max())
            reach = min(settled, 1 + 8 * self.noise * math.sqrt(self.horizon * self.step_size))
            reach = max(
                reach, float(self.start.abs().max()) + 6 * self.spread
            ) + 4 * self.noise * math.sqrt(self.step_size)
            self._truth = refine(
                lambda k, x, z: self._step(x, z, kappa),
                lambda x: -(nu if x.dim() == 3 else nu[..., 0]) * (x - 1).square(),
                measure=self._at_start,
                tolerance=3e-5,
                nodes=257,
                horizon=self.horizon,
                temperature=self.temperature,
                lower=-reach,
                upper=reach,
                rows=len(pairs),
            )
        if self._truth.value.coefficients.device != device:
            self._truth = self._truth.to(device)
        return self._truth, row.to(device)

    def _at_start(self, truth: GridSolution) -> Tensor:
        """Both objectives of each coordinate, ``(2, d)``."""
        z, weight = normal_nodes(0.4)
        x = self.start.double().cpu() + self.spread * z[:, None]
        row = self._rows()[1].cpu()
        optimum = weight @ truth.read(truth.value, 0, x, row)
        exponent = (
            truth.read(truth.log_moment, 0, x, row) / self.temperature + weight.log()[:, None]
        )
        return torch.stack([optimum, self.temperature * torch.logsumexp(exponent, 0)])


def _per_coordinate(name: str, value: Any, dimension: int, dtype: torch.dtype) -> Tensor:
    """A number or ``(d,)`` as a finite tensor ``(d,)``."""
    tensor = torch.as_tensor(value, dtype=dtype)
    if tuple(tensor.shape) not in ((), (dimension,)) or not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be a finite number or {dimension} of them; got {value!r}")
    return tensor.expand(dimension).clone()
