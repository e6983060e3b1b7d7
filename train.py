"""The command line. ``python train.py --help``, or ``girsanov --help`` once installed."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache as once
from pathlib import Path
from typing import Any, Literal

import tyro

from girsanov.scoreboard.commands.configuration import by_agent, expanded, of_envs, pairs
from girsanov.scoreboard.commands.configuration import schema as schema_of

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
    samples: int = 256,
    device: str = "auto",
    checkpoint_minutes: float = 5.0,
    keep_checkpoints: int = 2,
    config: Path | None = None,
    dry_run: bool = False,
    cache: bool = True,
) -> None:
    """Let one agent learn one environment. ``accelerate launch train.py run ...`` shares a LoRA run
    among GPUs.

    Args:
        agent: one of those that "girsanov list" tells, or module:attribute of your own.
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
        samples: terminal states kept.
        device: auto (cuda where there is one), cpu, cuda or cuda:N.
        checkpoint_minutes: between two checkpoints of a run; one after every evaluation, too.
        keep_checkpoints: of each run, until it is finished.
        config: a JSON or YAML file of these settings, such as benchmarks/configs/*.json; what else
            is given here comes on top of it. "girsanov schema run" describes it.
        dry_run: check the settings, say what would run, and stop.
        cache: take a reference that another folder has computed for the same problem, and leave
            one, in $GIRSANOV_CACHE or ~/.cache/girsanov.
    """
    from tqdm import tqdm

    from girsanov.scoreboard.runner import assist, assists, execute
    from girsanov.scoreboard.spec import Budget, EvaluationPlan, RunSpec
    from girsanov.scoreboard.storage.checkpoints import Saving

    saving = Saving(checkpoint_minutes, keep_checkpoints)
    spec = RunSpec(
        env,
        agent,
        seed,
        Budget(budget, budget_unit),
        pairs("env-kwargs", env_kwargs),
        pairs("agent-kwargs", agent_kwargs),
        device,
        EvaluationPlan(points, paths, final_paths, reference_paths, samples, reference_starts),
        None if load is None else str(load),
        trust_pickle,
    )
    if dry_run:
        return _foretell([spec], out)
    if assists():
        return assist(spec, out)
    with ExitStack() as shown:

        @once  # drawn once there is something to say: an error at the door is one line
        def bar() -> Any:
            form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
            return shown.enter_context(tqdm(total=1.0, desc=agent, bar_format=form))

        def on_stage(stage: str) -> None:
            bar().set_description_str(f"{agent}: {stage}")

        begun = False

        def on_row(row: dict[str, Any]) -> None:
            nonlocal begun
            share = min(1.0, row[budget_unit] / budget)
            if not begun:  # what remains is judged by this process's own learning
                begun, bar().initial = True, share
                bar().start_t = bar().last_print_t = time.time()  # tqdm ends the line by the latter
                bar().set_description_str(agent, refresh=False)
            bar().n = share
            bar().set_postfix_str(_figures(row))

        record = execute(spec, out, _command(), on_row, on_stage, _warn, saving, cache)
    print(f"{spec.folder(out)}: {_figures(record['final'])}")
    if record.get("choice"):
        print(f"its function class: {record['choice']}")


def compare(
    agents: tuple[str, ...] = ("pde", "sac", "pi-ft", "ppo"),  # the longest first: no core waits
    envs: tuple[str, ...] = (MAIN_JOB,),
    seeds: tuple[int, ...] = (0, 1),
    budget: float = 2000,
    budget_unit: Unit = "reward_queries",
    out: Path = Path("runs/main"),
    workers: int = 2,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: float = 0.0,
    env_kwargs: tuple[str, ...] = (),
    agent_kwargs: tuple[str, ...] = (),
    points: int = 10,
    paths: int = 128,
    final_paths: int = 1000,
    reference_paths: int = 8192,
    reference_starts: int = 0,
    samples: int = 256,
    device: str = "auto",
    checkpoint_minutes: float = 5.0,
    keep_checkpoints: int = 2,
    config: Path | None = None,
    dry_run: bool = False,
    cache: bool = True,
) -> None:
    """Let agents learn environments at equal budgets, then write the report. Killed and started
    again, it goes on.

    Without arguments it is the main job of the README.

    Args:
        agents: any of those that "girsanov list" tells, and module:attribute of your own.
        envs: ids, or module:attribute of your own; with a note after #, one of its own each.
        seeds: of the agents.
        budget: how long each run learns, in budget-unit.
        budget_unit: env_steps, reward_queries (terminal rewards seen) or seconds of training.
        out: folder of everything.
        workers: runs at a time on this machine; cores are shared out evenly.
        engine: local processes, or a Ray cluster, which has as many runs at a time as there is room
            for; needs girsanov[ray].
        address: of the Ray cluster; auto is the one that this machine belongs to.
        cpus_per_run: on the Ray cluster.
        gpus_per_run: on the Ray cluster; 0.25 lets four runs share one.
        env_kwargs: key=value pairs for every problem, such as temperature=0.3; or each for one of
            them, environment.key=value.
        agent_kwargs: agent.key=value pairs, such as ppo.learning_rate=1e-3; for one environment of
            several "agent @ environment.key=value".
        points: evaluations while learning.
        paths: fresh paths at each of them.
        final_paths: fresh paths of the final evaluation.
        reference_paths: uncontrolled paths behind J(0) and the certificate.
        reference_starts: initial states for a closer certificate, 4,096 paths of each; 0: none.
        samples: terminal states kept of each agent.
        device: auto (cuda where there is one), cpu, cuda or cuda:N.
        checkpoint_minutes: between two checkpoints of a run; one after every evaluation, too.
        keep_checkpoints: of each run, until it is finished.
        config: a JSON or YAML file of these settings; what else is given here comes on top of it.
            "girsanov schema compare" describes it.
        dry_run: check the settings of all runs, say which would be made, and stop.
        cache: take references that other folders have computed for the same problems, and leave
            ours, in $GIRSANOV_CACHE or ~/.cache/girsanov.
    """
    from girsanov.scoreboard.compare import Comparison, RunsFailed
    from girsanov.scoreboard.compare import compare as run_all
    from girsanov.scoreboard.spec import Budget, EvaluationPlan
    from girsanov.scoreboard.storage.checkpoints import Saving

    comparison = Comparison(
        agents,
        envs,
        seeds,
        Budget(budget, budget_unit),
        out,
        workers,
        of_envs(env_kwargs),
        by_agent(agent_kwargs),
        device,
        EvaluationPlan(points, paths, final_paths, reference_paths, samples, reference_starts),
        _command(),
        Saving(checkpoint_minutes, keep_checkpoints),
        _engine(engine, address, cpus_per_run, gpus_per_run),
        cache,
    )
    if dry_run:
        return _foretell(comparison.specs(), out)
    try:
        run_all(comparison)
    except RunsFailed:  # told of what there is, all the same
        if list(out.glob("*/*/seed*/record.json")):
            report(out)
        raise
    report(out)


def demo(out: Path = Path("runs/demo"), queries: int = 1000, seed: int = 0) -> None:
    """A first look, within two minutes: a diffusion model of digits, told to draw a 3.

    Args:
        out: folder of everything.
        queries: images whose reward is asked for.
        seed: of the agent.
    """
    from girsanov.scoreboard.commands.demo import demo as show_one

    path, words = show_one(out, queries, seed)
    print(f"\n{words}\n\nbefore and after: {path}")


def list_names() -> None:
    """List the environments and the agents, and what each needs."""
    from girsanov.scoreboard.commands.listing import everything

    print(everything())


def show(name: tyro.conf.Positional[str]) -> None:
    """Show an environment or an agent with its arguments.

    Args:
        name: such as Digits-v0 or pde.
    """
    from girsanov.scoreboard.commands.listing import one

    print(one(name))


def schema(command: tyro.conf.Positional[Literal["run", "compare"]] = "compare") -> None:
    """Print the JSON Schema of the settings file that --config reads.

    Args:
        command: whose settings.
    """
    import json

    commands: dict[str, Any] = {"run": run, "compare": compare}
    print(json.dumps(schema_of(commands[command]), indent=1))


def report(out: Path = Path("runs/main"), levels: tuple[float, ...] = ()) -> None:
    """Write the table and the plots of finished runs.

    Args:
        out: folder of a comparison.
        levels: scores whose cost is told too, such as 0.5 0.9; of several environments together,
            with a picture, levels.png.
    """
    from girsanov.scoreboard.output.tensorboard import address
    from girsanov.scoreboard.report import report as write

    path = write(
        out, on_stage=lambda stage: print(stage, file=sys.stderr, flush=True), levels=levels
    )
    print(path.read_text())
    print(f"written: {path}, and {path.with_suffix('.html')} for a browser")
    print(f"curves:  tensorboard --logdir {out}\n         {address()}")


def export(
    to: Path,
    out: Path = Path("runs/main"),
    table: Literal["runs", "curves"] = "runs",
) -> None:
    """Write finished runs as a table for spreadsheets and data frames.

    Args:
        to: file to write: .csv, or .parquet, which needs girsanov[export].
        out: folder of a comparison.
        table: runs, a line a run with its final evaluation; or curves, a line an evaluation. The
            scores are those of the report.
    """
    from girsanov.scoreboard.output.export import export as write

    path = write(out, to, table, lambda stage: print(stage, file=sys.stderr, flush=True))
    print(f"written: {path}")


def publish(
    out: Path = Path("runs/main"),
    to: Path | None = None,
    repo: str | None = None,
    private: bool = False,
    optimizers: bool = True,
) -> None:
    """Pack the trained agents of a comparison with their records and a card, for others: into a
    folder, or onto the Hugging Face hub.

    Args:
        out: folder of the comparison.
        to: folder to write.
        repo: owner/name on the hub, which needs girsanov[hub] and a login.
        private: make the repository for its owner alone.
        optimizers: keep their state; without it, files have a third of the size.
    """
    from girsanov.scoreboard.sharing import hub

    if (to is None) == (repo is None):
        raise ValueError("to or repo must be given, one of them")
    if to is not None:
        print(f"written: {hub.pack(out, to, optimizers)}")
    if repo is not None:
        print(f"pushed: {hub.push_to_hub(out, repo, private, optimizers=optimizers)}")


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
    _tell_quality(record, path)


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
    from girsanov.envs.pretraining.latent_digits import pretrain_latent as train

    record = train(
        path,
        seed=seed,
        iterations=iterations,
        autoencoder_iterations=autoencoder_iterations,
        images_a_prompt=images_a_prompt,
        command=_command(),
    )
    _tell_quality(record, path)


def pretrain_flow(
    path: Path = Path("runs/pretrain/flow_digits"),
    seed: int = 0,
    iterations: int = 3000,
    images_a_prompt: int = 40,
) -> None:
    """Train the small rectified flow of coloured digits from scikit-learn's images and measure what
    it draws.

    The result is a StableDiffusion3Pipeline folder; the shipped one is
    envs/checkpoints/flow_digits. The autoencoder is that of pretrain-latent's shipped folder.
    Needs girsanov[sd].

    Args:
        path: folder to write; what made it goes beside it as .json.
        seed: of everything drawn.
        iterations: of the transformer and the text encoders.
        images_a_prompt: drawn to measure the quality.
    """
    from girsanov.envs.pretraining.flow_digits import pretrain_flow as train

    record = train(
        path,
        seed=seed,
        iterations=iterations,
        images_a_prompt=images_a_prompt,
        command=_command(),
    )
    _tell_quality(record, path)


def _tell_quality(record: dict[str, Any], path: Path) -> None:
    import json

    print(json.dumps(record["quality"], indent=1))
    print(f"written: {path}")


def _figures(row: dict[str, Any]) -> str:
    score = (
        "" if row["score"] is None else f", score {row['score']:.3f} +- {row['score_stderr']:.3f}"
    )
    return (
        f"J {row['objective']:.3f} (reward {row['reward']:.3f}, KL {row['kl']:.3f}){score};"
        f" {row['env_steps']:,} env steps, {row['reward_queries']:,} reward queries,"
        f" {row['seconds']:.1f} s"
    )


def _warn(words: str) -> None:
    print(words, file=sys.stderr)


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _engine(name: str, address: str | None, cpus: int, gpus: float) -> Any:
    """None: processes of this machine."""
    if name == "local":
        return None
    from girsanov.scoreboard.engines.ray_cluster import RayCluster

    return RayCluster(address, cpus, gpus)


def _foretell(specs: list[Any], out: Path) -> None:
    """Check the settings of runs, and say what would be made."""
    from girsanov.scoreboard.compare import checked

    missing, envs = checked(specs, out)
    for spec in specs:
        words = "finished"
        if spec in missing:
            horizon = envs[spec.env].problem.horizon
            words = f"to do: {spec.budget.amount:,g} {spec.budget.unit}, {horizon} steps an episode"
        print(f"{spec.folder(out)}: {words}")
    print(f"{len(missing)} of {len(specs)} runs to do")


def tune(
    agents: tuple[str, ...] = ("ppo", "sac", "pde", "pi-ft"),
    env: str = MAIN_JOB,
    tasks: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1000,),
    budget: float = 2000,
    trials: int = 10,
    minutes: float = 20.0,
    env_kwargs: tuple[str, ...] = (),
    agent_kwargs: tuple[str, ...] = (),
    paths: int = 512,
    reference_paths: int = 8192,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: float = 0.0,
    out: Path = Path("runs/tuning"),
) -> None:
    """Search each agent's settings by Optuna: the same trials and CPU minutes for all.

    Needs girsanov[tune]. Killed and started again, it goes on. Take tasks and seeds that no table
    reports; what is searched is declared in scoreboard/tuning/spaces.py.

    Args:
        agents: any of those with a declared space; grpo#lora is a study beside grpo's.
        env: an id, or module:attribute of your own.
        tasks: one a task, key=value pairs joined by commas, such as target=8 or
            temperature=0.3,dimension=16; absent: the environment as it is.
        seeds: of every trial, on every task.
        budget: of every run, in reward queries.
        trials: at most; the default settings are the first of them.
        minutes: of CPU time at most, all trials of an agent together.
        env_kwargs: key=value pairs for every task.
        agent_kwargs: agent.key=value pairs that every trial holds, such as
            grpo#lora.policy=LoraPolicy; these are not searched.
        paths: fresh paths by which a run is scored.
        reference_paths: uncontrolled paths behind the scores.
        engine: this process, or a Ray cluster, where a trial's tasks and seeds run side by side.
        address: of the Ray cluster; auto is the one that this machine belongs to.
        cpus_per_run: on the Ray cluster.
        gpus_per_run: on the Ray cluster.
        out: folder of the journals, one a study.
    """
    from girsanov.scoreboard.spec import Budget
    from girsanov.scoreboard.tuning.study import Tuning
    from girsanov.scoreboard.tuning.study import tune as search
    from girsanov.scoreboard.tuning.summary import write

    common = pairs("env-kwargs", env_kwargs)
    chosen = tuple({**common, **pairs("tasks", task.split(","))} for task in tasks) or (common,)
    where = _engine(engine, address, cpus_per_run, gpus_per_run)
    held = by_agent(agent_kwargs)
    if unknown := sorted(set(held) - set(agents)):
        raise ValueError(f"agent_kwargs must be for one of {agents}; got {unknown}")
    for agent in agents:
        own = held.get(agent, {})
        limits = trials, minutes, paths, reference_paths
        tuning = Tuning(agent, env, chosen, seeds, Budget(budget), *limits, own)
        study = search(tuning, out, engine=where)
        print(f"{agent}: {study.best_value:.3f} by {study.best_trial.user_attrs['settings']}")
    print(f"written: {write(out)}")


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "run": run,
    "compare": compare,
    "report": report,
    "export": export,
    "publish": publish,
    "list": list_names,
    "show": show,
    "schema": schema,
    "tune": tune,
    "pretrain": pretrain,
    "pretrain-latent": pretrain_latent,
    "pretrain-flow": pretrain_flow,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 and one line for what the caller can mend, 130 for
    Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if list(given) == ["--version"]:
        from girsanov import __version__

        print(f"girsanov {__version__}")
        return 0
    try:
        words = expanded(given, COMMANDS)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=words, prog="girsanov", description=__doc__
        )
    except (ValueError, OSError) as error:
        from girsanov.scoreboard.storage.files import printable

        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
