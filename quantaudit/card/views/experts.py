"""The routed experts of each layer, in one line."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from quantaudit.card.schema import Card, ExpertLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLine:
    """One layer's experts: tokens routed to them, how many saw too few, and the input with the largest element."""

    name: str
    layer: int
    experts: int
    fewest: int
    median: float
    most: int
    undersampled: int
    amax: float | None
    projection: str | None
    expert: int | None


def expert_lines(card: Card) -> list[ExpertLine]:
    """Every layer's experts, in the order of the layers."""
    return [_expert_line(layer, card.experts.enough) for layer in card.experts.layers] if card.experts else []


def _expert_line(layer: ExpertLayer, enough: int) -> ExpertLine:
    values = ((amax, name, i) for name, row in layer.amax.items() for i, amax in enumerate(row) if amax is not None)
    amax, projection, expert = max(values, default=(None, None, None))
    return ExpertLine(
        name=layer.name,
        layer=layer.layer,
        experts=len(layer.tokens),
        fewest=min(layer.tokens),
        median=median(layer.tokens),
        most=max(layer.tokens),
        undersampled=sum(tokens < enough for tokens in layer.tokens),
        amax=amax,
        projection=projection,
        expert=expert,
    )
