"""Small models of every kind of actuator, joint and sensor: a step is what ``mj_step`` makes of it,
and what remembers more than its state is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.envs.problem import rollout
from girsanov.envs.robots.mujoco import MujocoProblem, Physics

mujoco = pytest.importorskip("mujoco")
SCENE = """
<mujoco><compiler autolimits="true"/>
  <option timestep="0.002" integrator="{integrator}"><flag energy="enable"/></option>
  <worldbody><geom name="floor" type="plane" size="5 5 .1"/><light pos="0 0 3"/>
    <camera name="eye" pos="0 -2 1" xyaxes="1 0 0 0 0 1" resolution="10 10"/>
    <site name="gate" type="box" size="1 1 1" pos="0 0 0.4"/>
    <body name="mark" mocap="true" pos="1 1 1"><geom size=".02" contype="0" conaffinity="0"/></body>
    <body name="cart" pos="0 0 .5">
      <joint name="slide" type="slide" axis="1 0 0" range="-.02 .02" damping=".1"/>
      <geom name="box" type="box" size=".1 .05 .05" mass="1"/><site name="hub" pos="0 0 .05"/>
      <body name="pole" pos="0 0 -.1">
        <joint name="hinge" type="hinge" axis="0 1 0" range="-30 30" frictionloss=".01"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".02" mass=".3"/>
        <site name="tip" pos="0 0 -.25"/>
        <body name="bob" pos=".05 0 -.2"><joint name="ball" type="ball" damping=".01"/>
          <geom name="bob" size=".04" mass=".1"/><site name="bob" size=".05"/>
        </body>
      </body>
    </body>
    <body name="free" pos=".6 0 .055"><freejoint name="free"/><geom name="die" type="box"
      size=".05 .05 .05" mass=".2"/><site name="skin" type="box" size=".06 .06 .06"/></body>
  </worldbody>
  <tendon><fixed name="rope" range="-.01 .01"><joint joint="slide" coef="1"/>
    <joint joint="hinge" coef=".3"/></fixed>
    <spatial name="string" springlength=".1" stiffness="2"><site site="hub"/><site site="tip"/>
    </spatial></tendon>
  <actuator>{actuators}</actuator><sensor>{sensors}</sensor>
</mujoco>"""
ACTUATORS = {
    "motor": '<motor name="a" joint="slide" gear="3"/>',
    "motor in parent": '<motor name="a" jointinparent="ball" gear="1 .5 .2"/>',
    "free": '<motor name="a" joint="free" gear="0 0 1 .1 0 0"/>',
    "position": '<position name="a" joint="hinge" kp="5" kv=".1"/>',
    "filtered position": '<position name="a" joint="hinge" kp="5" timeconst=".05"/>',
    "velocity": '<velocity name="a" joint="hinge" kv="2"/>',
    "intvelocity": '<intvelocity name="a" joint="hinge" kp="5" actrange="-1 1"/>',
    "damper": '<damper name="a" joint="slide" kv="3" ctrlrange="0 1"/>',
    "cylinder": '<cylinder name="a" joint="slide" timeconst=".1" area="2"/>',
    "muscle": '<muscle name="a" tendon="string" lengthrange=".2 .6" force="1"/>',
    "adhesion": '<adhesion name="a" body="free" ctrlrange="0 1" gain="3"/>',
    "site": '<general name="a" site="tip" refsite="hub" gear="1 0 0 0 .1 0" gainprm="2"/>',
    "slider-crank": '<general name="a" cranksite="tip" slidersite="hub" cranklength=".6"/>',
    "tendon": '<general name="a" tendon="rope" dyntype="integrator" gainprm="2" actlimited="true"'
    ' actrange="-1 1"/>',
    "filter": '<general name="a" joint="hinge" dyntype="filter" dynprm=".02" actearly="true"/>',
    "exact filter": '<general name="a" joint="hinge" dyntype="filterexact" dynprm=".02"'
    ' biastype="affine" biasprm="0 -1 -.1"/>',
}
#: Of MuJoCo 4 on.
NEWER = {
    "dc motor": '<dcmotor name="a" joint="hinge" motorconst="0.05" resistance="1"/>',
    "pid": '<pid name="a" joint="hinge" kp="5"/>',
    "orientation": '<orientation name="a" joint="ball" kp="1"/>',
}
SENSORS = {
    **{
        kind: f'<{kind} site="tip"/>'
        for kind in (
            *("accelerometer", "velocimeter", "gyro", "force", "torque", "magnetometer"),
            "rangefinder",
        )
    },
    "touch": '<touch site="skin"/>',
    "camprojection": '<camprojection site="tip" camera="eye"/>',
    **{f"joint{what}": f'<joint{what} joint="hinge"/>' for what in ("pos", "vel", "actuatorfrc")},
    **{f"tendon{what}": f'<tendon{what} tendon="rope"/>' for what in ("pos", "vel")},
    "tendonactuatorfrc": '<tendonactuatorfrc tendon="string"/>',
    **{f"actuator{what}": f'<actuator{what} actuator="a"/>' for what in ("pos", "vel", "frc")},
    **{f"ball{what}": f'<ball{what} joint="ball"/>' for what in ("quat", "angvel")},
    **{f"jointlimit{w}": f'<jointlimit{w} joint="slide"/>' for w in ("pos", "vel", "frc")},
    **{f"tendonlimit{w}": f'<tendonlimit{w} tendon="rope"/>' for w in ("pos", "vel", "frc")},
    **{
        f"frame{what}": f'<frame{what} objtype="body" objname="bob"/>'
        for what in (
            *("pos", "quat", "xaxis", "yaxis", "zaxis"),
            *("linvel", "angvel", "linacc", "angacc"),
        )
    },
    **{f"subtree{w}": f'<subtree{w} body="cart"/>' for w in ("com", "linvel", "angmom")},
    "insidesite": '<insidesite site="gate" objtype="body" objname="bob"/>',
    **{
        what: f'<{what} geom1="die" geom2="floor" cutoff="1"/>'
        for what in ("distance", "normal", "fromto")
    },
    "contact": '<contact geom1="die" geom2="floor" data="force" num="2"/>',
    "e_potential": "<e_potential/>",
    "e_kinetic": "<e_kinetic/>",
}


def problem(actuators: str, readings: str = "", integrator: str = "Euler", **kwargs: Any) -> Any:
    def paid(before: Physics, control: Tensor, after: Physics) -> Tensor:
        return after.qpos[:, 0] + (after.sensors[:, 0] if after.sensors.shape[1] else 0.0)

    settings = {"steps": 8, "temperature": 1.0, "scale": 0.4, "frame_skip": 3, "spread": 0.02}
    text = SCENE.format(actuators=actuators, sensors=readings, integrator=integrator)
    return MujocoProblem(text, paid, dtype=torch.float64, **{**settings, **kwargs})


def stepped(made: Any, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``mj_step`` itself from one state, its solver cold, and the sensors of where it leads."""
    model = made.engine.model
    data = mujoco.MjData(model)
    data.qpos, data.qvel, data.act = np.split(x[:-2], [model.nq, model.nq + model.nv])
    data.qacc_warmstart[:] = 0
    ctrl = made.offset.numpy() + made.scale.numpy() * z
    data.ctrl[:] = np.clip(ctrl, made.low.numpy(), made.high.numpy())
    for _ in range(made.engine.frame_skip):
        mujoco.mj_step(model, data)
    later = np.concatenate([data.qpos, data.qvel, data.act])
    mujoco.mj_step(model, data)  # sensors are read where a step begins
    return later, data.sensordata.copy()


def compared(made: Any, generator: torch.Generator, n: int = 4) -> float:
    """The largest difference of a path of ``n`` robots from plain steps, sensors included."""
    made.validate()
    x, worst, model = made.initial(n, generator), 0.0, made.engine.model
    for k in range(made.horizon):
        z = torch.randn(n, model.nu, generator=generator, dtype=torch.float64)
        state, sensed = made.engine.step(x[:, :-2].contiguous(), made.offset + made.scale * z)
        later = made.transition(k, x, z)
        for i in range(n):
            wanted, seen = stepped(made, x[i].numpy(), z[i].numpy())
            worst = max(worst, np.abs(later[i, :-2].numpy() - wanted).max())
            if made.engine.sensors and not (made.low > -np.inf).any():
                error = np.abs(sensed[i].numpy() - seen)
                worst = max(worst, (error / (1 + np.abs(seen))).max())
        x = later
    assert state.shape == (n, made.engine.size) and bool((x[:, -1] == 1).all())
    return worst


@pytest.mark.parametrize("kind", sorted(ACTUATORS))
def test_an_actuator_steps_as_mj_step(kind: str, generator: torch.Generator) -> None:
    assert compared(problem(ACTUATORS[kind]), generator) < 1e-12


@pytest.mark.parametrize("kind", sorted(NEWER))
def test_newer_actuators_too(kind: str, generator: torch.Generator) -> None:
    if int(mujoco.__version__.split(".")[0]) < 4:
        pytest.skip("MuJoCo 4 brought them")
    assert compared(problem(NEWER[kind]), generator) < 1e-12


@pytest.mark.parametrize("integrator", ["Euler", "RK4", "implicit", "implicitfast"])
def test_all_at_once_with_every_integrator(integrator: str, generator: torch.Generator) -> None:
    several = "".join(
        text.replace('name="a"', f'name="{i}"') for i, text in enumerate(ACTUATORS.values())
    )
    made = problem(several, integrator=integrator, scale=0.05)
    assert made.engine.model.nu == 16 and made.engine.model.na > 5
    assert set(made.engine.model.jnt_type) == {0, 1, 2, 3}  # free, ball, slide and hinge
    assert compared(made, generator) < 1e-12


def test_every_sensor_is_read_as_mj_step_reads_it(generator: torch.Generator) -> None:
    made = problem(ACTUATORS["motor"], "".join(SENSORS.values()), sensors=True)
    kinds = set(made.engine.model.sensor_type.tolist())
    named = {int(v): k for k, v in vars(mujoco.mjtSensor).items() if k.startswith("mjSENS_")}
    left = {named[kind].removeprefix("mjSENS_") for kind in named.keys() - kinds}
    assert left <= {"PLUGIN", "USER", "TACTILE", "CLOCK"}, left
    assert compared(made, generator) < 1e-12


def test_what_remembers_more_is_refused() -> None:
    motor = ACTUATORS["motor"]
    with pytest.raises(ValueError, match="this one has clocks as sensors, which remember more"):
        problem(motor, "<clock/>", sensors=True)
    problem(motor, "<clock/>").validate()  # nobody reads it
    asleep = SCENE.replace('energy="enable"', 'sleep="enable"')
    try:
        mujoco.MjModel.from_xml_string(asleep.format(actuators="", sensors="", integrator="Euler"))
    except ValueError:
        return  # a version without
    made = asleep.format(actuators=motor, sensors="", integrator="Euler")
    with pytest.raises(ValueError, match="bodies that fall asleep, which remember more"):
        MujocoProblem(made, lambda b, c, a: a.qpos[:, 0], steps=3, temperature=1.0)


KEYED = SCENE.replace(
    "</mujoco>",
    '<keyframe><key name="home" qpos=".01 .2 1 0 0 0 .6 .1 .2 0 0 0 0" ctrl=".3 -.2" act=".4"'
    ' qvel="0 .5 0 0 0 0 0 0 0 0 0"/><key qpos=".01 0 1 0 0 0 .6 0 .1 1 0 0 0"'
    ' mpos="0 0 3"/></keyframe></mujoco>',
)


def keyed(**kwargs: Any) -> Any:
    text = KEYED.format(
        actuators=ACTUATORS["motor"] + ACTUATORS["filter"].replace('"a"', '"b"'),
        sensors="",
        integrator="Euler",
    )
    settings = {"steps": 3, "temperature": 1.0, "spread": 0.0, "dtype": torch.float64}
    return MujocoProblem(text, lambda b, c, a: a.qpos[:, 0], **{**settings, **kwargs})


def test_a_keyframe_gives_position_velocity_activation_and_control(
    generator: torch.Generator,
) -> None:
    for name in ("home", 0, np.int64(0)):
        made = keyed(keyframe=name)
        x = made.initial(3, generator)
        key = made.engine.model.key(0)
        quaternion = [1.0, 0.0, 0.0, 0.0]  # MuJoCo's reading of four zeros
        wanted = np.concatenate([key.qpos, key.qvel, key.act, [0, 1]])
        assert key.act == 0.4 and x[:, 1].tolist() == [0.2] * 3 and x[:, 14].tolist() == [0.5] * 3
        wanted[9:13] = quaternion
        assert np.allclose(x[1].numpy(), wanted, atol=1e-15)
        assert made.offset.tolist() == [0.3, -0.2]
    assert keyed(keyframe=0, offset=0.0).offset.tolist() == [0, 0]
    assert keyed().offset.tolist() == [0, 0] and keyed().initial(1, generator)[0, 14] == 0
    for wrong in ("away", 2, -1, True, 1.0):
        with pytest.raises(ValueError, match=r"keyframe must be one of the model's 2, by name or"):
            keyed(keyframe=wrong)
    with pytest.raises(ValueError, match="keyframe must leave mocap bodies where the model has"):
        keyed(keyframe=1)
    assert compared(keyed(keyframe="home", spread=0.01), generator) < 1e-12


def test_rewards_and_falls_of_other_shapes_are_named(generator: torch.Generator) -> None:
    good = {"steps": 3, "temperature": 1.0}
    text = SCENE.format(actuators=ACTUATORS["motor"], sensors="", integrator="Euler")
    made = MujocoProblem(text, lambda b, c, a: a.qpos[:, :1], **good)
    with pytest.raises(ValueError, match=r"reward of MujocoProblem must be a tensor of shape \(3,"):
        made.validate()
    made = MujocoProblem(
        text, lambda b, c, a: a.qpos[:, 0], healthy=lambda p: p.qpos[:, :1] > -9, **good
    )
    with pytest.raises(ValueError, match=r"healthy of MujocoProblem must be a tensor of shape \(3"):
        made.validate()
    made = MujocoProblem(
        text, lambda b, c, a: a.qpos[:, 0], success=lambda p: p.qpos[:, :1] > -9, **good
    )
    with pytest.raises(ValueError, match=r"MujocoProblem.success\(x\) must return a bool tensor"):
        made.validate()
    made = MujocoProblem(
        text,
        lambda b, c, a: a.qpos[:, 0],
        healthy=lambda p: p.qpos[:, 0] > -0.04,
        success=lambda p: p.qpos[:, 0] > 0,
        **{**good, "spread": 0.05},
    )
    end = rollout(made, None, 500, generator).states[-1]
    won = made.success(end)
    assert won.shape == (500,) and 0 < won.float().mean() < made.alive(end).float().mean() < 1
