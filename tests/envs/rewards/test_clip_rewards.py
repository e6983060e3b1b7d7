"""CLIP score, PickScore, HPSv2 and the aesthetic predictor on small random models, saved and loaded
as users' are.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

transformers = pytest.importorskip("transformers")

from girsanov.envs.rewards.images import PromptedReward, make_reward  # noqa: E402
from girsanov.envs.rewards.weights import pixels  # noqa: E402

PROMPTS = ["a dog", "two cats", "a dog"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a CLIP model of 32 pixels and a tokenizer that knows bytes only."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": 514,
            "max_position_embeddings": 20,
            "bos_token_id": 512,
            "eos_token_id": 513,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The predictor's file under its published names, and the linear layers in it."""
    widths = [24, 1024, 128, 64, 16, 1]
    lines = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    state = {}
    for number, line in zip((0, 2, 4, 6, 7), lines, strict=True):
        state |= {
            f"layers.{number}.weight": line.weight.detach(),
            f"layers.{number}.bias": line.bias.detach(),
        }
    path = tmp_path_factory.mktemp("aesthetic") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(state, path)
    return path, lines


@pytest.fixture
def images(generator):
    return torch.rand(3, 3, 40, 40, generator=generator).requires_grad_()


def embeddings(clip, images, prompts):
    """Of images and prompts, by the model's two towers and nothing of the rewards'."""
    model = transformers.CLIPModel.from_pretrained(clip)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
    seen = model.vision_model(pixel_values=pixels(images, 32, torch.zeros(()))).pooler_output
    rows = []
    for prompt in prompts:
        words = tokenizer(prompt, return_tensors="pt")
        rows.append(model.text_projection(model.text_model(**words).pooler_output))
    return model.visual_projection(seen), torch.cat(rows), model.logit_scale.exp()


def test_clip_score_and_pick_score_are_cosines(clip, images):
    image, text, scale = embeddings(clip, images, PROMPTS)
    cosine = F.cosine_similarity(image, text)
    assert float(cosine.detach().diff().abs().min()) > 1e-4
    torch.testing.assert_close(
        make_reward("clip-score", weights=clip)(images, PROMPTS), 100 * cosine, atol=1e-4, rtol=1e-5
    )
    pick = make_reward("pick-score", weights=clip, tokenizer=clip)
    torch.testing.assert_close(pick(images, PROMPTS), scale * cosine, atol=1e-4, rtol=1e-5)


def open_clip_names(model):
    """The weights of a CLIPModel as open_clip keeps them: queries, keys and values together,
    projections from the right, and a mask among them.
    """
    towers = {"vision_model": ("visual.", "visual.transformer"), "text_model": ("", "transformer")}
    parts = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    ours = model.state_dict()
    state = {
        "logit_scale": ours["logit_scale"],
        "attn_mask": torch.zeros(20, 20),
        "text_projection": ours["text_projection.weight"].T,
        "visual.proj": ours["visual_projection.weight"].T,
        "visual.class_embedding": ours["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": ours["vision_model.embeddings.patch_embedding.weight"],
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
    }
    for tower, (head, blocks) in towers.items():
        place = f"{tower}.embeddings.position_embedding.weight"
        state[f"{head}positional_embedding"] = ours[place]
        for kind in ("weight", "bias"):
            for layer in range(2):
                theirs, mine = f"{blocks}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
                for part, name in parts.items():
                    state[f"{theirs}.{name}.{kind}"] = ours[f"{mine}.{part}.{kind}"]
                three = [ours[f"{mine}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(three)
            if tower == "vision_model":
                state[f"visual.ln_pre.{kind}"] = ours[f"{tower}.pre_layrnorm.{kind}"]
                state[f"visual.ln_post.{kind}"] = ours[f"{tower}.post_layernorm.{kind}"]
            else:
                state[f"ln_final.{kind}"] = ours[f"{tower}.final_layer_norm.{kind}"]
    return state


def test_hps_is_the_cosine_of_weights_in_open_clips_layout(clip, images, tmp_path):
    """Of a CLIP that was trained on, whose folder holds other weights than the published file."""
    torch.manual_seed(1)
    trained = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(clip))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 3, "name": "HPS", "state_dict": open_clip_names(trained)}, file)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    trained.save_pretrained(tmp_path)
    image, text, _ = embeddings(tmp_path, images, PROMPTS)
    reward = make_reward("hps-v2", weights=tmp_path, clip=clip)
    found = reward(images, PROMPTS)
    torch.testing.assert_close(found, F.cosine_similarity(image, text), atol=1e-5, rtol=1e-4)
    found.sum().backward()
    assert float(images.grad.flatten(1).norm(dim=1).min()) > 0
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    state = open_clip_names(trained)
    del state["visual.proj"]
    torch.save(state, file)
    with pytest.raises(ValueError, match="HPS_v2.1_compressed.pt must hold CLIPModel's weights"):
        make_reward("hps-v2", weights=file, clip=clip)
    with pytest.raises(ValueError, match="hf download xswu/HPSv2 HPS_v2.1_compressed.pt"):
        make_reward("hps-v2", weights=tmp_path / "nowhere", clip=clip)


def test_whole_images_lie_on_black():
    images = torch.ones(1, 3, 10, 20)
    seen = pixels(images, 40, torch.zeros(()), whole=True)
    black = pixels(torch.zeros(1, 3, 40, 40), 40, torch.zeros(()))
    white = pixels(torch.ones(1, 3, 40, 40), 40, torch.zeros(()))
    rows = torch.arange(40)
    inside = ((rows >= 10) & (rows < 30))[:, None]
    torch.testing.assert_close(seen, torch.where(inside, white, black))
    square = torch.rand(2, 3, 30, 30)
    whole = pixels(square, 40, torch.zeros(()), whole=True)
    assert torch.equal(whole, pixels(square, 40, torch.zeros(())))


def test_the_aesthetic_predictor_scores_the_normalised_embedding(clip, head, images):
    path, lines = head
    image, _, _ = embeddings(clip, images, PROMPTS)
    score = image / image.norm(dim=1, keepdim=True)
    for line in lines:
        score = line(score)
    reward = make_reward("aesthetic", weights=path.parent, clip=clip)
    torch.testing.assert_close(reward(images, PROMPTS), score[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reward(images, PROMPTS), reward(images, ["x"] * 3))


@pytest.mark.parametrize("name", ["clip-score", "pick-score", "aesthetic"])
def test_gradients_reach_the_pixels_and_no_weight(name, clip, head, images):
    places = {"clip-score": {"weights": clip}, "pick-score": {"weights": clip, "tokenizer": clip}}
    reward = make_reward(name, **places.get(name, {"weights": head[0], "clip": clip}))
    assert isinstance(reward, PromptedReward) and reward.differentiable
    reward(images, PROMPTS).sum().backward()
    assert float(images.grad.flatten(1).norm(dim=1).min()) > 0
    assert (
        not any(parameter.requires_grad for parameter in reward.parameters())
        and not reward.training
    )


def test_a_folder_of_weights_named_in_the_environment_is_enough(
    clip, head, images, tmp_path, monkeypatch
):
    (tmp_path / "clip-vit-large-patch14").symlink_to(clip)
    (tmp_path / head[0].name).symlink_to(head[0])
    monkeypatch.setenv("GIRSANOV_WEIGHTS", str(tmp_path))
    given = make_reward("aesthetic", weights=head[0], clip=clip)
    torch.testing.assert_close(
        make_reward("aesthetic")(images, PROMPTS), given(images, PROMPTS), atol=0, rtol=0
    )
    given = make_reward("clip-score", weights=clip)
    torch.testing.assert_close(
        make_reward("clip-score")(images, PROMPTS), given(images, PROMPTS), atol=0, rtol=0
    )


def test_absent_weights_are_named_at_once(clip, tmp_path, monkeypatch):
    monkeypatch.delenv("GIRSANOV_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"weights must be the file sac\+logos.*improved-aesthetic-predictor"
    ):
        make_reward("aesthetic", clip=clip)
    with pytest.raises(
        ValueError,
        match="weights must be a folder that CLIP.* can read.*hf download nobody/nothing",
    ):
        make_reward("clip-score", weights="nobody/nothing")
    with pytest.raises(
        ValueError, match=r"hf download yuvalkirstain/PickScore_v1|hf download laion"
    ):
        make_reward("pick-score")


def test_another_models_head_is_refused(clip, head, tmp_path):
    state = torch.load(head[0], weights_only=True)
    state["layers.0.weight"] = torch.zeros(1024, 768)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="must hold ScoreHead's weights"):
        make_reward("aesthetic", weights=tmp_path / "other.pth", clip=clip)
