"""Value functions fitted to sampled returns of few paths: one kernel ridge regression a step."""

from __future__ import annotations

import torch
from torch import Tensor

#: Squared length scales, in medians of the squared distances at a step; the widest kernels are
#: almost quadratic.
_SCALES = (1.0, 4.0, 16.0)
_RIDGES = tuple(10.0**power for power in range(-4, 3))


class KernelValues:
    """``V_{k+1}(x)`` for k = 0..T-1 from the returns of paths.

    By Gaussian kernels, with a mean of its own for each context.

    At every step the length scale and the ridge are those of the least leave-one-out error (in
    closed form: Rasmussen and Williams 2006, eq. 5.26 without the noise's scale). Where no kernel
    predicts a left-out return better than the mean does, the value is that mean and its gradient
    zero.

    Args:
        states: ``X_{k+1}`` of M paths, flattened, ``(T, M, p)``.
        returns: what the paths earned from there on, ``(T, M)``.
        contexts: a path's number among contexts that differ in their values, such as prompts,
            ``(M,)``; distances between contexts count one median more.
    """

    def __init__(self, states: Tensor, returns: Tensor, contexts: Tensor) -> None:
        self.states, self.contexts = states, contexts
        y = returns.double()
        horizon, n = y.shape
        distances = torch.stack([torch.cdist(x, x).square() for x in states.double()])
        apart = ~torch.eye(n, dtype=torch.bool, device=y.device)
        #: Median squared distance between paths at each step, ``(T,)``.
        self.unit = distances[:, apart].view(horizon, -1).median(1).values.clamp(min=1e-12)
        same = contexts[:, None] == contexts
        distances = distances / self.unit[:, None, None] + ~same
        mean = same.double() / same.sum(1)  # projects on what is constant in each context
        centred = y - y @ mean
        shares = mean.diagonal()
        none = (centred / (1 - shares).clamp(min=1e-6)).square().mean(1)
        best, self.scale, self.weights = none, torch.ones_like(none), torch.zeros_like(y)
        ridges = y.new_tensor(_RIDGES)[:, None, None]
        rest = torch.eye(n, dtype=y.dtype, device=y.device) - mean
        for scale in _SCALES:
            kernel = rest @ torch.exp(-0.5 * distances / scale) @ rest
            spectrum, vectors = torch.linalg.eigh(kernel)
            spectrum = spectrum.clamp(min=0)
            turned = (vectors.mT @ centred[..., None])[..., 0]
            kept = spectrum / (spectrum + ridges)  # (ridges, T, M)
            hat = shares + (vectors.square() @ kept[..., None])[..., 0]
            left_out = (centred - (vectors @ (kept * turned)[..., None])[..., 0]) / (1 - hat).clamp(
                min=1e-6
            )
            error, which = left_out.square().mean(2).min(0)
            weights = (vectors @ (turned / (spectrum + ridges[which][:, 0]))[..., None])[
                ..., 0
            ] @ rest
            better = error < best
            best = torch.where(better, error, best)
            self.scale = torch.where(better, torch.full_like(error, scale), self.scale)
            self.weights = torch.where(better[:, None], weights, self.weights)
        #: Share of the returns' variance that is predicted for left-out paths at each step,
        #: ``(T,)``.
        self.explained = 1 - best / none.clamp(min=torch.finfo(y.dtype).tiny)
        fitted = torch.stack(
            [self._kernel(k, x.double(), contexts) @ self.weights[k] for k, x in enumerate(states)]
        )
        self.level = (y - fitted) @ mean  # (T, M): at each path, its context's

    def _kernel(self, k: int, x: Tensor, contexts: Tensor) -> Tensor:
        distances = torch.cdist(x, self.states[k].double()).square() / self.unit[k]
        return torch.exp(-0.5 * (distances + (contexts[:, None] != self.contexts)) / self.scale[k])

    def __call__(self, k: int, x: Tensor, contexts: Tensor) -> Tensor:
        """``V_{k+1}`` at flattened states ``(n, p)``, ``(n,)``.

        The contexts ``(n,)`` must be ones that the fit has seen.
        """
        first = (contexts[:, None] == self.contexts).double().argmax(1)
        return (self.level[k, first] + self._kernel(k, x.double(), contexts) @ self.weights[k]).to(
            x.dtype
        )

    def gradient(self, k: Tensor, x: Tensor, contexts: Tensor) -> Tensor:
        """``grad V_{k+1}`` at flattened states ``(n, p)``, ``(n, p)``.

        One step ``k`` and one context a row.
        """
        out = torch.empty_like(x)
        for step in k.unique().tolist():
            rows, known = k == step, self.states[step].double()
            at = x[rows].double()
            pull = self._kernel(step, at, contexts[rows]) * self.weights[step]
            slope = (pull @ known - pull.sum(1, keepdim=True) * at) / (
                self.scale[step] * self.unit[step]
            )
            out[rows] = slope.to(x.dtype)
        return out
