"""Palette, shapes, scales, axes and paper: what all charts have in common. Knows nothing of cards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import altair as alt

AnyChart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart

PALETTE: dict[str, str] = {
    "down_proj": "#d55e00",
    "o_proj": "#008a64",
    "qkv_proj": "#0072b2",
    "gate_up_proj": "#b8609a",
    "residual": "#767676",
    "attention output": "#2f8fb5",
    "mlp output": "#a87900",
    "gate": "#9a5b4f",
    "router logits": "#7d63c9",
}
"""Okabe and Ito's colors, darkened or lightened to 3:1 on white and on near-black."""

NEUTRAL, FAINT = "#808080", "#8080804d"
"""Seen on both papers: for symbols without a color, and for axes and grid."""
SPARE_COLORS = ("#5f7d2a", "#b5485d", "#4a7fd6", "#8a6fb0", "#3f8f8a")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")

# Powers of ten as people write them; Vega's own formats give "1e+0" or "1µ".
POWER_LABEL = "datum.value >= 0.001 ? format(datum.value, ',.3~r') : format(datum.value, '.2~e')"


SYSTEM_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
IMAGE_FONTS = "Liberation Sans"
"""The one that vl-convert carries with it: images must not depend on what is installed."""

UNDER_CHART = "width - 24"
"""What labels of a legend of one column may take beside their symbols, in a font of any width: an expression."""


def rows_of(rows: Iterable[Mapping[str, Any]]) -> alt.InlineData:
    """A chart's data. Every step of a chart copies all its lists and dictionaries, but no tuple."""
    return alt.InlineData(values=tuple(rows))


def paper(ink: str, faint: str, background: str | None, font: str = SYSTEM_FONTS) -> dict[str, Any]:
    """Vega-Lite config for one paper: `ink` for text, `faint` for axes and grid, `background` None for transparent."""
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
    axis = {"gridColor": faint, "domainColor": faint, "tickColor": faint, "titlePadding": 10}
    legend = text | {
        "labelFontSize": 12,
        "orient": "bottom",
        "columns": 4,
        "symbolSize": 60,
        "symbolStrokeWidth": 1.6,
        "labelLimit": 260,
        # Symbols of legends that encode no color.
        "symbolBaseFillColor": NEUTRAL,
        "symbolBaseStrokeColor": NEUTRAL,
        # Legends below one another: side by side they would widen a chart beyond a narrow page.
        "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 10}},
    }
    return {
        "background": background,
        "font": font,
        "view": {"stroke": None},
        "axis": text | axis,
        "legend": legend,
        "text": {"color": ink, "fontSize": 11},
    }


def color(field: str, data: list[dict[str, Any]]) -> alt.Color:
    """One color for each name in `field`: the palette's, or the next spare one."""
    names = ordered(row[field] for row in data)
    spare = iter(SPARE_COLORS * (len(names) // len(SPARE_COLORS) + 1))
    colors = [PALETTE.get(name.removesuffix(" input")) or next(spare) for name in names]
    return alt.Color(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=colors))


def shape(field: str, data: list[dict[str, Any]]) -> alt.Shape:
    """One symbol for each name in `field`."""
    names = ordered(row[field] for row in data)
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(names))]
    return alt.Shape(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=shapes))


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct names: those of the palette first, in its order, then the others by name."""
    rank = {name: index for index, name in enumerate(PALETTE)}
    return sorted(set(names), key=lambda name: (rank.get(name.removesuffix(" input"), len(rank)), name))


def tooltip(**titles: str) -> list[alt.Tooltip]:
    """Fields of a row and what a tooltip calls them, in this order."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def decades(values: Iterable[float]) -> tuple[float, float]:
    """The axis of a logarithmic scale: a little beyond the smallest and the largest value, at least one decade wide."""
    logs = [math.log10(value) for value in values]
    low, high = max(min(logs) - 0.15, -300.0), min(max(logs) + 0.25, 300.0)
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    return 10**low, 10**high


def powers(low: float, high: float) -> list[float]:
    """Powers of ten within an axis, thinned to at most nine."""
    exponents = list(range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1))
    step = max(1, math.ceil(len(exponents) / 9))
    return [10.0**exponent for exponent in exponents[::step]]


def ticks_between(low: float, high: float) -> list[float]:
    """What a color bar of exactly this range is labeled at: powers of ten, their doubles and halves, or its ends."""
    powers_within = [tick for tick in powers(low, high) if low <= tick <= high]
    if len(powers_within) > 1:
        return powers_within
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    finer = [times * 10.0**exponent for exponent in exponents for times in (1, 2, 5)]
    within = [tick for tick in finer if low <= tick <= high]
    return within if len(within) > 1 else [low, high]


def log_scale(low: float, high: float) -> alt.Scale:
    """A logarithmic scale over exactly this range."""
    return alt.Scale(type="log", domain=[low, high], nice=False)


def log_axis(low: float, high: float) -> alt.Axis:
    """The axis of `log_scale`, labeled at powers of ten."""
    return alt.Axis(values=powers(low, high), labelExpr=POWER_LABEL)


_STEPS = tuple(times * scale for scale in (1, 10, 100, 1000) for times in (1, 2, 5))


def layer_ticks(first: int, last: int) -> list[int]:
    """Some whole numbers, all where there are few, the first and the last among them and none too near these."""
    step = next(step for step in _STEPS if last - first <= 12 * step)
    between = [
        tick for tick in range(first - first % step, last, step) if 2 * (tick - first) >= step <= 2 * (last - tick)
    ]
    return sorted({first, *between, last})


def layer_x(rows: list[dict[str, Any]]) -> alt.X:
    """The horizontal axis of charts by layer: whole numbers, half a layer of room at both ends."""
    layers = [row["layer"] for row in rows]
    axis = alt.Axis(format="d", grid=False, values=layer_ticks(min(layers), max(layers)))
    scale = alt.Scale(domain=[min(layers) - 0.5, max(layers) + 0.5], nice=False, zero=False)
    return alt.X("layer:Q", title="layer", axis=axis, scale=scale)
