"""SB3's PPO and SAC whose action is the control; those that see the noise: test_kl_policies."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from girsanov.baselines import hyperparameters_control as hyperparameters
from girsanov.baselines.hyperparameters import settings_for
from girsanov.baselines.sb3 import GentleSACPolicy, deterministic_policy
from girsanov.baselines.sb3 import make_ppo_control as make_ppo
from girsanov.baselines.sb3 import make_sac_control as make_sac
from girsanov.baselines.vec_env import ProblemVecEnv
from girsanov.envs import PROBLEMS, make_problem
from girsanov.envs.certificates import certificate
from girsanov.envs.env import observe, problem_of
from girsanov.envs.problem import Problem, objective

MIXTURE = "girsanov/GaussianMixture-v0"
BOTH = pytest.mark.parametrize("make", [make_ppo, make_sac])


class DoubleWell(Problem):
    """A user's own problem: nothing in the tables knows its name."""

    state_shape, noise_shape, horizon, temperature = (1,), (1,), 8, 0.5

    def initial(self, n, generator):
        return torch.full((n, 1), -1.0, device=generator.device)

    def transition(self, k, x, z):
        return x + (x - x**3) * 0.1 + 0.3 * z

    def terminal_reward(self, x):
        return -(x[:, 0] - 1.0).square()


def start(problem, n=64):
    return problem.initial(n, torch.Generator().manual_seed(0))


def score(model, problem, n=2000):
    fresh = torch.Generator().manual_seed(1)
    nothing = objective(problem, None, 20_000, fresh).objective.mean
    bound = certificate(problem, 20_000, fresh).bound
    return (
        objective(problem, deterministic_policy(model, problem), n, fresh).objective.mean - nothing
    ) / (bound - nothing)


@BOTH
def test_is_sb3s_own_algorithm_with_the_tabled_settings(make):
    model = make(MIXTURE, seed=0)
    table = {make_ppo: hyperparameters.PPO, make_sac: hyperparameters.SAC}[make]
    wanted = settings_for(table, make_problem(MIXTURE))
    assert type(model) is {make_ppo: PPO, make_sac: SAC}[make]
    assert model.gamma == 1.0 and model.n_envs == wanted["n_envs"]
    assert (
        model.batch_size == wanted["batch_size"] and model.learning_rate == wanted["learning_rate"]
    )
    assert model.policy.net_arch == wanted["net_arch"]
    assert make is make_sac or model.n_steps == 50


@BOTH
@pytest.mark.usefixtures("every_id_can_be_made")
@pytest.mark.parametrize("env_id", sorted(PROBLEMS))
def test_begins_at_the_pre_trained_model(make, env_id):
    problem = make_problem(env_id)
    model = make(problem, seed=0, n_envs=2)
    x = start(problem)
    a = deterministic_policy(model, problem)(0, x)
    assert a.shape == (64, *problem.noise_shape) and a.abs().max() < 0.05
    observation = observe(problem, 0, x).numpy()
    wanted = float(np.exp(model.policy_kwargs["log_std_init"]))
    if make is make_sac:  # a fraction of the action bound
        wanted *= model.action_space.high[0]
    noise = (
        model.predict(observation, deterministic=False)[0]
        - model.predict(observation, deterministic=True)[0]
    )
    assert 0.5 * wanted < noise.std() < 1.5 * wanted


@BOTH
def test_deterministic_policy_is_sb3s_predict(make):
    model = make(gym.make(MIXTURE, action_bound=0.5), seed=0, n_envs=2)
    problem = problem_of(model.get_env())
    for parameter in model.policy.parameters():
        parameter.data.add_(
            0.1
            * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
        )
    x = 3 * start(problem)
    for k in (0, 7):
        a = deterministic_policy(model, problem)(k, x)
        wanted, _ = model.predict(observe(problem, k, x).numpy(), deterministic=True)
        np.testing.assert_allclose(a.numpy(), wanted, atol=1e-6)
    assert a.abs().max() == pytest.approx(0.5, abs=0.1) and a.dtype == x.dtype


@BOTH
def test_same_seed_same_result_and_another_seed_another(make):
    overrides = {"n_envs": 4, "net_arch": [8]}
    weights = []
    for seed in (0, 0, 1):
        model = make(make_problem(MIXTURE, steps=4), seed=seed, **overrides)
        model.learn(200)
        weights.append(torch.cat([p.flatten() for p in model.policy.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@BOTH
def test_a_users_problem_trains_evaluates_saves_and_resumes(make, tmp_path):
    problem = DoubleWell()
    model = make(problem, seed=0, n_envs=4, net_arch=[16])
    venv = ProblemVecEnv(problem, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as SB3's about a missing Monitor
        evaluation = EvalCallback(
            venv, eval_freq=20, n_eval_episodes=10, log_path=str(tmp_path), verbose=0
        )
        model.learn(320, callback=evaluation)
        mean, spread = evaluate_policy(model, venv, n_eval_episodes=10)
    assert np.isfinite(mean) and spread > 0 and len(evaluation.evaluations_timesteps) >= 2
    assert model.ep_info_buffer and np.isfinite([info["r"] for info in model.ep_info_buffer]).all()
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=ProblemVecEnv(problem, 4))
    x = start(problem)
    torch.testing.assert_close(
        deterministic_policy(loaded, problem)(2, x), deterministic_policy(model, problem)(2, x)
    )
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 384


@BOTH
def test_overrides_and_given_vec_envs(make):
    problem = DoubleWell()
    venv = ProblemVecEnv(problem, 3)
    model = make(
        venv,
        learning_rate=0.5,
        n_envs=99,
        policy_kwargs={"net_arch": [7]},
        activation="ELU",
        verbose=0,
    )
    assert model.get_env().problem is problem and model.n_envs == 3  # its lanes
    assert model.learning_rate == 0.5 and model.policy.net_arch == [7]
    assert any(isinstance(module, torch.nn.ELU) for module in model.policy.modules())
    with pytest.raises(TypeError, match="nonsense"):
        make(problem, nonsense=1)
    normalised = VecNormalize(DummyVecEnv([lambda: gym.make(MIXTURE)]))
    with pytest.warns(UserWarning, match="VecNormalize"):
        assert make(normalised).get_vec_normalize_env() is None


@pytest.mark.parametrize("lanes, horizon", [(20, 50), (3, 8), (1, 509), (32, 509)])
def test_ppos_minibatches_divide_its_rollout(lanes, horizon):
    problem = DoubleWell()
    problem.horizon = horizon
    model = make_ppo(problem, n_envs=lanes)
    wanted = hyperparameters.PPO["default"]["batch_size"]
    assert model.n_steps == horizon and lanes * horizon % model.batch_size == 0
    assert model.batch_size == lanes * horizon or wanted / 2 <= model.batch_size <= wanted * 2
    assert make_ppo(problem, n_envs=lanes, batch_size=horizon).batch_size == horizon


def test_settings_follow_the_class_and_are_copies():
    class Mine(type(make_problem(MIXTURE))):
        """A user's variant of a problem in the tables finds that problem's entry."""

    table = {"default": {"a": 1}, "GaussianMixture": {"a": 2}, "DenoisingProblem": {"a": 3}}
    assert settings_for(table, Mine.__new__(Mine)) == {"a": 2}
    assert settings_for(table, DoubleWell()) == {"a": 1}
    settings_for(table, DoubleWell())["a"] = 9
    assert table["default"] == {"a": 1}
    for entries in (hyperparameters.PPO, hyperparameters.SAC):
        assert all(entry["gamma"] == 1.0 for entry in entries.values())
        assert all(
            entry.keys() - {"action_bound"} == entries["default"].keys()
            for entry in entries.values()
        )


def test_gentle_start_costs_less_than_sb3s_own():
    problem = make_problem(MIXTURE)
    observation = observe(problem, 0, start(problem, 2000)).numpy()
    gentle, plain = make_sac(problem, seed=0), make_sac(problem, seed=0, policy="MlpPolicy")
    price = [
        (model.predict(observation, deterministic=False)[0] ** 2).sum(1).mean()
        for model in (gentle, plain)
    ]
    assert isinstance(gentle.policy, GentleSACPolicy) and price[0] < 0.5 * price[1]


@pytest.mark.slow
def test_ppo_learns():
    problem = make_problem(MIXTURE, steps=10)
    model = make_ppo(problem, seed=0)
    assert abs(score(model, problem)) < 0.05
    model.learn(30_000)
    assert score(model, problem) > 0.3


@pytest.mark.slow
def test_sac_learns():
    problem = make_problem(MIXTURE, steps=10)
    model = make_sac(problem, seed=0)
    assert abs(score(model, problem)) < 0.05
    model.learn(10_000)
    assert score(model, problem) > 0.3
