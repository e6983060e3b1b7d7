"""What one gradient costs at full size, for the pipelines that people fine-tune: FLOPs counted
anywhere; seconds and memory measured on a GPU.

    python benchmarks/full_size_cost.py
    python benchmarks/full_size_cost.py --rows flux-dev --device cuda

The networks of full_size.json have random weights, whose cost is that of the real ones;
text encoders are left out, since prompts are encoded once. Counted: shapes alone, on torch's
``meta`` device, every product and convolution of a forward and a backward pass; how often each is
run is observed on a small pipeline. Measured: one gradient of PI-FT with gradient checkpointing,
bfloat16, sampling included. A gradient of ``LoraValuePolicy`` is one pass over the paths, in
however many steps. A row is written as soon as it is there, and what an earlier run wrote of other
rows stays.

Writes ``results/full_size_cost.json``; ``measured`` is null where there was no GPU.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffusers
import resumable as bench
import torch
import tyro
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from girsanov.agents import PIFT
from girsanov.agents.lora_control import TARGETS
from girsanov.envs.diffusion.pipelines.prompted import PromptedDiffusion
from girsanov.envs.diffusion.pipelines.registry import FAMILIES
from girsanov.envs.diffusion.stable_diffusion import stable_diffusion
from girsanov.envs.env import ProblemEnv
from girsanov.envs.rewards.images import make_reward
from girsanov.scoreboard.storage.records import provenance, write_json

HERE = bench.RESULTS / "full_size_cost.json"
#: Pipelines, their networks and the widths of what they are told, as diffusers writes them.
SHAPES = json.loads((Path(__file__).parent / "full_size.json").read_text())
#: Forms of PI-FT, a reward that suits each, and the fewest paths that it takes at a time.
FORMS = {
    "LoraPolicy": ("brightness", 1),
    "LoraScorePolicy": ("incompressibility", 2),
    "LoraValuePolicy": ("incompressibility", 2),
}


def made(config: bench.Line) -> Any:
    """What diffusers makes of a configuration."""
    settings = {key: value for key, value in config.items() if key != "_class_name"}
    return getattr(diffusers, config["_class_name"])(**settings)


def stand_in(name: str, device: str, dtype: torch.dtype) -> Any:
    """A pipeline of that shape with random weights, whose prompts are random numbers."""
    shape, before = SHAPES[name], torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = made(shape["network"])
            vae = diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=shape["latent_channels"],
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )
            words, pooled = torch.randn(1, *shape["prompt"]), torch.randn(1, shape["pooled_prompt"])
    finally:
        torch.set_default_dtype(before)
    kind = getattr(diffusers, shape["pipeline"])
    pipeline: Any = type(shape["pipeline"], (), {"__call__": kind.__call__})()
    pipeline.scheduler, pipeline.vae = made(shape["scheduler"]), vae
    setattr(pipeline, FAMILIES[shape["pipeline"]].part, network)
    pipeline.device, pipeline.default_sample_size = torch.device(device), 128
    told = (words, words, pooled, pooled) if pooled.numel() else (words, words)
    if name == "flux-dev":  # no prompt to lead away from: tokens, pooled prompt and places
        told = (words, pooled, None)
    pipeline.encode_prompt = lambda *args, **kwargs: told
    return pipeline


# --- counting


def teraflops(run: Callable[[], Any]) -> float:
    """Floating-point operations of products and convolutions in ``run``, in units of 1e12."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def count(name: str) -> dict[str, float]:
    """TFLOP of the network for one image and one prompt, and of the decoder."""
    pipeline = stand_in(name, "meta", torch.float32)
    family = FAMILIES[SHAPES[name]["pipeline"]](pipeline)
    network = family.network_of(pipeline).requires_grad_(False)
    vae, size = pipeline.vae.requires_grad_(False), family.size(pipeline, None)
    with torch.device("meta"):
        given = family.encode(pipeline, ["a"], None, 2.0, size).given
        x, time_ = torch.randn(1, family.channels, *size), torch.zeros(1)
    found = {"parameters": float(sum(p.numel() for p in network.parameters()))}
    state = x.clone().requires_grad_()
    with torch.no_grad():
        found["unet_forward"] = teraflops(lambda: family.call(network, x, time_, given))
        found["decoder_forward"] = teraflops(lambda: family.decode(vae, x))
    decoded = lambda: family.decode(vae, 1 * state).sum().backward()  # noqa: E731
    found["decoder_forward_backward"] = teraflops(decoded)
    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS)))
    adapters = [p.numel() for p in network.parameters() if p.requires_grad]
    predicted = lambda: family.call(network, 1 * state, time_, given).sum().backward()  # noqa: E731
    found["lora_parameters"] = float(sum(adapters))
    found["lora_forward_backward_with_state"] = teraflops(predicted)
    return found


@functools.cache
def count_passes(form: str, guidance_scale: float = 7.5) -> dict[str, float]:
    """Predictions for each path and step, and decodings for each path, in one gradient on the small
    pipeline that comes with the package; with a graph and without.
    """
    paths, steps, reward = 2, 3, make_reward(FORMS[form][0])
    told: Any = {"prompts": "a green six", "steps": steps, "guidance_scale": guidance_scale}
    problem: Any = stable_diffusion(model="latent-digits", reward=reward, **told)
    agent = PIFT(form, ProblemEnv(problem), seed=0, device="cpu", n_trajectories=paths)
    seen = {"unet": 0, "unet_with_graph": 0, "decoder": 0, "decoder_with_graph": 0}
    for name, module in (("unet", problem.network), ("decoder", problem.vae.decoder)):

        def watch(module: Any, given: Any, output: Any, name: str = name) -> None:
            images = getattr(output, "sample", output)
            seen[name + "_with_graph" * images.requires_grad] += len(images)

        module.register_forward_hook(watch)
    agent.learn(paths * steps)
    often = {name: paths if name.startswith("decoder") else paths * steps for name in seen}
    return {name: number / often[name] for name, number in seen.items()}


def count_gradient(
    networks: dict[str, float], passes: dict[str, float], paths: int, steps: int
) -> float:
    """PFLOP of one gradient."""
    costs = {
        "unet": steps * networks["unet_forward"],
        "unet_with_graph": steps * networks["lora_forward_backward_with_state"],
        "decoder": networks["decoder_forward"],
        "decoder_with_graph": networks["decoder_forward_backward"],
    }
    return paths * sum(passes[name] * cost for name, cost in costs.items()) / 1000


# --- measuring


def measure(problem: Any, form: str, paths: int, device: str) -> dict[str, float]:
    """Seconds of one gradient, sampling included, and the most memory held meanwhile."""
    told: Any = {"seed": 0, "device": device, "n_trajectories": paths}
    told["policy_kwargs"] = {"micro_batch": FORMS[form][1]}
    agent = PIFT(form, ProblemEnv(problem), **told)
    with torch.no_grad():  # to warm up
        agent.policy.control(0, problem.initial(1, torch.Generator(device).manual_seed(0)))
    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    agent.learn(paths * problem.horizon)
    if cuda:
        torch.cuda.synchronize()
    found = {"seconds_a_gradient": time.perf_counter() - start}
    found |= {"paths": float(paths), "steps": float(problem.horizon)}
    return {**found, "gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else found


def full_size_problem(name: str, form: str, steps: int) -> PromptedDiffusion:
    """A pipeline of that shape on the GPU, one image at a time."""
    pipeline, reward = stand_in(name, "cuda", torch.bfloat16), make_reward(FORMS[form][0])
    told: Any = {"steps": steps, "batch_size": 1, "gradient_checkpointing": True}
    return PromptedDiffusion(pipeline, "a", reward, **told).to("cuda")


def main(
    rows: tuple[str, ...] = tuple(SHAPES),
    forms: tuple[str, ...] = tuple(FORMS),
    paths: int = 10,
    steps: int = 50,
    measured_paths: int = 2,
    measured_steps: int = 10,
    device: Literal["auto", "cuda", "none"] = "auto",
    out: Path = HERE,
) -> None:
    """Count, measure where there is a GPU, write and print.

    Args:
        rows: which shapes, by their names in full_size.json.
        forms: of PI-FT; all but LoraPolicy take rewards without a gradient.
        paths: of a gradient whose FLOPs are told.
        steps: of a path.
        measured_paths: of the gradient that is timed.
        measured_steps: of its paths; seconds are in proportion, memory is not.
        device: auto is cuda where there is one; none counts only.
        out: the file to write.
    """
    for name, given, known in (("rows", rows, SHAPES), ("forms", forms, FORMS)):
        if not set(given) <= known.keys():
            raise ValueError(f"{name} must be of {', '.join(known)}; got {', '.join(given)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for, but torch finds no CUDA device; use auto or none"
        )
    kept = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else {}
    for name in rows:
        networks = count(name)
        for form in forms:
            # the guidance of Flux is told to it: asked once
            passes = count_passes(form, 1.0 if name == "flux-dev" else 2.0)
            key = name if form == "LoraPolicy" else f"{name}, {form}"
            row: bench.Line = {"networks_tflop": networks, "passes": passes}
            row |= {"paths": paths, "steps": steps}
            row["pflop_a_gradient"] = count_gradient(networks, passes, paths, steps)
            row["measured"] = kept.get(key, {}).get("measured")
            if device != "none" and torch.cuda.is_available():
                problem = full_size_problem(name, form, measured_steps)
                row["measured"] = measure(problem, form, measured_paths, "cuda")
                del problem
                torch.cuda.empty_cache()
            kept[key] = row
            write_json(out, {"rows": kept, "command": bench.command(), **provenance()})
            told = f"{row['pflop_a_gradient']:.1f} PFLOP; measured: {row['measured']}"
            print(f"{key}: {told}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
