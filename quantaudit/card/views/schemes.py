"""The simulated schemes that a card leads with."""

from __future__ import annotations

import math

from quantaudit.card.schema import Card
from quantaudit.card.text import counted, number, percent
from quantaudit.simulate.records import RecipeRow, SchemeInfo

_MOST_NATS = 700.0
"""Beyond it, e to the power of a KL is no number of a computer's."""

_LEAST_CHANGE = 1e-4
"""A perplexity that is multiplied by less than one and this is the same for readers."""


def first_static(card: Card) -> SchemeInfo | None:
    """The first scheme whose activation scales are fixed beforehand; None where nothing of that kind was simulated."""
    return next((scheme for scheme in _activation_schemes(card) if not _is_dynamic(scheme)), None)


def fixed_scales(card: Card) -> list[str]:
    """Names of all schemes whose activation scales are fixed beforehand."""
    return [scheme.name for scheme in _activation_schemes(card) if not _is_dynamic(scheme)]


def first_dynamic(card: Card) -> SchemeInfo | None:
    """The first scheme that computes activation scales as it runs."""
    return next((scheme for scheme in _activation_schemes(card) if _is_dynamic(scheme)), None)


def by_token(row: RecipeRow) -> str | None:
    """What the mean KL of a recipe is made of, and what it means, in sentences; None where it is not known."""
    spread = row.by_token
    if spread is None or row.kl is None:
        return None
    text = (
        f"On text of the model's own, a KL of {number(row.kl)} {on_perplexity(row.kl)}. Half of the "
        f"tokens have at most {number(spread.median)} nats, nine of ten {number(spread.p90)}, 99 of 100 "
        f"{number(spread.p99)}, the worst {number(spread.max)}."
    )
    if spread.flipped is not None:
        text += (
            f" Of {counted(spread.confident, 'token')} to whose most likely successor the original gives one half or "
            f"more, {percent(spread.flipped)} get another one."
        )
    return text


def on_perplexity(kl: float) -> str:
    """What a KL does to the perplexity of text that a model writes, with at least one digit of the change."""
    factor = math.exp(min(kl, _MOST_NATS))
    if factor - 1 < _LEAST_CHANGE:
        return "leaves the perplexity as it is"
    digits = 2 if factor >= 1.01 else 3 if factor >= 1.001 else 4
    return f"multiplies the perplexity by {f'{factor:.3g}' if factor >= 10 else f'{factor:.{digits}f}'}"


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
