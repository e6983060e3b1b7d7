"""Every family of pipelines: its steps and its images are diffusers' own, its KL is exact, its
gradients are those of the whole chain, its adapters load in plain diffusers.
"""

from __future__ import annotations

import copy
import functools
import gc
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import Peak
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from tiny_pipelines import KINDS, build  # noqa: E402

from girsanov.agents import PIFT  # noqa: E402
from girsanov.envs.diffusion.pipelines.prompted import PromptedDiffusion  # noqa: E402
from girsanov.envs.diffusion.pipelines.registry import FAMILIES  # noqa: E402
from girsanov.envs.diffusion.stable_diffusion import stable_diffusion  # noqa: E402
from girsanov.envs.env import ProblemEnv  # noqa: E402
from girsanov.envs.problem import Trajectories, rollout  # noqa: E402

STEPS = 4
EACH = pytest.mark.parametrize("kind", sorted(KINDS))
FLOWS = ("sd3", "flux")
TOLD = ("flux", "latent-consistency")
LONG = ("sd3", "flux", "pixart")  #: their prompts are hundreds of tokens, if not asked for fewer
SHORT = {"max_sequence_length": 8}


class Contrast:
    """A smooth reward that differs from image to image."""

    differentiable = True

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        return images.flatten(1).std(1)


@functools.cache
def pipeline_of(kind: str, double: bool = False, **config: Any) -> Any:
    """Shared; whoever hangs something into it takes a copy."""
    made = build(kind, **config)
    return made.to(torch.float64) if double else made


def own_copy(kind: str) -> Any:
    """A pipeline whose network is nobody else's."""
    shared = pipeline_of(kind)
    mine = copy.copy(shared)
    part = "unet" if hasattr(mine, "unet") else "transformer"
    setattr(mine, part, copy.deepcopy(getattr(shared, part)))
    return mine


def prompts_of(kind: str) -> tuple[str, ...]:
    return ("golden retriever", "3") if kind == "dit" else ("a cat", "a dog, and a fox")


def problem_on(pipeline: Any, kind: str, prompts: Any = None, **kwargs: Any) -> PromptedDiffusion:
    told = prompts_of(kind)[0] if prompts is None else prompts
    given = {"steps": STEPS, "prompt_kwargs": SHORT if kind in LONG else None, **kwargs}
    return PromptedDiffusion(pipeline, told, given.pop("reward", Contrast()), **given)


def run_pipeline(
    pipeline: Any, kind: str, latents: Tensor, guidance: float, negative: str | None
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """What its scheduler was given and gave, step by step, and its images."""
    own, seen = copy.copy(pipeline), []
    own.scheduler = copy.deepcopy(pipeline.scheduler)
    step = own.scheduler.step

    @functools.wraps(step)
    def recorded(output: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = step(output, t, sample, *args, **kwargs)
        after = found[0] if isinstance(found, tuple) else found.prev_sample
        seen.append((output, sample, after))
        return found

    own.scheduler.step = recorded
    told: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance}
    told |= {"output_type": "pt", "generator": torch.Generator().manual_seed(5)}
    if kind == "dit":
        # it draws its own latents
        images = own(class_labels=[207, 3], **told).images
        return [tuple(t[: len(latents)] for t in row) for row in seen], images
    height, width = (2 * side for side in latents.shape[-2:])
    told |= {"height": height, "width": width, "prompt": list(prompts_of(kind))}
    told |= SHORT if kind in LONG else {}
    if kind == "pixart":
        told["use_resolution_binning"] = False
    if negative is not None:
        told["negative_prompt"] = [negative] * 2 if kind != "pixart" else negative
    if kind != "flux":
        return seen, own(latents=latents, **told).images
    sizes = (latents.shape[2], latents.shape[3])
    packed = own._pack_latents(latents, len(latents), latents.shape[1], *sizes)
    images = own(latents=packed, **told).images
    factor = own.vae_scale_factor
    unpacked = [tuple(own._unpack_latents(t, height, width, factor) for t in row) for row in seen]
    return unpacked, images


@torch.no_grad()
@EACH
@pytest.mark.parametrize("double", [False, True])
def test_steps_and_images_are_the_pipelines_own(kind: str, double: bool) -> None:
    """Two prompts, a negative one, an image that is not square; eta is next to nothing."""
    pipeline = pipeline_of(kind, double)
    negative = "blurry" if kind in ("xl", "sd3", "pixart") else None
    resolution = (16, 16) if kind == "dit" else (16, 24)
    problem = problem_on(
        pipeline,
        kind,
        prompts_of(kind),
        guidance_scale=3.0,
        negative_prompt=negative,
        resolution=resolution,
        eta=1e-12,
    )
    dtype = torch.float64 if double else torch.float32
    assert problem.noise_shape == (4, *(side // 2 for side in resolution))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, *problem.noise_shape, generator=generator, dtype=dtype)
    seen, images = run_pipeline(pipeline, kind, x, 3.0, negative)
    number = torch.tensor([0.0, 1.0], dtype=dtype)[:, None, None, None]
    plane = number.expand(2, 1, *x.shape[2:])
    if kind != "dit":  # which draws its latents from this generator
        generator = torch.Generator().manual_seed(5)
    noises = torch.zeros(STEPS, *x.shape, dtype=dtype)
    if kind == "latent-consistency":
        for k in range(STEPS - 1):
            noises[k] = torch.randn(x.shape, generator=generator, dtype=dtype)
    start = torch.cat([x, plane], 1)
    paths = rollout(problem, None, 2, generator, start=start, noises=noises)
    assert len(seen) == STEPS
    for k, (output, sample, after) in enumerate(seen):
        state = torch.cat([sample.to(dtype), plane], 1)
        ours = problem.predict(k, state)
        wanted = output[:, :4]
        near = {"rtol": 1e-10, "atol": 1e-10} if double else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(ours, wanted, **near)
        step = problem.transition(k, state, noises[k])[:, :4]
        near = {"rtol": 1e-5, "atol": 1e-5 * float(after.abs().max())}
        torch.testing.assert_close(step, after.to(dtype), **near)
        if kind in FLOWS and double:  # whose scheduler computes in float32
            times = torch.cat([problem.schedule.noise, torch.zeros(1, dtype=dtype)])
            exact = state[:, :4] + (times[k + 1] - times[k]) * wanted
            torch.testing.assert_close(step, exact, rtol=1e-10, atol=1e-10)
    assert images.std() > 0.01 and (images[0] - images[1]).abs().max() > 0.01
    torch.testing.assert_close(
        problem.images(paths.states[-1]), images.to(dtype), rtol=1e-4, atol=1e-4
    )


VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sd3", {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}, {}),  # 3.5 medium
    ("flux", {"guidance_embeds": False}, {}),  # schnell
    ("pixart", {"name": "PixArtAlphaPipeline", "sample_size": 128}, {}),  # told its size
    ("sd3", {}, {"guidance_scale": 1.0}),
    ("xl", {"time_cond_proj_dim": 8}, {}),
]


@torch.no_grad()
@pytest.mark.parametrize("kind, config, change", VARIANTS)
def test_variants_are_told_what_their_pipelines_tell(
    kind: str, config: dict[str, Any], change: dict[str, Any]
) -> None:
    pipeline = build(kind, **config)
    guidance = change.get("guidance_scale", 3.0)
    problem = problem_on(
        pipeline, kind, prompts_of(kind), guidance_scale=guidance, resolution=(16, 24), eta=1e-12
    )
    x = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    seen, _ = run_pipeline(pipeline, kind, x, guidance, None)
    plane = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 8, 12)
    for k, (output, sample, _) in enumerate(seen[:2]):
        ours = problem.predict(k, torch.cat([sample, plane], 1))
        torch.testing.assert_close(ours, output[:, :4], rtol=1e-5, atol=1e-5)


def agent(problem: Any, **kwargs: Any) -> PIFT:
    return PIFT(
        "LoraPolicy",
        ProblemEnv(problem, 100.0),
        **{"seed": 0, "device": "cpu", "n_trajectories": 2, **kwargs},
    )


def far_from_zero(model: PIFT, scale: float = 0.2) -> PIFT:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.policy.network.parameters():
        parameter.data.normal_(std=scale, generator=generator)
    return model


@torch.no_grad()
@EACH
def test_kl_is_the_monte_carlo_log_ratio(kind: str) -> None:
    """The sum of |a|^2/2 against the explicit log densities of the two chains' Gaussian steps."""
    n, eta = 48, 0.7
    problem = problem_on(own_copy(kind), kind, steps=3, guidance_scale=1.5, eta=eta, batch_size=64)
    policy = far_from_zero(agent(problem)).policy
    first = rollout(problem, policy.control, 4, torch.Generator().manual_seed(2)).kl.mean()
    for name, weight in policy.network.named_parameters():
        weight.mul_((5 / first).sqrt() if "lora_B" in name else 1.0)  # some nats
    paths = rollout(problem, policy.control, n, torch.Generator().manual_seed(3))
    ratio = torch.zeros(n, dtype=torch.float64)
    reading, scale = problem._reading, problem.schedule.sigma
    for k in range(problem.horizon):
        if scale[k] == 0:
            continue
        x, after = paths.states[k], paths.states[k + 1]
        mean, sigma = problem.gaussian_kernel(k, x)
        steered = reading.shrink[k] * x - reading.slope[k] * problem.adapted(k, x, policy.adapter)
        ours, theirs = (
            torch.distributions.Normal(m.double(), float(sigma)).log_prob(after.double())
            for m in (steered, mean)
        )
        ratio += (ours - theirs).flatten(1).sum(1)
    kl = paths.kl.double()
    gap = ratio - kl
    assert 0.5 < kl.mean() < 100 and gap.std() > 0.3  # they agree in the mean only
    assert abs(gap.mean()) < 3 * gap.std() / math.sqrt(n)


@pytest.mark.parametrize(
    "kind",
    [  # UNets are those of Stable Diffusion, whose test is in test_lora
        *("sd3", "flux", "pixart", "dit"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("xl", "latent-consistency")),
    ],
)
def test_the_pathwise_gradient_is_that_of_the_whole_chain(kind: str) -> None:
    pipeline = copy.copy(pipeline_of(kind, double=True))
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    setattr(pipeline, part, copy.deepcopy(getattr(pipeline, part)))
    problem = problem_on(pipeline, kind, steps=3, guidance_scale=2.0, gradient_checkpointing=True)
    model = far_from_zero(agent(problem))
    paths = rollout(problem, model.policy.control, 2, torch.Generator().manual_seed(0))
    weights, beta = list(model.policy.network.parameters()), problem.temperature
    assert paths.states.dtype == weights[0].dtype == torch.float64
    price = (paths.controls * (0.5 * paths.controls + paths.noises)).sum()
    own = sum(
        (model.policy.control(k, x.detach()) * noise).sum()
        for k, (x, noise) in enumerate(zip(paths.states[:-1], paths.noises, strict=True))
    )
    total = (paths.terminal_reward.sum() - beta * price + beta * own) / 2
    naive = torch.autograd.grad(total, weights, allow_unused=True)
    swept = model.policy.gradient(Trajectories(*(part.detach() for part in paths)))
    scale = max(float(part.abs().max()) for part in naive if part is not None)
    assert scale > 1e-5
    for ours, theirs in zip(swept, naive, strict=True):
        wanted = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7 * scale)


@pytest.mark.parametrize("kind", ["sd3", pytest.param("flux", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_steps(kind: str) -> None:
    peak = []
    for n in (2, 7):
        problem = problem_on(own_copy(kind), kind, steps=n)
        model = agent(problem)
        with torch.no_grad():
            paths = rollout(problem, model.policy.control, 1, torch.Generator().manual_seed(0))
        gc.collect()
        with Peak() as mode:
            model.policy.gradient(paths)
        peak.append(mode.peak - sum(part.nbytes for part in paths))
    assert peak[0] > 1e5
    assert peak[1] < 1.05 * peak[0]


@torch.no_grad()
@EACH
def test_saved_loaded_adapted_and_saved(kind: str, tmp_path: Path) -> None:
    """A folder gives the same chain; adapters add exactly zero at the start, and what is saved of
    them gives the same network in plain diffusers, to the bit.
    """
    import peft

    pipeline = pipeline_of(kind)
    pipeline.save_pretrained(tmp_path / "pipeline")
    told: dict[str, Any] = {"prompts": "207" if kind == "dit" else "a cat", "resolution": 16}
    told["prompt_kwargs"] = SHORT if kind in LONG else None
    folder = tmp_path / "pipeline"
    problem = stable_diffusion(model=folder, reward=Contrast(), steps=STEPS, **told)
    before = problem_on(pipeline, kind, **told)
    x = problem.initial(2, torch.Generator().manual_seed(0))
    assert torch.equal(problem.predict(1, x), before.predict(1, x))
    again = pickle.loads(pickle.dumps(before))
    assert torch.equal(again.predict(1, x), before.predict(1, x))

    model = agent(problem, policy_kwargs={"rank": 2, "lora_alpha": 5})
    assert not model.policy.control(1, x).any()
    ours = far_from_zero(model).problem.adapted(1, x, model.policy.adapter)
    assert (ours - before.predict(1, x)).abs().max() > 1e-3
    model.policy.save_lora(tmp_path / "lora")
    plain = own_copy(kind)
    if hasattr(plain, "load_lora_weights"):
        assert problem.lora_reader == (type(plain).__name__, problem.family.part)
        plain.load_lora_weights(tmp_path / "lora")
    else:
        assert problem.lora_reader is None and kind in ("pixart", "dit")
        plain.transformer = peft.PeftModel.from_pretrained(
            plain.transformer, tmp_path / "lora"
        ).base_model.model
    theirs = problem_on(plain, kind, **told)
    assert torch.equal(theirs.predict(1, x), ours)


@torch.no_grad()
@EACH
def test_half_networks_keep_float32_states(kind: str) -> None:
    pipeline = copy.deepcopy(pipeline_of(kind)).to(torch.bfloat16)
    problem = problem_on(pipeline, kind, prompts_of(kind))
    assert problem.network.dtype == torch.bfloat16
    paths = rollout(problem, None, 2, torch.Generator().manual_seed(0))
    assert paths.states.dtype == paths.terminal_reward.dtype == torch.float32
    assert torch.isfinite(paths.states).all()
    policy = agent(problem).policy
    assert all(p.dtype == torch.float32 for p in policy.network.parameters())
    exact = problem_on(pipeline_of(kind), kind, prompts_of(kind))
    x = paths.states[1]
    both = torch.stack([problem.predict(1, x).flatten(), exact.predict(1, x).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.9


# --- tables


def test_defaults_are_the_pipelines_own() -> None:
    wanted = {"xl": (50, 5.0), "latent-consistency": (4, 8.5), "sd3": (28, 7.0)}
    wanted |= {"flux": (28, 3.5), "pixart": (20, 4.5), "dit": (50, 4.0)}
    for kind, (steps, guidance) in wanted.items():
        problem = PromptedDiffusion(pipeline_of(kind), prompts_of(kind)[0], Contrast())
        assert (problem.horizon, problem.guidance_scale) == (steps, guidance)
        assert (problem._empty is None) == (kind in TOLD)
        assert (problem.prediction == "velocity") == (kind in FLOWS)


def test_the_shift_follows_the_size() -> None:
    pipeline = pipeline_of("flux")
    small, large = (problem_on(pipeline, "flux", resolution=side) for side in (16, 64))
    assert (large.schedule.noise[1:] > small.schedule.noise[1:]).all()


def test_a_flow_takes_flow_grpos_step_too() -> None:
    problem = problem_on(pipeline_of("sd3"), "sd3", scheduler="flow-grpo", noise_level=0.5)
    other = problem_on(pipeline_of("sd3"), "sd3")
    assert torch.equal(problem.schedule.noise, other.schedule.noise)
    t, s = problem.schedule.noise[1:3].tolist()
    wanted = 0.5 * math.sqrt(t / (1 - t) * (t - s))
    assert float(problem.schedule.sigma[1]) == pytest.approx(wanted, rel=1e-5)


# --- the door


def refused(message: str, pipeline: Any, kind: str = "xl", **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=message):
        problem_on(pipeline, kind, **kwargs)


def test_bad_arguments_are_named() -> None:
    xl, sd3, flux, dit = (pipeline_of(kind) for kind in ("xl", "sd3", "flux", "dit"))
    refused(
        "negative_prompt must be absent for FluxPipeline; got 'fog'", flux, negative_prompt="fog"
    )
    refused(
        "resolution must be a multiple of 4 pixels and at most 32, or two for .*; got 36",
        sd3,
        resolution=36,
    )
    refused(r"a multiple of 4 pixels, or two for .*; got \(16, 18\)", xl, resolution=(16, 18))
    refused("variance must be absent for StableDiffusion3Pipeline", sd3, variance="fixed_small")
    flow = "scheduler must be 'posterior' or 'flow-grpo' for FluxPipeline, a flow; got 'ddim'"
    refused(flow, flux, scheduler="ddim")
    refused("LCMScheduler for kind 'lcm'; got DDIMScheduler", xl, scheduler="lcm")
    refused("classes of the pipeline, .* numbers below 1000; got 'a cat'", dit, prompts="a cat")
    refused("guidance_scale must be at least 1; got 0.5", sd3, guidance_scale=0.5)


def test_other_pipelines_are_called_by_their_names() -> None:
    class Newest:
        """A pipeline that nobody knows."""

    refused(r"pipeline must be one of \['DiTPipeline', .*\]; got Newest", Newest())
    other = copy.copy(pipeline_of("sd3"))
    from diffusers import FlowMatchHeunDiscreteScheduler

    other.scheduler = FlowMatchHeunDiscreteScheduler()
    refused("FlowMatchEulerDiscreteScheduler; got FlowMatchHeunDiscreteScheduler", other)
    painter = copy.copy(pipeline_of("xl"))
    painter.unet = build("xl", in_channels=9).unet
    refused("plain latents; StableDiffusionXLPipeline has a UNet2DConditionModel of 9", painter)
    narrow = copy.copy(pipeline_of("latent-consistency"))
    narrow.unet = pipeline_of("xl").unet
    refused("prompts alone; the UNet of LatentConsistencyModelPipeline has addition", narrow)


def test_a_class_that_grew_out_of_a_known_one_is_served_as_it() -> None:
    pipeline = pipeline_of("sd3")
    mine = copy.copy(pipeline)
    mine.__class__ = type("MyPipeline", (type(pipeline),), {})
    problem = problem_on(mine, "sd3")
    assert problem.lora_reader == ("StableDiffusion3Pipeline", "transformer")
    assert set(FAMILIES) >= {type(pipeline_of(kind)).__name__ for kind in KINDS}


def test_a_compiled_network_is_taken_as_it_was_before() -> None:
    pipeline = copy.copy(pipeline_of("sd3"))
    plain = pipeline.transformer
    pipeline.transformer = torch.compile(plain)
    problem = problem_on(pipeline, "sd3")
    assert problem.network is plain
    assert not agent(problem).policy.control(0, problem.initial(1, torch.Generator())).any()


def test_a_chain_of_one_step_that_keeps_its_sample_is_refused() -> None:
    refused("noise in one step at least", pipeline_of("latent-consistency"), steps=1)
    scheduler = copy.deepcopy(pipeline_of("latent-consistency").scheduler)
    scheduler.register_to_config(clip_sample=True)
    other = copy.copy(pipeline_of("latent-consistency"))
    other.scheduler = scheduler
    refused("scheduler must not have clip_sample; got clip_sample=True", other)
