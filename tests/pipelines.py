"""A tiny diffusers pipeline: random weights, the real architecture, nothing to download."""

from __future__ import annotations

from pathlib import Path

import torch

from girsanov.envs.pretraining.latent_digits import make_scheduler

#: Stable Diffusion v1's own scheduler configuration.
SD_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def characters() -> dict[str, int]:
    """CLIP's vocabulary without merges: 256 byte characters, the same at a word's end, and two
    specials.
    """
    # GPT-2's habit: bytes that print stand for themselves
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    symbols = [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]
    ends = [symbol + "</w>" for symbol in symbols]
    entries = [*symbols, *ends, "<|startoftext|>", "<|endoftext|>"]
    return {entry: i for i, entry in enumerate(entries)}


def build_stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """Write a Stable Diffusion pipeline of 8x8 latents and 16x16 images; about 1 MB."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    specials = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    sizes = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(CLIPTextConfig(**specials, **sizes, **layers))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        unet=unet,
        tokenizer=CLIPTokenizer(characters(), [], model_max_length=77),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
