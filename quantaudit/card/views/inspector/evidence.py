"""What a card holds of one fused group, looked up once for all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantaudit.card.schema import SiteRow
from quantaudit.card.text import visible
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.groups import input_of
from quantaudit.quant.grid import Grid, grid_of
from quantaudit.simulate.records import GranularityRow, GroupRow, SchemeInfo, TensorErrorRow
from quantaudit.simulate.sensitivity.ranking import Measure, measure_of, weight

WORD_LIMIT = 60
"""Characters of names within sentences and tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardTables:
    """A card's rows by group. ranked: the scheme that groups are ranked under; total: what they cost together."""

    rows: Mapping[str, Sequence[GroupRow]]
    errors: Mapping[str, Sequence[TensorErrorRow]]
    granularity: Mapping[str, GranularityRow]
    schemes: Mapping[str, SchemeInfo]
    ranked: SchemeInfo | None
    measure: Measure
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEvidence:
    """One group. rank: its place among all, from 1. row: under the scheme that ranks. error, grid: of its input under
    the static scheme that is shown.
    """

    group: str
    rank: int
    of: int
    row: GroupRow | None
    site: SiteRow | None
    error: TensorErrorRow | None
    grid: Grid | None


def tables_of(view: CardView) -> CardTables:
    """Of a card with or without a simulation."""
    rows: dict[str, list[GroupRow]] = {}
    errors: dict[str, list[TensorErrorRow]] = {}
    simulation, ranked = view.card.simulation, view.static or view.dynamic
    for row in simulation.groups if simulation else ():
        rows.setdefault(row.group, []).append(row)
    for error in simulation.sites if simulation else ():
        errors.setdefault(error.group, []).append(error)
    under = [row for several in rows.values() for row in several if ranked and row.scheme == ranked.name]
    measure = measure_of(under)
    return CardTables(
        rows=rows,
        errors=errors,
        granularity={row.group: row for row in (simulation.granularity if simulation else ())},
        schemes={scheme.name: scheme for scheme in (simulation.schemes if simulation else ())},
        ranked=ranked,
        measure=measure,
        total=sum(weight(row, measure) for row in under),
    )


def evidence_of(view: CardView, tables: CardTables, group: str, rank: int) -> GroupEvidence:
    """What is known of the group at one place of `view.groups`."""
    error = view.tensor_errors.get(group)
    return GroupEvidence(
        group=group,
        rank=rank,
        of=len(view.groups),
        row=next((row for row in tables.rows[group] if tables.ranked and row.scheme == tables.ranked.name), None),
        site=view.sites.get(input_of(group)),
        error=error,
        grid=None if error is None else grid_under(tables, error),
    )


def grid_under(tables: CardTables, error: TensorErrorRow) -> Grid | None:
    """The grid of one row of errors. Of a scheme that was not simulated, the format is the one that its name says."""
    scheme = tables.schemes.get(error.scheme)
    named = {"type": "float"} if error.scheme.startswith("fp8") else {}
    return grid_of(named if scheme is None else scheme.input_activations or {}, error.scale, error.zero_point)


def title_of(view: CardView, scheme: str) -> str:
    """What a scheme is called, simulated or not."""
    fallback = scheme.replace("_", " ").replace("int8", "INT8").replace("fp8 e4m3", "FP8 E4M3")
    return visible(view.titles.get(scheme, fallback), limit=WORD_LIMIT)
