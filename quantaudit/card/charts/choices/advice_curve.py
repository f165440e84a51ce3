"""What an advised recipe trades: share of MACs that keep the recipe's format against the KL, as simulated."""

from __future__ import annotations

from typing import Any

import altair as alt

from quantaudit.card.charts import theme
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.schema import AdviceInfo, AdvicePoint
from quantaudit.card.views.card_view import CardView


def data(advice: AdviceInfo) -> list[dict[str, Any]]:
    """One row for each point with a KL above zero."""
    roles = [
        ("as written", [advice.before]),
        ("everywhere alike", advice.references),
        ("best mixed recipe", advice.curve),
        ("advised", [advice.advised]),
    ]
    return [_row(role, point) for role, points in roles for point in points if point.kl and point.kept is not None]


def chart(view: CardView) -> AnyChart | None:
    """The curve of the latest advice, with what was written, the alternatives and the choice; None without advice."""
    if not view.card.advice:
        return None
    advice = view.card.advice[-1]
    rows = data(advice)
    if not rows:
        return None
    low, high = theme.decades(row["kl"] for row in rows)
    base = alt.Chart(theme.rows_of(rows)).encode(
        x=alt.X(
            "kept:Q",
            title="share of MACs in the recipe’s own format",
            axis=alt.Axis(format="%", tickCount=10),
            scale=alt.Scale(domain=[0, 1.02], nice=False),
        ),
        y=alt.Y("kl:Q", title="KL, nats per token", scale=theme.log_scale(low, high), axis=theme.log_axis(low, high)),
    )
    line = base.transform_filter("datum.role == 'best mixed recipe'").mark_line(strokeWidth=1.4, opacity=0.7)
    marks = base.mark_point(size=70, filled=True, opacity=0.95).encode(
        color=theme.color("role", rows),
        shape=theme.shape("role", rows),
        tooltip=theme.tooltip(name="recipe", kept_text="MACs kept", kl_text="KL", top1="top-1", what="groups"),
    )
    budget = (
        alt.Chart(theme.rows_of([{"kl": advice.budget}]))
        .mark_rule(strokeDash=[4, 3], opacity=0.6)
        .encode(y=alt.Y("kl:Q"))
    )
    layers: list[Any] = [line, marks.properties(name="choices")]
    if advice.budget:
        layers.append(budget)
    return alt.layer(*layers).properties(width="container", height=300, description=description(advice))


def description(advice: AdviceInfo) -> str:
    """The chart in words: the KL as written and as advised."""
    before = "no finite KL" if advice.before.kl is None else f"a KL of {advice.before.kl:.3g}"
    after = "no finite KL" if advice.advised.kl is None else f"{advice.advised.kl:.3g}"
    return (
        f"KL against the share of MACs that keep their format: {before} as written, {after} as advised with "
        f"{advice.advised.kept or 0.0:.0%} kept"
    )


def _row(role: str, point: AdvicePoint) -> dict[str, Any]:
    return {
        "role": role,
        "name": point.name,
        "kept": point.kept,
        "kl": point.kl,
        "kept_text": f"{point.kept or 0.0:.1%}",
        "kl_text": f"{point.kl:.4f} ± {point.kl_stderr or 0.0:.1g}",
        "top1": "—" if point.top1 is None else f"{point.top1:.1%}",
        "what": ", ".join(f"{count} {option.replace('_', ' ')}" for option, count in point.options.items()),
    }
