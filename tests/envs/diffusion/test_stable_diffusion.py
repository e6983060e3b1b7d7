"""Diffusers pipelines as problems: their steps are diffusers' own, their KL is exact, their
networks stay frozen.
"""

from __future__ import annotations

import copy
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from safetensors.torch import load_file, save_file
from stable_baselines3.common.env_checker import check_env as sb3_check
from torch import Tensor

from girsanov.envs.diffusion.adapters import active, attach, current, detach
from girsanov.envs.diffusion.denoising import DenoisingProblem, Schedule
from girsanov.envs.diffusion.stable_diffusion import StableDiffusion, stable_diffusion
from girsanov.envs.env import problem_of
from girsanov.envs.problem import Problem, rollout

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
STEPS = 10
PROMPT = "A green colored rabbit"
TWO = ("A cat and a dog", "Four wolves in the park")


class Brightness:
    """Mean intensity; a black box if told so."""

    def __init__(self, differentiable: bool = True) -> None:
        self.differentiable, self.seen = differentiable, []

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        assert len(prompts) == len(images) and images.min() >= 0 and images.max() <= 1
        self.seen = list(prompts)
        return images.flatten(1).mean(1)


@pytest.fixture(scope="module")
def pipeline(sd_folder: Path) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)


def rescheduled(pipeline: Any, **config: Any) -> Any:
    """The pipeline with another scheduler configuration; networks are shared."""
    other = copy.copy(pipeline)
    other.scheduler = diffusers.DDIMScheduler(**{**pipeline.scheduler.config, **config})
    return other


def problem_on(pipeline: Any, prompts: Any = PROMPT, **kwargs: Any) -> StableDiffusion:
    return StableDiffusion(
        pipeline, prompts, kwargs.pop("reward", Brightness()), **{"steps": STEPS, **kwargs}
    )


def lora(**kwargs: Any) -> Any:
    return peft.LoraConfig(
        r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], **kwargs
    )


def with_adapter(problem: Any, name: str = "mine", scale: float = 0.3) -> dict[str, Any]:
    """Hang a LoRA into the problem's UNet that is far from zero."""
    parameters = attach(problem.network, name, lora(init_lora_weights="gaussian"))
    for parameter in parameters.values():
        parameter.data.normal_(std=scale)
    return parameters


# --- steps

CHAINS = [
    ("ddim", 1.0, None, {}),
    ("ddim", 0.5, None, {}),
    (
        "ddim",
        1.0,
        None,
        {"prediction_type": "v_prediction", "set_alpha_to_one": True, "steps_offset": 0},
    ),
    ("ddim", 1.0, None, {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}),
    ("ddim", 0.8, None, {"timestep_spacing": "trailing", "steps_offset": 0}),
    ("ddim", 1.0, None, {"timestep_spacing": "linspace", "beta_schedule": "linear"}),
    ("ddpm", 1.0, "fixed_small", {}),
    ("ddpm", 1.0, "fixed_large", {}),
    (
        "ddpm",
        1.0,
        "fixed_small",
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    ("ddpm", 1.0, "fixed_large", {"steps_offset": 0, "prediction_type": "sample"}),
]


def model_output(pipeline: Any, x: Tensor, t: Any, prompts: list[str], scale: float) -> Tensor:
    """What StableDiffusionPipeline gives its scheduler."""
    given, empty = pipeline.encode_prompt(prompts, "cpu", 1, True)
    without, with_ = pipeline.unet(
        torch.cat([x, x]), t, encoder_hidden_states=torch.cat([empty, given])
    ).sample.chunk(2)
    return without + scale * (with_ - without)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "eta", "variance", "config"), CHAINS)
def test_every_step_equals_diffusers(
    pipeline: Any,
    kind: str,
    eta: float,
    variance: str | None,
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = rescheduled(pipeline, **config)
    problem = problem_on(pipeline, scheduler=kind, eta=eta, variance=variance, guidance_scale=3.0)
    cls = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[kind]
    scheduler = cls.from_config(
        pipeline.scheduler.config, **({"variance_type": variance} if variance else {})
    )
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps.tolist() == problem.schedule.timesteps.tolist()
    if config.get("beta_schedule") == "squaredcos_cap_v2":
        # its last step has 1 - alpha_bar = 9e-5, of which diffusers' float32 leaves three digits:
        # give it float64
        scheduler.alphas_cumprod = Schedule.ddpm(
            1000, beta_schedule="squaredcos_cap_v2"
        ).alpha_bar.flip(0)
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    paths = rollout(problem, None, 2, torch.Generator().manual_seed(1))
    for k, t in enumerate(scheduler.timesteps):
        x, noise = paths.states[k], paths.noises[k]
        output = model_output(pipeline, x, t, [PROMPT] * 2, 3.0)
        if kind == "ddim":
            theirs = scheduler.step(output, int(t), x, eta=eta, variance_noise=noise).prev_sample
        else:
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor",
                lambda *a, noise=noise, **kw: noise,
            )
            theirs = scheduler.step(output, int(t), x).prev_sample
        torch.testing.assert_close(
            paths.states[k + 1], theirs.float(), rtol=1e-5, atol=1e-5 * float(theirs.abs().max())
        )


@torch.no_grad()
def test_the_whole_pipeline_gives_the_same_images(pipeline: Any) -> None:
    problem = problem_on(pipeline, guidance_scale=7.5)
    x = problem.initial(1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(5)
    noises = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(STEPS)])
    paths = rollout(problem, None, 1, torch.Generator().manual_seed(0), noises=noises)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=7.5, eta=1.0, latents=x, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    assert theirs.std() > 0.01
    torch.testing.assert_close(problem.images(paths.states[-1]), theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("clip", [True, False])
def test_an_unconditional_pipeline_on_disk_is_an_environment(
    ddpm_folder: Path, kind: str, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = diffusers.DDPMPipeline.from_pretrained(ddpm_folder)
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=clip)
    problem = DenoisingProblem.from_diffusers(pipe, Brightness(), 0.1, steps=STEPS, scheduler=kind)
    problem.validate()
    paths = rollout(problem, None, 2, torch.Generator().manual_seed(1))
    scheduler = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[
        kind
    ].from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    clipped = 0
    for k, t in enumerate(scheduler.timesteps):
        x, noise = paths.states[k], paths.noises[k]
        output = pipe.unet(x, t).sample
        if kind == "ddim":
            step = scheduler.step(
                output, int(t), x, eta=1.0, variance_noise=noise, use_clipped_model_output=True
            )
        else:
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor",
                lambda *a, noise=noise, **kw: noise,
            )
            step = scheduler.step(output, int(t), x)
        clipped += int((step.pred_original_sample.abs() == 1).sum())
        scale = float(step.prev_sample.abs().max())
        torch.testing.assert_close(
            paths.states[k + 1], step.prev_sample, rtol=1e-5, atol=1e-5 * scale
        )
    assert (clipped > 0) == clip
    from_disk = DenoisingProblem.from_diffusers(str(ddpm_folder), Brightness(), 0.1, steps=STEPS)
    assert from_disk.images(paths.states[-1]).shape == (2, 1, 8, 8) and from_disk.clip == 1.0


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_tables_are_float64_rounded_once(pipeline: Any, kind: str) -> None:
    tables = Schedule.from_scheduler(pipeline.scheduler, 50, kind)
    assert tables.alpha_bar.dtype == tables.sigma.dtype == torch.float64
    half = problem_on(pipeline, steps=50, scheduler=kind)
    assert half.schedule.alpha_bar.dtype == torch.float32
    # facts of the 50-step chain: DDIM keeps noise in its last step because set_alpha_to_one is
    # False, DDPM does not
    assert float(tables.sigma[-1]) == pytest.approx(0.0207 if kind == "ddim" else 0.0, abs=1e-4)
    weight = (half._control_slope.square() / 2)[: 50 if kind == "ddim" else 49]
    if kind == "ddim":
        assert float(weight.sum()) == pytest.approx(11.0, abs=0.1) and float(
            weight[48]
        ) == pytest.approx(5.36, abs=0.01)


@torch.no_grad()
def test_steps_without_noise_have_no_control(pipeline: Any) -> None:
    problem = problem_on(pipeline, scheduler="ddpm", variance="fixed_small")
    x = problem.initial(3, torch.Generator().manual_seed(0))
    difference = torch.randn(x.shape)
    assert (
        problem.schedule.sigma[-1] == 0 and not problem.control_of(STEPS - 1, x, difference).any()
    )
    rows = problem.control_of(torch.tensor([STEPS - 1, 0, STEPS - 1]), x, difference)
    assert not rows[0].any() and rows[1].any() and torch.isfinite(rows).all()


# --- control and KL


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_the_control_of_an_adapter_is_its_own_chain(pipeline: Any, kind: str) -> None:
    problem = problem_on(copy.deepcopy(pipeline), scheduler=kind, guidance_scale=2.0)
    with_adapter(problem)
    x, z = torch.randn(2, 3, *problem.state_shape, generator=torch.Generator().manual_seed(2))
    for k in range(STEPS - (kind == "ddpm")):
        adapted = problem.adapted_noise(k, x, "mine")
        a = problem.control_of(k, x, adapted - problem.predict_noise(k, x))
        mean = problem._reading.shrink[k] * x - problem._reading.slope[k] * adapted
        moved = problem.transition(k, x, z + a)
        torch.testing.assert_close(
            moved,
            mean + problem.schedule.sigma[k] * z,
            rtol=1e-4,
            atol=1e-4 * float(mean.abs().max()),
        )


@torch.no_grad()
def test_kl_is_the_monte_carlo_log_ratio(pipeline: Any) -> None:
    """The sum of |a|^2/2 against the explicit log densities of the two chains' Gaussian steps."""
    n, steps = 48, 3
    problem = problem_on(copy.deepcopy(pipeline), guidance_scale=1.5, steps=steps)
    with_adapter(problem, scale=0.2)

    def policy(k: int, x: Tensor) -> Tensor:
        return problem.control_of(
            k, x, problem.adapted_noise(k, x, "mine") - problem.predict_noise(k, x)
        )

    paths = rollout(problem, policy, n, torch.Generator().manual_seed(3))
    ratio = torch.zeros(n, dtype=torch.float64)
    for k in range(steps):
        x, after = paths.states[k], paths.states[k + 1]
        mean, sigma = problem.gaussian_kernel(k, x)
        ours = problem._reading.shrink[k] * x - problem._reading.slope[k] * problem.adapted_noise(
            k, x, "mine"
        )
        laws = [torch.distributions.Normal(m.double(), float(sigma)) for m in (ours, mean)]
        ratio += (
            (laws[0].log_prob(after.double()) - laws[1].log_prob(after.double())).flatten(1).sum(1)
        )
    kl = paths.kl.double()
    assert 0.5 < kl.mean() < 1000
    gap = ratio - kl
    assert abs(gap.mean()) < 3 * gap.std() / math.sqrt(n)
    assert gap.std() > 0.1  # they agree in the mean only
    torch.testing.assert_close(-paths.log_ratios.sum(0).double(), ratio, rtol=1e-3, atol=1e-2)


def test_guidance_is_in_the_pre_trained_model(pipeline: Any) -> None:
    one, strong = (problem_on(pipeline, guidance_scale=w) for w in (1.0, 9.0))
    x = one.initial(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        given, empty = pipeline.encode_prompt([PROMPT] * 2, "cpu", 1, True)
        t = int(one.schedule.timesteps[4])
        with_, without = (pipeline.unet(x, t, text).sample for text in (given, empty))
        assert (with_ - without).abs().max() > 1e-3
        torch.testing.assert_close(one.predict_noise(4, x), with_, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            strong.predict_noise(4, x), without + 9 * (with_ - without), rtol=1e-4, atol=1e-4
        )


# --- adapters


def test_adapters_change_nothing_at_the_start_and_never_disturb_each_other(pipeline: Any) -> None:
    problem = problem_on(copy.deepcopy(pipeline))
    x = problem.initial(2, torch.Generator().manual_seed(0))
    before = problem.predict_noise(3, x)
    first = attach(problem.network, "first", lora(init_lora_weights="gaussian"))
    assert torch.equal(problem.adapted_noise(3, x, "first"), before)  # 0.0 exactly
    second = with_adapter(problem, "second")
    loss = problem.adapted_noise(3, x, "first").square().sum()
    away = problem.adapted_noise(3, x, "second")
    assert not torch.equal(away, before) and torch.equal(
        problem.adapted_noise(3, x, "first"), before
    )
    problem._last.clear()
    assert torch.equal(problem.predict_noise(3, x), before) and current(problem.network) is None
    loss.backward()  # after others were at work
    assert any(p.grad.abs().max() > 0 for p in first.values()) and all(
        p.grad is None for p in second.values()
    )
    everything = [*first.values(), *second.values()]
    assert all(p.requires_grad for p in everything)
    assert sum(p.requires_grad for p in problem.network.parameters()) == len(everything) > 64
    detach(problem.network, "first")
    assert torch.equal(problem.adapted_noise(3, x, "second"), away)
    with (
        pytest.raises(ValueError, match=r"adapter must be one of \['second'\]; got 'first'"),
        active(problem.network, "first"),
    ):
        pass
    with pytest.raises(
        ValueError, match="target_modules must name layers of UNet2DConditionModel; got"
    ):
        attach(problem.network, "third", peft.LoraConfig(target_modules=["nowhere"]))


@pytest.mark.parametrize("adapter", [None, "mine"])
def test_gradient_checkpointing_is_exact_and_keeps_the_adapter(
    pipeline: Any, adapter: str | None
) -> None:
    plain = problem_on(copy.deepcopy(pipeline))
    torch.manual_seed(0)
    with_adapter(plain)
    saving = problem_on(copy.deepcopy(pipeline), gradient_checkpointing=True)
    torch.manual_seed(0)
    with_adapter(saving)
    results = []
    for problem in (plain, saving, pickle.loads(pickle.dumps(saving))):
        x = problem.initial(2, torch.Generator().manual_seed(0)).requires_grad_()
        noise = (
            problem.predict_noise(3, x) if adapter is None else problem.adapted_noise(3, x, adapter)
        )
        if adapter:
            noise = noise + problem.predict_noise(
                3, x
            )  # another state of the flags when the first is computed again
        (by_state,) = torch.autograd.grad(
            noise.square().sum() + 100 * problem.terminal_reward(x).sum(), x
        )
        results.append(by_state)
    assert all(torch.equal(results[0], other) for other in results[1:])


# --- prompts, decoding, memory


@torch.no_grad()
def test_a_set_of_prompts_rides_beneath_the_latents(pipeline: Any) -> None:
    reward = Brightness()
    problem = problem_on(pipeline, TWO, reward=reward)
    assert (
        problem.state_shape == (5, 8, 8)
        and problem.noise_shape == (4, 8, 8)
        and problem.prompts == TWO
    )
    paths = rollout(problem, None, 20, torch.Generator().manual_seed(0))
    index = problem.prompt_index(paths.states[0])
    assert 3 < int(index.sum()) < 17
    assert all(torch.equal(problem.prompt_index(x), index) for x in paths.states)
    assert torch.equal(paths.states[:, :, 4], paths.states[:1, :, 4, :1, :1].expand(11, 20, 8, 8))
    assert (
        reward.seen == [TWO[i] for i in index.tolist()][-len(reward.seen) :]
        and len(reward.seen) == 20 % 16
    )
    for which, prompt in enumerate(TWO):  # each row's chain is that of its own prompt
        alone, rows = problem_on(pipeline, prompt), index == which
        latents = paths.states[:, rows, :4]
        torch.testing.assert_close(
            alone.transition(3, latents[3], paths.noises[3, rows]), latents[4], rtol=1e-4, atol=1e-4
        )
        clean = problem.terminal_estimate(3, paths.states[3])[rows]
        torch.testing.assert_close(
            problem.latents(clean), alone.terminal_estimate(3, latents[3]), rtol=1e-4, atol=1e-3
        )
        assert (problem.prompt_index(clean) == which).all()
    rows = torch.tensor([3] * 10 + [STEPS] * 10)
    ends = problem.terminal_estimate(rows, paths.states[-1])
    assert torch.equal(ends[10:], paths.states[-1, 10:])
    assert problem.gaussian_kernel(3, paths.states[3])[0].shape == (20, 4, 8, 8)


def test_decoding_follows_the_pipeline_and_gradients_flow(pipeline: Any) -> None:
    problem = problem_on(pipeline, batch_size=2)
    x = problem.initial(3, torch.Generator().manual_seed(0)).requires_grad_()
    images = problem.decode(x)
    with torch.no_grad():
        theirs = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
        theirs = pipeline.image_processor.postprocess(theirs, output_type="pt")
    torch.testing.assert_close(images, theirs, rtol=1e-4, atol=1e-5)
    (by_state,) = torch.autograd.grad(problem.terminal_reward(x).sum(), x)
    assert by_state.abs().max() > 0 and not problem.images(x).requires_grad
    assert (
        not problem_on(pipeline, reward=Brightness(differentiable=False))
        .terminal_reward(x)
        .requires_grad
    )


def test_policy_and_transition_share_one_evaluation(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_on(copy.deepcopy(pipeline))
    calls = []
    forward = problem.network.forward
    monkeypatch.setattr(
        problem.network, "forward", lambda *a, **kw: calls.append(len(a[0])) or forward(*a, **kw)
    )
    with torch.no_grad():
        rollout(
            problem,
            lambda k, x: 0.1 * problem.predict_noise(k, x),
            4,
            torch.Generator().manual_seed(0),
        )
    assert calls == [8] * STEPS  # both halves of the guidance in one batch, once a step


def test_networks_are_frozen_and_shared_unless_they_move(pipeline: Any) -> None:
    problem = problem_on(pipeline, TWO)
    assert not any(
        p.requires_grad for net in (problem.network, problem.vae) for p in net.parameters()
    )
    assert not problem.network.training and not hasattr(problem, "text_encoder")
    again = problem.to("cpu")
    assert again is not problem and again.network is problem.network and again.vae is problem.vae
    double = problem.to(dtype=torch.float64)
    assert (
        double.network is not problem.network
        and next(double.network.parameters()).dtype == torch.float64
    )
    assert next(problem.network.parameters()).dtype == torch.float32
    assert double.schedule.timesteps.dtype == torch.int64
    double.validate()
    meta = problem.to("meta")
    assert {p.device.type for p in meta.network.parameters()} == {"meta"} and next(
        problem.network.parameters()
    ).device.type == "cpu"


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_networks_keep_float32_states_and_tables(sd_folder: Path, dtype: str) -> None:
    problem = stable_diffusion(model=sd_folder, reward=Brightness(), steps=4, dtype=dtype)
    assert (
        next(problem.network.parameters()).dtype
        == next(problem.vae.parameters()).dtype
        == getattr(torch, dtype)
    )
    paths = rollout(problem, None, 2, torch.Generator().manual_seed(0))
    assert (
        paths.states.dtype
        == paths.terminal_reward.dtype
        == problem.schedule.alpha_bar.dtype
        == torch.float32
    )
    assert torch.isfinite(paths.states).all() and (1 - problem.schedule.alpha_bar > 0).all()


# --- the door


@pytest.mark.filterwarnings("error::UserWarning:gymnasium")
@pytest.mark.parametrize("prompts", [PROMPT, TWO])
def test_the_checkers_pass_and_gym_makes_it(sd_folder: Path, prompts: Any) -> None:
    env = gym.make(
        "girsanov/StableDiffusion-v0",
        model=sd_folder,
        reward=Brightness(),
        prompts=prompts,
        steps=3,
    )
    problem: Problem = problem_of(env)
    assert (
        isinstance(problem, StableDiffusion)
        and problem.temperature == 0.01
        and problem.horizon == 3
    )
    sb3_check(env)
    gymnasium_check(env.unwrapped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts must be one string or several; got"),
        ({"prompts": [1]}, "prompts must be one string or several; got"),
        ({"guidance_scale": 0.5}, "guidance_scale must be at least 1; got 0.5"),
        (
            {"steps": 0},
            "steps must be between 1 and the scheduler's num_train_timesteps = 1000; got 0",
        ),
        ({"eta": 0.0}, "eta must be above 0 and at most 1; got 0.0"),
        ({"scheduler": "pndm"}, r"scheduler must be one of \['ddim', 'ddpm'\]; got 'pndm'"),
        (
            {"scheduler": "ddpm", "variance": "learned"},
            r"variance must be one of \['fixed_large', 'fixed_small'\]; got 'learned'",
        ),
        ({"temperature": -1}, "temperature must be a positive number; got -1"),
        ({"dtype": "int8"}, "dtype must be one of .*; got 'int8'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"resolution": 17}, "resolution must be a multiple of 4 pixels, or two for .*; got 17"),
        ({"reward": 3}, "reward must be a callable"),
        ({"colour": "green"}, "arguments must be PromptedDiffusion's; got .'colour'."),
    ],
)
def test_bad_arguments_are_named(sd_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stable_diffusion(**{"model": sd_folder, "reward": Brightness(), **arguments})


def test_what_is_missing_is_named(
    sd_folder: Path, ddpm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=(
            r"model must be a local diffusers pipeline .*; got 'some/model'.*hf download some/model"
        ),
    ):
        stable_diffusion(model="some/model", reward=Brightness())
    monkeypatch.delenv("GIRSANOV_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match="has no model_index.json"):
        stable_diffusion(model=tmp_path)  # the reward's weights are missing too, which comes after
    for model in (tmp_path / "none", "./none", str(tmp_path / "none")):
        with pytest.raises(
            ValueError,
            match=f"model must be a folder that holds a diffusers pipeline; there is no .*{model}",
        ):
            stable_diffusion(model=model)
    with pytest.raises(
        ValueError, match="pipeline must be one of .*; got DDPMPipeline: DenoisingProblem.from_dif"
    ):
        StableDiffusion(diffusers.DDPMPipeline.from_pretrained(ddpm_folder), PROMPT, Brightness())
    with pytest.raises(
        ValueError,
        match="pipeline must be unconditional in pixel space, with a UNet2DModel; got Stable",
    ):
        DenoisingProblem.from_diffusers(str(sd_folder), Brightness(), 0.1)
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr must be False"):
        Schedule.from_scheduler(scheduler, 10)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        ValueError, match=r'diffusers pipelines need peft: pip install -e ".*\[sd\]"'
    ):
        stable_diffusion(model=sd_folder, reward=Brightness())


def test_packages_that_do_not_suit_each_other_are_told_in_their_words(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all there: no name is missing."""

    def too_old(name: str) -> Any:
        raise ImportError(f"{name}>=9 is required, but found {name}==1.\nTry: pip install")

    monkeypatch.setattr("girsanov.envs.diffusion.loading.import_module", too_old)
    told = r"diffusers pipelines need versions that suit each other \(diffusers>=9 is required, but"
    with pytest.raises(ValueError, match=told + r" found diffusers==1\.\): pip install"):
        stable_diffusion(model=sd_folder, reward=Brightness())


def test_a_text_encoder_without_its_weights_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    """As when another version of transformers calls them by other names."""
    folder = tmp_path / "pipeline"
    shutil.copytree(sd_folder, folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({f"elsewhere.{name}": x for name, x in weights.items()}, file, {"format": "pt"})
    wanted = rf"all weights of its text_encoder; of .* finds none for {len(weights)} of"
    with pytest.raises(ValueError, match=wanted):
        stable_diffusion(model=folder, reward=Brightness())


# --- what the pipeline already is


@torch.no_grad()
def test_a_network_that_is_told_its_guidance_is_asked_once(pipeline: Any) -> None:
    told = copy.copy(pipeline)
    told.unet = diffusers.UNet2DConditionModel.from_config(
        pipeline.unet.config, time_cond_proj_dim=16
    )
    torch.nn.init.normal_(told.unet.time_embedding.cond_proj.weight)
    problem = problem_on(told, guidance_scale=5.0, steps=4)
    x = problem.initial(1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(5)
    noises = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(4)])
    paths = rollout(problem, None, 1, torch.Generator().manual_seed(0), noises=noises)
    told.set_progress_bar_config(disable=True)
    theirs = told(
        PROMPT, num_inference_steps=4, guidance_scale=5.0, eta=1.0, latents=x, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    torch.testing.assert_close(problem.images(paths.states[-1]), theirs, rtol=1e-4, atol=1e-4)
    other = problem_on(told, guidance_scale=1.0, steps=4)
    assert not torch.allclose(other.predict_noise(1, x), problem.predict_noise(1, x), atol=1e-3)


@pytest.mark.parametrize(
    "name", ["PNDM", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"]
)
def test_pipelines_that_sample_otherwise_say_which_chain_they_are_given(
    pipeline: Any, name: str
) -> None:
    other = copy.copy(pipeline)
    kind = getattr(diffusers, f"{name}Scheduler")
    other.scheduler = kind.from_config(pipeline.scheduler.config)
    said = f"StableDiffusionPipeline samples by {name}Scheduler; the chain is DDIM's with eta = 1"
    with pytest.warns(UserWarning, match=said):
        problem = problem_on(other)
    for ours, theirs in zip(
        problem.schedule,
        Schedule.from_scheduler(pipeline.scheduler, STEPS).to(torch.float32),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_flows_and_others_are_refused_by_name(pipeline: Any) -> None:
    other = copy.copy(pipeline)
    other.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="preserve variance; got FlowMatchEulerDiscreteScheduler"):
        problem_on(other)


def test_a_chain_of_one_step_without_noise_is_refused(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="schedule must have noise in one step at least.*; got 1"):
        problem_on(pipeline, steps=1, scheduler="ddpm")


def test_classes_and_sizes_that_are_not_known_are_named(pipeline: Any) -> None:
    image = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    image |= {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    image |= {"in_channels": 1, "out_channels": 1}
    make = DenoisingProblem.from_diffusers
    for config in ({"num_class_embeds": 10}, {"class_embed_type": "timestep"}):
        unet = diffusers.UNet2DModel(sample_size=8, **image, **config)
        pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
        with pytest.raises(ValueError, match="no class labels; the UNet of DDPMPipeline embeds"):
            make(pipe, Brightness(), 0.1, steps=4)
    pipe = diffusers.DDPMPipeline(diffusers.UNet2DModel(**image), diffusers.DDPMScheduler())
    assert pipe.unet.config.sample_size is None
    with pytest.raises(ValueError, match="resolution must be given, in pixels, for a UNet2DModel"):
        make(pipe, Brightness(), 0.1, steps=4)
    assert make(pipe, Brightness(), 0.1, steps=4, resolution=8).state_shape == (1, 8, 8)
    wide = make(pipe, Brightness(), 0.1, steps=4, resolution=(8, 16))
    assert wide.terminal_reward(wide.initial(2, torch.Generator())).shape == (2,)
    assert wide.state_shape == (1, 8, 16)
    with pytest.raises(ValueError, match="resolution must be a multiple of 1 pixels, or two for"):
        make(pipe, Brightness(), 0.1, steps=4, resolution=(8, 8, 8))
    other = copy.copy(pipeline)
    config = {**pipeline.unet.config, "sample_size": None}
    other.unet = diffusers.UNet2DConditionModel.from_config(config)
    with pytest.raises(ValueError, match="resolution must be given, in pixels, for a UNet2DCond"):
        problem_on(other)
    assert problem_on(other, resolution=16).state_shape == (4, 8, 8)
    other.unet = diffusers.UNet2DConditionModel.from_config(
        pipeline.unet.config, num_class_embeds=3
    )
    with pytest.raises(ValueError, match="the UNet of StableDiffusionPipeline embeds classes"):
        problem_on(other)


def test_a_folder_of_another_pipeline_is_called_by_its_name(ddpm_folder: Path) -> None:
    with pytest.raises(ValueError, match="pipeline must be one of .*; got DDPMPipeline"):
        stable_diffusion(model=ddpm_folder, reward=Brightness())
