"""Where the host would wait for a GPU, found on a CPU: every operation that hands a number or a
count back to Python is seen by torch's dispatcher. ``test_cuda`` asks a GPU itself.

Not seen are copies to the host as a whole, which are the same operation on a CPU as none.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import girsanov
from girsanov.agents import PDE, PIFT
from girsanov.agents.pde import regression, variational
from girsanov.baselines.fine_tuning_methods.adjoint_matching import AdjointMatching
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.envs import NEED_DIFFUSERS, NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS, make_problem
from girsanov.envs.env import ProblemVectorEnv

#: Operations whose results, or sizes of results, depend on values.
WAITS = (
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive"),
)
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


def is_ours(file: str) -> bool:
    """Whether it is the package's or a test, wherever those lie; environments may lie in them."""
    roots = (str(Path(girsanov.__file__).parent), str(Path(__file__).parent))
    return any(file.startswith(r) and "site-packages" not in file.removeprefix(r) for r in roots)


class Waits(TorchDispatchMode):
    """Counts them by the line of the package that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.at: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name in INDEXED and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in WAITS or masks:
            frames = [f for f in traceback.extract_stack() if "torch/_" not in f.filename]
            ours = [f for f in frames if f.name != "__torch_dispatch__"]
            # optimizers count their steps on the CPU
            if not any("torch/optim" in f.filename for f in ours):
                last = next(f for f in reversed(ours) if is_ours(f.filename))
                self.at[f"{last.filename}:{last.lineno} {name}"] += 1
        return func(*args, **(kwargs or {}))


def test_what_waits_is_seen() -> None:
    x = torch.arange(4.0)
    with Waits() as waits:
        x.sum().item(), bool((x > 2).any()), x[x > 2], x.nonzero()
        x[x > 2] = 0.0
    assert sum(waits.at.values()) == 5
    with Waits() as none:
        x[torch.tensor([0, 1])] + torch.where(x > 2, x, 0.0).sum()
    assert not none.at


@pytest.mark.parametrize("env_id", sorted(PROBLEMS.keys() - NEED_WEIGHTS - NEED_MUJOCO))
def test_a_step_of_the_lanes_has_none(env_id: str) -> None:
    if env_id in NEED_DIFFUSERS:
        pytest.importorskip("diffusers")
    env = ProblemVectorEnv(make_problem(env_id), 4, tensors=True)
    env.reset(seed=0)
    actions = torch.zeros(env.action_space.shape or ())
    env.step(actions)  # the first may fill tables
    with Waits() as waits:
        env.step(actions)
    assert not waits.at


SMALL: dict[str, Any] = {"n_trajectories": 8, "policy_kwargs": {"hidden": [8]}, "seed": 0}
BATCHED = {**SMALL, "batch_size": 16}


NET: dict[str, Any] = {"policy_kwargs": {"hidden": [8]}}
PDES: dict[str, dict[str, Any]] = {
    "MlpPolicy": NET,
    "NoisePolicy": NET,
    "ModelPolicy": {"policy_kwargs": {"hidden": [8], "model_hidden": [8], "model_steps": 3}},
    "PolynomialPolicy": {},
    "KernelPolicy": {"policy_kwargs": {"centres": 5}},
}


def waits_of_pde(policy: str, env_id: str, steps: int, gradient_steps: int) -> Counter[str]:
    """Of a later round, by file and line."""
    settings = {"n_uncontrolled": 20, "n_trajectories": 20, "gradient_steps": gradient_steps}
    problem = make_problem(env_id, steps=steps)
    agent = PDE(policy, problem, seed=0, device="cpu", **settings, **PDES[policy])
    agent.learn(20 * steps, log_interval=None)
    with Waits() as waits:
        agent.iterate()
    return waits.at


@pytest.mark.parametrize("env_id", ["girsanov/GaussianMixture-v0", "girsanov/Pendulum-v0"])
@pytest.mark.parametrize("policy", PDES)
def test_a_round_of_pde_has_as_many_however_long_it_is(
    policy: str, env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where rows that count are not counted. A linear class waits for what its solver
    decides, and for nothing else.
    """
    for module in (variational, regression):
        monkeypatch.setattr(module, "counted", lambda mask: torch.arange(len(mask)))
    sizes = ((4, 2), (9, 2), (4, 5))
    counts = [waits_of_pde(policy, env_id, *size) for size in sizes]
    if "hidden" in PDES[policy].get("policy_kwargs", ()):
        assert counts[0] == counts[1] == counts[2], counts
        assert sum(counts[0].values()) <= 30, counts[0]
    solver = ("backward.py", "inequality.py", "linear.py", "selection.py")
    counts = [
        Counter({k: n for k, n in c.items() if not any(s in k for s in solver)}) for c in counts
    ]
    assert counts[0] == counts[1] == counts[2], counts


def waits_of_a_round(kind: Any, policy: str, env_id: str, steps: int, gradient_steps: int) -> Any:
    problem = make_problem(env_id, steps=steps)
    agent = kind(policy, problem, gradient_steps=gradient_steps, device="cpu", **BATCHED)
    agent.learn(8 * steps, log_interval=None)
    with Waits() as waits:
        agent.iterate()
    return waits.at


@pytest.mark.parametrize("env_id", ["girsanov/GaussianMixture-v0", "girsanov/Pendulum-v0"])
@pytest.mark.parametrize("kind", [PIFT, DDPO, DPOK, AdjointMatching])
def test_a_round_has_as_many_however_long_it_is(kind: Any, env_id: str) -> None:
    """Those of the checks and of the log: not one within a rollout or between gradient steps."""
    counts = [
        waits_of_a_round(kind, "MlpPolicy", env_id, *size) for size in ((4, 2), (9, 2), (4, 5))
    ]
    assert counts[0] == counts[1] == counts[2], counts
    assert sum(counts[0].values()) <= 16, counts[0]
