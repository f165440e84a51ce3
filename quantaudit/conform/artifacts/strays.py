"""Tensors of a checkpoint that no module of the model has, and that are not known to be harmless."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from quantaudit.conform.artifacts.tensors import TensorSource
from quantaudit.conform.names import is_converted, saved_names
from quantaudit.model.loading.stored_tensors import Stored, why_harmless
from quantaudit.provenance import ModuleInfo

_NUMBERED = re.compile(r"\.\d+\.(?!.*\.\d+\.)")
"""The last number in a path: of an expert, not of its layer."""


def stray_tensors(
    tensors: TensorSource,
    model: nn.Module | None,
    modules: Mapping[str, ModuleInfo],
    saved: Mapping[str, str],
    called_for: Collection[str],
) -> list[str]:
    """Names, sorted. model: of the configuration's class, None where there is none; called_for: by the contract.

    Storage of quantized modules that the card knows is not among them; that is held against the contract.
    """
    names = [name for name in tensors if name not in called_for]
    stems = set(saved.values())
    if not names or not stems & {name.rpartition(".")[0] for name in tensors}:
        return []
    if model is not None:
        names = _unknown_to(model, names, modules, tensors)
    stored = {name: Stored("", tensors.shape(name)) for name in names}
    return [
        name
        for name in names
        if (name.rpartition(".")[0] not in stems or (model is not None and name.rpartition(".")[2] == "bias"))
        and why_harmless(name, names, stored) is None
    ]


def merged_experts(
    tensors: TensorSource, model: nn.Module | None, modules: Mapping[str, ModuleInfo], saved: Mapping[str, str]
) -> frozenset[str]:
    """Tensors directly of a list of experts whose files hold the experts one by one: they would be loaded instead.

    A parameter that the list has for itself, and that is not made of the experts' weights, is none.
    """
    if model is None:
        return frozenset()
    stems = {name.rpartition(".")[0] for name in tensors}
    own = _own_parameters(model)
    lists: set[str] = set()
    for path in _stored_otherwise(model, modules):
        numbered = re.compile(rf"{re.escape(path)}\.\d+\.")
        children = [name for name in modules if numbered.match(name) and saved[name] in stems]
        # `saved` has two names where only the experts themselves are renamed.
        lists |= {path, saved.get(path, path)} if children else set()
        lists |= {_NUMBERED.split(saved[name])[0] for name in children}
    own |= set(saved_names(model, sorted(own), set(tensors), probe="").values())
    return frozenset(name for name in tensors if name.rpartition(".")[0] in lists and name not in own)


def _own_parameters(model: nn.Module) -> set[str]:
    """What is stored as it is in memory, and is not a matrix for each expert."""
    converted = is_converted(model)
    return {path for path, value in model.state_dict().items() if value.ndim < 3 and not converted(path)}


def _unknown_to(
    model: nn.Module, names: Iterable[str], modules: Mapping[str, ModuleInfo], tensors: TensorSource
) -> list[str]:
    """Names that are neither a parameter or buffer of the model, nor below a module that is stored in another way."""
    state = saved_names(model, list(model.state_dict()), set(tensors), probe="")
    known = {*state, *state.values()}
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    split = _stored_otherwise(model, modules)
    held = saved_names(model, split, {name.rpartition(".")[0] for name in tensors})
    prefixes = tuple(f"{path}." for path in {*held, *held.values()})
    return [
        name
        for name in names
        if name not in known and not name.startswith(prefixes) and not any(pattern.search(name) for pattern in ignored)
    ]


def _stored_otherwise(model: nn.Module, modules: Mapping[str, ModuleInfo]) -> list[str]:
    """Modules, such as lists of experts, whose parameters are converted on saving, or are Linears on the card."""
    own = {name for name, _ in model.named_modules()}
    converted = is_converted(model)
    paths = {path.rpartition(".")[0] for path, _ in model.named_parameters() if converted(path)}
    for name in modules:
        if name not in own:
            parent = name
            while parent and parent not in own:
                parent = parent.rpartition(".")[0]
            paths.add(parent)
    return sorted(path for path in paths if path)
