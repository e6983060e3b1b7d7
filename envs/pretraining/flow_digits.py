"""Train the small rectified flow of coloured digits and save it as a ``StableDiffusion3Pipeline``
folder.

The layout is Stable Diffusion 3's (Esser et al. 2024, "Scaling rectified flow transformers"): an
``SD3Transformer2DModel`` whose two streams, latents and words, attend to each other, two
``CLIPTextModelWithProjection`` over whole words, no T5, a ``FlowMatchEulerDiscreteScheduler``. The
autoencoder is that of the sister model, ``latent_digits``. Plain diffusers loads the folder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.latent_digits import CHECKPOINT as SISTER
from .digit_images import DigitImages, load_images
from .latent_digits import PROMPT_LENGTH, make_tokenizer, prompt_tokens, save
from .latent_quality import measure
from .painted_latents import SENTENCES, PaintedLatents
from .record import Clock, write_record
from .training_loop import anneal, decay, descend, steps

#: Tokens that the pipeline puts in the place of an absent T5's, if not told otherwise.
ABSENT_TOKENS = 256


def make_text_encoder(tokenizer: Any, width: int = 32) -> Any:
    """A CLIPTextModelWithProjection of that width, at random."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_transformer(layers: int = 4, width: int = 48, prompt_width: int = 64) -> Any:
    """An SD3Transformer2DModel on 4x4 latents of 8 channels, one patch each.

    What modulates its streams and what it says begin at zero (Peebles and Xie 2023, section 3.2).
    """
    from diffusers import SD3Transformer2DModel

    head = 16
    found: Any = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=layers,
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=prompt_width,
        caption_projection_dim=width,
        pooled_projection_dim=prompt_width,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )
    norms = [
        part for block in found.transformer_blocks for part in (block.norm1, block.norm1_context)
    ]
    for layer in (*(norm.linear for norm in norms), found.norm_out.linear, found.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return found


def make_pipeline(autoencoder: Any, transformer: Any, texts: Any, tokenizer: Any) -> Any:
    """The parts as diffusers' StableDiffusion3Pipeline, two text encoders, no third."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        vae=autoencoder,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=texts[0],
        tokenizer=tokenizer,
        text_encoder_2=texts[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def encode(texts: Any, tokens: Tensor, absent: int) -> tuple[Tensor, Tensor]:
    """What ``StableDiffusion3Pipeline.encode_prompt`` makes of tokens ``(n, PROMPT_LENGTH)``: words
    ``(n, PROMPT_LENGTH + absent, both widths)``, zeros for an absent T5's, and the pooled prompts.
    """
    found = [text(tokens, output_hidden_states=True) for text in texts]
    words = torch.cat([one.hidden_states[-2] for one in found], 2)
    return F.pad(words, (0, 0, 0, absent)), torch.cat([one.text_embeds for one in found], 1)


def train_flow(
    data: DigitImages,
    autoencoder: Any,
    tokenizer: Any,
    *,
    iterations: int = 3000,
    batch: int = 64,
    learning_rate: float = 2e-3,
    average: float = 0.999,
    prompt_dropout: float = 0.1,
    progress: bool = True,
) -> tuple[Any, Any]:
    """Transformer and the two text encoders, with exponentially averaged weights, by the flow's
    loss: the square error of the velocity ``noise - latents`` at uniform times.

    In every 32nd step an eighth of a batch comes with the ``ABSENT_TOKENS`` that the pipeline puts
    in the place of a T5's, so that the model is at home with and without them.
    """
    texts = nn.ModuleList(make_text_encoder(tokenizer) for _ in range(2))
    both: Any = nn.ModuleDict({"transformer": make_transformer(), "texts": texts})
    shadow = copy.deepcopy(both)
    painted = PaintedLatents(data.train, data.train_labels, autoencoder)
    tokens = prompt_tokens(tokenizer, SENTENCES)
    optimizer = torch.optim.AdamW(
        both.parameters(), learning_rate, (0.9, 0.99), weight_decay=1e-4, fused=True
    )
    for i in steps(iterations, "flow", progress):
        anneal(optimizer, learning_rate, i, iterations)
        rows, absent = (batch // 8, ABSENT_TOKENS) if i % 32 == 31 else (batch, 0)
        latents, said = painted.draw(rows, prompt_dropout)
        time, noise = torch.rand(rows), torch.randn_like(latents)
        noised = latents.lerp(noise, time[:, None, None, None])
        # every sentence is encoded at every step: there are few of them
        words, pooled = encode(texts, tokens, absent)
        guess = both["transformer"](noised, words[said], pooled[said], 1000 * time).sample
        loss = F.mse_loss(guess, noise - latents)
        descend(loss, both, optimizer, shadow, decay(average, i))
    shadow.eval().requires_grad_(False)
    return shadow["transformer"], shadow["texts"]


def pretrain_flow(
    path: str | Path,
    *,
    seed: int = 0,
    iterations: int = 3000,
    images_a_prompt: int = 40,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the flow on the CPU, measure it, and write the folder ``path`` and, beside it, what
    made it (``.json``).

    Args:
        path: a folder that diffusers' ``StableDiffusion3Pipeline.from_pretrained`` loads.
        seed: of everything drawn.
        iterations: of the transformer and the text encoders.
        images_a_prompt: drawn to measure the quality; 0 leaves the measuring out.
        command: the command line to record.
        progress: show progress bars.

    Returns:
        What the JSON file holds.
    """
    from diffusers import AutoencoderKL

    path = Path(path)
    if path.is_file():
        raise ValueError(f"path must be a folder; got the file {str(path)!r}")
    if iterations < 1 or images_a_prompt < 0:
        raise ValueError(
            "iterations must be at least 1, images_a_prompt at least 0; got"
            f" {iterations} and {images_a_prompt}"
        )
    path.mkdir(parents=True, exist_ok=True)
    data, clock = load_images(), Clock()
    autoencoder = AutoencoderKL.from_pretrained(SISTER / "vae").requires_grad_(False)
    autoencoder.register_to_config(shift_factor=0.0)  # the pipeline adds it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = make_tokenizer()
        transformer, texts = train_flow(
            data, autoencoder, tokenizer, iterations=iterations, progress=progress
        )
    spent = clock.spent()
    pipeline = make_pipeline(autoencoder, transformer, texts, tokenizer)
    save(pipeline, path, "transformer", ("tokenizer", "tokenizer_2"))
    return write_record(
        path,
        command,
        {"seed": seed, "iterations": iterations},
        spent,
        {"vae": autoencoder, "text_encoders": texts, "transformer": transformer},
        data,
        measure(path, data, {"max_sequence_length": 0}, each=images_a_prompt, progress=progress)
        if images_a_prompt
        else None,
    )
