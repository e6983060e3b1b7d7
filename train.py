"""The command line. ``python train.py --help``, or ``girsanov --help`` once installed."""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import tyro

Unit = Literal["env_steps", "reward_queries", "seconds"]
MAIN_JOB = "girsanov/Digits-v0"


def run(
    agent: str,
    env: str = MAIN_JOB,
    seed: int = 0,
    budget: float = 2000,
    budget_unit: Unit = "reward_queries",
    out: Path = Path("runs/single"),
    env_kwargs: tuple[str, ...] = (),
    agent_kwargs: tuple[str, ...] = (),
    load: Path | None = None,
    trust_pickle: bool = False,
    points: int = 10,
    paths: int = 128,
    final_paths: int = 1000,
    reference_paths: int = 8192,
    reference_starts: int = 0,
    device: str = "auto",
    config: Path | None = None,
) -> None:
    """Let one agent learn one environment. ``accelerate launch train.py run ...`` shares a LoRA run
    among GPUs.

    Args:
        agent: pde, pi-ft, ppo, sac, dpok, ddpo, adjoint-matching, or module:attribute of your own.
        env: an id, or module:attribute of your own (a Problem, or what makes one).
        seed: of the agent.
        budget: how long to learn, in budget-unit.
        budget_unit: env_steps, reward_queries (terminal rewards seen) or seconds of training.
        out: the run's folder is OUT/<env>/<agent>/seed<k>.
        env_kwargs: key=value pairs for the problem, such as temperature=0.3 steps=20.
        agent_kwargs: key=value pairs for the agent, such as learning_rate=1e-3.
        load: a saved model.zip to go on from; the budget is on top of what it has spent.
        trust_pickle: let load be stable-baselines3's own zip, which runs what its author wrote.
        points: evaluations while learning.
        paths: fresh paths at each of them.
        final_paths: fresh paths of the final evaluation.
        reference_paths: uncontrolled paths behind J(0) and the certificate.
        reference_starts: initial states for a closer certificate, 4,096 paths of each; 0: none.
        device: auto (cuda where there is one), cpu, cuda or cuda:N.
        config: a JSON file of these settings, such as benchmarks/configs/*.json; what else is given
            here comes on top of it.
    """
    from dataclasses import replace

    from tqdm import tqdm

    from girsanov.scoreboard.runner import assist, assists, execute
    from girsanov.scoreboard.spec import Budget, RunSpec

    base = RunSpec(env, agent) if config is None else RunSpec.read(config)
    watched = {
        "points": points,
        "paths": paths,
        "final_paths": final_paths,
        "reference_paths": reference_paths,
    }
    watched["reference_starts"] = reference_starts
    spec = RunSpec(
        env,
        agent,
        seed,
        Budget(budget, budget_unit),
        {**base.env_kwargs, **pairs("env-kwargs", env_kwargs)},
        {**base.agent_kwargs, **pairs("agent-kwargs", agent_kwargs)},
        device,
        replace(base.plan, **watched),
        None if load is None else str(load),
        trust_pickle,
    )
    if assists():
        return assist(spec, out)
    with ExitStack() as shown:

        @cache  # drawn with the first row: an error at the door is one line
        def bar() -> Any:
            form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
            return shown.enter_context(tqdm(total=1.0, desc=agent, bar_format=form))

        def on_row(row: dict[str, Any]) -> None:
            bar().n = min(1.0, row[budget_unit] / budget)
            bar().set_postfix_str(_figures(row))

        record = execute(spec, out, _command(), on_row)
    print(f"{spec.folder(out)}: {_figures(record['final'])}")


def compare(
    agents: tuple[str, ...] = ("pde", "pi-ft", "ppo", "sac"),
    envs: tuple[str, ...] = (MAIN_JOB,),
    seeds: tuple[int, ...] = (0, 1, 2),
    budget: float = 2000,
    budget_unit: Unit = "reward_queries",
    out: Path = Path("runs/main"),
    workers: int = 2,
    env_kwargs: tuple[str, ...] = (),
    agent_kwargs: tuple[str, ...] = (),
    points: int = 10,
    paths: int = 128,
    final_paths: int = 1000,
    reference_paths: int = 8192,
    reference_starts: int = 0,
    device: str = "auto",
) -> None:
    """Let agents learn environments at equal budgets, then write the report. Killed and started
    again, it goes on.

    Without arguments it is the main job of the README.

    Args:
        agents: any of pde, pi-ft, ppo, sac, dpok, ddpo, adjoint-matching, and module:attribute of
            your own.
        envs: ids, or module:attribute of your own.
        seeds: of the agents.
        budget: how long each run learns, in budget-unit.
        budget_unit: env_steps, reward_queries (terminal rewards seen) or seconds of training.
        out: folder of everything.
        workers: runs at a time; cores are shared out evenly.
        env_kwargs: key=value pairs for every problem, such as temperature=0.3.
        agent_kwargs: agent.key=value pairs, such as ppo.learning_rate=1e-3.
        points: evaluations while learning.
        paths: fresh paths at each of them.
        final_paths: fresh paths of the final evaluation.
        reference_paths: uncontrolled paths behind J(0) and the certificate.
        reference_starts: initial states for a closer certificate, 4,096 paths of each; 0: none.
        device: auto (cuda where there is one), cpu, cuda or cuda:N.
    """
    from girsanov.scoreboard.compare import Comparison
    from girsanov.scoreboard.compare import compare as run_all
    from girsanov.scoreboard.spec import Budget, EvaluationPlan

    comparison = Comparison(
        agents,
        envs,
        seeds,
        Budget(budget, budget_unit),
        out,
        workers,
        pairs("env-kwargs", env_kwargs),
        _by_agent(agent_kwargs),
        device,
        EvaluationPlan(
            points, paths, final_paths, reference_paths, reference_starts=reference_starts
        ),
        _command(),
    )
    run_all(comparison)
    report(out)


def report(out: Path = Path("runs/main")) -> None:
    """Write the table and the plots of finished runs.

    Args:
        out: folder of a comparison.
    """
    from girsanov.scoreboard.report import report as write

    path = write(out)
    print(path.read_text())
    print(f"written: {path}\ncurves:  tensorboard --logdir {out}")


def pretrain(
    path: Path = Path("runs/pretrain/digits.safetensors"),
    seed: int = 0,
    iterations: int = 5000,
    classifier_iterations: int = 1500,
    samples: int = 2000,
    device: str = "auto",
) -> None:
    """Train the networks of girsanov/Digits-v0 from scikit-learn's images and measure the samples.

    To use the result: --env-kwargs checkpoint=PATH. The shipped one is
        envs/checkpoints/digits.safetensors.

    Args:
        path: file to write; what made it goes beside it as .json.
        seed: of everything drawn.
        iterations: of the denoiser.
        classifier_iterations: of the classifier.
        samples: drawn to measure the quality.
        device: auto (cuda where there is one), cpu, cuda or cuda:N.
    """
    import json

    from girsanov.envs.pretraining.digits import pretrain as train
    from girsanov.scoreboard.registry import resolve_device

    record = train(
        path,
        seed=seed,
        iterations=iterations,
        classifier_iterations=classifier_iterations,
        samples=samples,
        device=resolve_device(device),
        command=_command(),
    )
    print(json.dumps(record["quality"], indent=1))
    print(f"written: {path}")


def pretrain_latent(
    path: Path = Path("runs/pretrain/latent_digits"),
    seed: int = 0,
    iterations: int = 2500,
    autoencoder_iterations: int = 1200,
    images_a_prompt: int = 40,
) -> None:
    """Train the small text-to-image model of coloured digits from scikit-learn's images and measure
    what it draws.

    The result is a StableDiffusionPipeline folder; the shipped one is
    envs/checkpoints/latent_digits. Needs girsanov[sd].

    Args:
        path: folder to write; what made it goes beside it as .json.
        seed: of everything drawn.
        iterations: of the denoiser and the text encoder.
        autoencoder_iterations: of the autoencoder.
        images_a_prompt: drawn to measure the quality.
    """
    import json

    from girsanov.envs.pretraining.latent_digits import pretrain_latent as train

    record = train(
        path,
        seed=seed,
        iterations=iterations,
        autoencoder_iterations=autoencoder_iterations,
        images_a_prompt=images_a_prompt,
        command=_command(),
    )
    print(json.dumps(record["quality"], indent=1))
    print(f"written: {path}")


def pairs(name: str, given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` strings as a dict, values read as Python literals where they are such."""
    out = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"{name} must be key=value pairs; got {text!r}")
        try:
            out[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[key] = value
    return out


def _configured(arguments: Sequence[str]) -> Any:
    """``run``, with the settings of the file that ``--config`` names as its defaults."""
    given = [
        a.partition("=")[2] or b
        for a, b in zip(arguments, [*arguments, ""][1:], strict=True)
        if a.split("=")[0] == "--config"
    ]
    if not (given and given[-1]):
        return run
    from dataclasses import asdict

    from girsanov.scoreboard.spec import RunSpec

    spec = RunSpec.read(Path(given[-1]))
    plan = {name: value for name, value in asdict(spec.plan).items() if name != "samples"}
    budget = {"budget": spec.budget.amount, "budget_unit": spec.budget.unit}
    load = None if spec.load is None else Path(spec.load)
    command: Any = run
    return partial(
        command,
        agent=spec.agent,
        env=spec.env,
        seed=spec.seed,
        device=spec.device,
        load=load,
        **budget,
        **plan,
    )


def _by_agent(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for key, value in pairs("agent-kwargs", given).items():
        agent, dot, name = key.rpartition(".")
        if not (agent and dot):
            raise ValueError(f"agent-kwargs must be agent.key=value pairs; got {key!r}")
        out.setdefault(agent, {})[name] = value
    return out


def _figures(row: dict[str, Any]) -> str:
    score = (
        "" if row["score"] is None else f", score {row['score']:.3f} +- {row['score_stderr']:.3f}"
    )
    return (
        f"J {row['objective']:.3f} (reward {row['reward']:.3f}, KL {row['kl']:.3f}){score};"
        f" {row['env_steps']:,} env steps, {row['reward_queries']:,} reward queries,"
        f" {row['seconds']:.1f} s"
    )


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 and one line for what the caller can mend, 130 for
    Ctrl-C.
    """
    try:
        commands: dict[str, Any] = {
            **{
                "run": _configured(sys.argv[1:] if arguments is None else arguments),
                "compare": compare,
                "report": report,
            },
            **{"pretrain": pretrain, "pretrain-latent": pretrain_latent},
        }
        tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="girsanov", description=__doc__
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
