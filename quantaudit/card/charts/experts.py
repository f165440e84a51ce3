"""Card → the chart of a mixture's experts, one cell for each layer and expert."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from quantaudit.card.charts import theme as looks
from quantaudit.card.schema import Card
from quantaudit.card.text import number, visible
from quantaudit.card.views import groups as rows

_HEIGHT, _LOWEST, _TALLEST = 360, 5, 26
"""Pixels: what the layers share, and what a layer gets at least and at most."""


def peaks_by_expert(card: Card) -> alt.LayerChart | alt.FacetChart | None:
    """Heat map of the largest input of each expert over its routed tokens; None for a model without experts.

    Experts that saw too few tokens are grey, whatever was seen.
    """
    data = expert_cells(card)
    drawn = [row["amax"] for row in data if row["amax"] and not row["starved"]]
    if not drawn:
        return None
    low, high = min(drawn), max(max(drawn), min(drawn) * 1.001)
    layers = sorted({row["layer"] for row in data})
    axis: dict[str, Any] = {
        "labelAngle": 0,
        "labelOverlap": "greedy",
        "labelSeparation": 5,
        "ticks": False,
        "grid": False,
    }
    x = alt.X("expert:O", title="expert", axis=alt.Axis(**axis))
    y = alt.Y("layer:O", title="layer", axis=alt.Axis(**axis))
    tips = looks.tooltip(layer="layer", expert="expert", tokens="tokens routed", peak="peak |x|", where="input of")
    scale = alt.Scale(type="log", scheme="viridis", domain=[low, high], nice=False)
    legend = alt.Legend(
        values=[low, math.sqrt(low * high), high],
        labelExpr="format(datum.value, ',.2~r')",
        orient="bottom",
        type="gradient",
    )
    cells = (
        alt.Chart(alt.InlineData(values=[row for row in data if row["amax"] and not row["starved"]]))
        .mark_rect()
        .encode(x=x, y=y, color=alt.Color("amax:Q", title="peak |x|", scale=scale, legend=legend), tooltip=tips)
    )
    starved = (
        alt.Chart(alt.InlineData(values=[row for row in data if row["starved"]]))
        .mark_rect(color=looks.FAINT)
        .encode(x=x, y=y, tooltip=tips)
    )
    height = len(layers) * min(max(_HEIGHT // len(layers), _LOWEST), _TALLEST)
    return alt.layer(cells, starved).properties(width="container", height=height, description=_description(card))


def expert_cells(card: Card) -> list[dict[str, Any]]:
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
                    "starved": card.experts is not None and tokens < card.experts.enough,
                }
            )
    return cells


def _description(card: Card) -> str:
    lines = [line for line in rows.expert_lines(card) if line.amax is not None]
    worst = max(lines, key=lambda line: line.amax or 0.0)
    starved = sum(line.starved for line in lines)
    return (
        f"Largest input of each expert by layer. Largest of all: {number(worst.amax)} at expert {worst.expert} of "
        f"layer {worst.layer}, input of {visible(worst.projection or '')}. Experts with too few tokens: {starved:,}."
    )
