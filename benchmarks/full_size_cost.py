"""What one gradient costs at full size, for the pipelines that people fine-tune: FLOPs counted
anywhere; seconds and memory measured on a GPU.

    python benchmarks/full_size_cost.py
    python benchmarks/full_size_cost.py --rows flux-dev --device cuda

The networks have random weights, whose cost is that of the real ones; text encoders are left out,
since prompts are encoded once. Counted: shapes alone, on torch's ``meta`` device, every product and
convolution of a forward and a backward pass; how often each is run is observed on a tiny pipeline
(``stable_diffusion_cost.count_passes``). Measured: one gradient of PI-FT's ``LoraPolicy`` with
gradient checkpointing, bfloat16, sampling included. A row is written as soon as it is there, and
what an earlier run wrote of other rows stays.

Writes ``results/full_size_cost.json``; ``measured`` is null where there was no GPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import resumable as bench
import torch
import tyro
from pipelines import SD_SCHEDULER
from stable_diffusion_cost import count_gradient, count_passes, teraflops

from girsanov.agents import PIFT
from girsanov.agents.lora_control import TARGETS
from girsanov.envs.diffusion.pipelines.prompted import PromptedDiffusion
from girsanov.envs.diffusion.pipelines.registry import FAMILIES
from girsanov.envs.env import ProblemEnv
from girsanov.envs.rewards.images import make_reward
from girsanov.scoreboard.storage.records import provenance, write_json

HERE = bench.RESULTS / "full_size_cost.json"


class Shape(NamedTuple):
    """A pipeline's network and what it is told."""

    pipeline: str  # the class in diffusers
    network: Callable[[], Any]
    latents: int  # channels of the autoencoder's
    words: tuple[int, int]  # tokens of a prompt, and their width
    pooled: int  # width of the pooled prompt, 0 without
    scheduler: dict[str, Any]


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def _xl() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
    )


def _flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


SHAPES = {
    "sd-1.5": Shape("StableDiffusionPipeline", _unet, 4, (77, 768), 0, SD_SCHEDULER),
    "sdxl": Shape("StableDiffusionXLPipeline", _xl, 4, (77, 2048), 1280, SD_SCHEDULER),
    "sd3-medium": Shape(
        "StableDiffusion3Pipeline", _sd3, 16, (77 + 256, 4096), 2048, {"shift": 3.0}
    ),
    "flux-dev": Shape("FluxPipeline", _flux, 16, (512, 4096), 768, {"use_dynamic_shifting": True}),
}


def stand_in(name: str, device: str, dtype: torch.dtype) -> Any:
    """A pipeline of that shape with random weights, whose prompts are random numbers."""
    import diffusers

    shape = SHAPES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = shape.network()
            vae = diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=shape.latents,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )
            words = torch.randn(1, *shape.words)
            pooled = (torch.randn(1, shape.pooled),) if shape.pooled else ()
    finally:
        torch.set_default_dtype(before)
    told = (words, words, *pooled, *pooled)
    flow = "shift" in shape.scheduler or "use_dynamic_shifting" in shape.scheduler
    kind = diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler
    pipeline = type(shape.pipeline, (), {"__call__": getattr(diffusers, shape.pipeline).__call__})()
    pipeline.scheduler, pipeline.vae = kind(**shape.scheduler), vae
    setattr(pipeline, FAMILIES[shape.pipeline].part, network)
    pipeline.device, pipeline.default_sample_size = torch.device(device), 128
    # Flux has no prompt to lead away from: tokens, pooled prompt and places
    pipeline.encode_prompt = lambda *args, **kwargs: (
        (words, *pooled, None) if name == "flux-dev" else told
    )
    return pipeline


def count(name: str) -> dict[str, float]:
    """TFLOP of the network for one image and one prompt, and of the decoder."""
    from peft import LoraConfig

    pipeline = stand_in(name, "meta", torch.float32)
    family = FAMILIES[SHAPES[name].pipeline](pipeline)
    network, vae = family.network_of(pipeline).requires_grad_(False), pipeline.vae
    size = family.size(pipeline, None)
    with torch.device("meta"):
        given = family.encode(pipeline, ["a"], None, 2.0, size).given
        x, time_ = torch.randn(1, family.channels, *size), torch.zeros(1)
    vae.requires_grad_(False)
    found = {"parameters": float(sum(p.numel() for p in network.parameters()))}
    state = x.clone().requires_grad_()
    with torch.no_grad():
        found["unet_forward"] = teraflops(lambda: family.call(network, x, time_, given))
        found["decoder_forward"] = teraflops(lambda: family.decode(vae, x))
    decoded = lambda: family.decode(vae, 1 * state).sum().backward()  # noqa: E731
    found["decoder_forward_backward"] = teraflops(decoded)
    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS)))
    found["lora_parameters"] = float(
        sum(p.numel() for p in network.parameters() if p.requires_grad)
    )
    predicted = lambda: family.call(network, 1 * state, time_, given).sum().backward()  # noqa: E731
    found["lora_forward_backward_with_state"] = teraflops(predicted)
    return found


def measure(problem: Any, paths: int, device: str) -> dict[str, float]:
    """Seconds of one gradient, sampling included, and the most memory held meanwhile."""
    told: Any = {"seed": 0, "device": device, "n_trajectories": paths}
    agent = PIFT("LoraPolicy", ProblemEnv(problem), policy_kwargs={"micro_batch": 1}, **told)
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


def main(
    rows: Sequence[Literal["sd-1.5", "sdxl", "sd3-medium", "flux-dev"]] = tuple(SHAPES),
    paths: int = 10,
    steps: int = 50,
    measured_paths: int = 2,
    measured_steps: int = 10,
    device: Literal["auto", "cuda", "none"] = "auto",
    out: Path = HERE,
) -> None:
    """Count, measure where there is a GPU, write and print.

    Args:
        rows: which shapes.
        paths: of a gradient whose FLOPs are told.
        steps: of a path.
        measured_paths: of the gradient that is timed.
        measured_steps: of its paths; seconds are in proportion, memory is not.
        device: auto is cuda where there is one; none counts only.
        out: the file to write.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for, but torch finds no CUDA device; use auto or none"
        )
    kept = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else {}
    for name in rows:
        told = name == "flux-dev"  # its guidance: asked once
        passes = count_passes("LoraPolicy", 1.0 if told else 2.0)
        networks = count(name)
        row: dict[str, Any] = {"networks_tflop": networks, "passes": passes}
        row |= {"paths": paths, "steps": steps}
        row["pflop_a_gradient"] = count_gradient(networks, passes, paths, steps)
        row["measured"] = kept.get(name, {}).get("measured")
        if device != "none" and torch.cuda.is_available():
            problem = PromptedDiffusion(
                stand_in(name, "cuda", torch.bfloat16),
                "a",
                make_reward("brightness"),
                steps=measured_steps,
                batch_size=1,
                gradient_checkpointing=True,
            ).to("cuda")
            row["measured"] = measure(problem, measured_paths, "cuda")
            del problem
            torch.cuda.empty_cache()
        kept[name] = row
        write_json(out, {"rows": kept, "command": bench.command(), **provenance()})
        print(
            f"{name}: {row['pflop_a_gradient']:.1f} PFLOP; measured: {row['measured']}", flush=True
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
