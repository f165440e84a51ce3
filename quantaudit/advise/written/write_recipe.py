"""From schemes by fused group to a recipe that llm-compressor reads, with its reasons as comments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from compressed_tensors.quantization import QuantizationScheme
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quantaudit.common.resources import resource_dir
from quantaudit.model.sites import Group
from quantaudit.recipe.digest import identity
from quantaudit.recipe.patterns import exact_patterns, kind_and_numbers
from quantaudit.recipe.resolved import SmoothQuant

TEMPLATE = "recipe.yaml.j2"
Mapped = tuple[str, tuple[str, ...]]
"""A norm, and the Linears that read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Modules that are treated alike, as exact names or patterns, and why."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigGroup:
    """One scheme of a recipe. arguments: what llm-compressor calls weights and input_activations, as plain data."""

    name: str
    arguments: dict[str, dict[str, Any]]
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """One mapping of a SmoothQuantModifier: Linears, the norm before them, and why they are smoothed.

    Exact names, or patterns that match those of several layers.
    """

    balance_layers: tuple[str, ...]
    norm: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothGroup:
    """One SmoothQuantModifier, in a group of modifiers of its own: a recipe has no two of one name in one."""

    name: str
    strength: float
    mappings: tuple[Smoothed, ...]


def smooth_groups(
    smooth: Sequence[SmoothQuant],
    groups: Iterable[Group],
    reason: Callable[[Sequence[str]], str],
    among: Collection[str] = (),
) -> list[SmoothGroup]:
    """One entry for each step. reason: why the groups of these names are smoothed. among: all modules of the model, so
    that layers are named together; exact names without.
    """
    names_of = {frozenset(group.members): group.name for group in groups}

    def smoothed(several: Sequence[Mapped]) -> Iterator[Smoothed]:
        together = _by_patterns(several, among) if among else None
        rows = [(several, together)] if together is not None else [([row], row) for row in several]
        for some, (norm, balance_layers) in rows:
            named = [names_of[members] for _, layers in some if (members := frozenset(layers)) in names_of]
            yield Smoothed(balance_layers=balance_layers, norm=norm, reason=reason(named))

    return [
        SmoothGroup(
            name=f"smooth_{index}_modifiers",
            strength=spec.strength,
            mappings=tuple(row for several in _by_kind(spec.mappings) for row in smoothed(several)),
        )
        for index, spec in enumerate(smooth)
    ]


def _by_kind(mappings: Iterable[Mapped]) -> list[list[Mapped]]:
    """Mappings of one kind of norm and Linears, which stand next to each other."""

    def kind(mapping: Mapped) -> list[str]:
        return [kind_and_numbers(name)[0] for name in (mapping[0], *mapping[1])]

    return [list(several) for _, several in itertools.groupby(mappings, key=kind)]


def _by_patterns(several: Sequence[Mapped], among: Collection[str]) -> Mapped | None:
    """One mapping for these of one kind; None where no single pattern fits each of its names."""
    columns = zip(*((norm, *balance_layers) for norm, balance_layers in several), strict=True)
    patterns = [exact_patterns(list(names), among) for names in columns]
    if any(len(found) != 1 for found in patterns):
        return None
    norm, *balance_layers = (found[0].target for found in patterns)
    return norm, tuple(balance_layers)


def config_groups(
    groups: Iterable[tuple[Group, QuantizationScheme | None]], targets: Callable[[Sequence[Group]], Iterable[Target]]
) -> list[ConfigGroup]:
    """One entry for each distinct scheme, in the order of the model. targets: names the groups under one scheme."""
    by_scheme: dict[str, tuple[QuantizationScheme, list[Group]]] = {}
    for group, scheme in groups:
        if scheme is not None:
            by_scheme.setdefault(identity(scheme), (scheme, []))[1].append(group)
    return [
        ConfigGroup(name=f"group_{index}", arguments=arguments(scheme), targets=tuple(targets(several)))
        for index, (scheme, several) in enumerate(by_scheme.values())
    ]


def arguments(scheme: QuantizationScheme) -> dict[str, dict[str, Any]]:
    """A scheme's arguments as plain data, without what is not given."""
    data = scheme.model_dump(mode="json", include={"weights", "input_activations"}, exclude_none=True)
    return {part: _plain(values) for part, values in data.items()}


def write_recipe(
    groups: Sequence[ConfigGroup],
    *,
    header: Sequence[str],
    left: Sequence[Target],
    smooth: Sequence[SmoothGroup] = (),
) -> str:
    """The recipe as YAML. header: comment lines; left: groups that are left unquantized, named in a comment.

    smooth: what comes before quantization.
    """
    environment = Environment(
        loader=FileSystemLoader(resource_dir("templates")),
        undefined=StrictUndefined,
        autoescape=False,  # YAML; every value from outside goes through tojson or a comment filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"comment": comment, "flow": _flow, "quoted": _quoted}
    return environment.get_template(TEMPLATE).render(groups=groups, header=header, left=left, smooth=smooth)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, {}, [])}


def _flow(values: Mapping[str, Any]) -> str:
    """A mapping on one line."""
    text: str = yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=math.inf)
    return text.strip()


def _quoted(text: str) -> str:
    """In single quotes, between which a backslash is one; in double quotes where there are characters to escape."""
    quoted: str = yaml.safe_dump(text, default_style="'", width=math.inf)
    return quoted.strip()


def comment(text: str) -> str:
    """On one line: module names and reasons come from a checkpoint."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
