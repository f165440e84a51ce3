"""Cards to be compared: small, sealed, and equal but for what a test changes."""

from __future__ import annotations

from functools import cache
from typing import Any

from quantaudit.card.schema import Card
from quantaudit.card.seal import seal
from quantaudit.compare.limits import parse_limit
from quantaudit.compare.report import Comparison
from quantaudit.compare.run import compare
from quantaudit.compare.subjects.of_card import card_subject
from quantaudit.compare.subjects.read import labeled
from tests.card_factory import DYNAMIC, STATIC, make_card
from tests.unit.card.test_render import poison

__all__ = ["DYNAMIC", "STATIC", "a_card", "comparison", "hostile_card", "with_conditions", "with_score"]
LAYERS = 4


def a_card(**changed: Any) -> Card:
    return seal(make_card(LAYERS, findings=[], **changed))


@cache
def hostile_card(payload: str) -> Card:
    """A card whose every name and text begins with a payload."""
    return Card.model_validate(poison(make_card(LAYERS).model_dump(), payload))


def comparison(*cards: Card, limits: tuple[str, ...] = ()) -> Comparison:
    subjects = labeled([card_subject(card, f"{index}/card.json") for index, card in enumerate(cards)])
    return compare(subjects, [parse_limit(text) for text in limits])


def with_score(card: Card, scheme: str = STATIC, *, verdict: dict[str, Any] | None = None, **recipe: Any) -> Card:
    """The card with other numbers of one scheme, in its simulation and its verdict."""
    assert card.simulation is not None
    numbers = {name: recipe[name] for name in ("kl", "top1") if name in recipe}
    changed = numbers | (verdict or {})
    recipes = [row.model_copy(update=recipe) if row.name == scheme else row for row in card.simulation.recipes]
    schemes = [row.model_copy(update=changed) if row.scheme == scheme else row for row in card.verdict.schemes]
    return seal(
        card.model_copy(
            update={
                "simulation": card.simulation.model_copy(update={"recipes": recipes}),
                "verdict": card.verdict.model_copy(update={"schemes": schemes}),
            }
        )
    )


def with_conditions(card: Card, part: str, **changed: Any) -> Card:
    """The card with other fields in one of its parts."""
    return seal(card.model_copy(update={part: getattr(card, part).model_copy(update=changed)}))
