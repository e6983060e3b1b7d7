"""Control through a learned transition, for simulators that autograd can't follow.

A simulator's next state is a function of the state and of ``z = a + W`` and has no noise of its
own, so that regression learns it from few steps; reward and next states stay those that were seen.
What is learnt lends its derivative by z alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.problem import Problem, device_of
from ..networks import EnsembleMLP, encode, time_features
from .policies import MlpPolicy
from .replay import Replay
from .variational import tempered

#: Errors, in standard deviations of what a step changes, above which they count linearly: contacts
#: and falls are jumps.
_JUMP = 0.1
#: Effective share of the observations that the transition is learnt from, at least.
_SPREAD = 0.2


class LearnedTransition(nn.Module):
    """``F_k(x, z)`` of encoded states: ``x`` plus a network of ``(x, z)``.

    The time is an input too if the transition depends on it.

    Args:
        n_inputs: size of the encoded state.
        n_noises: size of the noise.
        horizon: number of steps of the problem.
        timed: whether the network is told the time.
        hidden: widths of the hidden layers.
    """

    def __init__(
        self,
        n_inputs: int,
        n_noises: int,
        horizon: int,
        timed: bool,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        self.horizon, self.timed = horizon, timed
        n_time = time_features(torch.zeros(1), 1).shape[1] if timed else 0
        self.network = EnsembleMLP(n_inputs + n_noises + n_time, n_inputs, hidden, members=1)
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))
        # standard deviation of what a step changes
        self.register_buffer("change", torch.ones(n_inputs))
        self.centre: Tensor
        self.scale: Tensor
        self.change: Tensor
        self.optimizer = torch.optim.Adam(self.network.parameters())

    def forward(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Encoded next states ``(n, p)`` of ``x`` ``(n, p)`` and ``z`` ``(n, noises)``.

        ``k`` an int or one step per row.
        """
        return x + self.change * self._changed(k, x, z)

    def _changed(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        parts = [(x - self.centre) / self.scale, z]
        if self.timed:
            parts.append(
                time_features(torch.as_tensor(k, device=x.device).to(x) / self.horizon, len(x))
            )
        return self.network(torch.cat(parts, 1))[0]

    def place(self, x: Tensor, later: Tensor) -> None:
        """Take units from the first data, ``(n, p)`` both; what doesn't vary keeps its own."""
        for unit, values in ((self.scale, x), (self.change, later - x)):
            deviation = values.std(0)
            varies = deviation > 1e-6 * deviation.max()
            unit.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))
        self.centre.copy_(x.mean(0))

    def regress(
        self,
        data: Replay,
        chances: Tensor,
        steps: int,
        rate: float,
        batch_size: int,
        generator: torch.Generator,
    ) -> float:
        """Fit ``data`` whose visits are drawn in proportion to ``chances`` ``(N, S)``.

        Returns the last loss.
        """
        assert data.noises is not None and data.controls is not None
        pushed = (data.noises + data.controls).flatten(2).float()
        visits = pushed.shape[1]
        chances = chances[:, :visits].flatten()
        loss = torch.zeros(())
        for i in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * max(1 - i / steps, 0.05)
            pick = torch.multinomial(chances, batch_size, replacement=True, generator=generator)
            row, visit = pick // visits, pick % visits
            k, x, later = (
                data.steps[row, visit],
                data.inputs[row, visit],
                data.inputs[row, visit + 1],
            )
            guess = self._changed(k, x, pushed[row, visit])
            loss = nn.functional.smooth_l1_loss(guess, (later - x) / self.change, beta=_JUMP)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return float(loss.detach())


class ModelPolicy(MlpPolicy):
    """As ``MlpPolicy``, with the derivative of a learned transition in place of the problem's own.

    The observed next states give the targets of log f; the learned transition gives the control,
    and is fitted anew to all paths in every round.

    Args:
        draws: see ValueGradientPolicy.
        iterations: see ValueGradientPolicy.
        model_hidden: widths of the learned transition's hidden layers.
        model_steps: its gradient steps in each round; three times as many in the first.
        hidden: see ``NeuralValue``.
        value_kwargs: other arguments of ``NeuralValue``.
    """

    lookahead = "observed"
    mean_span = 1.0
    needs_noise = True
    apart = True
    newton = True
    access = "black-box reward; interaction with the noise seen"
    access_class = "noise seen"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        draws: int = 2,
        iterations: int = 4,
        model_hidden: Sequence[int] = (128, 128),
        model_steps: int = 150,
        hidden: Sequence[int] = (128, 128),
        **value_kwargs: object,
    ) -> None:
        super().__init__(
            observation_space, action_space, problem, draws, iterations, hidden, **value_kwargs
        )
        self.resamples = True
        noises = int(torch.Size(problem.noise_shape).numel())
        self.model_steps = model_steps
        self.model = LearnedTransition(
            self.n_inputs, noises, problem.horizon, _depends_on_time(problem), model_hidden
        )

    @classmethod
    def usual_learning_rate(cls, problem: Problem) -> float:
        """As of the states of robots, which these problems mostly are."""
        return 6e-3

    def prepare(
        self, data: Replay, density: Tensor, anew: bool, generator: torch.Generator
    ) -> dict[str, float]:
        """Fit the learned transition to all paths so far.

        More closely where the optimal process is believed to go.
        """
        if anew:
            self.model.place(data.inputs[:, :-1].flatten(0, 1), data.inputs[:, 1:].flatten(0, 1))
        steps = self.model_steps * (3 if anew else 1)
        loss = self.model.regress(data, tempered(density, _SPREAD), steps, 3e-3, 512, generator)
        return {"train/transition_loss": loss}

    def later(self, k: int | Tensor, x: Tensor, z: Tensor) -> Tensor:
        """See ValueGradientPolicy; learned."""
        return self.model(k, encode(self.problem, k, x).float(), z.flatten(1).float())


@torch.no_grad()
def _depends_on_time(problem: Problem) -> bool:
    """Try it: the same states and noises at the first, the middle and the last step."""
    generator = torch.Generator(device_of(problem)).manual_seed(0)
    x = problem.initial(2, generator)
    z = torch.randn(2, *problem.noise_shape, generator=generator, device=x.device, dtype=x.dtype)
    first = problem.transition(0, x, z)
    return any(
        not torch.equal(first, problem.transition(k, x, z))
        for k in (problem.horizon // 2, problem.horizon - 1)
    )
