"""The recipes that every simulation scores: each scheme on all groups, and static scales with dynamic exceptions."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.quantized.plan import Plan

MIXED = "int8_static_worst_dynamic"
"""The recipe that keeps static scales except where most of the damage is done."""
MIXED_SHARE = 0.95


def baseline_plans(experiment: Experiment, effects: Sequence[GroupEffect]) -> list[Plan]:
    """One plan for each scheme on all groups of the experiment, and the mixture where both of its schemes are there.

    effects: of those groups, for their damage.
    """
    plans = [_uniform(experiment, scheme) for scheme in experiment.schemes]
    if INT8_STATIC in experiment.schemes and INT8_DYNAMIC in experiment.schemes:
        plans.append(_mixed(experiment, effects))
    return plans


def worst_groups(effects: Sequence[GroupEffect], scheme: str, share: float) -> list[str]:
    """The fewest groups that together have `share` of a scheme's damage, by name, worst first."""
    damages = sorted(
        ((e.damage, e.group.name) for e in effects if e.scheme.name == scheme and e.damage is not None), reverse=True
    )
    total, covered, chosen = sum(damage for damage, _ in damages), 0.0, []
    for damage, group in damages:
        if covered >= share * total:
            break
        chosen.append(group)
        covered += damage
    return chosen


def _uniform(experiment: Experiment, scheme: Scheme) -> Plan:
    # lm_head is not among the groups: every recipe of llm-compressor's leaves it alone.
    return Plan.of_groups(
        experiment,
        name=scheme.name,
        title=f"{scheme.title}, lm_head left alone",
        schemes={group.name: scheme for group in experiment.groups},
    )


def _mixed(experiment: Experiment, effects: Sequence[GroupEffect]) -> Plan:
    """Static scales where they do little harm, dynamic ones for the groups that have nearly all the damage."""
    worst = set(worst_groups(effects, INT8_STATIC.name, MIXED_SHARE))
    return Plan.of_groups(
        experiment,
        name=MIXED,
        title=f"{INT8_STATIC.title}, the {len(worst)} worst groups dynamic per-token",
        schemes={group.name: INT8_DYNAMIC if group.name in worst else INT8_STATIC for group in experiment.groups},
    )
