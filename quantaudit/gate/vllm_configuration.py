"""How vLLM reads the configuration that llm-compressor saves, and where the two part.

llm-compressor gives a Linear the scheme of its exact name, else of the alphabetically first regular expression, else of
its class. vLLM 0.33 takes the first target that matches, exact or not, in the order in which the groups are saved, for
the Linears that it runs as one under their fused name. Follows `find_matched_target`, `should_ignore_layer` and
`CompressedTensorsMoEMethod.get_moe_method` there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import nn

from quantaudit.model.engine_units import engine_name, fuse
from quantaudit.model.structure import ExpertList

_LINEAR, _MERGED, _EXPERTS = "ColumnParallelLinear", "MergedColumnParallelLinear", "RoutedExperts"
"""Classes of the engine, as far as targets tell them apart: `Linear` is part of two, and stands for the third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What the engine runs under one scheme: a Linear, Linears that it fuses, or all experts of a layer.

    name: full path, the last part that of the fused Linear; members: full paths. first: of experts, the members that
    belong to the first of them, whose scheme counts for all.
    """

    name: str
    kind: Literal["linear", "fused", "experts"]
    members: tuple[str, ...]
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """A unit that the engine would load under another scheme than the one it was saved in; None is unquantized."""

    unit: Unit
    saved: QuantizationScheme | None
    read: QuantizationScheme | None
    target: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedConfig:
    """`quantization_config` as compressed_tensors collects it from the modules of a quantized model.

    targets: target → scheme, in the order of the groups, which is that of the first module of each; ignore: names of
    modules that stay unquantized, of the classes of which any is quantized. Names are the engine's.
    """

    targets: Mapping[str, QuantizationScheme]
    ignore: frozenset[str]


def units(names: Sequence[str], banks: Sequence[ExpertList], model_type: str | None) -> Iterator[Unit]:
    """Every unit of a model. names: full paths of its Linears; banks: the routed experts of each layer."""
    inside: dict[str, list[str]] = {}
    outside: list[str] = []
    paths = {bank.path: bank for bank in banks}
    for name in names:
        bank = next((path for path in _above(name) if path in paths), None)
        (outside if bank is None else inside.setdefault(bank, [])).append(name)
    for parent, projection, leaves in fuse(outside, model_type):
        prefix = f"{parent}." if parent else ""
        members = tuple(f"{prefix}{leaf}" for leaf in leaves)
        yield Unit(name=f"{prefix}{projection}", kind="fused" if len(members) > 1 else "linear", members=members)
    for path, held in inside.items():
        first = paths[path].experts[0]
        of_first = tuple(name for name in held if name == first or name.startswith(f"{first}."))
        yield Unit(name=path, kind="experts", members=tuple(held), first=of_first or tuple(held))


def saved_config(schemes: Mapping[str, QuantizationScheme], model: nn.Module, model_type: str | None) -> SavedConfig:
    """What llm-compressor would save for these schemes, by module path in the model's order."""
    groups: list[QuantizationScheme] = []
    for scheme in schemes.values():
        if not any(scheme is other or scheme == other for other in groups):
            groups.append(scheme)
    targets: dict[str, QuantizationScheme] = {}
    for scheme in groups:
        # The engine passes over a group that is of attention alone: its scales come with the cache's.
        if not (len(scheme.targets) == 1 and scheme.targets[0].endswith("Attention")):
            targets |= dict.fromkeys((_translated(target, model_type) for target in scheme.targets), scheme)
    modules = dict(model.named_modules())
    classes = {type(modules[name]).__name__ for name in schemes if name in modules}
    ignore = frozenset(
        engine_name(name, model_type)
        for name, module in modules.items()
        if name and name not in schemes and type(module).__name__ in classes
    )
    return SavedConfig(targets=targets, ignore=ignore)


def partings(
    candidates: Sequence[Unit],
    schemes: Mapping[str, QuantizationScheme],
    model: nn.Module,
    model_type: str | None,
) -> Iterator[Parting]:
    """Units that the engine would load otherwise than they were saved.

    Those whose members are saved under several schemes are left out: they are wrong already, as every engine sees it.
    """
    config = saved_config(schemes, model, model_type)
    for unit in candidates:
        saved = {_stored(schemes.get(name)): schemes.get(name) for name in unit.members}
        if len(saved) > 1:
            continue
        for target, read in _readings(unit, config, model_type):
            if _stored(read) not in saved:
                yield Parting(unit=unit, saved=next(iter(saved.values())), read=read, target=target)
                break


def _readings(
    unit: Unit, config: SavedConfig, model_type: str | None
) -> Iterator[tuple[str | None, QuantizationScheme | None]]:
    """The target by which the engine finds a unit's scheme, and the scheme; both None for one that is ignored.

    Of experts it asks for every projection of the first, and refuses where they differ.
    """
    members = [engine_name(name, model_type) for name in unit.first or unit.members]
    if all(name in config.ignore for name in members):
        yield None, None
        return
    if unit.kind == "experts":
        targets = [_first(name, config) or _of_class(_EXPERTS, config) for name in members]
    elif unit.kind == "fused":
        parts = [_first(name, config) for name in members]
        whole = _first(engine_name(unit.name, model_type), config)
        targets = [whole or (parts[0] if all(parts) else None) or _of_class(_MERGED, config)]
    else:
        targets = [_first(members[0], config) or _of_class(_LINEAR, config)]
    for target in targets:
        yield target, None if target is None else config.targets[target]


def _first(name: str, config: SavedConfig) -> str | None:
    """The first target that is a name, or matches as a regular expression from the start of it."""
    for target in config.targets:
        if target == name or (target.startswith("re:") and _pattern(target).match(name)):
            return target
    return None


def _of_class(name: str, config: SavedConfig) -> str | None:
    """The first target that is part of a class's name, whatever its case, or a regular expression that matches it."""
    for target in config.targets:
        if target.startswith("re:"):
            if _pattern(target).match(name):
                return target
        elif target.lower() in name.lower():
            return target
    return "Linear" if name == _EXPERTS and "Linear" in config.targets else None


def _translated(target: str, model_type: str | None) -> str:
    """A target that is a module's path under the engine's name; classes and regular expressions are left unmodified."""
    return engine_name(target, model_type) if "." in target and not target.startswith("re:") else target


@cache
def _pattern(target: str) -> re.Pattern[str]:
    return re.compile(target.removeprefix("re:"))


_STORED = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic")


def _stored(scheme: QuantizationScheme | None) -> str | None:
    """What of a scheme decides which tensors are stored and which kernel reads them, as text."""
    if scheme is None:
        return None
    parts = (scheme.weights, scheme.input_activations, scheme.output_activations)
    return json.dumps([_arguments(args) for args in parts])


def _arguments(args: QuantizationArgs | None) -> dict[str, Any] | None:
    return None if args is None else args.model_dump(mode="json", include=set(_STORED))


def _above(name: str) -> Iterator[str]:
    """Paths of the modules that hold a module, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
