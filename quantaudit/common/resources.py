"""Finds the top-level `templates/` and `recipes/` folders, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from quantaudit.errors import FormatError

_PACKAGE = Path(__file__).resolve().parents[1]


def resource_dir(name: Literal["templates", "recipes"]) -> Path:
    """Folder of shipped files. The checkout wins: an editable install may hold a stale copy next to the package."""
    for candidate in (_PACKAGE.parent / name, _PACKAGE / "_resources" / name):
        if candidate.is_dir() and (candidate.parent == _PACKAGE / "_resources" or _is_checkout(candidate.parent)):
            return candidate
    raise FormatError(
        f"the shipped folder {name}/ is missing",
        where=str(_PACKAGE),
        hint="reinstall quantaudit",
    )


def _is_checkout(folder: Path) -> bool:
    # In site-packages a stranger's `templates/` may lie next to the package; only our own root has our pyproject.
    return (folder / "pyproject.toml").is_file() and (folder / "quantaudit" / "common" / "resources.py").is_file()
