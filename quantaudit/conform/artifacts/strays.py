"""Tensors of a checkpoint that no module of the model has, and that are not known to be harmless."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from quantaudit.conform.artifacts.tensors import TensorSource
from quantaudit.conform.names import is_converted, saved_names
from quantaudit.model.loading.stored_tensors import Stored, why_harmless
from quantaudit.provenance import ModuleInfo


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
