"""One contract, held by every registered environment."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as sb3_check
from torch import Tensor

from girsanov.envs import PROBLEMS, make_problem
from girsanov.envs.env import ProblemEnv, ProblemVectorEnv, as_env, observe, problem_of, unobserve
from girsanov.envs.problem import Problem, objective

pytestmark = pytest.mark.usefixtures("every_id_can_be_made")
every_id = pytest.mark.parametrize("env_id", sorted(PROBLEMS))
MIXTURE = "girsanov/GaussianMixture-v0"
EXTRAS = (
    "optimal_value",
    "optimal_control",
    "log_moment_value",
    "reference_value",
    "terminal_estimate",
)


def make_vec(env_id: str, num_envs: int = 3, **kwargs: Any) -> ProblemVectorEnv:
    return gym.make_vec(
        env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs
    )


def episode(env: Any, seed: int | None, steps: int | None = None) -> list[Any]:
    """Everything that an environment returns while it is fed pseudo-random actions."""
    rng = np.random.default_rng(5)
    seen = [env.reset(seed=seed)]
    for _ in range(problem_of(env).horizon if steps is None else steps):
        seen.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)))
    return seen


def same(left: Any, right: Any) -> bool:
    """Equality to the bit of nested returns."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return np.array_equal(left, right) and np.asarray(left).dtype == np.asarray(right).dtype


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@every_id
def test_both_checkers_pass_without_a_warning(env_id: str, render_mode: str | None) -> None:
    gymnasium_check(gym.make(env_id, render_mode=render_mode).unwrapped)
    sb3_check(gym.make(env_id, render_mode=render_mode))


@pytest.mark.filterwarnings("error")
def test_the_checkers_warnings_are_errors_here() -> None:
    with pytest.raises(UserWarning, match="normalized"):
        sb3_check(gym.make(MIXTURE, action_bound=2.0))


@pytest.mark.filterwarnings("error")  # gym.make's passive checker watches every step
@every_id
def test_an_episode_accounts_for_its_reward(env_id: str) -> None:
    env = gym.make(env_id)
    problem = problem_of(env)
    (observation, info), *steps = episode(env, seed=1)
    state = info["state"]
    total = reward_sum = kl_sum = 0.0
    for k, (observation, reward, terminated, truncated, info) in enumerate(steps):
        assert env.observation_space.contains(observation) and isinstance(reward, float)
        assert (terminated, truncated) == (k == problem.horizon - 1, False)
        expected = float(problem.running_reward(k, torch.from_numpy(state)[None]))
        state = info["state"]
        if terminated:
            expected += float(problem.terminal_reward(torch.from_numpy(state)[None]))
        assert info["task_reward"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert state.shape == problem.state_shape
        np.testing.assert_array_equal(
            observation, np.append(state.reshape(-1), np.float32((k + 1) / problem.horizon))
        )
        total, reward_sum, kl_sum = (
            total + reward,
            reward_sum + info["task_reward"],
            kl_sum + info["kl"],
        )
    assert kl_sum > 0.1
    assert total == pytest.approx(reward_sum - problem.temperature * kl_sum, rel=1e-9)
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(env.action_space.sample())


@every_id
def test_kl_is_half_the_square_of_the_clipped_action(env_id: str) -> None:
    env = gym.make(env_id, action_bound=0.5).unwrapped
    env.reset(seed=0)
    size = env.action_space.shape[0]
    *_, info = env.step(np.full(size, 0.3, np.float32))
    assert info["kl"] == pytest.approx(0.5 * size * 0.09, rel=1e-5)
    *_, info = env.step(
        np.full(size, 7.0, np.float32)
    )  # clipped to the bound, and priced as clipped
    assert info["kl"] == pytest.approx(0.5 * size * 0.25, rel=1e-5)


@pytest.mark.parametrize("make", [gym.make, make_vec])
@every_id
def test_seeding_to_the_bit(env_id: str, make: Any) -> None:
    env = make(env_id)
    first = episode(env, seed=7)
    assert same(first, episode(make(env_id), seed=7)) and same(first, episode(env, seed=7))
    assert not np.array_equal(first[1][0], episode(env, seed=8)[1][0])
    unseeded = [episode(env, seed=None), episode(env, seed=None), episode(make(env_id), seed=None)]
    starts = [
        first[1][0],
        *(seen[1][0] for seen in unseeded),
    ]  # the stream goes on, and a new one begins anywhere
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(starts, 2))


@every_id
def test_vector_shapes_and_dtypes(env_id: str) -> None:
    env = make_vec(env_id, 3)
    problem, size = env.problem, int(np.prod(env.problem.state_shape))
    assert env.observation_space.shape == (3, size + 1) and env.action_space.shape == (
        3,
        int(np.prod(problem.noise_shape)),
    )
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, reward, terminated, truncated, infos = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert reward.shape == terminated.shape == truncated.shape == infos["kl"].shape == (3,)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert infos["state"].shape == (3, *problem.state_shape)


@every_id
def test_next_step_autoreset(env_id: str) -> None:
    env = make_vec(env_id, 3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    last = episode(env, seed=0)[-1]
    assert last[2].all() and not last[3].any() and (last[0][:, -1] == 1).all()
    observation, reward, terminated, truncated, infos = env.step(
        np.ones(env.action_space.shape, np.float32)
    )
    assert (observation[:, -1] == 0).all() and not terminated.any() and not truncated.any()
    assert not reward.any() and not infos["kl"].any()  # the action was ignored


@every_id
def test_same_step_autoreset(env_id: str) -> None:
    env = make_vec(env_id, 3, autoreset_mode=AutoresetMode.SAME_STEP)  # or "same_step"
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    first, *_, before, last = episode(env, seed=0)
    observation, reward, terminated, truncated, infos = last
    assert terminated.all() and not truncated.any() and "final_obs" not in before[4]
    assert (observation[:, -1] == 0).all() and not np.array_equal(observation, first[0])
    assert infos["final_obs"].dtype == np.float32 and infos["final_obs"].shape == observation.shape
    assert (infos["final_obs"][:, -1] == 1).all() and infos["_final_obs"].all()
    # lane by lane it is the episode of the other mode
    assert same([infos["final_obs"], reward], [*episode(make_vec(env_id, 3), seed=0)[-1][:2]])


@every_id
def test_disabled_autoreset(env_id: str) -> None:
    env = make_vec(env_id, 2, autoreset_mode="disabled")
    episode(env, seed=0)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.reset(options={"reset_mask": np.ones(2, bool)})
    env.step(env.action_space.sample())
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize("make", [gym.make, make_vec])
@every_id
def test_returned_arrays_belong_to_the_caller(env_id: str, make: Any) -> None:
    env, twin = make(env_id), make(env_id)
    env.reset(seed=3), twin.reset(seed=3)
    action = np.full(env.action_space.shape, 0.25, np.float32)
    kept = []
    for _ in range(3):
        mine, yours = env.step(action), twin.step(action)
        assert same(mine, yours)
        kept.append((mine, copy.deepcopy(mine)))
        for array in (yours[0], yours[1], yours[4]["state"]):
            if isinstance(array, np.ndarray):
                array[...] = 99.0  # what a careless caller writes must not reach the environment
    assert all(same(*pair) for pair in kept)


@every_id
def test_rendering(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    start = env.render()
    assert start.dtype == np.uint8 and start.ndim == 3 and start.shape[2] == 3 and start.std() > 0
    for _ in range(5):
        env.step(env.action_space.sample())
    assert not np.array_equal(start, env.render())
    vector = make_vec(env_id, 2, render_mode="rgb_array")
    vector.reset(seed=0)
    vector.step(vector.action_space.sample())
    frames = vector.render()
    assert len(frames) == 2 and frames[0].shape == start.shape and not np.array_equal(*frames)
    assert ProblemEnv(env.unwrapped.problem).render() is None


@every_id
def test_problems_pickle_and_copy(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    x = problem.initial(4, generator)
    z = torch.randn(4, *problem.noise_shape, generator=generator)
    for other in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem), copy.copy(problem)):
        assert torch.equal(other.transition(1, x, z), problem.transition(1, x, z))
        assert torch.equal(other.terminal_reward(x), problem.terminal_reward(x))


@every_id
def test_to_float64(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    double = problem.to(dtype=torch.float64)
    double.validate()
    x = double.initial(8, generator)
    z = torch.randn(8, *problem.noise_shape, generator=generator, dtype=torch.float64)
    y = double.transition(2, x, z)
    assert (
        x.dtype
        == y.dtype
        == double.running_reward(0, x).dtype
        == double.terminal_reward(x).dtype
        == torch.float64
    )
    torch.testing.assert_close(
        problem.transition(2, x.float(), z.float()), y.float(), rtol=1e-3, atol=1e-4
    )
    assert problem.initial(1, generator).dtype == torch.float32  # the original stays as it was


@every_id
def test_one_step_per_row(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id).to(dtype=torch.float64)
    k = torch.tensor([0, 3, problem.horizon - 1, 3, 1])
    x = problem.initial(5, generator)
    z = torch.randn(5, *problem.noise_shape, generator=generator, dtype=torch.float64)
    found = [name for name in EXTRAS if hasattr(problem, name)]
    for method, *rest in [
        (problem.transition, z),
        (problem.running_reward,),
        *((getattr(problem, name),) for name in found),
    ]:
        together = method(k, x, *rest)
        assert len(together) == 5
        for row in range(5):
            alone = method(
                int(k[row]), x[row : row + 1], *(tensor[row : row + 1] for tensor in rest)
            )
            # the two may use tables that were rounded apart, when the problem was built in float32
            torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


@every_id
def test_the_vector_environment_samples_the_objective(
    env_id: str, generator: torch.Generator
) -> None:
    n, push = 200, 0.1
    env = make_vec(env_id, n)
    env.reset(seed=2)
    actions = np.full(env.action_space.shape, push, np.float32)
    returns, rewards, kl = np.zeros(n), np.zeros(n), np.zeros(n)
    for _ in range(env.problem.horizon):
        _, reward, _, _, infos = env.step(actions)
        np.testing.assert_allclose(
            reward,
            infos["task_reward"] - env.problem.temperature * infos["kl"],
            rtol=1e-4,
            atol=1e-6,
        )
        returns, rewards, kl = returns + reward, rewards + infos["task_reward"], kl + infos["kl"]
    shape = env.problem.noise_shape
    expected = objective(env.problem, lambda k, x: torch.full((len(x), *shape), push), n, generator)
    for seen, estimate in ((returns, expected.objective), (rewards, expected.reward)):
        stderr = np.hypot(seen.std() / n**0.5, estimate.stderr)
        assert abs(seen.mean() - estimate.mean) < 4 * stderr
    np.testing.assert_allclose(kl, expected.kl.mean, rtol=1e-5)
    assert (
        len(np.unique(infos["state"].reshape(n, -1), axis=0)) > n / 2
    )  # lanes are independent draws


@every_id
def test_sync_vector_env_of_the_single_environment(env_id: str) -> None:
    env = SyncVectorEnv([lambda: gym.make(env_id)] * 2)
    last = episode(env, seed=0)[-1]
    assert last[2].all() and not last[3].any()


@every_id
def test_record_episode_statistics(env_id: str) -> None:
    env = RecordEpisodeStatistics(make_vec(env_id, 2))
    horizon = problem_of(env).horizon
    _, *steps = episode(env, seed=0)
    recorded = steps[-1][4]["episode"]
    assert (recorded["l"] == horizon).all()
    np.testing.assert_allclose(recorded["r"], sum(step[1] for step in steps), rtol=1e-5)
    for _ in range(horizon + 1):  # one more step: the reset
        infos = env.step(np.zeros(env.action_space.shape, np.float32))[4]
    assert (infos["episode"]["l"] == horizon).all() and len(env.return_queue) == 4


@every_id
def test_tensors_instead_of_arrays(env_id: str) -> None:
    env, twin = make_vec(env_id, 3, tensors=True), make_vec(env_id, 3)
    observation, _ = env.reset(seed=4)
    assert isinstance(observation, Tensor) and np.array_equal(
        observation.numpy(), twin.reset(seed=4)[0]
    )
    actions = twin.action_space.sample()
    for mine, theirs in zip(
        env.step(torch.from_numpy(actions))[:4], twin.step(actions)[:4], strict=True
    ):
        assert isinstance(mine, Tensor)
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-6)


@every_id
def test_observations_can_be_read_back(env_id: str, generator: torch.Generator) -> None:
    problem = make_problem(env_id)
    x = problem.initial(3, generator)
    for k in range(problem.horizon + 1):
        steps, states = unobserve(problem, observe(problem, k, x))
        assert (steps == k).all() and torch.equal(states, x)


@every_id
def test_the_temperature_is_an_argument_everywhere(env_id: str) -> None:
    for make in (gym.make, make_vec, make_problem):
        assert problem_of(make(env_id, temperature=7.0)).temperature == 7.0
        for bad in (0.0, -1.0, float("nan")):
            with pytest.raises(
                ValueError, match="temperature must be a (positive|finite) number; got"
            ):
                make(env_id, temperature=bad)


@every_id
def test_wrong_actions_are_refused(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    size = env.action_space.shape[0]
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=rf"action must have shape \({size},\); got \({size + 1},\)"
    ):
        env.step(np.zeros(size + 1, np.float32))
    vector = make_vec(env_id, 2)
    vector.reset(seed=0)
    for bad in (np.zeros((3, size), np.float32), torch.zeros(3, size)):
        with pytest.raises(
            ValueError, match=rf"action must have shape \(2, {size}\); got \(3, {size}\)"
        ):
            vector.step(bad)
    nothing = np.zeros((2, size), np.float32)
    nothing[1, 0] = np.nan
    for one, action in ((env, nothing[1]), (vector, nothing)):
        with pytest.raises(ValueError, match="action must hold no NaN; got"):
            one.step(action)
        assert np.isfinite(one.step(np.zeros_like(action))[0]).all()  # nothing was lost


def test_bad_arguments_are_named() -> None:
    problem = make_problem(MIXTURE)
    for shell in (ProblemEnv, ProblemVectorEnv):
        with pytest.raises(
            ValueError, match="render_mode must be None or 'rgb_array'; got 'human'"
        ):
            shell(problem, render_mode="human")
        with pytest.raises(ValueError, match="action_bound must be a positive number; got 0"):
            shell(problem, action_bound=0)
        with pytest.raises(gym.error.ResetNeeded):
            env = shell(problem)
            env.step(env.action_space.sample())
    with pytest.raises(ValueError, match="autoreset_mode must be one of .*; got 'sometimes'"):
        make_vec(MIXTURE, autoreset_mode="sometimes")
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1; got 0"):
        ProblemVectorEnv(problem, num_envs=0)
    with pytest.raises(ValueError, match="seed must be one integer"):
        make_vec(MIXTURE, 2).reset(seed=[1, 2])
    with pytest.raises(
        ValueError, match=r"env must be one of .*GaussianMixture-v0.*; got 'girsanov/Nowhere-v0'"
    ):
        make_problem("girsanov/Nowhere-v0")
    with pytest.raises(ValueError, match="env must be a girsanov environment"):
        problem_of(gym.make("CartPole-v1"))


class Faulty(Problem):
    """A random walk whose reward is NaN where and when it is told."""

    state_shape = noise_shape = (1,)
    horizon, temperature = 8, 1.0  # the door looks at steps 0, 1, 4 and 7

    def __init__(self, running_at: int | None = None, terminal: bool = False) -> None:
        self.running_at, self.terminal, self.calls = running_at, terminal, 0

    def initial(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(n, 1)

    def transition(self, k: Any, x: Tensor, z: Tensor) -> Tensor:
        return x + z

    def running_reward(self, k: Any, x: Tensor) -> Tensor:
        return x[:, 0] * 0 + (float("nan") if isinstance(k, int) and k == self.running_at else 0.0)

    def terminal_reward(self, x: Tensor) -> Tensor:
        self.calls += 1  # the first two calls are validate's, at the door
        return x[:, 0] + (float("inf") if self.terminal and self.calls > 2 else 0.0)


@pytest.mark.parametrize("problem", [Faulty(running_at=3), Faulty(terminal=True)])
@pytest.mark.parametrize("tensors", [None, False, True])
def test_a_reward_that_is_not_finite_is_an_error(problem: Problem, tensors: bool | None) -> None:
    problem = copy.copy(problem)
    env = ProblemEnv(problem) if tensors is None else ProblemVectorEnv(problem, 2, tensors=tensors)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="the reward of Faulty must be finite; got"):
        for _ in range(problem.horizon):
            env.step(env.action_space.sample())


def test_a_faulty_problem_is_refused_at_the_door() -> None:
    with pytest.raises(
        ValueError, match=r"Faulty.running_reward\(0, x\) must return finite numbers"
    ):
        ProblemEnv(Faulty(running_at=0))


def test_as_env_takes_an_id_a_problem_or_an_environment() -> None:
    problem = make_problem(MIXTURE)
    assert as_env(problem).problem is problem
    assert problem_of(as_env(MIXTURE)).horizon == problem.horizon
    env = gym.make(MIXTURE)
    assert as_env(env) is env
