"""DRaFT-K (Clark et al. 2023) and AlignProp (Prabhudesai et al. 2023): the pathwise gradient, cut
off K steps before the end.

The last K steps are differentiated, the state before them is taken as given, and earlier steps
learn nothing of their own (they share the network's parameters). With ``K = T`` it is PI-FT's
pathwise gradient, whose sweep this one stops early; a smaller K is cheaper, less noisy and biased.
The papers have no KL term; here its price is paid as in J, so that all agents are after the same
objective, and ``temperature -> 0`` is the papers' algorithm.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...agents.checks import check_whole
from ...agents.pi_ft.value_gradients import adjoint_sweep
from ...envs.problem import Trajectories, slopes_of
from ..fine_tuning import FineTuner, rows_of
from ..step_policies import StepPolicy


class Rises(NamedTuple):
    """The direction in which a step's control raises J, one row a step of a path."""

    k: Tensor  # (N,)
    inputs: Tensor  # (N, p): encoded states
    rise: Tensor  # (N, m): J_z^T grad V_{k+1} - temperature a


class _Priced(NamedTuple):
    """What the sweep asks of a policy."""

    problem: Any
    betas: list[float]
    control: Any


class DRaFT(FineTuner):
    """The truncated pathwise gradient; see the module. One gradient step a round, on fresh paths.

    Args:
        policy, env, learning_rate, n_trajectories, max_grad_norm, weight_decay: ``FineTuner``'s.
        truncation: K, the number of last steps that are differentiated, those without noise not
            counted, where there is nothing to control; all if absent.

    Raises:
        ValueError: the reward or the transition can't be differentiated.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = (
        *(n for n in FineTuner.hyperparameters if n not in ("gradient_steps", "batch_size")),
        "truncation",
    )
    table: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "DiffusersChain": {"n_trajectories": 10, "learning_rate": 3e-4, "anneal": False},  # PI-FT's
    }

    def __init__(
        self,
        policy: str | type[StepPolicy] | None = None,
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_trajectories: int = 40,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        truncation: int | None = 1,
        **kwargs: Any,
    ) -> None:
        if truncation is not None:
            check_whole("truncation", truncation, 1)
        self.truncation = truncation
        super().__init__(
            policy, env, learning_rate, n_trajectories, 1, 1, max_grad_norm, weight_decay, **kwargs
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_slopes()

    def forget(self) -> None:
        """See ProblemAgent; a problem that autograd can't follow fails here."""
        super().forget()
        self._check_slopes()

    def _check_slopes(self) -> None:
        found, name = slopes_of(self.problem), type(self.problem).__name__
        for part, follows in zip(("transition", "rewards"), found, strict=True):
            if not follows:
                raise ValueError(f"DRaFT needs a gradient of the {part}; {name} has none")

    def prepare(self, paths: Trajectories, inputs: Tensor) -> Rises:
        """The last steps of the round's paths."""
        beta, horizon = self.problem.temperature, len(inputs)
        policy: Any = _Priced(self.problem, [beta] * horizon, self.policy.control)
        steered = self.policy.steered.flip(0).cumsum(0)
        reach = horizon - int((steered >= min(self.truncation or horizon, int(steered[-1]))).sum())
        steps = list(islice(adjoint_sweep(policy, paths), reach + 1))
        rise = torch.stack([step.by_noise for step in steps[::-1]]) - (
            beta * paths.controls[-len(steps) :]
        )
        k = torch.arange(horizon - len(steps), horizon, device=inputs.device)
        columns = k[:, None].expand(rise.shape[:2]), inputs[k], rise.flatten(2).to(inputs)
        return Rises(*rows_of(self.policy.steered[k], *columns))

    def loss(self, rows: Rises) -> Tensor:
        """Minus the rise along the control, ``(N,)``: its gradient is that of minus J."""
        return -(self.policy.output(rows.k, rows.inputs) * rows.rise).sum(1)

    def divisor(self, rows: Rises) -> int:
        """See FineTuner: the number of paths."""
        return self.n_trajectories

    def iterate(self) -> None:
        """One round."""
        self.set_learning_rate(self.optimizer)
        step = self.descend(self.prepare(*self.sample()))
        self.logger.record("train/loss", float(step.loss))
        self.tell(step)
