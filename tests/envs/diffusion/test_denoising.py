"""A step of our chains is a step of diffusers' DDPMScheduler with the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.envs.diffusion.denoising import DenoisingProblem, Schedule
from girsanov.envs.diffusion.digits import Digits
from girsanov.envs.diffusion.gaussian_mixture import GaussianMixture
from girsanov.envs.problem import rollout

ddpm = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
STEPS = 25
every_schedule = pytest.mark.parametrize(
    ("beta_schedule", "variance_type"),
    [(b, v) for b in ("linear", "squaredcos_cap_v2") for v in ("fixed_small", "fixed_large")],
)


def digit_chain(dtype: torch.dtype = torch.float32, **schedule: Any) -> DenoisingProblem:
    return Digits(schedule=Schedule.ddpm(STEPS, **schedule), dtype=dtype)


def mixture_chain(dtype: torch.dtype = torch.float32, **schedule: Any) -> DenoisingProblem:
    means = [[1.0, 1.0, 0.0], [-1.0, 0.5, 2.0]]
    return GaussianMixture(
        means, 0.3, lambda x: x[:, 0], 0.5, schedule=Schedule.ddpm(STEPS, **schedule), dtype=dtype
    )


every_chain = pytest.mark.parametrize("chain", [digit_chain, mixture_chain])


def scheduler_like(**schedule: Any) -> Any:
    scheduler = ddpm.DDPMScheduler(clip_sample=False, **schedule)
    scheduler.set_timesteps(STEPS)
    return scheduler


def step(
    scheduler: Any, noise: Tensor, t: Any, x: Tensor, z: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """``DDPMScheduler.step``, drawing ``z``."""
    monkeypatch.setattr(ddpm, "randn_tensor", lambda *args, **kwargs: z)
    return scheduler.step(noise, int(t), x).prev_sample


@every_chain
@every_schedule
def test_every_step_equals_diffusers(
    chain: Any, beta_schedule: str, variance_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = chain(beta_schedule=beta_schedule, variance_type=variance_type)
    scheduler = scheduler_like(beta_schedule=beta_schedule, variance_type=variance_type)
    assert torch.equal(scheduler.timesteps, problem.schedule.timesteps)
    with torch.no_grad():
        paths = rollout(problem, None, 3, torch.Generator().manual_seed(1))
        for k, t in enumerate(scheduler.timesteps):
            x = paths.states[k]
            theirs = step(
                scheduler, problem.predict_noise(k, x), t, x, paths.noises[k], monkeypatch
            )
            torch.testing.assert_close(paths.states[k + 1], theirs, rtol=1e-5, atol=1e-5)


@every_chain
@every_schedule
def test_the_whole_chain_equals_diffusers_in_float64(
    chain: Any, beta_schedule: str, variance_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = chain(torch.float64, beta_schedule=beta_schedule, variance_type=variance_type)
    whole = Schedule.ddpm(1000, beta_schedule=beta_schedule, variance_type=variance_type)
    # diffusers keeps float32 tables: give it the float64 ones, which the test above holds to be the
    # same
    scheduler = scheduler_like(beta_schedule=beta_schedule, variance_type=variance_type)
    scheduler.alphas_cumprod = whole.alpha_bar.flip(0)
    scheduler.alphas = whole.alpha.flip(0)
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    with torch.no_grad():
        paths = rollout(problem, None, 3, torch.Generator().manual_seed(1))
        x = paths.states[0]
        for k, t in enumerate(scheduler.timesteps):
            x = step(scheduler, problem.predict_noise(k, x), t, x, paths.noises[k], monkeypatch)
    torch.testing.assert_close(paths.states[-1], x, rtol=1e-10, atol=1e-10)


@every_chain
def test_the_control_is_added_to_the_noise(chain: Any) -> None:
    problem = chain()
    x = problem.initial(4, torch.Generator().manual_seed(0))
    z, a = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, sigma = problem.gaussian_kernel(5, x)
        torch.testing.assert_close(problem.transition(5, x, z + a), mean + sigma * z + sigma * a)


@every_chain
def test_the_clean_estimate_and_the_score_belong_to_the_noise_prediction(chain: Any) -> None:
    problem = chain(torch.float64)
    x = problem.initial(4, torch.Generator().manual_seed(0))
    k = 10
    with torch.no_grad():
        noise, clean = problem.predict_noise(k, x), problem.terminal_estimate(k, x)
        bar = problem.schedule.alpha_bar[k]
        torch.testing.assert_close(
            bar.sqrt() * clean + (1 - bar).sqrt() * noise, x, rtol=1e-9, atol=1e-9
        )
        # Tweedie: sqrt(alpha_bar) E[clean | x] = x + (1 - alpha_bar) score
        torch.testing.assert_close(
            bar.sqrt() * clean, x + (1 - bar) * problem.score(k, x), rtol=1e-9, atol=1e-9
        )
        assert problem.terminal_estimate(problem.horizon, x) is x
        rows = torch.tensor([k, k, problem.horizon, problem.horizon])
        torch.testing.assert_close(
            problem.terminal_estimate(rows, x), torch.cat([clean[:2], x[2:]]), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_timesteps_equal_diffusers(spacing: str, steps: int) -> None:
    scheduler = ddpm.DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert (
        Schedule.ddpm(steps, timestep_spacing=spacing).timesteps.tolist()
        == scheduler.timesteps.tolist()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be between 1 and"),
        ({"steps": 1001}, "steps must be between 1 and"),
        ({"steps": 2.5}, "steps must be an integer; got 2.5"),
        ({"beta_schedule": "cosine"}, "beta_schedule must be one of"),
        ({"variance_type": "learned"}, "variance_type must be one of"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of"),
    ],
)
def test_unknown_choices_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.ddpm(**arguments)
