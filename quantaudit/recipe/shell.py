"""A model's modules rebuilt from a card: names, classes and weight shapes, for matchers. No weights, no model code."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from quantaudit.errors import FormatError
from quantaudit.provenance import ModuleInfo


class Shell(nn.Module):
    """Root of a rebuilt model; it holds modules and cannot run."""


def shell_model(modules: Iterable[ModuleInfo], architecture: str = "Shell") -> nn.Module:
    """Modules of the same names and class names, parameters on the meta device, under a root of the model's class name.

    Linears, embeddings, convolutions and containers are torch's own classes, so that `isinstance` holds as well.
    Raises FormatError where a module's parent is not listed before it.
    """
    root: nn.Module = type(architecture, (Shell,), {})()
    made: dict[str, nn.Module] = {"": root}
    # Parents come before their children, as named_modules lists them.
    for info in modules:
        parent, _, leaf = info.name.rpartition(".")
        if parent not in made:
            raise FormatError(
                f"card lists the module `{info.name}` without the module that holds it",
                hint="make the card anew with `quantaudit report`",
            )
        module = _empty(_shell_class(tuple(info.classes)))
        if info.weight_shape is not None:
            weight = torch.empty(info.weight_shape, device="meta")
            module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        made[parent]._modules[leaf] = module
        made[info.name] = module
    return root


def _empty(cls: type[nn.Module]) -> nn.Module:
    # A constructor would want sizes, and would make weights.
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


@cache
def _shell_class(names: tuple[str, ...]) -> type[nn.Module]:
    """A class with these names in its ancestry, on the first ancestor that torch (or transformers' Conv1D) has."""
    known = _known_classes()
    if names in known:
        return known[names]
    if len(names) < 2:
        return nn.Module
    return type(names[0], (_shell_class(names[1:]),), {})


@cache
def _known_classes() -> dict[tuple[str, ...], type[nn.Module]]:
    own = [value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, nn.Module)]
    return {class_names(cls): cls for cls in [*own, Conv1D]}


def class_names(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of a class and its ancestors, most derived first, down to torch.nn.Module."""
    ancestry = cls.__mro__[: cls.__mro__.index(nn.Module) + 1]
    return tuple(ancestor.__name__ for ancestor in ancestry)
