"""Mixed recipes drawn at random, and the chart that sets prices against simulated KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from quantaudit.card.charts import theme
from quantaudit.card.charts.draw import specification
from quantaudit.card.charts.theme import AnyChart
from quantaudit.quant.schemes import Scheme

SINGLE, MIXED = "one group", "mixed recipe"
WITHIN = 0.35
"""How far an estimate may be from the simulated KL."""


def mixed_recipes(groups: Sequence[str], schemes: Sequence[Scheme], seed: int = 0) -> Iterator[dict[str, Scheme]]:
    """Random subsets of groups under random schemes, without end: what shares stay unquantized and go to each scheme is
    drawn again for every recipe, evenly over all such shares.
    """
    rng = np.random.default_rng(seed)
    while True:
        shares = rng.dirichlet(np.ones(len(schemes) + 1))
        picks = rng.choice(len(schemes) + 1, len(groups), p=shares)
        yield {name: schemes[pick] for name, pick in zip(groups, picks, strict=True) if pick < len(schemes)}


def calibration_chart(points: Sequence[dict[str, Any]]) -> AnyChart:
    """points: rows with `what` (SINGLE or MIXED), `estimate` and `kl`, both positive, in nats per token."""
    low, high = theme.decades([value for row in points for value in (row["estimate"], row["kl"])])
    scale, axis = theme.log_scale(low, high), theme.log_axis(low, high)
    dots = (
        alt.Chart(alt.InlineData(values=list(points)))
        .mark_point(size=48, filled=True, opacity=0.8)
        .encode(
            x=alt.X("kl:Q", title="simulated KL, nats per token", scale=scale, axis=axis),
            y=alt.Y("estimate:Q", title="estimated from prices, nats per token", scale=scale, axis=axis),
            color=alt.Color(
                "what:N", title=None, scale=alt.Scale(domain=[SINGLE, MIXED], range=["#0072b2", "#d55e00"])
            ),
            shape=alt.Shape("what:N", title=None, scale=alt.Scale(domain=[SINGLE, MIXED], range=["circle", "diamond"])),
        )
    )
    lines = [
        {"kl": x, "estimate": x * factor, "line": str(factor)}
        for factor in (1 - WITHIN, 1, 1 + WITHIN)
        for x in (low, high)
    ]
    rules = (
        alt.Chart(alt.InlineData(values=lines))
        .mark_line(color=theme.NEUTRAL, strokeDash=[3, 3], strokeWidth=1, clip=True)
        .encode(x="kl:Q", y="estimate:Q", detail="line:N")
    )
    return alt.layer(rules, dots).properties(width=420, height=420)


def write_chart(points: Sequence[dict[str, Any]], path: Path) -> None:
    """The chart as an SVG on white paper."""
    import vl_convert

    spec = specification(calibration_chart(points))
    config = theme.paper("#1f2328", "#d0d7de", "#ffffff", theme.IMAGE_FONTS)
    path.write_text(vl_convert.vegalite_to_svg(spec, config=config), encoding="utf-8")
