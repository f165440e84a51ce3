"""The layer map: block damage by layer and projection."""

from __future__ import annotations

from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.text import number, visible
from quantaudit.card.views.card_view import CardView

DESCRIPTION = "Heat map of block damage by layer and projection under the static scheme."


def data(view: CardView) -> list[dict[str, Any]]:
    """Rows of the static scheme; a damage of zero takes the shade of the smallest one that is not zero.

    index: the group's place in `view.groups`, by which a page opens it.
    """
    lines = [line for line in view.groups_by_layer if line.damage is not None]
    positive = [line.damage for line in lines if line.damage]
    if not positive:
        return []
    places = {line.group: index for index, line in enumerate(view.groups)}
    return [
        {
            "index": places[line.group],
            "group": visible(line.group),
            "layer": line.layer,
            "projection": visible(line.projection, limit=40),
            "shade": line.damage or min(positive),
            "damage_text": number(line.damage),
            "weights": number(line.damage_weights_only),
            "peak": number(line.amax),
        }
        for line in lines
    ]


def chart(view: CardView) -> AnyChart | None:
    """Heat map of block damage, layer by projection, under the static scheme; None where nothing was simulated."""
    rows = data(view)
    if not rows:
        return None
    names = theme.ordered(row["projection"] for row in rows)
    cells: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("projection:N", title=None, sort=names, axis=alt.Axis(grid=False, labelLimit=140)),
            color=_shade([row["shade"] for row in rows]),
            tooltip=theme.tooltip(group="group", damage_text="damage", weights="damage, weights only", peak="peak |x|"),
        )
        .properties(width="container", height=max(34 * len(names), 60), description=DESCRIPTION)
    )
    return cells


def _shade(values: list[float]) -> alt.Color:
    low, high = theme.decades(values)
    domain = [min(values), max(max(values), min(values) * 1.001)]
    return alt.Color(
        "shade:Q",
        title="block damage",
        scale=alt.Scale(type="log", scheme="viridis", domain=domain, nice=False),
        legend=alt.Legend(
            values=theme.powers(low, high), labelExpr=theme.POWER_LABEL, orient="bottom", type="gradient"
        ),
    )
