"""Lipschitz constants of chains, for the theory of policy iteration (``regularity``).

Exact or certified for linear-quadratic chains, denoising chains of known scores, mixtures and
feed-forward networks; the largest of a sample for everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...envs.diffusion.denoising import Schedule
from ...envs.diffusion.gaussian_mixture import GaussianMixture, QuadraticReward
from ...envs.known_optimum.linear_quadratic import LinearQuadratic
from ...envs.problem import Problem, device_of, rollout


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
        smoothing: c of the docstring of ``regularity``.
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


def chain_of(problem: Problem, generator: torch.Generator | None = None) -> Chain:
    """Certified constants where the problem's kind has them, else estimates.

    The latter from uncontrolled paths.
    """
    if isinstance(problem, LinearQuadratic):
        return linear_quadratic_chain(problem)
    if isinstance(problem, GaussianMixture):
        try:
            return mixture_chain(problem)
        except ValueError:
            pass  # modes of several widths, or a reward without constants
    return estimate_chain(problem, generator or torch.Generator(device_of(problem)).manual_seed(0))


def product(a: float, b: float) -> float:
    """The product, where nothing times anything is nothing."""
    return 0.0 if a == 0 or b == 0 else a * b


# --- constants of known chains


def linear_quadratic_chain(problem: LinearQuadratic) -> Chain:
    """Exact: the norms of the matrices.

    Quadratic rewards have no Lipschitz constant, and need none where means are affine.
    """
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


def denoising_chain(
    schedule: Schedule, score: Sequence[Smoothness], reward: Smoothness, dimension: int
) -> Chain:
    """The paper's constants: those of a denoising chain from those of its score, eq. (14)-(17).

    Args:
        schedule: noise tables.
        score: L0_s and L1_s of each step.
        reward: L0 and L1 of the terminal reward.
        dimension: d, for the paper's ``c = E|W|``.
    """
    alpha = schedule.alpha.double().cpu()
    function, gradient = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*score, strict=True)
    )
    smoothing = math.sqrt(2) * math.exp(
        math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2)
    )
    return Chain(
        (1 + (1 - alpha) * function) / alpha.sqrt(),
        (1 - alpha) * gradient / alpha.sqrt(),
        schedule.sigma.double().cpu(),
        reward,
        smoothing=smoothing,
    )


def mixture_score(problem: GaussianMixture) -> list[Smoothness]:
    """L0_s and L1_s of each step for modes of one width.

    Attained by two modes (L0_s where it is ``1 / v``, too). With ``v = alpha_bar std^2 + 1 -
    alpha_bar`` and responsibilities r, ``D s = -I / v + Cov_r(m) / v^2`` and ``D^2 s = kappa_3(m) /
    v^3`` for the scaled means m. In any direction these lie in an interval no longer than their
    diameter D, where variances are at most ``D^2 / 4`` and third central moments at most ``D^3 / (6
    sqrt(3))``; a symmetric trilinear form is largest on the diagonal (Banach).
    """
    variance, diameter = _mixture_tables(problem)
    low, high = 1 / variance, diameter.square() / (4 * variance.square()) - 1 / variance
    bend = diameter**3 / (6 * math.sqrt(3) * variance**3)
    return [
        Smoothness(*pair)
        for pair in zip(torch.maximum(low, high).tolist(), bend.tolist(), strict=True)
    ]


def mixture_chain(problem: GaussianMixture) -> Chain:
    """Certified constants of a mixture of modes of one width.

    From the spectrum of the mean's Jacobian (see ``mixture_score``). ``D mean = (I + (1 - alpha) D
    s) / sqrt(alpha)`` has eigenvalues between those at ``Cov = 0`` and ``Cov = D^2 / 4``.

    Raises:
        ValueError: modes of different widths, or a reward whose constants are not known.
    """
    if not isinstance(problem.schedule, Schedule):
        raise ValueError("the chain must be a DDPM's or a DDIM's; constants of flows are not known")
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
    if not isinstance(problem.schedule, Schedule):
        kind = type(problem.schedule).__name__
        raise ValueError(f"schedule must be a Schedule, which preserves variance; got a {kind}")
    bar = problem.schedule.alpha_bar.double().cpu()
    means = problem.means.double().cpu()
    return bar * std[0] ** 2 + 1 - bar, bar.sqrt() * torch.cdist(means, means).max()


def reward_smoothness(reward: Any) -> Smoothness:
    """Constants of a ``QuadraticReward``, or of anything with an attribute ``smoothness``."""
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
    """Certified constants of a feed-forward network.

    Products of layer norms, usually far above the truth. ``Lip(D(g f)) <= Lip(Dg) Lip(f)^2 + Lip(g)
    Lip(Df)``. A convolution's norm is at most the sum of those of its taps, and at most that of its
    reshaped kernel times the root of how many patches a pixel is in.

    Raises:
        ValueError: a layer of another kind.
    """
    total = Smoothness(1.0, 0.0)
    for layer in network:
        here = _layer(layer)
        gradient = product(here.gradient, total.function**2) + product(
            here.function, total.gradient
        )
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
        return Smoothness(
            min(taps, math.sqrt(patches) * float(torch.linalg.matrix_norm(kernel.flatten(1), 2))),
            0.0,
        )
    if type(layer) in _ACTIVATIONS and getattr(layer, "beta", 1) == 1:
        return _ACTIVATIONS[type(layer)]
    raise ValueError(
        f"network must consist of Linear, Conv2d and {[t.__name__ for t in _ACTIVATIONS]}; got"
        f" {layer}"
    )


# --- constants from samples


def estimate_chain(
    problem: Problem, generator: torch.Generator, n: int = 64, iterations: int = 10
) -> Chain:
    """Constants as the largest seen at states of uncontrolled paths.

    They are not certified: the truth is at least as large. Norms of Jacobians come from power
    iteration with automatic differentiation, changes of Jacobians from their difference along pairs
    of nearby states.

    Args:
        problem: with a transition and rewards that autograd can follow, whose noise enters
            additively.
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
    terminal = _smoothness(
        lambda x: problem.terminal_reward(x)[:, None], states[-1], generator, iterations
    )
    return Chain(mean_, jacobian, noise_, terminal, running_, bend, certified=False)


def _smoothness(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    generator: torch.Generator,
    iterations: int,
    step: float = 1e-2,
) -> Smoothness:
    """Largest norm of the Jacobian at rows ``x``, and of its change per distance.

    Along random directions of length ``step``.
    """

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
