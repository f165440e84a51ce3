"""Card → the rows that charts draw. Names are made visible and cut, numbers for tooltips are formatted.

A logarithmic axis holds neither null nor zero: such rows are left out; the damage map gives a zero the lowest shade.
"""

from __future__ import annotations

import math
from typing import Any

from quantaudit.card.schema import Card, Peak
from quantaudit.card.text import ABSENT, decibels, number, percent, visible
from quantaudit.card.views import groups as rows

QUANTIZED, UNQUANTIZED = "reaches a quantizer", "not quantized"
_LABELLED_POINTS = 3


def peaks(card: Card) -> list[dict[str, Any]]:
    """One row for each site of a layer with a positive peak. amax in the tensor's units."""
    names = rows.projections(card)
    data = []
    for site in card.sites:
        if site.layer is None or not site.amax or site.amax < 0:
            continue
        first = next((peak for peak in site.peaks if peak.value is not None), None)
        data.append(
            {
                "site": visible(site.name),
                "layer": site.layer,
                "series": visible(rows.series_of(site, names), limit=40),
                "role": QUANTIZED if rows.reaches_quantizer(site) else UNQUANTIZED,
                "amax": site.amax,
                "peak": number(site.amax),
                "median": number(site.median),
                "where": f"{_place(first)}, channel {first.channel}" if first else ABSENT,
            }
        )
    return sorted(data, key=lambda row: (row["series"], row["layer"], row["site"]))


def _place(peak: Peak) -> str:
    return f"position {peak.position}" if peak.position is not None else peak.token_kind or ABSENT


def damages(card: Card) -> list[dict[str, Any]]:
    """One row for each fused group and scheme with a positive damage, its input's peak beside it."""
    titles, sites, errors = rows.scheme_titles(card), rows.sites_by_name(card), rows.tensor_errors(card)
    data = []
    for row in card.simulation.groups if card.simulation else []:
        site = sites.get(rows.input_of(row.group))
        if site is None or not site.amax or not row.damage or row.damage < 0:
            continue
        error = errors.get(row.group)
        data.append(
            {
                "group": visible(row.group),
                "label": visible(row.projection if row.layer is None else f"L{row.layer} {row.projection}", limit=28),
                "projection": visible(row.projection, limit=40),
                "scheme": visible(titles[row.scheme]),
                "amax": site.amax,
                "damage": row.damage,
                "peak": number(site.amax),
                "damage_text": number(row.damage),
                "weights": number(row.damage_weights_only),
                "sqnr": f"{decibels(error.sqnr_db)} dB" if error else ABSENT,
            }
        )
    return data


def heat(card: Card) -> list[dict[str, Any]]:
    """Rows of the static scheme; a damage of zero takes the shade of the smallest one that is not zero."""
    lines = [line for line in rows.group_lines(card) if line.layer is not None and line.damage is not None]
    positive = [line.damage for line in lines if line.damage]
    if not positive:
        return []
    return [
        {
            "group": visible(line.group),
            "layer": line.layer,
            "projection": visible(line.projection, limit=40),
            "shade": line.damage or min(positive),
            "damage_text": number(line.damage),
            "weights": number(line.damage_weights_only),
            "peak": number(line.amax),
        }
        for line in sorted(lines, key=lambda line: (line.layer or 0, line.group))
    ]


def zeroed(card: Card) -> list[dict[str, Any]]:
    """One row for each tensor of a layer: its zeroed fraction, 0 to 1, under the static scheme."""
    return [
        {
            "group": visible(line.group),
            "layer": line.layer,
            "projection": visible(line.projection, limit=40),
            "zeroed": line.zeroed_fraction,
            "zeroed_text": percent(line.zeroed_fraction),
            "levels": number(line.effective_levels),
            "sqnr": f"{decibels(line.sqnr_db)} dB",
            "peak": number(line.amax),
        }
        for line in sorted(rows.group_lines(card), key=lambda line: (line.layer or 0, line.group))
        if line.layer is not None and line.zeroed_fraction is not None
    ]


def drifts(card: Card) -> list[dict[str, Any]]:
    """One row for each recipe and layer: how far the block's output has moved, where it has moved at all."""
    return [
        {
            "recipe": visible(recipe.title, limit=60),
            "layer": layer,
            "drift": drift,
            "drift_text": number(drift),
        }
        for recipe in (card.simulation.recipes if card.simulation else [])
        for layer, drift in enumerate(recipe.propagation)
        if drift
    ]


def drift_reading(card: Card) -> str:
    """One sentence on where the signal is lost, for the recipe that loses most; empty where nothing was measured."""
    recipes = [recipe for recipe in (card.simulation.recipes if card.simulation else []) if any(recipe.propagation)]
    if not recipes:
        return ""
    worst = max(recipes, key=lambda recipe: max(drift or 0.0 for drift in recipe.propagation))
    path = [0.0]
    for drift in worst.propagation:
        path.append(path[-1] if drift is None else drift)
    layer = max(range(len(worst.propagation)), key=lambda i: path[i + 1] - path[i])
    return (
        f"Under {visible(worst.title)} most is lost in layer {layer}, where the change rises "
        f"from {number(path[layer])} to {number(path[layer + 1])}; after the last layer it is {number(path[-1])}."
    )


def labels(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names for the most damaging points, one label where several of them nearly coincide.

    Each row gains `right`: whether it lies in the right half, so that its label can be written towards the middle.
    """
    if not points:
        return []
    x_low, x_high = _log_extent(points, "amax")
    y_low, y_high = _log_extent(points, "damage")
    placed: list[dict[str, Any]] = []
    for row in sorted(points, key=lambda row: -row["damage"])[:_LABELLED_POINTS]:
        x = (math.log10(row["amax"]) - x_low) / (x_high - x_low or 1)
        y = (math.log10(row["damage"]) - y_low) / (y_high - y_low or 1)
        near = next((other for other in placed if abs(other["x"] - x) < 0.3 and abs(other["y"] - y) < 0.06), None)
        if near is None:
            placed.append({**row, "x": x, "y": y, "right": x > 0.5})
        elif row["label"] not in near["label"].split(", "):
            near["label"] += f", {row['label']}"
    return placed


def _log_extent(points: list[dict[str, Any]], field: str) -> tuple[float, float]:
    logs = [math.log10(row[field]) for row in points]
    return min(logs), max(logs)
