"""Fused groups quantized one at a time, in the whole model: which ones, and the KL that damage and price stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.simulate.records import GroupRow

if TYPE_CHECKING:
    from torch import nn

    from quantaudit.corpus.tokens import TokenizedSample
    from quantaudit.model.sites import Group
    from quantaudit.quant.observers import QParams
    from quantaudit.quant.schemes import Scheme


def sample_groups(rows: Sequence[GroupRow], scheme: str, count: int | None) -> list[GroupRow]:
    """The rows, so many of one scheme marked as sampled; None for all that have a damage."""
    chosen = {row.group for row in spread(rows, scheme, count)}
    return [
        row.model_copy(update={"sampled": True}) if row.scheme == scheme and row.group in chosen else row
        for row in rows
    ]


def spread(rows: Sequence[GroupRow], scheme: str, count: int | None) -> list[GroupRow]:
    """So many rows of one scheme at evenly spaced ranks of damage, the worst first and the least last; None for all.

    Even ranks keep a rank correlation what it is over all groups. The worst ones, or damages evenly spaced on a
    logarithmic scale, would not: both ends of the scale are over-represented, and ρ comes out too high
    (docs/prediction.md).
    """
    known = [row for row in rows if row.scheme == scheme and row.layer is not None and row.damage is not None]
    ranked = sorted(known, key=lambda row: (-(row.damage or 0.0), row.group))
    if count is None or count >= len(ranked):
        return ranked
    step = (len(ranked) - 1) / max(count - 1, 1)
    return [ranked[int(i * step + 0.5)] for i in range(count)]


def simulate_alone(
    model: nn.Module,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    rows: Sequence[GroupRow],
    chosen: Sequence[GroupRow],
    *,
    stages: Stages = silent_stages,
) -> list[GroupRow]:
    """The rows; the chosen ones with the KL of their group quantized alone, each under its own scheme.

    groups: those that rows are of. qparams: by scheme name, then by group name. What has a KL already is not simulated
    again; what did not stay finite, or has no calibrated range, keeps a null. Costs a forward pass for each chosen
    row, and one without a change.
    """
    from quantaudit.simulate.logits.score_plans import score_plans
    from quantaudit.simulate.quantized.plan import Plan

    named = {scheme.name: scheme for scheme in schemes}
    wanted = [row for row in chosen if row.kl is None]
    if not wanted:
        return list(rows)
    plans = [
        Plan.of_groups(
            groups=groups,
            name=f"{row.group} {row.scheme}",
            title=row.group,
            schemes={row.group: named[row.scheme]},
            qparams=qparams[row.scheme],
        )
        for row in wanted
    ]
    tick = stages("simulating single groups", len(plans) * len(samples))
    scores = score_plans(model, samples, plans, progress=tick)
    found = {
        (row.group, row.scheme): {"kl": score.kl, "kl_stderr": score.kl_stderr}
        for row, score in zip(wanted, scores, strict=True)
        if not score.nonfinite
    }
    return [row.model_copy(update=found.get((row.group, row.scheme), {})) for row in rows]
