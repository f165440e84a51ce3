"""The example of every public function runs as it is written, with a small model for the demo."""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path

import pytest

import quantaudit
from tests.docs.workspace import MODELS

FUNCTIONS = [name for name in quantaudit.__all__ if name[0].islower()]


def example(name: str) -> str:
    """The docstring of a public function, unwrapped where it makes a context."""
    function = getattr(quantaudit, name)
    return inspect.getdoc(getattr(function, name, function)) or ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(
    name: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    text = example(name).replace('"demo"', f'"{MODELS[0]}"')
    test = doctest.DocTestParser().get_doctest(text, {"quantaudit": quantaudit}, name, None, 0)
    assert test.examples, "has no example"
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)
