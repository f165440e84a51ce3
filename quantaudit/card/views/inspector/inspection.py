"""Everything that a page shows of one fused group. All texts are final: the page adds nothing, and marks nothing up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quantaudit.card.text import decibels, number, percent, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.inspector import sentences
from quantaudit.card.views.inspector.evidence import (
    WORD_LIMIT,
    CardTables,
    GroupEvidence,
    evidence_of,
    grid_under,
    tables_of,
    title_of,
)

NAME_LIMIT = 240
"""Characters of a group's name."""
HEADINGS = ("What it costs", "What to do", "Under one scale", "Its peak", "Finer scales")
OBSERVERS = {
    "absolute_maximum": "largest value (static_minmax)",
    "absolute_maximum_127": "largest value as code 127",
    "minmax": "moving average (minmax)",
    "percentile_99.9": "99.9% of the values",
    "percentile_99.99": "99.99% of the values",
    "mse": "least squared error (mse)",
}
"""Observer → where it clips, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One group as text.

    facts: a text for each of HEADINGS, empty where nothing is known. clips: rows of (clipped at, or another scheme,
    reaches, step, to zero, SQNR, SQNR without peaks, clipped). costs: rows of (scheme, KL, block damage). tensor: the
    row that the chart is drawn from; None where the card does not hold the distribution.
    """

    name: str
    where: str
    facts: tuple[str, ...]
    clips: tuple[tuple[str, ...], ...]
    costs: tuple[tuple[str, ...], ...]
    tensor: dict[str, Any] | None


def inspections(view: CardView) -> list[Inspection]:
    """Every fused group, in the order of `view.groups`."""
    tables = tables_of(view)
    return [
        _inspection(view, tables, evidence_of(view, tables, line.group, rank))
        for rank, line in enumerate(view.groups, start=1)
    ]


def packed(rows: Sequence[Inspection]) -> dict[str, Any]:
    """As JSON for a page: names of clips and schemes once, then by their place."""
    names = list(dict.fromkeys(row[0] for item in rows for row in (*item.clips, *item.costs)))
    place = {name: index for index, name in enumerate(names)}

    def short(lines: Sequence[tuple[str, ...]]) -> list[list[int | str]]:
        return [[place[line[0]], *line[1:]] for line in lines]

    groups = [[row.name, row.where, row.facts, short(row.clips), short(row.costs), row.tensor] for row in rows]
    return {"headings": HEADINGS, "names": names, "groups": groups}


def _inspection(view: CardView, tables: CardTables, given: GroupEvidence) -> Inspection:
    return Inspection(
        name=visible(given.group, limit=NAME_LIMIT),
        where=sentences.where(view, given),
        facts=(
            sentences.cost(view, tables, given),
            sentences.remedy(view, tables, given),
            sentences.under_one_scale(view, given),
            sentences.peak(given),
            sentences.finer_scales(tables, given),
        ),
        clips=tuple(_clips(view, tables, given)),
        costs=tuple(_costs(view, tables, given)),
        tensor=_tensor(given),
    )


def _clips(view: CardView, tables: CardTables, given: GroupEvidence) -> Iterator[tuple[str, ...]]:
    """Of the scheme that is shown every observer; the other static schemes by their own, else by the largest value."""
    for error in tables.errors.get(given.group, ()):
        scheme, grid = tables.schemes.get(error.scheme), grid_under(tables, error)
        own = (scheme.observer if scheme else None) or "absolute_maximum"
        same = given.error is not None and error.scheme == given.error.scheme
        if grid is None or not (same or error.observer == own):
            continue
        clip = OBSERVERS.get(error.observer, visible(error.observer, limit=WORD_LIMIT))
        yield (
            clip if same else title_of(view, error.scheme),
            number(grid.largest),
            number(grid.step),
            percent(error.zeroed_fraction),
            decibels(error.sqnr_db),
            decibels(error.bulk_sqnr_db),
            percent(error.clip_rate),
        )


def _costs(view: CardView, tables: CardTables, given: GroupEvidence) -> Iterator[tuple[str, ...]]:
    for row in tables.rows[given.group]:
        if row.price is not None or row.damage is not None:
            yield title_of(view, row.scheme), number(row.price), number(row.damage)


def _tensor(given: GroupEvidence) -> dict[str, Any] | None:
    """Counts by bin, and what is marked on the axis; marks are left out where there is no static scale."""
    site, error, grid = given.site, given.error, given.grid
    held = site.magnitudes if site else None
    if site is None or held is None:
        return None
    row: dict[str, Any] = {
        "first": held.first,
        "parts": held.parts,
        "total": held.zeros + held.below + sum(held.counts),
        "counts": held.counts,
        "peak": site.amax,
        "peak_text": f"peak {number(site.amax)}",
    }
    if held.zeros:
        row["zeros"] = percent(held.zeros / row["total"])
    if grid is not None and error is not None:
        row |= {"zeroed": grid.zeroed, "zeroed_text": f"rounds to zero: {percent(error.zeroed_fraction)}"}
        row |= {"largest": grid.largest, "largest_text": f"scale reaches {number(grid.largest)}"}
        if grid.even:
            row |= {"step": grid.step, "step_text": f"one step, {number(grid.step)}"}
    return row
