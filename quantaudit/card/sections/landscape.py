"""The published peaks that a card is placed among."""

from __future__ import annotations

from quantaudit.card.published.records import published
from quantaudit.card.schema import Landscape, PublishedPeak
from quantaudit.card.text import number

SOURCE = published().source

PUBLISHED: tuple[PublishedPeak, ...] = tuple(
    PublishedPeak(model=row.model, peak=largest.value, site=largest.site)
    for row in published().models
    if (largest := row.largest()) is not None
)
"""Signed value of each model's largest activation at its site, ordered by family and size."""


def place(peak: float | None) -> Landscape:
    """Rank of |peak| among the published magnitudes (1 = larger than all; ties share the better rank), and a reading.

    `peak` is signed or not, in the units of the activation; None (nothing finite was measured) has no rank.
    """
    if peak is None:
        reading = "No finite peak was measured, so this model cannot be placed among published ones."
        return Landscape(source=SOURCE, published=list(PUBLISHED), rank=None, reading=reading)
    magnitude = abs(peak)
    larger = sum(abs(row.peak) > magnitude for row in PUBLISHED)
    return Landscape(source=SOURCE, published=list(PUBLISHED), rank=larger + 1, reading=_reading(magnitude))


def _reading(magnitude: float) -> str:
    """One sentence: how many published peaks are smaller, and the nearest neighbors on both sides."""
    smaller = [row for row in PUBLISHED if abs(row.peak) < magnitude]
    not_smaller = [row for row in PUBLISHED if abs(row.peak) >= magnitude]
    below = max(smaller, key=lambda row: abs(row.peak), default=None)
    above = min(not_smaller, key=lambda row: abs(row.peak), default=None)
    peak, count = f"A peak of {number(magnitude)}", len(PUBLISHED)
    if below and above:
        place = f"it stands between {_named(below)} and {_named(above)}"
        return f"{peak} is larger than {len(smaller)} of the {count} published peaks: {place}."
    if below:
        return f"{peak} is larger than all {count} published peaks: the largest of them is {_named(below)}."
    if above and abs(above.peak) == magnitude:
        return f"{peak} is as large as the smallest of the {count} published peaks, {_named(above)}."
    return f"{peak} is smaller than all {count} published peaks" + (
        f": the smallest of them is {_named(above)}." if above else "."
    )


def _named(row: PublishedPeak) -> str:
    return f"{row.model} ({number(abs(row.peak))})"
