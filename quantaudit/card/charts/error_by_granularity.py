"""The worst groups' inputs in INT8 with one scale, one a token and one a channel: what the finer scales save."""

from __future__ import annotations

from collections import Counter
from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.text import relative_error, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.simulate.records import Cause

SCALES = {"per_tensor": "one scale", "per_token": "one per token", "per_channel": "one per channel"}
"""Field of a GranularityRow → what a page calls it."""
_EXPLANATIONS: dict[Cause, str] = {
    "massive token": "a massive token sets the one scale",
    "outlier channel": "an outlier channel sets the one scale",
    "either": "finer scales of either kind help",
    "neither": "finer scales would not help much",
}
_COUNTED: dict[Cause, str] = {
    "massive token": "a massive token in",
    "outlier channel": "an outlier channel in",
    "either": "a token or a channel in",
    "neither": "neither in",
}
_COLORS = tuple(theme.SPARE_COLORS[i] for i in (1, 2, 0))
_LINE = 38
"""Height of a group in pixels: its name, and the cause below."""
_ERROR_TITLE = "error, share of the input’s energy"


def labels(view: CardView) -> dict[str, str]:
    """Group → what its line of the chart is called, each differently: short where that is enough; then the cause."""
    short = {
        row.group: f"L{row.layer} {visible(view.projections.get(row.group, row.group), limit=24)}"
        if row.layer is not None
        else visible(row.group, limit=28)
        for row in view.granularities
    }
    count, causes = Counter(short.values()), view.causes
    return {
        group: "\n".join(
            [label if count[label] == 1 else visible(group), *([causes[group]] if group in causes else [])]
        )
        for group, label in short.items()
    }


def data(view: CardView) -> list[dict[str, Any]]:
    """One row for each group and granularity with an error; a logarithmic axis holds no zero."""
    names = labels(view)
    return [
        {
            "line": names[row.group],
            "group": visible(row.group),
            "cause": view.causes.get(row.group, "neither"),
            "scales": name,
            "error": getattr(row, field),
            "error_text": relative_error(getattr(row, field)),
        }
        for row in view.granularities
        for field, name in SCALES.items()
        if getattr(row, field) > 0
    ]


def chart(view: CardView) -> AnyChart | None:
    """One line a group, its errors on a logarithmic axis, a symbol for each granularity; None where none was tried."""
    rows = data(view)
    if not rows:
        return None
    low, high = theme.decades(row["error"] for row in rows)
    lines = list(dict.fromkeys(row["line"] for row in rows))
    names = list(SCALES.values())
    y = alt.Y(
        "line:N",
        title=None,
        sort=lines,
        axis=alt.Axis(grid=False, labelLimit=150, labelExpr="split(datum.label, '\\n')", labelLineHeight=13),
    )
    x = alt.X("error:Q", title=_ERROR_TITLE, scale=theme.log_scale(low, high), axis=theme.log_axis(low, high))
    base = alt.Chart(theme.rows_of(rows)).encode(y=y)
    spans = base.mark_rule(color=theme.NEUTRAL, strokeWidth=1.2, opacity=0.6).encode(
        x=alt.X("min(error):Q", title=_ERROR_TITLE), x2=alt.X2("max(error):Q")
    )
    marks = base.mark_point(size=70, filled=True, opacity=0.95).encode(
        x=x,
        color=alt.Color("scales:N", title=None, scale=alt.Scale(domain=names, range=list(_COLORS))),
        shape=alt.Shape("scales:N", title=None, scale=alt.Scale(domain=names, range=list(theme.SHAPES[: len(names)]))),
        tooltip=theme.tooltip(group="group", scales="scales", error_text="energy lost", cause="cause"),
    )
    return alt.layer(spans, marks.properties(name="granularities")).properties(
        width="container", height=_LINE * len(lines), description=reading(view)
    )


def reading(view: CardView) -> str:
    """What the worst group loses with each kind of scale, and how often which cause is found; empty without any."""
    rows = view.granularities
    if not rows:
        return ""
    first, causes = rows[0], Counter(row.cause for row in rows)
    counts = [f"{words} {count}" for cause, words in _COUNTED.items() if (count := causes[cause])]
    return (
        f"In INT8 one scale loses {relative_error(first.per_tensor)} of the energy of {visible(first.group)}’s input, "
        f"a scale for each token {relative_error(first.per_token)} and one for each channel "
        f"{relative_error(first.per_channel)}: {_EXPLANATIONS[first.cause]}. "
        f"Among the {len(rows)} worst groups the cause is {_listed(counts)}."
    )


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
