"""CnnPolicy: what it learns with and without prompts, whose derivatives it takes, and what it
refuses.
"""

import pytest
import torch
from stable_baselines3.common.logger import configure

from girsanov.agents import PDE
from girsanov.agents.pde.image_policies import CnnValue
from girsanov.envs import make_problem
from girsanov.envs.diffusion.denoising import DenoisingProblem, Schedule
from girsanov.envs.env import ProblemEnv
from girsanov.envs.problem import Problem, objective, rollout
from girsanov.envs.rewards.images import Brightness

SIDE, STEPS, SIGMA = 6, 4, 0.5


class Canvas(Problem):
    """A random walk of images above the number of the prompt: the one wants brighter images, the
    other darker ones.

    The reward is linear, so the best control is exactly ``+-SIGMA * slope / temperature`` in every
    pixel and step.
    """

    state_shape, noise_shape, horizon, temperature = (2, SIDE, SIDE), (1, SIDE, SIDE), STEPS, 1.0
    prompts = ("brighter", "darker")
    slope = 1 / SIDE

    def initial(self, n, generator):
        x = torch.randn(n, 1, SIDE, SIDE, generator=generator)
        prompt = torch.randint(2, (n, 1, 1, 1), generator=generator).float()
        return torch.cat([x, prompt.expand(n, 1, SIDE, SIDE)], 1)

    def with_latents(self, x, latents):
        return torch.cat([latents, x[:, -1:]], 1)

    def gaussian_kernel(self, k, x):
        return x[:, :1], torch.tensor(SIGMA)

    def transition(self, k, x, z):
        return self.with_latents(x, x[:, :1] + SIGMA * z)

    def terminal_reward(self, x):
        sign = 1 - 2 * x[:, 1, 0, 0]
        return sign * self.slope * x[:, 0].sum((1, 2))

    @property
    def optimum(self):
        return 0.5 * STEPS * SIGMA**2 * self.slope**2 * SIDE**2 / self.temperature


class Watched(DenoisingProblem):
    """A denoiser of standard normal pixels that counts how often a derivative by its input is
    wanted.
    """

    def __init__(self):
        super().__init__(Schedule.ddpm(4), (3, 5, 9), temperature=1.0)
        self.wanted, self.asked = 0, 0

    def predict_noise(self, k, x):
        self.asked += 1
        self.wanted += x.requires_grad
        table = (1 - self.schedule.alpha_bar).sqrt()[k]
        return x * (table if isinstance(k, int) else table.view(-1, 1, 1, 1))

    def terminal_reward(self, x):
        return x.flatten(1).mean(1)


def an_agent(policy, problem, **kwargs):
    agent = PDE(policy, ProblemEnv(problem, action_bound=3.0), seed=0, device="cpu", **kwargs)
    agent.set_logger(configure(None, []))
    return agent


@pytest.fixture(scope="module")
def painter():
    """Value-guided sampling in small: no control is ever applied while it learns."""
    settings = {
        "n_uncontrolled": 300,
        "gradient_steps": 200,
        "adaptive": False,
        "learning_rate": 5e-3,
    }
    problem = Canvas()
    agent = an_agent(
        "CnnPolicy", problem, **settings, policy_kwargs={"width": 8, "hidden": 32, "members": 1}
    )
    return problem, agent.learn(300 * STEPS)


def test_from_uncontrolled_paths_alone_it_learns_what_each_prompt_wants(painter):
    problem, agent = painter
    assert agent.reward_queries == 300 and float(agent.rounds[0].controls.abs().max()) == 0
    found = objective(problem, agent.policy.control, 2000, torch.Generator().manual_seed(1))
    assert found.objective.mean > 0.75 * problem.optimum > 5 * found.objective.stderr
    x = problem.initial(100, torch.Generator().manual_seed(2))
    towards = agent.policy.control(1, x).mean((1, 2, 3))
    brighter = x[:, 1, 0, 0] == 0
    assert bool((towards[brighter] > 0).all() and (towards[~brighter] < 0).all())
    best = SIGMA * problem.slope
    torch.testing.assert_close(towards[brighter].mean(), torch.tensor(best), rtol=0.25, atol=0)
    torch.testing.assert_close(towards[~brighter].mean(), torch.tensor(-best), rtol=0.25, atol=0)


def test_the_prompt_is_a_choice_and_not_a_number_of_the_image(painter):
    problem, agent = painter
    value, x = agent.policy.value, problem.initial(10, torch.Generator().manual_seed(3))
    other = x.clone()
    other[:, 1] = 1 - other[:, 1]
    here, there = (value(2, one.flatten(1)).detach() for one in (x, other))
    assert float((here - there).abs().min()) > 1e-3
    assert value.standardise.centre.shape == (SIDE * SIDE,), (
        "the prompt's plane has no mean and no scale"
    )


def test_a_saved_agent_guides_as_before(painter, tmp_path):
    problem, agent = painter
    agent.save(tmp_path / "agent")
    loaded = PDE.load(tmp_path / "agent", ProblemEnv(problem, action_bound=3.0), device="cpu")
    x = problem.initial(5, torch.Generator().manual_seed(0))
    assert loaded.policy_name == "CnnPolicy"
    torch.testing.assert_close(
        loaded.policy.control(1, x), agent.policy.control(1, x), atol=0, rtol=0
    )


def test_the_control_is_the_gradient_of_the_next_value_whatever_the_batch(painter):
    problem, agent = painter
    policy, x = agent.policy, problem.initial(7, torch.Generator().manual_seed(4))
    z = torch.zeros(7, *problem.noise_shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        policy.value(3, problem.transition(2, x, z).flatten(1)).sum(), z
    )
    torch.testing.assert_close(policy.control(2, x), gradient)
    policy.batch_size = 3
    torch.testing.assert_close(policy.control(2, x), gradient)
    steps = torch.tensor([0, 1, 2, 3, 2, 1, 0])
    rows = torch.cat([policy.control(int(k), row[None]) for k, row in zip(steps, x, strict=True)])
    torch.testing.assert_close(policy.control(steps, x), rows)
    policy.batch_size = 64


@pytest.mark.parametrize(
    ("policy", "derivatives"), [("CnnPolicy", True), ("StateCnnPolicy", False)]
)
def test_only_the_terminal_estimate_costs_a_derivative_of_the_denoiser(policy, derivatives):
    problem = Watched()
    agent = an_agent(
        policy, problem, n_uncontrolled=10, n_trajectories=10, gradient_steps=5, draws=1
    )
    assert (agent.policy.problem.terminal_estimate is not None) == derivatives
    agent.learn(20 * 4)
    seen = agent.problem
    seen.wanted = 0
    a = agent.policy.control(0, seen.initial(4, torch.Generator().manual_seed(0)))
    assert (seen.wanted > 0 or agent.policy.problem.wanted > 0) == derivatives
    assert a.shape == (4, 3, 5, 9) and float(a.abs().max()) > 0
    agent.set_env(ProblemEnv(Watched(), action_bound=3.0))
    assert (agent.policy.problem.terminal_estimate is not None) == derivatives, (
        "set_env keeps the choice"
    )
    assert agent.problem.terminal_estimate is not None


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 16, 16), (3, 5, 9), (2, 1, 30)])
def test_every_image_shape_fits_and_the_control_starts_at_zero(shape):
    value = CnnValue(torch.Size(shape).numel(), 10, shape, width=4, hidden=8)
    x = torch.randn(5, *shape).requires_grad_()
    found = value.members(torch.arange(5), x.flatten(1))
    assert found.shape == (2, 5) and float(found.detach().abs().max()) == 0
    with torch.no_grad():
        for network in value.networks:
            network.last.weight.normal_()
    value(3, x.flatten(1)).sum().backward()
    assert bool((x.grad != 0).flatten(2).any(1).all()), "every pixel counts"


def test_a_round_on_digits_runs_and_a_flat_state_is_one_clear_error():
    problem = make_problem("girsanov/Digits-v0", steps=5)
    agent = an_agent(
        "CnnPolicy", problem, n_uncontrolled=10, n_trajectories=10, gradient_steps=3, draws=1
    )
    agent.learn(20 * 5)
    with torch.no_grad():
        paths = rollout(problem, agent.policy.control, 4, torch.Generator().manual_seed(0))
    assert 0 < float(paths.kl.mean()) < 100
    with pytest.raises(
        ValueError,
        match=r"CnnPolicy needs states of shape \(C, H, W\); GaussianMixture's are \(2,\)",
    ):
        PDE("CnnPolicy", "girsanov/GaussianMixture-v0")


class Tenfold(Brightness):
    """Ten times the mean intensity, and a black box."""

    differentiable = False

    def __call__(self, images, prompts):
        return 10 * super().__call__(images, prompts)


def a_pipeline(sd_folder, prompts=("a cat", "a dog"), **kwargs):
    diffusers = pytest.importorskip("diffusers")
    from girsanov.envs.diffusion.stable_diffusion import StableDiffusion

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    return StableDiffusion(
        pipeline,
        prompts,
        Tenfold(),
        **{"temperature": 0.1, "steps": 4, "guidance_scale": 2.0, **kwargs},
    )


@pytest.mark.parametrize("policy", ["CnnPolicy", "StateCnnPolicy"])
def test_guides_a_pipeline_of_diffusers_with_several_prompts(policy, sd_folder):
    problem = a_pipeline(sd_folder)
    agent = an_agent(policy, problem, n_uncontrolled=8, gradient_steps=5, draws=1, adaptive=False)
    agent.learn(8 * 4)
    data = agent.rounds[0]
    assert data.controls is not None and not data.controls.any() and agent.reward_queries == 8
    prompt = data.states[:, :-1, -1:].flatten(3)  # (8, 4, 1, 64)
    assert data.branches.shape == (8, 4, 2, 5 * 64) and set(prompt.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(
        data.branches.unflatten(3, (5, 64))[..., -1, :], prompt.expand(-1, -1, 2, -1)
    ), "prompts are carried along"
    x = problem.initial(3, torch.Generator().manual_seed(0))
    a = agent.policy.control(1, x)
    assert a.shape == (3, 4, 8, 8) and 0 < float(a.abs().max()) <= 3
    assert not any(p.requires_grad or p.grad is not None for p in problem.network.parameters())


def test_guides_an_unconditional_pipeline(ddpm_folder):
    pytest.importorskip("diffusers")
    problem = DenoisingProblem.from_diffusers(ddpm_folder, Tenfold(), 0.1, steps=4)
    agent = an_agent(
        "CnnPolicy", problem, n_uncontrolled=8, gradient_steps=5, draws=1, adaptive=False
    ).learn(8 * 4)
    assert agent.policy.value.contexts == 0
    assert agent.policy.control(1, problem.initial(3, torch.Generator().manual_seed(0))).shape == (
        3,
        1,
        8,
        8,
    )


class Hundredfold(Tenfold):
    """A hundred times the mean intensity, and a black box."""

    def __call__(self, images, prompts):
        return 10 * super().__call__(images, prompts)


@pytest.mark.slow
def test_raises_the_objective_of_a_frozen_pipeline(sd_folder):
    """From 300 uncontrolled samples."""
    problem = a_pipeline(sd_folder, "a cat", steps=5, guidance_scale=1.0, scheduler="ddpm")
    problem.reward = Hundredfold()
    settings = {
        "n_uncontrolled": 300,
        "gradient_steps": 150,
        "draws": 1,
        "adaptive": False,
        "learning_rate": 4e-3,
    }
    small = {"members": 1, "width": 8, "hidden": 32}
    agent = PDE(
        "StateCnnPolicy", ProblemEnv(problem), seed=0, device="cpu", policy_kwargs=small, **settings
    ).learn(300 * 5)
    noises = torch.randn(5, 100, *problem.noise_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        values = []
        for control in (None, agent.policy.control):
            paths = rollout(problem, control, 100, torch.Generator().manual_seed(2), noises=noises)
            values.append(paths.reward - problem.temperature * paths.kl)
    gain = values[1] - values[0]
    assert float(gain.mean()) > 5 * float(gain.std() / 100**0.5)
