"""A model's modules rebuilt from a card: names, classes and weight shapes, for matchers. No weights, no model code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from types import SimpleNamespace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from quantaudit.errors import FormatError
from quantaudit.provenance import ModuleInfo


class Skeleton(nn.Module):
    """Root of a rebuilt model; it holds modules and cannot run."""


def skeleton_model(modules: Iterable[ModuleInfo], architecture: str = "Skeleton") -> nn.Module:
    """Modules of the same names and class names, parameters on the meta device, under a root of the model's class name.

    Linears, embeddings, convolutions and containers are torch's own classes, so that `isinstance` holds as well.
    Raises FormatError where a module's parent is not listed before it.
    """
    root: nn.Module = type(architecture, (Skeleton,), {})()
    built: dict[str, nn.Module] = {"": root}
    # Parents come before their children, as named_modules lists them.
    for info in modules:
        parent, _, leaf = info.name.rpartition(".")
        if parent not in built:
            raise FormatError(
                f"card lists the module `{info.name}` without the module that holds it",
                hint="make the card again with `quantaudit report`",
            )
        module = _empty(_skeleton_class(tuple(info.classes)))
        if info.weight_shape is not None:
            weight = torch.empty(info.weight_shape, device="meta")
            module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
            if isinstance(module, nn.Linear) and len(info.weight_shape) == 2:
                module.out_features, module.in_features = info.weight_shape
        built[parent]._modules[leaf] = module
        built[info.name] = module
    kinds = layer_kinds(built)
    if LINEAR_ATTENTION in kinds:
        # llm-compressor's mappings for hybrid models ask the configuration which layers are of which kind.
        root.config = SimpleNamespace(layer_types=kinds, num_hidden_layers=len(kinds))  # type: ignore[assignment]
    return root


LINEAR_ATTENTION = "linear_attention"
_MIXER = re.compile(r"(?P<list>.*\.layers)\.(?P<index>[0-9]{1,18})\.(?P<mixer>self_attn|linear_attn)")


def layer_kinds(names: Iterable[str]) -> list[str]:
    """What mixes the tokens of each decoder layer, in the words of a configuration's `layer_types`."""
    by_list: dict[str, dict[int, str]] = {}
    for match in filter(None, map(_MIXER.fullmatch, names)):
        kind = LINEAR_ATTENTION if match["mixer"] == "linear_attn" else "full_attention"
        by_list.setdefault(match["list"], {})[int(match["index"])] = kind
    layers = max(by_list.values(), key=len, default={})
    return [layers[index] for index in sorted(layers)]


def _empty(cls: type[nn.Module]) -> nn.Module:
    # A constructor would want sizes, and would make weights.
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


@cache
def _skeleton_class(names: tuple[str, ...]) -> type[nn.Module]:
    """A class with these names in its ancestry, on the first ancestor that torch (or transformers' Conv1D) has."""
    classes = _torch_classes()
    if names in classes:
        return classes[names]
    if len(names) < 2:
        return nn.Module
    return type(names[0], (_skeleton_class(names[1:]),), {})


@cache
def _torch_classes() -> dict[tuple[str, ...], type[nn.Module]]:
    classes = [value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, nn.Module)]
    return {class_names(cls): cls for cls in [*classes, Conv1D]}


def class_names(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of a class and its ancestors, most derived first, down to torch.nn.Module."""
    ancestry = cls.__mro__[: cls.__mro__.index(nn.Module) + 1]
    return tuple(ancestor.__name__ for ancestor in ancestry)
