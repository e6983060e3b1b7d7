"""The digits model: checkpoint, problem, rewards, and the memory that halves its cost."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from girsanov.envs import make_problem
from girsanov.envs.diffusion.denoising import Schedule
from girsanov.envs.diffusion.digit_networks import (
    CHECKPOINT,
    GaussianDenoiser,
    load_networks,
    save_networks,
)
from girsanov.envs.diffusion.digits import Brightness, DigitLogProbability, Digits, digits
from girsanov.envs.pretraining.digit_images import HELD_OUT, load_images
from girsanov.envs.problem import rollout


@pytest.fixture(scope="module")
def problem() -> Digits:
    return digits()


def states(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class TestProblem:
    def test_one_step_a_row_equals_an_int(self, problem: Digits) -> None:
        wide = problem.to(dtype=torch.float64)
        x = states(6).double()
        k = torch.tensor([0, 7, 7, 20, 48, 49])
        together = wide.predict_noise(k, x)
        for i in range(6):
            torch.testing.assert_close(
                together[i : i + 1],
                wide.predict_noise(int(k[i]), x[i : i + 1]),
                rtol=1e-9,
                atol=1e-9,
            )

    def test_it_is_differentiable_and_its_gradient_is_right(self) -> None:
        problem = digits().to(dtype=torch.float64)
        x = states(2).double().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s: problem.terminal_estimate(20, s), (x,), fast_mode=True
        )
        assert torch.autograd.gradcheck(problem.terminal_reward, (x,), fast_mode=True)

    def test_it_denoises_real_digits_better_than_a_gaussian_model(self, problem: Digits) -> None:
        images = load_images().held_out
        assert len(images) == HELD_OUT
        k = 35
        bar = problem.schedule.alpha_bar[k]
        noisy = bar.sqrt() * images + (1 - bar).sqrt() * states(HELD_OUT)
        error = (problem.terminal_estimate(k, noisy) - images).square().mean()
        gaussian, _ = problem.denoiser.gaussian(
            noisy.flatten(1), problem.schedule.log_snr[k : k + 1]
        )
        assert error < 0.8 * (gaussian - images.flatten(1)).square().mean()

    def test_samples_are_taken_for_digits_of_every_kind(self, problem: Digits) -> None:
        with torch.no_grad():
            x = rollout(problem, None, 256, torch.Generator().manual_seed(2)).states[-1]
            chance = problem.reward.classifier(x).softmax(1)
        assert chance.max(1).values.mean() > 0.8
        assert chance.argmax(1).bincount(minlength=10).min() >= 5

    def test_to_moves_the_networks_and_leaves_the_original(self, problem: Digits) -> None:
        moved = problem.to(dtype=torch.float64)
        assert moved.predict_noise(3, states().double()).dtype == torch.float64
        assert moved.terminal_reward(states().double()).dtype == torch.float64
        assert problem.predict_noise(3, states()).dtype == torch.float32

    def test_images_are_states_between_black_and_white(self, problem: Digits) -> None:
        images = problem.images(
            torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(5, 1, 1, 1).expand(5, 1, 8, 8)
        )
        assert images[:, 0, 0, 0].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]

    def test_render_shows_the_noisy_and_the_clean_image(self, problem: Digits) -> None:
        path = rollout(problem, None, 1, torch.Generator().manual_seed(0)).states[:, 0]
        for length in (1, 20, 51):
            picture = problem.render(path[:length])
            assert picture.shape == (160, 336, 3) and picture.dtype == np.uint8
        assert np.array_equal(
            picture[:, :160], picture[:, -160:]
        )  # at the end the clean image is the state
        assert not np.array_equal(
            problem.render(path[:20])[:, :160], problem.render(path[:20])[:, -160:]
        )

    @pytest.mark.parametrize("target", [-1, 10, 2.5, "3", True])
    def test_an_unknown_target_is_refused(self, target: Any) -> None:
        with pytest.raises(ValueError, match="target must be an integer"):
            make_problem("girsanov/Digits-v0", target=target)

    def test_an_unknown_reward_is_refused(self) -> None:
        with pytest.raises(ValueError, match="reward must be 'digit', 'brightness' or a callable"):
            make_problem("girsanov/Digits-v0", reward="darkness")


class TestRewards:
    def test_log_probability_is_high_for_its_digit_and_bounded_below(self) -> None:
        data = load_images()
        reward = DigitLogProbability(3)
        value = reward(data.held_out)
        assert value.shape == (HELD_OUT,)
        assert value[data.held_out_labels == 3].mean() > -0.3
        assert value[data.held_out_labels != 3].mean() < -3
        assert value.min() > -20

    def test_the_classifier_is_right_on_held_out_images(self) -> None:
        data = load_images()
        right = load_networks().classifier(data.held_out).argmax(1) == data.held_out_labels
        assert right.double().mean() >= 0.97

    def test_brightness(self) -> None:
        x = torch.stack([torch.full((1, 8, 8), v) for v in (-1.0, 0.0, 1.0)])
        assert Brightness()(x).tolist() == [0.0, 0.5, 1.0]
        assert digits(reward="brightness").terminal_reward(x).tolist() == [0.0, 0.5, 1.0]

    def test_any_callable(self) -> None:
        problem = digits(reward=lambda x: x[:, 0, 0, 0])
        assert problem.terminal_reward(states()).shape == (4,)
        assert not hasattr(problem, "success")

    def test_success_is_the_classifiers_choice(self) -> None:
        data = load_images()
        problem = digits(target=7)
        assert (
            problem.success(data.held_out) == (data.held_out_labels == 7)
        ).double().mean() > 0.97
        assert not hasattr(digits(reward="brightness"), "success")


class TestCheckpoint:
    def test_it_is_small_and_documented(self) -> None:
        assert CHECKPOINT.stat().st_size < 2e6
        record = json.loads(CHECKPOINT.with_suffix(".json").read_text())
        networks = load_networks()
        assert record["architecture"]["denoiser"] == networks.denoiser.architecture
        assert record["seed"] == 0 and record["command"]
        assert record["quality"]["classifier_accuracy_held_out"] >= 0.97

    def test_it_survives_a_round_trip(self, tmp_path: Path) -> None:
        networks = load_networks()
        save_networks(tmp_path / "again.safetensors", networks)
        assert (tmp_path / "again.safetensors").read_bytes() == CHECKPOINT.read_bytes()
        assert [p.name for p in tmp_path.iterdir()] == ["again.safetensors"]

    @pytest.mark.parametrize(
        "damage", ["missing", "empty", "truncated", "garbage", "pickle", "folder"]
    )
    def test_a_damaged_file_is_refused(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "bad.safetensors"
        whole = CHECKPOINT.read_bytes()
        content = {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "garbage": b"\x07" * 5000,
            "pickle": pickle.dumps([1]),
        }
        if damage == "folder":
            path.mkdir()
        elif damage in content:
            path.write_bytes(content[damage])
        with pytest.raises(
            ValueError,
            match=(
                r"checkpoint must be .* bad.safetensors|checkpoint must be .*bad.safetensors is not"
            ),
        ):
            make_problem("girsanov/Digits-v0", checkpoint=path)

    @pytest.mark.parametrize(
        "change",
        ["format", "json", "architecture", "absurd", "kind", "list", "tensor", "shape", "nan"],
    )
    def test_a_foreign_file_is_refused(self, tmp_path: Path, change: str) -> None:
        from safetensors import safe_open

        with safe_open(CHECKPOINT, framework="pt") as file:
            metadata = dict(file.metadata())
        tensors = load_file(CHECKPOINT)
        name = "classifier.layers.0.weight"
        (key,) = metadata
        architectures = json.loads(metadata[key])
        sizes = {
            "architecture": {"fine": 8},
            "absurd": {"fine": 10**9},
            "kind": {"__class__": 1},
            "list": [16],
        }
        if change == "format":
            metadata = {"format": "pt"}
        elif change == "json":
            metadata[key] = "{"
        elif change in sizes:
            metadata[key] = json.dumps(architectures | {"denoiser": sizes[change]})
        elif change == "tensor":
            del tensors[name]
        elif change == "shape":
            tensors[name] = tensors[name][:1].clone()
        else:
            tensors[name] = tensors[name] * float("nan")
        save_file(tensors, tmp_path / "foreign.safetensors", metadata)
        with pytest.raises(ValueError, match="checkpoint must be a safetensors file written by"):
            load_networks(tmp_path / "foreign.safetensors")

    def test_half_precision_weights_are_read_as_float32(self, tmp_path: Path) -> None:
        from safetensors import safe_open

        with safe_open(CHECKPOINT, framework="pt") as file:
            metadata = file.metadata()
        save_file(
            {k: v.half() for k, v in load_file(CHECKPOINT).items()},
            tmp_path / "half.safetensors",
            metadata,
        )
        problem = digits(checkpoint=tmp_path / "half.safetensors")
        x = states()
        torch.testing.assert_close(
            problem.predict_noise(20, x), digits().predict_noise(20, x), rtol=0.05, atol=0.05
        )


def test_the_gaussian_denoiser_is_the_posterior_mean() -> None:
    images = load_images().train
    denoiser = GaussianDenoiser().double()
    denoiser.fit(images, floor=1e-2)
    flat = images.flatten(1).double()
    values, vectors = torch.linalg.eigh(flat.T.cov(correction=0))
    covariance = vectors @ torch.diag(values.clamp(min=1e-2)) @ vectors.T
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for level in (-5.0, 0.0, 4.0):
        signal, noise = torch.sigmoid(torch.tensor([level, -level], dtype=torch.float64))
        gain = (
            signal.sqrt()
            * covariance
            @ torch.linalg.inv(signal * covariance + noise * torch.eye(64))
        )
        mean = flat.mean(0) + (x - signal.sqrt() * flat.mean(0)) @ gain.T
        variance = torch.diagonal(covariance - gain @ covariance * signal.sqrt())
        found, std = denoiser(x, torch.tensor([level], dtype=torch.float64))
        torch.testing.assert_close(found, mean, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(std[0], variance.sqrt(), rtol=1e-7, atol=1e-7)


class Counted:
    """A digits problem whose network calls are counted, beside one that remembers nothing."""

    def __init__(self) -> None:
        self.problem = digits()
        self.calls = 0
        self.problem.denoiser.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def fresh(self, k: Any, x: torch.Tensor) -> torch.Tensor:
        return self.problem._predict_noise(k, x)


@pytest.fixture
def counted() -> Counted:
    return Counted()


class TestMemory:
    @pytest.mark.parametrize("grad", [False, True])
    def test_policy_and_transition_share_one_call(self, counted: Counted, grad: bool) -> None:
        problem = counted.problem
        x = states().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            estimate = problem.terminal_estimate(10, x).flatten(1)
            control = torch.cat([estimate, torch.ones(4, 1)], 1).tanh()[:, :64].reshape(4, 1, 8, 8)
            del estimate
            problem.transition(10, x, control)
        assert counted.calls == 1

    def test_a_rollout_costs_one_call_a_step(self, counted: Counted) -> None:
        problem = counted.problem
        with torch.no_grad():
            rollout(
                problem,
                lambda k, x: 0.1 * problem.terminal_estimate(k, x),
                2,
                torch.Generator().manual_seed(0),
            )
        assert counted.calls == problem.horizon

    def test_a_policy_that_differentiates_at_the_next_state_costs_one_call_more(
        self, counted: Counted
    ) -> None:
        """The transition is answered from memory after it, and in another mode of autograd."""
        problem, x = counted.problem, states()
        with torch.no_grad():
            problem.terminal_estimate(10, x)
            with torch.enable_grad():
                z = torch.zeros_like(x).requires_grad_()
                later = problem.transition(10, x, z)
                problem.terminal_estimate(11, later).sum().backward()
            moved = problem.transition(10, x, z.detach())
        assert counted.calls == 2
        assert torch.equal(moved, later.detach()) and z.grad is not None

    def test_weights_that_learn_are_asked_again_in_another_mode(self, counted: Counted) -> None:
        problem, x = counted.problem, states()
        problem.denoiser.requires_grad_(True)
        with torch.no_grad():
            problem.predict_noise(10, x)
        assert problem.predict_noise(10, x).requires_grad and counted.calls == 2

    def test_gradients_are_those_without_memory(self, counted: Counted) -> None:
        problem = counted.problem

        def loss(predict: Any, x: torch.Tensor) -> torch.Tensor:
            return (predict(5, x).square().sum() + (predict(5, x) * x.sin()).sum()) * 0.1

        x = states().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(counted.fresh, x), x)
        counted.calls = 0
        (found,) = torch.autograd.grad(loss(problem.predict_noise, x), x)
        assert counted.calls == 1
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    def test_through_a_whole_chain_too(self, counted: Counted) -> None:
        problem = digits(steps=5)
        noises = torch.randn(5, 2, 1, 8, 8, generator=torch.Generator().manual_seed(3))

        def gradient(predict: Any) -> torch.Tensor:
            scale = torch.tensor(0.1, requires_grad=True)
            x = states(2)
            for k in range(5):
                a = scale * predict(k, x)
                mean = problem._reading.shrink[k] * x - problem._reading.slope[k] * predict(k, x)
                x = mean + problem.schedule.sigma[k] * (noises[k] + a)
            return torch.autograd.grad(problem.terminal_reward(x).sum(), scale)[0]

        torch.testing.assert_close(
            gradient(problem.predict_noise), gradient(problem._predict_noise), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize(
        "change",
        ["in place", "numpy", "data", "other step", "other tensor", "weights", "loaded weights"],
    )
    def test_it_is_never_stale(self, counted: Counted, change: str) -> None:
        problem, k = counted.problem, 10
        array = states().numpy()
        x = torch.from_numpy(array)
        before = problem.predict_noise(k, x)
        if change == "in place":
            x.mul_(0.5)
        elif change == "numpy":
            array *= 0.5
        elif change == "data":
            x.data = states(seed=9)
        elif change == "other step":
            k = 11
        elif change == "other tensor":
            x = states(seed=9)
        elif change == "weights":
            with torch.no_grad():
                problem.denoiser.stem.weight.mul_(1.5)
        else:
            weights = {name: value * 1.1 for name, value in problem.denoiser.state_dict().items()}
            problem.denoiser.load_state_dict(weights)
        found = problem.predict_noise(k, x)
        assert counted.calls == 2
        assert not torch.equal(found, before)
        torch.testing.assert_close(found, counted.fresh(k, x), rtol=0, atol=0)

    def test_steps_per_row_are_compared(self, counted: Counted) -> None:
        x, k = states(), torch.tensor([1, 2, 3, 4])
        first = counted.problem.predict_noise(k, x)
        assert torch.equal(counted.problem.predict_noise(k, x), first) and counted.calls == 1
        k += 1
        torch.testing.assert_close(
            counted.problem.predict_noise(k, x), counted.fresh(k, x), rtol=0, atol=0
        )

    def test_a_graph_is_there_when_asked_for(self, counted: Counted) -> None:
        problem = counted.problem
        x = states().requires_grad_()
        with torch.no_grad():
            assert not problem.predict_noise(10, x).requires_grad
        assert problem.predict_noise(10, x).requires_grad
        with torch.no_grad():
            assert not problem.predict_noise(10, x).requires_grad
        x = states()
        problem.predict_noise(10, x)
        x.requires_grad_()
        assert problem.predict_noise(10, x).requires_grad

    def test_a_graph_freed_by_a_backward_pass_is_not_served(self, counted: Counted) -> None:
        x = states().requires_grad_()
        kept = counted.problem.predict_noise(10, x)
        kept.sum().backward()
        again = counted.problem.predict_noise(10, x)
        again.sum().backward()
        assert counted.calls == 2 and x.grad is not None

    def test_a_caller_that_writes_into_its_result_harms_nobody(self, counted: Counted) -> None:
        x = states()
        first = counted.problem.predict_noise(10, x)
        kept = first.clone()
        first.zero_()
        assert torch.equal(counted.problem.predict_noise(10, x), kept)

    @pytest.mark.parametrize("grad", [False, True])
    def test_nothing_is_kept_alive(self, counted: Counted, grad: bool) -> None:
        problem = counted.problem
        root = states().requires_grad_(grad)
        gc.collect()
        gc.disable()
        try:
            x = root * 1.0
            estimate = problem.terminal_estimate(10, x)
            problem.transition(10, x, estimate)
            assert counted.calls == 1
            del estimate
            alive = weakref.ref(x)
            entry = problem._last._entries.get(grad)
            held = None if entry is None else entry.value()
            value = None if held is None else weakref.ref(held)
            assert (
                value is None
            ) == grad  # without a graph it is held, with one only the graph holds it
            del entry, held, x
            assert alive() is None
            assert value is None or value() is None
            assert not problem._last._entries
        finally:
            gc.enable()

    def test_copies_do_not_share_answers(self) -> None:
        problem = digits()
        x = states()
        with torch.no_grad():
            wanted = problem.predict_noise(10, x)
            for other in (
                copy.copy(problem),
                copy.deepcopy(problem),
                pickle.loads(pickle.dumps(problem)),
                problem.to("cpu"),
            ):
                assert torch.equal(other.predict_noise(10, x), wanted)
                other._log_snr = other._log_snr + 1.0  # a copy may be given another schedule
                other._last.clear()
                changed = other.predict_noise(10, x)
                assert not torch.equal(changed, wanted)
                assert torch.equal(problem.predict_noise(10, x), wanted)
                assert torch.equal(other.predict_noise(10, x), changed)
            assert (
                problem.to(dtype=torch.float64).predict_noise(10, x.double()).dtype == torch.float64
            )

    def test_a_problem_that_remembers_dies_at_once(self) -> None:
        problem = digits()
        x = states()
        problem.predict_noise(10, x)
        gone = weakref.ref(problem)
        gc.disable()
        try:
            del problem
            assert gone() is None
        finally:
            gc.enable()

    def test_torch_func_and_inference_mode_work(self, counted: Counted) -> None:
        problem = counted.problem
        x = states()

        def twice(s: torch.Tensor) -> torch.Tensor:
            return (problem.predict_noise(10, s) * problem.predict_noise(10, s)).sum()

        leaf = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(twice(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(twice)(x), wanted, rtol=1e-4, atol=1e-5)
        with torch.inference_mode():
            inside = states()
            assert torch.equal(problem.predict_noise(10, inside), problem.predict_noise(10, inside))


def test_a_short_pretraining_writes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    from girsanov.envs.pretraining.digits import pretrain

    path = tmp_path / "new" / "digits.safetensors"
    record = pretrain(
        path, iterations=3, classifier_iterations=3, samples=0, progress=False, command="test"
    )
    assert sorted(p.name for p in path.parent.iterdir()) == ["digits.json", "digits.safetensors"]
    assert json.loads(path.with_suffix(".json").read_text()) == record
    assert digits(checkpoint=path).predict_noise(0, states()).shape == (4, 1, 8, 8)
    first = path.read_bytes()
    pretrain(path, iterations=3, classifier_iterations=3, samples=0, progress=False)
    assert path.read_bytes() == first  # the seed decides
    pretrain(path, seed=1, iterations=3, classifier_iterations=3, samples=0, progress=False)
    assert path.read_bytes() != first


@pytest.mark.slow
def test_the_shipped_quality_figures_are_those_of_the_shipped_checkpoint() -> None:
    from girsanov.envs.pretraining.quality import measure

    claimed = json.loads(CHECKPOINT.with_suffix(".json").read_text())["quality"]
    found = measure(None, load_images(), samples=claimed["samples"], progress=False)
    for name in ("judge_confidence", "frechet_features_to_train", "nearest_train_image"):
        for row in ("real_held_out", "linear/fixed_small"):
            assert found[row][name] == pytest.approx(claimed[row][name], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "x.zip"}, "path must end in .safetensors"),
        ({"path": "x.safetensors", "iterations": 0}, "iterations"),
    ],
)
def test_bad_pretraining_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    from girsanov.envs.pretraining.digits import pretrain

    with pytest.raises(ValueError, match=message):
        pretrain(**arguments)


def test_frechet_and_mmd_know_same_from_different() -> None:
    from girsanov.envs.pretraining.quality import frechet_distance, two_sample_test

    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 400, 3, generator=generator)
    assert frechet_distance(one, two) < 0.1
    assert abs(frechet_distance(one, one + 2.0) - 12.0) < 1e-6  # |shift|^2
    assert (
        abs(
            frechet_distance(one, 3 * one)
            - float((2 * one.double()).T.cov().trace() + (2 * one.double().mean(0)).square().sum())
        )
        < 1e-6
    )
    assert two_sample_test(one, two, generator).p_value > 0.05
    assert two_sample_test(one, two + 0.5, generator).p_value < 0.01


def test_mmd_equals_its_definition() -> None:
    from girsanov.envs.pretraining.quality import two_sample_test

    generator = torch.Generator().manual_seed(0)
    one, two = (
        torch.randn(5, 2, generator=generator).double(),
        torch.randn(7, 2, generator=generator).double(),
    )
    both = torch.cat([one, two])
    squared = torch.cdist(both, both).square()
    width = squared[squared > 0].median()

    def mean(a: torch.Tensor, b: torch.Tensor, same: bool) -> float:
        values = [
            float(torch.exp(-(p - q).square().sum() / width))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    wanted = mean(one, one, True) + mean(two, two, True) - 2 * mean(one, two, False)
    assert abs(two_sample_test(one, two, generator, 3).mmd2 - wanted) < 1e-12


def test_schedules_are_passed_on() -> None:
    problem = digits(steps=7, beta_schedule="squaredcos_cap_v2", variance_type="fixed_large")
    wanted = Schedule.ddpm(7, beta_schedule="squaredcos_cap_v2", variance_type="fixed_large")
    assert problem.horizon == 7
    torch.testing.assert_close(problem.schedule.sigma, wanted.sigma.float())
