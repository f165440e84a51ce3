"""The recipe that a card can recommend: the scheme that its own policy passes, for llm-compressor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from quantaudit.card.schema import Card, SchemeVerdict
from quantaudit.card.text import visible
from quantaudit.simulate.records import SchemeInfo

_PASSING = ("READY", "READY WITH CARE")
_DEFAULTS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
"""What compressed_tensors fills in, and cards leave out."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a card recommends to run. recipe: YAML for llm-compressor; calibrated: whether it needs samples of text."""

    verdict: SchemeVerdict
    recipe: str
    calibrated: bool


def served(card: Card, accepted: Callable[[str], bool]) -> Served | None:
    """The best passing scheme with its recipe; None where nothing passes, or no recipe says exactly what was simulated.

    READY comes before READY WITH CARE, quantized activations before weights alone, then the lower KL. accepted: whether
    a recipe has nothing else against it, such as that no engine runs it.
    """
    infos = {} if card.simulation is None else {info.name: info for info in card.simulation.schemes}
    passing = [row for row in card.verdict.schemes if row.status in _PASSING and row.kl is not None]
    for verdict in sorted(passing, key=lambda row: _order(row, infos.get(row.scheme))):
        info = infos.get(verdict.scheme)
        modifier = None if info is None else _modifier(card, info)
        text = None if modifier is None else _yaml(card, verdict, modifier)
        if info is not None and text is not None and accepted(text):
            return Served(verdict=verdict, recipe=text, calibrated=_is_calibrated(info))
    return None


def _order(verdict: SchemeVerdict, info: SchemeInfo | None) -> tuple[int, bool, float]:
    return _PASSING.index(verdict.status), info is None or info.input_activations is None, verdict.kl or 0.0


def _is_calibrated(info: SchemeInfo) -> bool:
    return info.input_activations is not None and info.input_activations.get("dynamic") is not True


def _modifier(card: Card, info: SchemeInfo) -> dict[str, Any] | None:
    """Arguments of the QuantizationModifier that quantizes what the simulation did; None where there is none."""
    linears = {module.name for module in card.model.modules if "Linear" in module.classes}
    rows = card.simulation.groups if card.simulation else []
    quantized = {name for row in rows if row.scheme == info.name and row.layer is not None for name in row.members}
    # A range by another observer than that of its arguments has a name of its own, which llm-compressor may not have.
    replaced = _is_calibrated(info) and info.observer != "absolute_maximum"
    if not quantized or not quantized <= linears or replaced:
        return None
    parts = {"weights": info.weights, "input_activations": info.input_activations}
    group = {name: _arguments(values) for name, values in parts.items() if values is not None}
    return {
        "ignore": _patterns(linears - quantized, quantized),
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
    }


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (_DEFAULTS | values).items() if value is not None}


def _patterns(names: Iterable[str], others: set[str]) -> list[str]:
    """Exact names; one pattern for those that differ in numbers alone, where it matches none of the others."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(_NUMBER.sub("#", name), []).append(name)
    found: list[str] = []
    taken = {_NUMBER.sub("#", name) for name in others}
    for kind, members in kinds.items():
        if len(members) == 1 or kind in taken:
            found += members
        else:
            found.append(f"re:{re.escape(kind).replace(re.escape('#'), '[0-9]+')}$")
    return found


def _yaml(card: Card, verdict: SchemeVerdict, modifier: dict[str, Any]) -> str:
    recipe = {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}
    head = f"# {visible(verdict.title, 100)} for {visible(card.model.name, 100)}, by quantaudit {_plain(card)}\n"
    body: str = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=False, width=10_000)
    return head + body


def _plain(card: Card) -> str:
    return visible(card.quantaudit_version, 40)
