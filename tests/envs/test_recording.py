"""Recordings: what they hold, what they refuse, and files that are whole or absent."""

import os

import pytest
import safetensors.torch
import torch

from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Trajectories, rollout
from girsanov.envs.recording import RecordedPaths, Recording, SimulatedPaths

HORIZON, N = 6, 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem() -> LinearQuadratic:
    return LinearQuadratic.damped_rotation(2, steps=HORIZON)


def some_control(k: int, x: torch.Tensor) -> torch.Tensor:
    return 0.3 * x.cos()


def paths(n: int = N) -> Trajectories:
    with torch.no_grad():
        return rollout(problem(), some_control, n, generator())


def recording(n: int = N) -> Recording:
    return Recording.of(paths(n))


def same(a: Recording, b: Recording) -> bool:
    def equal(x, y):
        return x is None and y is None or torch.equal(x, y)

    return all(equal(x, y) for x, y in zip(a, b, strict=True))


def test_whole_trajectories_are_recordings_path_first():
    given, found = paths(), recording()
    found.validate(problem())
    assert found.steps.tolist() == [list(range(HORIZON + 1))] * N
    assert torch.equal(found.states[3, 2], given.states[2, 3])
    assert torch.equal(found.rewards[3, 2], given.running_rewards[2, 3])
    assert found.log_ratios is not None and torch.equal(
        found.log_ratios[3, 2], given.log_ratios[2, 3]
    )
    assert found.controls is not None and torch.equal(found.controls[3, 2], given.controls[2, 3])


@pytest.mark.parametrize("visits", [1, 3, HORIZON])
def test_random_times_keep_the_end_and_every_sum(visits):
    whole = recording(200)
    seen = whole.at_random_times(visits, generator(1))
    seen.validate(problem())
    assert seen.steps.shape == (200, visits + 1) and (seen.steps[:, -1] == HORIZON).all()
    assert (seen.steps.diff(dim=1) > 0).all() and seen.noises is None and seen.controls is None
    row = torch.arange(200)[:, None]
    assert torch.equal(seen.states, whole.states[row, seen.steps])
    for ours, theirs in ((seen.rewards, whole.rewards), (seen.log_ratios, whole.log_ratios)):
        summed = torch.cat([torch.zeros(200, 1), theirs.cumsum(1)], 1)
        assert torch.allclose(ours, summed[row, seen.steps].diff(dim=1), atol=1e-6)
    if visits == HORIZON:
        assert torch.equal(seen.steps, whole.steps)
    else:  # each path has its own times, and every time its turn
        assert len({tuple(s) for s in seen.steps.tolist()}) > 1 and set(
            seen.steps.flatten().tolist()
        ) == set(range(HORIZON + 1))
    share = (seen.steps[:, :-1] == 0).any(1).double().mean()
    assert abs(float(share) - visits / HORIZON) < 4 * 0.5 / 200**0.5


def test_random_times_of_uncontrolled_paths_stay_without_ratios():
    seen = recording()._replace(log_ratios=None).at_random_times(2, generator())
    assert seen.log_ratios is None
    twice = recording().at_random_times(4, generator()).at_random_times(2, generator(1))
    twice.validate(problem())
    assert torch.allclose(
        twice.rewards.sum(1),
        (recording().rewards * _after(recording(), twice.steps[:, 0])).sum(1),
        atol=1e-5,
    )


def _after(whole: Recording, first: torch.Tensor) -> torch.Tensor:
    return (whole.steps[:, :-1] >= first[:, None]).float()


@pytest.mark.parametrize("visits", [0, HORIZON + 1])
def test_random_times_refuse_a_wrong_number(visits):
    with pytest.raises(ValueError, match=f"visits must be between 1 and {HORIZON}; got {visits}"):
        recording().at_random_times(visits, generator())


def spoilt(name: str, index: tuple[int, ...], value: float) -> Recording:
    tensor = getattr(recording(), name).clone()
    tensor[index] = value
    return recording()._replace(**{name: tensor})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["states", "rewards", "log_ratios", "noises", "controls"])
def test_numbers_must_be_finite(name, value):
    size = getattr(recording(), name).numel()
    with pytest.raises(
        ValueError, match=f"{name} must be finite; got 1 NaN or infinite of {size} values"
    ):
        (
            spoilt(name, (2, 1), value).validate(problem())
            if name
            in (
                "rewards",
                "log_ratios",
            )
            else spoilt(name, (2, 1, 0), value).validate(problem())
        )


def test_terminal_rewards_must_be_finite_where_the_end_was_seen_only():
    bad = spoilt("terminal_reward", (2,), torch.nan)
    with pytest.raises(
        ValueError, match=f"terminal_reward must be finite; got 1 NaN or infinite of {N} values"
    ):
        bad.validate(problem())
    steps = bad.steps.clone()
    steps[2, -1] = HORIZON - 1
    bad._replace(steps=steps, noises=None, controls=None).validate(problem())


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("states", (N, HORIZON + 1, 3), (N, HORIZON + 1, 2)),
        ("states", (N, HORIZON, 2), (N, HORIZON + 1, 2)),
        ("rewards", (N, HORIZON + 1), (N, HORIZON)),
        ("terminal_reward", (N, 1), (N,)),
        ("log_ratios", (N - 1, HORIZON), (N, HORIZON)),
        ("noises", (N, HORIZON, 1), (N, HORIZON, 2)),
        ("controls", (N, HORIZON + 1, 2), (N, HORIZON, 2)),
    ],
)
def test_shapes_must_be_those_of_the_problem(name, shape, wanted):
    text = (
        rf"{name} must have shape \({', '.join(map(str, wanted))},?\); got"
        rf" \({', '.join(map(str, shape))}\)"
    )
    with pytest.raises(ValueError, match=text):
        recording()._replace(**{name: torch.zeros(shape)}).validate(problem())


@pytest.mark.parametrize(
    "steps",
    [
        torch.zeros(N),
        torch.zeros(N, HORIZON + 1),
        torch.zeros(0, 4, dtype=torch.long),
        torch.zeros(N, 1, dtype=torch.long),
    ],
    ids=["1-D", "float", "no path", "one visit"],
)
def test_steps_must_be_integers_of_at_least_two_visits(steps):
    with pytest.raises(
        ValueError,
        match=r"steps must be integers \(n, S\) with n >= 1 paths of S >= 2 visits; got \(",
    ):
        recording()._replace(steps=steps).validate(problem())


@pytest.mark.parametrize(
    ("index", "value", "got"),
    [((0, 0), -1, "-1 to 6"), ((0, 6), 7, "0 to 7"), ((0, 3), 5, "0 to 6")],
)
def test_steps_must_not_fall_nor_leave_the_horizon(index, value, got):
    with pytest.raises(
        ValueError,
        match=(
            f"steps must not fall along a path and stay between 0 and the horizon 6; got .* {got}"
        ),
    ):
        spoilt("steps", index, value)._replace(noises=None, controls=None).validate(problem())


def test_noises_need_every_step():
    """A black-box policy reads them as the noise between neighbouring steps."""
    whole = recording()
    keep = torch.tensor([0, 2, 4, 6])
    some = Recording(
        whole.steps[:, keep],
        whole.states[:, keep],
        whole.rewards[:, :3],
        whole.terminal_reward,
        None,
        whole.noises[:, :3],
    )
    with pytest.raises(
        ValueError, match="noises and controls must come with paths seen at every step"
    ):
        some.validate(problem())


# --- files


@pytest.mark.parametrize("optional", [True, False])
def test_save_and_load_give_the_same_bits(tmp_path, optional):
    whole = (
        recording()
        if optional
        else recording()._replace(log_ratios=None, noises=None, controls=None)
    )
    whole.save(tmp_path / "paths.safetensors")
    assert same(Recording.load(tmp_path / "paths.safetensors"), whole)
    assert os.listdir(tmp_path) == ["paths.safetensors"]


def test_save_takes_one_path_and_tensors_that_share_memory(tmp_path):
    one = recording(1)
    one.save(tmp_path / "one")
    assert same(Recording.load(tmp_path / "one"), one)
    zero = torch.zeros(N, HORIZON)
    shared = recording()._replace(rewards=zero, log_ratios=zero)
    shared.save(tmp_path / "shared")
    assert same(Recording.load(tmp_path / "shared"), shared)


def test_save_replaces_a_file(tmp_path):
    recording(3).save(tmp_path / "p")
    recording(4).save(str(tmp_path / "p"))
    assert len(Recording.load(tmp_path / "p").steps) == 4


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    recording(3).save(tmp_path / "p")
    before = (tmp_path / "p").read_bytes()

    def full_disk(tensors, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="p could not be written: I/O error: no space left"):
        recording(4).save(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"] and (tmp_path / "p").read_bytes() == before


def test_a_save_into_no_folder_or_over_a_folder_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        recording().save(tmp_path / "absent" / "p")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        recording().save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"] and not os.listdir(tmp_path / "folder")


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(4, [4, 4, 1]), (3, [3, 3, 3]), (100, [9]), (None, [9])]
)
def test_files_are_read_in_parts_again_and_again(tmp_path, chunk, sizes):
    recording().save(tmp_path / "p")
    parts = RecordedPaths(tmp_path / "p", chunk)
    for _ in range(2):
        found = list(parts)
        assert len(parts) == len(found) and [len(part.steps) for part in found] == sizes
        whole = Recording(*(torch.cat(column) for column in zip(*found, strict=True)))
        assert same(whole, recording())


@pytest.mark.parametrize("chunk", [0, -1])
def test_parts_must_hold_a_path(tmp_path, chunk):
    recording().save(tmp_path / "p")
    with pytest.raises(ValueError, match=f"chunk must be .*; got {chunk}"):
        RecordedPaths(tmp_path / "p", chunk)


def test_bad_files_give_one_clear_error(tmp_path):
    recording().save(tmp_path / "good")
    whole = (tmp_path / "good").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise").write_bytes(b"not safetensors at all")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("cut", "noise", "empty"):
        for read in (Recording.load, RecordedPaths):
            with pytest.raises(ValueError, match=f"{name}' is corrupt or foreign"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file '.*absent'"):
        RecordedPaths(tmp_path / "absent")
    with pytest.raises(ValueError, match="there is no file"):
        RecordedPaths(tmp_path)
    safetensors.torch.save_file(
        {"steps": torch.zeros(2, 2), "weight": torch.zeros(3)}, tmp_path / "foreign"
    )
    with pytest.raises(
        ValueError, match=r"foreign' lacks \['rewards', 'states', 'terminal_reward'\]"
    ):
        RecordedPaths(tmp_path / "foreign")


def test_a_foreign_file_with_our_names_is_refused(tmp_path):
    scalar = {name: torch.zeros(()) for name in ("steps", "states", "rewards", "terminal_reward")}
    safetensors.torch.save_file(scalar, tmp_path / "scalar")
    with pytest.raises(ValueError, match="steps|corrupt or foreign"):
        list(RecordedPaths(tmp_path / "scalar"))
    none = {name: torch.zeros(0, 3) for name in scalar}
    safetensors.torch.save_file(none, tmp_path / "none")
    with pytest.raises(ValueError, match="path|steps"):
        Recording.load(tmp_path / "none")


def test_parts_of_unequal_length_are_refused(tmp_path):
    whole = recording()
    tensors = {name: value.contiguous() for name, value in whole._asdict().items()}
    tensors["terminal_reward"] = tensors["terminal_reward"][:-1].clone()
    safetensors.torch.save_file(tensors, tmp_path / "short")
    with pytest.raises(ValueError, match=r"terminal_reward must have shape \(9,\); got \(8,\)"):
        Recording.load(tmp_path / "short").validate(problem())


# --- simulation


def test_simulated_paths_are_always_the_same_and_uncontrolled():
    data = SimulatedPaths(problem(), 10, seed=3, chunk=4)
    first, second = list(data), list(data)
    assert len(data) == 3 and [len(part.steps) for part in first] == [4, 4, 2]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not first[0].controls.any() and not first[0].log_ratios.any()
    assert not torch.equal(first[0].states, first[1].states)
    other = next(iter(SimulatedPaths(problem(), 10, seed=4, chunk=4)))
    assert not torch.equal(other.states, first[0].states)
    first[0].validate(problem())
