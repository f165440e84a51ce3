"""Which measured tensor each Linear reads, from a card alone."""

from __future__ import annotations

from typing import Any

from quantaudit.card.schema import Card, SiteRow
from quantaudit.model.structure import parent_of


def input_sites(card: Card) -> dict[str, SiteRow]:
    """Linear, by full path → the site that it reads; an expert's Linear reads its expert's tokens.

    A card holds single experts by their peaks alone: only `amax` of such a row is the expert's own, and what the card
    does not know of it (min, max, median, peaks) is empty.
    """
    by_name = {site.name: site for site in card.sites}
    peaks = _expert_peaks(card)
    inputs: dict[str, SiteRow] = {}
    for group, members in fused_groups(card).items():
        merged = by_name.get(f"{group}.input")
        single: dict[str, SiteRow] = {}
        if merged is not None and group in peaks:
            bank, _, projection = group.rpartition(".")
            parents = list(dict.fromkeys(parent_of(member) for member in members))
            for parent, amax in zip(parents, peaks[group], strict=True):
                single[parent] = _single(merged, f"{bank}.{parent.rpartition('.')[2]}.{projection}.input", amax)
        for member in members:
            site = single.get(parent_of(member)) or merged
            if site is not None:
                inputs[member] = site
    return inputs


def fused_groups(card: Card) -> dict[str, list[str]]:
    """Fused group → full paths of its members."""
    if card.simulation is not None:
        return {row.group: row.members for row in card.simulation.groups}
    # Without a simulation a card names the first member of each group; the others are its siblings by name.
    from quantaudit.model.groups import FUSED

    linears = {module.name: None for module in card.model.modules if {"Linear", "Conv1D"} & set(module.classes)}
    several = _expert_peaks(card)
    groups: dict[str, list[str]] = {}
    for site in card.sites:
        if site.kind != "linear_input":
            continue
        group = site.name.removesuffix(".input")
        stem, _, leaf = site.module.rpartition(".")
        leaves = next((fused for fused in FUSED.values() if leaf == fused[0]), (leaf,))
        if group in several:
            bank = f"{parent_of(stem)}."
            members = [name for name in linears if name.startswith(bank) and name.rpartition(".")[2] in leaves]
        else:
            siblings = [f"{stem}.{name}" if stem else name for name in leaves]
            members = [name for name in siblings if name in linears]
        groups[group] = members or [site.module]
    return groups


def _expert_peaks(card: Card) -> dict[str, list[float | None]]:
    """Fused group of experts → amax of each expert's input over the tokens routed to it, in the experts' order."""
    layers = card.experts.layers if card.experts else []
    return {f"{layer.name}.{projection}": list(amax) for layer in layers for projection, amax in layer.amax.items()}


def _single(merged: SiteRow, name: str, amax: float | None) -> SiteRow:
    unknown: dict[str, Any] = {"min": None, "max": None, "mean": None, "rms": None, "median": None, "peaks": []}
    return merged.model_copy(update={**unknown, "name": name, "kind": "expert_input", "amax": amax})
