"""Regression data: observations ``(k, x, k', x')`` with what was collected in between.

Under any known control everything stays unbiased for the same linear equation, with the one-step
Girsanov weights ``omega = -a.W - |a|^2/2``:

    f_k(x) = E[ exp( sum_{k <= j < k'} (r_j / beta + omega_j) ) f_{k'}(X_{k'}) | X_k = x ],
    f_T(x) = exp(y(x) / beta).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...envs.problem import Problem, Trajectories
from ...envs.recording import RecordedPaths, Recording
from ..datasets import is_dataset, recording_of
from ..networks import Value, encode

#: Anything that an agent learns from without an environment.
Data = Trajectories | Recording | str | os.PathLike[str] | Iterable[Trajectories | Recording]


class Replay(NamedTuple):
    """``N`` paths of ``S`` visits, path first. Logs are in units of the temperature.

    Encoded states in float32.
    """

    steps: Tensor  # (N, S)
    states: Tensor  # (N, S, *state_shape)
    inputs: Tensor  # (N, S, p): encoded states
    log_weight: Tensor  # (N, S): sum of r_j / beta + omega_j before the visit
    log_reward: Tensor  # (N, S): sum of r_j / beta before the visit
    log_terminal: Tensor  # (N,): y / beta
    seen: Tensor  # (N,) whether the path was seen at its end
    precision: Tensor  # (N,) weight of the path: one over the noise of its targets, or 1
    noises: Tensor | None = None  # (N, S - 1, *noise_shape)
    controls: Tensor | None = None
    # (N, S - 1, 2 * pairs, p): encoded next states under fresh noise (see `branched`)
    branches: Tensor | None = None
    log_ratios: Tensor | None = None  # (N, S - 1, 2 * pairs): their log weights

    @classmethod
    def of(cls, problem: Problem, recording: Recording, inputs: Tensor | None = None) -> Replay:
        """A checked recording as regression data, on the problem's device.

        Args:
            problem: where the paths come from.
            recording: of them.
            inputs: the encoded states, where they are known already.

        Raises:
            ValueError: wrong shapes, NaN or infinite numbers, impossible steps.
        """
        recording.validate(problem)
        beta, steps = problem.temperature, recording.steps
        if inputs is None:
            visits = zip(common(steps), recording.states.unbind(1), strict=True)
            with torch.no_grad():
                inputs = torch.stack([encode(problem, k, x).float() for k, x in visits], 1)
        reward = _summed(recording.rewards / beta)
        weight = reward if recording.log_ratios is None else reward + _summed(recording.log_ratios)
        seen = steps[:, -1] == problem.horizon
        terminal = torch.where(seen, recording.terminal_reward / beta, 0.0).float()
        noises, controls = recording.noises, recording.controls
        one = torch.ones_like(terminal)
        return cls(
            steps, recording.states, inputs, weight, reward, terminal, seen, one, noises, controls
        )

    def at(self, rows: Tensor) -> Replay:
        """The paths at ``rows``."""
        parts: list[Any] = [None if part is None else part[rows] for part in self]
        return Replay(*parts)

    def branched(self, draw: Callable[[Replay, int, Any], tuple[Tensor, Tensor]]) -> Replay:
        """With fresh next states of every visit, of ``FreshNoise.branches``.

        Itself where steps were missed.
        """
        if not bool((self.steps.diff(dim=1) == 1).all()):
            return self
        steps = common(self.steps)[:-1]
        drawn = [draw(self, visit, k) for visit, k in enumerate(steps)]
        branches, log_ratios = zip(*drawn, strict=True)
        return self._replace(
            branches=torch.stack(branches).permute(2, 0, 1, 3).contiguous(),
            log_ratios=torch.stack(log_ratios).permute(2, 0, 1).float(),
        )

    @staticmethod
    def joined(parts: list[Replay]) -> Replay:
        """All paths of ``parts``.

        Noises are kept where all parts have them and were seen equally often.
        """
        most = max(part.steps.shape[1] for part in parts)
        parts = [part._padded(most) for part in parts]
        columns: Any = zip(*parts, strict=True)
        joined: list[Any] = [
            None if any(c is None for c in column) else torch.cat(column) for column in columns
        ]
        return Replay(*joined)

    def _padded(self, visits: int) -> Replay:
        """The same paths, their last visit repeated."""
        missing = visits - self.steps.shape[1]
        if not missing:
            return self
        parts: list[Any] = list(self)
        last = [
            torch.cat([part, part[:, -1:].expand(-1, missing, *part.shape[2:])], 1)
            for part in parts[:5]
        ]
        return Replay(*last, *parts[5:8])

    @property
    def n(self) -> int:
        """Number of paths."""
        return len(self.log_terminal)

    @property
    def log_returns(self) -> Tensor:
        """``log( dP^0/dP^pi exp(return / beta) )`` of the paths seen to their end.

        Its mean exponential estimates E f.
        """
        return (self.log_weight[:, -1] + self.log_terminal)[self.seen]

    @property
    def effective_share(self) -> float:
        """Effective sample size of the paths seen to their end under the optimum's weights.

        As a share of their number; 0 where there is none.
        """
        log_returns = self.log_returns.double()
        if not len(log_returns):
            return 0.0
        ess = torch.exp(2 * log_returns.logsumexp(0) - (2 * log_returns).logsumexp(0))
        return float(ess) / len(log_returns)

    @property
    def paid_on_the_way(self) -> bool:
        """Whether there are rewards before the last step."""
        return bool(self.log_reward.any())

    @property
    def log_reward_to_go(self) -> Tensor:
        """Rewards after each visit, ``(seen, S)``; the terminal one and the visit's own included.

        Of the paths seen to their end.
        """
        return ((self.log_reward[:, -1] + self.log_terminal)[:, None] - self.log_reward)[self.seen]

    def scale(self, horizon: int) -> Scale:
        """Where log f lies at every step, and how far rewards to go spread there.

        The level is the mean reward to go plus what the log-mean-exponential of the returns exceeds
        it by: a constant that is added to the rewards of a step, or to the terminal one, moves the
        level by just that.
        """
        steps, excess = self.steps[self.seen], self.log_returns.double()
        left = _at_every_step(steps, self.log_reward_to_go.double(), horizon)
        met = torch.arange(horizon + 1, device=steps.device) >= steps[:, :1]
        count = met.sum(0).clamp(min=1)
        earned = (met[:, :-1] * -left.diff(dim=1)).sum(0) / count[:-1]
        ahead = torch.cat([earned, left[:, -1:].mean(0)]).flip(0).cumsum(0).flip(0)
        excess = excess - ahead[steps[:, 0]]
        spread = ((met * (left - ahead).square()).sum(0) / (count - 1).clamp(min=1)).sqrt()
        return Scale(ahead + excess.logsumexp(0) - math.log(len(excess)), spread)

    def bounds(self, level: Tensor) -> Tensor:
        """Bounds of log f less its ``level`` ``(horizon + 1,)`` that bounded rewards give.

        The least and the largest reward to go that was seen, ``(2,)``.
        """
        above = self.log_reward_to_go - level[self.steps[self.seen]]
        return torch.stack([above.min(), above.max()])


def wider(bounds: Tensor, others: Tensor) -> Tensor:
    """The least bounds ``(2,)`` around both."""
    return torch.stack([bounds[0].minimum(others[0]), bounds[1].maximum(others[1])])


class Scale(NamedTuple):
    """Units of log f, in nats, both ``(horizon + 1,)`` in float64."""

    level: Tensor
    spread: Tensor


def _at_every_step(steps: Tensor, values: Tensor, horizon: int) -> Tensor:
    """Values at visits ``(N, S)`` on straight lines in between, ``(N, horizon + 1)``.

    Constant before the first visit and after the last.
    """
    every = torch.arange(horizon + 1, device=steps.device).expand(len(steps), -1).contiguous()
    after = torch.searchsorted(steps.contiguous(), every).clamp(max=steps.shape[1] - 1)
    before = (after - 1).clamp(min=0)
    start, end = steps.gather(1, before), steps.gather(1, after)
    share = ((every - start) / (end - start).clamp(min=1)).clamp(0, 1)
    return torch.lerp(values.gather(1, before), values.gather(1, after), share.to(values))


def common(steps: Tensor) -> list[int | Tensor]:
    """The step of every visit of ``(n, S)``, as one int where all rows share it.

    Problems are faster then. A GPU is waited for once, however many visits there are.
    """
    first, shared = torch.stack([steps[0], (steps == steps[0]).all(0).to(steps)]).tolist()
    columns = zip(first, shared, steps.unbind(1), strict=True)
    return [k if alike else column for k, alike, column in columns]


def _summed(parts: Tensor) -> Tensor:
    """Sums of ``parts`` (N, S - 1) before each visit, ``(N, S)``, float32."""
    total = parts.cumsum(1).float()
    return torch.cat([torch.zeros_like(total[:, :1]), total], 1)


class Parts:
    """Recorded data, checked, as regression data in parts; iterate over it as often as you like.

    Args:
        data: see ``PDE.fit``.
        problem: where they come from.
        device: where to put them.
        value: gives the present value, whose bounds, where they are known already, the rewards of
            every part widen.

    Raises:
        ValueError: something else, or something that can be iterated over only once.
    """

    def __init__(
        self, data: Any, problem: Problem, device: torch.device, value: Callable[[], Value]
    ) -> None:
        self.problem, self.device, self.value = problem, device, value
        if isinstance(data, (str, os.PathLike)):
            data = RecordedPaths(data)
        elif is_dataset(data):
            data = recording_of(data, problem)
        self.data = [data] if isinstance(data, (Trajectories, Recording)) else data
        if not hasattr(self.data, "__iter__") or iter(self.data) is self.data:
            kinds = (
                "Trajectories, a Recording, a file name, or something that can be iterated over"
                " again and again"
            )
            raise ValueError(f"data must be {kinds}; got {type(data).__name__}")
        self.terminal_rewards = 0  #: seen in the last iteration

    def __iter__(self) -> Iterator[Replay]:
        count = 0
        for part in self.data:
            recording = Recording.of(part) if isinstance(part, Trajectories) else part
            if not isinstance(recording, Recording):
                raise ValueError(
                    f"data must yield Trajectories or Recordings; got {type(recording).__name__}"
                )
            moved: list[Any] = [None if t is None else t.to(self.device) for t in recording]
            replay = Replay.of(self.problem, Recording(*moved))
            count += int(replay.seen.sum())
            self._widen(replay)
            yield replay
        self.terminal_rewards = count

    def _widen(self, replay: Replay) -> None:
        value = self.value()
        if bool(value.bounds.isfinite().all()) and bool(replay.seen.any()):
            value.bounds.copy_(wider(value.bounds, replay.bounds(value.offset)))


class Spans(NamedTuple):
    """A batch of observations ``(k, x, k', x')`` with what was seen in between."""

    row: Tensor  # (B,) of the path
    visit: Tensor  # (B,) of x
    k: Tensor  # (B,)
    x: Tensor  # (B, p) encoded
    later_k: Tensor
    later_x: Tensor
    first_k: Tensor
    first_x: Tensor  # the path's first visit
    log_weight: Tensor  # of the path up to k
    # sum of r_j / beta + omega_j over k <= j < k'; the terminal reward included when k' = T
    log_gain: Tensor
    terminal: Tensor  # whether k' = T
    precision: Tensor  # of the path

    def at(self, rows: Tensor) -> Spans:
        """The observations at ``rows``."""
        return Spans(*(part[rows] for part in self))


def spans(data: Replay, row: Tensor, visit: Tensor, later: Tensor, horizon: int) -> Spans:
    """The observations from ``visit`` to ``later`` of paths ``row``, all ``(B,)``."""
    k, later_k = data.steps[row, visit], data.steps[row, later]
    terminal = later_k == horizon
    gain = (
        data.log_weight[row, later]
        - data.log_weight[row, visit]
        + terminal * data.log_terminal[row]
    )
    return Spans(
        *(row, visit, k, data.inputs[row, visit], later_k, data.inputs[row, later]),
        *(data.steps[row, 0], data.inputs[row, 0], data.log_weight[row, visit]),
        *(gain, terminal, data.precision[row]),
    )


def sample_spans(
    data: Replay,
    n: int,
    mean_span: float,
    horizon: int,
    generator: torch.Generator,
    chances: Tensor | None = None,
) -> Spans:
    """Draw ``n`` random visits on random paths, and later visits.

    All alike, or in proportion to ``chances`` ``(N, S)``. The distance in visits is geometric with
    the given mean: 1 gives one-step targets, infinity plain Monte-Carlo regression. A path's last
    visit is its own target: it says something (the terminal reward) only at the horizon.
    """
    device = data.inputs.device
    paths, visits = data.steps.shape
    if chances is None:
        row = torch.randint(paths, (n,), generator=generator, device=device)
        visit = torch.randint(visits, (n,), generator=generator, device=device)
    else:
        pick = torch.multinomial(chances.flatten(), n, replacement=True, generator=generator)
        row, visit = pick // visits, pick % visits
    uniform = torch.rand(n, generator=generator, device=device)
    if mean_span <= 1:
        span = torch.ones_like(visit)
    else:
        span = (
            (1 + torch.log(uniform) / torch.log(torch.tensor(1 - 1 / mean_span)))
            .clamp(max=visits)
            .long()
        )
    return spans(data, row, visit, (visit + span).clamp(max=visits - 1), horizon)
