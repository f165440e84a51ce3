"""The simulated schemes that a card leads with."""

from __future__ import annotations

from quantaudit.card.schema import Card
from quantaudit.simulate.records import SchemeInfo


def first_static(card: Card) -> SchemeInfo | None:
    """The first scheme whose activation scales are fixed beforehand; None where nothing of that kind was simulated."""
    return next((scheme for scheme in _activation_schemes(card) if not _is_dynamic(scheme)), None)


def first_dynamic(card: Card) -> SchemeInfo | None:
    """The first scheme that computes activation scales as it runs."""
    return next((scheme for scheme in _activation_schemes(card) if _is_dynamic(scheme)), None)


def titles(card: Card) -> dict[str, str]:
    """Scheme name → title; every simulated name has one."""
    if card.simulation is None:
        return {}
    names = {row.scheme: row.scheme for row in card.simulation.groups}
    return names | {scheme.name: scheme.title for scheme in card.simulation.schemes}


def _activation_schemes(card: Card) -> list[SchemeInfo]:
    schemes = card.simulation.schemes if card.simulation else []
    return [scheme for scheme in schemes if scheme.input_activations is not None]


def _is_dynamic(scheme: SchemeInfo) -> bool:
    # compressed_tensors knows a third value, "local": group scales are dynamic below a static global one.
    return bool((scheme.input_activations or {}).get("dynamic"))
