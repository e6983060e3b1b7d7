"""One table behind every denoising chain, whatever its family.

Data is noised as ``x = a x0 + b e`` with a signal ``a`` that grows along the chain and a noise
``b`` that falls: ``a^2 + b^2 = 1`` for DDPM and DDIM, ``a = 1`` where variance explodes (EDM),
``a = 1 - t, b = t`` for rectified flows. A network tells ``x0`` and ``e``, in one of the
parametrisations of ``predictions``, and a step to the next ``(a', b')`` is the Gaussian

    N(a' x0 + q e, sigma^2).

Its marginals are those of the noised data where ``q^2 + sigma^2 = b'^2``. With ``eta = 0`` the
step is the deterministic sampler's (Euler's, for flows); with ``eta = 1`` it is the posterior of
the next state given ``x`` and ``x0``, whose chain keeps no memory of the noise that it starts from
(DDIM, Song et al. 2021, eq. 16, for any a and b).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import check_integer, check_positive


class StepTable(NamedTuple):
    """The tables of a chain of T steps, ``(T,)`` each, from the noisiest step to the last."""

    signal: Tensor  # a, before the step
    noise: Tensor  # b, before the step
    next_signal: Tensor  # a', after it
    kept: Tensor  # q: how much of the predicted noise stays
    sigma: Tensor  # standard deviation of the fresh noise
    timesteps: Tensor  # what the network is told of each step

    @classmethod
    def of(
        cls,
        signal: Sequence[float] | Tensor,
        noise: Sequence[float] | Tensor,
        timesteps: Sequence[float] | Tensor | None = None,
        eta: float = 1.0,
    ) -> StepTable:
        """The chain that stops at ``T + 1`` pairs ``(a, b)``, the clean end among them.

        Args:
            signal: a, ``(T + 1,)``, not negative, 0 at the start at most.
            noise: b, ``(T + 1,)``, falling in relation to a; 0 at the end at most.
            timesteps: what the network is told, ``(T,)``; ``noise`` if absent.
            eta: share of the posterior's noise, above 0 and at most 1.

        Raises:
            ValueError: the tables have other shapes or signs, the ratio of noise to signal does not
                fall, or no step has noise.
        """
        a, b = (torch.as_tensor(part, dtype=torch.float64) for part in (signal, noise))
        if a.dim() != 1 or a.shape != b.shape or len(a) < 2:
            raise ValueError(
                "signal and noise must be one number for each of T + 1 points; got shapes"
                f" {tuple(a.shape)} and {tuple(b.shape)}"
            )
        check_eta(eta)
        falls = (b[:-1] * a[1:] > b[1:] * a[:-1]).all()
        if not (falls and (a[1:] > 0).all() and a[0] >= 0 and (b[:-1] > 0).all() and b[-1] >= 0):
            raise ValueError(
                "noise / signal must fall from step to step, with both positive between the ends;"
                f" got signal {a.tolist()} and noise {b.tolist()}"
            )
        before, after = b[:-1], b[1:]
        # of what x adds to x0 about the next state: b^2 - (a b' / a')^2, as a product that keeps
        # its digits
        ahead = a[:-1] / a[1:] * after
        posterior = after / before * ((before - ahead) * (before + ahead)).sqrt()
        kept = ((1 - eta**2) * posterior.square() + (after * ahead / before).square()).sqrt()
        return cls(a[:-1], before, a[1:], kept, eta * posterior, _told(timesteps, before)).noisy()

    @classmethod
    def rectified_flow(cls, steps: int = 28, shift: float = 1.0, eta: float = 1.0) -> StepTable:
        """``x = (1 - t) x0 + t e`` at T equal steps of t from 1 to 0, shifted.

        Args:
            steps: number of steps.
            shift: t becomes ``shift t / (1 + (shift - 1) t)``; above 1 it stays longer with noise
                (Esser et al. 2024, eq. 23).
            eta: as in ``of``.
        """
        times = flow_times(steps, shift)
        return cls.of(1 - times, times, None, eta)

    @classmethod
    def flow_grpo(
        cls, times: Sequence[float] | Tensor, noise_level: float = 0.7, timesteps: Any = None
    ) -> StepTable:
        """Flow-GRPO's Euler-Maruyama step of the rectified flow's reverse SDE (Liu et al. 2025,
        eq. 9), with ``sigma_t = noise_level sqrt(t / (1 - t))``:

            x + (v + sigma_t^2 (x + (1 - t) v) / (2 t)) (s - t) + sigma_t sqrt(t - s) z.

        At ``t = 1`` sigma_t takes the next time in its denominator, as in their public code. Its
        marginals are the flow's in the limit of many steps only.

        Args:
            times: from at most 1 to 0, ``(T + 1,)``; see ``flow_times``.
            noise_level: c.
            timesteps: what the network is told; the times if absent.
        """
        check_positive("noise_level", noise_level)
        time = torch.as_tensor(times, dtype=torch.float64)
        if time.dim() != 1 or len(time) < 2 or not (time[:-1] > time[1:]).all() or time[-1] != 0:
            raise ValueError(f"times must fall to 0, at least two of them; got {time.tolist()}")
        if not (time[0] <= 1 and (len(time) > 2 or time[0] < 1)):
            raise ValueError(
                f"times must begin at 1 at most, and below it for one step; got {time.tolist()}"
            )
        t, s = time[:-1], time[1:]
        left = 1 - torch.where(t == 1, s, t)
        variance = noise_level**2 * t / left
        kept = s - (t - s) * variance / (2 * t)
        sigma = (variance * (t - s)).sqrt()
        return cls(1 - t, t, 1 - s, kept, sigma, _told(timesteps, t))

    @classmethod
    def variance_exploding(
        cls, noise: Sequence[float] | Tensor, timesteps: Any = None, eta: float = 1.0
    ) -> StepTable:
        """``x = x0 + b e`` for falling ``noise`` b, ``(T,)`` or, with the clean end, ``(T + 1,)``.

        ``eta = 1`` is the ancestral sampler (diffusers' EulerAncestralDiscreteScheduler), ``eta =
        0`` Euler's.
        """
        b = torch.as_tensor(noise, dtype=torch.float64)
        if b.dim() == 1 and len(b) and b[-1] != 0:
            b = torch.cat([b, b.new_zeros(1)])
        return cls.of(torch.ones_like(b), b, timesteps, eta)

    @classmethod
    def karras(
        cls,
        steps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        eta: float = 1.0,
    ) -> StepTable:
        """EDM's noise levels (Karras et al. 2022, eq. 5), with a last step to 0."""
        check_integer("steps", steps)
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)):
            check_positive(name, value)
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_max must exceed sigma_min = {sigma_min}; got {sigma_max}")
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return cls.variance_exploding((high + ramp * (low - high)) ** rho, None, eta)

    @classmethod
    def from_scheduler(
        cls,
        scheduler: Any,
        steps: int = 28,
        kind: str = "posterior",
        eta: float = 1.0,
        *,
        noise_level: float = 0.7,
        mu: float | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> StepTable:
        """The times at which diffusers' FlowMatchEulerDiscreteScheduler steps.

        Args:
            scheduler: of that class; it is copied, and stays as it is.
            steps: number of steps.
            kind: ``posterior``, the family of ``eta``; or ``flow-grpo``, see ``flow_grpo``.
            eta: of ``posterior``.
            noise_level: of ``flow-grpo``.
            mu: the shift that depends on the resolution; for a scheduler with
                ``use_dynamic_shifting``.
            sigmas: times before shifting, ``(steps,)``, as pipelines of their own may give them.
        """
        name = type(scheduler).__name__
        if name != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(f"scheduler must be a FlowMatchEulerDiscreteScheduler; got {name}")
        if kind not in ("posterior", "flow-grpo"):
            raise ValueError(f"kind must be 'posterior' or 'flow-grpo'; got {kind!r}")
        check_integer("steps", steps)
        dynamic = bool(scheduler.config.get("use_dynamic_shifting"))
        if dynamic != (mu is not None):
            wanted = "a number" if dynamic else "absent"
            raise ValueError(
                f"mu must be {wanted} for a scheduler with use_dynamic_shifting={dynamic}; got"
                f" {mu!r}"
            )
        for flag in ("invert_sigmas", "stochastic_sampling"):
            if scheduler.config.get(flag):
                raise ValueError(f"the scheduler must not have {flag}; got {flag}=True")
        own = copy.deepcopy(scheduler)
        own.set_timesteps(
            *(() if sigmas is not None else (steps,)),
            **({} if sigmas is None else {"sigmas": list(sigmas)}),
            **({} if mu is None else {"mu": mu}),
        )
        times = own.sigmas.double()
        if kind == "flow-grpo":
            return cls.flow_grpo(times, noise_level, own.timesteps)
        return cls.of(1 - times, times, own.timesteps, eta)

    def table(self) -> StepTable:
        """Itself: other descriptions of a chain have a method of this name."""
        return self

    def to(self, dtype: torch.dtype) -> StepTable:
        """The same, rounded."""
        return StepTable(*(t.to(dtype) if t.is_floating_point() else t for t in self))

    @property
    def log_snr(self) -> Tensor:
        """``log(a^2 / b^2)`` before each step, ``(T,)``; minus infinity without a signal."""
        return 2 * (self.signal.log() - self.noise.log())

    def noisy(self) -> StepTable:
        """Itself, or a ValueError where no step has noise."""
        if not self.sigma.any():
            raise ValueError(
                "the chain must have noise in one step at least, or there is nothing to control;"
                f" got {len(self.sigma)} steps without"
            )
        return self


class Reading(NamedTuple):
    """What a prediction y of a parametrisation ``y = c x0 + d e`` says, each ``(T,)``:
    ``x0 = clean_x x - clean_y y``, ``e = noise_x x + noise_y y``, and the mean of the step
    ``shrink x - slope y``.
    """

    clean_x: Tensor
    clean_y: Tensor
    noise_x: Tensor
    noise_y: Tensor
    shrink: Tensor
    slope: Tensor

    @classmethod
    def of(cls, table: StepTable, prediction: str) -> Reading:
        """How to read ``prediction``, one of ``predictions``, along the chain."""
        a, b = table.signal, table.noise
        c, d = predictions(prediction, a, b)
        volume = a * d - b * c
        if not (volume != 0).all():
            raise ValueError(
                f"prediction {prediction!r} can't be read at a step without signal, such as the"
                " first of a flow; of these 'v' and 'velocity' can"
            )
        next_signal, kept = table.next_signal, table.kept
        return cls(
            d / volume,
            b / volume,
            -c / volume,
            a / volume,
            (next_signal * d - kept * c) / volume,
            (next_signal * b - kept * a) / volume,
        )


#: What a network may predict; ``v`` is ``a e - b x0`` (Salimans and Ho 2022), ``velocity`` is
#: ``e - x0``.
PREDICTIONS = ("epsilon", "sample", "v", "velocity", "score")


def predictions(name: str, signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """``(c, d)`` of the parametrisation ``y = c x0 + d e`` at each step."""
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    rows = {
        "epsilon": (zero, one),
        "sample": (one, zero),
        "v": (-noise, signal),
        "velocity": (-one, one),
        "score": (zero, -1 / noise),
    }
    if name not in rows:
        raise ValueError(f"prediction must be one of {PREDICTIONS}; got {name!r}")
    return rows[name]


def flow_times(steps: int, shift: float = 1.0) -> Tensor:
    """``T + 1`` times of a flow from 1 to 0; see ``StepTable.rectified_flow``."""
    check_integer("steps", steps)
    check_positive("shift", shift)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * times / (1 + (shift - 1) * times)


def check_eta(eta: float) -> None:
    """Raise a ValueError unless ``0 < eta <= 1``."""
    if isinstance(eta, bool) or not 0 < eta <= 1:
        raise ValueError(f"eta must be above 0 and at most 1; got {eta!r}")


def _told(timesteps: Any, noise: Tensor) -> Tensor:
    if timesteps is None:
        return noise
    told = torch.as_tensor(timesteps)
    told = told.double() if told.is_floating_point() else told
    if told.shape != noise.shape:
        raise ValueError(
            f"timesteps must be one number for each of {len(noise)} steps; got shape"
            f" {tuple(told.shape)}"
        )
    return told
