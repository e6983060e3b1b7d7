"""Diffusers pipelines built on the spot, tiny or full size: random weights, the real architecture,
nothing to download.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def text_encoder(**sizes: int) -> Any:
    """Of prompts in ``characters``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(bos_token_id=512, eos_token_id=513, pad_token_id=513, **sizes)
    )


def autoencoder(widths: tuple[int, ...], **settings: int) -> Any:
    """An AutoencoderKL, a block for each width."""
    from diffusers import AutoencoderKL

    down, up = (f"{way}Block2D" for way in ("DownEncoder", "UpDecoder"))
    blocks = {"down_block_types": (down,) * len(widths), "up_block_types": (up,) * len(widths)}
    return AutoencoderKL(block_out_channels=widths, **blocks, **settings)


def pipeline_of(**networks: Any) -> Any:
    """A StableDiffusionPipeline of these, with its own scheduler and no merges of characters."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    return StableDiffusionPipeline(
        **networks,
        tokenizer=CLIPTokenizer(characters(), [], model_max_length=77),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """Write a Stable Diffusion pipeline of 8x8 latents and 16x16 images; about 1 MB."""
    from diffusers import UNet2DConditionModel

    heads = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = text_encoder(vocab_size=514, num_hidden_layers=2, **heads)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            norm_num_groups=8,
        )
        vae = autoencoder((8, 16), norm_num_groups=4, sample_size=16)
    pipeline_of(vae=vae, text_encoder=words, unet=unet).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def full_size_networks() -> dict[str, Any]:
    """UNet, autoencoder and text encoder in the sizes of Stable Diffusion v1.5, random weights, on
    torch's default device.
    """
    from diffusers import UNet2DConditionModel

    heads = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    return {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "vae": autoencoder((128, 256, 512, 512), layers_per_block=2, sample_size=512),
        "text_encoder": text_encoder(**heads),
    }


def full_size_pipeline(device: str, dtype: torch.dtype) -> Any:
    """A Stable Diffusion pipeline of full size with random weights, made where it runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            networks = full_size_networks()
    finally:
        torch.set_default_dtype(before)
    return pipeline_of(**networks)
