"""The peak of each fused group's input against the damage that quantizing the group alone does, for every scheme."""

from __future__ import annotations

import math
from typing import Any, Literal

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.text import ABSENT, decibels, number, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.groups import input_of

_LABELED_POINTS = 3
_HEIGHT = 340
_LINE = 11 / _HEIGHT
"""Height of a label, the size of its letters, as a share of the chart's."""


def data(view: CardView) -> list[dict[str, Any]]:
    """One row for each fused group and scheme with a positive damage, with its input's peak."""
    rows = []
    for row in view.card.simulation.groups if view.card.simulation else []:
        site = view.sites.get(input_of(row.group))
        if site is None or not site.amax or not row.damage or row.damage < 0:
            continue
        error = view.tensor_errors.get(row.group)
        rows.append(
            {
                "group": visible(row.group),
                "label": visible(row.projection if row.layer is None else f"L{row.layer} {row.projection}", limit=28),
                "projection": visible(row.projection, limit=40),
                "scheme": visible(view.titles[row.scheme]),
                "amax": site.amax,
                # As exact as a drawing needs it: there are thousands of rows.
                "damage": float(f"{row.damage:.6g}"),
                "price": None if row.price is None else float(f"{row.price:.6g}"),
                "peak": number(site.amax),
                "damage_text": number(row.damage),
                "price_text": number(row.price),
                "weights": number(row.damage_weights_only),
                "sqnr": f"{decibels(error.sqnr_db)} dB" if error else ABSENT,
            }
        )
    return rows


def labels(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names for the points that hurt most, none of them on the height of another, so that no page is too narrow.

    Each row gains `right`: whether it lies in the right half, so that its label can be written towards the middle.
    """
    placed: list[dict[str, Any]] = []
    measure = "price" if any(row.get("price") is not None for row in points) else "damage"
    for row in sorted(points, key=lambda row: -(row[measure] or 0.0))[:_LABELED_POINTS]:
        x, y = (_along_axis(row[field], points, field) for field in ("amax", "damage"))
        if all(abs(other["y"] - y) >= _LINE for other in placed):
            placed.append({**row, "x": x, "y": y, "right": x > 0.5})
    return placed


def _along_axis(value: float, points: list[dict[str, Any]], field: str) -> float:
    """Where a value stands on its axis: 0 at the lower end, 1 at the upper."""
    low, high = (math.log10(end) for end in theme.decades(row[field] for row in points))
    return (math.log10(value) - low) / (high - low)


def chart(view: CardView) -> AnyChart | None:
    """Peak of each fused group's input against its block damage, both logarithmic; None where nothing was simulated."""
    rows = data(view)
    if not rows:
        return None
    base = alt.Chart(theme.rows_of(rows)).encode(
        x=_log_axis(alt.X, "amax", "peak |x| of the group's input", rows),
        y=_log_axis(alt.Y, "damage", "block damage", rows),
    )
    titles = list(dict.fromkeys(row["scheme"] for row in rows))
    pick = alt.selection_point(name="projection_pick", fields=["projection"], bind="legend")
    points = base.mark_point(size=52, filled=True, strokeWidth=0).encode(
        color=theme.color("projection", rows),
        shape=alt.Shape(
            "scheme:N",
            title=None,
            scale=alt.Scale(domain=titles, range=list(theme.SHAPES[: len(titles)])),
            legend=alt.Legend(columns=1, labelLimit=alt.ExprRef(f"min(270, {theme.UNDER_CHART})")),
        ),
        opacity=alt.condition(pick, alt.value(0.85), alt.value(0.08)),
        tooltip=theme.tooltip(
            group="group",
            scheme="scheme",
            peak="peak |x|",
            damage_text="damage",
            price_text="price, nats",
            weights="damage, weights only",
            sqnr="SQNR",
        ),
    )
    layered = alt.layer(points.add_params(pick).properties(name="groups"), *_labels(base, labels(rows)))
    return layered.properties(width="container", height=_HEIGHT, description=description(view))


def description(view: CardView) -> str:
    """The chart in words, with the group that hurts most."""
    worst = next((line for line in view.groups if line.damage), None)
    text = "Peak of each fused group's input against the damage of quantizing that group alone, both logarithmic."
    if worst:
        text += f" Worst: {visible(worst.group)}, damage {number(worst.damage)} at a peak of {number(worst.amax)}" + (
            f", price {number(worst.price)} nats." if worst.price is not None else "."
        )
    return text


def _log_axis(channel: Any, field: str, title: str, rows: list[dict[str, Any]]) -> Any:
    low, high = theme.decades(row[field] for row in rows)
    return channel(f"{field}:Q", title=title, scale=theme.log_scale(low, high), axis=theme.log_axis(low, high))


def _labels(base: alt.Chart, placed: list[dict[str, Any]]) -> list[alt.Chart]:
    layers = []
    sides: list[tuple[Literal["left", "right"], int, bool]] = [("left", 8, False), ("right", -8, True)]
    for align, offset, right in sides:
        side = [row for row in placed if row["right"] == right]
        if side:
            texts = base.mark_text(align=align, dx=offset, baseline="middle", limit=alt.ExprRef("width / 2")).encode(
                text=alt.Text("label:N")
            )
            layers.append(texts.properties(data=theme.rows_of(side)))
    return layers
