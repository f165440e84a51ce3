"""A package that has the name of a verb can be called, gives the verb, and is still a package."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import quantaudit

VERBS = ("measure", "simulate", "gate", "advise", "verify", "conform", "compare", "atlas")


@pytest.mark.parametrize("verb", VERBS)
def test_the_verb_is_the_same_however_it_is_reached(verb: str) -> None:
    package = importlib.import_module(f"quantaudit.{verb}")
    function = getattr(importlib.import_module(f"quantaudit.api.{verb}"), verb)
    assert getattr(quantaudit, verb) is package
    assert getattr(package, verb) is function
    assert inspect.signature(package) == inspect.signature(function)  # type: ignore[arg-type]
    assert package.__path__


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_of_the_package_is_a_call_of_the_verb(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"quantaudit.api.{verb}")
    monkeypatch.setattr(module, verb, lambda *args, **kwargs: (args, kwargs))
    assert importlib.import_module(f"quantaudit.{verb}")(1, key=2) == ((1,), {"key": 2})


def test_an_unknown_name_of_a_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nobody"):
        _ = importlib.import_module("quantaudit.gate").nobody


def test_a_verb_package_loads_nothing_heavy_by_itself() -> None:
    program = "import sys, quantaudit.gate, quantaudit.measure; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
