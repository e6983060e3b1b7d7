"""Seeded fuzz: absurd arguments, problems, actions, settings, run folders and checkpoints. Each
ends in a result or in one clear refusal, in time, and leaves everything outside its folder alone.

3,000 cases by default; ``--fuzz 30000`` makes more. A case is repeated by its number alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import random
import shutil
import signal
import string
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import test_doors
import torch

import girsanov
from girsanov.agents.archive import _SETTINGS, _TENSORS
from girsanov.baselines.sb3_checkpoint import load_sb3, save_sb3
from girsanov.envs import make_problem
from girsanov.envs.env import ProblemEnv, ProblemVectorEnv
from girsanov.envs.problem import rollout
from girsanov.scoreboard import report as report_module
from girsanov.scoreboard.commands import configuration
from girsanov.scoreboard.spec import RunSpec
from girsanov.scoreboard.storage import archive
from girsanov.train import COMMANDS

#: Shares of the cases.
SHARES = {
    "arguments": 0.25,
    "problems": 0.08,
    "shells": 0.12,
    "settings": 0.15,
    "folders": 0.2,
    "checkpoints": 0.2,
}
#: CPU seconds of a case at most.
PATIENCE = 20.0
NAN, INF = float("nan"), float("inf")
WILD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, -1, 7, 2**31, 2**63, -(2**70), 10**400, 0.0, 0.5, 1.0),
    *(-0.0, 1e-300, 1e30, 1e308, -2.5, NAN, INF, -INF, 1j, "", "no", "3", "nan", "auto", "cpu"),
    *("cuda:99", "x" * 5000, "\x1b[31m", "../..", "\0", b"bytes", [], [1], [[1, 2], [3]], (), (1,)),
    *({}, {"a": 1}, {1: 2}, set(), object(), int, print, np.int64(3), np.float32(0.5)),
    *(np.array([1.0]), np.array([]), np.array("a"), torch.ones(2), torch.tensor(1), Path("p")),
    *(np.bool_(True), range(3), lambda *a: None, Ellipsis, torch.float64, torch.device("cpu")),
)
WORDS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**40, 10**30, 1.5, 1e308, -1e-9, "", "..", "../../x", "a/b"),
    *("/etc/passwd", "C:\\x", "\x1b[2J", "<script>", "x" * 3000, "nan", "\0", "~", "$x$", "|"),
    *([], [1], [[]], {}, {"a": {}}, "girsanov/Pendulum-v0", "pde", "girsanov/None-v0", "os:system"),
)


def cases(request: pytest.FixtureRequest, share: str) -> Iterator[tuple[int, random.Random]]:
    """Numbers and their random streams."""
    total = request.config.getoption("--fuzz")
    for i in range(round(total * SHARES[share])):
        yield i, random.Random(f"{share} {i}")


class Tally:
    """Counts what cases come to, and holds what should not have been."""

    def __init__(self, share: str) -> None:
        self.share, self.counts, self.bad = share, Counter[str](), dict[int, str]()

    def case(self, i: int, call: Callable[[], Any]) -> Any:
        """Run one."""
        try:
            with patience(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = call()
        except Exception as error:
            if said := obscure(error):
                self.bad[i] = said
            self.counts["refused"] += 1
            return None
        self.counts["taken"] += 1
        return result

    def tell(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The counts, and a failure if there were faults."""
        counts = ", ".join(f"{n:,} {word}" for word, n in sorted(self.counts.items()))
        with capsys.disabled():
            print(f"\nfuzz: {self.share}: {counts}; {len(self.bad)} faults")
        assert not self.bad, "\n".join(
            f"case {i}: {said}" for i, said in list(self.bad.items())[:40]
        )


@contextmanager
def patience() -> Iterator[None]:
    """End what takes too long."""

    def late(*_: Any) -> None:
        raise AssertionError(f"more than {PATIENCE} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def obscure(error: Exception) -> str | None:
    """None for a clear refusal; else the error."""
    words = str(error)
    # the system's own words hold the whole name of a file
    clear = words and "\x1b" not in words and (len(words) < 3000 or isinstance(error, OSError))
    if isinstance(error, (ValueError, OSError, gym.error.Error)) and clear:
        return None
    if isinstance(error, TypeError) and "argument" in words and clear:  # Python's own
        return None
    at, trace = "", error.__traceback__
    while trace is not None:
        name = Path(trace.tb_frame.f_code.co_filename).name
        at, trace = f"{name}:{trace.tb_lineno}", trace.tb_next
    return f"{type(error).__name__} at {at}: {words[:300]}"


@pytest.fixture(autouse=True)
def _posix() -> None:
    if not hasattr(signal, "setitimer"):
        pytest.skip("the clock of cases is POSIX's")


def snapshot(root: Path, but: Path) -> dict[str, str]:
    """Every file below ``root`` and its content, but those below ``but``."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_relative_to(but)
    }


# --- arguments


def test_arguments(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    tally = Tally("arguments")
    # it would fill the disk with what it is asked for
    left_out = {"PDE.save", "PIFT.save", "Recording.save", "compare"} | test_doors.UNCHECKED
    # states come from files alone, whose shapes are looked at there
    names = sorted(n for n in set(test_doors.EVERY) - left_out if "training_state" not in n)
    for i, rng in cases(request, "arguments"):
        name = rng.choice(names)
        subject = test_doors.EVERY[name]
        given = dict(test_doors.good(name))
        for parameter in rng.sample(subject.parameters, min(len(subject.parameters), 2)):
            if parameter not in ("callback", "on_step", "total_timesteps", "custom_objects"):
                given[parameter] = small(rng.choice(WILD))
        if "seed" in subject.parameters and name != "RunSpec" and rng.random() < 0.1:
            given["unknown"] = 1
        tally.case(i, lambda: subject.call(**given))  # noqa: B023
    assert snapshot(tmp_path, tmp_path / "nothing") == {}
    tally.tell(capsys)


def small(value: Any) -> Any:
    """Numbers that are sizes stay small: an honest machine gives what it is asked for."""
    return 1000 if isinstance(value, int) and 2**20 < value < 2**64 else value


# --- problems


class Toy(girsanov.Problem):
    """A walk in the plane, of which any method may be exchanged."""

    state_shape = noise_shape = (2,)
    horizon, temperature = 7, 1.0

    def initial(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(n, 2, generator=generator)

    def transition(self, k: Any, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return 0.9 * x + 0.3 * z

    def running_reward(self, k: Any, x: torch.Tensor) -> torch.Tensor:
        return -x.square().sum(1)

    def terminal_reward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


def broken(rng: random.Random) -> Toy:
    """A toy with one or two faults, or none."""
    toy = Toy()
    spoil: list[Callable[[torch.Tensor], Any]] = [
        lambda t: t[:, None],
        lambda t: t.squeeze(),
        lambda t: t.double(),
        lambda t: t.half(),
        lambda t: t > 0,
        lambda t: t.long(),
        lambda t: t + 0j,
        lambda t: t / 0,
        lambda t: t * NAN,
        lambda t: t.mean(),
        lambda t: t.numpy(),
        lambda t: t.tolist(),
        lambda t: t[:-1],
        lambda t: torch.cat([t, t]),
        lambda t: t.clone().requires_grad_(),
        lambda t: torch.rand_like(t),
        lambda t: None,
        lambda t: t,
        lambda t: t.expand(2, *t.shape),
        lambda t: t.add_(1.0),
        lambda t: t[0],
    ]
    for _ in range(rng.choice((0, 1, 1, 2))):
        if rng.random() < 0.25:
            name = rng.choice(("state_shape", "noise_shape", "horizon", "temperature"))
            vars(toy)[name] = small(rng.choice(WILD))
            continue
        name = rng.choice(("initial", "transition", "running_reward", "terminal_reward", "success"))
        change, least = rng.choice(spoil), rng.choice((0, 0, 2, 4))
        method = getattr(Toy, name, lambda self, x: x[:, 0] > 0)

        def call(*given: Any, _m: Any = method, _c: Any = change, _k: int = least) -> Any:
            value = _m(toy, *given)
            late = not isinstance(given[0], int) or given[0] >= _k
            return _c(value) if late else value

        vars(toy)[name] = call
    return toy


def test_problems(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally("problems")

    def tried(toy: Toy) -> None:
        env = ProblemVectorEnv(toy, 5)
        env.reset(seed=0)
        for _ in range(min(toy.horizon, 9)):
            _, reward, *_ = env.step(np.zeros((5, env.single_action_space.shape[0]), np.float32))  # type: ignore[index]
            assert reward.shape == (5,) and np.isfinite(reward).all()
        if toy.horizon < 100:
            paths = rollout(toy, None, 7, torch.Generator().manual_seed(0))
            assert paths.reward.shape == (7,) and bool(torch.isfinite(paths.reward).all())
            assert len({x.data_ptr() for x in paths.states}) == len(paths.states)
        if hasattr(toy, "success"):
            assert toy.success(paths.states[-1]).shape == (7,)

    for i, rng in cases(request, "problems"):
        tally.case(i, lambda: tried(broken(rng)))  # noqa: B023
    assert tally.counts["taken"] > 0.2 * sum(tally.counts.values())
    tally.tell(capsys)


# --- shells


def test_shells(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is called in whatever order: observations in their space and finite rewards."""
    tally = Tally("shells")
    made = {
        name: make_problem(f"girsanov/{name}-v0", **{"steps": 3})
        for name in ("GaussianMixture", "Pendulum", "DoubleIntegratorNavigation")
    }

    def play(rng: random.Random) -> None:
        problem, lanes = made[rng.choice(sorted(made))], rng.choice((1, 3))
        forms = {"actions": rng.choice(("control", "noise"))}
        kind = rng.choice((ProblemEnv, ProblemVectorEnv, girsanov.ProblemVecEnv))
        many = {} if kind is ProblemEnv else {"num_envs": lanes}
        env: Any = kind(problem, **many, **forms)
        for _ in range(8):
            what = rng.choice(("step", "step", "step", "reset", "wild", "seed"))
            space = env.action_space
            if kind is girsanov.ProblemVecEnv:
                sample = np.stack([space.sample() for _ in range(lanes)])
            else:
                sample = space.sample()
            action = rng.choice(WILD) if what == "wild" else sample
            try:
                if what == "seed":
                    seed = rng.choice(WILD)
                    env.seed(seed) if kind is girsanov.ProblemVecEnv else env.reset(seed=seed)
                    continue
                if what == "reset":
                    env.reset()
                    continue
                observation, reward, *_ = env.step(action)
            except Exception as error:
                if obscure(error) or what in ("reset", "step") and not unbegun(error):
                    raise
                tally.counts["calls refused"] += 1
                continue
            assert np.isfinite(observation).all() and np.isfinite(reward).all()
            assert np.shape(reward) == (() if kind is ProblemEnv else (lanes,))
            tally.counts["steps"] += 1

    def unbegun(error: Exception) -> bool:
        return isinstance(error, gym.error.ResetNeeded)

    for i, rng in cases(request, "shells"):
        tally.case(i, lambda: play(rng))  # noqa: B023
    tally.tell(capsys)


# --- settings


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed."""
    value = copy.deepcopy(value)
    holder, key, here = None, None, value
    while isinstance(here, (dict, list)) and here and rng.random() < 0.85:
        holder, key = (
            here,
            rng.choice(sorted(here)) if isinstance(here, dict) else rng.randrange(len(here)),
        )
        here = holder[key]
    new = copy.deepcopy(rng.choice(WORDS))
    if holder is None:
        return new
    what = rng.choice(("change", "change", "delete", "add", "rename"))
    if what == "delete":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[rng.choice(("x", "..", "kind", "seed", "\x1b"))] = new
    elif what == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = new
    return value


def text_of(value: Any, rng: random.Random) -> bytes:
    """JSON, or what was JSON."""
    text = json.dumps(value)
    what = rng.randrange(24)
    if what == 0:
        text = "[" * 100_000
    elif what == 1:
        text = text.replace("1", "1e999").replace("0", "NaN")
    elif what == 2:
        text = text[: rng.randrange(len(text) + 1)]
    elif what == 3:
        text = text.replace("1", "9" * 5000)
    content = text.encode()
    if what == 4:
        content = bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    elif what == 5 and content:
        flipped = bytearray(content)
        for _ in range(3):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        content = bytes(flipped)
    return content


def test_settings(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tally = Tally("settings")
    flat = {"env": "girsanov/Pendulum-v0", "budget": 100, "points": 3, "env_kwargs": {"steps": 5}}
    nested = RunSpec("girsanov/Pendulum-v0", "pde").to_json()
    compared = {"agents": ["pde"], "agent_kwargs": {"pde": {"adaptive": True}}, "seeds": [0]}
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *d]\n"

    def read(rng: random.Random) -> None:
        start = rng.choice((flat, nested, {**flat, **compared}))
        suffix = rng.choice((".json", ".json", ".yaml"))
        path = tmp_path / f"settings{suffix}"
        content = text_of(mutated(start, rng), rng)
        path.write_bytes(bomb.encode() if suffix == ".yaml" and rng.random() < 0.1 else content)
        which = rng.choice(("run", "compare"))
        if rng.random() < 0.4:
            RunSpec.read(path).to_json()
        else:
            words = configuration.expanded([which, "--config", str(path)], COMMANDS)
            assert all(isinstance(word, str) for word in words)

    for i, rng in cases(request, "settings"):
        tally.case(i, lambda: read(rng))  # noqa: B023
    tally.tell(capsys)


# --- run folders


def test_folders(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records, rows, archives and states of checkpoints, changed anywhere: the report is made or
    refused, and nothing outside its folder is touched.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "scoreboard"))
    from test_report import _run

    tally, out, good = Tally("folders"), tmp_path / "out", tmp_path / "good"
    for agent in ("pde", "ppo"):
        _run(good, agent, 0, [0.0, 0.5, 0.9], 3.0, 400.0, (2,))
    archive.pack(good, tmp_path / "packed")
    (tmp_path / "outside.txt").write_text("mine")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "kept.txt").write_text("mine")
    before = snapshot(tmp_path, out)
    drawn = report_module._draw  # pictures take a second: of some cases

    def changed(rng: random.Random) -> None:
        shutil.rmtree(out, ignore_errors=True)
        packed = rng.random() < 0.3
        shutil.copytree(tmp_path / "packed" if packed else good, out)
        files = [path for path in sorted(out.rglob("*.json*")) if path.is_file()]
        path = rng.choice(files)
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        at = rng.randrange(len(lines))
        new = text_of(mutated(json.loads(lines[at]), rng), rng)
        parts = [line.encode() for line in lines]
        parts[at] = new
        path.write_bytes(b"\n".join(parts) + b"\n")
        if rng.random() < 0.1:
            victim = rng.choice(sorted(out.rglob("*.npy")) or [path])
            victim.write_bytes(
                rng.choice((b"", b"\x93NUMPY", pickle.dumps(Trap(tmp_path / "trap"))))
            )
        if rng.random() < 0.05 and path.parent != out:
            shutil.rmtree(path.parent)
            path.parent.symlink_to(tmp_path / "report")
        monkeypatch.setattr(report_module, "_draw", drawn if rng.random() < 0.01 else nothing)
        written = report_module.report(out, refine=rng.random() < 0.2)
        text = written.read_text()
        assert "<script>" not in text and "\x1b" not in text and text.startswith("# Report")

    def nothing(*_: Any) -> dict[str, str]:
        return {}

    for i, rng in cases(request, "folders"):
        tally.case(i, lambda: changed(rng))  # noqa: B023
    shutil.rmtree(out, ignore_errors=True)
    assert snapshot(tmp_path, out) == before
    tally.tell(capsys)


class Trap:
    """Reading its pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# --- checkpoints


def test_checkpoints(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Settings, tensors, members and bytes, changed anywhere: an agent that acts, or a refusal, and
    no code runs.
    """
    tally, folder, trap = Tally("checkpoints"), tmp_path / "in", tmp_path / "trap"
    folder.mkdir()
    problem = make_problem("girsanov/GaussianMixture-v0", steps=3)
    env = ProblemEnv(problem)
    narrow = {"hidden": (4,)}
    girsanov.PDE("MlpPolicy", problem, seed=0, policy_kwargs=narrow).save(folder / "pde")
    girsanov.PIFT("MlpPolicy", problem, seed=0, policy_kwargs=narrow).save(folder / "pift")
    save_sb3(girsanov.make_ppo(problem, seed=0, net_arch=[4]), folder / "ppo")
    kept = {name: zipfile.ZipFile(folder / f"{name}.zip") for name in ("pde", "pift", "ppo")}
    held = {
        name: (json.loads(file.read(_SETTINGS)), file.read(_TENSORS)) for name, file in kept.items()
    }
    observation = env.reset(seed=0)[0]
    before = snapshot(tmp_path, folder)

    def load(rng: random.Random) -> None:
        name = rng.choice(sorted(held))
        settings, tensors = held[name]
        path = folder / "changed.zip"
        what = rng.choice(("settings", "settings", "tensors", "header", "members", "bytes"))
        first = text_of(mutated(settings, rng), rng) if what == "settings" else json.dumps(settings)
        if what == "tensors":
            tensors = safetensors.torch.save(spoiled(safetensors.torch.load(tensors), rng))
        elif what == "header":
            flipped = bytearray(tensors)
            for _ in range(rng.choice((1, 4))):
                flipped[rng.randrange(min(len(flipped), 400))] = rng.randrange(256)
            tensors = bytes(flipped)
        method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) if what == "members" else 0
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr(_SETTINGS, first)
            file.writestr(_TENSORS, tensors)
            if what == "members":
                extra = rng.choice(
                    ("data", "policy.pth", "../../evil", _SETTINGS + "x", "data.pkl")
                )
                file.writestr(extra, pickle.dumps(Trap(trap)))
        if what == "bytes":
            content = bytearray(path.read_bytes())
            for _ in range(rng.choice((1, 3, 30))):
                content[rng.randrange(len(content))] = rng.randrange(256)
            path.write_bytes(
                bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
            )
        if name == "ppo":
            agent: Any = load_sb3(path, env)
            seen = agent.get_env().reset()[:1]
        else:
            agent, seen = getattr(girsanov, name.upper()).load(path, env), observation
        agent.predict(seen)

    for i, rng in cases(request, "checkpoints"):
        tally.case(i, lambda: load(rng))  # noqa: B023
    assert not trap.exists() and snapshot(tmp_path, folder) == before
    tally.tell(capsys)


def spoiled(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """One tensor of another shape, type, name or value."""
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    new: Any = rng.choice(
        (
            value[None],
            value.flatten()[:0],
            value.double(),
            value.bool(),
            value.to(torch.uint8),
            torch.full_like(value.double(), NAN),
            torch.full_like(value.double(), 1e30),
            torch.zeros(()),
            None,
        )
    )
    if new is not None:
        tensors[name if rng.random() < 0.9 else "".join(rng.choices(string.printable, k=9))] = new
    return {key: part.contiguous().clone() for key, part in tensors.items()}
