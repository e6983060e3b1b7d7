"""Drawings of MuJoCo models, judged by what is on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")

from girsanov.envs import make_problem  # noqa: E402
from girsanov.envs.robots.pictures import outline_of, sketch  # noqa: E402


def model_of(geoms: str, joints: str = '<joint type="hinge" axis="0 1 0"/>') -> object:
    return mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><body>{joints}{geoms}</body></worldbody></mujoco>"
    )


def area_of(corners: np.ndarray) -> float:
    x, y = corners.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def share_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture.astype(int) - colour).max(2) <= 2).mean())


#: Geoms, their shadow's area on the xz plane, and its width and height.
SHAPES = {
    "capsule": (
        '<geom type="capsule" fromto="0 0 -.5 0 0 .5" size=".1"/>',
        0.2 * 1.0 + math.pi * 0.1**2,
        (0.2, 1.2),
    ),
    "capsule towards the eye": (
        '<geom type="capsule" fromto="0 -.5 0 0 .5 0" size=".1"/>',
        math.pi * 0.1**2,
        (0.2, 0.2),
    ),
    "leaning capsule": (
        '<geom type="capsule" fromto="0 0 0 .6 0 .8" size=".1"/>',
        0.2 * 1.0 + math.pi * 0.1**2,
        (0.8, 1.0),
    ),
    "cylinder": ('<geom type="cylinder" size=".1 .5"/>', 0.2 * 1.0, (0.2, 1.0)),
    "box": ('<geom type="box" size=".1 .2 .3"/>', 0.2 * 0.6, (0.2, 0.6)),
    "sphere": ('<geom type="sphere" size=".3"/>', math.pi * 0.3**2, (0.6, 0.6)),
    "ellipsoid": ('<geom type="ellipsoid" size=".1 .2 .3"/>', math.pi * 0.1 * 0.3, (0.2, 0.6)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_outline_has_the_shape_of_its_geom(name: str) -> None:
    geom, area, extent = SHAPES[name]
    model = model_of(geom)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    outline = outline_of(model, data, 0, [0, 2])
    assert area_of(outline) == pytest.approx(area, rel=0.03)
    assert np.ptp(outline, axis=0) == pytest.approx(extent, rel=0.02)


def test_a_meshs_outline_is_that_of_its_corners() -> None:
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><mesh name="m" vertex="0 0 0 2 0 0 0 1 0 0 0 1"/></asset><worldbody><body>'
        '<joint axis="0 1 0"/><geom type="mesh" mesh="m"/></body></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert area_of(outline_of(model, data, 0, [0, 2])) == pytest.approx(1.0)


def test_a_capsule_is_drawn_as_a_capsule_in_its_colour() -> None:
    # reach 1: the picture is 2.2 wide; the axes cover some of its 300 x 300 pixels
    model = model_of('<geom type="capsule" fromto="0 0 0 0 0 .9" size=".1" rgba=".2 .4 .6 1"/>')
    upright, lying = (sketch(model, np.array([q]), "xz", "") for q in (0.0, math.pi / 2))
    seen = [(np.abs(p.astype(int) - (51, 102, 153)).max(2) <= 2) for p in (upright, lying)]
    tall, wide = ([np.ptp(np.nonzero(s)[axis]) + 1 for axis in (0, 1)] for s in seen)
    assert tall[0] / tall[1] == pytest.approx(1.1 / 0.2, rel=0.1)  # a disc would be as wide
    assert wide[1] / wide[0] == pytest.approx(1.1 / 0.2, rel=0.1)
    assert seen[0].sum() / (tall[0] * tall[1]) > 0.9  # and it is filled


#: Colours of the parts, least share of the picture, and its least ratio of length to width.
PARTS = {
    "InvertedPendulum": {"pole": ((0, 179, 179), 0.006), "cart": ((179, 179, 0), 0.004)},
    "InvertedDoublePendulum": {"poles": ((0, 179, 179), 0.006), "cart": ((179, 179, 0), 0.003)},
    "Reacher": {"arm": ((0, 102, 153), 0.003), "target": ((230, 51, 51), 0.0001)},
    "HalfCheetah": {"trunk": ((204, 153, 102), 0.02), "legs": ((230, 153, 153), 0.01)},
    "Hopper": {"body": ((204, 153, 102), 0.02)},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_robot_is_recognised_by_its_parts(name: str) -> None:
    problem = make_problem(f"girsanov/{name}-v0")
    picture = problem.render(problem.initial(1, torch.Generator().manual_seed(0)))
    for part, (colour, least) in PARTS[name].items():
        share = share_of(picture, colour)
        assert least < share < 0.12, f"{part}: {share}"


@pytest.mark.parametrize("name", ["HalfCheetah", "Hopper"])
def test_a_runner_fills_its_frame_and_the_camera_goes_along(name: str) -> None:
    problem = make_problem(f"girsanov/{name}-v0")
    x = problem.initial(1, torch.Generator().manual_seed(0))
    far = x.clone()
    far[0, 0] += 10.5
    pictures = [problem.render(state)[25:] for state in (x, far)]
    for picture in pictures:
        brown = np.nonzero(np.abs(picture.astype(int) - (204, 153, 102)).max(2) <= 2)
        assert max(np.ptp(axis) for axis in brown) > 0.5 * 275
    assert (pictures[0] != pictures[1]).any()  # the ground goes by
    assert share_of(pictures[0], (204, 153, 102)) == pytest.approx(
        share_of(pictures[1], (204, 153, 102)), rel=0.1
    )


def test_what_is_near_is_in_front() -> None:
    near, behind = (f'<geom type="box" pos="0 {y} 0" size=".2 .1 .2" rgba="{c} 1"/>' for y, c in
                    ((-1, "1 0 0"), (1, "0 0 1")))  # fmt: skip
    for geoms in (near + behind, behind + near):
        picture = sketch(model_of(geoms), np.zeros(1), "xz", "")
        assert share_of(picture, (255, 0, 0)) > 0.01 and share_of(picture, (0, 0, 255)) == 0


ARM = """<mujoco><worldbody><body pos="0 0 1"><joint name="j" axis="0 1 0"/>
<geom type="capsule" fromto="0 0 0 0 0 -.4" size=".04" rgba=".2 .4 .6 1"/></body></worldbody>
<actuator><motor joint="j"/></actuator></mujoco>"""


def test_an_arm_fills_its_frame_and_the_goal_is_marked() -> None:
    from girsanov.envs.robots.mujoco import MujocoProblem

    def arm(**more: object) -> MujocoProblem:
        model, paid = ARM, lambda before, control, after: before.qpos[:, 0]
        return MujocoProblem(model, paid, steps=20, temperature=1.0, scale=0.01, **more)

    blue, green = (51, 102, 153), (44, 160, 44)
    for goal, least in ((None, 0.75), ([0.3, 0.0, 0.8], 0.5)):
        problem = arm(goal=goal)
        x = problem.initial(1, torch.Generator().manual_seed(0))
        picture = problem.render(x)
        length = np.ptp(np.nonzero(np.abs(picture.astype(int) - blue).max(2) <= 2)[0])
        assert length > least * 275  # not a half, as in a frame of all that it could reach
        assert (share_of(picture, green) > 0.001) == (goal is not None)
    turned = x.clone()
    turned[0, 0] = math.pi  # where it never comes by itself: the frame grows, and cuts nothing off
    above = problem.render(turned)
    assert share_of(above, blue) > 0.01 and share_of(above, green) > 0.001
    assert np.nonzero(np.abs(above.astype(int) - blue).max(2) <= 2)[0].min() > 30
    with pytest.raises(ValueError, match="goal must be a point, three numbers; got 3"):
        arm(goal=3)
