"""Inside the card's room, too, imports go one way: schema <- sections, judge <- views <- charts <- vega <- pages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import quantaudit.card

FOLDER = Path(quantaudit.card.__file__).parent
FLOORS = {
    "text": 0,
    "published": 0,
    "schema": 1,
    "seal": 2,
    "sections": 2,
    "judge": 2,
    "views": 3,
    "charts": 4,
    "redact": 3,
    "templates": 3,
    "build": 4,
    "vega": 5,
    "notebook": 6,
    "render": 6,
    "amend": 7,
    "readme": 7,
    "check": 8,
}


def imports() -> Iterator[tuple[str, str]]:
    """(part, part that it imports when it is imported itself) of all modules of the card."""
    for path in FOLDER.rglob("*.py"):
        part = path.relative_to(FOLDER).parts[0].removesuffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if names == ["quantaudit.card"] and isinstance(node, ast.ImportFrom):
                names = [f"quantaudit.card.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("quantaudit.card."):
                    yield part, name.split(".")[2]


def test_every_part_has_a_floor() -> None:
    parts = {path.stem for path in FOLDER.glob("*.py")} | {path.parent.name for path in FOLDER.glob("*/*.py")}
    assert parts - {"__init__"} == set(FLOORS)


def test_no_part_imports_one_above_or_next_to_it() -> None:
    pairs = {(part, other) for part, other in imports() if part != other}
    assert ("views", "schema") in pairs
    assert {pair for pair in pairs if FLOORS[pair[1]] >= FLOORS[pair[0]]} == set()
