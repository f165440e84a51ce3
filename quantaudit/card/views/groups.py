"""Fused groups: what quantizing each of them alone does, next to the statistics of its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantaudit.card.schema import Card, SiteRow
from quantaudit.simulate.records import GranularityRow, GroupRow, SchemeInfo, TensorErrorRow
from quantaudit.simulate.sensitivity.ranking import worst_first

CAUSES = {"outlier channel": "outlier channel", "massive token": "massive token", "either": "token or channel"}
"""Cause of coarse scales → what a table says. Where finer scales of either kind help as much, both did the harm."""
GRANULARITIES_SHOWN = 10
"""Groups whose granularities are compared, worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """One fused group under the static scheme, with the errors of its input and the damage under other schemes.

    kl, sampled: as in GroupRow. cause: why one scale is too coarse for its input; None where finer scales would save
    little, or none were tried.
    """

    group: str
    projection: str
    layer: int | None
    amax: float | None
    median: float | None
    sqnr_db: float | None
    bulk_sqnr_db: float | None
    relative_mae: float | None
    zeroed_fraction: float | None
    effective_levels: float | None
    damage: float | None
    damage_weights_only: float | None
    damage_dynamic: float | None
    price: float | None
    price_dynamic: float | None
    kl: float | None
    kl_stderr: float | None
    sampled: bool
    cause: str | None


def input_of(group: str) -> str:
    """Name of the site that a fused group reads."""
    return f"{group}.input"


def projections(card: Card) -> dict[str, str]:
    """Fused group → projection, of every simulated group."""
    groups = card.simulation.groups if card.simulation else []
    return {row.group: row.projection for row in groups}


def effects(card: Card, scheme: SchemeInfo | None) -> dict[str, GroupRow]:
    """Fused group → its row under one scheme."""
    if card.simulation is None or scheme is None:
        return {}
    return {row.group: row for row in card.simulation.groups if row.scheme == scheme.name}


def tensor_errors(card: Card, scheme: SchemeInfo | None) -> dict[str, TensorErrorRow]:
    """Fused group → errors of its input: under `scheme` and by its own observer where there are such rows."""
    if card.simulation is None:
        return {}
    chosen: dict[str, TensorErrorRow] = {}

    def fitness(row: TensorErrorRow) -> tuple[bool, bool]:
        return (
            scheme is not None and row.scheme == scheme.name,
            scheme is not None and row.observer == scheme.observer,
        )

    for row in card.simulation.sites:
        if row.group not in chosen or fitness(row) > fitness(chosen[row.group]):
            chosen[row.group] = row
    return chosen


def causes(card: Card) -> dict[str, str]:
    """Fused group → why one scale is too coarse for its input, in words; none where finer scales would hardly help."""
    rows = card.simulation.granularity if card.simulation else []
    return {row.group: CAUSES[row.cause] for row in rows if row.cause in CAUSES}


def group_lines(
    rows: Mapping[str, GroupRow],
    *,
    dynamic: Mapping[str, GroupRow],
    sites: Mapping[str, SiteRow],
    errors: Mapping[str, TensorErrorRow],
    causes: Mapping[str, str],
) -> list[GroupLine]:
    """One line for each of `rows`, those that hurt most first, those outside the blocks last. All mappings but `sites`:
    by group.

    dynamic: the same groups under a scheme with dynamic activation scales. sites: by site name.
    """
    lines = [
        _group_line(
            row, sites.get(input_of(group)), errors.get(group), dynamic=dynamic.get(group), cause=causes.get(group)
        )
        for group, row in rows.items()
    ]
    by_name = sorted(lines, key=lambda line: line.group)
    ranked = worst_first(line for line in by_name if line.layer is not None)
    named = {line.group for line in ranked}
    return ranked + [line for line in by_name if line.group not in named]


def worst_granularities(card: Card, lines: Sequence[GroupLine]) -> list[GranularityRow]:
    """The first GRANULARITIES_SHOWN comparisons with all three errors, of groups with damage, as `lines` order them."""
    compared = {row.group: row for row in (card.simulation.granularity if card.simulation else [])}
    rows = [compared[line.group] for line in lines if line.damage and line.group in compared]
    complete = [row for row in rows if None not in (row.per_tensor, row.per_token, row.per_channel)]
    return complete[:GRANULARITIES_SHOWN]


def _group_line(
    row: GroupRow, site: SiteRow | None, error: TensorErrorRow | None, *, dynamic: GroupRow | None, cause: str | None
) -> GroupLine:
    return GroupLine(
        group=row.group,
        projection=row.projection,
        layer=row.layer,
        amax=site.amax if site else None,
        median=site.median if site else None,
        sqnr_db=error.sqnr_db if error else None,
        bulk_sqnr_db=error.bulk_sqnr_db if error else None,
        relative_mae=error.relative_mae if error else None,
        zeroed_fraction=error.zeroed_fraction if error else None,
        effective_levels=error.effective_levels if error else None,
        damage=row.damage,
        damage_weights_only=row.damage_weights_only,
        damage_dynamic=dynamic.damage if dynamic else None,
        price=row.price,
        price_dynamic=dynamic.price if dynamic else None,
        kl=row.kl,
        kl_stderr=row.kl_stderr,
        sampled=row.sampled,
        cause=cause,
    )
