"""The plan of the code: each room imports only rooms below it, and no two modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import quantaudit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "quantaudit"
FLOORS: list[set[str]] = [
    {"integrations"},
    {"cli"},
    {"api"},
    {"pipeline"},
    {"verify", "gate", "atlas"},
    {"advise", "conform", "compare"},
    {"card"},
    {"correlate", "policy"},
    {"simulate"},
    {"quant", "settings"},
    {"measure"},
    {"model", "recipe"},
    {"corpus"},
    {"provenance"},
    {"common"},
    {"errors", "quantities", "stats", "_version"},
]
"""Rooms, highest first; those on one floor do not know each other."""
FLOOR = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCES = {"__init__", "__main__"}
MOST_PARAMETERS = 8
LARGEST = 12
"""Files side by side in one folder; `cli` and `api` have one for each verb."""
VERBS = {PACKAGE / "cli", PACKAGE / "api"}


def module_name(path: Path) -> str:
    """`a.b` of quantaudit/a/b.py, `a` of quantaudit/a/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """The project's modules that a file imports anywhere in it, functions and type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quantaudit":
            base = (node.module or "").removeprefix("quantaudit").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else base
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("quantaudit."))


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ENTRANCES])
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    own = room(module)
    upward = [other for other in imports(MODULES[module]) if room(other) != own and FLOOR[room(other)] >= FLOOR[own]]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {m for m in imports(path) if m in MODULES and m != module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()} - VERBS))
def test_a_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= LARGEST


def functions() -> Iterator[tuple[str, int]]:
    """Every function of the package with the number of its parameters, those of typer commands apart."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not (room(module) == "cli" and node.name == "run"):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                yield f"{module}.{node.name}", len([item for item in given if item.arg not in {"self", "cls"}])


def test_a_function_takes_no_more_than_can_be_kept_in_mind() -> None:
    assert [(name, count) for name, count in functions() if count > MOST_PARAMETERS] == []


def test_no_module_is_there_for_tests_alone() -> None:
    used = {other for path in MODULES.values() for other in imports(path)}
    used |= {home.removeprefix("quantaudit.") for home in quantaudit._HOMES.values()}
    tools = (ROOT / folder for folder in ("tools", "benchmarks", "optimum"))
    used |= {other for folder in tools for path in folder.rglob("*.py") for other in imports(path)}
    alone = {m for m in MODULES if room(m) not in ENTRANCES and MODULES[m].name != "__init__.py"} - used
    alone -= {"integrations.llmcompressor", "card.notebook"}  # imported by users, and by name
    assert alone == set()
