"""Facts about the environments, from the registry, the spaces and the docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parent
#: Film or picture, page and one line for each id, in the order of the gallery.
GALLERY: dict[str, dict[str, tuple[str, str, str]]] = {
    "Diffusion models": {
        "Digits-v0": ("digits.png", "digits", "Draw the digit that is wanted."),
        "StableDiffusion-v0": (
            "latent_digits.png",
            "stable_diffusion",
            "Fine-tune a text-to-image model, with LoRA if you like.",
        ),
        "FlowDigits-v0": (
            "flow_digits.png",
            "flow_digits",
            "Fine-tune a rectified flow with a transformer.",
        ),
        "GaussianMixture-v0": (
            "gaussian_mixture.png",
            "gaussian_mixture",
            "Denoise a mixture of Gaussians with its exact score.",
        ),
    },
    "Robots": {
        "Pendulum-v0": ("pendulum.gif", "pendulum", "Swing up a pendulum with a noisy torque."),
        "CartPoleSwingUp-v0": ("cartpole.gif", "cartpole", "Swing up a pole by pushing its cart."),
        "PlanarQuadrotor-v0": ("quadrotor.gif", "quadrotor", "Fly to a point and hover."),
        "DoubleIntegratorNavigation-v0": (
            "double_integrator.gif",
            "navigation",
            "A point mass among obstacles.",
        ),
        "UnicycleNavigation-v0": ("unicycle.gif", "navigation", "A unicycle among obstacles."),
        "TwoLinkArm-v0": ("two_link_arm.gif", "two_link_arm", "Reach a point with two joints."),
        "InvertedPendulum-v0": ("inverted_pendulum.gif", "mujoco", "Balance a pole on a cart."),
        "InvertedDoublePendulum-v0": (
            "inverted_double_pendulum.gif",
            "mujoco",
            "Balance two poles on a cart.",
        ),
        "Reacher-v0": ("reacher.gif", "mujoco", "Reach a target that lies anywhere."),
        "HalfCheetah-v0": ("half_cheetah.gif", "mujoco", "Run forward on two legs."),
        "Hopper-v0": ("hopper.gif", "mujoco", "Hop forward on one leg."),
    },
    "Known optimum": {
        "LinearQuadratic-v0": (
            "linear_quadratic.png",
            "linear_quadratic",
            "A linear chain with quadratic rewards.",
        ),
        "OrnsteinUhlenbeck-v0": (
            "ornstein_uhlenbeck.png",
            "ornstein_uhlenbeck",
            "Hold twenty unstable coordinates near the origin.",
        ),
        "LinearOrnsteinUhlenbeck-v0": (
            "linear_ornstein_uhlenbeck.png",
            "ornstein_uhlenbeck",
            "Ten stable coordinates, a linear reward.",
        ),
        "DoubleWell-v0": (
            "double_well.png",
            "double_well",
            "Lift ten particles from one well into another.",
        ),
    },
}
#: Arguments whose docstrings say it in prose, or elsewhere.
_MEANINGS = {
    "GaussianMixture-v0": {
        "temperature": "price of one nat of KL.",
        "steps": "horizon.",
        "dimension": "of the state; even.",
        "schedule": "further arguments of ``Schedule.ddpm``.",
    },
    "LinearQuadratic-v0": {
        "dimension": "of the state, and of noise and control.",
        "steps": "horizon; the time span stays 1.",
        "temperature": "price of one nat of KL.",
        "seed": "of the random matrices and the target.",
    },
    "OrnsteinUhlenbeck-v0": {
        "dimension": "d, of the state.",
        "drift_matrix": "A.",
        "control_matrix": "G, ``(d, m)``.",
        "running_matrix": "R, per unit of time.",
        "terminal_matrix": "Q.",
        "offset": "c.",
        "running_slope": "q, per unit of time.",
        "terminal_slope": "slope of the terminal reward.",
        "target": "centre of the terminal quadratic.",
        "initial_mean": "of X_0.",
        "initial_covariance": "of X_0; 0 starts at the mean.",
        "steps": "horizon.",
        "step_size": "D.",
        "temperature": "price of one nat of KL.",
        "dtype": "of the states.",
    },
    "LinearOrnsteinUhlenbeck-v0": {
        "dimension": "d, of the state, noise and control.",
        "seed": "of the random matrices.",
        "perturbation": "standard deviation of their entries.",
        "initial_covariance": "of X_0; 0 starts at the mean.",
        "kwargs": "other arguments of ``OrnsteinUhlenbeck-v0``.",
    },
}
_FORMS = (
    '`"noise"` for SAC with `ent_coef={:g}`, and for PPO with a policy that knows its KL;'
    ' `"control"` for whatever plans a control'
)
_SMALL_MODEL = {"model": "latent-digits", "reward": "digit-prompt", "prompts": "a green six"}


def facts(env_id: str) -> str:
    """The table at the head of an environment's page."""
    from girsanov import ProblemEnv, make_problem
    from girsanov.envs import NEED_WEIGHTS

    problem = make_problem(env_id, **(_SMALL_MODEL if env_id in NEED_WEIGHTS else {}))
    env = ProblemEnv(problem)
    rows = [
        ("Make", f'`gymnasium.make("{env_id}")`'),
        ("Action space", f"`{_box(env.action_space)}`"),
        ("Observation space", f"`Box(-inf, inf, {env.observation_space.shape}, float32)`"),
        ("Noise and control", f"shape `{tuple(problem.noise_shape)}`"),
        ("State", f"shape `{tuple(problem.state_shape)}`"),
        ("Horizon", f"{problem.horizon} steps"),
        ("Temperature", f"{problem.temperature:g}"),
        ("[Action forms](index.md#action-forms)", _FORMS.format(problem.temperature)),
    ]
    if env_id in NEED_WEIGHTS:
        rows[1:5] = [(name, f"{value}, with `latent-digits`") for name, value in rows[1:5]]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)])


def arguments(env_id: str) -> str:
    """An environment's arguments, each with its default and its meaning."""
    from girsanov.envs import PROBLEMS

    factory = PROBLEMS[env_id].load()  # type: ignore[attr-defined]
    short = env_id.removeprefix("girsanov/")
    told = _MEANINGS.get(short) or _told(factory)
    lines = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in told:
            raise ValueError(f"{env_id}: no docstring says what {name!r} means")
        rest = parameter.kind is parameter.VAR_KEYWORD
        given = parameter.default
        default = "" if rest or given is parameter.empty else _default(given)
        shown = f"`**{name}`" if rest else f"`{name}`"
        text = f"- {shown}{default}: {told[name]}".replace("``", "`")
        lines += textwrap.wrap(text, 98, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def cards() -> str:
    """The gallery: one card an environment, in a grid."""
    from girsanov.envs import PROBLEMS

    shown = {f"girsanov/{name}" for family in GALLERY.values() for name in family}
    if shown != set(PROBLEMS):
        raise ValueError(f"the gallery must show every id; it differs by {shown ^ set(PROBLEMS)}")
    parts = []
    for family, members in GALLERY.items():
        parts.append(f"## {family}\n\n::::{{grid}} 1 2 2 3\n:gutter: 2\n")
        for name, (picture, page, line) in members.items():
            head = [f":::{{grid-item-card}} {name}", f":link: {page}", ":link-type: doc"]
            parts.append("\n".join([*head, f":img-top: ../films/{picture}", "", line, ":::", ""]))
        parts.append("::::\n")
    return "\n".join(parts).rstrip()


def draw() -> None:
    """Pictures of the environments that no film shows: 32 paths of each, without control and
    steered, from the same noises.
    """
    import matplotlib.pyplot as plt
    import torch

    from girsanov import make_problem, rollout, zoo
    from girsanov.envs.env import problem_of

    for name in (
        "GaussianMixture-v0",
        "LinearQuadratic-v0",
        "OrnsteinUhlenbeck-v0",
        "LinearOrnsteinUhlenbeck-v0",
        "DoubleWell-v0",
    ):
        if f"pde/{name}" in zoo.names():
            agent = zoo.load(f"pde/{name}", device="cpu")
            problem, title = problem_of(agent.get_env()), "steered by PDE"
            steered = agent.policy.control
        else:
            problem, title = make_problem(f"girsanov/{name}"), "steered by the optimum"
            steered = problem.optimal_control  # type: ignore[attr-defined]
        figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
        panels = {"without control": None, title: steered}
        for axis, (words, policy) in zip(axes, panels.items(), strict=True):
            generator = torch.Generator().manual_seed(0)
            paths = rollout(problem, policy, 32, generator).states[..., 0].detach()
            axis.plot(paths.numpy(), color="tab:blue", alpha=0.4, linewidth=0.8)
            axis.set(title=words, xlabel="step")
        axes[0].set_ylabel("first coordinate")
        file = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("-v0")).lower()
        figure.savefig(DOCS / "films" / f"{file}.png", dpi=100)
        plt.close(figure)
    for name, env_id, settings in (
        ("latent_digits", "StableDiffusion-v0", _SMALL_MODEL),
        ("flow_digits", "FlowDigits-v0", {}),
    ):
        small = make_problem(f"girsanov/{env_id}", **settings, guidance_scale=1.5)
        ends = rollout(small, None, 12, torch.Generator().manual_seed(0)).states[-1]
        tiles = small.images(ends).detach().permute(0, 2, 3, 1).numpy()
        rows = [np.concatenate(list(tiles[i : i + 4]), 1) for i in (0, 4, 8)]
        picture = np.concatenate(rows, 0).repeat(6, 0).repeat(6, 1).clip(0, 1)
        plt.imsave(DOCS / "films" / f"{name}.png", picture)


def _box(box: Any) -> str:
    return f"Box({box.low.min():.1f}, {box.high.max():.1f}, {box.shape}, {box.dtype})"


def _default(value: Any) -> str:
    if value is None:
        return ""
    shown = str(value).removeprefix("torch.") if "torch" in str(value) else repr(value)
    return f" = `{shown}`"


def _told(factory: Any) -> dict[str, str]:
    """The meanings of arguments: an object's own docstring before those of its base classes."""
    places = [factory, *(inspect.getmro(factory)[1:] if inspect.isclass(factory) else ())]
    told: dict[str, str] = {}
    for place in places:
        for name, text in _args(inspect.getdoc(place) or "").items():
            if name not in told or told[name].startswith("see "):
                told[name] = text
    return told


def _args(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.S | re.M)
    if section is None:
        return {}
    found: dict[str, str] = {}
    for line in textwrap.dedent(section[1]).splitlines():
        start = re.match(r"\**(\w+): (.*)", line)
        if start:
            found[start[1]] = start[2]
        elif line.strip():
            found[list(found)[-1]] += " " + line.strip()
    return found


if __name__ == "__main__":
    draw()
