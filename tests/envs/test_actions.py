"""Actions that are controls and actions that are noise: one problem, one objective."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from girsanov.envs import PROBLEMS, make_problem
from girsanov.envs.actions import ControlActions, NoiseActions, Steering, steered_steps
from girsanov.envs.env import ProblemEnv, ProblemVectorEnv, shell_of
from girsanov.envs.features import encode, time_features
from girsanov.envs.observations import FeatureObservation
from girsanov.envs.problem import objective

pytestmark = pytest.mark.usefixtures("every_id_can_be_made")
every_id = pytest.mark.parametrize("env_id", sorted(PROBLEMS))
MIXTURE = "girsanov/GaussianMixture-v0"


def noise_lanes(env_id: str, n: int, **kwargs: Any) -> ProblemVectorEnv:
    made = gym.make_vec(
        env_id, n, vectorization_mode="vector_entry_point", actions="noise", tensors=True, **kwargs
    )
    assert isinstance(made, ProblemVectorEnv)
    return made


@pytest.mark.filterwarnings("error")
@every_id
def test_both_checkers_pass_in_the_noise_form(env_id: str) -> None:
    # both recommend actions in [-1, 1], which noise is not: that is all that they may say of 5
    for bound in (1.0, 5.0):
        env = gym.make(env_id, actions="noise", observation="features", action_bound=bound)
        with warnings.catch_warnings():
            if bound > 1:
                warnings.filterwarnings("ignore", ".*symmetric and normalized")
            gymnasium_check(env.unwrapped)
            sb3_check(env)


@every_id
def test_the_same_noises_give_the_same_states_in_both_forms(env_id: str) -> None:
    env = gym.make(env_id, action_bound=1.0).unwrapped
    twin = gym.make(env_id, actions="noise", action_bound=20.0).unwrapped
    assert isinstance(env, ProblemEnv) and isinstance(twin, ProblemEnv)
    env.reset(seed=3), twin.reset(seed=3)
    rng = np.random.default_rng(0)
    states, noises, earned = [], [], []
    for _ in range(env.problem.horizon):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        *_, info = env.step(action)
        states.append(info["state"]), noises.append(info["noise"])
        earned.append(info["task_reward"])
        a, z = action.astype(float), info["noise"].reshape(-1).astype(float)
        # log dP^0/dP^pi = -a . W - |a|^2 / 2 with W = z - a (Girsanov)
        assert info["log_ratio"] == pytest.approx(-a @ (z - a) - a @ a / 2, rel=1e-4, abs=1e-4)
    steered = steered_steps(env.problem).tolist()
    k = total = 0
    for _ in range(twin.episode_length):
        observation, reward, terminated, _, info = twin.step(noises[k].reshape(-1))
        kl = (np.square(noises[k]).sum() - noises[k].size) / 2
        assert info["kl"] == pytest.approx(kl, rel=1e-4, abs=1e-4)
        paid = info["task_reward"] - twin.problem.temperature * info["kl"]
        assert reward == pytest.approx(paid, rel=1e-5, abs=1e-5)
        total += info["task_reward"]
        k += 1
        while k < len(steered) and not steered[k]:  # carried out with the one before
            k += 1
        if all(steered):
            np.testing.assert_array_equal(info["state"], states[k - 1])
        else:  # a step without noise was given some in the control form, and made nothing of it
            np.testing.assert_allclose(info["state"], states[k - 1], atol=1e-6)
    assert terminated and k == env.problem.horizon and twin.episode_length == sum(steered)
    assert total == pytest.approx(sum(earned), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.15, 1.0), (0.1, 0.8), (-0.1, 1.1)])
@every_id
def test_returns_and_entropy_sum_to_the_objective(
    env_id: str, mean: float, deviation: float, generator: torch.Generator
) -> None:
    """J of N(a, s^2) in closed-form KL, from states that the control form would visit."""
    n = 300
    env = noise_lanes(env_id, n, action_bound=20.0)
    problem, size = env.problem, env.single_action_space.shape[0]
    env.reset(seed=1)
    returns, rewards = torch.zeros(n).double(), torch.zeros(n).double()
    for _ in range(env.episode_length):
        z = mean + deviation * torch.randn(n, size, generator=generator)
        _, reward, *_, info = env.step(z)
        returns += reward.double()
        rewards += info["task_reward"].double()
    gained = 0.5 * size * math.log(deviation**2) * env.episode_length  # entropy above N(0, I)'s
    kl = 0.5 * size * (mean**2 + deviation**2 - 1 - math.log(deviation**2)) * env.episode_length
    soft = returns + problem.temperature * gained
    wanted = rewards - problem.temperature * kl
    difference = soft - wanted  # the sampled price against its mean: the same paths
    assert abs(difference.mean()) < 3.5 * difference.std() / n**0.5 + 1e-3 * abs(wanted.mean())
    if deviation == 1.0:  # what `objective` measures, on paths of its own
        push = torch.full(problem.noise_shape, mean)
        steered = steered_steps(problem).tolist()
        other = objective(
            problem, lambda k, x: steered[k] * push.expand(len(x), *push.shape), n, generator
        )
        stderr = math.hypot(float(soft.std() / n**0.5), other.objective.stderr)
        assert abs(soft.mean() - other.objective.mean) < 3.5 * stderr


@every_id
def test_features_are_the_standardised_estimate_and_time(
    env_id: str, generator: torch.Generator
) -> None:
    problem = make_problem(env_id)
    seen, again = FeatureObservation(problem), FeatureObservation(problem)
    x = problem.initial(4, generator)
    assert torch.equal(seen(0, x), again(0, x))  # every learner sees the same
    for k in (0, problem.horizon - 1, problem.horizon):
        values = seen(k, x)
        assert values.shape == (4, seen.space.shape[0]) and values.dtype == torch.float32
        np.testing.assert_allclose(
            values[:, -9:], time_features(torch.tensor([k / problem.horizon]), 4), rtol=1e-6
        )
    inputs = encode(problem, 1, x).float()
    back = seen(1, x)[:, :-9] * seen._standardise.scale + seen._standardise.centre
    torch.testing.assert_close(back, inputs, rtol=1e-4, atol=1e-3 * float(inputs.abs().max()))
    env = gym.make(env_id, observation="features")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_a_step_without_noise_is_carried_out_with_the_one_before() -> None:
    problem = make_problem("girsanov/Digits-v0")
    assert not steered_steps(problem)[-1] and steered_steps(problem)[:-1].all()
    assert Steering(problem, ControlActions(problem)).episode_length == 50
    steering = Steering(problem, NoiseActions(problem))
    assert steering.episode_length == 49
    x, generator = problem.initial(2, torch.Generator().manual_seed(0)), torch.Generator()
    z = torch.randn(2, 1, 8, 8)
    moved = steering.advance(48, x, z, generator)
    by_hand = problem.transition(49, problem.transition(48, x, z), torch.zeros_like(z))
    assert moved.k == 50 and torch.equal(moved.states[-1], by_hand) and len(moved.states) == 2
    torch.testing.assert_close(moved.reward, problem.terminal_reward(by_hand))


def test_unknown_forms_and_kinds_are_named() -> None:
    problem = make_problem(MIXTURE)
    for shell in (ProblemEnv, ProblemVectorEnv):
        with pytest.raises(ValueError, match="actions must be one of .*'noise'.*; got 'z'"):
            shell(problem, actions="z")
        with pytest.raises(ValueError, match="observation must be one of .*; got 'pixels'"):
            shell(problem, observation="pixels")
    with pytest.raises(ValueError, match="max_episode_steps must be absent"):
        gym.make_vec(MIXTURE, 2, vectorization_mode="vector_entry_point", max_episode_steps=10)
    env = gym.make(MIXTURE, actions="noise", observation="features")
    assert shell_of(env) == {"actions": "noise", "action_bound": 5.0, "observation": "features"}
