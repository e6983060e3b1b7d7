import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from girsanov.baselines.vec_env import ProblemVecEnv
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemVectorEnv, problem_of

MIXTURE = "girsanov/GaussianMixture-v0"
LANES, STEPS = 5, 4


@pytest.fixture
def problem():
    return make_problem(MIXTURE, steps=STEPS)


def actions(seed, lanes=LANES):
    return np.random.default_rng(seed).uniform(-1, 1, (STEPS, lanes, 2)).astype(np.float32)


def play(env, controls):
    """All results of one episode, the reset first."""
    first = env.reset()
    return first, [env.step(a) for a in controls]


def test_an_episode_is_the_vector_environments(problem):
    venv = ProblemVecEnv(problem, LANES)
    venv.seed(3)
    first, results = play(venv, actions(0))
    raw = ProblemVectorEnv(problem, LANES, autoreset_mode="same_step")
    observation, _ = raw.reset(seed=3)
    np.testing.assert_array_equal(first, observation)
    for a, (observation, reward, done, _) in zip(actions(0), results, strict=True):
        wanted, wanted_reward, terminated, truncated, info = raw.step(a)
        np.testing.assert_array_equal(observation, wanted)
        np.testing.assert_allclose(reward, wanted_reward, rtol=1e-6)
        np.testing.assert_array_equal(done, terminated)
        assert not truncated.any()
    for lane, lane_info in enumerate(results[-1][3]):
        np.testing.assert_array_equal(lane_info["terminal_observation"], info["final_obs"][lane])
        assert lane_info["terminal_observation"][-1] == 1.0 and observation[lane, -1] == 0.0
        assert not np.array_equal(lane_info["terminal_observation"][:-1], observation[lane, :-1])


def test_episode_statistics_are_the_sums_of_the_steps(problem):
    venv = ProblemVecEnv(problem, LANES)
    venv.seed(0)
    controls = actions(1)
    for _ in range(2):  # the second episode must not remember the first
        _, results = play(venv, controls)
        total = sum(reward.astype(np.float64) for _, reward, _, _ in results)
        kl = 0.5 * (controls**2).sum((0, 2))
        assert not any(info for _, _, _, infos in results[:-1] for info in infos)
        episodes = [info["episode"] for info in results[-1][3]]
        np.testing.assert_allclose([e["r"] for e in episodes], total, rtol=1e-5)
        np.testing.assert_allclose([e["kl"] for e in episodes], kl, rtol=1e-5)
        np.testing.assert_allclose(
            [e["reward"] - problem.temperature * e["kl"] for e in episodes], total, rtol=1e-5
        )
        assert all(e["l"] == STEPS and e["t"] > 0 for e in episodes)
        assert not any(info["TimeLimit.truncated"] for info in results[-1][3])


def test_statistics_start_again_at_an_early_reset(problem):
    venv = ProblemVecEnv(problem, LANES)
    venv.reset()
    venv.step(np.ones((LANES, 2), np.float32))
    _, results = play(venv, np.zeros((STEPS, LANES, 2), np.float32))
    assert [info["episode"]["kl"] for info in results[-1][3]] == [0.0] * LANES


def test_results_are_fresh_writable_arrays(problem):
    venv, other = ProblemVecEnv(problem, LANES), ProblemVecEnv(problem, LANES)
    venv.seed(0), other.seed(0)
    controls = actions(2)
    venv.reset(), other.reset()
    for step, a in enumerate(controls):
        observation, reward, done, infos = venv.step(a)
        clean = other.step(a)
        np.testing.assert_array_equal(reward, clean[1])
        assert reward.dtype == observation.dtype == np.float32 and done.dtype == bool
        assert len({id(info) for info in infos}) == LANES
        observation[:], reward[:], done[:] = 9.0, 9.0, True  # as SB3 may
        infos[0]["mine"] = step
    assert [info["episode"]["r"] for info in infos] == [info["episode"]["r"] for info in clean[3]]
    assert "mine" not in infos[1]


def test_lanes_differ_and_a_seed_repeats_to_the_bit(problem):
    runs = []
    for seed in (7, 7, 8):
        venv = ProblemVecEnv(problem, LANES)
        venv.seed(seed)
        first, results = play(venv, np.zeros((STEPS, LANES, 2), np.float32))
        runs.append(np.concatenate([first, *(r[0] for r in results)]))
        assert len(np.unique(first[:, 0])) == LANES
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    again = venv.reset()  # a seed is used once
    assert not np.array_equal(again, runs[2][:LANES])


@pytest.mark.parametrize("bound", [1.0, 0.25])
def test_takes_a_problem_an_id_and_environments(problem, bound):
    for env in (
        problem,
        MIXTURE,
        gym.make(MIXTURE, steps=STEPS, action_bound=bound),
        ProblemVectorEnv(problem, 3, action_bound=bound),
        ProblemVecEnv(problem, 3, action_bound=bound),
    ):
        venv = ProblemVecEnv(env, 2)
        assert venv.num_envs == 2 and isinstance(problem_of(venv), type(problem))
        assert venv.action_space.high[0] == (1.0 if env is problem or env is MIXTURE else bound)
    with pytest.raises(ValueError, match="girsanov environment"):
        ProblemVecEnv(gym.make("Pendulum-v1"))


def test_actions_are_clipped_to_the_bound(problem):
    venv = ProblemVecEnv(problem, LANES, action_bound=0.5)
    _, results = play(venv, np.full((STEPS, LANES, 2), 100.0, np.float32))
    np.testing.assert_allclose(
        [i["episode"]["kl"] for i in results[-1][3]], STEPS * 0.25, rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"shape \(5, 2\)"):
        venv.step(np.zeros((LANES, 3), np.float32))


def test_attributes_and_methods(problem):
    venv = ProblemVecEnv(problem, LANES, render_mode="rgb_array")
    assert (
        venv.get_attr("problem") == [problem] * LANES
        and venv.get_attr("num_envs", [0, 2]) == [LANES] * 2
    )
    assert venv.has_attr("problem") and not venv.has_attr("nonsense")
    venv.set_attr("action_bound", 0.5)
    assert venv.get_attr("action_bound", 0) == [0.5]
    with pytest.raises(ValueError, match="indices must be None"):
        venv.set_attr("action_bound", 0.5, indices=[0])
    assert venv.env_is_wrapped(Monitor) == [True] * LANES and venv.env_is_wrapped(
        gym.Wrapper, [1]
    ) == [False]
    first = venv.env_method("reset", seed=3, indices=[0])
    assert len(first) == 1 and isinstance(first[0][0], torch.Tensor)
    venv.reset()
    picture = venv.render()
    assert picture.dtype == np.uint8 and picture.ndim == 3
    venv.close()


def test_vec_monitor_adds_nothing_new(problem):
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        venv = VecMonitor(ProblemVecEnv(problem, LANES))
    venv.seed(0)
    _, results = play(venv, actions(3))
    own = ProblemVecEnv(problem, LANES)
    own.seed(0)
    _, own_results = play(own, actions(3))
    for a, b in zip(results[-1][3], own_results[-1][3], strict=True):
        assert (
            a["episode"]["r"] == pytest.approx(b["episode"]["r"], rel=1e-5)
            and a["episode"]["l"] == b["episode"]["l"]
        )
