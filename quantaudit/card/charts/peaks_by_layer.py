"""The largest magnitude of each tensor by layer, one line for each kind of tensor."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.schema import Card, Peak
from quantaudit.card.schema.measured import FP16_MAX
from quantaudit.card.text import ABSENT, number, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.peaks import reaches_quantizer, series_of
from quantaudit.stats.distribution import MASSIVE_FLOOR

Align: TypeAlias = Literal["left", "center", "right"]

QUANTIZED, UNQUANTIZED = "reaches a quantizer", "not quantized"


def data(view: CardView) -> list[dict[str, Any]]:
    """One row for each site of a layer with a positive peak. amax in the tensor's units."""
    rows = []
    for site in view.card.sites:
        if site.layer is None or not site.amax or site.amax < 0:
            continue
        first = next((peak for peak in site.peaks if peak.value is not None), None)
        rows.append(
            {
                "site": visible(site.name),
                "layer": site.layer,
                "series": visible(series_of(site, view.projections), limit=40),
                "role": QUANTIZED if reaches_quantizer(site) else UNQUANTIZED,
                "amax": site.amax,
                "peak": number(site.amax),
                "median": number(site.median),
                "where": f"{_place(first)}, channel {first.channel}" if first else ABSENT,
            }
        )
    return sorted(rows, key=lambda row: (row["series"], row["layer"], row["site"]))


def chart(view: CardView) -> AnyChart | None:
    """Largest magnitude by layer on a logarithmic axis, one line per kind of tensor; None where no layer has a peak."""
    rows = data(view)
    if not rows:
        return None
    low, high = theme.decades(row["amax"] for row in rows)
    pick = alt.selection_point(name="series_pick", fields=["series"], bind="legend")
    base = alt.Chart(theme.rows_of(rows)).encode(
        x=theme.layer_x(rows),
        y=alt.Y("amax:Q", title="peak |x|", scale=theme.log_scale(low, high), axis=theme.log_axis(low, high)),
        color=theme.color("series", rows),
        opacity=alt.condition(pick, alt.value(1.0), alt.value(0.12)),
    )
    dashes = alt.StrokeDash(
        "role:N", title=None, scale=alt.Scale(domain=[QUANTIZED, UNQUANTIZED], range=[[1, 0], [4, 3]])
    )
    lines = base.mark_line(strokeWidth=1.6).encode(strokeDash=dashes)
    points = base.mark_point(size=34, filled=True).encode(
        shape=theme.shape("series", rows),
        tooltip=theme.tooltip(
            site="tensor", series="kind", peak="peak |x|", median="median |x|", where="largest element"
        ),
    )
    # The pick lives on a named layer: altair numbers unnamed views globally, and bytes would differ between calls.
    layers: list[Any] = [lines, points.add_params(pick).properties(name="peaks")]
    layers += _references(rows, low, high)
    return alt.layer(*layers).properties(width="container", height=330, description=description(view.card))


def description(card: Card) -> str:
    """The chart in words: the largest of all, and the largest at the input of a Linear."""
    overall, quantized = card.peak.overall, card.peak.quantized
    parts = ["Largest magnitude by layer, one line per kind of tensor, logarithmic."]
    if overall:
        parts.append(f"Largest of all: {number(overall.amax)} at {visible(overall.site)}.")
    if quantized:
        parts.append(f"Largest at the input of a Linear: {number(quantized.amax)} at {visible(quantized.site)}.")
    return " ".join(parts)


def _place(peak: Peak) -> str:
    return f"position {peak.position}" if peak.position is not None else peak.token_kind or ABSENT


def _references(rows: list[dict[str, Any]], low: float, high: float) -> list[AnyChart]:
    """Rules at FP16's end, only when the peaks come near it, and at the massive threshold, only when it is in range."""
    layers = []
    if max(row["amax"] for row in rows) >= FP16_MAX / 10 and high >= FP16_MAX:
        layers.append(_reference(rows, FP16_MAX, "FP16 ends at 65,504"))
    if low < MASSIVE_FLOOR < high:
        layers.append(_reference(rows, MASSIVE_FLOOR, "massive: above 100"))
    return layers


def _reference(rows: list[dict[str, Any]], value: float, label: str) -> AnyChart:
    base = alt.Chart(theme.rows_of([{"reference": value, "label": label}])).encode(y=alt.Y("reference:Q"))
    rule = base.mark_rule(color=theme.NEUTRAL, strokeDash=[2, 2])
    align, position = _clear_place(rows, value)
    text = base.mark_text(align=align, baseline="bottom", dy=-2).encode(x=alt.value(position), text=alt.Text("label:N"))
    return alt.layer(rule, text)


def _clear_place(rows: list[dict[str, Any]], value: float) -> tuple[Align, alt.ExprRef]:
    """The third of the width with the fewest points just above a rule, where its label can be read."""
    layers = [row["layer"] for row in rows]
    first, span = min(layers), max(layers) - min(layers) + 1
    crowd = [0, 0, 0]
    for row in rows:
        crowd[3 * (row["layer"] - first) // span] += value <= row["amax"] < 1.8 * value
    places: list[tuple[Align, str]] = [("left", "4"), ("center", "width / 2"), ("right", "width - 4")]
    align, position = places[crowd.index(min(crowd))]
    return align, alt.ExprRef(position)
