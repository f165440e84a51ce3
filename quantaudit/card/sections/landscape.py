"""The published peaks that a card is placed among."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.card.published.records import published
from quantaudit.card.schema import Landscape, PublishedPeak, SiteRow
from quantaudit.card.text import number
from quantaudit.provenance import COMPONENTS

SOURCE = published().source

PUBLISHED: tuple[PublishedPeak, ...] = tuple(
    PublishedPeak(model=row.model, peak=largest.value, site=largest.site)
    for row in published().models
    if (largest := row.largest()) is not None
)
"""Signed value of each model's largest activation at its site, ordered by family and size."""


def compared_site(sites: Sequence[SiteRow]) -> SiteRow | None:
    """Where the largest activation is among the kinds of tensors that the published peaks are of; None for no finite
    one. Inputs of Linears are none of them.
    """
    measured = [site for site in sites if site.kind in COMPONENTS and site.amax is not None]
    return max(measured, key=lambda site: site.amax or 0.0, default=None)


def place(peak: float | None, *, of: str = "A peak") -> Landscape:
    """Rank of |peak| among the published magnitudes (1 = larger than all; ties share the better rank), and a reading.

    `peak` is signed or not, in the units of the activation; None (nothing finite was measured) has no rank. of: what it
    is called.
    """
    if peak is None:
        reading = "No finite peak was measured, so this model cannot be placed among published ones."
        return Landscape(source=SOURCE, published=list(PUBLISHED), rank=None, reading=reading)
    magnitude = abs(peak)
    larger = sum(abs(row.peak) > magnitude for row in PUBLISHED)
    return Landscape(source=SOURCE, published=list(PUBLISHED), rank=larger + 1, reading=_reading(magnitude, of))


def _reading(magnitude: float, of: str) -> str:
    """One sentence: how many published peaks are smaller, and the nearest neighbors on both sides."""
    smaller = [row for row in PUBLISHED if abs(row.peak) < magnitude]
    not_smaller = [row for row in PUBLISHED if abs(row.peak) >= magnitude]
    below = max(smaller, key=lambda row: abs(row.peak), default=None)
    above = min(not_smaller, key=lambda row: abs(row.peak), default=None)
    peak, count = f"{of} of {number(magnitude)}", len(PUBLISHED)
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
