"""A contest of function classes: they learn from each other's paths; each is judged by its own.

Along paths of a control a that it did not learn from, the log density of the path under the
optimum against that under a is, up to a constant,

    G = sum_k (r_k / beta - |a_k|^2 / 2 - a_k . W_k) + y / beta,

with mean ``J(a) / beta`` and, at the optimum, the value ``log f_0(X_0)`` on every path, up to the
size of the step. So half the variance of ``G - log f_0(X_0)`` is the held-out residual of the
equation, in nats, and to first order what a loses, ``(J* - J(a)) / beta = KL(P^a || P*)``. It tells
good controls apart with few paths; that a control is consistently bad, in the wrong mode say, only
the mean tells. So classes whose mean is clearly lower than another's leave, and of those that stay
the least residual wins; that of linear classes counts threefold, as a network goes on learning
where they have come to their end, unless next to nothing is left to learn.

Who is behind starts its next solution from the log f of who leads (see ``following``).

A class of many weights needs many paths before it is any good. So all paths grow by a
factor each round until a third of the budget is spent, and nobody leaves before. Who is worse than
no control takes fewer paths. But classes that are fitted step by step learn from their own paths
alone, and from uncontrolled ones, every other with a push: wild ones of others stretch their units.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ....envs.problem import Policy, Problem, Trajectories
from ...networks import NetworkValue
from ..classes.linear import LinearValue
from ..policies import ValuePolicy
from ..replay import Replay
from ..settings import Collection
from .candidates import CANDIDATES, Candidate, candidates_for
from .following import follow

#: What the agent takes over from the winner.
_WHAT_A_CLASS_IS = (
    *("policy_class", "policy_name", "policy_kwargs", "policy", "learner", "optimizer"),
    *("collection", "targets", "fitting", "selection", "rounds", "_given", "_n_updates"),
)
#: Rounds of a contest at most, and the share of the budget after which it is over.
_ROUNDS, _SHARE = 4, 0.34
#: By what factor a linear class must beat the network's residual, which more paths will lower.
_HANDICAP = 3.0
#: Share of what control gains that no longer matters: of steps that are not small some residual
#: stays at the optimum itself.
_SOLVED = 0.01
#: Standard errors by which an objective is clearly lower.
_CLEARLY = 2.0
#: Paths of each class in a round, at least; and by what factor fewer who does harm takes.
_LEAST, _FEWER = 8, 4


class Contestant(Protocol):
    """What a contest asks of PDE, which says what these are."""

    policy: ValuePolicy
    policy_name: str
    problem: Problem
    env: Any
    seed: int | None
    device: torch.device
    generator: torch.Generator
    n_uncontrolled: int
    n_trajectories: int
    num_timesteps: int
    _total_timesteps: int
    collection: Collection
    rounds: list[Replay]
    choice: str

    @property
    def logger(self) -> Any:
        """Where the choice is told."""

    def observe(
        self, control: Policy | None, n: int, spread: float = 0.0
    ) -> tuple[Trajectories, Replay]:
        """Fresh paths, counted, of a control with pushes."""

    def absorb(self, fresh: Replay, control: Policy | None, rounds: int = 1) -> None:
        """Learn from paths, as many as of several rounds."""

    def _branched(self, data: Replay) -> Replay:
        """With the fresh noise that networks use."""

    def _set_up_logger(self) -> None: ...


class Verdict(NamedTuple):
    """What a class's own paths say of it; in nats."""

    mean: float  # J / beta
    error: float  # its standard error
    residual: float  # half the variance of G less log f_0

    @classmethod
    def of(cls, g: Tensor, value: Tensor, mean: float) -> Verdict:
        """Of paths with these G and ``log f_0``, both ``(n,)``, and its mean over more starts."""
        left = g - value
        error = float(left.std() / math.sqrt(len(left)))
        return cls(float(left.mean()) + mean, error, 0.5 * float(left.var()))

    def clearly_below(self, other: Verdict) -> bool:
        """Whether the objective is lower by more than chance."""
        return other.mean - self.mean > _CLEARLY * math.hypot(other.error, self.error)


def gained(paths: Trajectories, beta: float) -> Tensor:
    """G of every path, ``(n,)`` in float64."""
    running = paths.running_rewards.double() / beta + paths.log_ratios.double()
    return running.sum(0) + paths.terminal_reward.double() / beta


class Contest:
    """What ``PDE("auto")`` does until a class has won, and its check at the end.

    The network is the agent itself; the linear classes are agents beside it, which take no steps of
    their own.
    """

    def __init__(self) -> None:
        self.open = True
        self.rounds = 0
        self.free: Verdict | None = None  # of no control
        self.last: Verdict | None = None  # of the newest paths of the agent's own control
        self.others: list[tuple[Candidate, Any]] = []
        self.harmful: list[int] = []  # who was in the last round; 0 is the agent itself
        self.won: Candidate | None = None  # what the agent became, if no network

    def round(self, agent: Contestant) -> None:
        """One round of all who are left."""
        if self.free is None:
            self._start(agent)
            return
        everyone: list[tuple[Candidate | None, Any]] = [(None, agent), *self.others]
        most = self._size(agent)
        gains, data = [], []
        for i, (_, one) in enumerate(everyone):
            size = most // len(everyone) // (_FEWER if i in self.harmful else 1)
            control, spread = one.policy.control, one.collection.exploration
            paths, own = agent.observe(control, max(_LEAST, size), spread)
            gains.append(gained(paths, agent.problem.temperature))
            data.append(_shared(agent, own))
        fresh, starts = Replay.joined(data), _starts([*agent.rounds, *data])
        verdicts = [
            _judged(one, g, own, starts)
            for (_, one), g, own in zip(everyone, gains, data, strict=True)
        ]
        best = max(verdicts, key=lambda v: v.mean - v.error)
        stay = [i for i, v in enumerate(verdicts) if not v.clearly_below(best)]
        ahead = everyone[verdicts.index(best)][1]
        for (_, one), own, v in zip(everyone, data, verdicts, strict=True):
            if v.mean < best.mean and v.residual > best.residual:
                follow(one.policy.value, ahead.policy.value, fresh, agent.generator)
            rounds = max(1, round(fresh.n / agent.n_trajectories))
            one.absorb(own if one.collection.exploration else fresh, None, rounds)
        self.rounds += 1
        self.harmful = [
            i
            for i, (v, (_, one)) in enumerate(zip(verdicts, everyone, strict=True))
            if v.mean < self.free.mean and not one.collection.exploration
        ]
        solved = _SOLVED * max(best.mean - self.free.mean, 0.0)
        leader = min(stay, key=lambda i: _left(verdicts[i].residual, solved, linear=i > 0))
        self.last = verdicts[leader]
        if self.rounds == _ROUNDS or agent.num_timesteps >= _SHARE * agent._total_timesteps:
            self._end(agent, everyone, verdicts, leader)

    def _start(self, agent: Contestant) -> None:
        """Uncontrolled paths, and who learns from them."""
        paths, fresh = agent.observe(None, agent.n_uncontrolled)
        g, fresh = gained(paths, agent.problem.temperature), _shared(agent, fresh)
        agent.absorb(fresh, None)
        self.free = Verdict.of(g, torch.zeros_like(g), 0.0)
        effective = float(torch.exp(2 * g.logsumexp(0) - (2 * g).logsumexp(0)))
        for candidate in candidates_for(agent.problem, len(g), effective):
            one, known = _rival(agent, candidate), fresh
            if one.collection.exploration:
                _, pushed = agent.observe(None, agent.n_uncontrolled, one.collection.exploration)
                known = Replay.joined([fresh, _shared(agent, pushed)])
            one.absorb(known, None)
            self.others.append((candidate, one))
        if not self.others:
            self.open = False
            self._say(agent, f"{agent.policy_name}: no other class suits the problem")

    def _size(self, agent: Contestant) -> int:
        """Paths of a round, so that all paths grow by the same factor up to the contest's share."""
        seen = agent.num_timesteps // agent.problem.horizon
        growth = max(1.0, _SHARE * agent._total_timesteps / max(agent.num_timesteps, 1))
        wanted = round(seen * (growth ** (1 / max(_ROUNDS - self.rounds, 1)) - 1))
        return max(agent.n_trajectories, wanted)

    def _end(
        self,
        agent: Contestant,
        everyone: list[tuple[Candidate | None, Any]],
        verdicts: list[Verdict],
        leader: int,
    ) -> None:
        """The winner's class becomes the agent's."""
        names = ["a network" if c is None else c.word for c, _ in everyone]
        ranked = [
            f"{name}: objective {v.mean:.3g} +- {v.error:.1g}, residual {v.residual:.2g}"
            for name, v in zip(names, verdicts, strict=True)
        ]
        assert self.free is not None
        free = f"no control: objective {self.free.mean:.3g}"
        self._say(agent, f"{names[leader]} ({'; '.join([*ranked, free])}; all in nats)")
        self.others, self.open = [], False
        self.won, winner = everyone[leader]
        if self.won is not None:
            _become(agent, winner)

    def training_state(self, agent: Contestant) -> dict[str, Any]:
        """Where it stands, and the state of everyone beside the agent, as a tree."""
        said = {"choice": agent.choice, "won": self.won and self.won.word}
        verdicts = {"free": self.free, "last": self.last}
        others = {candidate.word: one.training_state() for candidate, one in self.others}
        stand = {"open": self.open, "rounds": self.rounds, "harmful": self.harmful}
        return {**stand, **said, **verdicts, "others": others}

    def set_training_state(self, agent: Contestant, state: dict[str, Any]) -> None:
        """Take over what ``training_state`` gave, and make the agent one of the class that won."""
        named = {candidate.word: candidate for candidate in CANDIDATES}
        self.open, self.rounds = bool(state["open"]), int(state["rounds"])
        self.harmful = list(state["harmful"])
        self.free, self.last = (v and Verdict(*v) for v in (state["free"], state["last"]))
        agent.choice, self.others = state["choice"], []
        for word, known in state["others"].items():
            one = _rival(agent, named[word])
            one.set_training_state(known)
            self.others.append((named[word], one))
        self.won = None if state["won"] is None else named[state["won"]]
        if self.won is not None:
            _become(agent, _rival(agent, self.won))

    def _say(self, agent: Contestant, text: str) -> None:
        agent.choice = text
        agent.logger.log(f"auto chose {text}")

    def paths(self, agent: Contestant, n: int) -> int:
        """Of a round, ``n`` for networks: linear classes are solved as often as paths double.

        No more than the budget has left, since the rounds of a contest are of any size.
        """
        if not self.rounds:  # nobody to compete with
            return n
        left = math.ceil((agent._total_timesteps - agent.num_timesteps) / agent.problem.horizon)
        if isinstance(agent.policy.value, LinearValue):
            n = max(n, sum(data.n for data in agent.rounds))
        return max(1, min(n, left))

    def watch(self, agent: Contestant, paths: Trajectories, own: Replay) -> None:
        """Judge a round of the winner's own paths."""
        g = gained(paths, agent.problem.temperature)
        self.last = _judged(agent, g, own, _starts([*agent.rounds, own]))

    def close(self, agent: Contestant) -> None:
        """Fall back to no control where the last paths did not do better.

        Warns:
            UserWarning: they did not.
        """
        free, last = self.free, self.last
        if free is None or last is None or last.mean > free.mean:
            return
        text = (
            f"the learnt control reaches {last.mean:.3g} +- {last.error:.1g} nats and none"
            f" {free.mean:.3g} +- {free.error:.1g}: none is kept (more paths, or another policy,"
            " may help)"
        )
        warnings.warn(text, UserWarning, stacklevel=3)
        level(agent.policy.value)


@torch.no_grad()
def _judged(one: Contestant, g: Tensor, own: Replay, starts: tuple[Tensor, Tensor]) -> Verdict:
    """By its own paths without a push, and the starts of all paths."""
    value, rows = one.policy.value, slice(0, None, 2 if one.collection.exploration else 1)
    first, more = (value(*at).double() for at in (_starts([own]), starts))
    return Verdict.of(g[rows], first[rows], float(more.mean()))


def _shared(agent: Contestant, data: Replay) -> Replay:
    """What everyone learns from: where a step asks a denoiser, next states drawn once for all.

    Elsewhere linear classes draw around their own gradient, in every pass: near the optimum such
    draws agree.
    """
    denoises = getattr(agent.problem, "terminal_estimate", None) is not None
    return agent._branched(data) if denoises else data


def _starts(parts: list[Replay]) -> tuple[Tensor, Tensor]:
    """First steps ``(n,)`` and encoded states ``(n, p)`` of all paths."""
    steps = torch.cat([part.steps[:, 0] for part in parts])
    return steps, torch.cat([part.inputs[:, 0] for part in parts])


def _left(residual: float, solved: float, linear: bool) -> tuple[float, float]:
    """What ranks a class: the residual that matters, with the handicap; then all of it."""
    return (_HANDICAP if linear else 1.0) * max(residual - solved, 0.0), residual


def _become(agent: Contestant, winner: Any) -> None:
    for name in _WHAT_A_CLASS_IS:
        setattr(agent, name, getattr(winner, name))
    # it looks ahead around its own gradient from now on, where draws near the optimum agree
    agent.rounds = [data._replace(branches=None, log_ratios=None) for data in agent.rounds]


def _rival(agent: Contestant, candidate: Candidate) -> Any:
    """An agent of another class that takes no steps of its own."""
    make: Any = type(agent)
    settings = {"seed": agent.seed, "device": agent.device, **candidate.settings}
    one = make(candidate.policy, agent.env, **settings)
    one._set_up_logger()
    return one


@torch.no_grad()
def level(value: Any) -> None:
    """Make log f a function of time alone, whose control is none."""
    if isinstance(value, NetworkValue):
        value.unit.zero_()
    else:
        value.weights.zero_()
