"""Estimated KL against bits for each weight: every scheme alone, and the best mixtures of them with their interval."""

from __future__ import annotations

from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.text import number
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.frontier import Frontier, Limits, kl_text
from quantaudit.model.blockwise.memory import size_text
from quantaudit.simulate.allocation import Point

_TOOLTIP = theme.tooltip(name="recipe", bits_text="bits a weight", size="all weights", kl_text="KL", known="known by")


def chart(view: CardView) -> AnyChart | None:
    """A line with its band, a point for each scheme and the advised one, rules at the limits; None without prices."""
    shown = view.frontier
    line = [] if shown is None else [_row("best mixtures", point, shown.limits) for point in shown.line if point.kl > 0]
    if shown is None or not line:
        return None
    points = [_row(title, point, shown.limits) for title, point in shown.uniform if point.kl > 0]
    known = [row[field] for row in (*line, *points) for field in ("kl", "low", "high") if row[field]]
    low, high = theme.decades([*known, *(kl for _, kl in shown.limits)])
    widest = max(row["bits"] for row in (*line, *points))
    x = alt.X(
        "bits:Q",
        title="bits for each quantizable weight, scales included",
        scale=alt.Scale(domain=[0.95 * min(row["bits"] for row in (*line, *points)), 1.02 * widest], nice=False),
        axis=alt.Axis(grid=False, tickMinStep=1),
    )
    y = alt.Y("kl:Q", title="KL, nats per token", scale=theme.log_scale(low, high), axis=theme.log_axis(low, high))
    low_end, high_end = alt.Y("low:Q"), alt.Y2("high:Q")
    mixtures = alt.Chart(theme.rows_of(line))
    band = mixtures.mark_area(opacity=0.18, color=theme.NEUTRAL, aria=False).encode(x=x, y=low_end, y2=high_end)
    path = mixtures.mark_line(strokeWidth=1.6, color=theme.NEUTRAL).encode(x=x, y=y)
    legend = alt.Legend(
        columns=alt.ExprRef("max(1, min(3, floor(width / 290)))"),
        labelLimit=alt.ExprRef(f"min(260, {theme.UNDER_CHART})"),
    )
    color, shape = theme.color("name", points).legend(legend), theme.shape("name", points).legend(legend)
    marks = (
        alt.Chart(theme.rows_of(points), name="schemes")
        .mark_point(size=80, filled=True, opacity=0.95)
        .encode(x=x, y=y, color=color, shape=shape, tooltip=_TOOLTIP)
    )
    whiskers = alt.Chart(theme.rows_of([row for row in points if row["low"]])).mark_rule(
        color=theme.NEUTRAL, opacity=0.7, aria=False
    )
    layers: list[Any] = [path, whiskers.encode(x=x, y=low_end, y2=high_end), marks, *_limits(shown, widest)]
    layers += _advised(shown, x, y)
    if any(row["low"] for row in line):
        layers.insert(0, band)
    return alt.layer(*layers).properties(width="container", height=320, description=shown.reading)


def _advised(shown: Frontier, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """A ring around the advised mixture, and its name."""
    if shown.advised is None or not shown.advised.point.kl > 0:
        return []
    row = _row("advised", shown.advised.point, shown.limits)
    base = alt.Chart(theme.rows_of([row | {"text": f"advised, {row['bits_text']} bits"}])).encode(x=x, y=y)
    ring = base.mark_point(size=190, filled=False, strokeWidth=2.6, color=theme.PALETTE["down_proj"], opacity=1)
    text = base.mark_text(align="right", baseline="top", dx=-11, dy=4, fontWeight=600).encode(text=alt.Text("text:N"))
    return [ring.encode(tooltip=_TOOLTIP), text]


def _limits(shown: Frontier, widest: float) -> list[alt.Chart]:
    """Dashed rules, each named above its right end."""
    rows = [{"kl": kl, "bits": widest, "text": f"{status} up to {number(kl)}"} for status, kl in shown.limits]
    if not rows:
        return []
    base = alt.Chart(theme.rows_of(rows))
    rule = base.mark_rule(strokeDash=[4, 3], opacity=0.7, color=theme.NEUTRAL).encode(y=alt.Y("kl:Q"))
    text = base.mark_text(align="right", baseline="bottom", dy=-3).encode(
        x=alt.X("bits:Q"), y=alt.Y("kl:Q"), text=alt.Text("text:N")
    )
    return [rule, text]


def _row(name: str, point: Point, limits: Limits) -> dict[str, Any]:
    return {
        "name": name,
        "bits": round(point.bits, 4),
        "kl": point.kl,
        # A logarithmic axis holds no zero, and an interval of a mean can reach below it.
        "low": point.kl_low if point.kl_low and point.kl_low > 0 else None,
        "high": point.kl_high,
        "bits_text": f"{point.bits:.3g}",
        "size": size_text(point.size),
        "kl_text": kl_text(point, limits),
        "known": "simulation" if point.source == "measured" else "estimate",
    }
