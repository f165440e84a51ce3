"""The distribution of one tensor's magnitudes, with what one scale reaches and what it rounds to zero.

One specification serves all tensors of a card: a page puts the tensor's row under the name `tensor`.
"""

from __future__ import annotations

from typing import Literal

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.views.card_view import CardView

DATA = "tensor"
"""Name of the data: one row, as `views.inspector` makes it."""
_FATES = {"rounds to zero": theme.PALETTE["down_proj"], "kept": theme.PALETTE["qkv_proj"], "clipped": "#767676"}
_HEIGHT, _TOP = 210, 58
"""Pixels of the whole, and of the rows above the bars: one for each label, as any two marks may be close."""
_DECADE = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
_MIDDLE = "sqrt(datum.low * datum.high)"


def chart(view: CardView) -> AnyChart | None:
    """Bars by magnitude on a logarithmic axis, and the scale's marks; None where the card holds no distribution."""
    if not any(site.magnitudes for site in view.card.sites):
        return None
    tensor = alt.Chart(alt.NamedData(DATA))
    bins = (
        tensor.transform_flatten(["counts"], ["count"])
        .transform_window(bin="row_number()")
        .transform_calculate(
            low="pow(2, (datum.first + datum.bin - 1) / datum.parts)",
            high="pow(2, (datum.first + datum.bin) / datum.parts)",
            share="datum.count / datum.total",
            floor="0",
            fate=f"isValid(datum.zeroed) && {_MIDDLE} < datum.zeroed ? 'rounds to zero' : "
            f"isValid(datum.largest) && datum.low > datum.largest ? 'clipped' : 'kept'",
        )
    )
    axis = alt.Axis(labelExpr=f"{_DECADE} ? ({theme.POWER_LABEL}) : ''", labelOverlap=True, grid=False, tickCount=10)
    x = alt.X("low:Q", title="|x|, logarithmic", scale=alt.Scale(type="log", nice=False), axis=axis)
    y = alt.Y(
        "share:Q",
        title="share of values",
        scale=alt.Scale(range=[_HEIGHT, _TOP]),
        axis=alt.Axis(format="%", tickCount=2, grid=False, titleAnchor="start"),
    )
    bars = bins.mark_rect(strokeWidth=0).encode(
        x=x,
        x2=alt.X2("high:Q"),
        y=y,
        y2=alt.Y2("floor:Q"),
        color=alt.Color(
            "fate:N", title=None, scale=alt.Scale(domain=list(_FATES), range=list(_FATES.values())), legend=None
        ),
    )
    # Marks may be absent, and a reader of the screen gets what they say from the plot's own label.
    lost = tensor.transform_filter("isValid(datum.zeroed)").transform_calculate(
        low="min(pow(2, datum.first / datum.parts), datum.zeroed / 2)"
    )
    zone = lost.mark_rect(aria=False, opacity=0.14, color=_FATES["rounds to zero"]).encode(
        x=x, x2=alt.X2("zeroed:Q"), y=alt.value(0), y2=alt.value(_HEIGHT)
    )
    rows = [
        _mark(tensor, "step", "left", 20, dash=[3, 3]),
        _mark(tensor, "largest", "right", 34),
        _mark(tensor, "peak", "right", 48, dash=[1, 3]),
    ]
    label = lost.mark_text(aria=False, align="left", baseline="middle", dx=4, fontWeight=600).encode(
        x=x, y=alt.value(6), text=alt.Text("zeroed_text:N")
    )
    return alt.layer(zone, bars, *[layer for pair in rows for layer in pair], label).properties(
        width="container", height=_HEIGHT, description="Distribution of a tensor’s magnitudes."
    )


def _mark(
    tensor: alt.Chart, field: str, align: Literal["left", "right"], y: int, dash: list[int] | None = None
) -> tuple[alt.Chart, alt.Chart]:
    """A rule at a magnitude and its label, `y` pixels below the top, on that side of the rule."""
    known = tensor.transform_filter(f"isValid(datum.{field})")
    x = alt.X(f"{field}:Q")
    rule = known.mark_rule(aria=False, strokeWidth=1.2, strokeDash=dash or [1, 0], color=theme.NEUTRAL).encode(
        x=x, y=alt.value(y - 6), y2=alt.value(_HEIGHT)
    )
    text = known.mark_text(aria=False, align=align, baseline="middle", dx=4 if align == "left" else -4).encode(
        x=x, y=alt.value(y), text=alt.Text(f"{field}_text:N")
    )
    return rule, text
