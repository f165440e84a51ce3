"""The recipes that every simulation scores: each scheme on all groups, and static scales with dynamic exceptions."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.sensitivity.ranking import worst_groups

MIXED = "int8_static_worst_dynamic"
"""The recipe that keeps static scales except where most of the KL, or of the damage, comes from."""
MIXED_SHARE = 0.95
MIXED_BY_PROJECTION = "int8_static_down_proj_dynamic"
"""The recipe that keeps static scales except behind a product of two projections: `recipes/w8a8_mixed.yaml`."""
_PRODUCT = "down_proj"


def baseline_plans(experiment: Experiment, effects: Sequence[GroupEffect]) -> list[Plan]:
    """One plan for each scheme on all groups of the experiment, and the mixtures where both of their schemes are there.

    effects: of those groups, for their prices or their damage.
    """
    plans = [_uniform(experiment, scheme) for scheme in experiment.schemes]
    if INT8_STATIC in experiment.schemes and INT8_DYNAMIC in experiment.schemes:
        plans.append(_mixed(experiment, effects))
        plans += _mixed_by_projection(experiment)
    return plans


def _uniform(experiment: Experiment, scheme: Scheme) -> Plan:
    # lm_head is not among the groups: every recipe of llm-compressor's leaves it alone.
    return Plan.of_groups(
        experiment,
        name=scheme.name,
        title=f"{scheme.title}, lm_head left alone",
        schemes={group.name: scheme for group in experiment.groups},
    )


def _mixed(experiment: Experiment, effects: Sequence[GroupEffect]) -> Plan:
    """Static scales where they do little harm, dynamic ones for the groups that have nearly all of it."""
    static = [effect for effect in effects if effect.scheme.name == INT8_STATIC.name and effect.in_block]
    worst = {effect.group.name for effect in worst_groups(static, MIXED_SHARE)}
    return Plan.of_groups(
        experiment,
        name=MIXED,
        title=f"{INT8_STATIC.title}, the {len(worst)} worst groups dynamic per-token",
        schemes={group.name: INT8_DYNAMIC if group.name in worst else INT8_STATIC for group in experiment.groups},
    )


def _mixed_by_projection(experiment: Experiment) -> list[Plan]:
    """Dynamic scales for every down_proj, static ones elsewhere; none where no module has that name, or all have."""
    members = [member for group in experiment.groups for member in group.members]
    products = {member for member in members if member.endswith(_PRODUCT)}
    whole = all(products.isdisjoint(group.members) or products.issuperset(group.members) for group in experiment.groups)
    if not products or len(products) == len(members) or not whole:
        return []
    dynamic = {group.name for group in experiment.groups if products.issuperset(group.members)}
    plan = Plan.of_groups(
        experiment,
        name=MIXED_BY_PROJECTION,
        title=f"{INT8_STATIC.title}, every {_PRODUCT} dynamic per-token",
        schemes={group.name: INT8_DYNAMIC if group.name in dynamic else INT8_STATIC for group in experiment.groups},
        with_digest=True,
    )
    return [plan]
