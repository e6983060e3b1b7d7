"""How large the temperature must be for policy iteration to converge, and how fast it then does.

Han, Razaviyayn and Xu (2025) bound Lipschitz constants of values and controls backwards in time (Theorem 2.8, eq. 14-17, for
the optimum; Theorem 3.1, eq. 38-39, for every iterate of Algorithm 1). Here for chains ``X' = mean_k(X) + C_k (a + W)``:

    L_k, L'_k    Lipschitz constants of mean_k and of its Jacobian,         l_k, l'_k    of r_k and of its gradient,
    s_k = |C_k|  (operator norm),                                           c            see below,
    U_k, U'_k    Lipschitz constants of V_k and of grad V_k; at k = T those of y.

With ``V_{k+1}`` in hand the first-order condition ``a = C^T E grad V_{k+1}(Y + C W) / beta``, ``Y = mean(x) + C a``, gives

    lambda_k = s^2 U'_{k+1} / beta_k                                  the control's map contracts by this factor,
    Lip(Y)   = L / (1 - lambda),    Lip(a) = lambda L / (s (1 - lambda)),
    U_k      = l + L U_{k+1}                                          since  grad V_k = grad r + D mean^T E grad V_{k+1},
    U'_k     = l' + L' U_{k+1} + L U'_{k+1} Lip(Y),
    Lip(Da)  = (lambda / s) (L' + c Lip(Y)^2 / s) / (1 - lambda).

The last uses integration by parts: ``E D^2 V(Y + C W) C = E grad V(Y + C W) W^T`` changes with Y by at most ``c U' |dY|``. The
paper has ``c = E|W| = sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2)``; in operator norm only ``W`` along one direction counts, so
``c = E|W_1| = sqrt(2 / pi)`` in every dimension.

For a denoising chain with a score of constants L0_s and L1_s, ``L <= (1 + (1 - alpha) L0_s) / sqrt(alpha)`` and
``L' <= (1 - alpha) L1_s / sqrt(alpha)``. With these and the paper's c, (14)-(17) come out term by term (``denoising_chain``,
``score_units``); from the Jacobian of the mean itself, whose two parts largely cancel, much smaller ones (``mixture_chain``).

For the iterates let ``d_m = a^(m+1) - a^(m)``: ``|d_m| <= lambda^m s U_{k+1} / beta``, and by (36)

    grad V_k^(m) = grad r + D mean^T E grad V_{k+1}(Y^m + C W) + beta (D a^(m))^T d_m.

Its bound and that of its Lipschitz constant (``_iterates``) exceed the above by terms of order ``m lambda^m``, so that both
have a maximum over m; taken at every step, these are (38)-(39). All of these formulas are derived here, after the proofs of
Theorem 2.8 and Lemmas 3.2-3.4: the copy of the paper at hand has lost its displays. (14)-(17) agree with what its proofs say
of them; whether (38)-(39) have exactly this form in the paper could not be checked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..envs.denoising import Schedule
from ..envs.gaussian_mixture import GaussianMixture, QuadraticReward
from ..envs.linear_quadratic import LinearQuadratic
from ..envs.problem import Problem, device_of, rollout
from .exact_iteration import per_step


class RegularityWarning(UserWarning):
    """The temperature is below what guarantees that policy iteration converges."""


class Smoothness(NamedTuple):
    """Lipschitz constants of a function and of its gradient (or Jacobian)."""

    function: float
    gradient: float


@dataclass(frozen=True)
class Chain:
    """Lipschitz constants of a chain and its rewards, in float64.

    Args:
        mean: L_k, ``(T,)``.
        mean_jacobian: L'_k, ``(T,)``.
        noise: s_k, ``(T,)``.
        terminal: of y.
        running: l_k, ``(T,)``; zero if absent.
        running_gradient: l'_k, ``(T,)``; zero if absent.
        smoothing: c of the module's docstring.
        certified: False if the numbers are the largest of a sample, hence too small.
    """

    mean: Tensor
    mean_jacobian: Tensor
    noise: Tensor
    terminal: Smoothness
    running: Tensor | None = None
    running_gradient: Tensor | None = None
    smoothing: float = math.sqrt(2 / math.pi)
    certified: bool = True

    @property
    def horizon(self) -> int:
        """Number of steps T."""
        return len(self.mean)


class Regularity(NamedTuple):
    """Bounds at every step; infinite from the step backwards where lambda_k reaches 1. Controls are in noise units."""

    contraction: Tensor  # lambda_k, (T,)
    value: Tensor  # U_k (T + 1,)
    value_gradient: Tensor  # U'_k (T + 1,)
    control: Tensor  # Lip(a_k), (T,)
    control_jacobian: Tensor  # Lip(D a_k), (T,)

    @property
    def rate(self) -> float:
        """The largest lambda_k: with m inner iterations at every step the error is of order ``rate^m`` (Theorem 3.1)."""
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
    """Bounds that hold for every iterate of Algorithm 1, whatever the m_k: Theorem 3.1, eq. (38)-(39)."""
    return _backwards(chain, temperatures, _iterates)


_Rule = Callable[[_Step, float, float, Smoothness], tuple[Smoothness, Smoothness]]


def _backwards(chain: Chain, temperatures: float | Sequence[float] | Tensor, rule: _Rule) -> Regularity:
    betas = per_step("temperatures", temperatures, chain.horizon)
    value, values, controls, factors = chain.terminal, [chain.terminal], [], []
    for k in reversed(range(chain.horizon)):
        step = _step(chain, k)
        factor = _times(step.noise**2 / betas[k], value.gradient)
        if factor < 1:
            value, control = rule(step, betas[k], factor, value)
        else:
            value, control = Smoothness(math.inf, math.inf), Smoothness(math.inf, math.inf)
        values.append(value)
        controls.append(control)
        factors.append(factor)
    tables = [torch.tensor(column[::-1], dtype=torch.float64) for column in (factors, values, controls)]
    return Regularity(tables[0], *tables[1].unbind(1), *tables[2].unbind(1))


def _step(chain: Chain, k: int) -> _Step:
    tables = (chain.mean, chain.mean_jacobian, chain.noise, chain.running, chain.running_gradient)
    constants = [0.0 if table is None else float(table[k]) for table in tables]
    return _Step(*constants, chain.smoothing)  # type: ignore[call-arg]


def _times(a: float, b: float) -> float:
    """The product, where nothing times anything is nothing."""
    return 0.0 if a == 0 or b == 0 else a * b


def _optimum(step: _Step, beta: float, factor: float, ahead: Smoothness) -> tuple[Smoothness, Smoothness]:
    lipschitz_y = step.mean / (1 - factor)
    pull = _times(step.noise, ahead.gradient) / beta  # lambda / s
    control = pull * lipschitz_y
    jacobian = _times(ahead.gradient, step.noise * step.mean_jacobian + step.smoothing * lipschitz_y**2)
    return (
        Smoothness(
            step.running + _times(step.mean, ahead.function),
            step.running_gradient
            + _times(step.mean_jacobian, ahead.function)
            + _times(step.mean * lipschitz_y, ahead.gradient),
        ),
        Smoothness(control, _times(1 / beta, jacobian) / (1 - factor) if step.noise else 0.0),
    )


def _iterates(step: _Step, beta: float, factor: float, ahead: Smoothness) -> tuple[Smoothness, Smoothness]:
    """The largest bounds over m = 0, 1, 2, ... of V_k^(m); those of a^(m) grow with m to the optimum's."""
    plain, control = _optimum(step, beta, factor, ahead)
    if factor == 0:
        return plain, control
    rest = 1 - factor
    m = _counts(rest)
    power, done = factor**m, 1 - factor**m
    lipschitz_y = step.mean * (1 - factor * power) / rest  # of Y^m
    lipschitz_a = step.mean * factor * done / rest / step.noise  # of a^(m)
    unit = power * step.noise / beta  # |d_m| per U_{k+1}
    # |D d_m| <= lambda |D d_{m-1}| + (c / beta) U' s |d_{m-1}| Lip(Y^m) from |D d_0| <= lambda L / s, hence
    # lambda^m lambda L / s + lambda^(m-1) (c / beta) U' s (s U / beta) sum_{j <= m} Lip(Y^j); the second again per U_{k+1}
    bend = step.smoothing * factor / beta
    move_slope = power * step.mean * factor / step.noise
    move_bend = power / factor * bend * step.mean * (m - factor**2 * done / rest) / rest
    # Lip(D a^(m+1)) = (U' / beta) (c Lip(Y^m)^2 + s L') + lambda Lip(D a^(m)), from 0
    squares = done / rest - 2 * m * power + factor * power * done / rest  # sum over j of lambda^(m-1-j) (1 - lambda^(j+1))^2
    curve = step.smoothing * (step.mean / rest) ** 2 * squares + step.noise * step.mean_jacobian * done / rest
    curve = curve * ahead.gradient / beta
    value = float((lipschitz_a * unit).max())
    gradient = step.mean * ahead.gradient * lipschitz_y + beta * lipschitz_a * move_slope
    excess = beta * (curve * unit + lipschitz_a * move_bend)
    if float(excess.max()) > 0:  # else U_{k+1} may be infinite
        gradient = gradient + excess * ahead.function
    gradient = gradient + step.running_gradient + _times(step.mean_jacobian, ahead.function)
    best = max(float(gradient.max()), plain.gradient)
    return Smoothness(plain.function + _times(beta * value, ahead.function), best), control


def _counts(rest: float) -> Tensor:
    """Numbers m of inner iterations among which every term ``m^i lambda^m`` has its maximum, ``rest = 1 - lambda``."""
    last, few = 30 / rest, 512
    m = torch.arange(min(math.ceil(last), few) + 2, dtype=torch.float64)
    if last <= few:
        return m
    return torch.cat([m, torch.logspace(math.log10(few), math.log10(last), few, dtype=torch.float64)])


class Errors(NamedTuple):
    """Bounds on the distance, uniform in x, of Algorithm 1 from the optimum."""

    control: Tensor  # of a_k^(m_k), (T,)
    value_gradient: Tensor  # of grad V_k^(m_k), (T + 1,)


def predicted_errors(chain: Chain, temperatures: float | Sequence[float] | Tensor, iterations: int) -> Errors:
    """What Theorem 3.1 leaves of the error after ``iterations`` inner iterations at every step; it is O(rate^iterations).

    With e_{k+1} that of ``grad V_{k+1}`` and ``|a*_k| <= s U_{k+1} / beta`` (Lemmas 3.3 and 3.4),

        |a^(m) - a*|         <= lambda^m s U_{k+1} / beta + s e_{k+1} / (beta (1 - lambda)),
        |grad V_k^(m) - ...| <= L (e_{k+1} + s U'_{k+1} |a^(m) - a*|) + beta Lip(a^(m)) lambda^m s U_{k+1} / beta.
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
            start = factor**iterations * _times(step.noise, ahead) / beta
            control = start + _times(step.noise, error) / (beta * (1 - factor))
            error = _times(step.mean, error + _times(step.noise * bend, control))
            error += beta * _times(float(bounds.control[k]) * (1 - factor**iterations), start)
        controls.append(control)
        gradients.append(error)
    return Errors(*(torch.tensor(column[::-1], dtype=torch.float64) for column in (controls, gradients)))


def smallest_temperature(chain: Chain, contraction: float = 1.0) -> float:
    """The smallest constant temperature at which lambda_k of every iterate stays below ``contraction``; maybe infinite."""
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
    """Per-step temperatures ``(T,)`` at which lambda_k is ``contraction`` at every step, as Theorem 3.1 sets them.

    A step without noise is not controlled: it gets the largest of the others'.
    """
    if not 0 < contraction < 1:
        raise ValueError(f"contraction must be between 0 and 1; got {contraction!r}")
    value, betas = chain.terminal, []
    for k in reversed(range(chain.horizon)):
        step = _step(chain, k)
        beta = _times(step.noise**2, value.gradient) / contraction
        betas.append(beta)
        value, _ = _iterates(step, beta, contraction if beta else 0.0, value) if beta else _optimum(step, 1.0, 0.0, value)
    table = torch.tensor(betas[::-1], dtype=torch.float64)
    return torch.where(table > 0, table, table.max())


# --- constants of known chains ----------------------------------------------------------------------------------------


def linear_quadratic_chain(problem: LinearQuadratic) -> Chain:
    """Exact: the norms of the matrices. Quadratic rewards have no Lipschitz constant, and need none where means are affine."""
    norm = lambda table: torch.linalg.matrix_norm(table.double().cpu(), 2)  # noqa: E731
    bent = norm(problem.running_matrix)
    slope = problem.running_slope.double().cpu().norm(dim=-1)
    curvature = float(norm(problem.terminal_matrix))
    height = math.inf if curvature else float(problem.terminal_slope.double().norm())
    return Chain(
        norm(problem.drift_matrix),
        torch.zeros(problem.horizon, dtype=torch.float64),
        norm(problem.noise_matrix),
        Smoothness(height, curvature),
        torch.where(bent > 0, math.inf, slope),
        bent,
        smoothing=0.0,  # gradients of quadratics have constant Jacobians
    )


def quadratic_contraction(problem: LinearQuadratic) -> Tensor:
    """lambda_k at the optimum, exactly: ``|C_k^T P_{k+1} C_k| / beta``, ``(T,)``; bounds know norms only, no signs."""
    noise, matrix = problem.noise_matrix.double().cpu(), problem.solution.matrix[1:].double().cpu()
    return torch.linalg.matrix_norm(noise.mT @ matrix @ noise, 2) / problem.temperature


def denoising_chain(schedule: Schedule, score: Sequence[Smoothness], reward: Smoothness, dimension: int) -> Chain:
    """The paper's constants: those of a denoising chain from those of its score, eq. (14)-(17).

    Args:
        schedule: noise tables.
        score: L0_s and L1_s of each step.
        reward: L0 and L1 of the terminal reward.
        dimension: d, for the paper's ``c = E|W|``.
    """
    alpha = schedule.alpha.double().cpu()
    function, gradient = (torch.tensor(column, dtype=torch.float64) for column in zip(*score, strict=True))
    smoothing = math.sqrt(2) * math.exp(math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2))
    return Chain(
        (1 + (1 - alpha) * function) / alpha.sqrt(),
        (1 - alpha) * gradient / alpha.sqrt(),
        schedule.sigma.double().cpu(),
        reward,
        smoothing=smoothing,
    )


def score_units(regularity: Regularity, schedule: Schedule, score: Sequence[Smoothness]) -> tuple[Tensor, Tensor]:
    """L0_u and L1_u, the paper's constants of its control ``u = s + sqrt(alpha) sigma a / (1 - alpha)``, ``(T,)`` each."""
    alpha, sigma = schedule.alpha.double().cpu(), schedule.sigma.double().cpu()
    function, gradient = (torch.tensor(column, dtype=torch.float64) for column in zip(*score, strict=True))
    unit = alpha.sqrt() * sigma / (1 - alpha)
    return function + unit * regularity.control, gradient + unit * regularity.control_jacobian


def mixture_score(problem: GaussianMixture) -> list[Smoothness]:
    """L0_s and L1_s of each step for modes of one width; attained by two modes (L0_s where it is ``1 / v``, too).

    With ``v = alpha_bar std^2 + 1 - alpha_bar`` and responsibilities r, ``D s = -I / v + Cov_r(m) / v^2`` and
    ``D^2 s = kappa_3(m) / v^3`` for the scaled means m. In any direction these lie in an interval no longer than their
    diameter D, where variances are at most ``D^2 / 4`` and third central moments at most ``D^3 / (6 sqrt(3))``; a symmetric
    trilinear form is largest on the diagonal (Banach).
    """
    variance, diameter = _mixture_tables(problem)
    low, high = 1 / variance, diameter.square() / (4 * variance.square()) - 1 / variance
    bend = diameter**3 / (6 * math.sqrt(3) * variance**3)
    return [Smoothness(*pair) for pair in zip(torch.maximum(low, high).tolist(), bend.tolist(), strict=True)]


def mixture_chain(problem: GaussianMixture) -> Chain:
    """Certified constants of a mixture of modes of one width, from the spectrum of the mean's Jacobian (see ``mixture_score``).

    ``D mean = (I + (1 - alpha) D s) / sqrt(alpha)`` has eigenvalues between those at ``Cov = 0`` and ``Cov = D^2 / 4``.

    Raises:
        ValueError: modes of different widths, or a reward whose constants are not known.
    """
    variance, diameter = _mixture_tables(problem)
    alpha = problem.schedule.alpha.double().cpu()
    low = 1 - (1 - alpha) / variance
    high = low + (1 - alpha) * diameter.square() / (4 * variance.square())
    bend = (1 - alpha) * diameter**3 / (6 * math.sqrt(3) * variance**3)
    return Chain(
        torch.maximum(low.abs(), high.abs()) / alpha.sqrt(),
        bend / alpha.sqrt(),
        problem.schedule.sigma.double().cpu(),
        reward_smoothness(problem.reward),
    )


def _mixture_tables(problem: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Variance of the noised modes and diameter of their noised means, ``(T,)`` each."""
    std = problem.std.double().cpu()
    if float(std.max()) > float(std.min()):
        raise ValueError(f"std must be the same for all modes; got {std.tolist()}")
    bar = problem.schedule.alpha_bar.double().cpu()
    means = problem.means.double().cpu()
    return bar * std[0] ** 2 + 1 - bar, bar.sqrt() * torch.cdist(means, means).max()


def reward_smoothness(reward: Any) -> Smoothness:
    """Constants of a ``QuadraticReward``, or of anything that has an attribute ``smoothness`` with its own."""
    if isinstance(reward, QuadraticReward):
        curvature = float(torch.linalg.matrix_norm(reward.matrix, 2))
        return Smoothness(math.inf if curvature else float(reward.slope.norm()), curvature)
    found = getattr(reward, "smoothness", None)
    if not isinstance(found, Smoothness):
        allowed = "a QuadraticReward or have an attribute smoothness of type Smoothness"
        raise ValueError(f"reward must be {allowed}; got {type(reward).__name__}")
    return found


#: Lipschitz constants of activations and of their derivatives.
_ACTIVATIONS: dict[type[nn.Module], Smoothness] = {
    nn.Identity: Smoothness(1.0, 0.0),
    nn.Flatten: Smoothness(1.0, 0.0),
    nn.ReLU: Smoothness(1.0, math.inf),
    nn.Tanh: Smoothness(1.0, 4 / (3 * math.sqrt(3))),
    nn.Sigmoid: Smoothness(0.25, 1 / (6 * math.sqrt(3))),
    nn.Softplus: Smoothness(1.0, 0.25),
    nn.SiLU: Smoothness(1.0998393194985, 0.5),
}


def network_smoothness(network: nn.Sequential) -> Smoothness:
    """Certified constants of a feed-forward network: products of layer norms (usually far above the truth).

    ``Lip(D(g f)) <= Lip(Dg) Lip(f)^2 + Lip(g) Lip(Df)``. A convolution's norm is at most the sum of those of its taps, and at
    most that of its reshaped kernel times the root of how many patches a pixel is in.

    Raises:
        ValueError: a layer of another kind.
    """
    total = Smoothness(1.0, 0.0)
    for layer in network:
        here = _layer(layer)
        gradient = _times(here.gradient, total.function**2) + _times(here.function, total.gradient)
        total = Smoothness(here.function * total.function, gradient)
    return total


def _layer(layer: nn.Module) -> Smoothness:
    if isinstance(layer, nn.Linear):
        return Smoothness(float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)), 0.0)
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and layer.groups == 1:
        kernel = layer.weight.detach().double()
        taps = float(torch.linalg.matrix_norm(kernel.flatten(2).permute(2, 0, 1), 2).sum())
        pairs = zip(layer.kernel_size, layer.stride, strict=True)
        patches = math.prod(math.ceil(size / stride) for size, stride in pairs)
        return Smoothness(min(taps, math.sqrt(patches) * float(torch.linalg.matrix_norm(kernel.flatten(1), 2))), 0.0)
    if type(layer) in _ACTIVATIONS and getattr(layer, "beta", 1) == 1:
        return _ACTIVATIONS[type(layer)]
    raise ValueError(f"network must consist of Linear, Conv2d and {[t.__name__ for t in _ACTIVATIONS]}; got {layer}")


# --- constants from samples -------------------------------------------------------------------------------------------


def estimate_chain(problem: Problem, generator: torch.Generator, n: int = 64, iterations: int = 10) -> Chain:
    """Constants as the largest seen at states of uncontrolled paths: not certified, the truth is at least as large.

    Norms of Jacobians come from power iteration with automatic differentiation, changes of Jacobians from their difference
    along pairs of nearby states.

    Args:
        problem: with a transition and rewards that autograd can follow, whose noise enters additively.
        generator: of paths and directions.
        n: paths.
        iterations: of the power method.
    """
    with torch.no_grad():
        states = rollout(problem, None, n, generator).states
    zero = states.new_zeros(n, *problem.noise_shape)
    rows = []
    for k in range(problem.horizon):
        x = states[k]

        def moved(x: Tensor, k: int = k) -> Tensor:
            return problem.transition(k, x, zero)

        def pushed(z: Tensor, k: int = k, x: Tensor = x) -> Tensor:
            return problem.transition(k, x, z)

        def paid(x: Tensor, k: int = k) -> Tensor:
            return problem.running_reward(k, x)[:, None]

        mean = _smoothness(moved, x, generator, iterations)
        noise = _smoothness(pushed, zero, generator, iterations).function
        running = _smoothness(paid, x, generator, iterations)
        rows.append((*mean, noise, *running))
    mean_, jacobian, noise_, running_, bend = torch.tensor(rows, dtype=torch.float64).unbind(1)
    terminal = _smoothness(lambda x: problem.terminal_reward(x)[:, None], states[-1], generator, iterations)
    return Chain(mean_, jacobian, noise_, terminal, running_, bend, certified=False)


def _smoothness(
    function: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator, iterations: int, step: float = 1e-2
) -> Smoothness:
    """Largest norm of the Jacobian at rows ``x``, and of its change per distance along random directions of length ``step``."""

    def unit(like: Tensor) -> Tensor:
        draw = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        return _normalised(draw)

    def push(x: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(function, (x,), (v,))[1]

    def pull(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.vjp(function, x)[1](w)[0]

    near = x + step * unit(x)
    norms = []
    for operator, transpose in (
        (lambda v: push(x, v), lambda w: pull(x, w)),
        (lambda v: push(near, v) - push(x, v), lambda w: pull(near, w) - pull(x, w)),
    ):
        v = unit(x)
        for _ in range(iterations):
            v = _normalised(transpose(operator(v)))
        norms.append(float(operator(v).flatten(1).norm(dim=1).max()))
    return Smoothness(norms[0], norms[1] / step)


def _normalised(v: Tensor) -> Tensor:
    length = v.flatten(1).norm(dim=1).clamp(min=1e-30)
    return v / length.view(-1, *[1] * (v.dim() - 1))


# --- what an agent says -----------------------------------------------------------------------------------------------


def chain_of(problem: Problem, generator: torch.Generator | None = None) -> Chain:
    """Certified constants where the problem's kind has them, else estimates on uncontrolled paths."""
    if isinstance(problem, LinearQuadratic):
        return linear_quadratic_chain(problem)
    if isinstance(problem, GaussianMixture):
        try:
            return mixture_chain(problem)
        except ValueError:
            pass  # modes of several widths, or a reward without constants
    return estimate_chain(problem, generator or torch.Generator(device_of(problem)).manual_seed(0))


def check_temperature(
    problem: Problem,
    logger: Any = None,
    temperatures: float | Sequence[float] | None = None,
    chain: Chain | None = None,
) -> float:
    """The largest lambda_k, recorded as ``train/lambda_max``; warns if it is not below 1.

    On linear-quadratic chains at a constant temperature it is the exact one of the optimum, elsewhere the bound of
    ``iterate_regularity``.

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
        text = f"at temperature {betas} convergence of policy iteration is not guaranteed: lambda = {rate:.3g} ({kind})"
        warnings.warn(text + advice, RegularityWarning, stacklevel=2)
    return rate
