"""Fused groups quantized one at a time, in the whole model: which ones, and the KL that damage and price stand for."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import deal
from quantaudit.simulate.cost import SINGLE
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.plan import Plan


def sample_groups(effects: Sequence[GroupEffect], scheme: str, count: int | None) -> list[GroupEffect]:
    """Mark so many groups of one scheme as sampled, None for all that have a damage. Returns those that are."""
    chosen = even_ranks(effects, scheme, count)
    for effect in chosen:
        effect.sampled = True
    return chosen


def even_ranks(effects: Sequence[GroupEffect], scheme: str, count: int | None) -> list[GroupEffect]:
    """So many groups of one scheme at even ranks of damage, the worst first and the least last; None for all.

    Even ranks keep a rank correlation what it is over all groups. The worst ones, or damages evenly spaced on a
    logarithmic scale, would not: both ends of the scale are over-represented, and ρ comes out too high
    (docs/prediction.md).
    """
    measured = [e for e in effects if e.scheme.name == scheme and e.in_block and e.damage is not None]
    ranked = sorted(measured, key=lambda effect: (-(effect.damage or 0.0), effect.group.name))
    if count is None or count >= len(ranked):
        return ranked
    step = (len(ranked) - 1) / max(count - 1, 1)
    return [ranked[int(i * step + 0.5)] for i in range(count)]


def simulate_alone(experiment: Experiment, chosen: Sequence[GroupEffect], *, stages: Stages = silent_stages) -> None:
    """Fill in the KL of each chosen group quantized alone, under its scheme.

    What has a KL already, or was chosen twice, is not simulated again; what did not stay finite, or has no calibrated
    range, keeps None. Costs a forward pass for each chosen group, and one without a change.
    """
    pending = list({effect.key: effect for effect in chosen if effect.kl is None}.values())
    if not pending:
        return
    plans = [
        Plan.of_groups(
            experiment,
            name=f"{effect.group.name} {effect.scheme.name}",
            title=effect.group.name,
            schemes={effect.group.name: effect.scheme},
        )
        for effect in pending
    ]
    own = deal(experiment.samples, lambda sample: len(sample.ids))
    tick = stages(SINGLE, len(plans) * len(own))
    rows = score_plans(experiment.model, experiment.samples, plans, weights=experiment.weights, progress=tick)
    for effect, row in zip(pending, rows, strict=True):
        if not row.nonfinite:
            effect.kl, effect.kl_stderr = row.kl, row.kl_stderr
