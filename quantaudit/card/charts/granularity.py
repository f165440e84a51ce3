"""The worst groups' inputs in INT8, with one scale, one a token and one a channel: what the finer scales save."""

from __future__ import annotations

import altair as alt

from quantaudit.card.charts import theme as looks
from quantaudit.card.schema import Card
from quantaudit.card.sections import granularity

_COLOURS = tuple(looks.SPARE_COLOURS[i] for i in (1, 2, 0))
_LINE = 38
"""Height of a group in pixels: its name, and the cause below."""


def error_by_granularity(card: Card) -> alt.LayerChart | alt.FacetChart | None:
    """One line a group, its errors on a logarithmic axis, a symbol for each granularity; None where none was tried."""
    data = granularity.points(card)
    if not data:
        return None
    low, high = looks.decades(row["error"] for row in data)
    lines = list(dict.fromkeys(row["line"] for row in data))
    names = list(granularity.SCALES.values())
    y = alt.Y(
        "line:N",
        title=None,
        sort=lines,
        axis=alt.Axis(grid=False, labelLimit=150, labelExpr="split(datum.label, '\\n')", labelLineHeight=13),
    )
    x = alt.X(
        "error:Q",
        title="error, share of the input’s energy",
        scale=looks.log_scale(low, high),
        axis=looks.log_axis(low, high),
    )
    base = alt.Chart(alt.InlineData(values=data)).encode(y=y)
    spans = base.mark_rule(color=looks.NEUTRAL, strokeWidth=1.2, opacity=0.6).encode(
        x=alt.X("min(error):Q", title="error, share of the input’s energy"), x2=alt.X2("max(error):Q")
    )
    marks = base.mark_point(size=70, filled=True, opacity=0.95).encode(
        x=x,
        color=alt.Color("scales:N", title=None, scale=alt.Scale(domain=names, range=list(_COLOURS))),
        shape=alt.Shape("scales:N", title=None, scale=alt.Scale(domain=names, range=list(looks.SHAPES[: len(names)]))),
        tooltip=looks.tooltip(group="group", scales="scales", error_text="energy lost", cause="cause"),
    )
    return alt.layer(spans, marks.properties(name="granularities")).properties(
        width="container", height=_LINE * len(lines), description=granularity.reading(card)
    )
