"""The learning forms of PIFT: their gradients, what they converge to and how fast, and what they
cost.
"""

import math
import warnings

import pytest
import torch
from memory import Peak

from girsanov.agents import PIFT
from girsanov.agents.pi_ft.linear import LinearPolicy
from girsanov.agents.pi_ft.regularity import RegularityWarning, quadratic_contraction
from girsanov.agents.pi_ft.value_gradients import value_gradients
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, objective, rollout

MIXTURE = "girsanov/GaussianMixture-v0"
SMALL = {"hidden": [16]}


def agent(policy, problem, **kwargs) -> PIFT:
    env = ProblemEnv(problem, action_bound=100.0) if isinstance(problem, Problem) else problem
    return PIFT(policy, env, **{"seed": 0, "device": "cpu", **kwargs})


class Curved(Problem):
    """One dimension, three steps, nothing linear."""

    state_shape = noise_shape = (1,)
    horizon, temperature = 3, 0.7
    differentiable = True

    def initial(self, n, generator):
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def transition(self, k, x, z):
        return x + 0.3 * torch.sin(2 * x) + (0.5 + 0.1 * torch.cos(x)) * z

    def running_reward(self, k, x):
        return 0.3 * torch.cos(3 * x[:, 0])

    def terminal_reward(self, x):
        y = -(x[:, 0] - 1).square() + torch.sin(2 * x[:, 0])
        return y if self.differentiable else y.detach()


def curved(policy: str) -> PIFT:
    """An agent in float64 whose control is far from zero and from optimal."""
    model = agent(policy, Curved(), policy_kwargs={"hidden": [4]})
    model.policy.inputs = lambda k, x: x.flatten(1)
    model.policy.double()
    for parameter in model.policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def shifted(policy, direction, step):
    """The control with the network's parameters moved by ``step`` along ``direction``."""
    state = dict(zip(dict(policy.network.named_parameters()), direction, strict=True))
    parameters = {
        name: p.detach() + step * state[name] for name, p in policy.network.named_parameters()
    }

    def control(k, x):
        def network(inputs):
            return torch.func.functional_call(policy.network, parameters, (inputs,))

        return policy.output(network, k, policy.inputs(k, x))

    return control


def test_every_gradient_agrees_with_finite_differences_of_the_objective():
    """Means over 1e5 paths, in 50 batches, of each estimate's component along a direction; z-tests
    at 4 sigma.
    """
    pathwise, score = curved("PathwisePolicy").policy, curved("ScorePolicy").policy
    score.load_state_dict(pathwise.state_dict())
    problem, g = pathwise.problem, torch.Generator().manual_seed(5)
    parameters = list(pathwise.network.parameters())
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    step, size, rows = 1e-4, 2000, []

    def along(gradient):
        return sum(float((part * v).sum()) for part, v in zip(gradient, direction, strict=True))

    def value(control, noises):
        start = torch.Generator().manual_seed(len(rows))
        paths = rollout(problem, control, size, start, noises=noises)
        return (paths.reward - problem.temperature * paths.kl).mean()

    for _ in range(50):
        with torch.no_grad():
            noises = torch.randn(problem.horizon, size, 1, generator=g, dtype=torch.float64)
            paths = rollout(
                problem,
                pathwise.control,
                size,
                torch.Generator().manual_seed(len(rows)),
                noises=noises,
            )
            up, down = (
                float(value(shifted(pathwise, direction, s), noises)) for s in (step, -step)
            )
        chain = torch.autograd.grad(value(pathwise.control, noises), parameters)
        rows.append(
            [
                (up - down) / (2 * step),
                along(chain),
                along(pathwise.gradient(paths)),
                along(score.gradient(paths)),
            ]
        )
    numeric, *estimates = torch.tensor(rows, dtype=torch.float64).T
    assert abs(numeric.mean()) > 0.1
    for estimate in estimates:
        off = estimate - numeric
        assert float(off.mean().abs()) < 4 * float(off.std()) / math.sqrt(len(rows)) + 1e-6
    assert torch.allclose(estimates[0], numeric, rtol=1e-6), (
        "differentiating the chain is exact on every path"
    )


def test_the_exact_gradient_of_linear_controls_agrees_with_finite_differences_of_the_objective():
    """Eq. (77) with features that are not linear, at a K far from optimal; 1e5 paths in 50 batches,
    at 4 sigma.
    """

    class Wavy(LinearPolicy):
        def features(self, k, x):
            return torch.cat([super().features(k, x), torch.sin(3 * x)], 1)

    problem, g = Curved(), torch.Generator().manual_seed(6)
    policy = agent(Wavy, problem).policy
    start = 0.4 * torch.randn(policy.gain.shape, generator=g, dtype=torch.float64)
    direction = torch.randn(policy.gain.shape, generator=g, dtype=torch.float64)
    size, step, rows = 2000, 1e-4, []
    for batch in range(50):
        noises = torch.randn(problem.horizon, size, 1, generator=g, dtype=torch.float64)

        def sample(shift, noises=noises, batch=batch):
            policy.gain.data.copy_(start + shift * direction)
            with torch.no_grad():
                return rollout(
                    problem,
                    policy.control,
                    size,
                    torch.Generator().manual_seed(batch),
                    noises=noises,
                )

        up, down = (
            (p.reward - problem.temperature * p.kl).mean() for p in (sample(step), sample(-step))
        )
        along = (policy.gradient(sample(0.0)) * direction).sum()
        rows.append([float(up - down) / (2 * step), float(along)])
    numeric, estimate = torch.tensor(rows, dtype=torch.float64).T
    assert abs(numeric.mean()) > 0.1
    off = estimate - numeric
    assert 0 < float(
        off.std()
    )  # (77) treats noise that the sampled chain does not: only the means agree
    assert float(off.mean().abs()) < 4 * float(off.std()) / math.sqrt(len(rows))


def linear_chain(temperature=0.5) -> LinearQuadratic:
    return LinearQuadratic.damped_rotation(dimension=3, steps=10, temperature=temperature).to(
        dtype=torch.float64
    )


def exact_gain(problem: LinearQuadratic) -> torch.Tensor:
    return torch.cat([problem.solution.shift[..., None], problem.solution.gain], 2)


def test_value_gradients_have_no_variance_at_the_optimum_of_a_linear_quadratic_chain():
    problem = linear_chain()
    model = agent("LinearPolicy", problem)
    model.policy.gain.data.copy_(exact_gain(problem))
    paths = rollout(problem, model.policy.control, 5, torch.Generator().manual_seed(0))
    x, solution = paths.states, problem.solution
    exact = solution.slope[:, None] - torch.einsum("kde,kne->knd", solution.matrix, x)
    assert torch.allclose(value_gradients(model.policy, paths).by_state, exact, atol=1e-12)


def test_linear_policy_reaches_the_only_stationary_point_from_twenty_starts():
    problem = linear_chain()
    gains = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = agent("LinearPolicy", problem, seed=seed, damping=0.6, policy_kwargs={"scale": 0.3})
        start = model.policy.gain.detach().clone()
        gains.append(model.learn(20 * 500).policy.gain.detach())
        assert (start - gains[-1]).abs().max() > 0.5
    gains = torch.stack(gains)
    assert (gains - gains[0]).abs().max() < 1e-4
    assert (gains - exact_gain(problem)).abs().max() < 1e-4


def test_linear_policy_repeats_itself_to_the_bit():
    problem = make_problem(
        "girsanov/LinearQuadratic-v0"
    )  # float32: LAPACK in it gave two or three results in six runs
    runs = [
        PIFT("LinearPolicy", problem, seed=3, n_trajectories=16, device="cpu").learn(3200)
        for _ in range(6)
    ]
    assert all(torch.equal(run.policy.gain, runs[0].policy.gain) for run in runs)


@pytest.mark.parametrize("damping", [0.3, 0.8])
def test_linear_policy_converges_at_the_linear_rate_of_the_last_step(damping):
    """With V_T known the last step contracts by exactly ``1 - damping (1 + M / beta)``, M = C^2 Q;
    no step ends up slower.
    """
    problem = LinearQuadratic(
        drift_matrix=[[0.9]],
        noise_matrix=[[0.4]],
        terminal_matrix=[[1.0]],
        target=[2.0],
        initial_covariance=[[1.0]],
        horizon=4,
        temperature=0.5,
        dtype=torch.float64,
    )
    model = agent("LinearPolicy", problem, damping=damping, policy_kwargs={"scale": 1.0})
    errors = []
    for _ in range(25):
        errors.append((model.policy.gain.detach() - exact_gain(problem)).abs().amax((1, 2)))
        model.learn(1)
    last = torch.stack(errors)[:, -1]
    factor = abs(1 - damping * (1 + 0.4**2 / 0.5))
    assert torch.allclose(
        last[1:8] / last[:7], torch.full((7,), factor, dtype=torch.float64), rtol=1e-3
    )
    late = torch.stack(errors).amax(1)
    assert late[24] < max(late[4] * (factor + 0.15) ** 20, 1e-12)


def test_linear_policy_takes_other_features():
    class Wavy(LinearPolicy):
        def features(self, k, x):
            return torch.cat([super().features(k, x), torch.sin(3 * x)], 1)

    problem = linear_chain()
    model = agent(Wavy, problem, damping=0.7, policy_kwargs={"scale": 0.1}).learn(20 * 500)
    assert torch.allclose(model.policy.gain[..., :4], exact_gain(problem), atol=1e-4)
    assert model.policy.gain[..., 4:].abs().max() < 1e-4


def test_linear_policy_wants_more_paths_than_regressors():
    with pytest.raises(
        ValueError,
        match="n_trajectories must be at least 8, more than features and noises together; got 7",
    ):
        agent("LinearPolicy", linear_chain(), n_trajectories=7).learn(1)


FORMS = pytest.mark.parametrize(
    "policy", ["MlpPolicy", "PathwisePolicy", "ScorePolicy", "FittedPolicy", "LinearPolicy"]
)


@FORMS
def test_temperatures_that_are_equal_are_the_problems(policy):
    hidden = {} if policy == "LinearPolicy" else SMALL
    one = agent(policy, make_problem(MIXTURE, temperature=0.8), policy_kwargs=hidden)
    each = agent(
        policy, make_problem(MIXTURE), policy_kwargs={**hidden, "temperatures": [0.8] * 50}
    )
    for p, q in zip(
        one.learn(50 * 150).policy.parameters(),
        each.learn(50 * 150).policy.parameters(),
        strict=True,
    ):
        assert torch.allclose(p, q, rtol=1e-3, atol=1e-6) and p.abs().max() > 0


def test_a_temperature_for_each_step_gives_its_own_optimum():
    problem = linear_chain()
    temperatures = torch.linspace(0.3, 1.5, 10, dtype=torch.float64)
    model = agent(
        "LinearPolicy", problem, damping=0.7, policy_kwargs={"temperatures": temperatures.tolist()}
    )
    model.learn(25 * 500)
    P, p = problem.terminal_matrix, problem.terminal_matrix @ problem.target
    for k in reversed(range(10)):
        A, C, R = problem.drift_matrix[k], problem.noise_matrix[k], problem.running_matrix[k]
        gain = torch.linalg.solve(temperatures[k] * torch.eye(3, dtype=P.dtype) + C.T @ P @ C, C.T)
        exact = torch.cat([(gain @ p)[:, None], -gain @ P @ A], 1)
        assert torch.allclose(model.policy.gain[k], exact, atol=1e-4)
        closed = A - C @ gain @ P @ A
        P, p = R + A.T @ P @ closed, closed.T @ p


@pytest.mark.parametrize("bad", [[1.0] * 9, [1.0] * 9 + [0.0]])
def test_bad_temperatures(bad):
    with pytest.raises(ValueError, match="temperatures must be"):
        agent("MlpPolicy", linear_chain(), policy_kwargs={"temperatures": bad})


def reached(model, n=4000) -> float:
    """Share of the way from no control to the optimum of a linear-quadratic chain."""
    problem, g = model.problem, torch.Generator().manual_seed(1)
    base = objective(problem, None, 20_000, g).objective.mean
    return (objective(problem, model.policy.control, n, g).objective.mean - base) / (
        problem.optimal_objective() - base
    )


@pytest.mark.parametrize(
    ("policy", "iterations", "least"),
    [("PathwisePolicy", 150, 0.9), ("ScorePolicy", 150, 0.8), ("FittedPolicy", 40, 0.9)],
)
def test_gradient_forms_learn_a_linear_quadratic_chain(policy, iterations, least):
    problem = LinearQuadratic.damped_rotation(dimension=3, steps=10)
    model = agent(
        policy, problem, n_trajectories=20, learning_rate=5e-3, policy_kwargs={"hidden": [64]}
    )
    assert reached(model.learn(iterations * 200)) > least


def test_black_box_forms_need_no_derivative_of_the_reward_and_the_pathwise_gradient_does():
    problem = Curved()
    problem.differentiable = False
    for policy in ("ScorePolicy", "FittedPolicy"):
        agent(policy, problem, policy_kwargs=SMALL).learn(1)
    with pytest.raises(ValueError, match="gradient of the reward; Curved.terminal_reward"):
        agent("PathwisePolicy", problem, policy_kwargs=SMALL).learn(1)


@FORMS
def test_forms_survive_save_and_load_and_go_on(policy, tmp_path):
    model = agent(policy, MIXTURE, policy_kwargs={} if policy == "LinearPolicy" else SMALL).learn(
        50 * 100
    )
    model.save(tmp_path / "m")
    again = PIFT.load(tmp_path / "m", env=MIXTURE, device="cpu")
    x = torch.linspace(-1, 1, 10).reshape(5, 2)
    assert torch.equal(model.policy.control(20, x), again.policy.control(20, x))
    for m in (model, again):
        m.learn(50 * 50, reset_num_timesteps=False)
    if policy != "MlpPolicy":  # which also keeps recent paths, and those are not saved
        assert torch.equal(model.policy.control(20, x), again.policy.control(20, x))


def test_memory_of_the_pathwise_gradient_does_not_grow_with_the_horizon_and_its_work_linearly():
    peak, made = {}, {}
    for steps in (20, 200):
        problem = make_problem("girsanov/Digits-v0", steps=steps)
        policy = agent("PathwisePolicy", problem, n_trajectories=10).policy

        def gradient(n, problem=problem, policy=policy):
            with torch.no_grad():
                paths = rollout(problem, policy.control, n, torch.Generator().manual_seed(0))
            return policy.gradient(paths)

        gradient(2)
        with Peak() as mode:
            gradient(10)
        peak[steps], made[steps] = mode.peak, mode.made
    assert peak[20] > 1e6
    assert peak[200] < 1.5 * peak[20]
    assert made[200] < 1.1 * 10 * made[20]


def test_warns_once_below_the_guaranteed_temperature_and_logs_lambda():
    problem = linear_chain(temperature=0.02)
    factor = float(quadratic_contraction(problem).max())
    assert factor > 1
    model = agent("MlpPolicy", problem, policy_kwargs=SMALL)
    with pytest.warns(RegularityWarning, match="temperature 0.02") as seen:
        model.learn(10 * 150, log_interval=0)
    assert len(seen) == 1
    assert model.logger.name_to_value["train/lambda_max"] == pytest.approx(factor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent("MlpPolicy", linear_chain(temperature=0.5), policy_kwargs=SMALL).learn(1)
