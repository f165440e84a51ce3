"""The recipes that every simulation scores: each scheme on all groups, and static scales with dynamic exceptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import GroupRow

MIXED = "int8_static_worst_dynamic"
"""The recipe that keeps static scales except where most of the damage is done."""
MIXED_SHARE = 0.95


def baseline_plans(
    groups: Sequence[Group],
    schemes: Sequence[Scheme],
    rows: Sequence[GroupRow],
    qparams: Mapping[str, Mapping[str, QParams | None]],
) -> list[Plan]:
    """One plan for each scheme, and the mixture where both of its schemes are there. groups: all to be quantized.

    rows: damage by group and scheme. qparams: by scheme name, then by group name, for static schemes.
    """
    plans = [_uniform(scheme, groups, qparams[scheme.name]) for scheme in schemes]
    if INT8_STATIC in schemes and INT8_DYNAMIC in schemes:
        plans.append(_mixed(groups, rows, qparams[INT8_STATIC.name]))
    return plans


def worst_groups(rows: Sequence[GroupRow], scheme: str, share: float) -> list[str]:
    """The fewest groups that together hold `share` of a scheme's damage, worst first."""
    damages = sorted(
        ((row.damage, row.group) for row in rows if row.scheme == scheme and row.damage is not None), reverse=True
    )
    total, held, chosen = sum(damage for damage, _ in damages), 0.0, []
    for damage, group in damages:
        if held >= share * total:
            break
        chosen.append(group)
        held += damage
    return chosen


def _uniform(scheme: Scheme, groups: Sequence[Group], qparams: Mapping[str, QParams | None]) -> Plan:
    # lm_head is not among the groups: every toolkit recipe leaves it alone.
    return Plan.of_groups(
        name=scheme.name,
        title=f"{scheme.title}, lm_head left alone",
        groups=groups,
        schemes={group.name: scheme for group in groups},
        qparams=qparams,
    )


def _mixed(groups: Sequence[Group], rows: Sequence[GroupRow], qparams: Mapping[str, QParams | None]) -> Plan:
    """Static scales where they do little harm, dynamic ones for the groups that hold nearly all the damage."""
    worst = set(worst_groups(rows, INT8_STATIC.name, MIXED_SHARE))
    return Plan.of_groups(
        name=MIXED,
        title=f"{INT8_STATIC.title}, the {len(worst)} worst groups dynamic per-token",
        groups=groups,
        schemes={group.name: INT8_DYNAMIC if group.name in worst else INT8_STATIC for group in groups},
        qparams=qparams,
    )
