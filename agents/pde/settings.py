"""PDE's settings in groups, and the table that takes flat keywords into them.

``PDE(fitting=Fitting(averaging=0.95))`` and ``PDE(averaging=0.95)`` say the same; checkpoints and
the command line use the flat form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ...envs.checks import check_flag, check_one_of
from ..checks import check_range, check_whole
from .lookahead import LOOKAHEADS


@dataclass(frozen=True)
class Collection:
    """Paths beside those that the present policy takes.

    Args:
        exploration: standard deviation of a control, constant along a path and drawn for each, that
            every other path gets on top of the policy's (of none in the first round). It leads
            where neither noise nor the present policy does; classes with ``times=None``, which need
            no path weights, learn from it.
        imagined: paths simulated in each round but the first under the current policy, by the known
            transition and by rewards that networks learn from those seen: no reward is asked for,
            but as many more transitions are evaluated, which are not counted. Regression then sees
            these and the newest round alone, whose targets have little noise near the optimum,
            however far ahead they look. For networks that know the transition, where it is cheap.
        controlled: share of the rounds after the first that the present policy controls; the
            others are free. Free paths cover what no control leads to, and cost no derivative of a
            denoiser. Absent: 1, but a half on denoisers with a network, where enough of the first
            free paths count under the optimum.

    Raises:
        ValueError: a negative number, or a share above 1.
    """

    exploration: float = 0.0
    imagined: int = 0
    controlled: float | None = None

    def __post_init__(self) -> None:
        check_range("exploration", self.exploration, 0)
        check_whole("imagined", self.imagined, 0)
        if self.controlled is not None:
            check_range("controlled", self.controlled, 0, 1)


@dataclass(frozen=True)
class Targets:
    """What an observation of log f is regressed on.

    Args:
        lookahead: what stands for the later value: ``"observed"`` (the recorded state), ``"fresh"``
            (the mean over ``draws`` antithetic pairs of fresh noise; networks draw them once a
            visit and use one of them at a time) or ``"generator"`` (automatic differentiation;
            exact trace if ``draws`` is 0, else that many Hutchinson probes). The latter two know
            the transition and always look one step ahead. Absent: the policy's own where the data
            hold every step (``"fresh"`` for most that differentiate the transition, and so know
            it), else ``"observed"``, as with ``imagined`` paths.
        draws: see ``lookahead``; 0 takes four pairs of fresh noise, or one where the transition is
            a network.
        mean_span: mean distance in visits between an observation and its observed target: 1 is
            one-step regression, ``horizon`` and more tends to Monte-Carlo regression. Absent: 5 for
            networks (10 with ``imagined`` paths), 1 for linear classes (which round it).
        max_weight: largest density ratio of one observation, at least 1.

    Raises:
        ValueError: an unknown ``lookahead``, or a number out of its range.
    """

    lookahead: str | None = None
    draws: int = 0
    mean_span: float | None = None
    max_weight: float = 5.0

    def __post_init__(self) -> None:
        if self.mean_span is not None:
            check_range("mean_span", self.mean_span, 1)
        check_whole("draws", self.draws, 0)
        check_range("max_weight", self.max_weight, 1)
        if self.lookahead is not None:
            check_one_of("lookahead", self.lookahead, LOOKAHEADS)


@dataclass(frozen=True)
class Fitting:
    """How networks follow their equation.

    Args:
        batch_size: observations in a gradient step.
        averaging: decay of the averaged network, which gives targets and policy.
        weight_decay: of AdamW.
        gradient_penalty: on the mean square of the control (the energy norm of log f).

    Raises:
        ValueError: a number out of its range.
    """

    batch_size: int = 512
    averaging: float = 0.9
    weight_decay: float = 1e-2
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1)
        check_range("averaging", self.averaging, 0, 1)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("gradient_penalty", self.gradient_penalty, 0)


@dataclass(frozen=True)
class Selection:
    """How linear classes are chosen.

    Args:
        ridge: a share of the matrix's mean diagonal; absent: chosen by held-out variational
            residual.
        select: choose the length scale or width, and the ridge, on paths held out.

    Raises:
        ValueError: a negative ``ridge``.
    """

    ridge: float | None = None
    select: bool = True

    def __post_init__(self) -> None:
        if self.ridge is not None:
            check_range("ridge", self.ridge, 0)
        check_flag("select", self.select)


#: The groups by the name of PDE's argument.
GROUPS: dict[str, type] = {
    "collection": Collection,
    "targets": Targets,
    "fitting": Fitting,
    "selection": Selection,
}
#: The group of every flat keyword.
GROUP_OF = {field.name: group for group, kind in GROUPS.items() for field in fields(kind)}


def settled(groups: Mapping[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
    """One object a group: the given one or the default, with flat keywords on top.

    Args:
        groups: what was given, by group; None where nothing was.
        flat: keywords, of which those of the groups are taken out.

    Raises:
        ValueError: a group of another type, or a setting that is not allowed.
    """
    found = {}
    for group, kind in GROUPS.items():
        given = kind() if groups[group] is None else groups[group]
        if not isinstance(given, kind):
            raise ValueError(f"{group} must be {kind.__name__}(...); got {given!r}")
        own = {name: flat.pop(name) for name in list(flat) if GROUP_OF.get(name) == group}
        found[group] = replace(given, **own)  # type: ignore[type-var]
    return found


class Flat:
    """The old flat name of a setting: ``agent.draws`` is ``agent.targets.draws``."""

    def __init__(self, name: str) -> None:
        self.name, self.group = name, GROUP_OF[name]

    def __get__(self, agent: Any, owner: Any = None) -> Any:
        return self if agent is None else getattr(getattr(agent, self.group), self.name)

    def __set__(self, agent: Any, value: Any) -> None:
        changed = replace(getattr(agent, self.group), **{self.name: value})
        setattr(agent, self.group, changed)
