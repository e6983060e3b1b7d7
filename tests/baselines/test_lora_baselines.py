"""DPOK, DDPO and adjoint matching on adapters of a tiny pipeline's own network."""

import copy

import pytest
import torch
from stable_baselines3.common.logger import configure
from torch.distributions import Independent, Normal, kl_divergence

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from girsanov.baselines.fine_tuning import Steps, move  # noqa: E402
from girsanov.baselines.fine_tuning_methods.adjoint_matching import AdjointMatching  # noqa: E402
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO, ddpo_loss  # noqa: E402
from girsanov.baselines.fine_tuning_methods.dpok import DPOK, dpok_loss  # noqa: E402
from girsanov.baselines.hyperparameters import settings_for  # noqa: E402
from girsanov.envs.diffusion.stable_diffusion import StableDiffusion  # noqa: E402
from girsanov.envs.env import ProblemEnv, observe  # noqa: E402
from girsanov.envs.problem import rollout  # noqa: E402
from girsanov.envs.rewards.images import Brightness, Incompressibility  # noqa: E402

ALL = pytest.mark.parametrize("tuner", [DPOK, DDPO, AdjointMatching])
TWO = ("a cat and a dog", "four wolves")
SMALL = {"n_trajectories": 4, "gradient_steps": 2, "batch_size": 6, "policy_kwargs": {"rank": 2}}


@pytest.fixture(scope="module")
def pipeline(sd_folder):
    """In double precision: what is compared below is then mathematics, not rounding."""
    return diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None).to(
        torch.float64
    )


@pytest.fixture(scope="module")
def problem(pipeline):
    """Its own network, so that one test's adapters are not another's; the last step has no
    noise.
    """
    mine = copy.copy(pipeline)
    mine.unet = copy.deepcopy(pipeline.unet)
    return StableDiffusion(
        mine, TWO, Brightness(), temperature=0.1, steps=4, guidance_scale=3.0, scheduler="ddpm"
    )


def small(tuner, problem, **kwargs):
    model = tuner(
        env=ProblemEnv(problem, action_bound=10.0), seed=3, device="cpu", **{**SMALL, **kwargs}
    )
    model.set_logger(configure(None, []))
    return model


def perturbed(model, std=0.3, seed=0):
    """The model as if it had learnt."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype))
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def law(problem, model, k, x):
    """Of the next latents by the adapted network alone: DDPM's step with another noise
    prediction.
    """
    s = problem.schedule
    noise = problem.adapted_noise(k, x, model.policy.adapter)
    mean = (problem.latents(x) - (1 - s.alpha[k]) / (1 - s.alpha_bar[k]).sqrt() * noise) / s.alpha[
        k
    ].sqrt()
    return Independent(Normal(mean, s.sigma[k]), 3)


def test_adapters_are_the_choice_where_there_is_a_network_to_adapt(problem):
    for tuner in (DPOK, DDPO, AdjointMatching):
        assert small(tuner, problem).policy_name == "LoraPolicy"
        assert tuner(env="girsanov/GaussianMixture-v0", device="cpu").policy_name == "MlpPolicy"
    assert (
        small(DPOK, problem, policy="MlpPolicy", policy_kwargs={"hidden": [8]}).policy_name
        == "MlpPolicy"
    )
    with pytest.raises(ValueError, match="whose network takes adapters; got GaussianMixture"):
        DPOK("LoraPolicy", "girsanov/GaussianMixture-v0", device="cpu")


@ALL
def test_begins_exactly_at_the_pre_trained_model(tuner, problem):
    model = small(tuner, problem)
    paths, inputs = model.sample()
    assert not paths.controls.any() and not paths.kl.any()
    x = paths.states[0]
    for k in range(problem.horizon):
        x = problem.transition(k, x, paths.noises[k])
        assert torch.equal(x, paths.states[k + 1])
    rows = model.prepare(paths, inputs)
    assert rows.k.unique().tolist() == [0, 1, 2], "the last step has no noise"
    if tuner is not AdjointMatching:
        found = move(model.policy, rows)
        assert bool((found.ratio == 1).all()) and not found.kl.any()


def test_ratio_and_kl_are_those_of_the_steps_in_latent_space(problem):
    old, new = perturbed(small(DPOK, problem)), perturbed(small(DPOK, problem), std=0.31)
    x = problem.initial(3, torch.Generator().manual_seed(0))
    noise = torch.randn(
        3, *problem.noise_shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype
    )
    k = torch.full((3,), 1)
    with torch.no_grad():
        a = old.policy.control(1, x)
        rows = Steps(
            k, old.policy.inputs(1, x), noise.flatten(1), a.flatten(1), torch.ones(3), torch.ones(3)
        )
        ratio, kl = move(new.policy, rows)
        later = problem.latents(problem.transition(1, x, a + noise))
        before, after = law(problem, old, 1, x), law(problem, new, 1, x)
        free = Independent(Normal(problem.gaussian_kernel(1, x)[0], problem.schedule.sigma[1]), 3)
    wanted = after.log_prob(later) - before.log_prob(later)
    assert float(wanted.abs().min()) > 1e-3 and float(kl.min()) > 1e-3
    torch.testing.assert_close(ratio.log(), wanted, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(kl, kl_divergence(after, free), atol=1e-10, rtol=1e-6)


def test_the_gradients_are_the_score_function_and_the_kl_in_closed_form(problem):
    model = perturbed(small(DPOK, problem), std=0.1)
    parameters = list(model.policy.parameters())
    paths, inputs = model.sample()
    assert 0.1 < float(paths.controls.abs().max()) < 10, (
        "inside the action bound, which cuts gradients off"
    )
    advantage = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=inputs.dtype)
    rows = Steps.of(model.policy, paths, inputs, advantage, torch.tensor(0.7))
    torch.testing.assert_close(
        move(model.policy, rows).ratio.detach(), torch.ones(12, dtype=inputs.dtype)
    )
    wanted = 0.0
    for k in range(3):
        x, later = paths.states[k], problem.latents(paths.states[k + 1])
        adapted = law(problem, model, k, x)
        with torch.no_grad():
            free = Independent(
                Normal(problem.gaussian_kernel(k, x)[0], problem.schedule.sigma[k]), 3
            )
        wanted = (
            wanted
            + (0.7 * kl_divergence(adapted, free) - advantage[k] * adapted.log_prob(later)).sum()
        )
    wanted = torch.autograd.grad(wanted, parameters)
    assert float(torch.cat([w.flatten() for w in wanted]).norm()) > 1e-3
    for loss in (dpok_loss, ddpo_loss):
        found = torch.autograd.grad(loss(model.policy, rows, 0.2).sum(), parameters)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("tuner", [DPOK, AdjointMatching])
def test_a_batch_in_parts_takes_the_same_step(tuner, problem):
    moved = []
    for part in (None, 4):
        model = perturbed(
            small(tuner, problem, policy_kwargs={"rank": 2, "micro_batch": part}), seed=7
        )
        torch.manual_seed(0)
        model.generator.manual_seed(5)
        before = weights(model)
        model.iterate()
        moved.append(weights(model) - before)
    assert float(moved[0].abs().max()) > 1e-6
    torch.testing.assert_close(moved[1] - moved[0], torch.zeros_like(moved[0]), atol=1e-6, rtol=0)


def test_critics_see_the_latents_the_time_and_the_prompt(problem):
    model = perturbed(
        small(DPOK, problem, critic_hidden=[8], critic_learning_rate=1e-2, critic_steps=300)
    )
    x = problem.initial(40, torch.Generator().manual_seed(0))
    k = torch.arange(40) % 3
    model.policy.start(model.policy.inputs(0, x))
    features = model.policy.features(k, model.policy.inputs(k, x))
    assert features.shape == (40, model.policy.n_features) and features.dtype == torch.float32
    prompt = problem.prompt_index(x)
    assert torch.equal(features[:, -2:].argmax(1), prompt) and set(prompt.tolist()) == {0, 1}
    returns = prompt.float() + k.float()
    model.critic.fit_units(returns)
    model.fit_critic(features, returns)
    assert float((model.critic(features).detach() - returns).square().mean() / returns.var()) < 0.05


def test_ddpo_compares_paths_of_one_prompt(problem):
    model = small(DDPO, problem)
    x = problem.initial(5, torch.Generator().manual_seed(0))
    x[:, -1] = torch.tensor([0.0, 1, 0, 1, 0])[:, None, None]
    to_go = torch.tensor([[1.0, 20, 3, 30, 5], [0, 2, 0, 4, 3]], dtype=x.dtype)
    wanted = torch.tensor([[-2.0, -5, 0, 5, 2], [-1, -1, -1, 1, 2]], dtype=x.dtype)
    torch.testing.assert_close(model.centred(to_go, x), wanted)
    x[:, -1] = torch.tensor([0.0, 1, 0, 0, 0])[:, None, None]
    assert float(model.centred(to_go, x)[0, 1]) == pytest.approx(20 - 59 / 5), (
        "alone, it is compared with all"
    )


@pytest.mark.parametrize("tuner", [DPOK, DDPO])
def test_saved_loaded_and_resumed(tuner, problem, tmp_path):
    model = small(tuner, problem, learning_rate=1e-2).learn(1)
    x = problem.initial(3, torch.Generator().manual_seed(0))
    model.save(tmp_path / "model")
    again = tuner.load(
        tmp_path / "model.zip", env=ProblemEnv(problem, action_bound=10.0), device="cpu"
    )
    assert again.policy_name == "LoraPolicy" and again.policy.adapter != model.policy.adapter
    with torch.no_grad():
        a = model.policy.control(1, x)
        assert float(a.abs().max()) > 1e-4
        torch.testing.assert_close(again.policy.control(1, x), a, atol=0, rtol=0)
    seen = observe(problem, 1, x).numpy()
    assert model.predict(seen, deterministic=True)[0].shape == (3, 256)
    if tuner is DPOK:  # what is not saved is the buffer
        model.rounds = []
    for one in (model, again):
        one.learn(1, reset_num_timesteps=False)
    torch.testing.assert_close(weights(again), weights(model), atol=0, rtol=0)


def test_the_adapter_loads_in_plain_diffusers(problem, pipeline, tmp_path):
    model = perturbed(small(DDPO, problem))
    model.policy.save_lora(tmp_path)
    plain = copy.copy(pipeline)
    plain.unet = copy.deepcopy(pipeline.unet)
    plain.load_lora_weights(tmp_path)
    x, text = problem.initial(2, torch.Generator().manual_seed(0)), problem._given[0]
    latents, t = problem.latents(x), problem.schedule.timesteps[1]
    with torch.no_grad():
        given = text[problem.prompt_index(x)]
        with_ = plain.unet(latents, t, given).sample
        without = plain.unet(latents, t, problem._empty[0].expand_as(given)).sample
        torch.testing.assert_close(
            without + 3.0 * (with_ - without), problem.adapted_noise(1, x, model.policy.adapter)
        )
        assert not torch.allclose(
            problem.adapted_noise(1, x, model.policy.adapter),
            problem.predict_noise(1, x),
            atol=1e-3,
        )


def test_another_temperature_keeps_the_adapter_and_a_black_box_will_do(problem, pipeline):
    model = perturbed(small(DDPO, problem))
    before, x = weights(model), problem.initial(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        a = model.policy.control(0, x)
        other = StableDiffusion(pipeline, TWO, Incompressibility(), 0.5, 4, 3.0, "ddpm")
        model.set_env(ProblemEnv(other, action_bound=10.0))
        torch.testing.assert_close(model.policy.control(0, x), a)
    model.learn(1)
    assert not torch.equal(weights(model), before)


@ALL
def test_the_tuned_settings_are_those_of_the_papers(tuner, problem):
    model = tuner.tuned(ProblemEnv(problem), device="cpu")
    wanted = settings_for(tuner.table, problem)
    assert (
        all(getattr(model, name) == value for name, value in wanted.items())
        and model.policy_name == "LoraPolicy"
    )
    assert wanted["learning_rate"] == {DPOK: 1e-5, DDPO: 3e-4, AdjointMatching: 3e-4}[tuner]


class Hundredfold(Brightness):
    """A hundred times the mean intensity."""

    def __call__(self, images, prompts):
        return 100 * super().__call__(images, prompts)


@pytest.mark.slow
def test_adjoint_matching_raises_the_objective(sd_folder):
    """The score-function estimators would need far more paths than a test has on a decoder of
    random weights.
    """
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    bright = StableDiffusion(pipe, TWO[0], Hundredfold(), 0.1, 5, 1.0, "ddpm")
    common = {
        "n_trajectories": 20,
        "gradient_steps": 10,
        "batch_size": 40,
        "learning_rate": 3e-3,
        "anneal": False,
    }
    model = AdjointMatching(env=ProblemEnv(bright), seed=0, device="cpu", **common).learn(
        3 * 20 * 5
    )
    noises = torch.randn(5, 100, *bright.noise_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        values = []
        for policy in (None, model.policy.control):
            paths = rollout(bright, policy, 100, torch.Generator().manual_seed(2), noises=noises)
            values.append(paths.reward - bright.temperature * paths.kl)
    gain = values[1] - values[0]
    assert float(gain.mean()) > 5 * float(gain.std() / 100**0.5)
