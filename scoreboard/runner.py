"""One run: make the environment and the agent, let it learn under the instrument, leave a finished
folder.

Of the processes of ``accelerate launch train.py run`` the first executes the run and the others
``assist`` it. ``python -m girsanov.scoreboard.runner`` is the worker of ``compare``: one run in a
process of its own.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..baselines.function_learner import CountedEnv, call, taken
from ..envs.counting import Evaluations, counted
from ..envs.env import ProblemEnv, shell_of
from ..envs.fingerprint import fingerprint
from ..envs.problem import Policy, Problem
from .commands.arguments import check_names, unsuitable
from .commands.budget_check import few_rounds
from .evaluation import SAMPLE_SEED, Reference, evaluate, generator_on, policy_of
from .registry import find_agent, make_env, resolve_device
from .spec import RunSpec
from .storage import archive
from .storage.checkpoints import Checkpoints, Saving, Terminated
from .storage.records import (
    RunFolder,
    check_writable,
    cores,
    provenance,
    read_record,
    write_json,
    write_whole,
)
from .storage.references import cached_reference

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


def prepare_env(spec: RunSpec, env: ProblemEnv, out: Path, cache: bool = True) -> Reference:
    """The environment's reference; the first to come computes it, or finds it in the ``cache``, and
    keeps samples of the uncontrolled process.
    """
    folder = spec.env_folder(out)
    settings = {
        "env": spec.env,
        "env_kwargs": spec.to_json()["env_kwargs"],
        "reference_paths": spec.plan.reference_paths,
    }
    if spec.plan.reference_starts:
        settings["reference_starts"] = spec.plan.reference_starts
    settings["fingerprint"] = getattr(env, "fingerprint", None) or fingerprint(env.problem)
    reference = cached_reference(env.problem, settings, folder / "reference.json", cache)
    before = folder / "samples_before.npy"
    if not before.is_file():
        _save_samples(env.problem, None, spec.plan.samples, before)
    return reference


def execute(
    spec: RunSpec,
    out: Path,
    command: str = "",
    on_row: Callable[[dict[str, Any]], None] | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_warning: Callable[[str], None] = lambda words: None,
    saving: Saving | None = None,
    cache: bool = True,
) -> dict[str, Any]:
    """Make one run, unless its folder is finished, and return its record.

    A killed run goes on from its last checkpoint; it begins again where the agent is your own and
    can't be saved (``storage.resuming.resumable``).

    Args:
        spec: what to run.
        out: where; the run's folder is ``spec.folder(out)``.
        command: how this was asked for, kept in the record.
        on_row: called with each row of progress.
        on_stage: called with a word on what begins.
        on_warning: called with what is allowed and yet may be unwise.
        saving: how often the run is saved; every five minutes and after every evaluation if absent.
        cache: share the reference with other folders.
    """
    check_names(spec.env, spec.agent)
    agent, folder = find_agent(spec.agent), RunFolder(out, spec, saving)
    archive.restore([spec], out)
    if folder.finished():
        return read_record(folder.record)
    from .callback import ScoreCallback  # imports SB3 and TensorBoard

    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    # what can go wrong at once does so before anything is written
    env, evaluations, model, resumed = _prepare(spec, folder)
    if words := few_rounds(model, spec):
        on_warning(words)
    check_writable(out)
    on_stage(f"reference, {spec.plan.reference_paths:,} uncontrolled paths")
    reference = prepare_env(spec, env, out, cache)
    on_stage("learning" if resumed else f"first evaluation, {spec.plan.paths:,} paths")
    with folder.begin(resumed) as begun, terminable(folder.checkpoints, model):
        if not begun:
            return read_record(folder.record)
        callback = ScoreCallback(
            *(
                env.problem,
                reference,
                spec.budget,
                spec.plan,
                spec.seed,
                folder.progress,
                folder.tensorboard,
                on_row,
            ),
            *(folder.checkpoints, resumed, evaluations),
        )
        try:
            _learn(model, spec, env, callback)
            _save_samples(
                env.problem, policy_of(model, env.problem), spec.plan.samples, folder.samples
            )
            _save(model, folder.model)
            callback.log_hyperparameters(
                {"agent": spec.agent, "env": spec.env, "seed": spec.seed, **spec.agent_kwargs}
            )
        finally:
            callback.close()
        said = {"note": words.removeprefix("warning: "), "choice": getattr(model, "choice", "")}
        record = {
            "spec": spec.to_json(),
            "final": callback.final,
            "reference": reference.to_json(),
            "access": getattr(model.policy, "access", agent.access),
            "access_class": getattr(model.policy, "access_class", agent.access_class),
            "temperature": env.problem.temperature,
            "horizon": env.problem.horizon,
            "state_shape": list(env.problem.state_shape),
            "command": command,
            "device": resolve_device(spec.device),
            "threads": torch.get_num_threads(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **{key: text for key, text in said.items() if text},
            **provenance(),
        }
        write_json(folder.record, record)
        folder.checkpoints.clear()
    return record


def check_settings(spec: RunSpec, env: ProblemEnv) -> str:
    """Raise the ValueError with which a run would begin: make the agent, and forget it.

    Returns:
        What is allowed and yet may be unwise; nothing, mostly.

    Your own is not made, as it may learn at once; whether it takes the arguments is seen from its
    signature. What else goes wrong is left to the run.
    """
    agent = find_agent(spec.agent)
    try:
        if agent.load is None:
            taken(agent.make, spec.agent_kwargs, spec.offered(env.problem.horizon))
        else:
            return few_rounds(_model(spec, env), spec)
    except TypeError as error:
        raise unsuitable(spec.agent, spec.agent_kwargs, error) from error
    except ValueError:
        raise
    except Exception:  # the run will say what
        pass
    return ""


@contextmanager
def terminable(checkpoints: Checkpoints, model: Any, grace: float = 20.0) -> Iterator[None]:
    """SIGTERM ends a run at its next checkpoint, or after ``grace`` seconds if none comes; at once
    where the agent makes none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    from .storage.resuming import resumable  # imports SB3

    def asked(signum: int, frame: Any) -> None:
        if checkpoints.stopping or not resumable(model):
            raise Terminated(f"signal {signum}")
        checkpoints.stopping = True
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, grace)

    numbers = [number for name in ("SIGTERM", "SIGALRM") if (number := getattr(signal, name, None))]
    before = {number: signal.signal(number, asked) for number in numbers}
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def assists() -> bool:
    """Whether this is one of several processes of one run, and not the first."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def assist(spec: RunSpec, out: Path) -> None:
    """The part in a run of every process but the first: its share of the paths. It evaluates and
    writes nothing.
    """
    folder = RunFolder(out, spec)
    if folder.finished():
        return
    from .callback import BudgetCallback

    env, _, model, resumed = _prepare(spec, folder)
    _learn(model, spec, env, BudgetCallback(env.problem, spec.budget, resumed))


def _prepare(
    spec: RunSpec, folder: RunFolder
) -> tuple[ProblemEnv, Evaluations, BaseAlgorithm, dict[str, Any] | None]:
    """The environment, the count of what the agent asks of its model, the agent, and what an
    earlier process left; of several processes each on a GPU of its own.
    """
    from ..agents.pi_ft.lora import processes
    from .storage.resuming import resumable

    team = processes(torch.device(resolve_device(spec.device)))
    env = make_env(spec.env, spec.env_kwargs, spec.device)
    resumed = folder.checkpoints.latest()
    problem, evaluations = counted(env.problem)
    model = _model(spec, ProblemEnv(problem, **shell_of(env)))
    if resumed is not None and not resumable(model):
        resumed = None
    if team is not None:
        if not getattr(model.policy, "shares_paths", False):
            name = type(model.policy).__name__
            raise ValueError(
                "agent must learn by a LoRA policy of PI-FT to share in several processes; got"
                f" {name}"
            )
        if spec.budget.unit == "seconds":
            raise ValueError(
                "budget_unit must be env_steps or reward_queries with several processes; got"
                " seconds"
            )
        team.wait_for_everyone()  # all have read the checkpoint before the first may replace it
    return env, evaluations, model, resumed


def _model(spec: RunSpec, env: ProblemEnv) -> BaseAlgorithm:
    agent = find_agent(spec.agent)
    if spec.load is not None:
        if agent.load is None:
            raise ValueError(f"agent {spec.agent!r} can't be loaded; leave out load")
        if not Path(spec.load).is_file():
            raise ValueError(f"load must name a saved model; there is no file {spec.load!r}")
        load = (agent.load_pickled if spec.trust_pickle else None) or agent.load
        model = load(spec.load, env, spec.device)
        model.set_random_seed(spec.seed)
        return model
    try:
        if agent.load is None:  # your own: an algorithm, or a function that learns by itself
            offered = spec.offered(env.problem.horizon)
            counted_env = CountedEnv(env, offered["total_timesteps"])
            model = call(agent.make, counted_env, spec.agent_kwargs, **offered)
        else:
            model = agent.make(env, seed=spec.seed, device=spec.device, **spec.agent_kwargs)
    except (TypeError, AssertionError) as error:  # SB3 asserts
        raise unsuitable(spec.agent, spec.agent_kwargs, error) from error
    if not hasattr(model, "learn"):
        raise ValueError(
            f"agent {spec.agent!r} must return a stable-baselines3 algorithm or a policy; got"
            f" {model!r}"
        )
    return model


def _learn(model: BaseAlgorithm, spec: RunSpec, env: ProblemEnv, callback: Any) -> None:
    """A run that goes on asks for all of its budget, too: the callback knows what is spent."""
    from .callback import episode_length

    total = spec.budget.timesteps(episode_length(model, env.problem), model.n_envs)
    model.learn(total, callback=callback, reset_num_timesteps=spec.load is None)


def _save_samples(problem: Problem, policy: Policy | None, n: int, path: Path) -> None:
    states = evaluate(problem, policy, n, generator_on(problem, SAMPLE_SEED), batch=n).states
    buffer = io.BytesIO()
    np.save(buffer, states.float().cpu().numpy())
    write_whole(path, buffer.getvalue())


def _save(model: BaseAlgorithm, path: Path) -> None:
    from ..baselines.sb3_checkpoint import save_model

    try:
        save_model(model, path)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(f"{path} could not be written: {error}".splitlines()[0]) from error


def _die_with_parent() -> None:
    """End this process when the pipe from its parent closes, however the parent ended."""

    def wait() -> None:
        # not sys.stdin.read: its lock would be held when the interpreter shuts down
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Worker: a JSON request as the only argument. Exit code 2 and one line on stderr for what the
    user can mend.
    """
    import json

    request = json.loads(sys.argv[1])
    _die_with_parent()
    torch.set_num_threads(request["threads"])
    sys.path.extend(request["path"])
    try:
        spec, out = RunSpec.from_json(request["spec"]), Path(request["out"])
        execute(spec, out, request["command"], saving=Saving(**request["saving"]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Terminated:
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
