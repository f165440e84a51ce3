"""Which groups hurt most: the one order in which cards, gates, advice and tables name them. Imports no torch.

By price, which is in nats and adds up, wherever a scheme has prices; by block damage, a relative change that weighs the
same at every depth, where it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeVar

Measure = Literal["price", "damage"]


class Effect(Protocol):
    """What quantizing one fused group alone does; None where that is not known."""

    @property
    def price(self) -> float | None:
        """Estimated KL, nats per token."""

    @property
    def damage(self) -> float | None:
        """Relative change of the decoder block's output."""


AnyEffect = TypeVar("AnyEffect", bound=Effect)


def measure_of(effects: Iterable[Effect]) -> Measure:
    """What effects under one scheme are ranked by."""
    return "price" if any(effect.price is not None for effect in effects) else "damage"


def cost_of(effect: Effect, measure: Measure) -> float | None:
    """What a group costs by one measure; None where that is not known."""
    return effect.price if measure == "price" else effect.damage


def weight(effect: Effect, measure: Measure) -> float:
    """How much a group hurts; 0 where that is not known."""
    return cost_of(effect, measure) or 0.0


def worst_first(effects: Iterable[AnyEffect]) -> list[AnyEffect]:
    """Effects under one scheme, those that hurt most first, ties in the order given; without those that do not hurt."""
    rows = list(effects)
    measure = measure_of(rows)
    return sorted((row for row in rows if weight(row, measure) > 0), key=lambda row: -weight(row, measure))


def shares(effects: Sequence[Effect]) -> list[float]:
    """What each group has of the sum over all of these; 0 where nothing hurts."""
    measure = measure_of(effects)
    weights = [weight(effect, measure) for effect in effects]
    total = sum(weights)
    return [part / total if total > 0 else 0.0 for part in weights]


def worst_groups(effects: Sequence[AnyEffect], share: float) -> list[AnyEffect]:
    """The fewest that together have `share` of the sum, worst first."""
    ranked = worst_first(effects)
    chosen, covered = [], 0.0
    for effect, part in zip(ranked, shares(ranked), strict=True):
        if covered >= share:
            break
        chosen.append(effect)
        covered += part
    return chosen
