"""MuJoCo Warp behind the same robots: it must go where MuJoCo goes, up to float32."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from test_mujoco import ARM, STIFF, arm

from girsanov.agents import PDE
from girsanov.envs import NEED_MUJOCO, make_problem
from girsanov.envs.problem import rollout
from girsanov.envs.robots.mujoco import MujocoProblem
from girsanov.scoreboard.evaluation import evaluate

pytest.importorskip("mujoco")
WORDS = {
    "InvertedPendulum": 0.05,
    "InvertedDoublePendulum": 0.05,
}  # controls that keep the unstable ones up for a while
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("mujoco_warp")


def same_steps(env_id: str, device: str, steps: int, n: int = 8) -> tuple[float, float]:
    """Largest error of one step, from the states that MuJoCo visits, and of the whole path."""
    name = env_id.split("/")[1].removesuffix("-v0")
    generator = torch.Generator().manual_seed(0)
    ours, theirs = make_problem(env_id), make_problem(env_id, device, engine="warp")
    x = ours.initial(n, generator)
    y, one = x.to(device), 0.0
    for k in range(steps):
        z = WORDS.get(name, 0.3) * torch.randn(n, *ours.noise_shape, generator=generator)
        guess, x = theirs.transition(k, x.to(device), z.to(device)).cpu(), ours.transition(k, x, z)
        one, y = max(one, float((guess - x).abs().max())), theirs.transition(k, y, z.to(device))
    assert y.device.type == device and y.dtype == x.dtype
    return one, float((y.cpu() - x).abs().max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "env_id",
    [
        name if "Hopper" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(NEED_MUJOCO)
    ],
)
def test_the_robots_go_where_mujoco_takes_them(env_id: str, device: str) -> None:
    one, path = same_steps(env_id, device, 30)
    assert one < 1e-3 and path < 2e-2  # measured: at most 7e-5 (the cheetah's contacts), else 2e-5
    assert path > 0  # float32: were it 0, MuJoCo itself would have stepped


@pytest.mark.parametrize("device", DEVICES)
def test_sensors_and_limits_are_mujocos(device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = arm(sensors=True), arm(sensors=True, engine="warp").to(device)
    x = ours.initial(5, generator)
    for _ in range(10):
        z = 10 * torch.randn(
            5, 2, generator=generator, dtype=torch.float64
        )  # beyond the first actuator's limits
        found, x = theirs.transition(0, x.to(device), z.to(device)).cpu(), ours.transition(0, x, z)
        torch.testing.assert_close(
            found, x, rtol=0, atol=2e-5
        )  # the last but one is the reward: the hand's height


@pytest.mark.parametrize("device", DEVICES)
def test_equal_seeds_give_equal_paths_in_batches_of_any_size(device: str) -> None:
    problem = make_problem("girsanov/Hopper-v0", device, engine="warp", steps=20)

    def final(robots: object, n: int) -> torch.Tensor:
        return rollout(robots, None, n, torch.Generator(device).manual_seed(3)).states[-1]  # type: ignore[arg-type]

    first = final(problem, 6)
    for n in (1, 2, 3, 4, 5):  # more than are kept
        assert final(problem, n).shape[0] == n
    assert torch.equal(final(problem, 6), first)
    assert torch.equal(final(copy.deepcopy(problem), 6), first)
    assert torch.equal(final(pickle.loads(pickle.dumps(problem)), 6), first)
    assert problem.transition(0, first[:0], first[:0, :3]).shape == first[:0].shape


def test_the_fallen_stay_and_earn_nothing() -> None:
    problem = make_problem("girsanov/Hopper-v0", engine="warp")
    x = problem.initial(4, torch.Generator().manual_seed(0))
    x[1, -1] = 0.0
    x[2, 0] = torch.nan  # explodes
    later = problem.transition(0, x, torch.zeros(4, 3))
    assert torch.equal(later[1, :-2], x[1, :-2]) and later[1, -2:].tolist() == [0.0, 0.0]
    assert later[2, -2:].tolist() == [0.0, 0.0] and later[[0, 3], -1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("frame_skip", [1, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_what_explodes_is_not_put_back_alive(device: str, frame_skip: int) -> None:
    problem = MujocoProblem(
        STIFF,
        lambda b, c, a: a.qpos[:, 0] - b.qpos[:, 0],
        steps=30,
        temperature=1.0,
        scale=0.1,
        frame_skip=frame_skip,
        engine="warp",
    ).to(device)
    states = rollout(problem, None, 16, torch.Generator(device).manual_seed(0)).states
    alive, paid = states[..., -1], states[..., -2]
    assert bool(states.isfinite().all()) and bool((alive.diff(dim=0) <= 0).all())
    assert not alive[-1].any() and bool((paid[alive == 0] == 0).all())
    last = (alive.sum(0) - 1).long()
    held = states[last, torch.arange(16), 0]  # each stays where it was last seen alive
    assert torch.equal(states[-1, :, 0], held) and bool((held.abs() > 1).all())


@pytest.mark.parametrize("device", DEVICES)
def test_pde_learns_on_it_as_on_mujoco(device: str) -> None:
    worth = {}
    for engine in ("mujoco", "warp"):
        problem = make_problem("girsanov/InvertedPendulum-v0", device, engine=engine, steps=10)
        model = PDE("ModelPolicy", problem, seed=0, n_trajectories=20, device=device).learn(60 * 10)
        found = evaluate(problem, model.policy.control, 200, torch.Generator(device).manual_seed(1))
        worth[engine] = found.value.objective.mean
    assert worth["warp"] == pytest.approx(worth["mujoco"], abs=0.5)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="engine must be 'mujoco' or 'warp'; got 'brax'"):
        arm(engine="brax")
    with pytest.raises(
        ValueError, match="threads is of engine='mujoco'; engine='warp' takes none, got 2"
    ):
        arm(engine="warp", threads=2)
    projected = ARM.replace('integrator="RK4"', 'solver="PGS"')
    with pytest.raises(ValueError, match="engine='warp' can't simulate this model: .*PGS"):
        MujocoProblem(
            projected, lambda b, c, a: a.qpos[:, 0], steps=5, temperature=1.0, engine="warp"
        )


def test_without_warp_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(
        ValueError, match=r"engine='warp' must be installed: pip install -e .*\[warp\]"
    ):
        make_problem("girsanov/Reacher-v0", engine="warp")
