"""PDE's settings: groups and flat keywords say the same, and an unknown name is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.agents import PDE, PIFT
from girsanov.agents.pde.settings import GROUP_OF, Collection, Fitting, Selection, Targets
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.envs import make_problem

FLAT: dict[str, Any] = {
    **{
        "exploration": 0.5,
        "imagined": 20,
        "controlled": 0.8,
        "lookahead": "observed",
        "draws": 3,
        "mean_span": 2.0,
    },
    **{"max_weight": 4.0, "batch_size": 64, "averaging": 0.8, "weight_decay": 0.1},
    **{"gradient_penalty": 0.2, "ridge": 1e-3, "select": False},
}


def _problem() -> Any:
    return make_problem("girsanov/GaussianMixture-v0", steps=4)


def test_flat_keywords_and_groups_make_the_same_agent() -> None:
    assert set(FLAT) == set(GROUP_OF)
    flat = PDE(env=_problem(), seed=0, device="cpu", **FLAT)
    grouped = PDE(
        env=_problem(),
        seed=0,
        device="cpu",
        collection=Collection(exploration=0.5, imagined=20, controlled=0.8),
        targets=Targets(lookahead="observed", draws=3, mean_span=2.0, max_weight=4.0),
        fitting=Fitting(batch_size=64, averaging=0.8, weight_decay=0.1, gradient_penalty=0.2),
        selection=Selection(ridge=1e-3, select=False),
    )
    for group in ("collection", "targets", "fitting", "selection"):
        assert getattr(flat, group) == getattr(grouped, group)
    assert {name: getattr(flat, name) for name in FLAT} == FLAT  # the old attributes
    flat.learn(4 * 40)
    grouped.learn(4 * 40)
    for ours, theirs in zip(flat.policy.parameters(), grouped.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_flat_keyword_goes_on_top_of_its_group() -> None:
    agent = PDE(env=_problem(), fitting=Fitting(averaging=0.5, batch_size=32), batch_size=16)
    assert agent.fitting == Fitting(averaging=0.5, batch_size=16)
    agent.batch_size = 8  # type: ignore[attr-defined]
    assert agent.fitting == Fitting(averaging=0.5, batch_size=8)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        agent.batch_size = 0  # type: ignore[attr-defined]


def test_a_checkpoint_holds_settings_by_their_flat_names(tmp_path: Path) -> None:
    PDE(env=_problem(), seed=0, device="cpu", **FLAT).save(tmp_path / "agent")
    agent = PDE.load(tmp_path / "agent", env=_problem(), device="cpu", averaging=0.7)
    assert {name: getattr(agent, name) for name in FLAT} == {**FLAT, "averaging": 0.7}


@pytest.mark.parametrize(
    "agent, wrong, right",
    [(PDE, "learning_rte", "learning_rate"), (PDE, "mean_spam", "mean_span")]
    + [(PIFT, "dampening", "damping"), (DDPO, "batchsize", "batch_size")],
)
def test_an_unknown_argument_is_answered(agent: Any, wrong: str, right: str) -> None:
    make = DDPO.tuned if agent is DDPO else agent
    with pytest.raises(ValueError, match=f"got '{wrong}'; did you mean '{right}'") as error:
        make(env=_problem(), **{wrong: 1.0})
    for name in ("n_trajectories", "seed", "device", right):
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r"got 'xyzzy'$"):
        make(env=_problem(), xyzzy=1.0)


def test_a_group_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fitting must be Fitting\(\.\.\.\); got 0.5"):
        PDE(env=_problem(), fitting=0.5)  # type: ignore[arg-type]
