"""The largest input of each routed expert, one cell for each layer and expert."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.schema import Card
from quantaudit.card.text import number, visible
from quantaudit.card.views.card_view import CardView

_HEIGHT, _LOWEST, _TALLEST = 360, 5, 26
"""Pixels: what the layers share, and what a layer gets at least and at most."""
_AXIS: dict[str, Any] = {
    "labelAngle": 0,
    "labelOverlap": "greedy",
    "labelSeparation": 5,
    "ticks": False,
    "grid": False,
}


def data(card: Card) -> list[dict[str, Any]]:
    """One row for each layer and expert; amax is null where it saw nothing."""
    cells = []
    for layer in card.experts.layers if card.experts else []:
        for expert, tokens in enumerate(layer.tokens):
            peaks = [(row[expert] or 0.0, projection) for projection, row in layer.amax.items()]
            amax, projection = max(peaks)
            cells.append(
                {
                    "layer": layer.layer,
                    "expert": expert,
                    "tokens": f"{tokens:,}",
                    "amax": amax or None,
                    "peak": number(amax or None),
                    "where": visible(projection, limit=40),
                    "undersampled": card.experts is not None and tokens < card.experts.enough,
                }
            )
    return cells


def chart(view: CardView) -> AnyChart | None:
    """Heat map of the largest input of each expert over its routed tokens; None for a model without experts.

    Experts that saw too few tokens are gray, whatever their peak.
    """
    rows = data(view.card)
    measured = [row for row in rows if row["amax"] and not row["undersampled"]]
    if not measured:
        return None
    layers = {row["layer"] for row in rows}
    x = alt.X("expert:O", title="expert", axis=alt.Axis(**_AXIS))
    y = alt.Y("layer:O", title="layer", axis=alt.Axis(**_AXIS))
    tips = theme.tooltip(layer="layer", expert="expert", tokens="tokens routed", peak="peak |x|", where="input of")
    cells = (
        alt.Chart(theme.rows_of(measured))
        .mark_rect()
        .encode(x=x, y=y, color=_shade([row["amax"] for row in measured]), tooltip=tips)
    )
    undersampled = (
        alt.Chart(theme.rows_of([row for row in rows if row["undersampled"]]))
        .mark_rect(color=theme.FAINT)
        .encode(x=x, y=y, tooltip=tips)
    )
    height = len(layers) * min(max(_HEIGHT // len(layers), _LOWEST), _TALLEST)
    return alt.layer(cells, undersampled).properties(width="container", height=height, description=description(view))


def description(view: CardView) -> str:
    """The chart in words: the largest input of all, and how many experts saw too few tokens."""
    lines = [line for line in view.experts if line.amax is not None]
    worst = max(lines, key=lambda line: line.amax or 0.0)
    undersampled = sum(line.undersampled for line in lines)
    return (
        f"Largest input of each expert by layer. Largest of all: {number(worst.amax)} at expert {worst.expert} of "
        f"layer {worst.layer}, input of {visible(worst.projection or '')}. "
        f"Experts with too few tokens: {undersampled:,}."
    )


def _shade(values: list[float]) -> alt.Color:
    low, high = min(values), max(max(values), min(values) * 1.001)
    legend = alt.Legend(
        values=[low, math.sqrt(low * high), high],
        labelExpr="format(datum.value, ',.2~r')",
        orient="bottom",
        type="gradient",
    )
    scale = alt.Scale(type="log", scheme="viridis", domain=[low, high], nice=False)
    return alt.Color("amax:Q", title="peak |x|", scale=scale, legend=legend)
