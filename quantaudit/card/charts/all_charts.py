"""Card → Vega-Lite charts, as pure functions: equal cards give equal bytes.

Every chart is drawn on light and on dark paper, so no chart sets a text colour: pages do, through `looks.paper`.
Series differ by shape as well as by colour, and every colour keeps 3:1 contrast on both papers (`looks.PALETTE`).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import altair as alt

from quantaudit.card.charts import data as chart_data
from quantaudit.card.charts import theme as looks
from quantaudit.card.charts.advice import advice_curve
from quantaudit.card.charts.experts import peaks_by_expert
from quantaudit.card.charts.granularity import error_by_granularity
from quantaudit.card.schema import Card
from quantaudit.card.text import number, visible
from quantaudit.card.views import groups as rows

AnyChart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart
Align: TypeAlias = Literal["left", "center", "right"]

FP16_MAX = 65504.0
MASSIVE = 100.0
"""Sun et al. 2024: an activation is massive above 100 (and above 1,000 times the median)."""


def peaks_by_layer(card: Card) -> AnyChart | None:
    """Largest magnitude by layer on a logarithmic axis, one line per kind of tensor; None where no layer has a peak."""
    data = chart_data.peaks(card)
    if not data:
        return None
    low, high = looks.decades(row["amax"] for row in data)
    pick = alt.selection_point(name="series_pick", fields=["series"], bind="legend")
    base = alt.Chart(alt.InlineData(values=data)).encode(
        x=alt.X(
            "layer:Q", title="layer", axis=looks.layer_axis(row["layer"] for row in data), scale=looks.layer_scale(data)
        ),
        y=alt.Y("amax:Q", title="peak |x|", scale=looks.log_scale(low, high), axis=looks.log_axis(low, high)),
        color=looks.colour("series", data),
        opacity=alt.condition(pick, alt.value(1.0), alt.value(0.12)),
    )
    dashes = alt.StrokeDash(
        "role:N",
        title=None,
        scale=alt.Scale(domain=[chart_data.QUANTIZED, chart_data.UNQUANTIZED], range=[[1, 0], [4, 3]]),
    )
    lines = base.mark_line(strokeWidth=1.6).encode(strokeDash=dashes)
    points = base.mark_point(size=34, filled=True).encode(
        shape=looks.shape("series", data),
        tooltip=looks.tooltip(
            site="tensor", series="kind", peak="peak |x|", median="median |x|", where="largest element"
        ),
    )
    # The pick lives on a named layer: altair numbers unnamed views globally, and bytes would differ between calls.
    layers: list[Any] = [lines, points.add_params(pick).properties(name="peaks")]
    layers += _references(data, low, high)
    return alt.layer(*layers).properties(width="container", height=330, description=_peaks_description(card))


def peak_against_damage(card: Card) -> AnyChart | None:
    """Peak of each fused group's input against its block damage, both logarithmic; None where nothing was simulated."""
    data = chart_data.damages(card)
    if not data:
        return None
    x_low, x_high = looks.decades(row["amax"] for row in data)
    y_low, y_high = looks.decades(row["damage"] for row in data)
    titles = list(dict.fromkeys(row["scheme"] for row in data))
    pick = alt.selection_point(name="projection_pick", fields=["projection"], bind="legend")
    base = alt.Chart(alt.InlineData(values=data)).encode(
        x=alt.X(
            "amax:Q",
            title="peak |x| of the group's input",
            scale=looks.log_scale(x_low, x_high),
            axis=looks.log_axis(x_low, x_high),
        ),
        y=alt.Y(
            "damage:Q", title="block damage", scale=looks.log_scale(y_low, y_high), axis=looks.log_axis(y_low, y_high)
        ),
    )
    points = base.mark_point(size=52, filled=True, strokeWidth=0).encode(
        color=looks.colour("projection", data),
        shape=alt.Shape(
            "scheme:N",
            title=None,
            scale=alt.Scale(domain=titles, range=list(looks.SHAPES[: len(titles)])),
            legend=alt.Legend(columns=1, labelLimit=270),
        ),
        opacity=alt.condition(pick, alt.value(0.85), alt.value(0.08)),
        tooltip=looks.tooltip(
            group="group",
            scheme="scheme",
            peak="peak |x|",
            damage_text="damage",
            weights="damage, weights only",
            sqnr="SQNR",
        ),
    )
    labels = _labels(base, chart_data.labels(data))
    layered = alt.layer(points.add_params(pick).properties(name="groups"), *labels)
    return layered.properties(width="container", height=340, description=_damage_description(card))


def damage_by_layer(card: Card) -> AnyChart | None:
    """Heat map of block damage, layer by projection, under the static scheme; None where nothing was simulated."""
    data = chart_data.heat(card)
    drawn = [row["shade"] for row in data]
    if not drawn:
        return None
    low, high = looks.decades(drawn)
    names = looks.ordered(row["projection"] for row in data)
    scale = alt.Scale(
        type="log", scheme="viridis", domain=[min(drawn), max(max(drawn), min(drawn) * 1.001)], nice=False
    )
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=data))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False)),
            y=alt.Y("projection:N", title=None, sort=names, axis=alt.Axis(grid=False, labelLimit=140)),
            color=alt.Color(
                "shade:Q",
                title="block damage",
                scale=scale,
                legend=alt.Legend(
                    values=looks.powers(low, high), labelExpr=looks.POWER_LABEL, orient="bottom", type="gradient"
                ),
            ),
            tooltip=looks.tooltip(group="group", damage_text="damage", weights="damage, weights only", peak="peak |x|"),
        )
        .properties(
            width="container",
            height=max(34 * len(names), 60),
            description="Heat map of block damage by layer and projection under the static scheme.",
        )
    )
    return chart


def zeroed_by_layer(card: Card) -> AnyChart | None:
    """Share of values that static quantization rounds to zero, by layer; None where nothing was simulated."""
    data = chart_data.zeroed(card)
    if not data:
        return None
    pick = alt.selection_point(name="zeroed_pick", fields=["projection"], bind="legend")
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=data), name="zeroed")
        .mark_point(size=44, filled=True)
        .encode(
            x=alt.X(
                "layer:Q",
                title="layer",
                axis=looks.layer_axis(row["layer"] for row in data),
                scale=looks.layer_scale(data),
            ),
            y=alt.Y("zeroed:Q", title="zeroed fraction", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
            color=looks.colour("projection", data),
            shape=looks.shape("projection", data),
            opacity=alt.condition(pick, alt.value(0.9), alt.value(0.1)),
            tooltip=looks.tooltip(
                group="group", zeroed_text="zeroed", levels="effective levels", sqnr="SQNR", peak="peak |x|"
            ),
        )
        .add_params(pick)
        .properties(
            width="container",
            height=240,
            description="Share of non-zero values that static quantization rounds to zero, by layer and projection.",
        )
    )
    return chart


def drift_by_layer(card: Card) -> AnyChart | None:
    """How far the residual stream has moved after each layer, one line per recipe; None where it was not measured."""
    data = chart_data.drifts(card)
    if not data:
        return None
    low, high = looks.decades(row["drift"] for row in data)
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=data), name="drifts")
        .mark_line(strokeWidth=1.6, point=alt.OverlayMarkDef(size=30, filled=True))
        .encode(
            x=alt.X(
                "layer:Q",
                title="layer",
                axis=looks.layer_axis(row["layer"] for row in data),
                scale=looks.layer_scale(data),
            ),
            y=alt.Y(
                "drift:Q",
                title="accumulated change",
                scale=looks.log_scale(low, high),
                axis=looks.log_axis(low, high),
            ),
            color=looks.colour("recipe", data).legend(columns=1, labelLimit=420),
            shape=looks.shape("recipe", data),
            tooltip=looks.tooltip(recipe="recipe", layer="layer", drift_text="accumulated change"),
        )
        .properties(
            width="container",
            height=240,
            description=f"Accumulated change of the residual stream by layer. {chart_data.drift_reading(card)}",
        )
    )
    return chart


def all_charts(card: Card) -> dict[str, AnyChart]:
    """Chart name → chart, of those that this card has data for, in the order of the card."""
    charts = {
        "peaks_by_layer": peaks_by_layer(card),
        "peaks_by_expert": peaks_by_expert(card),
        "peak_against_damage": peak_against_damage(card),
        "damage_by_layer": damage_by_layer(card),
        "zeroed_by_layer": zeroed_by_layer(card),
        "error_by_granularity": error_by_granularity(card),
        "drift_by_layer": drift_by_layer(card),
        "advice_curve": advice_curve(card),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def specification(chart: AnyChart) -> dict[str, Any]:
    """Vega-Lite specification, whatever theme the process has enabled, and without a schema address."""
    with alt.theme.enable("none"):
        spec: dict[str, Any] = chart.to_dict()
    # The address names Altair's Vega-Lite; the renderer brings its own and would warn about the difference.
    del spec["$schema"]
    return spec


def _references(points: list[dict[str, Any]], low: float, high: float) -> list[AnyChart]:
    """Rules at FP16's end, only when the peaks come near it, and at the massive threshold, only when it is in range."""
    layers = []
    if max(row["amax"] for row in points) >= FP16_MAX / 10 and high >= FP16_MAX:
        layers.append(_reference(points, FP16_MAX, "FP16 ends at 65,504"))
    if low < MASSIVE < high:
        layers.append(_reference(points, MASSIVE, "massive: above 100"))
    return layers


def _reference(points: list[dict[str, Any]], value: float, label: str) -> AnyChart:
    base = alt.Chart(alt.InlineData(values=[{"reference": value, "label": label}])).encode(y=alt.Y("reference:Q"))
    rule = base.mark_rule(color=looks.NEUTRAL, strokeDash=[2, 2])
    align, position = _clear_place(points, value)
    text = base.mark_text(align=align, baseline="bottom", dy=-2).encode(x=alt.value(position), text="label:N")
    return alt.layer(rule, text)


def _clear_place(points: list[dict[str, Any]], value: float) -> tuple[Align, alt.ExprRef]:
    """The third of the width with the fewest points just above a rule, where its label can be read."""
    layers = [row["layer"] for row in points]
    first, span = min(layers), max(layers) - min(layers) + 1
    crowd = [0, 0, 0]
    for row in points:
        crowd[3 * (row["layer"] - first) // span] += value <= row["amax"] < 1.8 * value
    places: list[tuple[Align, str]] = [("left", "4"), ("center", "width / 2"), ("right", "width - 4")]
    align, position = places[crowd.index(min(crowd))]
    return align, alt.ExprRef(position)


def _labels(base: alt.Chart, labels: list[dict[str, Any]]) -> list[alt.Chart]:
    layers = []
    sides: list[tuple[Align, int, bool]] = [("left", 8, False), ("right", -8, True)]
    for align, offset, right in sides:
        side = [row for row in labels if row["right"] == right]
        if side:
            texts = base.mark_text(align=align, dx=offset, baseline="middle").encode(text="label:N")
            layers.append(texts.properties(data=alt.InlineData(values=side)))
    return layers


def _peaks_description(card: Card) -> str:
    overall, quantized = card.peak.overall, card.peak.quantized
    parts = ["Largest magnitude by layer, one line per kind of tensor, logarithmic."]
    if overall:
        parts.append(f"Largest of all: {number(overall.amax)} at {visible(overall.site)}.")
    if quantized:
        parts.append(f"Largest at the input of a Linear: {number(quantized.amax)} at {visible(quantized.site)}.")
    return " ".join(parts)


def _damage_description(card: Card) -> str:
    worst = next((line for line in rows.group_lines(card) if line.damage), None)
    text = "Peak of each fused group's input against the damage of quantizing that group alone, both logarithmic."
    if worst:
        text += (
            f" Most damaging: {visible(worst.group)}, damage {number(worst.damage)} at a peak of {number(worst.amax)}."
        )
    return text
