"""DPOK, DDPO and adjoint matching: the algorithm's face, and what they share."""

import ast
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from torch.distributions import Independent, Normal, kl_divergence

import girsanov
from girsanov.agents import PDE
from girsanov.baselines import hyperparameters
from girsanov.baselines.fine_tuning import Steps, move, returns_to_go
from girsanov.baselines.fine_tuning_methods.adjoint_matching import AdjointMatching
from girsanov.baselines.fine_tuning_methods.ddpo import DDPO
from girsanov.baselines.fine_tuning_methods.dpok import DPOK
from girsanov.envs import make_problem
from girsanov.envs.env import observe
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, objective, rollout
from girsanov.scoreboard.registry import AGENTS

MIXTURE = "girsanov/GaussianMixture-v0"
ALL = pytest.mark.parametrize("tuner", [DPOK, DDPO, AdjointMatching])
SMALL = {
    "n_trajectories": 4,
    "gradient_steps": 3,
    "batch_size": 16,
    "policy_kwargs": {"hidden": [8]},
}


def small(tuner, env=MIXTURE, **kwargs):
    return tuner("MlpPolicy", env, seed=3, device="cpu", **{**SMALL, **kwargs})


def short(steps=6, **kwargs):
    return make_problem(MIXTURE, steps=steps, **kwargs)


def perturbed(model, std=0.3):
    """The model as if it had learnt a control that is nowhere near zero; it may be taken to
    pieces.
    """
    model.set_logger(configure(None, []))
    model._n_updates = 1
    g = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data.add_(std * torch.randn(parameter.shape, generator=g))
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def a_control(model):
    x = torch.linspace(-1, 1, 10).reshape(5, 2)
    return model.predict(observe(model.problem, 3, x).numpy(), deterministic=True)[0]


# --- what they share with each other


def test_ratio_and_kl_are_those_of_the_normal_laws_and_sums_over_dimensions():
    problem = make_problem("girsanov/Digits-v0", steps=4)
    old, new = perturbed(small(DPOK, problem)), perturbed(small(DPOK, problem), std=0.31)
    x = problem.initial(5, torch.Generator().manual_seed(0))
    inputs = old.policy.inputs(1, x)
    noise = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a_old, a_new = old.policy.output(1, inputs), new.policy.output(1, inputs)
        k = torch.ones(5, dtype=torch.long)
        ratio, kl = move(new.policy, Steps(k, inputs, noise, a_old, torch.ones(5), torch.ones(5)))
    law, law_old, reference = (
        Independent(Normal(mean, 1.0), 1) for mean in (a_new, a_old, torch.zeros_like(a_new))
    )
    z = a_old + noise
    assert not torch.allclose(a_new, a_old, atol=1e-3)
    torch.testing.assert_close(
        ratio, (law.log_prob(z) - law_old.log_prob(z)).exp(), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(kl, kl_divergence(law, reference))


@pytest.mark.parametrize("tuner", [DPOK, DDPO])
def test_the_price_is_the_exact_kl_of_the_path(tuner):
    model = perturbed(small(tuner, short()))
    paths, inputs = model.sample()
    assert paths.kl.mean() > 0.1
    steps = model.prepare(paths, inputs)
    price = move(model.policy, steps).kl.detach().sum() / 4
    torch.testing.assert_close(price, paths.kl.mean())
    free = steps._replace(advantage=torch.zeros_like(steps.advantage))
    torch.testing.assert_close((model.loss(free) / free.price).sum().detach() / 4, paths.kl.mean())
    assert model.logger.name_to_value["train/kl"] == pytest.approx(float(paths.kl.mean()))


def test_returns_to_go_add_up_by_hand():
    problem = LinearQuadratic.damped_rotation(dimension=1, steps=3, temperature=0.5)
    model = perturbed(small(DPOK, problem))
    with torch.no_grad():
        paths = rollout(problem, model.policy.control, 2, torch.Generator().manual_seed(0))
    kl = 0.5 * paths.controls[:, :, 0] ** 2
    r, y = paths.running_rewards, paths.terminal_reward
    wanted = [
        r[0] + r[1] + r[2] + y - 0.5 * (kl[1] + kl[2]),
        r[1] + r[2] + y - 0.5 * kl[2],
        r[2] + y,
    ]
    torch.testing.assert_close(returns_to_go(paths, 0.5), torch.stack(wanted))
    torch.testing.assert_close(returns_to_go(paths, 0.5, kl_in_reward=False)[0], r.sum(0) + y)


@ALL
def test_steps_without_noise_are_left_alone(tuner):
    """The last step of diffusers' "leading" spacing has sigma = 0."""
    model = perturbed(small(tuner, short()))
    assert model.policy.steered.tolist() == [True] * 5 + [False]
    paths, inputs = model.sample()
    assert not paths.controls[-1].any() and paths.controls[-2].any()
    assert sorted(set(model.prepare(paths, inputs).k.tolist())) == [0, 1, 2, 3, 4]
    model.set_env(short(variance_type="fixed_large", timestep_spacing="trailing"))
    assert model.policy.steered.all()


@ALL
def test_every_row_is_what_the_path_says(tuner):
    model = perturbed(small(tuner, short()))
    paths, inputs = model.sample()
    rows = model.prepare(paths, inputs)
    i = 4 * 2 + 1  # step 2 of path 1
    assert rows.k[i] == 2
    torch.testing.assert_close(rows.inputs[i], model.policy.inputs(2, paths.states[2])[1])
    if tuner is not AdjointMatching:
        torch.testing.assert_close(rows.noise[i], paths.noises[2, 1])
        torch.testing.assert_close(rows.control[i], paths.controls[2, 1])


def test_imports_from_the_agents_are_the_documented_ones():
    root = Path(girsanov.__file__).parent
    found = {"baselines": set(), "agents": set()}
    for package, other in (("baselines", "agents"), ("agents", "baselines")):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.ImportFrom)
                    and node.level >= 2
                    and (node.module or "").startswith(other)
                ):
                    found[package].add(node.module)
    assert found == {
        "baselines": {
            *("agents.base", "agents.control", "agents.checks", "agents.networks"),
            *("agents.callbacks", "agents.lora_control"),
            *("agents.archive", "agents.checkpoint", "agents.trees"),  # files of SB3's models
            *("agents.pde.learned_rewards", "agents.pde.replay"),  # Dyna's dreams are PDE's
            "agents.pi_ft.value_gradients",  # DRaFT's sweep is that of PI-FT, stopped early
        },
        "agents": set(),
    }


# --- SB3's face


@ALL
@pytest.mark.parametrize("env", ["id", "problem", "env", "vector of SB3"])
def test_takes_what_sb3_takes_and_counts(tuner, env):
    given = {
        "id": MIXTURE,
        "problem": make_problem(MIXTURE),
        "env": gym.make(MIXTURE),
        "vector of SB3": make_vec_env(MIXTURE, 2),
    }
    model = small(tuner, given[env]).learn(50 * 9)
    assert model.reward_queries == 12 and model.num_timesteps == 50 * 12 and model._n_updates == 9
    assert model.learn(1, reset_num_timesteps=False).reward_queries == 16


@ALL
def test_begins_at_the_pre_trained_model_and_stays_within_the_bound(tuner):
    model = small(tuner, gym.make(MIXTURE, action_bound=0.5))
    x = 3 * torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    assert not model.policy.control(3, x).any()
    perturbed(model, std=5.0)
    a = model.policy.control(3, x)
    assert a.shape == (7, 2) and 0.4 < a.abs().max() <= 0.5
    per_row = model.policy.control(torch.full((7,), 3), x)
    torch.testing.assert_close(per_row, a, atol=2e-5, rtol=0)


@ALL
def test_same_seed_same_result_and_other_seed_another(tuner):
    runs = [
        tuner("MlpPolicy", short(), seed=seed, device="cpu", **SMALL).learn(60)
        for seed in (3, 3, 4)
    ]
    assert torch.equal(weights(runs[0]), weights(runs[1])) and not torch.equal(
        weights(runs[0]), weights(runs[2])
    )


@ALL
def test_callbacks_tensorboard_and_evaluation(tuner, tmp_path):
    look = EvalCallback(
        gym.make(MIXTURE),
        eval_freq=60,
        n_eval_episodes=2,
        verbose=0,
        warn=False,
        log_path=str(tmp_path),
    )
    model = small(tuner, tensorboard_log=str(tmp_path / "tb")).learn(
        600, callback=look, progress_bar=True
    )
    assert len(look.evaluations_timesteps) >= 2 and list((tmp_path / "tb").rglob("events*"))
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=3, warn=False)
    assert np.isfinite(mean)

    class Stop(StopTrainingOnMaxEpisodes):
        def _on_step(self):
            return self.n_calls < 30

    assert small(tuner).learn(10**9, callback=Stop(1)).num_timesteps <= 200


@ALL
def test_save_load_resume(tuner, tmp_path):
    model = small(tuner, short(), learning_rate=0.01).learn(60)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sorted(archive.namelist()) == ["settings.json", "tensors.safetensors"]
    again = tuner.load(tmp_path / "model.zip", env=short(), device="cpu")
    assert np.array_equal(a_control(model), a_control(again)) and a_control(model).any()
    assert (again.num_timesteps, again.reward_queries, again._n_updates) == (72, 12, 9)
    assert again.learning_rate == 0.01 and again.policy_kwargs == SMALL["policy_kwargs"]
    for name in tuner.hyperparameters:
        assert getattr(again, name) == getattr(model, name)
    if tuner is DPOK:  # what is not saved is the buffer
        model.rounds = []
    for one in (model, again):
        one.learn(24, reset_num_timesteps=False)
    assert torch.equal(weights(model), weights(again)) and again.num_timesteps == 96


@ALL
def test_set_env_changes_the_problem(tuner):
    model = small(tuner, short()).learn(1)
    model.set_env(short(temperature=2.0))
    assert model.problem.temperature == 2.0 and model.policy.problem is model.problem
    assert tuner is not DPOK or not model.rounds
    model.learn(1)
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env("girsanov/Pendulum-v0")


@ALL
def test_bad_arguments(tuner, tmp_path):
    with pytest.raises(
        ValueError,
        match="policy must be one of .'LoraPolicy', 'MlpPolicy'. or a ControlPolicy class; got",
    ):
        tuner("CnnPolicy", MIXTURE)
    with pytest.raises(
        ValueError,
        match="policy must be 'MlpPolicy', 'LoraPolicy' or a StepPolicy; got ConstantPolicy",
    ):
        tuner(ConstantPolicy, MIXTURE)
    for name, value, allowed in [
        ("n_trajectories", 1, "a whole number of at least 2"),
        ("n_trajectories", 2.5, "a whole number of at least 2"),
        ("gradient_steps", 0, "a whole number of at least 1"),
        ("gradient_steps", 2.5, "a whole number of at least 1"),
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", 2.5, "a whole number of at least 1"),
        ("max_grad_norm", 0.0, "a positive number"),
        ("weight_decay", -1.0, "at least 0"),
        *{
            DPOK: [
                ("memory", 0, "a whole number of at least 1"),
                ("memory", 2.5, "a whole number of at least 1"),
                ("clip_range", 0.0, "a positive number"),
                ("critic_steps", -1, "a whole number of at least 0"),
                ("critic_steps", 2.5, "a whole number of at least 0"),
                ("critic_batch_size", 0, "a whole number of at least 1"),
                ("critic_batch_size", 2.5, "a whole number of at least 1"),
                ("critic_learning_rate", 0.0, "a positive number"),
            ],
            DDPO: [
                ("clip_range", -0.1, "a positive number"),
                ("advantage_bound", 0.0, "a positive number"),
            ],
            AdjointMatching: [("max_target", 0.0, "a positive number")],
        }[tuner],
    ]:
        with pytest.raises(ValueError, match=f"{name} must be {allowed}; got {value}"):
            tuner("MlpPolicy", MIXTURE, **{name: value})
    with pytest.raises(ValueError, match="must be a girsanov environment"):
        tuner("MlpPolicy", gym.make("Pendulum-v1"))
    path = tmp_path / "other.zip"
    PDE("MlpPolicy", short(), device="cpu").save(path)
    with pytest.raises(ValueError, match=f"checkpoint of {tuner.__name__}; .* holds a 'PDE'"):
        tuner.load(path, env=short())


class ConstantPolicy(girsanov.agents.base.ControlPolicy):
    """Somebody's own control, which these algorithms cannot train."""

    def control(self, k, x):
        return torch.zeros(len(x), *self.problem.noise_shape)


class Walk(Problem):
    """A user's own random walk, with switches for what may go wrong."""

    state_shape = noise_shape = (1,)
    horizon, temperature = 5, 1.0
    bad = ""

    def initial(self, n, generator):
        return torch.zeros(n, 1, device=generator.device)

    def transition(self, k, x, z):
        return x + (z.detach() if self.bad == "transition" else z) / self.horizon**0.5

    def terminal_reward(self, x):
        y = -(x[:, 0] - 1).square()
        if self.bad == "nan" and len(x) > 2:
            y = y * torch.nan
        return y.detach() if self.bad == "reward" else y


@ALL
def test_access_is_what_the_registry_states(tuner):
    """Black-box reward or its gradient: what is refused, and what is not."""
    name = {DPOK: "dpok", DDPO: "ddpo", AdjointMatching: "adjoint-matching"}[tuner]
    for bad in ("reward", "transition"):
        problem = Walk()
        problem.bad = bad
        if tuner is AdjointMatching:
            match = {
                "reward": "gradient of the reward; Walk.terminal",
                "transition": "autograd can follow; Walk's is not",
            }[bad]
            with pytest.raises(ValueError, match=match):
                small(tuner, problem).learn(1)
        else:
            assert small(tuner, problem).learn(40).reward_queries == 8
    assert AGENTS[name].access.startswith(
        "reward's gradient" if tuner is AdjointMatching else "black-box reward"
    )
    problem = Walk()
    problem.bad = "nan"
    with pytest.raises(ValueError, match="Walk.terminal_reward.* must return finite"):
        small(tuner, problem).learn(1)


@ALL
def test_tuned_takes_the_table_of_the_problem(tuner):
    table = {
        DPOK: hyperparameters.DPOK,
        DDPO: hyperparameters.DDPO,
        AdjointMatching: hyperparameters.ADJOINT_MATCHING,
    }[tuner]
    assert tuner.table is table and table["default"] == {}
    for env in ("girsanov/GaussianMixture-v0", "girsanov/Digits-v0", "girsanov/Pendulum-v0"):
        model = tuner.tuned(env, seed=0, device="cpu")
        wanted = hyperparameters.settings_for(table, model.problem)
        assert all(getattr(model, name) == value for name, value in wanted.items())
    assert tuner.tuned(MIXTURE, learning_rate=0.5).learning_rate == 0.5
    with pytest.raises(ValueError, match="nonsense"):
        tuner.tuned(MIXTURE, nonsense=1)


# --- and they learn


@pytest.mark.parametrize(
    ("tuner", "rounds", "settings"),
    [
        (DPOK, 25, {"memory": 1, "critic_learning_rate": 5e-3, "critic_steps": 20}),
        (DDPO, 25, {}),
        (AdjointMatching, 10, {}),
    ],
)
def test_learns_the_exact_optimum_of_a_linear_quadratic_chain(tuner, rounds, settings):
    problem = LinearQuadratic.damped_rotation(dimension=2, steps=5, temperature=0.5)
    common = {
        "n_trajectories": 100,
        "gradient_steps": 20,
        "learning_rate": 5e-3,
        "policy_kwargs": {"hidden": [32]},
    }
    model = tuner("MlpPolicy", problem, seed=0, device="cpu", **common, **settings).learn(
        rounds * 100 * 5
    )
    g = torch.Generator().manual_seed(1)
    nothing = objective(problem, None, 20_000, g).objective.mean
    best = problem.optimal_objective()
    got = objective(problem, model.policy.control, 10_000, g).objective
    assert got.mean <= best + 4 * got.stderr
    assert (got.mean - nothing) / (best - nothing) > 0.9
