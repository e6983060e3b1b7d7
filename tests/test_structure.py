"""The house: which folder may know which, no circles, and no room too full to walk through."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import girsanov
from girsanov import _lazy, agents

ROOT = Path(__file__).resolve().parents[1]
#: Each may import from those after it.
ORDER = ("scoreboard", "baselines", "agents", "envs")
#: One concept fills them.
LONG = {
    "envs/problem.py": "the seam",
    "envs/env.py": "the two Gymnasium shells, which must agree",
    "envs/known_optimum/linear_quadratic.py": "the Riccati recursion and its instances",
}


def modules() -> dict[str, Path]:
    """The package's modules by their dotted names below ``girsanov``; a folder's face is not one of
    them.
    """
    files = [
        path
        for folder in ORDER
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    ]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules that a module imports, wherever in its text and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        base = name.split(".")[: -node.level] + (node.module or "").split(".")
        target = ".".join(part for part in base if part)
        named = {f"{target}.{alias.name}" if target else alias.name for alias in node.names}
        found |= ({target} if target in known else set()) | (named & known)
    return found - {name}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path, set(known)) for name, path in known.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Some circle of a graph; none: an empty list."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(arrows[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def against(arrows: dict[str, set[str]]) -> list[str]:
    """Imports that climb: from a folder to one before it in ``ORDER``."""
    place = {folder: i for i, folder in enumerate(ORDER)}
    return [
        f"{name} -> {other}"
        for name, others in arrows.items()
        for other in others
        if place[other.split(".")[0]] < place[name.split(".")[0]]
    ]


def test_imports_point_one_way_and_never_in_a_circle() -> None:
    arrows = graph()
    assert len(arrows) > 80 and sum(map(len, arrows.values())) > 200  # the walk sees the house
    assert against(arrows) == []
    assert circle(arrows) == []


def test_a_circle_and_a_climb_would_be_seen() -> None:
    arrows = {"envs.a": {"envs.b"}, "envs.b": {"envs.c"}, "envs.c": {"envs.b"}}
    assert sorted(circle(arrows)) == ["envs.b", "envs.c"]
    assert against({"envs.a": {"agents.b"}, "agents.b": set()}) == ["envs.a -> agents.b"]


@pytest.mark.parametrize(
    "path, other", [("agents/pi_ft/form.py", "agent"), ("envs/robots/engine.py", "warp")]
)
def test_what_is_below_does_not_know_what_is_above(path: str, other: str) -> None:
    name = path.removesuffix(".py").replace("/", ".")
    assert f"{name.rpartition('.')[0]}.{other}" not in graph()[name]


def test_no_folder_overflows_and_no_module_is_long() -> None:
    folders = {path.parent for path in modules().values()}
    crowded = {
        str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > 14
    }
    assert crowded == {}
    lengths = {
        p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines())
        for p in modules().values()
    }
    assert {name: n for name, n in lengths.items() if n > 350 and name not in LONG} == {}
    assert {
        name for name in LONG if lengths.get(name, 0) <= 350
    } == set()  # the list holds no more than it must


def test_import_costs_no_torch() -> None:
    code = (
        "import girsanov, sys; assert 'torch' not in sys.modules; girsanov.Problem; assert 'torch'"
        " in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_the_public_names_are_there() -> None:
    space: dict[str, object] = {}
    exec("from girsanov import *", space)
    assert set(girsanov.__all__) <= set(space)
    assert dir(girsanov) == sorted(girsanov.__all__)
    assert dir(agents) == ["PDE", "PIFT"]
    assert all(name in str(girsanov.__doc__) for name in ("PPO", "DPOK", "adjoint matching"))
    with pytest.raises(AttributeError, match="no attribute 'Porblem'"):
        girsanov.Porblem  # noqa: B018


def test_old_paths_lead_to_the_same_objects() -> None:
    import importlib

    for old, new in _lazy.MOVED.items():
        module = importlib.import_module(new)
        assert importlib.import_module(old) is module
        assert (
            module.__name__ == new and module.__spec__ is not None and module.__spec__.name == new
        )
    from girsanov.envs.certificates import certificate
    from girsanov.envs.problem import certificate as before  # type: ignore[attr-defined]

    assert before is certificate is girsanov.certificate
