"""Packages that have the names of the product's verbs, and can be called, such as `quantaudit.gate(…)`.

A package of that name hides the function of that name as soon as it is imported. So the package itself calls the
verb, and gives it: `from quantaudit.gate import gate`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class VerbPackage(ModuleType):
    """A package `quantaudit.VERB` that calls `quantaudit.api.VERB.VERB`, loaded on first use."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == self.__name__.rpartition(".")[2]:
            return _function(self.__name__)
        if name == "__signature__":
            return inspect.signature(_function(self.__name__))
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _function(package: str) -> Callable[..., Any]:
    verb = package.rpartition(".")[2]
    function: Callable[..., Any] = getattr(importlib.import_module(f"quantaudit.api.{verb}"), verb)
    return function


def make_callable(package: str) -> None:
    """Let a package, by its `__name__`, be called. For its `__init__`."""
    sys.modules[package].__class__ = VerbPackage
