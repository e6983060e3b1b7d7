"""Pipelines of diffusers, one of each kind, in the smallest sizes: 8x8 latents, 16x16 images,
random weights; made in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pipelines import SD_SCHEDULER, characters

WIDTH = 16


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(characters(), [], model_max_length=20)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("▁", -2.0)]
    pieces += [(chr(number), -3.0) for number in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=20)


def _clip(projected: bool, width: int = WIDTH) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 2 * WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=98, **sizes))


def _vae(**config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        **config,
    )


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        **{"cross_attention_dim": WIDTH, **config},
    )


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SD_SCHEDULER)


def xl(**config: Any) -> Any:
    """Stable Diffusion XL."""
    from diffusers import StableDiffusionXLPipeline

    unet = {
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    }
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip(False),
        text_encoder_2=_clip(True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=_unet(**unet, **config),
        scheduler=_ddim(),
        add_watermarker=False,
    )


def latent_consistency(**config: Any) -> Any:
    """A latent consistency model."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    scheduler = {key: value for key, value in SD_SCHEDULER.items() if key != "steps_offset"}
    return LatentConsistencyModelPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=_clip(False),
        tokenizer=_clip_tokenizer(),
        unet=_unet(time_cond_proj_dim=8, **config),
        scheduler=LCMScheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd3(**config: Any) -> Any:
    """Stable Diffusion 3; with ``dual_attention_layers`` and ``qk_norm`` 3.5."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=WIDTH,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        **config,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        text_encoder=_clip(True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def flux(**config: Any) -> Any:
    """Flux dev; with ``guidance_embeds=False`` schnell."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )

    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        **{"guidance_embeds": True, **config},
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
        text_encoder=_clip(False),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    )
    pipeline.default_sample_size = 8
    return pipeline


def pixart(name: str = "PixArtSigmaPipeline", **config: Any) -> Any:
    """PixArt."""
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        attention_head_dim=8,
        num_attention_heads=3,  # a third of the width for each of time, size and aspect
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=24,
        caption_channels=2 * WIDTH,
        patch_size=2,
        **{"sample_size": 8, **config},
    )
    return getattr(diffusers, name)(
        transformer=transformer,
        scheduler=_ddim(),
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
    )


def dit(**config: Any) -> Any:
    """Class-conditional DiT."""
    from diffusers import DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        **config,
    )
    labels = {3: "hammerhead, shark", 207: "golden retriever"}
    return DiTPipeline(transformer, _vae(scaling_factor=0.18215), _ddim(), id2label=labels)


KINDS: dict[str, Callable[..., Any]] = {
    "xl": xl,
    "latent-consistency": latent_consistency,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "dit": dit,
}


def build(kind: str, seed: int = 0, scale: float = 2.0, **config: Any) -> Any:
    """A pipeline; the weights of its network are ``scale`` times the usual ones, so that what it
    says depends on all that it is told.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = KINDS[kind](**config)
        network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(scale)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as they are when they are loaded
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
