"""The shipped folders are found in the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantaudit.common import resources
from quantaudit.errors import FormatError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["templates", "recipes"])
def test_the_checkout_wins(name: str) -> None:
    assert resources.resource_dir(name) == ROOT / name


def test_a_strangers_folder_beside_the_package_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "quantaudit"
    (package.parent / "templates").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    with pytest.raises(FormatError, match="templates/ is missing"):
        resources.resource_dir("templates")
    (package / "_resources" / "templates").mkdir(parents=True)
    assert resources.resource_dir("templates") == package / "_resources" / "templates"
