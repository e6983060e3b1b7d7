"""What a user installs: the files, the metadata and the versions. The wheel is built here by
setuptools, without a network.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import girsanov

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("envs", "agents", "baselines", "scoreboard")


def sources(root: Path) -> Iterator[Path]:
    """The package's Python files under the checkout or a copy of it."""
    yield from (root / "__init__.py", root / "_lazy.py", root / "train.py")
    for package in PACKAGES:
        yield from (root / package).rglob("*.py")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout")  # setuptools writes beside the sources
    for folder in (*PACKAGES, "tests", ".ci"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    return copy


def build(checkout: Path, what: str, folder: str) -> Path:
    """What the backend that pyproject.toml names builds, without a network."""
    code = (
        f"import sys; sys.path.insert(0, '.ci'); import backend; backend.build_{what}({folder!r})"
    )
    (checkout / folder).mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (path,) = (checkout / folder).iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build(checkout, "wheel", "dist")) as opened:
        yield opened


def test_an_editable_install_is_a_path_that_type_checkers_follow(
    checkout: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(build(checkout, "editable", "editable")) as opened:
        names = opened.namelist()
        assert [name for name in names if ".dist-info/" not in name] == [
            "__editable__.girsanov.pth"
        ]  # no import hook
        folder = Path(opened.read("__editable__.girsanov.pth").decode().strip())
        assert (folder / "girsanov" / "py.typed").samefile(checkout / "py.typed")
        (record,) = (name for name in names if name.endswith("RECORD"))
        listed = dict(row.split(",")[:2] for row in opened.read(record).decode().splitlines())
        assert set(listed) == set(names)
        for name in set(names) - {record}:
            digest = hashlib.sha256(opened.read(name)).digest()
            told = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            assert listed[name] == f"sha256={told}"


def test_the_source_distribution_holds_what_builds_it(checkout: Path) -> None:
    with tarfile.open(build(checkout, "sdist", "sdist")) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {".ci/backend.py", "CHANGELOG.md", "pyproject.toml", "train.py"} <= names
    manifest = "MANIFEST.in"  # building leaves it as it was
    assert (checkout / manifest).read_text() == (ROOT / manifest).read_text()


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    wanted = {path.relative_to(ROOT).as_posix() for path in sources(ROOT)}
    wanted.add("py.typed")
    for folder in ("envs/checkpoints", "scoreboard/sharing/agents"):
        data = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted |= {path.relative_to(ROOT).as_posix() for path in data}
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == {f"girsanov/{name}" for name in wanted}
    assert any(name.endswith(".safetensors") for name in installed)
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_console_script(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert wheel.read(name).decode().split() == [
        "[console_scripts]",
        "girsanov",
        "=",
        "girsanov.train:main",
    ]


def test_one_version_everywhere(metadata: Message) -> None:
    citation = re.search(
        r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M
    )
    changelog = re.search(
        r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert citation and changelog
    assert girsanov.__version__ == metadata["Version"] == citation[1] == changelog[1]


def imports(path: Path) -> set[str]:
    """The top-level names of what a file imports from elsewhere."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules.add(node.module.partition(".")[0])
    return modules - sys.stdlib_module_names - {"girsanov"}


def test_every_import_is_a_declared_dependency(requirements: list[Requirement]) -> None:
    declared = {
        canonicalize_name(r.name)
        for r in requirements
        if r.marker is None or "dev" not in str(r.marker)
    }
    providers = packages_distributions()
    for path in sources(ROOT):
        for module in imports(path):
            found = {canonicalize_name(name) for name in providers.get(module, ())}
            assert found & declared, (
                f"{path.relative_to(ROOT)} imports {module}, which no declared dependency provides"
            )


def test_imports_point_one_way() -> None:
    """A folder knows those before it, and none after it."""
    layers = (*PACKAGES, "train")
    for path in sources(ROOT):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if here not in layers:
            continue
        later = set(layers[layers.index(here) + 1 :])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = (node.module or "").split(".")
                if node.level == 0:  # from girsanov.x import y
                    known = set(module[1:2]) if module[0] == "girsanov" else set()
                else:  # from ..x import y, from .. import x; one dot stays in the folder
                    known = (
                        set()
                        if node.level == 1
                        else {module[0]}
                        if module[0]
                        else {alias.name for alias in node.names}
                    )
                assert not known & later, (
                    f"{path.relative_to(ROOT)}:{node.lineno} imports {known & later}"
                )


def test_the_base_install_is_enough_for_all_but_the_extras(requirements: list[Requirement]) -> None:
    extras = {canonicalize_name(r.name) for r in requirements if r.marker is not None} - {
        "girsanov"
    }
    absent = [
        module
        for module, names in packages_distributions().items()
        if {canonicalize_name(n) for n in names} & extras
    ]
    # None in sys.modules: the import fails
    script = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]))\n"
    script += (
        "import girsanov.train, girsanov.agents, girsanov.baselines, girsanov.scoreboard.compare,"
        " girsanov.scoreboard.runner"
    )
    subprocess.run([sys.executable, "-c", script, *sorted(absent)], check=True, cwd=ROOT.parent)


def test_every_dependency_has_a_tested_version(requirements: list[Requirement]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    # of a range, its end
    tested = {
        canonicalize_name(pin.name): next(s.version for s in pin.specifier if s.operator != ">=")
        for pin in pins
    }
    assert len(tested) == len(pins)
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name == "girsanov":  # an extra that takes in others
            continue
        assert name in tested, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(tested[name]), (
            f"constraints.txt holds {name} {tested[name]}; not {requirement}"
        )
