"""PI-FT with LoRA on a tiny Stable Diffusion pipeline: exact at the start, exact gradients, exact
on disk.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from memory import Peak
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from girsanov.agents import PIFT
from girsanov.envs import make_problem
from girsanov.envs.diffusion.adapters import active, purge, tuner_layers
from girsanov.envs.diffusion.denoising import DenoisingProblem
from girsanov.envs.diffusion.stable_diffusion import StableDiffusion, stable_diffusion
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Trajectories, rollout
from girsanov.scoreboard.registry import find_agent

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
SD = "girsanov/StableDiffusion-v0"
STEPS = 3


class Brightness:
    """Mean intensity; a black box if told so."""

    def __init__(self, differentiable: bool = True) -> None:
        self.differentiable = differentiable

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        return images.flatten(1).mean(1)


@pytest.fixture(scope="module")
def pipeline(sd_folder: Path) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)


@pytest.fixture
def problem(sd_folder: Path) -> StableDiffusion:
    return stable_diffusion(model=sd_folder, reward=Brightness(), steps=STEPS, guidance_scale=2.0)


def agent(problem: Any, policy: str = "LoraPolicy", seed: int = 0, **kwargs: Any) -> PIFT:
    return PIFT(
        policy,
        ProblemEnv(problem, 100.0),
        seed=seed,
        device="cpu",
        **{"n_trajectories": 4, **kwargs},
    )


def parameters(model: PIFT) -> list[Tensor]:
    return [p.detach().clone() for p in model.policy.network.parameters()]


def far_from_zero(model: PIFT, scale: float = 0.2) -> PIFT:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.policy.network.parameters():
        parameter.data.normal_(std=scale, generator=generator)
    return model


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(left, right, strict=True))


def test_the_users_four_lines(sd_folder: Path, tmp_path: Path) -> None:
    env = gym.make(SD, model=sd_folder, reward=Brightness(), steps=STEPS)
    model = PIFT("LoraPolicy", env, seed=0, device="cpu", n_trajectories=2).learn(2 * 2 * STEPS)
    model.policy.save_lora(tmp_path)
    assert model.reward_queries == 4 and model.n_updates == 2
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()


def test_at_the_start_nothing_changes_at_all(problem: StableDiffusion) -> None:
    model = agent(problem)
    x = problem.initial(3, torch.Generator().manual_seed(0))
    for k in (0, torch.tensor([0, 2, 1])):
        assert not model.policy.control(k, x).any()
    assert any(
        p.abs().max() > 0 for p in model.policy.network.parameters()
    )  # A is drawn, B is zero
    defaults = PIFT("LoraPolicy", problem, device="cpu")
    assert (defaults.n_trajectories, defaults.learning_rate, defaults.anneal) == (10, 3e-4, False)


def test_only_the_adapter_is_the_policys(problem: StableDiffusion) -> None:
    model = agent(problem)
    mine = set(model.policy.parameters())
    assert mine == {p for p in problem.network.parameters() if p.requires_grad}
    assert {tuple(sorted(p.shape))[0] for p in mine} == {4}  # the rank
    before = {
        name: value.clone()
        for name, value in problem.network.state_dict().items()
        if "lora" not in name
    }
    start = parameters(model)
    model.learn(2 * 4 * STEPS)
    after = problem.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and not same(
        start, parameters(model)
    )


@pytest.mark.parametrize(
    ("prompts", "arguments"),
    [
        ("a", {}),
        ("a", {"gradient_checkpointing": True}),
        (("a", "b"), {"scheduler": "ddpm"}),  # whose last step has no noise
    ],
)
def test_the_pathwise_gradient_is_that_of_the_whole_chain(
    sd_folder: Path, prompts: Any, arguments: dict[str, Any]
) -> None:
    reward = Brightness()
    problem = stable_diffusion(
        model=sd_folder,
        prompts=prompts,
        reward=reward,
        steps=STEPS,
        guidance_scale=2.0,
        dtype="float64",
        **arguments,
    )
    model = far_from_zero(agent(problem))
    paths = rollout(problem, model.policy.control, 3, torch.Generator().manual_seed(0))
    weights, beta = list(model.policy.network.parameters()), problem.temperature
    assert paths.states.dtype == weights[0].dtype == torch.float64
    # the sweep's return has -beta a.W, of mean zero, in it, but leaves out its derivative by the
    # step's own parameters
    price = (paths.controls * (0.5 * paths.controls + paths.noises)).sum()
    own = sum(
        (model.policy.control(k, x.detach()) * noise).sum()
        for k, (x, noise) in enumerate(zip(paths.states[:-1], paths.noises, strict=True))
    )
    naive = torch.autograd.grad(
        (paths.terminal_reward.sum() - beta * price + beta * own) / 3, weights
    )
    swept = model.policy.gradient(Trajectories(*(part.detach() for part in paths)))
    scale = max(float(part.abs().max()) for part in naive)
    assert scale > 1e-4
    for ours, theirs in zip(swept, naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7 * scale)


def test_micro_batches_add_up(problem: StableDiffusion) -> None:
    whole, parts = (
        agent(problem, n_trajectories=5),
        agent(problem, n_trajectories=5, policy_kwargs={"micro_batch": 2}),
    )
    far_from_zero(whole), far_from_zero(parts)
    assert parts.policy.parts(5) == [2, 2, 1] and whole.policy.parts(5) == [5]
    seen = []
    collect = parts.collect
    parts.collect = lambda *args: seen.append(collect(*args)) or seen[-1]  # type: ignore[method-assign]
    split = parts.policy.sampled_gradient(parts, 5)
    states, noises, controls, running, terminal = zip(*seen, strict=True)
    joined = Trajectories(
        *(torch.cat(pieces, 1) for pieces in (states, noises, controls, running)),
        torch.cat(terminal),
    )
    for ours, theirs in zip(split, whole.policy.gradient(joined), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert [p.states.shape[1] for p in seen] == [2, 2, 1] and parts.reward_queries == 5
    score = agent(problem, "LoraScorePolicy", n_trajectories=5, policy_kwargs={"micro_batch": 2})
    with pytest.raises(
        ValueError,
        match=(
            "micro_batch must leave at least 2 paths in each part of 5 for LoraScorePolicy; got 2"
        ),
    ):
        score.learn(1)


@pytest.mark.parametrize("prompts", ["a", ("a", "b")])
def test_the_fitted_gradient_is_that_of_the_fitted_values(sd_folder: Path, prompts: Any) -> None:
    reward = Brightness(differentiable=False)
    problem = stable_diffusion(
        model=sd_folder,
        prompts=prompts,
        reward=reward,
        steps=STEPS,
        dtype="float64",
        temperature=1e-3,
    )
    model = far_from_zero(agent(problem, "LoraValuePolicy"))
    policy: Any = model.policy
    with torch.no_grad():
        paths = rollout(problem, policy.control, 60, torch.Generator().manual_seed(0))
    policy.remember(paths)
    values, weights, total = (
        policy.values(),
        list(policy.network.parameters()),
        torch.zeros((), dtype=torch.float64),
    )
    assert values.explained.max() > 0
    for k, (x, noise) in enumerate(zip(paths.states[:-1], paths.noises, strict=True)):
        a = policy.control(k, x)
        which = problem.prompt_index(x)
        for z in (a + noise, a - noise):
            ahead = problem.latents(problem.transition(k, x, z)).flatten(1)
            total = (
                total
                + 0.5 * values(k, ahead, which).sum()
                - 0.25 * problem.temperature * a.square().sum()
            )
    naive = torch.autograd.grad(total / 60, weights)
    for ours, theirs in zip(policy.gradient(paths), naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9 * float(theirs.abs().max()))


def test_the_fitted_gradient_is_near_the_pathwise_one() -> None:
    problem = stable_diffusion(
        model="latent-digits",
        prompts="a yellow three",
        reward=Brightness(),
        steps=STEPS,
        temperature=1e-9,
    )
    exact, fitted = (
        far_from_zero(agent(problem, policy), 0.05) for policy in ("LoraPolicy", "LoraValuePolicy")
    )
    with torch.no_grad():
        paths = rollout(problem, exact.policy.control, 200, torch.Generator().manual_seed(0))
    fitted.policy.remember(paths)
    ours, theirs = (
        torch.cat([p.flatten() for p in m.policy.gradient(paths)]) for m in (fitted, exact)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=0.25)


def test_one_pass_takes_every_transition_once(problem: StableDiffusion) -> None:
    settings = {"memory": 10, "gradient_steps": 4, "micro_batch": 3}
    model = agent(problem, "LoraValuePolicy", n_trajectories=5, policy_kwargs=settings)
    seen: list[tuple[Tensor, Tensor]] = []
    slopes = model.policy._slopes
    model.policy._slopes = lambda k, x, *rest: seen.append((k, x)) or slopes(k, x, *rest)
    model.learn(5 * STEPS)
    assert max(len(k) for k, _ in seen) <= 3 and model.n_updates == 4
    rows = {(int(k), float(x[0, 0, 0])) for part in seen for k, x in zip(*part, strict=True)}
    assert len(rows) == 5 * STEPS and {k for k, _ in rows} == set(range(STEPS))
    states = model.policy.recent[:, :5]
    again = agent(
        problem, "LoraValuePolicy", n_trajectories=5, policy_kwargs={**settings, "memory": 3}
    ).learn(5 * STEPS)
    torch.testing.assert_close(
        again.policy.recent, states[:, [3, 4, 2]]
    )  # the last three, each in its place


@pytest.mark.parametrize("steps", [(2, 7), pytest.param((20, 100), marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_steps(
    sd_folder: Path, steps: tuple[int, int]
) -> None:
    peak = []
    for n in steps:
        problem = stable_diffusion(model=sd_folder, reward=Brightness(), steps=n)
        model = agent(problem)
        with torch.no_grad():
            paths = rollout(problem, model.policy.control, 1, torch.Generator().manual_seed(0))
        gc.collect()
        with Peak() as mode:
            model.policy.gradient(paths)
        peak.append(
            mode.peak - sum(part.nbytes for part in paths)
        )  # the paths themselves do grow, by 2 kB a step
    assert peak[0] > 1e6
    assert peak[1] < 1.01 * peak[0]


class Stop(BaseCallback):
    """Save at the end of every round, and die in the middle of one."""

    def __init__(self, path: Path, die_after: int) -> None:
        super().__init__()
        self.path, self.die_after = path, die_after

    def _on_step(self) -> bool:
        if self.num_timesteps > self.die_after:
            raise KeyboardInterrupt
        return True

    def _on_rollout_end(self) -> None:
        self.model.save(self.path)


@pytest.mark.parametrize("policy", ["LoraPolicy", "LoraScorePolicy", "LoraValuePolicy"])
def test_killed_and_resumed_is_uninterrupted_to_the_bit(
    sd_folder: Path, policy: str, tmp_path: Path
) -> None:
    reward = Brightness(policy == "LoraPolicy")

    def fresh() -> ProblemEnv:
        return ProblemEnv(stable_diffusion(model=sd_folder, reward=reward, steps=STEPS))

    adapter = {"rank": 2, "lora_alpha": 5}
    if policy == "LoraValuePolicy":
        adapter |= {"memory": 3, "gradient_steps": 1}  # the third round overwrites
    kwargs = {"n_trajectories": 2, "policy_kwargs": adapter, "device": "cpu", "seed": 1}
    round_ = 2 * STEPS
    whole = PIFT(policy, fresh(), **kwargs).learn(3 * round_)
    with pytest.raises(KeyboardInterrupt):
        PIFT(policy, fresh(), **kwargs).learn(
            3 * round_, callback=Stop(tmp_path / "m.zip", int(1.5 * round_))
        )
    again = PIFT.load(tmp_path / "m.zip", env=fresh(), device="cpu")
    assert again.n_updates == 1 and again.num_timesteps == round_
    assert (
        tmp_path / "m.zip"
    ).stat().st_size < 300_000  # adapters and Adam's moments, not the network
    again.learn(2 * round_, reset_num_timesteps=False)
    assert same(parameters(whole), parameters(again)) and whole.n_updates == again.n_updates == 3
    x = whole.problem.initial(2, torch.Generator().manual_seed(0))
    assert whole.policy.control(1, x).abs().max() > 0
    assert torch.equal(whole.policy.control(1, x), again.policy.control(1, x))
    moments = [
        [m.optimizer.state[p]["exp_avg"] for p in m.policy.network.parameters()]
        for m in (whole, again)
    ]
    assert same(*moments)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [None, 11.0])
def test_the_lora_loads_in_plain_diffusers_bit_for_bit(
    problem: StableDiffusion, sd_folder: Path, alpha: float | None, tmp_path: Path
) -> None:
    model = far_from_zero(agent(problem, policy_kwargs={"rank": 3, "lora_alpha": alpha}))
    agent(problem)  # another adapter in the same network
    model.policy.save_lora(tmp_path)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    x = problem.initial(2, torch.Generator().manual_seed(0))
    text, t = problem._given[0].expand(2, -1, -1), int(problem.schedule.timesteps[1])
    before = pipe.unet(x, t, text).sample
    pipe.load_lora_weights(tmp_path)
    theirs = pipe.unet(x, t, text).sample
    with active(problem.network, model.policy.adapter):
        ours = problem.network(x, t, text).sample
    assert torch.equal(ours, theirs) and (theirs - before).abs().max() > 1e-3
    (config,) = pipe.unet.peft_config.values()
    assert (config.r, config.lora_alpha) == (3, alpha or 3)


def test_an_adapter_outlives_its_policy_until_nobody_walks_through_the_network(
    problem: StableDiffusion,
) -> None:
    """The collector may run in the middle of ``state_dict`` or ``named_modules``."""
    model, other = agent(problem), agent(problem)
    gone, kept = model.policy.adapter, other.policy.adapter
    holders = [layer.lora_A for layer in tuner_layers(problem.network).values()]
    del model
    seen = []
    for name in holders[0]:  # raises if it changes its size
        gc.collect()
        seen.append(name)
    assert seen == [gone, kept]
    x = problem.initial(1, torch.Generator().manual_seed(0))
    problem.adapted_noise(0, x, kept)
    assert all(list(holder) == [kept] for holder in holders)
    assert list(problem.network.peft_config) == [kept]
    with pytest.raises(ValueError, match=rf"adapter must be one of \['{kept}'\]; got '{gone}'"):
        problem.adapted_noise(0, x, gone)


def test_agents_on_one_problem_leave_each_other_alone(problem: StableDiffusion) -> None:
    alone = agent(problem, seed=5, n_trajectories=2).learn(2 * 2 * STEPS)
    wanted = parameters(alone)
    del alone
    gc.collect()
    purge(problem.network)
    assert not any(
        layer.lora_A for layer in tuner_layers(problem.network).values()
    )  # gone with its policy
    first, other = (
        agent(problem, seed=5, n_trajectories=2),
        agent(problem, seed=6, n_trajectories=2),
    )
    assert (
        first.problem.network is other.problem.network is problem.network
        and first.policy.adapter != other.policy.adapter
    )
    for _ in range(2):
        first.learn(1, reset_num_timesteps=False)
        other.learn(1, reset_num_timesteps=False)
    assert same(parameters(first), wanted) and not same(parameters(other), wanted)


def test_the_adapter_moves_to_another_problem(problem: StableDiffusion, sd_folder: Path) -> None:
    model = far_from_zero(agent(problem))
    x = problem.initial(2, torch.Generator().manual_seed(0))
    before = model.policy.control(1, x)
    other = stable_diffusion(
        model=sd_folder, reward=Brightness(), steps=STEPS, guidance_scale=2.0, temperature=3.0
    )
    model.set_env(ProblemEnv(other, 100.0))
    assert torch.equal(model.policy.control(1, x), before)
    assert not any(layer.lora_A for layer in tuner_layers(problem.network).values())
    start = parameters(model)
    model.learn(1)
    assert model.problem.temperature == 3.0 and not same(parameters(model), start)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_are_float32_over_a_half_precision_network(sd_folder: Path, dtype: str) -> None:
    problem = stable_diffusion(model=sd_folder, reward=Brightness(), steps=2, dtype=dtype)
    model = agent(problem, n_trajectories=2)
    start = parameters(model)
    x = problem.initial(2, torch.Generator().manual_seed(0))
    assert not model.policy.control(0, x).any()
    model.learn(2 * 2 * 2)
    assert {p.dtype for p in model.policy.network.parameters()} == {torch.float32}
    assert problem.network.conv_in.weight.dtype == getattr(torch, dtype)
    moved = [p - q for p, q in zip(parameters(model), start, strict=True)]
    assert (
        all(torch.isfinite(p).all() for p in moved) and max(float(p.abs().max()) for p in moved) > 0
    )


def test_an_unconditional_pipeline_takes_adapters_too(ddpm_folder: Path) -> None:
    problem = DenoisingProblem.from_diffusers(str(ddpm_folder), Brightness(), 0.01, steps=STEPS)
    model = agent(problem)
    x = problem.initial(2, torch.Generator().manual_seed(0))
    assert not model.policy.control(1, x).any()
    model.learn(2 * 4 * STEPS)
    assert model.policy.control(1, x).abs().max() > 0


@torch.no_grad()
def test_the_lora_of_an_unconditional_pipeline_loads_in_plain_peft(
    ddpm_folder: Path, tmp_path: Path
) -> None:
    problem = DenoisingProblem.from_diffusers(str(ddpm_folder), Brightness(), 0.01, steps=STEPS)
    model = far_from_zero(agent(problem, policy_kwargs={"rank": 3, "lora_alpha": 11.0}))
    model.policy.save_lora(tmp_path)
    x = problem.initial(2, torch.Generator().manual_seed(0))
    with active(problem.network, model.policy.adapter):
        ours = problem.network(x, 5).sample
    unet = diffusers.DDPMPipeline.from_pretrained(ddpm_folder).unet
    before = unet(x, 5).sample
    theirs = peft.PeftModel.from_pretrained(unet, tmp_path)(x, 5).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (theirs - before).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_that_the_owner_loaded_is_part_of_the_pre_trained_model(
    problem: StableDiffusion, sd_folder: Path, fused: bool, tmp_path: Path
) -> None:
    style = far_from_zero(agent(problem, policy_kwargs={"rank": 2}))
    style.policy.save_lora(tmp_path)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    plain = pipe.unet(*(inputs := (torch.randn(2, 4, 8, 8), 5, torch.randn(2, 77, 32)))).sample
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    if fused:
        pipe.fuse_lora()
    styled = pipe.unet(*inputs).sample
    assert (styled - plain).abs().max() > 1e-3
    own = StableDiffusion(pipe, "a cat", Brightness(), steps=STEPS, guidance_scale=1.0)
    x = own.initial(2, torch.Generator().manual_seed(0))
    given, t = own._given[0].expand(2, -1, -1), int(own.schedule.timesteps[1])
    wanted = pipe.unet(x, t, given).sample
    assert torch.equal(own.predict_noise(1, x), wanted)
    model = agent(own)
    adapter = model.policy.adapter
    assert torch.equal(own.adapted_noise(1, x, adapter), wanted)  # it adds exactly zero
    assert not any("style" in name for name, _ in model.policy.network.named_parameters())
    far_from_zero(model)
    moved = own.adapted_noise(1, x, adapter)
    assert (moved - wanted).abs().max() > 1e-3
    own._last.clear()
    assert torch.equal(own.predict_noise(1, x), wanted)
    assert torch.equal(pipe.unet(*inputs).sample, styled)  # the owner's pipeline is as it was
    assert pipe.get_active_adapters() == ["style"]
    style_weights = [p for n, p in pipe.unet.named_parameters() if ".style." in n]
    assert style_weights and not any(p.requires_grad for p in style_weights)
    assert all(p.requires_grad for p in model.policy.network.parameters())
    # with an adapter that adds nothing, the style alone
    for layer in tuner_layers(pipe.unet).values():
        layer.lora_B[adapter].weight.zero_()
    assert torch.equal(own.adapted_noise(1, x, adapter), wanted)


def test_what_the_command_line_takes_by_default(problem: StableDiffusion) -> None:
    make = find_agent("pi-ft").make
    env = ProblemEnv(problem)
    assert make(env, seed=0, device="cpu").policy_name == "LoraPolicy"
    assert (
        make(env, seed=0, device="cpu", policy="LoraScorePolicy").policy_name == "LoraScorePolicy"
    )
    problem.reward = Brightness(differentiable=False)
    assert make(env, seed=0, device="cpu").policy_name == "LoraValuePolicy"
    mixture = ProblemEnv(make_problem("girsanov/GaussianMixture-v0"))
    assert make(mixture, seed=0, device="cpu").policy_name == "MlpPolicy"
    assert (
        make(mixture, seed=0, device="cpu", policy="PathwisePolicy").policy_name == "PathwisePolicy"
    )
    assert (
        find_agent("pde").make(mixture, seed=0, device="cpu", policy="RadialPolicy").policy_name
        == "RadialPolicy"
    )


def test_bad_arguments_are_named(problem: StableDiffusion) -> None:
    with pytest.raises(
        ValueError,
        match=(
            "'LoraPolicy' must have a problem made of a diffusers pipeline.*; got GaussianMixture"
        ),
    ):
        PIFT("LoraPolicy", make_problem("girsanov/GaussianMixture-v0"), device="cpu")
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1; got 0"):
        agent(problem, policy_kwargs={"rank": 0})
    with pytest.raises(ValueError, match="micro_batch must be a whole number of at least 2; got 1"):
        agent(problem, "LoraScorePolicy", policy_kwargs={"micro_batch": 1})
    for name, least in (("memory", 2), ("gradient_steps", 1)):
        with pytest.raises(
            ValueError, match=f"{name} must be a whole number of at least {least}; got 0"
        ):
            agent(problem, "LoraValuePolicy", policy_kwargs={name: 0})
    with pytest.raises(
        ValueError, match="target_modules must name layers of UNet2DConditionModel; got"
    ):
        agent(problem, policy_kwargs={"target_modules": ["nowhere"]})
    problem.reward = Brightness(differentiable=False)
    with pytest.raises(
        ValueError, match="needs the gradient of the reward; PromptedDiffusion.terminal_reward"
    ):
        agent(problem).learn(1)


@pytest.mark.slow
def test_the_objective_rises(sd_folder: Path) -> None:
    """On common noises. Random networks hardly move their brightness, so nats are cheap here."""
    problem = stable_diffusion(
        model=sd_folder, reward=Brightness(), steps=STEPS, guidance_scale=2.0, temperature=1e-6
    )
    model = agent(problem, n_trajectories=4, learning_rate=1e-2)
    model.learn(8 * 4 * STEPS)
    value = []
    for policy in (None, model.policy.control):
        with torch.no_grad():
            paths = rollout(problem, policy, 32, torch.Generator().manual_seed(9))
        value.append(paths.reward - problem.temperature * paths.kl)
    gain = value[1] - value[0]
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


WORKER = """
import json, os, sys, torch
torch.set_num_threads(1)
from girsanov.agents import PIFT
from girsanov.envs.env import ProblemEnv
from girsanov.envs.image_rewards import Brightness
from girsanov.envs.stable_diffusion import stable_diffusion

folder, out, policy = sys.argv[1:]
problem = stable_diffusion(model=folder, reward=Brightness(), steps=3, guidance_scale=2.0)
model = PIFT(policy, ProblemEnv(problem), seed=0, device="cpu", n_trajectories=4)
record = {"paths": [], "gradients": [], "weights": []}
gradient, ascend = model.policy.gradient, model.ascend


def watch(paths):
    record["paths"].append(tuple(paths))
    record["weights"].append([p.detach().clone() for p in model.policy.network.parameters()])
    return gradient(paths)


model.policy.gradient = watch
model.ascend = lambda g: record["gradients"].append(g) or ascend(g)
model.learn(2 * 4 * 3)
record["counts"] = (model.num_timesteps, model.reward_queries)
record["end"] = [p.detach() for p in model.policy.network.parameters()]
record["seen"] = getattr(model.policy, "recent", torch.zeros(()))
torch.save(record, f"{out}/{os.environ.get('RANK', 'one')}.pt")
"""


def two_processes(policy: str, folder: Path, out: Path) -> list[dict[str, Any]]:
    """What each of two processes that train together recorded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(out), policy],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=500)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], json.dumps(errors)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow  # two processes that import everything
def test_two_processes_take_the_step_of_one_on_the_joined_paths(
    sd_folder: Path, tmp_path: Path
) -> None:
    first, second = two_processes("LoraPolicy", sd_folder, tmp_path)
    assert first["counts"] == second["counts"] == (24, 8)  # all paths, of both
    assert same(first["end"], second["end"])
    problem = stable_diffusion(model=sd_folder, reward=Brightness(), steps=3, guidance_scale=2.0)
    policy = PIFT("LoraPolicy", ProblemEnv(problem), seed=0, device="cpu").policy
    for i in range(2):
        left, right = (Trajectories(*r["paths"][i]) for r in (first, second))
        assert not torch.equal(left.noises, right.noises)
        joined = Trajectories(
            *(torch.cat([p, q], 1) for p, q in zip(left[:4], right[:4], strict=True)),
            torch.cat([left[4], right[4]]),
        )
        for parameter, value in zip(policy.network.parameters(), first["weights"][i], strict=True):
            parameter.data.copy_(value)
        for ours, theirs, other in zip(
            policy.gradient(joined), first["gradients"][i], second["gradients"][i], strict=True
        ):
            assert torch.equal(theirs, other)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.slow  # two processes that import everything
def test_two_processes_fit_one_value_function_and_share_its_pass(
    sd_folder: Path, tmp_path: Path
) -> None:
    first, second = two_processes("LoraValuePolicy", sd_folder, tmp_path)
    assert first["counts"] == second["counts"] == (24, 8)
    assert torch.equal(first["seen"], second["seen"])
    paths = first["seen"][0, :8].flatten(1)
    assert torch.cdist(paths, paths).fill_diagonal_(1.0).min() > 0.1  # none twice
    assert len(first["gradients"]) == 2 * 6 and same(first["end"], second["end"])
    assert max(float(p.abs().max()) for p in first["end"]) > 0
