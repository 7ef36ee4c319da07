"""What may import what. The three packages lean on each other in one direction only."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("retinue_memory", "retinue_agents", "retinue_server")
"""Bottom up: each may import those before it."""
SOLE_IMPORTERS = {"litellm": "agents/retinue_agents/models/litellm.py", "mem0": "memory/retinue_memory/mem0/"}
"""What takes seconds to import, or phones home when it is, has one module or package that knows how."""
DATABASES = "memory/retinue_memory/database/"
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for layer in LAYERS
    for path in (ROOT / layer.removeprefix("retinue_") / layer).rglob("*.py")
)


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """The absolute names that a module imports, and whether it does so as soon as it is imported itself."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    deferred = {id(node) for outer in ast.walk(tree) if is_deferred(outer) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                depth = len(Path(module).parts) - 2  # the modules lie two folders below the root
                assert node.level <= depth, f"{module}:{node.lineno} imports from above its package"
            elif node.module:
                yield node.module, id(node) not in deferred


def is_deferred(node: ast.AST) -> bool:
    """A function body, or `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def packages(module: str) -> set[str]:
    return {name.partition(".")[0] for name, _ in imports(module)}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def owners() -> dict[str, set[str]]:
    """{what can be imported: the installed distributions it comes from}"""
    return {name: {normal(owner) for owner in found} for name, found in packages_distributions().items()}


@cache
def declared() -> set[str]:
    """The distributions that pyproject.toml names, for use and in extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups: list[list[str]] = [project["dependencies"], *project["optional-dependencies"].values()]
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for group in groups for requirement in group}


BY_NAME = {".".join(Path(module).with_suffix("").parts[1:]).removesuffix(".__init__"): module for module in MODULES}


def neighbours(module: str) -> set[str]:
    """The modules of ours that a module imports anywhere: at once, in a function, or for its annotations."""
    package = list(Path(module).parts[1:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, node.module] if node.module else above)
            submodules = [f"{source}.{alias.name}" for alias in node.names]
            found |= {name if name in BY_NAME else source for name in submodules}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {BY_NAME[name] for name in found & BY_NAME.keys()} - {module}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even for annotations only, or inside of a function: each module can be understood with those below it.

    What a package's `__init__` offers is for users of the package, and is not imported by its own modules.
    """
    graph = {module: neighbours(module) for module in MODULES}
    for _ in TopologicalSorter(graph).static_order():  # raises CycleError, which names the circle
        pass


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    """retinue_memory knows neither of the others, retinue_agents does not know the server, none knows the tests."""
    own = Path(module).parts[1]
    above = {*LAYERS[LAYERS.index(own) + 1 :], "tests", "benchmarks"}
    assert not packages(module) & above


@pytest.mark.parametrize("module", MODULES)
def test_a_costly_library_has_one_importer(module: str) -> None:
    """litellm and mem0 are imported in one place each, and by nothing that is imported before they are used."""
    theirs = {library for library in SOLE_IMPORTERS if library in packages(module)}
    assert all(module.startswith(SOLE_IMPORTERS[library]) for library in theirs)
    ours = {name.rpartition(".")[2] for name, at_once in imports(module) if at_once and name.startswith("retinue_")}
    assert not ours & set(SOLE_IMPORTERS)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_database_package_knows_sqlite(module: str) -> None:
    """Another database can take its place: nothing else imports the driver, or a module that does."""
    found = {name for name, _ in imports(module)}
    drivers = {"sqlite3", "retinue_memory.database.sqlite", "retinue_memory.database.foreign"}
    allowed = module.startswith(
        (DATABASES, "memory/retinue_memory/mem0/library.py")
    )  # mem0 keeps SQLite files of its own
    assert allowed or not found & drivers


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports_is_declared(module: str) -> None:
    """Every library that is imported is named in pyproject.toml, rather than there because another needs it."""
    libraries = packages(module) - sys.stdlib_module_names - set(LAYERS)
    assert not {name for name in libraries if not owners().get(name, set[str]()) & declared()}


def test_the_map_names_what_is_there() -> None:
    """Every path in docs/architecture.md exists."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w.-]+/[\w./-]*)`", text))
    assert len(paths) > 50
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_a_module_stays_readable() -> None:
    """No module is much longer than 500 lines."""
    lengths = {module: len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {module: length for module, length in lengths.items() if length > 600} == {}
