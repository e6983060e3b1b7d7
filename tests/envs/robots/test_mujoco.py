"""MuJoCo's robots against Gymnasium's own, and any MJCF model as a problem."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs import NEED_MUJOCO, make_problem
from girsanov.envs.problem import rollout
from girsanov.envs.robots.gymnasium_robots import (
    HalfCheetah,
    InvertedDoublePendulum,
    Reacher,
    model_path,
)
from girsanov.envs.robots.mujoco import MujocoProblem, Physics, Robot

mujoco = pytest.importorskip("mujoco")
# A control small enough to keep the unstable robots standing for a while, and one that lets them
# fall.
AMPLITUDES = {
    "InvertedPendulum": 0.02,
    "InvertedDoublePendulum": 0.02,
    "Reacher": 1.0,
    "HalfCheetah": 1.0,
    "Hopper": 0.3,
}
ARM = """
<mujoco>
  <option timestep="0.002" integrator="RK4"><flag contact="disable"/></option>
  <worldbody>
    <body name="upper" pos="0 0 1"><joint name="shoulder" type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.4" size="0.04"/>
      <body name="lower" pos="0 0 -0.4"><joint name="elbow" type="hinge" axis="0 1 0"/>
        <geom type="box" pos="0 0 -0.15" size="0.03 0.03 0.15"/><site name="hand" pos="0 0 -0.3"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="shoulder" ctrllimited="true" ctrlrange="-2 4"/>
    <motor joint="elbow"/></actuator>
  <sensor><framepos objtype="site" objname="hand"/></sensor>
</mujoco>"""


def arm(**kwargs: Any) -> MujocoProblem:
    def height(before: Physics, control: Tensor, after: Physics) -> Tensor:
        return after.sensors[:, 2] if after.sensors.shape[1] else after.qpos[:, 0]

    settings = {
        "steps": 20,
        "temperature": 1.0,
        "scale": (0.5, 0.25),
        "frame_skip": 5,
        "dtype": torch.float64,
    }
    return MujocoProblem(ARM, height, **{**settings, **kwargs})


def gymnasiums(name: str, seed: int, cold: bool) -> Any:
    """Gymnasium's environment; ``cold``: its solver forgets the last step's forces, and its rewards
    see the new state.

    Both are differences of principle: our F is a function of the state alone, and our r of the
    state it leads to.
    """
    env = gym.make(f"{name}-v5").unwrapped
    if cold:
        env.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART.value
        stepped = env._step_mujoco_simulation

        def step_and_look(ctrl: Any, n_frames: int) -> None:
            stepped(ctrl, n_frames)
            mujoco.mj_kinematics(env.model, env.data)

        env._step_mujoco_simulation = step_and_look
    env.reset(seed=seed)
    return env


def placed(problem: Robot, env: Any) -> Tensor:
    """Our state where Gymnasium's environment stands."""
    return torch.tensor(np.concatenate([env.data.qpos, env.data.qvel, [0.0, 1.0]])[None])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", sorted(AMPLITUDES))
def test_two_hundred_steps_equal_gymnasiums(name: str, seed: int) -> None:
    theirs = gymnasiums(name, seed, cold=True)
    ours = make_problem(f"girsanov/{name}-v0").to(dtype=torch.float64)
    assert isinstance(ours, Robot)
    ours.engine.model.opt.disableflags |= (
        mujoco.mjtDisableBit.mjDSBL_WARMSTART.value
    )  # also from one substep to the next
    x, rng, fallen, moved = placed(ours, theirs), np.random.default_rng(seed), False, 0.0
    for k in range(200):
        action = AMPLITUDES[name] * rng.uniform(-1, 1, ours.noise_shape)
        _, reward, terminated, *_ = theirs.step(action)
        x = ours.transition(k, x, (torch.from_numpy(action) / ours.scale)[None])
        np.testing.assert_allclose(
            x[0, :-2].numpy(),
            np.concatenate([theirs.data.qpos, theirs.data.qvel]),
            atol=1e-6,
            rtol=0,
        )
        assert float(ours.running_reward(k + 1, x)) == pytest.approx(reward, abs=1e-6)
        assert bool(ours.alive(x)) is not terminated
        moved = max(moved, float((x[0, : ours.engine.model.nq]).abs().max()))
        if terminated:
            fallen = True
            break
    assert k == 199 or (fallen and k > 5)
    assert moved > 0.1
    if fallen:
        still = ours.transition(k, x, torch.ones(1, *ours.noise_shape, dtype=torch.float64))
        assert torch.equal(still[:, :-2], x[:, :-2]) and still[0, -2:].tolist() == [0, 0]


@pytest.mark.parametrize("name", sorted(AMPLITUDES))
def test_gymnasium_as_it_comes_differs_by_its_memory_alone(name: str) -> None:
    """Step by step from Gymnasium's own states: warm starts change less than 1e-6, stale positions
    some rewards.
    """
    theirs = gymnasiums(name, 0, cold=False)
    ours = make_problem(f"girsanov/{name}-v0").to(dtype=torch.float64)
    rng, rewards, states = np.random.default_rng(0), [], []
    for k in range(200):
        before = placed(ours, theirs)
        action = AMPLITUDES[name] * rng.uniform(-1, 1, ours.noise_shape)
        _, reward, terminated, *_ = theirs.step(action)
        x = ours.transition(k, before, (torch.from_numpy(action) / ours.scale)[None])
        states.append(float((x[:, :-2] - placed(ours, theirs)[:, :-2]).abs().max()))
        rewards.append(abs(float(x[0, -2]) - reward))
        assert bool(ours.alive(x)) is not terminated
        if terminated:
            theirs.reset()
    print(f"{name}: largest difference of states {max(states):.1e}, of rewards {max(rewards):.1e}")
    assert max(states) < 1e-6
    assert max(rewards) < (5e-3 if name in ("InvertedDoublePendulum", "Reacher") else 1e-6)


@pytest.mark.parametrize("name", sorted(AMPLITUDES))
def test_starts_are_gymnasiums(name: str, generator: torch.Generator) -> None:
    """The mean and the spread of every coordinate of 2,000 starts."""
    problem = make_problem(f"girsanov/{name}-v0").to(dtype=torch.float64)
    ours = problem.initial(2000, generator)
    env = gym.make(f"{name}-v5").unwrapped
    env.reset(seed=0)
    theirs = []
    for _ in range(2000):
        env.reset_model()
        theirs.append(placed(problem, env))
    yours = torch.cat(theirs)
    assert bool(((ours.mean(0) - yours.mean(0)).abs() <= 6 * yours.std(0) / 2000**0.5 + 1e-9).all())
    torch.testing.assert_close(ours.std(0), yours.std(0), rtol=0.08, atol=1e-9)


@pytest.mark.parametrize("env_id", sorted(NEED_MUJOCO))
def test_a_batch_over_threads_equals_single_robots(env_id: str, generator: torch.Generator) -> None:
    problem, threaded = make_problem(env_id, threads=1), make_problem(env_id, threads=3)
    x = problem.initial(7, generator)
    for k in range(12):
        z = 2 * torch.randn(7, *problem.noise_shape, generator=generator)
        together = threaded.transition(k, x, z)
        alone = torch.cat([problem.transition(k, x[i : i + 1], z[i : i + 1]) for i in range(7)])
        assert torch.equal(together, alone) and torch.equal(
            together, problem.transition(torch.full((7,), k), x, z)
        )
        x = together


def test_the_reward_of_a_path_is_the_sum_of_its_steps(generator: torch.Generator) -> None:
    problem = make_problem("girsanov/InvertedPendulum-v0", steps=30)
    paths = rollout(problem, None, 50, generator)
    alive = paths.states[1:, :, -1]
    torch.testing.assert_close(paths.reward, alive.sum(0))  # 1 for every step upright
    assert 0 < float(alive[-1].mean()) < 1 and bool((alive.diff(dim=0) <= 0).all())
    assert torch.equal(problem.success(paths.states[-1]), alive[-1] > 0)


def test_energy_is_conserved_by_a_frictionless_arm(generator: torch.Generator) -> None:
    """No torque, no friction: the error of Runge-Kutta falls by 2^4 and more with half the
    substep.
    """
    errors = []
    for skip, step in ((10, 0.01), (20, 0.005), (40, 0.0025)):
        problem = arm(frame_skip=skip, steps=10)
        problem.engine.model.opt.timestep = step
        problem.engine.model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY.value
        data = mujoco.MjData(problem.engine.model)

        def energy(x: Tensor, problem: Any = problem, data: Any = data) -> np.ndarray:
            found = []
            for q, v in zip(*(part.numpy() for part in problem.physics(x)[:2]), strict=True):
                data.qpos[:], data.qvel[:] = q, v
                mujoco.mj_forward(problem.engine.model, data)
                found.append(data.energy.sum())
            return np.array(found)

        x = problem.initial(20, torch.Generator().manual_seed(0))
        x[:, :4] = torch.randn(
            20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        start = energy(x)
        for k in range(10):
            x = problem.transition(k, x, torch.zeros(20, 2))
        errors.append(float(np.abs(energy(x) - start).mean()))
    slope = np.polyfit(np.log([1, 2, 4]), np.log(errors), 1)[0]
    print(f"energy errors {errors} J, slope {slope:.2f}")
    assert slope < -3.7 and errors[-1] < 1e-6


def test_control_is_offset_scaled_and_clipped(generator: torch.Generator) -> None:
    problem = arm(offset=(0.5, -1.0))
    x = problem.initial(1, generator)
    model, data = mujoco.MjModel.from_xml_string(ARM), None
    for z in ([0.3, -2.0], [100.0, 8.0], [-100.0, 0.0]):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = x[0, :2].numpy(), x[0, 2:4].numpy()
        data.ctrl[:] = [min(max(0.5 + 0.5 * z[0], -2), 4), -1.0 + 0.25 * z[1]]
        mujoco.mj_step(model, data, nstep=5)
        later = problem.transition(0, x, torch.tensor([z], dtype=torch.float64))
        np.testing.assert_allclose(
            later[0, :4].numpy(), np.concatenate([data.qpos, data.qvel]), atol=1e-12
        )


def test_sensors_are_those_of_the_state_after_the_step(generator: torch.Generator) -> None:
    problem = arm(sensors=True)
    x = problem.transition(
        0,
        problem.initial(3, generator),
        torch.randn(3, 2, generator=generator, dtype=torch.float64),
    )
    shoulder, elbow = x[:, 0], x[:, 0] + x[:, 1]
    torch.testing.assert_close(
        x[:, -2], 1 - 0.4 * shoulder.cos() - 0.3 * elbow.cos(), rtol=0, atol=1e-12
    )
    assert torch.equal(
        arm().transition(0, x, torch.zeros(3, 2))[:, :4],
        problem.transition(0, x, torch.zeros(3, 2))[:, :4],
    )


def test_functions_make_a_problem(generator: torch.Generator) -> None:
    problem = arm(
        healthy=lambda physics: physics.qpos[:, 0] < 0.5,
        success=lambda physics: physics.qpos[:, 1] > 0,
        start=lambda n, g: torch.tensor(
            [[0.4, 0.1, 0.0, 0.0], [0.7, -0.1, 0.0, 0.0], [0.4, -0.2, 0, 0]]
        ),
    )
    x = problem.transition(0, problem.initial(3, generator), torch.zeros(3, 2))
    assert problem.alive(x).tolist() == [True, False, True]
    assert problem.success(x).tolist() == [True, False, False]
    assert arm().success(arm().initial(2, generator)).all()


def test_states_of_actuators_are_part_of_the_state(generator: torch.Generator) -> None:
    lagged = ARM.replace(
        '<motor joint="elbow"/>', '<general joint="elbow" dyntype="filter" dynprm="0.1"/>'
    )
    problem = MujocoProblem(
        lagged, lambda b, c, a: a.qpos[:, 0], steps=5, temperature=1.0, scale=1.0
    )
    assert problem.state_shape == (2 + 2 + 1 + 2,)
    x = problem.transition(0, problem.initial(1, generator), torch.ones(1, 2))
    assert float(x[0, 4]) == pytest.approx(0.02, rel=1e-2)  # 2 ms of a filter of 0.1 s


def test_an_exploded_simulation_is_a_fallen_robot(generator: torch.Generator) -> None:
    problem = arm()
    step = problem.engine.step

    def exploding(state: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        later, sensed = step(state, control)
        later[1, 0] = math.nan
        return later, sensed

    problem.engine.step = exploding  # type: ignore[method-assign]
    x = problem.initial(3, generator)
    later = problem.transition(0, x, torch.zeros(3, 2))
    assert problem.alive(later).tolist() == [True, False, True] and torch.isfinite(later).all()
    assert torch.equal(later[1, :4], x[1, :4]) and float(later[1, -2]) == 0


def _stepped_in_a_child(problem: Robot, x: Tensor, queue: Any) -> None:
    queue.put(problem.transition(0, x, torch.ones(len(x), *problem.noise_shape)).numpy())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pickled_copied_and_forked(generator: torch.Generator) -> None:
    problem = Reacher(threads=2)
    x = problem.initial(8, generator)
    expected = problem.transition(0, x, torch.ones(8, 2))
    for other in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem), problem.to("cpu")):
        assert torch.equal(other.transition(0, x, torch.ones(8, 2)), expected)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_stepped_in_a_child, args=(problem, x, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected.numpy())
    child.join(10)


def test_drawings_show_the_robot() -> None:
    for problem in (Reacher(), HalfCheetah(), InvertedDoublePendulum(), arm()):
        x = problem.initial(1, torch.Generator().manual_seed(0))
        bent = x.clone()
        bent[0, : problem.engine.model.nq] += 0.6
        first, second = problem.render(x), problem.render(bent)
        assert (
            first.shape == (300, first.shape[1], 3) and first.dtype == np.uint8 and first.std() > 5
        )
        assert (first != second).any(2).mean() > 0.002


def test_a_gl_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Reacher()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    broken = lambda *args: (_ for _ in ()).throw(RuntimeError("no display"))  # noqa: E731
    monkeypatch.setattr("girsanov.envs.robots.pictures._renderer", broken)
    with pytest.raises(
        ValueError, match="MUJOCO_GL must name a GL that works here .*; got 'egl' .*no display"
    ):
        problem.render(problem.initial(1, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("word", ["disable", "OFF", "disabled", "false", "0"])
def test_no_gl_is_a_drawing(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Reacher()
    path = problem.initial(1, torch.Generator().manual_seed(0))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    drawn = problem.render(path)
    monkeypatch.setenv("MUJOCO_GL", word)
    assert np.array_equal(problem.render(path), drawn)


@pytest.mark.parametrize("gl", ["osmesa", "nonsense"])
def test_a_gl_that_is_missing_is_named(gl: str) -> None:
    """MuJoCo looks for it when it is imported."""
    code = "import girsanov; girsanov.make_problem('girsanov/Reacher-v0'); print('there is one')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "MUJOCO_GL": gl},
        timeout=120,
    )
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    named = f"ValueError: MUJOCO_GL must name a GL that works here.*; got '{gl}'"
    assert re.match(named, last) or gl == "osmesa" and last == "there is one"


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    for bad, message in (
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": (1.0, 1.0, 1.0)}, "scale must be one finite number, or 2"),
        ({"offset": math.nan}, "offset must be one finite number, or 2"),
        ({"frame_skip": 0}, "frame_skip must be an integer of at least 1; got 0"),
        ({"threads": 0}, "threads must be an integer of at least 1; got 0"),
        ({"spread": -1.0}, "spread must be between 0 and 1000000"),
    ):
        with pytest.raises(ValueError, match=message):
            arm(**bad)
    for model in (tmp_path / "nowhere.xml", "<mujoco><nonsense/></mujoco>", 7):
        with pytest.raises(
            ValueError, match="model must be an MJCF file, its text, or a mujoco.MjModel; got"
        ):
            MujocoProblem(model, lambda b, c, a: a.qpos[:, 0], steps=5, temperature=1.0)
    with pytest.raises(ValueError, match="model must have an actuator"):
        MujocoProblem(
            ARM[: ARM.index("<actuator>")] + "</mujoco>",
            lambda b, c, a: a.qpos[:, 0],
            steps=5,
            temperature=1.0,
        )


def test_without_mujoco_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ValueError, match=r'pip install (-e ".*|"girsanov)\[mujoco\]"'):
        make_problem("girsanov/Reacher-v0")


def test_models_come_with_gymnasium() -> None:
    assert all(
        model_path(name).is_file()
        for name in ("inverted_pendulum", "inverted_double_pendulum", "reacher", "hopper")
    )


def test_gymnasiums_files_are_read_without_a_word(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = mujoco.get_mju_user_warning()
    for env_id in NEED_MUJOCO:
        make_problem(env_id)
    assert capfd.readouterr() == ("", "") and mujoco.get_mju_user_warning() is before


STIFF = """
<mujoco><option timestep="0.02"/><worldbody><body pos="0 0 1">
  <joint name="h" type="slide" axis="1 0 0"/><geom size=".02" mass=".001"/></body></worldbody>
  <actuator><position joint="h" kp="200"/></actuator></mujoco>"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frame_skip", [1, 3])
def test_what_explodes_is_not_put_back_alive(
    dtype: torch.dtype, frame_skip: int, generator: torch.Generator
) -> None:
    """MuJoCo resets an unstable simulation: a robot would be alive at its start, and paid."""
    problem = MujocoProblem(
        STIFF,
        lambda b, c, a: a.qpos[:, 0] - b.qpos[:, 0],
        steps=30,
        temperature=1.0,
        scale=0.1,
        dtype=dtype,
        frame_skip=frame_skip,
    )
    states = rollout(problem, None, 64, generator).states
    alive, paid = states[..., -1], states[..., -2]
    assert bool((alive.diff(dim=0) <= 0).all()) and not alive[-1].any()
    assert bool((paid[alive == 0] == 0).all())
    last = (alive.sum(0) - 1).long()
    held = states[last, torch.arange(64), 0]  # each stays where it was last seen alive
    assert torch.equal(states[-1, :, 0], held) and bool((held.abs() > 1).all())


def test_quaternions_begin_at_length_one(generator: torch.Generator) -> None:
    ball = STIFF.replace("</worldbody>", '<body><freejoint/><geom size=".1"/></body></worldbody>')
    problem = MujocoProblem(
        ball,
        lambda b, c, a: a.qpos[:, 0],
        steps=3,
        temperature=1.0,
        spread=0.5,
        dtype=torch.float64,
    )
    x = problem.initial(50, generator)
    torch.testing.assert_close(x[:, 4:8].norm(dim=1), torch.ones(50, dtype=torch.float64))
    assert float(x[:, 1:4].std()) > 0.1 and float(x[:, 4:8].std(0).min()) > 0.03


def test_specs_and_binary_models_are_taken(tmp_path: Path, generator: torch.Generator) -> None:
    model = mujoco.MjModel.from_xml_string(ARM)
    mujoco.mj_saveModel(model, str(tmp_path / "arm.mjb"))
    x, z = arm().initial(3, generator), torch.ones(3, 2, dtype=torch.float64)
    wanted = arm().transition(0, x, z)
    for given in (mujoco.MjSpec.from_string(ARM), tmp_path / "arm.mjb", model):
        problem = MujocoProblem(
            given,
            lambda b, c, a: a.qpos[:, 0],
            steps=20,
            temperature=1.0,
            scale=(0.5, 0.25),
            frame_skip=5,
            dtype=torch.float64,
        )
        assert torch.equal(problem.transition(0, x, z), wanted)


@pytest.mark.skipif(not hasattr(mujoco.MjModel, "nhistory"), reason="this MuJoCo has no delays")
def test_delays_are_refused() -> None:
    delayed = ARM.replace(
        '<motor joint="elbow"/>', '<motor joint="elbow" delay="0.01" nsample="9"/>'
    )
    with pytest.raises(ValueError, match="this one has delays, which remember more"):
        MujocoProblem(delayed, lambda b, c, a: a.qpos[:, 0], steps=5, temperature=1.0)
