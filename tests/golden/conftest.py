"""Files that a reviewer can open: what the product writes for fixed input, compared byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
Golden = Callable[[str, str], None]


@pytest.fixture
def golden(file_regression: Any) -> Golden:
    """Compares a text with the golden file of a name; where they differ, what was written stays next to it."""

    def check(name: str, text: str) -> None:
        path = FOLDER / name
        obtained = path.with_name(f"{path.stem}.obtained{path.suffix}")
        try:
            file_regression.check(text, encoding="utf-8", newline="", fullpath=path, obtained_filename=obtained)
        except AssertionError as error:
            error.add_note(f"{name} is no longer what is written. Compare the two files; accept with `make golden`.")
            raise

    return check
