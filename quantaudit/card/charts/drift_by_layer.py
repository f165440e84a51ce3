"""How far the residual stream has moved after each layer, with everything before it quantized."""

from __future__ import annotations

from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.schema import Card
from quantaudit.card.text import number, visible
from quantaudit.card.views.card_view import CardView


def data(view: CardView) -> list[dict[str, Any]]:
    """One row for each recipe and layer: how far the block's output has moved, where it has moved at all."""
    return [
        {
            "recipe": visible(recipe.title, limit=60),
            "layer": layer,
            "drift": drift,
            "drift_text": number(drift),
        }
        for recipe in (view.card.simulation.recipes if view.card.simulation else [])
        for layer, drift in enumerate(recipe.propagation)
        if drift
    ]


def chart(view: CardView) -> AnyChart | None:
    """The accumulated change by layer, one line per recipe; None where it was not measured."""
    rows = data(view)
    if not rows:
        return None
    low, high = theme.decades(row["drift"] for row in rows)
    lines: alt.Chart = (
        alt.Chart(theme.rows_of(rows), name="drifts")
        .mark_line(strokeWidth=1.6, point=alt.OverlayMarkDef(size=30, filled=True))
        .encode(
            x=theme.layer_x(rows),
            y=alt.Y(
                "drift:Q",
                title="accumulated change",
                scale=theme.log_scale(low, high),
                axis=theme.log_axis(low, high),
            ),
            color=theme.color("recipe", rows).legend(
                columns=1, labelLimit=alt.ExprRef(f"min(420, {theme.UNDER_CHART})")
            ),
            shape=theme.shape("recipe", rows),
            tooltip=theme.tooltip(recipe="recipe", layer="layer", drift_text="accumulated change"),
        )
        .properties(
            width="container",
            height=240,
            description=f"Accumulated change of the residual stream by layer. {reading(view.card)}",
        )
    )
    return lines


def reading(card: Card) -> str:
    """One sentence on where the signal is lost, for the recipe that loses most; empty where nothing was measured."""
    recipes = [recipe for recipe in (card.simulation.recipes if card.simulation else []) if any(recipe.propagation)]
    if not recipes:
        return ""
    worst = max(recipes, key=lambda recipe: max(drift or 0.0 for drift in recipe.propagation))
    path = [0.0]
    for drift in worst.propagation:
        path.append(path[-1] if drift is None else drift)
    layer = max(range(len(worst.propagation)), key=lambda i: path[i + 1] - path[i])
    return (
        f"Under {visible(worst.title)} most is lost in layer {layer}, where the change rises "
        f"from {number(path[layer])} to {number(path[layer + 1])}; after the last layer it is {number(path[-1])}."
    )
