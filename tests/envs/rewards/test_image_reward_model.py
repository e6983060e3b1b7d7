"""ImageReward against a second implementation, in plain torch, of the original architecture under
the original's names.
"""

import copy
import math
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("transformers")

from girsanov.envs.rewards.image_reward import (
    Architecture,
    ImageReward,
    load_image_reward,
    renamed,
)  # noqa: E402
from girsanov.envs.rewards.images import make_reward  # noqa: E402
from girsanov.envs.rewards.weights import pixels  # noqa: E402

SMALL = Architecture(
    image_size=32,
    patch_size=8,
    vision_width=48,
    vision_layers=3,
    vision_heads=3,
    text_width=32,
    text_layers=2,
    text_heads=2,
    vocabulary=14,
    positions=40,
)
HEAD = 16  # width of a head, both towers
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "dog",
    "cat",
    "moon",
    "##s",
    "on",
    "the",
]
PROMPTS = ["A dog on the moon", "cats"]


class OriginalBlock(nn.Module):
    """Pre-norm: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x):
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, -1)
        x = x + self.attn["proj"](attention(q, k, v, self.heads))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def attention(q, k, v, heads, keep=None):
    """Written with einsum, one head's channels contiguous; ``keep`` marks the keys that count."""
    split = [t.unflatten(-1, (heads, -1)) for t in (q, k, v)]
    score = torch.einsum("nqhc,nkhc->nhqk", split[0], split[1]) / math.sqrt(split[0].shape[-1])
    if keep is not None:
        score = score.masked_fill(~keep[:, None, None], float("-inf"))
    return torch.einsum("nhqk,nkhc->nqhc", score.softmax(-1), split[2]).flatten(-2)


class OriginalVision(nn.Module):
    def __init__(self, s):
        super().__init__()
        places = (s.image_size // s.patch_size) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.vision_width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, s.vision_width))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, s.vision_width, s.patch_size, s.patch_size)}
        )
        self.blocks = nn.ModuleList(
            OriginalBlock(s.vision_width, s.vision_heads) for _ in range(s.vision_layers)
        )
        self.norm = nn.LayerNorm(s.vision_width, eps=1e-6)

    def forward(self, x):
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class OriginalAttention(nn.Module):
    """BERT's: post-norm, keys and values from the image where ``source`` is another width."""

    def __init__(self, width, source, heads):
        super().__init__()
        self.heads = heads
        parts = {
            "query": nn.Linear(width, width),
            "key": nn.Linear(source, width),
            "value": nn.Linear(source, width),
        }
        self.self = nn.ModuleDict(parts)
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        )

    def forward(self, x, source, keep=None):
        own = self.self
        mixed = attention(
            own["query"](x), own["key"](source), own["value"](source), self.heads, keep
        )
        return self.output["LayerNorm"](x + self.output["dense"](mixed))


class OriginalLayer(nn.Module):
    def __init__(self, width, source, heads):
        super().__init__()
        self.attention = OriginalAttention(width, width, heads)
        self.crossattention = OriginalAttention(width, source, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(4 * width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        )

    def forward(self, x, image, keep):
        x = self.crossattention(self.attention(x, x, keep), image)
        return self.output["LayerNorm"](
            x + self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        )


class OriginalEmbeddings(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.word_embeddings = nn.Embedding(s.vocabulary, s.text_width)
        self.position_embeddings = nn.Embedding(s.positions, s.text_width)
        self.LayerNorm = nn.LayerNorm(s.text_width, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(s.positions)[None])

    def forward(self, ids):
        where = self.position_ids[:, : ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(where))


class Original(nn.Module):
    """``blip.visual_encoder``, ``blip.text_encoder``, the two idle projections, and ``mlp``; ids
    instead of prompts.
    """

    def __init__(self, s):
        super().__init__()
        text = nn.ModuleDict(
            {
                "embeddings": OriginalEmbeddings(s),
                "encoder": nn.ModuleDict(
                    {
                        "layer": nn.ModuleList(
                            OriginalLayer(s.text_width, s.vision_width, s.text_heads)
                            for _ in range(s.text_layers)
                        )
                    }
                ),
            }
        )
        projections = {
            "vision_proj": nn.Linear(s.vision_width, 256),
            "text_proj": nn.Linear(s.text_width, 256),
        }
        self.blip = nn.ModuleDict(
            {"visual_encoder": OriginalVision(s), "text_encoder": text, **projections}
        )
        widths = [s.text_width, 1024, 128, 64, 16, 1]
        lines = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.mlp = nn.ModuleDict({"layers": nn.ModuleDict(dict(zip("02467", lines, strict=True)))})

    def forward(self, image, ids, keep):
        seen = self.blip["visual_encoder"](image)
        x = self.blip["text_encoder"]["embeddings"](ids)
        for layer in self.blip["text_encoder"]["encoder"]["layer"]:
            x = layer(x, seen, keep)
        x = x[:, 0]
        for line in self.mlp["layers"].values():
            x = line(x)
        return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def ids_of(prompts):
    """By hand: [CLS], word pieces, [SEP], padded to 35."""
    table = {"A dog on the moon": [2, 5, 6, 10, 11, 8, 3], "cats": [2, 7, 9, 3]}
    rows = [table[p] + [0] * (35 - len(table[p])) for p in prompts]
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(3)
    model = Original(SMALL)
    with torch.no_grad():
        for (
            name,
            parameter,
        ) in model.named_parameters():  # norms and biases too: every tensor must matter
            around = 1.0 if ("norm" in name.lower() and name.endswith("weight")) else 0.0
            spread = 1.5 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(around + spread * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    """Weights and words as they are published, in small."""
    where = tmp_path_factory.mktemp("weights")
    torch.save(original.state_dict(), where / "ImageReward.pt")
    (where / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return where


@pytest.fixture(scope="module")
def loaded(folder):
    return make_reward("image-reward", weights=folder, vocabulary=folder, head_size=HEAD)


def normalised(images):
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    return (images - mean) / torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def test_scores_and_their_gradients_equal_the_second_implementations(original, loaded):
    one = torch.rand(2, 3, 32, 32).requires_grad_()
    two = one.detach().clone().requires_grad_()
    ids = ids_of(PROMPTS)
    ours, theirs = loaded(one, PROMPTS), original(normalised(two), ids, ids > 0)
    assert ours.shape == (2,)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    ours.sum().backward()
    theirs.sum().backward()
    assert float(two.grad.flatten(1).norm(dim=1).min()) > 1e-3
    torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-4)
    assert all(not parameter.requires_grad for parameter in loaded.parameters())


def test_image_prompt_and_order_matter(loaded):
    image = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)
    different = loaded(image, PROMPTS)
    assert abs(float(different.diff())) > 1e-3
    torch.testing.assert_close(loaded(image, PROMPTS[::-1]), different.flip(0))
    assert abs(float(loaded(image[:1], PROMPTS[:1]) - loaded(1 - image[:1], PROMPTS[:1]))) > 1e-3


@pytest.mark.parametrize(
    "part",
    ["blocks.1.attn.qkv.weight", "layer.1.crossattention.self.key.bias", "mlp.layers.6.weight"],
)
def test_every_tensor_must_be_there_and_fit(original, folder, tmp_path, part):
    state = {key: value for key, value in original.state_dict().items() if not key.endswith(part)}
    assert len(state) == len(original.state_dict()) - 1
    torch.save(state, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match="must hold ImageReward's weights"):
        load_image_reward(tmp_path, folder, HEAD)
    torch.save(
        {**original.state_dict(), "blip.extra.weight": torch.zeros(1)}, tmp_path / "ImageReward.pt"
    )
    with pytest.raises(ValueError, match="blip.extra.weight"):
        load_image_reward(tmp_path, folder, HEAD)


def test_a_full_size_checkpoint_is_taken_name_by_name_and_shape_by_shape(monkeypatch):
    with torch.device("meta"):
        state = Original(Architecture()).state_dict()
    assert Architecture.of(state) == Architecture()
    monkeypatch.setattr("girsanov.envs.rewards.image_reward._tokenizer", lambda *_: None)
    with torch.device("meta"):
        wanted = ImageReward({}).state_dict()
    given = {renamed(key): value.shape for key, value in state.items() if renamed(key) is not None}
    assert given == {key: value.shape for key, value in wanted.items()}
    assert (
        len(state) - len(given) == 5
    )  # two projections of a weight and a bias each, and the table of positions
    assert sum(shape.numel() for shape in given.values()) > 4.4e8


def test_a_pickle_that_holds_code_is_refused_and_not_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "ImageReward.pt").write_bytes(pickle.dumps({"mlp": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="state dict of tensors"):
        load_image_reward(tmp_path / "ImageReward.pt", folder)
    assert not (tmp_path / "ran").exists()
    torch.save({"mlp": Evil()}, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match="state dict of tensors"):
        load_image_reward(tmp_path / "ImageReward.pt", folder)
    assert not (tmp_path / "ran").exists()


def test_safetensors_is_the_same_and_a_torn_file_is_one_clear_error(
    original, folder, loaded, tmp_path
):
    path = tmp_path / "reward.safetensors"
    save_file(original.state_dict(), path)
    image = torch.rand(1, 3, 40, 50)
    same = load_image_reward(path, folder, HEAD)(image, PROMPTS[:1])
    torch.testing.assert_close(same, loaded(image, PROMPTS[:1]), atol=0, rtol=0)
    for name in ("reward.safetensors", "ImageReward.pt"):
        source = path if name.endswith("safetensors") else folder / name
        torn = tmp_path / f"torn-{name}"
        torn.write_bytes(source.read_bytes()[:5000])
        with pytest.raises(ValueError, match="state dict of tensors"):
            load_image_reward(torn, folder, HEAD)


def test_absent_files_are_named_before_anything_starts(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("girsanov.envs.rewards.weights._cached", lambda source: None)
    monkeypatch.delenv("GIRSANOV_WEIGHTS", raising=False)
    with pytest.raises(
        ValueError,
        match=r"vocabulary must be the file vocab.txt .*hf download bert-base-uncased vocab.txt",
    ):
        make_reward("image-reward")
    with pytest.raises(
        ValueError, match=r"weights must be the file ImageReward.pt .*hf download THUDM/ImageReward"
    ):
        make_reward("image-reward", vocabulary=folder / "vocab.txt")
    with pytest.raises(ValueError, match="nowhere.pt"):
        make_reward("image-reward", weights="nowhere.pt", vocabulary=folder)
    monkeypatch.setenv("GIRSANOV_WEIGHTS", str(folder))
    assert make_reward("image-reward", head_size=HEAD).image_size == 32


def test_another_models_words_are_refused(folder, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    with pytest.raises(ValueError, match="must hold 12 word pieces"):
        load_image_reward(folder, tmp_path, HEAD)


def test_pixels_are_resized_and_cropped_as_by_pil(generator):
    coarse = torch.rand(1, 3, 6, 9, generator=generator)
    image = F.interpolate(coarse, (96, 144), mode="bilinear").clamp(0, 1)
    bytes_ = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    small = Image.fromarray(bytes_).resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    theirs = normalised(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255)
    ours = pixels(torch.from_numpy(bytes_).permute(2, 0, 1)[None] / 255, 32, torch.zeros(()))
    assert ours.shape == (1, 3, 32, 32)
    assert float((ours - theirs).abs().max()) < 2 / 255 / 0.26  # PIL rounds to bytes twice
    plain = normalised(F.interpolate(image, (32, 48), mode="bicubic")[..., 8:40])
    assert float((plain - theirs).abs().max()) > 2 / 255 / 0.26, (
        "without antialiasing it is another image"
    )


def test_a_copy_in_double_precision_scores_the_same(loaded):
    image = torch.rand(1, 3, 32, 32)
    exact = copy.deepcopy(loaded).to(torch.float64)(image, PROMPTS[:1])
    torch.testing.assert_close(loaded(image, PROMPTS[:1]), exact.float(), atol=1e-5, rtol=1e-5)


def test_fresh_weights_are_a_reward_too():
    torch.manual_seed(0)
    reward = ImageReward({word: i for i, word in enumerate(WORDS)}, SMALL)
    image = torch.rand(2, 3, 8, 8).requires_grad_()
    reward(image, PROMPTS).sum().backward()
    assert float(image.grad.abs().max()) > 0
