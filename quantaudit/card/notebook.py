"""Card → what a notebook shows of it: the verdict tiles and the layer map, as HTML without scripts or style sheets."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from quantaudit.card.schema import Card
from quantaudit.card.templates import html_environment, run
from quantaudit.card.views.card_view import CardView

_MAPS = ("layer_map", "peaks_by_layer")
"""The layer map: costs where schemes were simulated, else peaks."""
_TITLES = {"layer_map": "What each group costs", "peaks_by_layer": "Peak by layer"}
_COLORS = {"READY": "#176b32", "READY WITH CARE": "#805400", "NOT READY": "#b3201c", "INCONCLUSIVE": "#57606a"}
"""Paper of a badge with white letters: at least 4.5:1, whatever the notebook's own colors are."""


def render_notebook(card: Card) -> str:
    """A fragment that takes the notebook's own text color, so that it is read in a light and in a dark theme."""
    view = CardView(card)
    context = {"card": card, "view": view, "charts": {}, "colors": _COLORS, "map": _layer_map(view)}
    return run(html_environment(None), "card_notebook.html.j2", context)


def _layer_map(view: CardView) -> dict[str, Any] | None:
    from quantaudit.card.charts.draw import CHARTS, specification
    from quantaudit.card.vega.image import svg

    for name in _MAPS:
        chart = CHARTS[name](view)
        if chart is not None:
            spec = specification(chart)
            return {"title": _TITLES[name], "description": spec["description"], "svg": Markup(svg(spec))}
    return None
