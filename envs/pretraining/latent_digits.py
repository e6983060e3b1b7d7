"""Train the small text-to-image model of coloured digits, part by part, and save it as a
``StableDiffusionPipeline`` folder.

The layout is Stable Diffusion's, three orders of magnitude smaller: an ``AutoencoderKL`` from
3x16x16 to latents 8x4x4, a ``CLIPTextModel`` over whole words, a ``UNet2DConditionModel`` with
cross-attention, Stable Diffusion's noise schedule, prompts dropped at random for classifier-free
guidance. Plain diffusers loads the folder.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.latent_digits import COLOURS, DIGITS, IMAGE_SIZE, paint
from .digit_images import load_images
from .latent_quality import measure
from .painted_latents import SENTENCES, PaintedLatents
from .record import Clock, write_record
from .training_loop import anneal, decay, descend, steps

#: Tokens of a prompt, the two at its ends included.
PROMPT_LENGTH = 6


def make_tokenizer() -> Any:
    """A CLIPTokenizer whose merges build the words of the prompts, so that each is one token."""
    from transformers import CLIPTokenizer

    with (
        tempfile.TemporaryDirectory() as folder
    ):  # files are what every version of transformers takes
        return CLIPTokenizer(*write_vocabulary(Path(folder)), model_max_length=PROMPT_LENGTH)


def write_vocabulary(folder: Path) -> tuple[str, str]:
    """Write ``vocab.json`` and ``merges.txt``; returns where they are."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in sorted((*COLOURS, *DIGITS), key=len, reverse=True):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:  # from the left
            merges.append((parts[0], parts[1]))
            parts = ["".join(parts[:2]), *parts[2:]]
            tokens.append(parts[0])
    # the first merge in the list wins: long words come first, lest "red" cut "green" into pieces
    words = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merged = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merged.write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in dict.fromkeys(merges)), ""])
    )
    return str(vocabulary), str(merged)


def make_text_encoder(tokenizer: Any, width: int = 48, layers: int = 2) -> Any:
    """A CLIPTextModel of that width, at random."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_autoencoder(latent_channels: int = 8) -> Any:
    """An AutoencoderKL from 3x16x16 to 4x4 latents, at random."""
    from diffusers import AutoencoderKL

    widths = (8, 16, 32)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,  # train_autoencoder makes the latents standard
    )


def make_denoiser(latent_channels: int = 8, width: int = 48, prompt_width: int = 48) -> Any:
    """A UNet2DConditionModel on 4x4 latents: one resolution, attention to the prompt in every
    block.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=4,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(width,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=prompt_width,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_scheduler() -> Any:
    """Stable Diffusion's schedule as a DDIMScheduler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def prompt_tokens(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids ``(n, PROMPT_LENGTH)``, padded as StableDiffusionPipeline does."""
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=PROMPT_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def train_autoencoder(
    images: Tensor,
    *,
    iterations: int = 1200,
    batch: int = 32,
    learning_rate: float = 4e-3,
    kl_weight: float = 1e-3,
    average: float = 0.998,
    progress: bool = True,
) -> Any:
    """An autoencoder of grey digits ``(n, 1, 8, 8)`` painted at random, with standard latents."""
    model = make_autoencoder()
    shadow = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-4)
    for i in steps(iterations, "autoencoder", progress):
        anneal(optimizer, learning_rate, i, iterations)
        target = 2 * _painted(images, batch) - 1
        posterior = model.encode(target).latent_dist
        guess = model.decode(posterior.sample()).sample
        loss = (
            F.l1_loss(guess, target)
            + F.mse_loss(guess, target)
            + kl_weight * posterior.kl().mean() / target[0].numel()
        )
        descend(loss, model, optimizer, shadow, decay(average, i))
    shadow.eval().requires_grad_(False)
    standardise(shadow, 2 * _painted(images, 2048) - 1)
    return shadow


@torch.no_grad()
def standardise(model: Any, images: Tensor) -> None:
    """Fold the latents' mean and deviation by channel into the 1x1 convolutions beside them;
    decoding changes in nothing.
    """
    latents = model.encode(images).latent_dist.sample()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inward, outward = model.quant_conv, model.post_quant_conv
    means, log_variances = slice(0, len(mean)), slice(len(mean), None)
    inward.weight[means] /= std[:, None, None, None]
    inward.bias[means] = (inward.bias[means] - mean) / std
    inward.bias[log_variances] -= 2 * std.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= std[:, None, None]


def train_denoiser(
    images: Tensor,
    labels: Tensor,
    autoencoder: Any,
    tokenizer: Any,
    *,
    iterations: int = 2500,
    batch: int = 64,
    learning_rate: float = 2e-3,
    average: float = 0.999,
    prompt_dropout: float = 0.1,
    train_text: bool = True,
    progress: bool = True,
) -> tuple[Any, Any]:
    """UNet and text encoder, with exponentially averaged weights, by Stable Diffusion's loss: the
    noise's square error.
    """
    text = make_text_encoder(tokenizer)
    text.requires_grad_(train_text)
    both: Any = nn.ModuleDict({"unet": make_denoiser(), "text": text})
    shadow = copy.deepcopy(both)
    scheduler = make_scheduler()
    painted = PaintedLatents(images, labels, autoencoder)
    # every sentence is encoded at every iteration: there are few of them
    tokens = prompt_tokens(tokenizer, SENTENCES)
    optimizer = torch.optim.AdamW(
        [p for p in both.parameters() if p.requires_grad],
        learning_rate,
        (0.9, 0.99),
        weight_decay=1e-4,
    )
    for i in steps(iterations, "denoiser", progress):
        anneal(optimizer, learning_rate, i, iterations)
        latents, said = painted.draw(batch, prompt_dropout)
        level = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noise = torch.randn_like(latents)
        prompts = both["text"](tokens).last_hidden_state[said]
        guess = both["unet"](scheduler.add_noise(latents, noise, level), level, prompts).sample
        descend(F.mse_loss(guess, noise), both, optimizer, shadow, decay(average, i))
    shadow.eval().requires_grad_(False)
    return shadow["unet"], shadow["text"]


def _painted(images: Tensor, n: int) -> Tensor:
    return paint(images[torch.randint(len(images), (n,))], torch.randint(len(COLOURS), (n,)))


def make_pipeline(autoencoder: Any, text: Any, tokenizer: Any, unet: Any) -> Any:
    """The parts as diffusers' StableDiffusionPipeline."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(
    pipeline: Any,
    path: Path,
    denoiser: str = "unet",
    tokenizers: Sequence[str] = ("tokenizer",),
) -> None:
    """Write the folder, weights in half precision; the text encoders' in single, as transformers
    loads them as they are. Newer versions of it leave out the vocabulary, and older ones need it.
    """
    pipeline.vae.half()
    getattr(pipeline, denoiser).half()
    pipeline.save_pretrained(path)
    for name in tokenizers:
        write_vocabulary(path / name)
    for file in path.rglob("*.safetensors"):
        file.chmod(0o644)


def pretrain_latent(
    path: str | Path,
    *,
    seed: int = 0,
    iterations: int = 2500,
    autoencoder_iterations: int = 1200,
    images_a_prompt: int = 40,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the parts on the CPU, measure them, and write the folder ``path`` and, beside it, what
    made it (``.json``).

    Args:
        path: a folder that diffusers' ``StableDiffusionPipeline.from_pretrained`` loads; weights in
            half precision.
        seed: of everything drawn.
        iterations: of the denoiser and the text encoder.
        autoencoder_iterations: of the autoencoder.
        images_a_prompt: drawn to measure the quality; 0 leaves the measuring out.
        command: the command line to record.
        progress: show progress bars.

    Returns:
        What the JSON file holds.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"path must be a folder; got the file {str(path)!r}")
    if min(iterations, autoencoder_iterations) < 1 or images_a_prompt < 0:
        allowed = (
            "iterations and autoencoder_iterations must be at least 1, images_a_prompt at least 0"
        )
        raise ValueError(
            f"{allowed}; got {iterations}, {autoencoder_iterations} and {images_a_prompt}"
        )
    path.mkdir(parents=True, exist_ok=True)
    data, clock = load_images(), Clock()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = make_tokenizer()
        autoencoder = train_autoencoder(
            data.train, iterations=autoencoder_iterations, progress=progress
        )
        unet, text = train_denoiser(
            data.train,
            data.train_labels,
            autoencoder,
            tokenizer,
            iterations=iterations,
            progress=progress,
        )
    spent = clock.spent()
    save(make_pipeline(autoencoder, text, tokenizer, unet), path)
    return write_record(
        path,
        command,
        {
            "seed": seed,
            "iterations": iterations,
            "autoencoder_iterations": autoencoder_iterations,
        },
        spent,
        {"vae": autoencoder, "text_encoder": text, "unet": unet},
        data,
        measure(path, data, {"eta": 1.0}, each=images_a_prompt, progress=progress)
        if images_a_prompt
        else None,
    )
