"""All charts of a card as Vega-Lite specifications, in the order of the card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from quantaudit.card.charts import (
    drift_by_layer,
    error_by_granularity,
    layer_map,
    peak_against_damage,
    peaks_by_expert,
    peaks_by_layer,
    zeroed_by_layer,
)
from quantaudit.card.charts.choices import advice_curve, frontier
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.views.card_view import CardView

CHARTS = {
    "peaks_by_layer": peaks_by_layer.chart,
    "peaks_by_expert": peaks_by_expert.chart,
    "peak_against_damage": peak_against_damage.chart,
    "layer_map": layer_map.chart,
    "zeroed_by_layer": zeroed_by_layer.chart,
    "error_by_granularity": error_by_granularity.chart,
    "drift_by_layer": drift_by_layer.chart,
    "frontier": frontier.chart,
    "advice_curve": advice_curve.chart,
}
"""Chart name → what draws it, or returns None where the card has no data for it."""


def specifications(view: CardView) -> dict[str, dict[str, Any]]:
    """Chart name → Vega-Lite specification, of the charts that a card has data for."""
    specs = {name: drawn(draw, view) for name, draw in CHARTS.items()}
    return {name: spec for name, spec in specs.items() if spec is not None}


def drawn(draw: Callable[[CardView], AnyChart | None], view: CardView) -> dict[str, Any] | None:
    """The specification of one chart; None where the card has no data for it."""
    # Whether charts are valid does not depend on the card: tests see to it, and each validation takes long here.
    with debug_mode(False):
        chart = draw(view)
    return None if chart is None else specification(chart)


def specification(chart: AnyChart) -> dict[str, Any]:
    """Vega-Lite specification, whatever theme the process has enabled, and without a schema address."""
    with alt.theme.enable("none"):
        spec: dict[str, Any] = chart.to_dict(validate=False)
    # The address names Altair's Vega-Lite; the renderer brings its own and would warn about the difference.
    del spec["$schema"]
    if "datasets" in spec:
        spec["datasets"] = {name: list(rows) for name, rows in spec["datasets"].items()}
    return spec
