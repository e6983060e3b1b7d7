"""Policies that come from a fitted value function.

Its gradient through the transition, or a regression of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from ...envs.problem import Problem, device_of
from ..control import ControlPolicy
from ..networks import EnsembleMLP, NeuralValue, Value, encode, time_features
from .classes.length_scale import FourierValue, KernelValue, RadialValue
from .classes.linear import PolynomialValue
from .collecting.cost import denoises, has_network
from .replay import Replay


class ValuePolicy(ControlPolicy):
    """A control made from ``log f``.

    Args:
        value_kwargs: arguments of the value's class.
    """

    value_class: ClassVar[type[Value]]
    #: Settings of the value's class that are tried, on top of the given ones; the first: default.
    candidates: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    #: The lookahead that suits the class where the data hold every step (see PDE).
    lookahead: ClassVar[str] = "observed"
    #: Whether the transition costs more than the policy: the network of a denoiser does.
    dear: bool = False
    #: Mean distance to an observed target, in visits, that suits the class (see PDE).
    mean_span: ClassVar[float] = 5.0
    #: Whether it learns from the noises and controls of every step.
    needs_noise: ClassVar[bool] = False
    #: Whether networks start from the expected reward to go, in units of its spread, where rewards
    #: are paid on the way and may span hundreds of temperatures.
    warm: ClassVar[bool] = True
    #: Whether every input has a unit of its own (see ``Standardise.fit``).
    apart: ClassVar[bool] = False
    #: Whether observations are drawn by their weight in the loss: where most of them have nearly
    #: none (fallen robots).
    resamples: bool = False
    value: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        **value_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        self.value = self.make_value(**{**self.candidates[0], **value_kwargs})

    @classmethod
    def usual_learning_rate(cls, problem: Problem) -> float:
        """Of PDE, unless another is given."""
        return 2e-3

    @property
    def n_inputs(self) -> int:
        """Size of an encoded state."""
        with torch.no_grad():
            x = self.problem.initial(2, torch.Generator(device_of(self.problem)).manual_seed(0))
            return encode(self.problem, 0, x).shape[1]

    def prepare(
        self, data: Replay, density: Tensor, anew: bool, generator: torch.Generator
    ) -> dict[str, float]:
        """What is to be learnt of all paths before log f in each round, with what is to be logged.

        Args:
            data: all paths.
            density: estimated ``dP*/dP`` of each visit, ``(N, S)``.
            anew: in the first round.
            generator: of the batches.
        """
        return {}

    def make_value(self, **kwargs: Any) -> Value:
        """A new value of the policy's class."""
        return self.value_class(self.n_inputs, self.problem.horizon, **kwargs)


class ValueGradientPolicy(ValuePolicy):
    """``a = grad_z log f_{k+1}(F_k(x, z))``, clipped to the action bound.

    The exact optimum of the discrete chain takes this gradient of ``log E_W f_{k+1}(F_k(x, z +
    W))`` at ``z = 0``. Two approximations are on offer: the gradient at the controlled mean, ``z =
    a``, by fixed-point iteration (Laplace's; exact for quadratic ``log f``), and an average over
    draws of W. Both together take the mean of the gradient at ``a + W``: the first-order condition
    of the best control of one step where V continues, ``a = E_W grad_z log f(F(x, a + W))``.

    Args:
        draws: antithetic pairs of noise that smooth the gradient; 0 takes none.
        iterations: of ``z <- a`` from zero; 1 takes the gradient at the uncontrolled mean.
        value_kwargs: arguments of the value's class.
    """

    lookahead = "fresh"  # the transition is known: the gradient goes through it
    #: Share of the way that every iteration goes, but for the first, which goes all of it.
    damping: ClassVar[float] = 1.0
    #: Shorten iterations by the curvature that the draws show instead.
    newton: ClassVar[bool] = False
    noise: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        draws: int = 0,
        iterations: int = 1,
        **value_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, problem, **value_kwargs)
        self.draws, self.iterations = draws, iterations
        # fixed and the same for every state: the policy is a function, and costs no random numbers
        half = torch.randn(draws, *problem.noise_shape, generator=torch.Generator().manual_seed(1))
        self.register_buffer("noise", torch.cat([half, -half]))

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See the class."""
        a = x.new_zeros(len(x), *self.problem.noise_shape)
        if self.newton and self.draws:
            return self._by_newton(k, x, a)
        for i in range(self.iterations):
            found = self._gradient(k, x, a).clamp(-self.action_bound, self.action_bound)
            a = torch.lerp(a, found, self.damping if i else 1.0)
        return a

    def _by_newton(self, k: int | Tensor, x: Tensor, a: Tensor) -> Tensor:
        """Newton's steps on ``a = E_W grad_z log f(F(x, a + W))``.

        All directions have one curvature. Minus that curvature is the mean over the draws of
        ``(g(a + W) - g(a - W)).W / 2|W|^2``, g the gradient: one step is exact for a parabola in
        one dimension. Where log f is convex the plain iteration is kept, which goes uphill.
        """
        half = self.noise[: self.draws].to(x)[:, None]
        dimensions = tuple(range(2, half.dim()))
        for _ in range(self.iterations):
            slopes = self._slopes(k, x, a)
            turned = ((slopes[: self.draws] - slopes[self.draws :]) * half).sum(dimensions).mean(0)
            curvature = -turned / (2 * half.square().sum(dimensions).mean(0))
            length = 1 / (1 + curvature.clamp(min=0)).view(-1, *[1] * (a.dim() - 1))
            a = (a + length * (slopes.mean(0) - a)).clamp(-self.action_bound, self.action_bound)
        return a

    def _slopes(self, k: int | Tensor, x: Tensor, a: Tensor) -> Tensor:
        """The gradient of log f by the noise at ``a`` plus every draw.

        ``(2 draws, n, *noise_shape)``.
        """
        copies = 2 * self.draws
        with torch.enable_grad():
            z = (a + self.noise.to(x)[:, None]).flatten(0, 1).requires_grad_()
            steps = k if isinstance(k, int) else k.repeat(copies)
            total = self._log_f(steps, x.repeat(copies, *[1] * (x.dim() - 1)), z).sum()
            (slopes,) = torch.autograd.grad(total, z)
        return slopes.view(copies, *a.shape)

    def _gradient(self, k: int | Tensor, x: Tensor, a: Tensor) -> Tensor:
        n, copies = len(x), 2 * self.draws
        with torch.enable_grad():
            z = a.detach().requires_grad_()
            if copies:
                noisy = (z + self.noise.to(x)[:, None]).flatten(0, 1)
                steps = k if isinstance(k, int) else k.repeat(copies)
                log_f = self._log_f(steps, x.repeat(copies, *[1] * (x.dim() - 1)), noisy).view(
                    -1, n
                )
                total = (log_f.logsumexp(0) if self.iterations == 1 else log_f.mean(0)).sum()
            else:
                total = self._log_f(k, x, z).sum()
            (gradient,) = torch.autograd.grad(total, z)
        return gradient

    def later(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """The encoded next states that the gradient goes through, ``(n, p)``."""
        return encode(self.problem, k + 1, self.problem.transition(k, x, z)).float()

    def _log_f(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        later = self.later(k, x, z)
        if not later.requires_grad:
            name = type(self.problem).__name__
            raise ValueError(
                f"{type(self).__name__} needs a transition that autograd can follow; {name}'s is"
                " not (policy='ModelPolicy' learns one, 'NoisePolicy' regresses the noise instead)"
            )
        return self.value(k + 1, later)


class MlpPolicy(ValueGradientPolicy):
    """``log f`` is an ensemble of networks.

    Where log f curves within one step's noise, its gradient at the uncontrolled mean is far from
    the best control: it overshoots where log f is concave. So the gradient is averaged over noise
    around the control; denoisers, whose steps are dear, do without. They learn at a smaller rate
    and with one layer less, too: a function of the clean estimate changes little along a path,
    while one of the state must follow it from step to step, which takes more fitting. That one is
    fitted to observations drawn by their weight: few of a robot's paths end well, and equal draws
    spend most of a batch on the others.

    Args:
        draws: see ValueGradientPolicy; absent: 2, or 0 where the problem offers
            ``terminal_estimate``.
        iterations: see ValueGradientPolicy; absent: 3, or 1 where the problem offers
            ``terminal_estimate``.
        hidden: see ``NeuralValue``; absent: three layers of 128, or two where the problem offers
            ``terminal_estimate``.
        value_kwargs: other arguments of ``NeuralValue``.
    """

    value_class = NeuralValue
    damping = 0.5  # plain iterations diverge where log f curves by more than one within the noise

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        draws: int | None = None,
        iterations: int | None = None,
        hidden: Sequence[int] | None = None,
        **value_kwargs: Any,
    ) -> None:
        denoising = denoises(problem)
        usual = (0, 1) if denoising else (2, 3)
        draws, iterations = (
            u if given is None else given
            for given, u in zip((draws, iterations), usual, strict=True)
        )
        hidden = (128,) * (2 if denoising else 3) if hidden is None else hidden
        super().__init__(
            observation_space,
            action_space,
            problem,
            draws,
            iterations,
            hidden=hidden,
            **value_kwargs,
        )
        self.resamples = not denoising
        self.dear = denoising and has_network(problem)

    @classmethod
    def usual_learning_rate(cls, problem: Problem) -> float:
        """See the class."""
        return 2e-3 if denoises(problem) else 6e-3


class LinearPolicy(ValueGradientPolicy):
    """``log f`` comes from a linear class; the gradient is taken at the controlled mean."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        draws: int = 0,
        iterations: int = 3,
        **value_kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, problem, draws, iterations, **value_kwargs
        )


class PolynomialPolicy(LinearPolicy):
    """``log f`` is a polynomial; degree 2 holds every linear-quadratic problem's."""

    value_class = PolynomialValue


class FourierPolicy(LinearPolicy):
    """``log f`` is a combination of random Fourier features."""

    value_class = FourierValue
    candidates = ({"length": 1.0}, {"length": 0.5}, {"length": 2.0})


class KernelPolicy(LinearPolicy):
    """``log f`` is an element of a Gaussian kernel's space."""

    value_class = KernelValue
    candidates = ({"length": 1.0}, {"length": 0.5}, {"length": 2.0})


class RadialPolicy(LinearPolicy):
    """``f`` is a non-negative combination of Gaussian bumps."""

    value_class = RadialValue
    lookahead = "observed"  # did better on the planar mixture
    candidates = ({"width": 1.0}, {"width": 0.6}, {"width": 1.6})


class NoisePolicy(ValuePolicy):
    """The control as a network, fitted by regression of the noise.

    For transitions that can't be differentiated. With ``gap = log_gain + log f_{k+1}(X_{k+1}) - log
    f_k(X_k)`` the optimal tilt of the noise is, under any control a,

        a*_k(x) = E[ exp(gap) (a + W) | X_k = x ] = a + E[ (exp(gap) - 1) W | X_k = x ]

    (Girsanov; the subtracted mean is a control variate, and what remains vanishes as a tends to the
    optimum).

    Args:
        control_hidden: widths of the control's hidden layers.
        value_kwargs: arguments of the value's class.
    """

    value_class = NeuralValue
    needs_noise = True
    access = "black-box reward; interaction with the noise seen"  # less than the others'
    access_class = "noise seen"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        control_hidden: Sequence[int] = (128, 128),
        **value_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, problem, **value_kwargs)
        n_time = time_features(torch.zeros(1), 1).shape[1]
        n_outputs = int(torch.Size(problem.noise_shape).numel())
        self.network = EnsembleMLP(self.n_inputs + n_time, n_outputs, control_hidden, members=1)

    def output(self, network: EnsembleMLP, k: int | Tensor, inputs: Tensor) -> Tensor:
        """Controls ``(n, noise size)`` of ``network`` at encoded states."""
        time = time_features(self.value.clock[k], len(inputs))
        return network(torch.cat([self.value.standardise(inputs), time], 1))[0]

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See the class."""
        a = self.output(self.network, k, encode(self.problem, k, x).float())
        return (
            a.clamp(-self.action_bound, self.action_bound)
            .view(len(x), *self.problem.noise_shape)
            .to(x.dtype)
        )
