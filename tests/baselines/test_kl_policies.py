"""SB3's PPO and SAC in the noise form: their price, their start, and what they learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from girsanov.baselines import hyperparameters
from girsanov.baselines.hyperparameters import settings_for
from girsanov.baselines.kl_policies import (
    KLActorCriticPolicy,
    KLSACPolicy,
    MeanPriced,
    PricedReplayBuffer,
    RatioKept,
)
from girsanov.baselines.sb3 import deterministic_policy, lanes_like, link, make_ppo, make_sac
from girsanov.baselines.vec_env import ProblemVecEnv
from girsanov.envs import make_problem
from girsanov.envs.problem import Problem, objective

MIXTURE = "girsanov/GaussianMixture-v0"
BOTH = pytest.mark.parametrize("make", [make_ppo, make_sac])


class Drift(Problem):
    """Two steps of a random walk, paid by where it ends: J is quadratic in a constant control."""

    state_shape = noise_shape = (2,)
    horizon, temperature = 2, 0.5

    def initial(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(n, 2)

    def transition(self, k: Any, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return x + z

    def terminal_reward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.25 * x.sum(1)


@BOTH
def test_is_sb3s_own_algorithm_with_the_tabled_settings(make: Any) -> None:
    model = make(MIXTURE, seed=0)
    kind, policy, table = {
        make_ppo: (PPO, KLActorCriticPolicy, hyperparameters.PPO),
        make_sac: (SAC, KLSACPolicy, hyperparameters.SAC),
    }[make]
    wanted = settings_for(table, make_problem(MIXTURE))
    assert type(model) is kind and type(model.policy) is policy
    assert model.gamma == 1.0 and model.n_envs == wanted["n_envs"]
    assert model.policy.net_arch == wanted["net_arch"]
    assert model.lr_schedule(1.0) == wanted["learning_rate"] and model.lr_schedule(0.0) == 0.0
    assert model.get_env().get_attr("actions")[0].name == "noise"
    assert model.get_env().get_attr("observation")[0].name == "features"


@BOTH
def test_begins_at_the_pre_trained_model(make: Any) -> None:
    problem = make_problem("girsanov/Digits-v0")
    model = make(problem, seed=0, n_envs=2)
    x = problem.initial(256, torch.Generator().manual_seed(0))
    control = deterministic_policy(model, problem)(0, x)
    assert control.shape == x.shape and control.abs().max() < 0.1
    seen = model.get_env().get_attr("observation")[0](0, x)
    with torch.no_grad():
        z = model.policy._predict(seen, deterministic=False)
    if make is make_sac:
        z = z * 5
    assert 0.97 < z.std() < 1.03 and abs(z.mean()) < 0.05  # the chain's own noise


def test_ppo_is_charged_half_the_square_of_its_mean() -> None:
    problem = Drift()
    model = make_ppo(problem, seed=0, n_envs=500, control_bound=3.0)
    venv, policy = model.get_env(), model.policy
    assert isinstance(venv, MeanPriced) and venv.scale == problem.temperature
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.tensor([0.3, -0.2]))
    observation = venv.reset()
    with torch.no_grad():
        actions, _, log_prob = policy(torch.from_numpy(observation))
    mean = policy.last_mean[0].detach()
    assert torch.allclose(mean, torch.tensor([0.3, -0.2]), atol=1e-2)
    normal = torch.distributions.Normal(mean, 1.0)
    torch.testing.assert_close(log_prob, normal.log_prob(actions).sum(1))
    _, reward, _, _ = venv.step(actions.numpy())
    np.testing.assert_allclose(reward, -0.5 * float(mean.square().sum()), atol=1e-5)
    _, reward, done, infos = venv.step(actions.numpy())
    ends = np.stack([info["terminal_observation"] for info in infos])
    assert done.all() and len(ends) == 500 and venv.reward_queries == 500
    values, _, minus_kl = policy.evaluate_actions(torch.from_numpy(observation), actions)
    torch.testing.assert_close(
        minus_kl, -0.5 * mean.square().sum().expand(500), rtol=1e-4, atol=1e-5
    )


def test_sac_is_not_charged_and_its_likelihoods_are_relative_to_the_noise() -> None:
    problem = Drift()
    model = make_sac(problem, seed=0, n_envs=4)
    venv, actor = model.get_env(), model.policy.actor
    assert type(venv) is RatioKept and model.ent_coef == problem.temperature
    venv.reset()
    _, reward, _, _ = venv.step(np.full((4, 2), 1.5, np.float32))
    np.testing.assert_allclose(reward, 0.0, atol=1e-6)
    observation = torch.from_numpy(venv.reset()[:1]).expand(100_000, -1)
    with torch.no_grad():
        action, ratio = actor.action_log_prob(observation)
        mean, log_std, _ = actor.get_action_dist_params(observation[:1])
    # against the density by hand: a tanh-squashed Gaussian, and N(0, I) of z = 5 action
    u = torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
    density = (density - torch.log(5 * (1 - action.square()) + 1e-6)).sum(1)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(5 * action).sum(1)
    torch.testing.assert_close(ratio, density - normal, atol=2e-3, rtol=1e-3)
    assert 0 <= float(ratio.mean()) < 0.01  # the KL of the start, which is nearly N(0, I)
    actor.mu.bias.data.fill_(0.1)  # z has a mean of 0.5 in each of two coordinates
    with torch.no_grad():
        actor(observation)
    assert float(actor.last_kl.mean()) == pytest.approx(0.5 * 2 * 0.5**2, abs=0.02)


def test_a_bound_of_the_control_is_a_positive_number() -> None:
    """Settings of checkpoints go straight to the policy."""
    with pytest.raises(ValueError, match="control_bound must be a positive number; got 'wide'"):
        make_ppo(Drift(), seed=0, policy_kwargs={"control_bound": "wide"})


def test_what_sac_draws_before_it_learns_has_no_price() -> None:
    """Nor after an evaluation in between, which asks the same policy for other actions."""
    prices: list[tuple[int, float]] = []

    class Evaluating(BaseCallback):
        def _on_step(self) -> bool:
            prices.append((self.num_timesteps, float(np.abs(self.training_env.price).max())))  # type: ignore[attr-defined]
            seen = torch.zeros(4, *self.model.observation_space.shape)  # type: ignore[misc]
            self.model.policy.predict(seen.numpy(), deterministic=self.num_timesteps % 8 == 0)
            return True

    settings = {"n_envs": 4, "learning_starts": 40, "batch_size": 16, "net_arch": [8]}
    make_sac(Drift(), seed=0, **settings).learn(80, Evaluating())
    assert all(price == 0 for steps, price in prices if steps <= 40)
    assert all(price > 0 for steps, price in prices if steps > 44) and prices[-1][0] == 80


def test_sac_over_several_steps_pays_for_each_but_the_first() -> None:
    problem = make_problem(MIXTURE, steps=6, temperature=0.5)
    model = make_sac(problem, seed=0, n_envs=1, net_arch=[8], n_steps=4, batch_size=64)
    model.policy.actor.mu.bias.data.fill_(0.1)  # a control of 0.5, so that steps have a price
    model.learn(60)
    buffer = model.replay_buffer
    assert type(buffer) is PricedReplayBuffer
    index = np.arange(54)
    got = buffer._get_samples(index)
    plain, prices, length = (
        buffer.rewards + buffer.prices,
        buffer.prices,
        buffer.dones[:54].argmax(),
    )
    for first, value in zip(index, got.rewards[:, 0].tolist(), strict=True):
        last = min(first + 4, (first // (length + 1) + 1) * (length + 1))
        paid = prices[first + 1 : last, 0].sum()
        assert value == pytest.approx(float(plain[first:last, 0].sum() - paid), abs=1e-5)
    assert prices[:54].std() > 0.1
    rewards = SAC("MlpPolicy", model.get_env(), n_steps=4).replay_buffer
    assert type(rewards) is NStepReplayBuffer  # another policy than ours keeps SB3's


@BOTH
def test_learns_the_optimum_of_a_linear_reward(make: Any) -> None:
    """The optimal control is 0.5 in each coordinate and step: 0.25 / temperature."""
    problem = Drift()
    settings = {"n_envs": 50, "net_arch": [16], "learning_rate": 3e-3}
    model = make(problem, seed=0, **settings)
    model.learn(16_000 if make is make_ppo else 12_000)
    value = objective(
        problem, deterministic_policy(model, problem), 4000, torch.Generator()
    ).objective
    best = 2 * 2 * (0.25 * 0.5 - 0.5 * 0.5**2 / 2)
    assert best == pytest.approx(0.25)
    assert value.mean > 0.85 * best - 3 * value.stderr


@BOTH
def test_same_seed_same_result_and_another_seed_another(make: Any) -> None:
    weights = []
    for seed in (0, 0, 1):
        model = make(make_problem(MIXTURE, steps=4), seed=seed, n_envs=4, net_arch=[8])
        model.learn(200)
        weights.append(torch.cat([p.flatten() for p in model.policy.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@BOTH
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")  # they are not
def test_evaluates_in_the_control_form_and_goes_on_after_a_reload(
    make: Any, tmp_path: Path
) -> None:
    problem = make_problem(MIXTURE, steps=5)
    model = make(problem, seed=0, n_envs=4, net_arch=[16])
    judge = ProblemVecEnv(problem, 5, observation="features")  # the mean as control, fresh noise
    evaluation = EvalCallback(judge, eval_freq=20, n_eval_episodes=10, verbose=0)
    model.learn(320, callback=evaluation)
    assert np.isfinite(evaluation.best_mean_reward)
    model.save(tmp_path / "model.zip")
    saved = {name: getattr(model, name) for name in ("n_envs", "action_space", "policy_class")}
    saved["observation_space"] = model.observation_space
    loaded = link(type(model).load(tmp_path / "model.zip", env=lanes_like(saved, problem)))
    x = problem.initial(8, torch.Generator().manual_seed(0))
    before, after = (deterministic_policy(m, problem)(2, x) for m in (model, loaded))
    assert torch.equal(before, after)
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 360


def test_squashing_starts_at_unit_deviation() -> None:
    assert math.isclose(5 * math.tanh(1.05 / 5), 1.0, rel_tol=0.05)
