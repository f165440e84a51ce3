"""What a checkpoint's quantization_config says of each module, as compressed-tensors and the engines read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils import is_match, match_targets
from pydantic import ValidationError
from torch import nn

from quantaudit.common.reading.patterns import slow_pattern
from quantaudit.errors import ModelError
from quantaudit.provenance import ModuleInfo, explain
from quantaudit.recipe.digest import identity
from quantaudit.recipe.matching import attends
from quantaudit.recipe.skeleton import skeleton_model

METHOD = "compressed-tensors"
MOST_BITS = 64
"""Of one code."""
_ORDERED = ("group", "dynamic")
"""Values of `actorder` under which a checkpoint holds `weight_g_idx`; compressed-tensors no longer reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The scheme of one module. group: its key in `config_groups`; target: the pattern that decided."""

    scheme: QuantizationScheme
    group: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rivalry:
    """Two groups that claim modules at equal rank with different schemes. target, other: their patterns."""

    group: str
    target: str
    rival: str
    other: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A parsed quantization_config on a model's modules.

    assigned: Linears and Embeddings that it quantizes. attention: modules whose queries, keys and values it
    quantizes. ordered: groups whose columns are assigned to groups one by one (`weight_g_idx`).
    """

    parsed: QuantizationConfig
    assigned: dict[str, Assignment]
    attention: dict[str, Assignment]
    ordered: frozenset[str]
    rivalries: list[Rivalry] = field(default_factory=list)


def parse(settings: Mapping[str, Any], where: str) -> tuple[QuantizationConfig, frozenset[str]]:
    """The configuration as compressed-tensors reads it, and its groups with `actorder: group`. Raises ModelError."""
    data, ordered = _without_order(settings)
    try:
        parsed = QuantizationConfig.model_validate(data)
        _check_bits(parsed)
        return parsed, ordered
    except (ValueError, NotImplementedError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(
            f"quantization_config is not one of compressed-tensors: {reason}",
            where=where,
            hint="give a checkpoint as llm-compressor saves it",
        ) from error


def _check_bits(parsed: QuantizationConfig) -> None:
    """Raises ValueError for a width that no code has."""
    for group, scheme in parsed.config_groups.items():
        assert isinstance(scheme, QuantizationScheme)
        for part in (scheme.weights, scheme.input_activations, scheme.output_activations):
            if part is not None and not 1 <= part.num_bits <= MOST_BITS:
                raise ValueError(f"{group}: num_bits is {str(part.num_bits)[:20]}, and at most {MOST_BITS} are known")


def configure(
    settings: Mapping[str, Any], modules: Sequence[ModuleInfo], saved: Mapping[str, str], where: str
) -> Configuration:
    """Resolve a configuration on the card's modules. saved: module → its name in the files, which counts as well.

    llm-compressor saves targets as its recipe had them, and ignores under the names of the files. Raises ModelError,
    also where a pattern is no regular expression.
    """
    parsed, ordered = parse(settings, where)
    schemes: dict[str, tuple[str, QuantizationScheme]] = {}
    for group, scheme in parsed.config_groups.items():
        assert isinstance(scheme, QuantizationScheme)  # names of presets were resolved while it was parsed
        for target in scheme.targets:
            schemes[target] = (group, scheme)
    known = {*saved.values(), *(info.name for info in modules)}
    _check_patterns([*schemes, *(parsed.ignore or [])], sorted(known), where)
    model = skeleton_model(modules)
    configuration = Configuration(parsed=parsed, assigned={}, attention={}, ordered=ordered)
    rivals: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        names = {name, saved.get(name, name)} if name else set()
        if not name or any(is_match(each, module, parsed.ignore or []) for each in names):
            continue
        hits = [match_targets(each, module, schemes) for each in sorted(names)]
        ranked = max(hits, key=len)
        if not ranked:
            continue
        group, scheme = schemes[ranked[0]]
        assignment = Assignment(scheme=scheme, group=group, target=ranked[0])
        if isinstance(module, nn.Linear | nn.Embedding):
            configuration.assigned[name] = assignment
            for other in ranked[1:]:
                if _same_rank(ranked[0], other) and identity(schemes[other][1]) != identity(scheme):
                    rivals.setdefault((ranked[0], other), []).append(name)
        elif scheme.input_activations is not None and attends(model, name, module, ranked):
            configuration.attention[name] = assignment
    for (first, second), names_ in rivals.items():
        groups = schemes[first][0], schemes[second][0]
        configuration.rivalries.append(_rivalry(groups, (first, second), names_))
    configuration.rivalries.extend(_shared_targets(parsed, configuration.assigned))
    return configuration


def _shared_targets(parsed: QuantizationConfig, assigned: Mapping[str, Assignment]) -> list[Rivalry]:
    """Targets that two groups name: the later group wins, and the earlier one's scheme is lost."""
    rows = []
    groups = list(parsed.config_groups.items())
    for i, (later, winner) in enumerate(groups):
        for earlier, loser in groups[:i]:
            assert isinstance(winner, QuantizationScheme)
            assert isinstance(loser, QuantizationScheme)
            shared = [target for target in winner.targets if target in loser.targets]
            if shared and identity(winner) != identity(loser):
                names = [name for name, row in assigned.items() if row.target in shared]
                rows += [_rivalry((later, earlier), (target, target), names) for target in shared]
    return rows


def _rivalry(groups: tuple[str, str], targets: tuple[str, str], modules: Sequence[str]) -> Rivalry:
    return Rivalry(group=groups[0], target=targets[0], rival=groups[1], other=targets[1], modules=tuple(modules))


def _same_rank(first: str, second: str) -> bool:
    return first.startswith("re:") and second.startswith("re:")


def _check_patterns(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    for text in patterns:
        try:
            re.compile(text.removeprefix("re:") if text.startswith("re:") else "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(
                f"`{text}` in quantization_config is no regular expression: {error}",
                where=where,
                hint="after `re:` comes a Python regular expression, such as `re:.*lm_head`",
            ) from error
    if slow := slow_pattern(patterns, names):
        raise ModelError(
            f"quantization_config: {slow}",
            where=where,
            hint="write it without a repetition inside a repetition, such as `re:.*lm_head`",
        )


def _without_order(settings: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The settings with a removed `actorder` taken out, and the groups that had it."""
    groups, ordered = settings.get("config_groups"), set()
    if not isinstance(groups, Mapping):
        return dict(settings), frozenset()
    changed = {}
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        order = weights.get("actorder") if isinstance(weights, Mapping) else None
        if isinstance(weights, Mapping) and (order is True or str(order).lower() in _ORDERED):
            ordered.add(str(name))
            changed[name] = {**group, "weights": {**weights, "actorder": None}}
        else:
            changed[name] = group
    return {**settings, "config_groups": changed}, frozenset(ordered)
