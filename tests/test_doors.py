"""Every public constructor and method refuses what it can't take, by one ValueError that names the
argument and what came. The cases are made from signatures: a new argument without a kind fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import girsanov
from girsanov.envs import NEED_DIFFUSERS, NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS, make_problem
from girsanov.envs.problem import rollout

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = (True, False, NAN, INF, -INF, "3", [3], 1j, object())
#: What no argument of a kind takes.
BAD: dict[str, tuple[Any, ...]] = {
    "count": (*NO_NUMBERS, 0, -1, 1.5, 10**400),
    "whole": (*NO_NUMBERS, -1, 1.5, 10**400),
    "positive": (*NO_NUMBERS, 0, -1.0, 10**400),
    "number": NO_NUMBERS,
    "integer": (*NO_NUMBERS, 1.5, 10**400),
    "numbers": (True, NAN, INF, "3", 1j, object(), [[1.0, 2.0], [3.0]]),
    "share": (*NO_NUMBERS, 2, -0.5),
    "flag": ("no", "yes", "False", 0, 1, 2.0, None, []),
    "seed": (True, NAN, -1, 1.5, "0", 2**140, [1]),
    "device": ("abacus", "cuda:x", 3.5, [], object()),
    "dtype": ("float32", torch.int64, torch.bool, float, None),
    "name": (3, True, "nonsense", ["state"], {}),
    "words": (3, True, [], {}),
    "keywords": (3, "a=1", [("a", 1)], {1: 2}),
    "generator": (0, None, "seed", np.random.default_rng(0)),
    "problem": (0, "x", None, girsanov.Problem),
    "policy": (0, "x", "nonsense", int, object()),
    "rate": (True, NAN, INF, 0, -1e-3, "fast", [1]),
    "control": (0, "x", [1]),
    "tensor": (0, "x", None, [1.0]),
    "path": (0, 2.5, ["x"], True),
    "group": (0, "x", {"draws": 3}, True),
    "settings": (0, "x", {"amount": 1}, True, None),
    "names": (0, "x", (), None),
    "levels": (("a",), (NAN,), (INF,), (1j,), (None,), 3, "x", None),
    "whole_names": ((-1,), (True,), (1.5,), ("a",), 3, ()),
    "action": (NAN, "x", [NAN], [[0.0, 1.0, 2.0]], None, 1j),
    "paths": (0, None, "x", (1, 2)),
    "options": (3, "a=1", [("a", 1)]),
}
#: The kind of each argument by its name, and where a method's differs by ``Owner.method.name``.
KINDS: dict[str, str] = {
    "action": "action",
    "action_bound": "positive",
    "actions": "name",
    "adaptive": "flag",
    "agent": "words",
    "agent_kwargs": "keywords",
    "agents": "names",
    "amount": "positive",
    "anneal": "flag",
    "autoreset_mode": "name",
    "averaging": "share",
    "controlled": "share",
    "batch": "count",
    "batch_size": "count",
    "budget": "settings",
    "collection": "group",
    "comparison": "settings",
    "damping": "share",
    "device": "device",
    "dtype": "dtype",
    "env": "words",
    "env_id": "name",
    "env_kwargs": "keywords",
    "envs": "names",
    "final_paths": "count",
    "fitting": "group",
    "generator": "generator",
    "gradient_steps": "count",
    "horizon": "count",
    "lanes": "count",
    "levels": "levels",
    "learning_rate": "rate",
    "load": "path",
    "log_interval": "whole",
    "max_gradient": "positive",
    "memory": "count",
    "n": "count",
    "n_trajectories": "count",
    "n_uncontrolled": "count",
    "noises": "control",
    "num_envs": "count",
    "observation": "name",
    "options": "options",
    "out": "path",
    "path": "path",
    "paths": "count",
    "optimizers": "flag",
    "plan": "settings",
    "points": "count",
    "policy": "policy",
    "private": "flag",
    "problem": "problem",
    "progress": "flag",
    "cache": "flag",
    "progress_bar": "flag",
    "reference_paths": "count",
    "reference_starts": "whole",
    "refine": "flag",
    "render_mode": "name",
    "repo": "words",
    "reset_num_timesteps": "flag",
    "revision": "words",
    "samples": "count",
    "seed": "seed",
    "seeds": "whole_names",
    "selection": "group",
    "start": "control",
    "targets": "group",
    "stats_window_size": "count",
    "tb_log_name": "words",
    "tensors": "flag",
    "compile": "flag",
    "on_device": "flag",
    "to": "path",
    "token": "words",
    "total_timesteps": "whole",
    "trust_pickle": "flag",
    "unit": "name",
    "visits": "count",
    "weight_decay": "number",
    "workers": "count",
    "ProblemEnv.step.action": "action",
    "ProblemVectorEnv.step.actions": "action",
    "Estimate.of.samples": "tensor",
    "Certificate.of.confidence": "share",
    "Recording.of.paths": "paths",
    "RunSpec.seed": "seed",
    "certificate.problem": "problem",
    "rollout.policy": "control",
    "objective.policy": "control",
    "PDE.collect.policy": "control",
    "PIFT.collect.policy": "control",
    "PDE.load.path": "path",
    "Comparison.plan": "settings",
    # flat keywords of PDE and of every agent
    "exploration": "number",
    "imagined": "whole",
    "lookahead": "name",
    "draws": "whole",
    "mean_span": "number",
    "max_weight": "positive",
    "gradient_penalty": "number",
    "ridge": "number",
    "select": "flag",
    "policy_kwargs": "keywords",
    "tensorboard_log": "path",
    "verbose": "whole",
}
#: Arguments that say themselves what is wrong elsewhere, or take anything, and why.
FREE = {
    "callback": "stable-baselines3 takes callbacks, lists and functions",
    "command": "words for the record",
    "state": "what training_state gave: of files that were read with care",
    "saving": "scoreboard.storage.checkpoints.Saving, which looks at its own",
    "engine": "anything with the methods of an Engine",
    "on_stage": "a function of a word",
    "custom_objects": "ignored",
    "exclude": "ignored",
    "include": "ignored",
    "force_reset": "ignored",
    "print_system_info": "ignored",
    "on_step": "a function, called after the first step",
    "data": "tests/agents/pde/test_fit.py tells",
    "PDE.load.env": "looked at once there is a checkpoint",
    "PIFT.load.env": "looked at once there is a checkpoint",
}
#: Records, which hold what they are given; and what only subclasses and the agents themselves call.
UNCHECKED = {
    *("Certificate", "Estimate", "Objective", "Trajectories", "Recording"),
    *(
        "Certificate.of",
        "Certificate.from_json",
        "Budget.fraction",
        "RunSpec.env_folder",
        "RunSpec.folder",
    ),
    *("RunSpec.from_json", "Problem", "Problem.render", "Problem.initial", "Problem.transition"),
    *("Problem.running_reward", "Problem.terminal_reward"),
    *(f"{agent}.set_learning_rate" for agent in ("PDE", "PIFT")),
    *("PIFT.ascend", "PIFT.descend", "PDE.fit", "PDE.absorb", "PDE.observe"),
    *(f"ProblemVecEnv.{name}" for name in ("env_is_wrapped", "env_method", "get_attr", "set_attr")),
    "ProblemVecEnv.step_async",
    *("RunSpec.read", "RunSpec.offered"),  # tests/scoreboard/test_spec.py
}


@cache
def problem() -> girsanov.Problem:
    return make_problem("girsanov/GaussianMixture-v0", steps=3)


@cache
def paths() -> Any:
    return rollout(problem(), None, 3, torch.Generator().manual_seed(0))


def good(name: str) -> dict[str, Any]:
    """Arguments that a subject takes."""
    spec = {"env": "girsanov/Pendulum-v0", "agent": "pde"}
    drawn = {"generator": torch.Generator().manual_seed(0)}
    comparison: dict[str, Any] = {
        "agents": ("pde",),
        "envs": ("girsanov/Pendulum-v0",),
        "seeds": (0,),
        "budget": girsanov.Budget(10),
        "out": Path("out"),
    }
    return {
        "PDE": {"env": problem()},
        "PIFT": {"env": problem()},
        "Budget": {"amount": 10},
        "Budget.timesteps": {"horizon": 3},
        "Comparison": comparison,
        "Estimate.of": {"samples": torch.ones(3)},
        "PDE.collect": {"policy": None},
        "PIFT.collect": {"policy": None},
        "PDE.learn": {"total_timesteps": 0},
        "PIFT.learn": {"total_timesteps": 0},
        "PDE.save": {"path": "x"},
        "PIFT.save": {"path": "x"},
        "PDE.load": {"path": "x"},
        "PIFT.load": {"path": "x"},
        "PDE.set_env": {"env": problem()},
        "PIFT.set_env": {"env": problem()},
        "Problem.to": {},
        "ProblemEnv": {"problem": problem()},
        "ProblemEnv.step": {"action": np.zeros(1)},
        "ProblemVecEnv": {"env": problem()},
        "ProblemVectorEnv": {"problem": problem()},
        "ProblemVectorEnv.step": {"actions": np.zeros((1, 1))},
        "Recording.at_random_times": {"visits": 2, **drawn},
        "Recording.of": {"paths": paths()},
        "Recording.load": {"path": "x"},
        "Recording.save": {"path": "x"},
        "Recording.validate": {"problem": problem()},
        "RunSpec": spec,
        "certificate": {"problem": problem(), "n": 3, **drawn},
        "compare": {"comparison": girsanov.Comparison(**comparison)},
        "from_hub": {"repo": "me/agents", "to": Path("nowhere")},
        "make_ppo": {"env": problem()},
        "make_problem": {"env_id": "girsanov/GaussianMixture-v0"},
        "make_sac": {"env": problem()},
        "objective": {"problem": problem(), "policy": None, "n": 3, **drawn},
        "push_to_hub": {"out": Path("nowhere"), "repo": "me/agents"},
        "report": {"out": Path("nowhere")},
        "rollout": {"problem": problem(), "policy": None, "n": 3, **drawn},
    }.get(name, {})


def owner(name: str) -> Any:
    """An object whose method is called, begun where it must have been."""
    if name in ("PDE", "PIFT"):
        return getattr(girsanov, name)("MlpPolicy", problem(), seed=0)
    if name == "Problem":
        return problem()
    if name in ("Estimate", "RunSpec"):
        return getattr(girsanov, name)  # class methods
    if name == "Recording":
        return girsanov.Recording.of(paths())
    made = getattr(girsanov, name)(**good(name))
    if name in ("ProblemEnv", "ProblemVectorEnv"):
        made.reset(seed=0)
    return made


class Subject(NamedTuple):
    """What can be called, and with what."""

    name: str
    call: Callable[..., Any]
    parameters: tuple[str, ...]
    optional: frozenset[str]  # those that may be None


def parameters(function: Any) -> tuple[str, ...]:
    found = inspect.signature(function).parameters.values()
    kept = [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return tuple(name for name in kept if name not in ("self", "cls"))


def optional(function: Any) -> frozenset[str]:
    found = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in found if p.default is None)


def subjects() -> Iterator[Subject]:
    """Every public function, constructor and method of ours."""
    for name in girsanov.__all__:
        found = getattr(girsanov, name)
        if not isinstance(found, type):
            if inspect.isfunction(found):
                yield Subject(name, found, parameters(found), optional(found))
            continue
        flat = found.arguments() if hasattr(found, "arguments") else ()
        named = parameters(found)
        every = (*named, *(arg for arg in flat if arg not in named))
        yield Subject(
            name, found, every, optional(found) | {"ridge", "lookahead", "mean_span", "controlled"}
        )
        for method in sorted(attribute for attribute in dir(found) if attribute[0] != "_"):
            static = inspect.getattr_static(found, method)
            function = getattr(static, "__func__", static)
            ours = inspect.isfunction(function) and function.__module__.startswith("girsanov")
            if ours and parameters(function):

                def call(*, _owner: str = name, _method: str = method, **kwargs: Any) -> Any:
                    return getattr(owner(_owner), _method)(**kwargs)

                yield Subject(f"{name}.{method}", call, parameters(function), optional(function))


def kind_of(subject: str, parameter: str) -> str | None:
    if f"{subject}.{parameter}" in FREE:
        return None
    return KINDS.get(f"{subject}.{parameter}", KINDS.get(parameter))


EVERY = {subject.name: subject for subject in subjects()}


def test_every_public_argument_has_a_kind() -> None:
    unknown = [
        f"{subject.name}.{parameter}"
        for subject in EVERY.values()
        if subject.name not in UNCHECKED
        for parameter in subject.parameters
        if kind_of(subject.name, parameter) is None
        and not {parameter, f"{subject.name}.{parameter}"} & FREE.keys()
    ]
    assert unknown == []
    assert len(EVERY) > 45 and UNCHECKED <= EVERY.keys()


def refused(call: Callable[[], Any], parameter: str) -> str | None:
    """None if the call ends in the one ValueError; else what happened instead."""
    try:
        call()
    except ValueError as error:
        words = str(error)
        named = {"amount": "budget", "env_id": "env"}.get(
            parameter, parameter.rstrip("s")
        ) in words.replace("-", "_")
        return None if named and "; " in words and len(words) < 2000 else f"says: {words}"
    except Exception as error:  # the point of the test
        return f"raises {type(error).__name__}: {error}"
    return "is taken"


@pytest.mark.parametrize("name", sorted(set(EVERY) - UNCHECKED))
def test_bad_arguments_are_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject, wrong = EVERY[name], {}
    for parameter in subject.parameters:
        kind = kind_of(name, parameter)
        for value in BAD[kind] if kind else ():
            if value is None and parameter in subject.optional:
                continue
            said = refused(lambda: subject.call(**{**good(name), parameter: value}), parameter)  # noqa: B023
            if said is not None:
                wrong[f"{parameter}={value!r}"] = said
    assert not wrong, "\n".join(f"{case} {said}" for case, said in wrong.items())
    assert list(tmp_path.iterdir()) == []  # before anything is written


def test_numpy_s_numbers_are_numbers(tmp_path: Path) -> None:
    two = np.int64(2)
    agent = girsanov.PDE(
        "MlpPolicy",
        problem(),
        n_uncontrolled=np.int32(4),
        n_trajectories=two,
        gradient_steps=np.uint8(1),
        seed=np.int64(7),
        learning_rate=np.float32(1e-3),
        adaptive=np.bool_(True),
    ).learn(np.int64(9))
    assert type(agent.seed) is int and agent.seed == 7
    agent.save(tmp_path / "agent")
    assert girsanov.PDE.load(tmp_path / "agent", problem()).n_trajectories == 2
    env = girsanov.ProblemEnv(problem())
    for seed in (np.int64(3), np.uint8(3)):
        assert np.array_equal(env.reset(seed=seed)[0], env.reset(seed=3)[0])
    lanes = girsanov.ProblemVectorEnv(problem(), np.int16(3))
    assert np.array_equal(lanes.reset(seed=np.int64(3))[0], lanes.reset(seed=3)[0])
    spec = girsanov.RunSpec(
        *("girsanov/Pendulum-v0", "pde", np.int64(5)),
        budget=girsanov.Budget(np.float32(10)),
        plan=girsanov.EvaluationPlan(points=np.int64(3)),
    )
    assert girsanov.RunSpec.from_json(spec.to_json()) == spec
    assert girsanov.make_ppo(problem(), seed=np.int64(1)).seed == 1


def test_actions_and_observations_may_run_backwards() -> None:
    env = girsanov.ProblemVectorEnv(problem(), 3)
    size = env.single_action_space.shape[0]  # type: ignore[index]
    actions = np.linspace(-0.5, 0.5, 3 * size, dtype=np.float32).reshape(3, size)
    env.reset(seed=0)
    backwards = env.step(actions[::-1])[0]
    env.reset(seed=0)
    assert np.array_equal(backwards, env.step(actions[::-1].copy())[0])


def test_a_float64_problem_is_learned_and_predicted() -> None:
    made = make_problem("girsanov/OrnsteinUhlenbeck-v0", dimension=2, steps=3, dtype=torch.float64)
    observation = girsanov.ProblemEnv(made).reset(seed=0)[0]
    for agent in (
        girsanov.PDE("MlpPolicy", made, n_uncontrolled=4, n_trajectories=2, gradient_steps=1),
        girsanov.PIFT("MlpPolicy", made, n_trajectories=2, gradient_steps=1),
    ):
        action = agent.learn(20).predict(observation)[0]
        state = torch.as_tensor(observation[None, :2]).double()
        assert np.allclose(action, agent.policy.control(0, state)[0].detach(), atol=1e-6)
        with pytest.raises(ValueError, match="observation must be finite; got 1 NaN or infinite"):
            agent.predict(np.array([0.0, np.nan, 0.0], np.float32))


def test_an_agent_that_diverges_says_so() -> None:
    agent = girsanov.PDE("MlpPolicy", problem(), learning_rate=1e30, seed=0, n_uncontrolled=4)
    with pytest.raises(ValueError, match="learning_rate must be small enough.*; it diverged"):
        agent.learn(3000)
    lost = lambda k, x: torch.full((len(x), 2), NAN)  # noqa: E731
    with pytest.raises(ValueError, match="the policy's controls must be finite.*has diverged"):
        rollout(problem(), lost, 3, torch.Generator().manual_seed(0))


def test_states_that_turn_nan_are_named_with_their_step() -> None:
    class Late(type(problem())):  # type: ignore[misc]
        def transition(self, k: Any, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            later = super().transition(k, x, z)
            return torch.where(later > later.median(), torch.nan, later) if self.late else later

    late = make_problem("girsanov/GaussianMixture-v0", steps=3)
    object.__setattr__(late, "__class__", Late)
    object.__setattr__(late, "late", False)
    env, lanes = girsanov.ProblemEnv(late), girsanov.ProblemVectorEnv(late, 2)
    vec = girsanov.ProblemVecEnv(late, 2)
    for shell in (env, lanes, vec):
        shell.reset()
    object.__setattr__(late, "late", True)
    words = "states of Late must be finite; got NaN or infinity at step 1"
    size = env.action_space.shape[0]  # type: ignore[index]
    with pytest.raises(ValueError, match=words):
        lanes.step(np.zeros((2, size), np.float32))
    with pytest.raises(ValueError, match=words):
        vec.step(np.zeros((2, size), np.float32))
    with pytest.raises(ValueError, match="Late.transition must return finite states"):
        rollout(late, None, 3, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("env_id", sorted(set(PROBLEMS) - NEED_WEIGHTS))
def test_problems_refuse_bad_settings_by_name(env_id: str) -> None:
    if env_id in NEED_MUJOCO:
        pytest.importorskip("mujoco")
    if env_id in NEED_DIFFUSERS:
        pytest.importorskip("diffusers")
    wrong = {}
    for name, kind in plain_arguments(PROBLEMS[env_id].load()).items():  # type: ignore[attr-defined]
        for value in BAD[kind]:
            said = refused(lambda: make_problem(env_id, **{name: value}), name)  # noqa: B023
            if said is not None and "keyword argument" not in said:  # one not taken, or set
                wrong[f"{name}={value!r}"] = said
    assert not wrong, "\n".join(f"{case} {said}" for case, said in wrong.items())


@pytest.mark.parametrize(
    ("env_id", "settings", "words"),
    [
        ("Digits-v0", {"target": "three"}, "target must be an integer from 0 to 9; got 'three'"),
        ("GaussianMixture-v0", {"dimension": 2.5}, "an even integer of at least 2; got 2.5"),
        ("Pendulum-v0", {"temperature": None}, "temperature must be a positive number; got None"),
        ("LinearQuadratic-v0", {"seed": "x"}, "seed must be an integer; got 'x'"),  # any does
    ],
)
def test_another_kind_is_told_the_range(env_id: str, settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_problem(f"girsanov/{env_id}", **settings)


def plain_arguments(make: Any) -> dict[str, str]:
    """The kinds of the arguments that are plain numbers, flags and types; those of the base classes
    among them.
    """
    kinds = {
        "int": "integer",
        "float": "number",
        "bool": "flag",
        "torch.dtype": "dtype",
        "float | Sequence[float]": "numbers",
    }
    makers = [base.__init__ for base in make.__mro__] if isinstance(make, type) else [make]
    return {
        name: kinds[parameter.annotation]
        for maker in makers
        for name, parameter in inspect.signature(maker).parameters.items()
        if parameter.annotation in kinds and parameter.default is not parameter.empty
    }


def test_what_a_long_fuzz_found() -> None:
    """Late, or rare: states that are no floats from four paths on, controls that are None, ids that
    would colour a terminal, settings that are empty but no dict, and a page of a bad value.
    """
    toy = make_problem("girsanov/Pendulum-v0", steps=3)
    vars(toy)["initial"] = lambda n, g: torch.ones(n, 3, dtype=torch.int64 if n > 3 else None)
    stream = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"start must be floating-point numbers; got torch.int64"):
        rollout(toy, None, 7, stream)
    with pytest.raises(ValueError, match="initial states must be floating-point numbers; got"):
        girsanov.ProblemVectorEnv(toy, 5).reset(seed=0)
    mixture = make_problem("girsanov/GaussianMixture-v0", steps=3)
    agent = girsanov.PDE("MlpPolicy", mixture, seed=0)
    for paths in (lambda p: rollout(mixture, p, 4, stream), lambda p: agent.collect(p, 4)):
        with pytest.raises(ValueError, match=r"policy\(k, x\) must be a tensor of shape \(4, 2\)"):
            paths(lambda k, x: None)
        with pytest.raises(ValueError, match="policy must be a function of"):
            paths(int)
    with pytest.raises(ValueError, match="env must be a registered id; got '\\\\x1b"):
        girsanov.PDE("MlpPolicy", "\x1b[31m", seed=0)
    comparison: dict[str, Any] = dict(
        agents=("pde",), envs=("girsanov/Pendulum-v0",), seeds=(0,), budget=girsanov.Budget(5)
    )
    for empty in ((), "", 0.0, False):
        with pytest.raises(ValueError, match="agent_kwargs must be a dict"):
            girsanov.Comparison(**comparison, out=Path("x"), agent_kwargs=empty)
    vars(mixture)["state_shape"] = "x" * 5000
    with pytest.raises(ValueError, match="state_shape must be a tuple") as caught:
        mixture.validate()
    assert len(str(caught.value)) < 400
