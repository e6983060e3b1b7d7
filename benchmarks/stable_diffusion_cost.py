"""What fine-tuning Stable Diffusion v1.5 costs at full size: FLOPs counted anywhere; seconds and
memory measured on a GPU.

    python benchmarks/stable_diffusion_cost.py

Counted: the networks are made on torch's ``meta`` device, which knows shapes but does no
arithmetic, and every product and convolution of a forward and a backward pass is added up; how
often each is run in one gradient of PI-FT is observed on a tiny pipeline. Measured: gradients of 10
paths of 50 steps by PI-FT on a pipeline of random weights, whose cost is that of the real ones, for
brightness (``LoraPolicy``) and JPEG size (the black-box forms), one micro-batch at a time. A
gradient of ``LoraValuePolicy`` is one pass over the paths, in however many steps.

Writes ``results/stable_diffusion_cost.json``; ``measured`` is null where there was no GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import resumable as bench
import torch
import tyro
from pipelines import build_stable_diffusion, full_size_networks, full_size_pipeline
from torch.utils.flop_counter import FlopCounterMode

from girsanov.agents import PIFT
from girsanov.agents.lora_control import TARGETS
from girsanov.envs.diffusion.stable_diffusion import stable_diffusion
from girsanov.envs.env import ProblemEnv
from girsanov.envs.rewards.images import make_reward
from girsanov.scoreboard.storage.records import provenance, write_json

HERE = bench.RESULTS / "stable_diffusion_cost.json"
#: Form of PI-FT and a reward that suits it.
FORMS = {
    "LoraPolicy": "brightness",
    "LoraScorePolicy": "incompressibility",
    "LoraValuePolicy": "incompressibility",
}


def teraflops(run: Callable[[], Any]) -> float:
    """Floating-point operations of products and convolutions in ``run``, in units of 1e12."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def count_networks() -> dict[str, float]:
    """TFLOP of each network for one image at 512x512; of the UNet for one noise prediction without
    guidance.
    """
    from peft import LoraConfig

    with torch.device("meta"):
        networks = full_size_networks()
        x, words, time_ = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768), torch.zeros(1)
    unet, vae = networks["unet"].requires_grad_(False), networks["vae"].requires_grad_(False)
    found = {"unet_parameters": float(sum(p.numel() for p in unet.parameters()))}
    state = x.clone().requires_grad_()
    with torch.no_grad():
        found["unet_forward"] = teraflops(lambda: unet(x, time_, words))
        found["decoder_forward"] = teraflops(lambda: vae.decode(x))
    decoded = lambda: vae.decode(1 * state).sample.sum().backward()  # noqa: E731
    found["decoder_forward_backward"] = teraflops(decoded)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS)))
    found["lora_parameters"] = float(sum(p.numel() for p in unet.parameters() if p.requires_grad))
    for name, given in (("", x), ("_with_state", state)):
        predicted = lambda y=given: unet(1 * y, time_, words).sample.sum().backward()  # noqa: E731
        found[f"lora_forward_backward{name}"] = teraflops(predicted)
    return found


def count_passes(
    form: str, guidance_scale: float = 7.5, paths: int = 2, steps: int = 3
) -> dict[str, float]:
    """Noise predictions for each path and step, and decodings for each path, in one gradient; with
    a graph and without.
    """
    with tempfile.TemporaryDirectory() as folder:
        problem: Any = stable_diffusion(
            model=build_stable_diffusion(Path(folder)),
            reward=make_reward(FORMS[form]),
            steps=steps,
            guidance_scale=guidance_scale,
        )
    agent = PIFT(form, ProblemEnv(problem), seed=0, device="cpu", n_trajectories=paths)
    seen = {"unet": 0, "unet_with_graph": 0, "decoder": 0, "decoder_with_graph": 0}

    def watch(name: str, module: torch.nn.Module) -> None:
        def count(module: Any, given: Any, output: Any) -> None:
            made = getattr(output, "sample", output)
            seen[name + "_with_graph" * made.requires_grad] += len(made)

        module.register_forward_hook(count)

    watch("unet", problem.network)
    watch("decoder", problem.vae.decoder)
    agent.learn(paths * steps)
    often = {name: paths if name.startswith("decoder") else paths * steps for name in seen}
    return {name: count / often[name] for name, count in seen.items()}


def count_gradient(
    networks: dict[str, float], passes: dict[str, float], paths: int, steps: int
) -> float:
    """PFLOP of one gradient."""
    costs = {
        "unet": networks["unet_forward"],
        "unet_with_graph": networks["lora_forward_backward_with_state"],
        "decoder": networks["decoder_forward"],
        "decoder_with_graph": networks["decoder_forward_backward"],
    }
    often = {name: steps if name.startswith("unet") else 1 for name in costs}
    return paths * sum(often[name] * passes[name] * cost for name, cost in costs.items()) / 1000


def measure(
    form: str, pipeline: Any, paths: int, steps: int, gradients: int, device: str
) -> dict[str, float]:
    """Seconds of a gradient and the most memory held meanwhile, after one gradient to warm up;
    medians of ``gradients``.
    """
    problem = stable_diffusion(
        model=pipeline,
        reward=make_reward(FORMS[form]),
        steps=steps,
        dtype=pipeline.unet.dtype,
        gradient_checkpointing=True,
    )
    kwargs = {"micro_batch": max(2, paths // 5)}
    told: Any = {"seed": 0, "device": device, "n_trajectories": paths, "policy_kwargs": kwargs}
    agent = PIFT(form, ProblemEnv(problem.to(device)), **told)
    cuda = device == "cuda"
    seconds = []
    for number in range(gradients + 1):
        if cuda and number == 1:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        agent.learn(paths * steps, reset_num_timesteps=number == 0)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    middle = sorted(seconds[1:])[gradients // 2]
    found = {"seconds_a_gradient": middle, "micro_batch": float(kwargs["micro_batch"])}
    return {**found, "gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else found


def main(
    paths: int = 10,
    steps: int = 50,
    gradients: int = 3,
    device: Literal["auto", "cuda", "none"] = "auto",
    out: Path = HERE,
) -> None:
    """Count, measure where there is a GPU, write and print.

    Args:
        paths: of a gradient.
        steps: of a path.
        gradients: timed ones of each form.
        device: auto is cuda where there is one; none counts only.
        out: the file to write.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for, but torch finds no CUDA device; use auto or none"
        )
    networks = count_networks()
    forms: dict[str, Any] = {}
    for form in FORMS:
        passes = count_passes(form)
        cost = count_gradient(networks, passes, paths, steps)
        forms[form] = {"passes": passes, "pflop_a_gradient": cost}
        print(f"{form}: {cost:.2f} PFLOP a gradient of {paths} paths of {steps} steps", flush=True)
    if device != "none" and torch.cuda.is_available():
        pipeline = full_size_pipeline("cuda", torch.bfloat16)
        for form in FORMS:
            forms[form]["measured"] = measure(form, pipeline, paths, steps, gradients, "cuda")
            print(f"{form}: {forms[form]['measured']}", flush=True)
    made = {"command": bench.command(), **provenance()}
    write_json(out, {"networks_tflop": networks, "forms": forms, **made})
    print(out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
