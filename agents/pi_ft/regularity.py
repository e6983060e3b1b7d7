"""How large the temperature must be for policy iteration to converge, and how fast it then does.

Han, Razaviyayn and Xu (2025) bound Lipschitz constants of values and controls backwards in time
(Theorem 2.8, eq. 14-17, for the optimum; Theorem 3.1, eq. 38-39, for every iterate of Algorithm 1).
Here for chains ``X' = mean_k(X) + C_k (a + W)``:

    L_k, L'_k    Lipschitz constants of mean_k and of its Jacobian,         l_k, l'_k    of r_k and
    of its gradient, s_k = |C_k|  (operator norm),                                           c
    see below, U_k, U'_k    Lipschitz constants of V_k and of grad V_k; at k = T those of y.

With ``V_{k+1}`` in hand the first-order condition ``a = C^T E grad V_{k+1}(Y + C W) / beta``, ``Y =
mean(x) + C a``, gives

    lambda_k = s^2 U'_{k+1} / beta_k                                  the control's map contracts by
    this factor, Lip(Y)   = L / (1 - lambda),    Lip(a) = lambda L / (s (1 - lambda)),
    U_k      = l + L U_{k+1}                                          since  grad V_k = grad r + D
    mean^T E grad V_{k+1}, U'_k     = l' + L' U_{k+1} + L U'_{k+1} Lip(Y),
    Lip(Da)  = (lambda / s) (L' + c Lip(Y)^2 / s) / (1 - lambda).

The last uses integration by parts: ``E D^2 V(Y + C W) C = E grad V(Y + C W) W^T`` changes with Y by
at most ``c U' |dY|``. The paper has ``c = E|W| = sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2)``; in
operator norm only ``W`` along one direction counts, so ``c = E|W_1| = sqrt(2 / pi)`` in every
dimension.

For a denoising chain with a score of constants L0_s and L1_s, ``L <= (1 + (1 - alpha) L0_s) /
sqrt(alpha)`` and ``L' <= (1 - alpha) L1_s / sqrt(alpha)``. With these and the paper's c, (14)-(17)
come out term by term (``denoising_chain`` of ``lipschitz``, ``score_units``); from the Jacobian of
the mean itself, whose two parts largely cancel, much smaller ones (``mixture_chain``).

For the iterates let ``d_m = a^(m+1) - a^(m)``: ``|d_m| <= lambda^m s U_{k+1} / beta``, and by (36)

    grad V_k^(m) = grad r + D mean^T E grad V_{k+1}(Y^m + C W) + beta (D a^(m))^T d_m.

Its bound and that of its Lipschitz constant (``_iterates``) exceed the above by terms of order ``m
lambda^m``, so that both have a maximum over m; taken at every step, these are (38)-(39). All of
these formulas are derived here, after the proofs of Theorem 2.8 and Lemmas 3.2-3.4: the copy of the
paper at hand has lost its displays. (14)-(17) agree with what its proofs say of them; whether
(38)-(39) have exactly this form in the paper could not be checked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...envs.diffusion.denoising import Schedule
from ...envs.known_optimum.linear_quadratic import LinearQuadratic
from ...envs.problem import Problem
from .lipschitz import Chain, Smoothness, chain_of, product
from .quadratics import per_step


class RegularityWarning(UserWarning):
    """The temperature is below what guarantees that policy iteration converges."""


class Regularity(NamedTuple):
    """Bounds at every step, infinite before the last where lambda_k reaches 1; noise units."""

    contraction: Tensor  # lambda_k, (T,)
    value: Tensor  # U_k (T + 1,)
    value_gradient: Tensor  # U'_k (T + 1,)
    control: Tensor  # Lip(a_k), (T,)
    control_jacobian: Tensor  # Lip(D a_k), (T,)

    @property
    def rate(self) -> float:
        """The largest lambda_k.

        With m inner iterations at every step the error is of order ``rate^m`` (Theorem 3.1).
        """
        return float(self.contraction.max())


class _Step(NamedTuple):
    """The constants of one step of a Chain."""

    mean: float
    mean_jacobian: float
    noise: float
    running: float
    running_gradient: float
    smoothing: float


def optimum_regularity(chain: Chain, temperatures: float | Sequence[float] | Tensor) -> Regularity:
    """Bounds on the optimal value and control: Theorem 2.8, eq. (14)-(17)."""
    return _backwards(chain, temperatures, _optimum)


def iterate_regularity(chain: Chain, temperatures: float | Sequence[float] | Tensor) -> Regularity:
    """Bounds for every iterate of Algorithm 1, whatever the m_k: Theorem 3.1, eq. (38)-(39)."""
    return _backwards(chain, temperatures, _iterates)


_Rule = Callable[[_Step, float, float, Smoothness], tuple[Smoothness, Smoothness]]


def _backwards(
    chain: Chain, temperatures: float | Sequence[float] | Tensor, rule: _Rule
) -> Regularity:
    betas = per_step("temperatures", temperatures, chain.horizon)
    value, values, controls, factors = chain.terminal, [chain.terminal], [], []
    for k in reversed(range(chain.horizon)):
        step = _step(chain, k)
        factor = product(step.noise**2 / betas[k], value.gradient)
        if factor < 1:
            value, control = rule(step, betas[k], factor, value)
        else:
            value, control = Smoothness(math.inf, math.inf), Smoothness(math.inf, math.inf)
        values.append(value)
        controls.append(control)
        factors.append(factor)
    tables = [
        torch.tensor(column[::-1], dtype=torch.float64) for column in (factors, values, controls)
    ]
    return Regularity(tables[0], *tables[1].unbind(1), *tables[2].unbind(1))


def _step(chain: Chain, k: int) -> _Step:
    tables = (chain.mean, chain.mean_jacobian, chain.noise, chain.running, chain.running_gradient)
    constants = [0.0 if table is None else float(table[k]) for table in tables]
    return _Step(*constants, chain.smoothing)  # type: ignore[call-arg]


def _optimum(
    step: _Step, beta: float, factor: float, ahead: Smoothness
) -> tuple[Smoothness, Smoothness]:
    lipschitz_y = step.mean / (1 - factor)
    pull = product(step.noise, ahead.gradient) / beta  # lambda / s
    control = pull * lipschitz_y
    jacobian = product(
        ahead.gradient, step.noise * step.mean_jacobian + step.smoothing * lipschitz_y**2
    )
    return (
        Smoothness(
            step.running + product(step.mean, ahead.function),
            step.running_gradient
            + product(step.mean_jacobian, ahead.function)
            + product(step.mean * lipschitz_y, ahead.gradient),
        ),
        Smoothness(control, product(1 / beta, jacobian) / (1 - factor) if step.noise else 0.0),
    )


def _iterates(
    step: _Step, beta: float, factor: float, ahead: Smoothness
) -> tuple[Smoothness, Smoothness]:
    """The largest bounds over m of V_k^(m); those of a^(m) grow with m to the optimum's."""
    plain, control = _optimum(step, beta, factor, ahead)
    if factor == 0:
        return plain, control
    rest = 1 - factor
    m = _counts(rest)
    power, done = factor**m, 1 - factor**m
    lipschitz_y = step.mean * (1 - factor * power) / rest  # of Y^m
    lipschitz_a = step.mean * factor * done / rest / step.noise  # of a^(m)
    unit = power * step.noise / beta  # |d_m| per U_{k+1}
    # |D d_m| <= lambda |D d_{m-1}| + (c / beta) U' s |d_{m-1}| Lip(Y^m) from |D d_0| <= lambda L /
    # s, hence lambda^m lambda L / s + lambda^(m-1) (c / beta) U' s (s U / beta) sum_{j <= m}
    # Lip(Y^j); the second again per U_{k+1}
    bend = step.smoothing * factor / beta
    move_slope = power * step.mean * factor / step.noise
    move_bend = power / factor * bend * step.mean * (m - factor**2 * done / rest) / rest
    # Lip(D a^(m+1)) = (U' / beta) (c Lip(Y^m)^2 + s L') + lambda Lip(D a^(m)), from 0
    # sum over j of lambda^(m-1-j) (1 - lambda^(j+1))^2
    squares = done / rest - 2 * m * power + factor * power * done / rest
    curve = (
        step.smoothing * (step.mean / rest) ** 2 * squares
        + step.noise * step.mean_jacobian * done / rest
    )
    curve = curve * ahead.gradient / beta
    value = float((lipschitz_a * unit).max())
    gradient = step.mean * ahead.gradient * lipschitz_y + beta * lipschitz_a * move_slope
    excess = beta * (curve * unit + lipschitz_a * move_bend)
    if float(excess.max()) > 0:  # else U_{k+1} may be infinite
        gradient = gradient + excess * ahead.function
    gradient = gradient + step.running_gradient + product(step.mean_jacobian, ahead.function)
    best = max(float(gradient.max()), plain.gradient)
    return Smoothness(plain.function + product(beta * value, ahead.function), best), control


def _counts(rest: float) -> Tensor:
    """Numbers m of inner iterations among which every ``m^i lambda^m`` has its maximum.

    ``rest`` is ``1 - lambda``.
    """
    last, few = 30 / rest, 512
    m = torch.arange(min(math.ceil(last), few) + 2, dtype=torch.float64)
    if last <= few:
        return m
    return torch.cat(
        [m, torch.logspace(math.log10(few), math.log10(last), few, dtype=torch.float64)]
    )


class Errors(NamedTuple):
    """Bounds on the distance, uniform in x, of Algorithm 1 from the optimum."""

    control: Tensor  # of a_k^(m_k), (T,)
    value_gradient: Tensor  # of grad V_k^(m_k), (T + 1,)


def predicted_errors(
    chain: Chain, temperatures: float | Sequence[float] | Tensor, iterations: int
) -> Errors:
    """What Theorem 3.1 leaves of the error after ``iterations`` inner iterations at every step.

    It is O(rate^iterations). With e_{k+1} that of ``grad V_{k+1}`` and ``|a*_k| <= s U_{k+1} /
    beta`` (Lemmas 3.3 and 3.4),

        |a^(m) - a*|         <= lambda^m s U_{k+1} / beta + s e_{k+1} / (beta (1 - lambda)),
        |grad V_k^(m) - ...| <= L (e_{k+1} + s U'_{k+1} |a^(m) - a*|)
                                + beta Lip(a^(m)) lambda^m s U_{k+1} / beta.
    """
    betas = per_step("temperatures", temperatures, chain.horizon)
    bounds = iterate_regularity(chain, betas)
    error, controls, gradients = 0.0, [], [0.0]
    for k in reversed(range(chain.horizon)):
        step, beta, factor = _step(chain, k), betas[k], float(bounds.contraction[k])
        if factor >= 1:
            control = error = math.inf
        else:
            ahead, bend = float(bounds.value[k + 1]), float(bounds.value_gradient[k + 1])
            start = factor**iterations * product(step.noise, ahead) / beta
            control = start + product(step.noise, error) / (beta * (1 - factor))
            error = product(step.mean, error + product(step.noise * bend, control))
            error += beta * product(float(bounds.control[k]) * (1 - factor**iterations), start)
        controls.append(control)
        gradients.append(error)
    return Errors(
        *(torch.tensor(column[::-1], dtype=torch.float64) for column in (controls, gradients))
    )


def smallest_temperature(chain: Chain, contraction: float = 1.0) -> float:
    """The smallest constant temperature that keeps lambda_k below ``contraction``, or infinity."""
    if not 0 < contraction <= 1:
        raise ValueError(f"contraction must be above 0 and at most 1; got {contraction!r}")

    def enough(log_beta: float) -> bool:
        return iterate_regularity(chain, math.exp(log_beta)).rate < contraction

    low, high = -60.0, 600.0
    if enough(low):
        return 0.0
    if not enough(high):
        return math.inf
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.exp(high)


def temperatures_for(chain: Chain, contraction: float) -> Tensor:
    """Temperatures ``(T,)`` at which lambda_k is ``contraction`` at every step.

    As Theorem 3.1 sets them. A step without noise is not controlled: it gets the largest of the
    others'.
    """
    if not 0 < contraction < 1:
        raise ValueError(f"contraction must be between 0 and 1; got {contraction!r}")
    value, betas = chain.terminal, []
    for k in reversed(range(chain.horizon)):
        step = _step(chain, k)
        beta = product(step.noise**2, value.gradient) / contraction
        betas.append(beta)
        value, _ = (
            _iterates(step, beta, contraction if beta else 0.0, value)
            if beta
            else _optimum(step, 1.0, 0.0, value)
        )
    table = torch.tensor(betas[::-1], dtype=torch.float64)
    return torch.where(table > 0, table, table.max())


def quadratic_contraction(problem: LinearQuadratic) -> Tensor:
    """lambda_k at the optimum, exactly: ``|C_k^T P_{k+1} C_k| / beta``, ``(T,)``.

    Bounds know norms only, no signs.
    """
    noise, matrix = problem.noise_matrix.double().cpu(), problem.solution.matrix[1:].double().cpu()
    return torch.linalg.matrix_norm(noise.mT @ matrix @ noise, 2) / problem.temperature


def score_units(
    regularity: Regularity, schedule: Schedule, score: Sequence[Smoothness]
) -> tuple[Tensor, Tensor]:
    """L0_u and L1_u, the paper's constants of its own control, ``(T,)`` each.

    It is ``u = s + sqrt(alpha) sigma a / (1 - alpha)``.
    """
    alpha, sigma = schedule.alpha.double().cpu(), schedule.sigma.double().cpu()
    function, gradient = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*score, strict=True)
    )
    unit = alpha.sqrt() * sigma / (1 - alpha)
    return function + unit * regularity.control, gradient + unit * regularity.control_jacobian


def check_temperature(
    problem: Problem,
    logger: Any = None,
    temperatures: float | Sequence[float] | None = None,
    chain: Chain | None = None,
) -> float:
    """The largest lambda_k, recorded as ``train/lambda_max``; warns if it is not below 1.

    On linear-quadratic chains at a constant temperature it is the exact one of the optimum,
    elsewhere the bound of ``iterate_regularity``.

    Args:
        problem: to be solved.
        logger: SB3's; nothing is recorded if absent.
        temperatures: beta_k, one number or one a step; the problem's if absent.
        chain: constants; ``chain_of(problem)`` if absent.

    Warns:
        RegularityWarning: the temperature is below the guarantee.
    """
    betas = problem.temperature if temperatures is None else temperatures
    if isinstance(problem, LinearQuadratic) and temperatures is None and chain is None:
        rate, kind, enough = float(quadratic_contraction(problem).max()), "exact", math.nan
    else:
        chain = chain_of(problem) if chain is None else chain
        rate = iterate_regularity(chain, betas).rate
        kind = "a certified bound" if chain.certified else "estimated"
        enough = smallest_temperature(chain) if rate >= 1 else math.nan
    if logger is not None:
        logger.record("train/lambda_max", rate)
    if rate >= 1:
        advice = "" if math.isnan(enough) else f"; from {enough:.3g} on it is"
        if enough == math.inf:
            advice = "; with this reward, which has no Lipschitz constant, it is at none"
        text = (
            f"at temperature {betas} convergence of policy iteration is not guaranteed: lambda ="
            f" {rate:.3g} ({kind})"
        )
        warnings.warn(text + advice, RegularityWarning, stacklevel=2)
    return rate
