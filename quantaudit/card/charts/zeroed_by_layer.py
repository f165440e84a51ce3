"""The share of values that static quantization rounds to zero, by layer."""

from __future__ import annotations

from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.text import decibels, number, percent, visible
from quantaudit.card.views.card_view import CardView

DESCRIPTION = "Share of non-zero values that static quantization rounds to zero, by layer and projection."


def data(view: CardView) -> list[dict[str, Any]]:
    """One row for each tensor of a layer: its zeroed fraction, 0 to 1, under the static scheme."""
    return [
        {
            "group": visible(line.group),
            "layer": line.layer,
            "projection": visible(line.projection, limit=40),
            "zeroed": line.zeroed_fraction,
            "zeroed_text": percent(line.zeroed_fraction),
            "levels": number(line.effective_levels),
            "sqnr": f"{decibels(line.sqnr_db)} dB",
            "peak": number(line.amax),
        }
        for line in view.groups_by_layer
        if line.zeroed_fraction is not None
    ]


def chart(view: CardView) -> AnyChart | None:
    """Share of values that static quantization rounds to zero, by layer; None where nothing was simulated."""
    rows = data(view)
    if not rows:
        return None
    pick = alt.selection_point(name="zeroed_pick", fields=["projection"], bind="legend")
    points: alt.Chart = (
        alt.Chart(theme.rows_of(rows), name="zeroed")
        .mark_point(size=44, filled=True)
        .encode(
            x=theme.layer_x(rows),
            y=alt.Y("zeroed:Q", title="zeroed fraction", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
            color=theme.color("projection", rows),
            shape=theme.shape("projection", rows),
            opacity=alt.condition(pick, alt.value(0.9), alt.value(0.1)),
            tooltip=theme.tooltip(
                group="group", zeroed_text="zeroed", levels="effective levels", sqnr="SQNR", peak="peak |x|"
            ),
        )
        .add_params(pick)
        .properties(width="container", height=240, description=DESCRIPTION)
    )
    return points
