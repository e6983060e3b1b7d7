"""Linear-quadratic chains: the optimum of the discrete chain and the certificate, both in closed
form.

    X_{k+1} = A_k X_k + b_k + C_k (a_k + W_k),   r_k(x) = -x^T R_k x / 2 + q_k^T x,
    y(x) = -(x - target)^T Q (x - target) / 2 + slope^T x,   X_0 ~ N(mean, covariance).

Write ``V_{k+1}(x) = -x^T P x / 2 + p^T x + c`` and, at the uncontrolled mean ``m = A x + b``, ``h =
C^T (p - P m)`` and ``S = beta I + C^T P C``. Then

    max_a E_W V_{k+1}(m + C (a + W)) - beta |a|^2 / 2  =  V_{k+1}(m) + h^T S^-1 h / 2 - tr(C^T P C)
    / 2,   a* = S^-1 h, beta log E_W exp(V_{k+1}(m + C W) / beta)          =  V_{k+1}(m) + h^T S^-1
    h / 2 - beta log det(S / beta) / 2.

So the best policy and the certificate (Cole-Hopf) obey one Riccati recursion; only their constants
differ, by ``sum_k (tr M - beta log det(I + M / beta)) / 2 >= 0`` with ``M = C^T P C``: what
Gaussian shifts cannot reach.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_integer, check_positive, checked
from ..problem import AnyProblem, Problem


class Quadratics(NamedTuple):
    """``-x^T matrix x / 2 + slope^T x + constant`` at every step ``0..T``, with both constants; and
    the optimal control.
    """

    matrix: Tensor  # P (T + 1, d, d)
    slope: Tensor  # p (T + 1, d)
    constant: Tensor  # of the optimum of the chain (T + 1,)
    log_constant: Tensor  # of the log moment, hence of the certificate (T + 1,)
    gain: Tensor  # a* = gain x + shift, (T, m, d)
    shift: Tensor  # (T, m)


class LinearQuadratic(Problem):
    """A linear chain with quadratic rewards. Every matrix may be constant or, with one more leading
    dimension T, per step.

    Args:
        drift_matrix: ``A``, ``(d, d)`` or ``(T, d, d)``.
        noise_matrix: ``C``, ``(d, m)`` or ``(T, d, m)``; noise and control enter through it.
        terminal_matrix: ``Q``, ``(d, d)``, symmetric, of any sign.
        target: where the terminal quadratic is centred, ``(d,)``; zero if absent.
        terminal_slope: ``(d,)``; zero if absent.
        running_matrix: ``R``, symmetric, ``(d, d)`` or ``(T, d, d)``; zero if absent.
        running_slope: ``q``, ``(d,)`` or ``(T, d)``; zero if absent.
        offset: ``b``, ``(d,)`` or ``(T, d)``; zero if absent.
        initial_mean: ``(d,)``; zero if absent.
        initial_covariance: ``(d, d)``, positive semi-definite; zero (a fixed start) if absent.
        horizon: number of steps T.
        temperature: price of one nat of KL.
        dtype: of the states. The solution is computed in float64 for the matrices as rounded to
            ``dtype``, on the CPU; ``to`` moves it.

    Raises:
        ValueError: a shape, a symmetry or a number is wrong, or the value is infinite (then it
            names the step).
    """

    @checked
    def __init__(
        self,
        *,
        drift_matrix: Any,
        noise_matrix: Any,
        terminal_matrix: Any,
        horizon: int,
        temperature: float,
        target: Any = None,
        terminal_slope: Any = None,
        running_matrix: Any = None,
        running_slope: Any = None,
        offset: Any = None,
        initial_mean: Any = None,
        initial_covariance: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_positive("temperature", temperature)
        check_integer("horizon", horizon)
        shape = torch.as_tensor(noise_matrix).shape
        if len(shape) not in (2, 3):
            raise ValueError(
                f"noise_matrix must have shape (d, m) or (T, d, m); got {tuple(shape)}"
            )
        d, m = shape[-2:]
        self.state_shape, self.noise_shape = (d,), (m,)
        self.horizon, self.temperature = horizon, temperature
        per_step = (horizon,)
        self.drift_matrix = _table("drift_matrix", drift_matrix, per_step, (d, d), dtype)
        self.noise_matrix = _table("noise_matrix", noise_matrix, per_step, (d, m), dtype)
        self.offset = _table("offset", offset, per_step, (d,), dtype)
        self.running_matrix = _symmetric(
            "running_matrix", _table("running_matrix", running_matrix, per_step, (d, d), dtype)
        )
        self.running_slope = _table("running_slope", running_slope, per_step, (d,), dtype)
        self.terminal_matrix = _symmetric(
            "terminal_matrix", _table("terminal_matrix", terminal_matrix, (), (d, d), dtype)
        )
        self.target = _table("target", target, (), (d,), dtype)
        self.terminal_slope = _table("terminal_slope", terminal_slope, (), (d,), dtype)
        self.initial_mean = _table("initial_mean", initial_mean, (), (d,), dtype)
        covariance = _symmetric(
            "initial_covariance",
            _table("initial_covariance", initial_covariance, (), (d, d), torch.float64),
        )
        values, vectors = torch.linalg.eigh(covariance)
        if values.min() < -1e-9 * values.abs().max():
            raise ValueError(
                "initial_covariance must be positive semi-definite; got eigenvalues"
                f" {values.tolist()}"
            )
        self.initial_scale = (vectors * values.clamp(min=0).sqrt()).to(
            dtype
        )  # X_0 = mean + initial_scale @ noise
        self.solution = self._solve()

    @classmethod
    @checked
    def damped_rotation(
        cls, dimension: int = 4, steps: int = 50, temperature: float = 0.5, seed: int = 0
    ) -> LinearQuadratic:
        """``girsanov/LinearQuadratic-v0``: a stable random rotation on [0, 1], to be steered two
        units off its centre.

        Ornstein-Uhlenbeck with rotation, ``dX = (K - I) X dt + G (u dt + dB)``, K skew and G
        orthogonal up to column scales in [0.75, 1.25], both random by ``seed``; the drift is
        integrated exactly over each of the ``steps``.
        """
        check_integer("dimension", dimension)
        generator = torch.Generator().manual_seed(seed)
        first, second = torch.randn(
            2, dimension, dimension, generator=generator, dtype=torch.float64
        )
        scales = 0.75 + 0.5 * torch.rand(dimension, generator=generator, dtype=torch.float64)
        direction = torch.randn(dimension, generator=generator, dtype=torch.float64)
        eye, step = torch.eye(dimension, dtype=torch.float64), 1 / steps
        return cls(
            drift_matrix=torch.linalg.matrix_exp(step * (first - first.T - eye)),
            noise_matrix=step**0.5 * torch.linalg.qr(second).Q * scales,
            running_matrix=0.5 * step * eye,
            terminal_matrix=eye,
            target=2 * direction / direction.norm(),
            initial_covariance=0.25 * eye,
            horizon=steps,
            temperature=temperature,
        )

    @classmethod
    @checked
    def ornstein_uhlenbeck(
        cls,
        dimension: int = 20,
        *,
        drift_matrix: Any = 0.2,
        control_matrix: Any = 1.0,
        running_matrix: Any = 0.4,
        terminal_matrix: Any = 0.2,
        offset: Any = 0.0,
        running_slope: Any = 0.0,
        terminal_slope: Any = 0.0,
        target: Any = 0.0,
        initial_mean: Any = 0.0,
        initial_covariance: Any = 0.25,
        steps: int = 50,
        step_size: float = 0.02,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> LinearQuadratic:
        """``girsanov/OrnsteinUhlenbeck-v0``: an Ornstein-Uhlenbeck process with quadratic rewards,
        ``dX = (A X + c) dt + G (u dt + dB)`` in Euler-Maruyama steps.

        Running and terminal matrix and slope are those of the class, per unit of time where they
        run; A is ``drift_matrix``, c ``offset``, G ``control_matrix`` ``(d, m)``. A number stands
        for that multiple of the identity, or of the vector of ones; everything may vary with the
        step as in the class. The defaults are the easy quadratic problem of Domingo-Enrich et al.
        (2023), "Stochastic optimal control matching", whose costs are ``x^T P x`` and ``x^T Q x``
        without a half: P = 0.2 I, Q = 0.1 I. Their hard one is ``drift_matrix=1, running_matrix=2,
        terminal_matrix=1``. They start at one draw of N(0, I / 4), we at a fresh one each time;
        ``initial_covariance=0`` starts at ``initial_mean``.
        """
        check_positive("step_size", step_size)
        check_integer("dimension", dimension)
        check_integer("steps", steps)

        def matrix(value: Any) -> Tensor:
            given = torch.as_tensor(value, dtype=torch.float64)
            return given * torch.eye(dimension, dtype=torch.float64) if given.dim() == 0 else given

        def vector(value: Any) -> Tensor:
            given = torch.as_tensor(value, dtype=torch.float64)
            return given.expand(dimension) if given.dim() == 0 else given

        noise_matrix = step_size**0.5 * matrix(control_matrix)
        if noise_matrix.dim() < 2 or noise_matrix.shape[-2] != dimension:
            allowed = f"({dimension}, m) or ({steps}, {dimension}, m)"
            raise ValueError(
                f"control_matrix must be a number or of shape {allowed}; got"
                f" {tuple(noise_matrix.shape)}"
            )
        drift = _table(
            "drift_matrix", matrix(drift_matrix), (steps,), (dimension, dimension), torch.float64
        )
        return cls(
            drift_matrix=torch.eye(dimension, dtype=torch.float64) + step_size * drift,
            noise_matrix=noise_matrix,
            offset=step_size * vector(offset),
            running_matrix=step_size * matrix(running_matrix),
            running_slope=step_size * vector(running_slope),
            terminal_matrix=matrix(terminal_matrix),
            terminal_slope=vector(terminal_slope),
            target=vector(target),
            initial_mean=vector(initial_mean),
            initial_covariance=matrix(initial_covariance),
            horizon=steps,
            temperature=temperature,
            dtype=dtype,
        )

    @classmethod
    @checked
    def linear_ornstein_uhlenbeck(
        cls,
        dimension: int = 10,
        *,
        seed: int = 0,
        perturbation: float = 0.1,
        initial_covariance: Any = 0.01,
        **kwargs: Any,
    ) -> LinearQuadratic:
        """``girsanov/LinearOrnsteinUhlenbeck-v0``: an Ornstein-Uhlenbeck process with terminal
        reward ``-sum_i x_i`` and no other.

        ``A = -I + xi`` and ``G = I + xi'``, xi and xi' of independent normal entries of standard
        deviation ``perturbation``, drawn by ``seed``: Nuesken and Richter (2021), who start at 0
        (``initial_covariance=0``). The optimal control does not depend on the state. Other
        arguments: ``ornstein_uhlenbeck``'s, in place of these.
        """
        check_integer("dimension", dimension)
        generator = torch.Generator().manual_seed(seed)
        first, second = perturbation * torch.randn(
            2, dimension, dimension, generator=generator, dtype=torch.float64
        )
        eye = torch.eye(dimension, dtype=torch.float64)
        problem = {"running_matrix": 0.0, "terminal_matrix": 0.0, "terminal_slope": -1.0}
        matrices = {
            "drift_matrix": first - eye,
            "control_matrix": second + eye,
            "initial_covariance": initial_covariance,
        }
        return cls.ornstein_uhlenbeck(dimension, **{**problem, **matrices, **kwargs})

    def to(
        self: AnyProblem, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AnyProblem:
        """As ``Problem.to``, with the solution computed afresh in float64 so that it is exact for
        the new rounding.
        """
        moved = super().to(device, dtype)
        moved.solution = moved._solve()  # type: ignore[attr-defined]
        return moved

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws from ``N(initial_mean, initial_covariance)``."""
        mean = self.initial_mean
        noise = torch.randn(
            n, len(mean), generator=generator, device=generator.device, dtype=mean.dtype
        )
        return mean + noise @ self.initial_scale.T

    def transition(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """``A_k x + b_k + C_k z``."""
        return _times(self.drift_matrix, k, x) + self.offset[k] + _times(self.noise_matrix, k, z)

    def running_reward(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``-x^T R_k x / 2 + q_k^T x``."""
        return ((self.running_slope[k] - 0.5 * _times(self.running_matrix, k, x)) * x).sum(1)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """``-(x - target)^T Q (x - target) / 2 + slope^T x``."""
        off = x - self.target
        return x @ self.terminal_slope - 0.5 * ((off @ self.terminal_matrix) * off).sum(1)

    def optimal_value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``V_k(x)`` of the best policy of the discrete chain, ``(n,)``."""
        return self._quadratic(k, x) + self.solution.constant[k]

    def log_moment_value(self, k: int | Tensor, x: Tensor) -> Tensor:
        """``beta log E^0[exp((sum_{j >= k} r_j + y) / beta) | X_k = x]``, ``(n,)``: above
        ``optimal_value`` by a constant.
        """
        return self._quadratic(k, x) + self.solution.log_constant[k]

    def optimal_control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """The best control ``(n, m)``, affine in x."""
        return _times(self.solution.gain, k, x) + self.solution.shift[k]

    def optimal_objective(self) -> float:
        """``E V_0(X_0)``: the largest objective that any policy attains."""
        matrix, slope, constant, _, _, _ = (t[0].double() for t in self.solution)
        mean, scale = self.initial_mean.double(), self.initial_scale.double()
        return float(
            slope @ mean
            - 0.5 * mean @ matrix @ mean
            - 0.5 * (scale.T @ matrix @ scale).trace()
            + constant
        )

    def log_moment_objective(self) -> float:
        """``beta log E^0 exp(return / beta)``, over the initial law too: what ``certificate``
        estimates.
        """
        matrix, slope, _, constant, _, _ = (t[0].double() for t in self.solution)
        mean, scale = self.initial_mean.double(), self.initial_scale.double()
        _, factor = _curvature(matrix, scale, self.temperature, "the initial law")
        pull = torch.linalg.solve_triangular(
            factor, (scale.T @ (slope - matrix @ mean))[:, None], upper=False
        )
        log_det = 2 * (factor.diagonal() / self.temperature**0.5).log().sum()
        value = (
            slope @ mean
            - 0.5 * mean @ matrix @ mean
            + 0.5 * pull.square().sum()
            - 0.5 * self.temperature * log_det
        )
        return float(value + constant)

    def _quadratic(self, k: int | Tensor, x: Tensor) -> Tensor:
        return ((self.solution.slope[k] - 0.5 * _times(self.solution.matrix, k, x)) * x).sum(1)

    def _solve(self) -> Quadratics:
        """The recursion of the module's docstring, backwards from the terminal reward, in float64
        on the CPU.
        """
        beta, target = self.temperature, self.target.double().cpu()
        P = self.terminal_matrix.double().cpu()
        p = P @ target + self.terminal_slope.double().cpu()
        c = log_c = -0.5 * target @ P @ target
        rows = [(P, p, c, log_c)]
        controls = []
        tables = (
            self.drift_matrix,
            self.offset,
            self.noise_matrix,
            self.running_matrix,
            self.running_slope,
        )
        for k in reversed(range(self.horizon)):
            A, b, C, R, q = (table[k].double().cpu() for table in tables)
            M, L = _curvature(P, C, beta, f"step {k}")
            gain = torch.cholesky_solve(C.T, L)  # a* = gain @ (p - P m)
            controls.append((-gain @ P @ A, gain @ (p - P @ b)))
            # the best next value as a quadratic in m, then in x
            c = c - 0.5 * M.trace() + 0.5 * p @ C @ gain @ p
            log_c = log_c - beta * (L.diagonal() / beta**0.5).log().sum() + 0.5 * p @ C @ gain @ p
            p = p - P @ C @ (gain @ p)
            P = P - P @ C @ gain @ P
            constant = p @ b - 0.5 * b @ P @ b
            c, log_c = c + constant, log_c + constant
            p = q + A.T @ (p - P @ b)
            P = R + A.T @ P @ A
            P = 0.5 * (P + P.T)  # symmetric but for rounding
            rows.append((P, p, c, log_c))
        columns = [
            torch.stack(column[::-1])
            for column in (*zip(*rows, strict=True), *zip(*controls, strict=True))
        ]
        return Quadratics(*(column.to(self.target) for column in columns))


def _table(
    name: str, value: Any, lead: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """``value`` (zero if None) as a finite tensor ``(*lead, *shape)``; a constant is repeated along
    ``lead``.
    """
    tensor = (
        torch.zeros(shape, dtype=dtype)
        if value is None
        else torch.as_tensor(value).to("cpu", dtype)
    )
    if tuple(tensor.shape) not in (shape, (*lead, *shape)):
        allowed = f"{shape} or {(*lead, *shape)}" if lead else f"{shape}"
        raise ValueError(f"{name} must have shape {allowed}; got {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite; got {tensor.tolist()}"[:500])
    return tensor.expand(*lead, *shape)


def _symmetric(name: str, table: Tensor) -> Tensor:
    if not torch.allclose(table, table.mT, rtol=1e-5, atol=1e-7 * float(table.abs().max())):
        raise ValueError(f"{name} must be symmetric; got {table.tolist()}"[:500])
    return table


def _times(matrices: Tensor, k: int | Tensor, x: Tensor) -> Tensor:
    """``matrices[k] @ x`` for rows ``x``, with one step for all or one a row."""
    chosen = matrices[k]
    return x @ chosen.mT if chosen.dim() == 2 else (chosen @ x[:, :, None])[:, :, 0]


def _curvature(P: Tensor, C: Tensor, beta: float, where: str) -> tuple[Tensor, Tensor]:
    """``C^T P C`` and the Cholesky factor of ``beta I + C^T P C``."""
    M = C.T @ P @ C
    L, failed = torch.linalg.cholesky_ex(
        beta * torch.eye(len(M), dtype=M.dtype, device=M.device) + M
    )
    if failed:
        smallest = float(torch.linalg.eigvalsh(M).min())
        raise ValueError(
            f"the value is infinite at {where}: temperature I + C^T P C must be positive definite;"
            f" got temperature {beta} and smallest eigenvalue {smallest:.4g} of C^T P C (raise the"
            f" temperature above {-smallest:.4g})"
        )
    return M, L
