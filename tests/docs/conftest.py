"""One workspace for all commands and examples of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.workspace import build


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("docs"))
