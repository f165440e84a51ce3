"""What an advised recipe trades: share of MACs that keep the recipe's format against the KL, as simulated."""

from __future__ import annotations

from typing import Any

import altair as alt

from quantaudit.card.charts import theme as looks
from quantaudit.card.schema import AdviceInfo, Card
from quantaudit.card.sections.advice import points


def advice_curve(card: Card) -> alt.LayerChart | alt.FacetChart | None:
    """The curve of the latest advice, with what was written, the alternatives and the choice; None without advice."""
    if not card.advice:
        return None
    advice = card.advice[-1]
    data = points(advice)
    if not data:
        return None
    low, high = looks.decades(row["kl"] for row in data)
    base = alt.Chart(alt.InlineData(values=data)).encode(
        x=alt.X(
            "kept:Q",
            title="share of MACs in the recipe’s own format",
            axis=alt.Axis(format="%", tickCount=10),
            scale=alt.Scale(domain=[0, 1.02], nice=False),
        ),
        y=alt.Y("kl:Q", title="KL, nats per token", scale=looks.log_scale(low, high), axis=looks.log_axis(low, high)),
    )
    line = base.transform_filter("datum.role == 'best mixed recipe'").mark_line(strokeWidth=1.4, opacity=0.7)
    marks = base.mark_point(size=70, filled=True, opacity=0.95).encode(
        color=looks.colour("role", data),
        shape=looks.shape("role", data),
        tooltip=looks.tooltip(name="recipe", kept_text="MACs kept", kl_text="KL", top1="top-1", what="groups"),
    )
    budget = (
        alt.Chart(alt.InlineData(values=[{"kl": advice.budget}]))
        .mark_rule(strokeDash=[4, 3], opacity=0.6)
        .encode(y=alt.Y("kl:Q"))
    )
    layers: list[Any] = [line, marks.properties(name="choices")]
    if advice.budget:
        layers.append(budget)
    return alt.layer(*layers).properties(width="container", height=300, description=_description(advice))


def _description(advice: AdviceInfo) -> str:
    before = "no finite KL" if advice.before.kl is None else f"a KL of {advice.before.kl:.3g}"
    after = "no finite KL" if advice.advised.kl is None else f"{advice.advised.kl:.3g}"
    return (
        f"KL against the share of MACs that keep their format: {before} as written, {after} as advised with "
        f"{advice.advised.kept or 0.0:.0%} kept"
    )
