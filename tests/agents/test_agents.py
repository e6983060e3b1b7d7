"""PDE and PIFT as stable-baselines3 algorithms, and that they learn."""

import contextlib
import errno
import json
import subprocess
import sys
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from girsanov.agents import PDE, PIFT, checkpoint
from girsanov.agents.pi_ft.value_gradients import value_gradients
from girsanov.baselines.sb3 import make_ppo
from girsanov.envs import make_problem
from girsanov.envs.certificates import certificate
from girsanov.envs.env import ProblemEnv, ProblemVectorEnv, observe
from girsanov.envs.problem import Problem, objective, rollout

MIXTURE = "girsanov/GaussianMixture-v0"
SMALL = {
    PDE: {
        "n_uncontrolled": 8,
        "n_trajectories": 4,
        "gradient_steps": 3,
        "policy_kwargs": {"hidden": [16], "members": 2},
    },
    PIFT: {"n_trajectories": 4, "gradient_steps": 3, "policy_kwargs": {"hidden": [16]}},
}
WHOLE = {
    PDE: {
        "n_trajectories": 2,
        "n_uncontrolled": 2,
        "gradient_steps": 1,
        "batch_size": 1,
        "draws": 0,
    },
    PIFT: {"n_trajectories": 2, "gradient_steps": 1, "batch_size": 1, "memory": 1},
}
AGENTS = pytest.mark.parametrize("agent", [PDE, PIFT])


def small(agent, env=MIXTURE, **kwargs):
    return agent("MlpPolicy", env, seed=3, device="cpu", **{**SMALL[agent], **kwargs})


def parameters(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def a_control(model) -> np.ndarray:
    x = torch.linspace(-1, 1, 10).reshape(5, 2)
    return model.predict(observe(model.problem, 30, x).numpy(), deterministic=True)[0]


@AGENTS
@pytest.mark.parametrize(
    "env", ["id", "problem", "env", "vector of SB3", "vector of Gymnasium", "wrapped"]
)
def test_takes_what_sb3_takes(agent, env):
    given = {
        "id": MIXTURE,
        "problem": make_problem(MIXTURE),
        "env": gym.make(MIXTURE),
        "vector of SB3": make_vec_env(MIXTURE, n_envs=2),
        "vector of Gymnasium": gym.make_vec(MIXTURE, num_envs=2),
        "wrapped": gym.wrappers.TimeLimit(gym.make(MIXTURE), 50),
    }[env]
    told = pytest.warns(UserWarning, match="does not see what these wrappers change: TimeLimit")
    with told if env == "wrapped" else contextlib.nullcontext():
        model = small(agent, given).learn(1)
    assert model.reward_queries > 0 and model.num_timesteps == 50 * model.reward_queries


@AGENTS
def test_counts_steps_and_queries(agent):
    model = small(agent).learn(50 * 20)
    assert model.num_timesteps == 50 * model.reward_queries >= 50 * 20
    model.learn(50 * 4, reset_num_timesteps=False)
    assert model.num_timesteps == 50 * model.reward_queries >= 50 * 24
    assert model.learn(1).num_timesteps <= 50 * 8  # counters start anew by default


@AGENTS
def test_same_seed_same_result_and_other_seed_another(agent):
    first, second = small(agent).learn(1000), small(agent).learn(1000)
    assert torch.equal(parameters(first), parameters(second))
    other = agent("MlpPolicy", MIXTURE, seed=4, device="cpu", **SMALL[agent]).learn(1000)
    assert not torch.equal(parameters(first), parameters(other))


@AGENTS
def test_sb3_callbacks_progress_bar_and_evaluation(agent, tmp_path):
    callbacks = [
        EvalCallback(
            gym.make(MIXTURE),
            eval_freq=60,
            n_eval_episodes=2,
            best_model_save_path=str(tmp_path),
            verbose=0,
            warn=False,
        ),
        CheckpointCallback(100, str(tmp_path), verbose=0),
    ]
    model = small(agent, tensorboard_log=str(tmp_path / "tb")).learn(
        1000, callback=callbacks, progress_bar=True
    )
    assert (tmp_path / "best_model.zip").exists()
    assert list(tmp_path.glob("rl_model_*_steps.zip"))
    assert list((tmp_path / "tb").rglob("events*"))
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=3, warn=False)
    assert np.isfinite(mean)


@AGENTS
def test_a_callback_can_stop_it(agent):
    class Stop(StopTrainingOnMaxEpisodes):
        def _on_step(self):
            return self.n_calls < 30

    model = small(agent).learn(10**9, callback=Stop(1))
    assert 0 < model.num_timesteps <= 50 * 8


@AGENTS
def test_episodes_are_counted_for_sb3s_callbacks(agent):
    model = small(agent).learn(10**9, callback=StopTrainingOnMaxEpisodes(9))
    assert model.num_timesteps == 50 * 12  # PDE: 8 and 4 paths; PI-FT: three rounds of 4


@AGENTS
def test_it_has_what_sb3_s_recipes_ask_for(agent):
    model = small(agent, stats_window_size=3).learn(1)
    assert model.gamma == 1.0  # of the HParams recipe
    assert model.ep_info_buffer.maxlen == 3


@AGENTS
def test_predicts_from_float64_as_sb3s_own_policies_do(agent):
    model = small(agent)
    observation = observe(model.problem, 30, torch.linspace(-1, 1, 10).reshape(5, 2)).numpy()
    assert np.array_equal(
        model.predict(observation.astype(np.float64))[0], model.predict(observation)[0]
    )


@AGENTS
def test_wrappers_that_it_does_not_see_are_warned_of(agent):
    for env in (
        VecNormalize(make_vec_env(MIXTURE)),
        gym.wrappers.NormalizeObservation(gym.make(MIXTURE)),
        gym.wrappers.RescaleAction(gym.make(MIXTURE), np.float32(-0.5), np.float32(0.5)),
        gym.wrappers.TransformReward(gym.make(MIXTURE), lambda r: 2 * r),
        VecFrameStack(make_vec_env(MIXTURE), 2),
        gym.wrappers.FrameStackObservation(gym.make(MIXTURE), 2),
        gym.wrappers.TimeLimit(gym.make(MIXTURE), 3),
        gym.wrappers.vector.NormalizeReward(gym.make_vec(MIXTURE, 2)),
    ):
        with pytest.warns(UserWarning, match="does not see what these wrappers change"):
            small(agent, env)
    with pytest.warns(UserWarning, match="these wrappers change: TimeLimit"):
        make_ppo(gym.wrappers.TimeLimit(gym.make(MIXTURE), 3))
    small(
        agent, gym.wrappers.RecordEpisodeStatistics(gym.make(MIXTURE))
    )  # a warning would fail the test


@AGENTS
def test_save_load_resume(agent, tmp_path):
    model = small(agent).learn(1000)
    model.save(tmp_path / "model")
    assert not list(tmp_path.glob(".*")), "no partial file is left"
    again = agent.load(tmp_path / "model.zip", env=MIXTURE, device="cpu")
    assert np.array_equal(a_control(model), a_control(again))
    assert (again.num_timesteps, again.reward_queries) == (
        model.num_timesteps,
        model.reward_queries,
    )
    assert torch.equal(again.generator.get_state(), model.generator.get_state())
    before = again.num_timesteps
    units = {
        name: value.clone()
        for name, value in again.policy.named_buffers()
        if not name.endswith("bounds")
    }
    again.learn(200, reset_num_timesteps=False)
    assert again.num_timesteps > before
    assert not np.array_equal(a_control(model), a_control(again))
    after = dict(again.policy.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in units.items()), (
        "units are taken once"
    )


@AGENTS
def test_load_in_another_process(agent, tmp_path):
    model = small(agent).learn(600)
    model.save(tmp_path / "m.zip")
    code = (
        "import torch, numpy as np, girsanov.agents as A; torch.set_num_threads(1)\nm ="
        f" A.{agent.__name__}.load({str(tmp_path / 'm.zip')!r}, env={MIXTURE!r}, device='cpu')\no ="
        " np.concatenate([np.linspace(-1, 1, 10).reshape(5, 2), np.full((5, 1), 0.6)],"
        " 1).astype('float32')\nprint(m.predict(o, deterministic=True)[0].tolist())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert np.allclose(np.array(json.loads(out.splitlines()[-1])), a_control(model), atol=1e-6)


@AGENTS
def test_set_env_changes_the_problem(agent):
    model = small(agent).learn(1)
    model.set_env(gym.make(MIXTURE, temperature=2.0))
    assert model.problem.temperature == 2.0 and model.policy.problem is model.problem
    model.set_env(ProblemEnv(make_problem(MIXTURE, temperature=1.0)))
    assert model.problem.temperature == 1.0
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env("girsanov/Pendulum-v0")
    with pytest.raises(ValueError, match="horizon that the agent was made for, 50; got 20"):
        model.set_env(gym.make(MIXTURE, steps=20))
    assert model.problem.horizon == 50 and model.env.get_attr("problem")[0].horizon == 50


@AGENTS
def test_set_env_forgets_the_other_problems_paths(agent):
    model = small(agent).learn(1)
    assert model.rounds if agent is PDE else model.policy.recent
    model.set_env(gym.make(MIXTURE, temperature=2.0))
    assert not model.rounds if agent is PDE else not model.policy.recent


def test_radial_policy_survives_save_and_load(tmp_path):
    model = PDE(
        "RadialPolicy",
        MIXTURE,
        seed=0,
        device="cpu",
        n_uncontrolled=20,
        n_trajectories=5,
        policy_kwargs={"centres": 30},
    )
    model.learn(50 * 30).save(tmp_path / "m")
    again = PDE.load(tmp_path / "m", env=MIXTURE, device="cpu")
    assert np.array_equal(a_control(model), a_control(again))
    again.learn(250, reset_num_timesteps=False)
    assert np.isfinite(a_control(again)).all()


@AGENTS
def test_bad_checkpoints_give_one_clear_error(agent, tmp_path):
    model = small(agent).learn(1)
    path = tmp_path / "good.zip"
    model.save(path)
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.zip").write_bytes(b"not a zip at all")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(flipped)
    for name in ("cut", "noise", "flipped"):
        with pytest.raises(ValueError, match="corrupt or truncated"):
            agent.load(tmp_path / f"{name}.zip", env=MIXTURE)
    PPO("MlpPolicy", gym.make(MIXTURE), n_steps=50, batch_size=50, device="cpu").save(
        tmp_path / "ppo.zip"
    )
    with pytest.raises(ValueError, match="written by stable-baselines3"):
        agent.load(tmp_path / "ppo.zip", env=MIXTURE)
    other = PIFT if agent is PDE else PDE
    with pytest.raises(ValueError, match=f"holds a '{agent.__name__}'"):
        other.load(path, env=MIXTURE)
    with pytest.raises(ValueError, match="kind that the checkpoint was trained on"):
        agent.load(path, env="girsanov/Pendulum-v0")
    with pytest.raises(ValueError, match="there is no file"):
        agent.load(tmp_path / "absent.zip", env=MIXTURE)
    with pytest.raises(ValueError, match="env must be given"):
        agent.load(path)


@AGENTS
def test_another_temperature_is_told(agent, tmp_path):
    model = small(agent).learn(1)
    model.save(tmp_path / "m")
    hot = make_problem(MIXTURE, temperature=2 * model.problem.temperature)
    with pytest.warns(UserWarning, match=r"learnt at temperature 0\.5 and is loaded into 1, at"):
        agent.load(tmp_path / "m", env=hot)


def _without_a_tensor(tensors, settings):
    del tensors[max(name for name in tensors if name.startswith("policy/"))]


@AGENTS
@pytest.mark.parametrize(
    "change",
    [
        _without_a_tensor,
        lambda tensors, settings: tensors.pop("generator"),
        lambda tensors, settings: settings.pop("hyperparameters"),
        lambda tensors, settings: settings["hyperparameters"].update(of_tomorrow=1),
    ],
)
def test_checkpoints_of_other_versions_give_one_clear_error(agent, change, tmp_path):
    small(agent).save(tmp_path / "m")
    tensors, settings = checkpoint.read(tmp_path / "m", agent.__name__)
    change(tensors, settings)
    checkpoint.write(tmp_path / "m", tensors, settings)
    with pytest.raises(ValueError, match="checkpoint of this version of"):
        agent.load(tmp_path / "m", env=MIXTURE)


@AGENTS
@pytest.mark.parametrize("place", ["file/model", "folder.zip", "nowhere"])
def test_a_path_that_cannot_be_written_to_is_named_and_left_as_it_was(
    agent, place, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.zip").mkdir()
    if place == "nowhere":  # root may write anywhere

        def full(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.replace", full)
    found = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        OSError, match=rf"path must be a file that can be written \(.*\): '{tmp_path / place}"
    ) as error:
        small(agent).save(tmp_path / place)
    assert len(str(error.value).splitlines()) == 1 and sorted(tmp_path.rglob("*")) == found


@AGENTS
def test_numpy_s_numbers_are_saved_as_python_s(agent, tmp_path):
    small(agent, n_trajectories=np.int64(4), averaging=np.float32(0.5)).save(tmp_path / "m")
    again = agent.load(tmp_path / "m", env=MIXTURE)
    assert (again.n_trajectories, again.averaging) == (4, 0.5)


@AGENTS
def test_a_checkpoint_holds_no_code(agent, tmp_path):
    small(agent).learn(1).save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert sorted(archive.namelist()) == ["settings.json", "tensors.safetensors"]


@AGENTS
def test_bad_arguments(agent):
    with pytest.raises(ValueError, match="policy must be one of"):
        agent("LstmPolicy", MIXTURE)
    with pytest.raises(ValueError, match="or a ControlPolicy class; got <class"):
        agent(PPO, MIXTURE)
    for rate in (-1e-3, 0, float("nan")):
        with pytest.raises(ValueError, match="learning_rate must be a positive number; got"):
            agent("MlpPolicy", MIXTURE, learning_rate=rate)
    for name, least in WHOLE[agent].items():
        for number in (least - 1, least + 0.5, float(least), True):
            with pytest.raises(
                ValueError, match=f"{name} must be a whole number of at least {least}; got {number}"
            ):
                agent("MlpPolicy", MIXTURE, **{name: number})
    with pytest.raises(ValueError, match=r"seed must be an integer of at least 0; got 2\.5"):
        agent("MlpPolicy", MIXTURE, seed=2.5)
    with pytest.raises(
        ValueError, match="path must be a file name or a file opened for writing; got None"
    ):
        small(agent).save(None)
    with pytest.raises(ValueError, match="averaging must be between 0 and 1; got 2"):
        agent("MlpPolicy", MIXTURE, averaging=2)
    with pytest.raises(ValueError, match="must be a girsanov environment"):
        agent("MlpPolicy", gym.make("Pendulum-v1"))
    with pytest.raises(
        ValueError, match="a registered id or a Problem .not its class.; got <class"
    ):
        agent("MlpPolicy", Walk)


class Walk(Problem):
    """A Gaussian random walk that users might write, with switches for what may go wrong."""

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


@AGENTS
def test_nan_rewards_are_refused(agent):
    problem = Walk()
    problem.bad = "nan"
    with pytest.raises(ValueError, match="Walk.terminal_reward.* must (be|return) finite"):
        small(agent, problem).learn(1)


@AGENTS
def test_needs_a_differentiable_transition(agent):
    problem = Walk()
    problem.bad = "transition"
    with pytest.raises(ValueError, match="transition that autograd can follow; Walk's is not"):
        small(agent, problem).learn(100)


def test_pift_needs_the_gradient_of_the_reward_and_pde_does_not():
    problem = Walk()
    problem.bad = "reward"
    with pytest.raises(ValueError, match="gradient of the reward; Walk.terminal_reward"):
        small(PIFT, problem).learn(1)
    assert small(PDE, problem).learn(100).reward_queries >= 20


def test_value_gradients_equal_finite_differences():
    """The adjoint recursion, through the policy's own dependence on the state, against central
    differences in float64.
    """
    problem = make_problem("girsanov/LinearQuadratic-v0").to(dtype=torch.float64)
    model = small(PIFT, problem)
    torch.nn.init.normal_(model.policy.network.weights[-1], std=0.1)
    model.policy.double()

    class Exact(type(model.policy)):
        def inputs(self, k, x):
            return x.flatten(1)

    model.policy.__class__ = Exact
    g = torch.Generator().manual_seed(0)
    paths = rollout(problem, model.policy.control, 3, g)
    gradients = value_gradients(model.policy, paths)

    def to_go(k, x, noises):
        total = torch.zeros(len(x), dtype=x.dtype)
        with torch.no_grad():
            for j in range(k, problem.horizon):
                a = model.policy.control(j, x)
                price = problem.temperature * (a * (0.5 * a + noises[j])).sum(1)
                total += problem.running_reward(j, x) - price
                x = problem.transition(j, x, noises[j] + a)
            return total + problem.terminal_reward(x)

    step = 1e-5
    for k in (0, 20, 49, 50):
        for i in range(problem.state_shape[0]):
            shift = step * torch.eye(problem.state_shape[0], dtype=torch.float64)[i]
            x = paths.states[k]
            numeric = (to_go(k, x + shift, paths.noises) - to_go(k, x - shift, paths.noises)) / (
                2 * step
            )
            assert torch.allclose(gradients.by_state[k][:, i], numeric, rtol=1e-5, atol=1e-7)


def reached(model, problem, n=2000) -> float:
    """Share of the way from no control to the bound."""
    g = torch.Generator().manual_seed(1)
    base = objective(problem, None, 20_000, g).objective.mean
    bound = certificate(problem, 20_000, g).bound
    return (objective(problem, model.policy.control, n, g).objective.mean - base) / (bound - base)


@pytest.mark.parametrize(
    ("agent", "policy", "queries", "least", "kwargs"),
    [
        (PDE, "MlpPolicy", 1000, 0.93, {}),
        (PDE, "RadialPolicy", 300, 0.85, {"n_uncontrolled": 200}),
        (PIFT, "MlpPolicy", 1500, 0.95, {}),
        (PIFT, "ValuePolicy", 1000, 0.80, {}),
    ],
)
def test_learns_the_mixture(agent, policy, queries, least, kwargs):
    problem = make_problem(MIXTURE)
    model = agent(policy, problem, seed=0, device="cpu", **kwargs).learn(queries * problem.horizon)
    assert reached(model, problem) > least


@AGENTS
def test_learns_the_exact_optimum_of_a_linear_quadratic_chain(agent):
    problem = make_problem("girsanov/LinearQuadratic-v0")
    model = agent("MlpPolicy", problem, seed=0, device="cpu").learn(1000 * problem.horizon)
    g = torch.Generator().manual_seed(1)
    base = objective(problem, None, 20_000, g).objective.mean
    best = problem.optimal_objective()
    got = objective(problem, model.policy.control, 4000, g).objective
    assert got.mean <= best + 4 * got.stderr
    assert (got.mean - base) / (best - base) > 0.8


def test_vector_env_shell_is_accepted_too():
    env = ProblemVectorEnv(make_problem(MIXTURE, temperature=0.7), 2, action_bound=2.0)
    model = small(PDE, env)
    assert model.problem.temperature == 0.7 and model.policy.action_bound == 2.0
