"""``PDE("auto")``: who is tried, who wins, what it costs, and what happens when nobody helps."""

import pytest
import torch

from girsanov.agents import PDE
from girsanov.agents.pde.choosing.candidates import QUADRATIC, SEPARABLE, candidates_for
from girsanov.agents.pde.choosing.contest import Contest, Verdict, gained, level
from girsanov.agents.pde.choosing.following import follow
from girsanov.agents.pde.norms import control_error
from girsanov.envs import make_problem
from girsanov.envs.counting import counted
from girsanov.envs.known_optimum.linear_quadratic import LinearQuadratic
from girsanov.envs.problem import rollout

STEPS = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain() -> LinearQuadratic:
    """Eight dimensions: too many for a kernel's length scale."""
    return LinearQuadratic.damped_rotation(8, steps=STEPS, temperature=0.5)


def auto(problem, **kwargs):
    settings = {
        "n_uncontrolled": 64,
        "n_trajectories": 16,
        "gradient_steps": 5,
        "policy_kwargs": {"hidden": [16], "members": 1},
    }
    return PDE("auto", problem, seed=0, device="cpu", **{**settings, **kwargs})


@pytest.fixture(scope="module")
def learnt():
    problem = chain()
    return problem, auto(problem).learn(300 * STEPS)


def test_the_class_that_holds_the_answer_wins_and_its_paths_are_counted(learnt):
    problem, model = learnt
    assert model.policy_name == "PolynomialPolicy" == type(model.policy).__name__
    assert model.choice.startswith("a quadratic (a network: objective ")
    assert "residual" in model.choice and "no control: objective" in model.choice
    assert model.reward_queries == sum(data.n for data in model.rounds) == 300
    assert model.num_timesteps == 300 * STEPS
    sizes = [data.n for data in model.rounds]
    assert sizes[:2] == [64, 16] and sizes[-1] > 16, "solved as often as paths double"
    paths = rollout(problem, problem.optimal_control, 200, generator())
    assert control_error(problem, paths, model.policy.control, problem.optimal_control) < 0.05


def test_what_won_is_saved_as_itself(learnt, tmp_path):
    problem, model = learnt
    model.save(tmp_path / "auto")
    again = PDE.load(tmp_path / "auto", problem, device="cpu")
    x = torch.randn(5, 8, generator=generator())
    assert again.policy_name == "PolynomialPolicy"
    assert torch.equal(again.policy.control(2, x), model.policy.control(2, x))


def test_the_sum_of_gains_is_the_value_on_every_path_of_the_optimum():
    """So its residual is next to nothing, and that of no control is not."""
    problem = LinearQuadratic.damped_rotation(2, steps=100, temperature=0.5)
    found = []
    for control in (problem.optimal_control, None):
        paths = rollout(problem, control, 500, generator())
        value = problem.log_moment_value(0, paths.states[0]).double() / problem.temperature
        found.append(Verdict.of(gained(paths, problem.temperature), value, float(value.mean())))
    best, none = found
    wanted = problem.optimal_objective() / problem.temperature
    assert abs(best.mean - wanted) < 0.1 and best.residual < 0.05 < 10 * best.residual + 1
    assert none.residual > 1 and none.mean < wanted - 2


def test_who_is_tried():
    """Not on images, and step by step where uncontrolled paths say next to nothing."""
    assert candidates_for(make_problem("girsanov/Digits-v0"), 100, 50.0) == []
    mixture = make_problem("girsanov/GaussianMixture-v0")
    assert candidates_for(mixture, 100, 1.0) == [QUADRATIC]
    wells = make_problem("girsanov/DoubleWell-v0", dimension=10)
    assert candidates_for(wells, 100, 50.0) == [QUADRATIC]
    assert candidates_for(wells, 100, 1.2) == [QUADRATIC, SEPARABLE]


def test_where_no_other_class_suits_it_is_the_network_as_ever():
    problem = chain()
    lonely = auto(problem, n_uncontrolled=50).learn(100 * STEPS)  # fewer visits than weights
    plain = PDE(
        "MlpPolicy",
        problem,
        seed=0,
        device="cpu",
        n_uncontrolled=50,
        n_trajectories=16,
        gradient_steps=5,
        policy_kwargs={"hidden": [16], "members": 1},
    ).learn(100 * STEPS)
    assert lonely.choice == "MlpPolicy: no other class suits the problem"
    x = torch.randn(5, 8, generator=generator())
    assert torch.equal(lonely.policy.control(2, x), plain.policy.control(2, x))


def test_a_control_that_is_no_better_than_none_is_dropped(learnt):
    problem, _ = learnt
    x = torch.randn(5, 8, generator=generator())
    with pytest.warns(UserWarning, match="the learnt control reaches .* and none .* none is kept"):
        model = auto(problem, n_uncontrolled=8).learn(30 * STEPS)  # from next to no paths
    assert bool((model.policy.control(2, x) == 0).all())
    linear = PDE("PolynomialPolicy", problem, seed=0, device="cpu", n_uncontrolled=64)
    linear.learn(64 * STEPS)
    assert linear.policy.control(2, x).abs().max() > 0
    level(linear.policy.value)
    assert bool((linear.policy.control(2, x) == 0).all())


def test_who_is_behind_starts_from_the_log_f_of_who_leads():
    """A quadratic that knows nothing takes over that of another, wherever the paths have been."""
    problem = chain()
    ahead, behind = (
        PDE("PolynomialPolicy", problem, seed=seed, device="cpu", n_uncontrolled=200)
        for seed in (0, 1)
    )
    ahead.learn(200 * STEPS)
    behind.learn(200 * STEPS)
    level(behind.policy.value)  # log f of time alone
    data, ours, theirs = ahead.rounds[0], behind.policy.value, ahead.policy.value
    k, x = data.steps.flatten(), data.inputs.flatten(0, 1)
    assert (ours(k, x) - theirs(k, x)).abs().mean() > 1
    follow(ours, theirs, data, generator())
    assert (ours(k, x) - theirs(k, x)).abs().max() < 1e-2 * theirs(k, x).std()


def test_classes_beside_a_network_ask_a_denoiser_nothing_more():
    """They look at the next states that its fresh noise made."""
    settings = {"n_uncontrolled": 60, "n_trajectories": 20, "gradient_steps": 2}
    calls = {}
    for policy in ("auto", "MlpPolicy"):
        problem, evaluations = counted(make_problem("girsanov/GaussianMixture-v0", steps=10))
        model = PDE(policy, problem, seed=0, device="cpu", **settings).learn(300 * 10)
        calls[policy] = evaluations.count / model.reward_queries
    assert calls["auto"] < 1.5 * calls["MlpPolicy"], calls


@pytest.fixture
def ends(monkeypatch):
    """Everyone in a contest when it ended: by word, the paths of each round that they learnt."""
    found = []
    end = Contest._end

    def watched(self, agent, everyone, verdicts, leader):
        words = ["a network" if c is None else c.word for c, _ in everyone]
        rounds = [[data.n for data in one.rounds] for _, one in everyone]
        found.append(dict(zip(words, rounds, strict=True)))
        return end(self, agent, everyone, verdicts, leader)

    monkeypatch.setattr(Contest, "_end", watched)
    return found


def test_rounds_grow_alike_up_to_a_third_of_the_budget(ends):
    """So that classes of many weights have seen enough when they are judged last."""
    auto(chain()).learn(1000 * STEPS)
    (rounds,) = ends
    for sizes in rounds.values():
        total = torch.tensor(sizes).cumsum(0)
        assert len(sizes) == 5 and abs(total[-1] - 0.34 * 1000) < 12
        growth = total[1:] / total[:-1]
        assert (growth.max() - growth.min()) / growth.mean() < 0.1


@pytest.mark.filterwarnings("ignore:the learnt control reaches")
def test_what_is_fitted_step_by_step_learns_from_its_own_paths(ends):
    wells = make_problem("girsanov/DoubleWell-v0", dimension=8)
    model = auto(wells, n_uncontrolled=70).learn(250 * wells.horizon)
    (rounds,) = ends
    own, network = rounds[SEPARABLE.word], rounds["a network"]
    assert own[0] == 2 * network[0] == 140, "free ones, and as many of which half are pushed"
    assert max(own[1:]) < min(network[1:]), "of later ones no others'"
    assert model.reward_queries == 250, "the last round takes what the budget has left"
