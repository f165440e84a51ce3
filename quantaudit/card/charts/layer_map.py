"""The layer map: what quantizing each fused group costs, by layer and projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.text import number, percent, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.simulate.sensitivity.ranking import Measure, cost_of, measure_of, shares, weight


@dataclass(frozen=True, slots=True)
class Wording:
    """What is said of a map. cost: one cell; unit: of the colors."""

    description: str
    cost: str
    unit: str


WORDING: dict[Measure, Wording] = {
    "price": Wording(
        description="Heat map of the estimated KL of quantizing one fused group alone, by layer and projection.",
        cost="KL, estimate",
        unit="KL, nats (estimate)",
    ),
    "damage": Wording(
        description="Heat map of block damage by layer and projection.",
        cost="damage",
        unit="block damage",
    ),
}


def measure(view: CardView) -> Measure:
    """What the map is colored by: prices where groups have them, as everything that ranks groups."""
    return measure_of(view.groups)


def data(view: CardView) -> list[dict[str, Any]]:
    """A row for each group within a block; a cost of zero takes the shade of the smallest one that is not zero.

    index: the group's place in `view.groups`, by which a page opens it. share: of what all groups cost together.
    """
    by = measure(view)
    lines = [line for line in view.groups_by_layer if cost_of(line, by) is not None]
    positive = [cost for line in lines if (cost := weight(line, by)) > 0]
    if not positive:
        return []
    of_all = dict(zip((line.group for line in view.groups), shares(view.groups), strict=True))
    places = {line.group: index for index, line in enumerate(view.groups)}
    return [
        {
            "index": places[line.group],
            "group": visible(line.group),
            "layer": line.layer,
            "projection": visible(line.projection, limit=40),
            "shade": max(weight(line, by), min(positive)),
            "cost": f"{number(cost_of(line, by))} ({percent(of_all[line.group])} of all)",
            "damage": number(line.damage),
            "weights": number(line.damage_weights_only),
            "peak": number(line.amax),
        }
        for line in lines
    ]


def chart(view: CardView) -> AnyChart | None:
    """Heat map, layer by projection, under the static scheme if there is one; None where nothing was simulated."""
    rows = data(view)
    if not rows:
        return None
    words = WORDING[measure(view)]
    names = theme.ordered(row["projection"] for row in rows)
    known = {"group": "group", "cost": words.cost}
    if measure(view) == "price":
        known["damage"] = "block damage"
    cells: alt.Chart = (
        alt.Chart(theme.rows_of(rows))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("projection:N", title=None, sort=names, axis=alt.Axis(grid=False, labelLimit=140)),
            color=_shade([row["shade"] for row in rows], words.unit),
            tooltip=theme.tooltip(**known, weights="damage, weights only", peak="peak |x|"),
        )
        .properties(width="container", height=max(34 * len(names), 60), description=words.description)
    )
    return cells


def _shade(values: list[float], unit: str) -> alt.Color:
    domain = [min(values), max(max(values), min(values) * 1.001)]
    return alt.Color(
        "shade:Q",
        title=unit,
        scale=alt.Scale(type="log", scheme="viridis", domain=domain, nice=False),
        legend=alt.Legend(
            values=theme.ticks_between(*domain), labelExpr=theme.POWER_LABEL, orient="bottom", type="gradient"
        ),
    )
