"""``PDE.fit``: recorded paths in, a control near the optimum out; whatever they hold, a bounded
policy or one clear error.
"""

import pytest
import torch

from girsanov.agents import PDE
from girsanov.agents.pde.norms import control_error
from girsanov.envs import make_problem
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import Problem, Trajectories, objective, rollout
from girsanov.envs.recording import RecordedPaths, Recording, SimulatedPaths

#: Every function class, small.
POLICIES = {
    "MlpPolicy": {"hidden": [16]},
    "PolynomialPolicy": {},
    "FourierPolicy": {"features": 10, "times": 3},
    "KernelPolicy": {"centres": 10, "times": 3},
    "RadialPolicy": {"centres": 15},
    "NoisePolicy": {"hidden": [16], "control_hidden": [16]},
    "ModelPolicy": {"hidden": [16], "model_hidden": [16], "model_steps": 5},
}
SMALL = {"hidden": [32, 32], "control_hidden": [32, 32]}
EVERY = pytest.mark.parametrize("policy", list(POLICIES))
LINEAR = pytest.mark.parametrize(
    "policy", ["PolynomialPolicy", "FourierPolicy", "KernelPolicy", "RadialPolicy"]
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agent(policy: str, problem: Problem, **kwargs) -> PDE:
    given = {"policy_kwargs": dict(POLICIES[policy]), "gradient_steps": 5, **kwargs}
    return PDE(policy, problem, seed=0, device="cpu", **given)


def whole(problem: Problem, n: int, seed: int = 0) -> Trajectories:
    with torch.no_grad():
        return rollout(problem, None, n, generator(seed))


# --- how near the optimum


@pytest.fixture(scope="module")
def chain() -> LinearQuadratic:
    return make_problem("girsanov/LinearQuadratic-v0")


@pytest.fixture(scope="module")
def uncontrolled(chain) -> Trajectories:
    return whole(chain, 4000)


@pytest.fixture(scope="module")
def fitted(chain, uncontrolled) -> PDE:
    return PDE("PolynomialPolicy", chain, seed=0, device="cpu").fit(uncontrolled)


def error(model: PDE, chain: LinearQuadratic) -> float:
    """Along paths of the optimum, as a share of its own square."""
    with torch.no_grad():
        paths = rollout(chain, chain.optimal_control, 300, generator(1))
    return control_error(chain, paths, model.policy.control, chain.optimal_control)


def test_polynomials_find_the_linear_quadratic_control(chain, fitted):
    assert error(fitted, chain) < 0.01
    assert fitted.reward_queries == 4000 and fitted.num_timesteps == 0


def test_fresh_noise_finds_it_closer_still(chain, uncontrolled):
    """No further reward is asked for; fewer paths keep the test short."""
    paths = Trajectories(
        *(part[:, :2000] if part.dim() > 1 else part[:2000] for part in uncontrolled)
    )
    model = PDE("PolynomialPolicy", chain, seed=0, device="cpu", lookahead="fresh", draws=2).fit(
        paths
    )
    assert error(model, chain) < 5e-4
    assert model.reward_queries == 2000


@pytest.fixture
def short() -> LinearQuadratic:
    return LinearQuadratic.damped_rotation(2, steps=6, temperature=1.0)


def test_paths_at_random_times(short):
    seen = Recording.of(whole(short, 2000)).at_random_times(2, generator(2))
    model = agent("PolynomialPolicy", short).fit(seen)
    with torch.no_grad():
        best = rollout(short, short.optimal_control, 300, generator(1))
    assert control_error(short, best, model.policy.control, short.optimal_control) < 0.05


def controls(model: PDE) -> torch.Tensor:
    x = torch.randn(20, *model.problem.state_shape, generator=generator(5))
    return torch.stack([model.policy.control(k, x) for k in range(model.problem.horizon)])


def test_a_file_gives_the_identical_fit(short, tmp_path):
    paths = whole(short, 300)
    Recording.of(paths).save(tmp_path / "paths")
    direct, loaded = agent("PolynomialPolicy", short).fit(paths), agent("PolynomialPolicy", short)
    assert torch.equal(controls(direct), controls(loaded.fit(tmp_path / "paths")))
    assert loaded.reward_queries == 300
    assert torch.equal(
        controls(direct), controls(agent("PolynomialPolicy", short).fit(str(tmp_path / "paths")))
    )
    assert torch.equal(
        controls(direct), controls(agent("PolynomialPolicy", short).fit(Recording.of(paths)))
    )


@LINEAR
def test_parts_from_disk_from_memory_and_from_the_simulator_agree(policy, short, tmp_path):
    simulated = SimulatedPaths(short, 90, seed=4, chunk=30)
    held = list(simulated)
    Recording(*(torch.cat(column) for column in zip(*held, strict=True))).save(tmp_path / "paths")
    one, two, three = (
        controls(agent(policy, short, select=False).fit(data))
        for data in (simulated, held, RecordedPaths(tmp_path / "paths", 30))
    )
    assert torch.allclose(one, two, atol=1e-6) and torch.allclose(one, three, atol=1e-6)
    assert one.abs().max() > 0.05


def test_the_size_of_parts_hardly_matters(short):
    """Units and bounds come from the first part; polynomials do not depend on units but through the
    ridge.
    """
    paths = Recording.of(whole(short, 2000))
    parts = [Recording(*(column[i : i + 500] for column in paths)) for i in range(0, 2000, 500)]
    one, other = (
        controls(agent("PolynomialPolicy", short, ridge=1e-8, select=False).fit(d))
        for d in (paths, parts)
    )
    assert (one - other).square().mean() < 1e-3 * one.square().mean()


def test_controlled_paths_fit_as_well(short):
    with torch.no_grad():
        paths = rollout(short, lambda k, x: 0.5 * short.optimal_control(k, x), 2000, generator())
        best = rollout(short, short.optimal_control, 300, generator(1))
    right = agent("PolynomialPolicy", short, lookahead="observed").fit(paths)
    wrong = agent("PolynomialPolicy", short, lookahead="observed").fit(
        Recording.of(paths)._replace(log_ratios=None)
    )
    found, forgotten = (
        control_error(short, best, m.policy.control, short.optimal_control) for m in (right, wrong)
    )
    assert found < 0.005 and forgotten > 10 * found


@pytest.mark.parametrize("select", [False, True])
@LINEAR
def test_a_second_fit_forgets_the_first(policy, select, short):
    """Other data, in other units, on the same agent: the same as with a new one."""
    other = Recording.of(whole(short, 100, 1))
    other = other._replace(terminal_reward=50 * other.terminal_reward, states=30 * other.states)
    paths = whole(short, 100)
    again = agent(policy, short, select=select).fit(other)
    again.generator.manual_seed(0)  # what is left to chance starts as in a new agent
    new = agent(policy, short, select=select)
    new.generator.manual_seed(0)
    assert torch.allclose(controls(again.fit(paths)), controls(new.fit(paths)), atol=1e-6)


def test_fit_goes_on_with_learn_and_survives_a_checkpoint(short, tmp_path):
    model = agent("KernelPolicy", short).fit(whole(short, 200))
    model.save(tmp_path / "m")
    again = PDE.load(tmp_path / "m", env=short, device="cpu")
    assert torch.equal(controls(model), controls(again))
    assert torch.isfinite(controls(again.learn(6 * 200))).all()


# --- what is refused


def test_data_of_another_kind_are_refused(short, tmp_path):
    model = agent("PolynomialPolicy", short)
    paths = whole(short, 20)
    with pytest.raises(
        ValueError,
        match="data must be Trajectories, a Recording, a file name, or something.*; got int",
    ):
        model.fit(3)
    with pytest.raises(ValueError, match="iterated over again and again; got generator"):
        model.fit(part for part in [paths])
    with pytest.raises(ValueError, match="data must yield Trajectories or Recordings; got int"):
        model.fit([3])
    for nothing in (
        [],
        Recording.of(paths)._replace(
            steps=Recording.of(paths).steps.clamp(max=5), noises=None, controls=None
        ),
    ):
        with pytest.raises(ValueError, match="must hold a path that was seen at its end"):
            model.fit(nothing)
    with pytest.raises(ValueError, match="there is no file"):
        model.fit(tmp_path / "absent")
    with pytest.raises(
        ValueError, match="gradient_steps must be a whole number of at least 1; got 2.5"
    ):
        model.fit(paths, gradient_steps=2.5)
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(ValueError, match="corrupt or foreign"):
        model.fit(tmp_path / "bad")


def test_a_first_part_without_ends_is_not_all_there_is(short):
    """Ends may be seen in later parts only."""
    paths = Recording.of(whole(short, 100))
    cut = paths._replace(steps=paths.steps.clamp(max=5), noises=None, controls=None)
    try:
        model = agent("PolynomialPolicy", short).fit([cut, paths])
    except ValueError as refused:
        assert "first" in str(refused)
    else:
        assert torch.isfinite(controls(model)).all()


@pytest.mark.parametrize("policy", ["MlpPolicy", "PolynomialPolicy"])
def test_parts_seen_at_different_numbers_of_times(policy, short):
    """Linear classes take them; networks either take them or say why not."""
    paths = Recording.of(whole(short, 60))
    try:
        model = agent(policy, short, select=False).fit(
            [paths, paths.at_random_times(3, generator())], gradient_steps=5
        )
    except ValueError as refused:
        assert policy == "MlpPolicy" and "visits" in str(refused)
    else:
        assert torch.isfinite(controls(model)).all()


def test_noise_policy_needs_the_noises(short):
    with pytest.raises(
        ValueError, match="data must hold noises and controls of every step for NoisePolicy"
    ):
        agent("NoisePolicy", short).fit(
            Recording.of(whole(short, 20)).at_random_times(3, generator())
        )


@pytest.mark.parametrize("lookahead", ["fresh", "generator"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "KernelPolicy"])
def test_every_form_fits(policy, lookahead, short):
    model = agent(policy, short, lookahead=lookahead, select=False).fit(
        whole(short, 30), gradient_steps=2
    )
    assert torch.isfinite(controls(model)).all() and controls(model).any()


# --- black boxes


class BlackBox(LinearQuadratic):
    """A chain that autograd can't look into."""

    def transition(self, k, x, z):
        with torch.no_grad():
            return super().transition(k, x, z)


def black_box() -> LinearQuadratic:
    return BlackBox.damped_rotation(2, steps=10, temperature=0.5)


def test_noise_policy_learns_a_black_box():
    problem = black_box()
    model = PDE("NoisePolicy", problem, seed=0, device="cpu", policy_kwargs=SMALL).learn(10 * 600)
    g = generator(1)
    base, best = objective(problem, None, 20_000, g).objective.mean, problem.optimal_objective()
    got = objective(problem, model.policy.control, 4000, g).objective
    assert got.mean <= best + 4 * got.stderr
    assert (got.mean - base) / (best - base) > 0.6


@pytest.mark.slow
def test_noise_policy_fits_recorded_paths_of_a_black_box():
    problem = black_box()
    model = PDE("NoisePolicy", problem, seed=0, device="cpu", policy_kwargs=SMALL).fit(
        whole(problem, 2000), 400
    )
    g = generator(1)
    base, best = objective(problem, None, 20_000, g).objective.mean, problem.optimal_objective()
    assert (objective(problem, model.policy.control, 4000, g).objective.mean - base) / (
        best - base
    ) > 0.6


@pytest.mark.parametrize("policy", ["MlpPolicy", "PolynomialPolicy", "RadialPolicy"])
def test_gradient_policies_refuse_a_black_box(policy):
    with pytest.raises(
        ValueError,
        match="needs a transition that autograd can follow; BlackBox's is not .*ModelPolicy",
    ):
        agent(policy, black_box(), n_uncontrolled=20, n_trajectories=10).learn(10 * 40)


# --- adversarial data


class Toy(Problem):
    """A short walk with rewards that a user might get wrong."""

    state_shape = noise_shape = (2,)
    temperature = 1.0

    def __init__(self, kind: str, horizon: int = 5) -> None:
        self.kind, self.horizon = kind, horizon

    def initial(self, n, generator):
        spread = 0.0 if self.kind == "equal states" else 0.3
        return spread * torch.randn(n, 2, generator=generator)

    def transition(self, k, x, z):
        return x + (0.0 if self.kind == "equal states" else 0.4) * z

    def terminal_reward(self, x):
        if self.kind == "constant":
            return torch.full((len(x),), 3.0)
        if self.kind == "wide":
            return 5e3 * torch.tanh(3 * x[:, 0])  # 10,000 temperatures
        if self.kind == "steep":
            return -1e4 * (x - 1).square().sum(1)
        if self.kind == "nan":
            return torch.where(x[:, 0] > 0, torch.nan, 1.0) if len(x) > 2 else x[:, 0]
        return -(x - 1).square().sum(1)


def holds(model: PDE) -> None:
    """Finite and within the action bound, near the data and far away."""
    for k in range(model.problem.horizon):
        for scale in (0.0, 0.3, 3.0, 1e3, 1e6):
            a = model.policy.control(k, scale * torch.randn(20, 2, generator=generator(k)))
            assert torch.isfinite(a).all()
            assert a.abs().max() <= model.policy.action_bound


@EVERY
@pytest.mark.parametrize("how", ["fit", "learn"])
@pytest.mark.parametrize("kind", ["constant", "equal states", "wide", "steep", "plain"])
def test_a_bounded_policy_whatever_the_rewards(policy, how, kind):
    problem = Toy(kind)
    model = agent(
        policy,
        problem,
        n_uncontrolled=25,
        n_trajectories=15,
        select=how == "fit" and kind in ("wide", "plain"),
    )
    if how == "fit":
        model.fit(whole(problem, 25), gradient_steps=10)
    else:
        model.learn(5 * 40)
    holds(model)


@EVERY
@pytest.mark.parametrize("n", [1, 3, 5, 20])
def test_few_paths(policy, n):
    """Too few to hold any out, or just enough."""
    problem = Toy("plain")
    holds(agent(policy, problem).fit(whole(problem, n), gradient_steps=5))


@EVERY
def test_few_paths_to_learn_from(policy):
    holds(agent(policy, Toy("plain"), n_uncontrolled=2, n_trajectories=2).learn(5 * 6))


@EVERY
@pytest.mark.parametrize("horizon", [1, 2])
def test_few_steps(policy, horizon):
    """Fewer times than features of time."""
    problem = Toy("plain", horizon)
    holds(agent(policy, problem, select=False).fit(whole(problem, 25), gradient_steps=5))
    if policy not in ("NoisePolicy", "ModelPolicy"):
        sparse = Recording.of(whole(problem, 25)).at_random_times(1, generator())
        holds(agent(policy, problem).fit(sparse, gradient_steps=5))


@EVERY
def test_nan_rewards_are_refused(policy):
    problem = Toy("nan")
    with pytest.raises(
        ValueError,
        match="terminal_reward.* must (be finite; got .* of 40 values|return finite numbers)",
    ):
        paths = whole(Toy("plain"), 40)
        agent(policy, problem).fit(
            paths._replace(terminal_reward=problem.terminal_reward(paths.states[-1]))
        )
    with pytest.raises(ValueError, match="Toy.terminal_reward.* must (be|return) finite"):
        agent(policy, problem, n_uncontrolled=40).learn(200)


@EVERY
def test_a_constant_reward_asks_for_no_control(policy):
    """Near the data, up to what bumps need to add up to a constant."""
    problem = Toy("constant")
    model = agent(policy, problem).fit(whole(problem, 60), gradient_steps=20)
    x = whole(problem, 200, 1).states[2]
    assert model.policy.control(2, x).square().mean().sqrt() < (
        0.4 if policy == "RadialPolicy" else 1e-3
    )
