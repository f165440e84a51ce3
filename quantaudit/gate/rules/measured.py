"""QA501 to QA509: what was measured at the modules that the recipe quantizes, and only at those."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.common.rounding import decimals, percentage, significant
from quantaudit.gate.rules.phrases import gentler, some
from quantaudit.provenance import Unmeasured
from quantaudit.simulate.sensitivity.ranking import worst_first

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence
    from quantaudit.gate.group_assignment import GroupAssignment


@rule(
    "QA501",
    "A quantized module was not measured",
    severity="inconclusive",
    why="What was not measured cannot be declared safe.",
    remedy="Audit with text (or images) that reaches these modules, or add them to `ignore`.",
)
def unmeasured(evidence: Evidence) -> Iterator[Hit]:
    """The recipe quantizes modules that no statistic of the card covers."""
    listed = [row for row in _quantized_unmeasured(evidence) if row.cause != "undersampled"]
    named = {row.module for row in evidence.card.coverage.unmeasured}
    silent = [
        Unmeasured(module=member, reason="its input is not on the card", weights=True, cause="other")
        for group in evidence.assignments
        if group.site is None or not group.site.tokens
        for member in group.members
        if member in evidence.schemes and member not in named
    ]
    for reason, rows in groupby(sorted([*listed, *silent], key=lambda row: row.reason), key=lambda row: row.reason):
        modules = [row.module for row in rows]
        yield Hit(
            message=f"{counted(len(modules), 'quantized module')} not measured ({reason}): {some(modules)}",
            module=modules[0],
            value=float(len(modules)),
        )


@rule(
    "QA502",
    "A quantized input is NaN or infinite",
    severity="error",
    why="A scale over a non-finite range is saved without an error, and every value behind it is lost.",
    remedy="Find what overflows (the first such module is named), or run the model in a wider dtype.",
)
def nonfinite(evidence: Evidence) -> Iterator[Hit]:
    """Non-finite activations at inputs that the recipe quantizes."""
    broken = [
        group for group in evidence.assignments if group.site is not None and group.site.nonfinite and _inputs(group)
    ]
    if broken:
        values = sum(group.site.nonfinite for group in broken if group.site is not None)
        yield Hit(
            message=f"{counted(values, 'non-finite value')} at inputs of {counted(len(broken), 'fused group')}: "
            f"{some([group.name for group in broken])}",
            module=broken[0].name,
            value=float(values),
            threshold=0.0,
        )


@rule(
    "QA503",
    "A static input has no calibrated range",
    severity="inconclusive",
    why="No finite value reached it in the calibration split: its scale would be uninitialized, or NaN.",
    remedy="Calibrate on text that reaches it, or quantize its input dynamically.",
)
def uncalibrated(evidence: Evidence) -> Iterator[Hit]:
    """Static inputs for which the card could derive no scale."""
    scaled = {row.group for row in evidence.card.scales if row.scale is not None}
    missing = [
        group.name
        for group in evidence.assignments
        if group.static and group.site is not None and group.name not in scaled
    ]
    if missing:
        yield Hit(
            message=f"{counted(len(missing), 'fused group')} without a calibrated range: {some(missing)}",
            module=missing[0],
            value=float(len(missing)),
        )


@rule(
    "QA504",
    "A quantized expert saw too few tokens",
    severity="inconclusive",
    why="A peak over a handful of tokens says little about the next ones; a static scale from them will clip.",
    remedy="Audit and calibrate on more text, or with all tokens sent to all experts (`calibrate_all_experts`).",
)
def undersampled(evidence: Evidence) -> Iterator[Hit]:
    """Experts that the recipe quantizes and that the corpus hardly reached."""
    rows = [row for row in _quantized_unmeasured(evidence) if row.cause == "undersampled"]
    if rows:
        modules = [row.module for row in rows]
        yield Hit(
            message=f"{counted(len(rows), 'quantized expert projection')} saw too few tokens: {some(modules)} "
            f"({rows[0].reason})",
            module=modules[0],
            value=float(len(rows)),
        )


@rule(
    "QA505",
    "The residual stream comes near FP16's limit",
    severity="warning",
    why="It is not quantized, but it overflows where the quantized model is run in FP16, as some kernels ask for.",
    remedy="Run the quantized model in bfloat16.",
)
def fp16_headroom(evidence: Evidence) -> Iterator[Hit]:
    """Headroom below the policy's limits: an error where the checkpoint is float16 and overflows."""
    headroom, limits = evidence.card.peak.fp16_headroom, evidence.policy.fp16_headroom
    if headroom is None or headroom >= limits.warning or not evidence.schemes:
        return
    fails = headroom < limits.error and evidence.card.model.dtype == "float16"
    yield Hit(
        message=f"FP16's largest value is {significant(headroom, limits.warning, limits.error, digits=2)} times the "
        f"largest residual, in a model stored as "
        f"{evidence.card.model.dtype}",
        value=headroom,
        threshold=limits.error if fails else limits.warning,
        severity="error" if fails else "warning" if evidence.card.model.dtype == "float16" else "info",
        why=limits.reason,
    )


@rule(
    "QA506",
    "Fused groups are damaged",
    severity="warning",
    why="Damage is relative to the decoder block's output, of one group alone; that of many adds up in the logits.",
    remedy="Quantize these groups in a gentler way, which depends on the scheme, or leave them unquantized.",
)
def damaged(evidence: Evidence) -> Iterator[Hit]:
    """Groups whose damage under the recipe's own scheme is beyond the policy's limit, worst first."""
    limit = evidence.policy.damage
    groups = {group.name: group for group in evidence.assignments if evidence.as_simulated(group)}
    rows = [row for row in worst_first(evidence.rows) if row.group in groups and (row.damage or 0.0) > limit.warning]
    if rows:
        shown = ", ".join(significant(row.damage or 0.0, limit.warning, digits=2) for row in rows[:3])
        schemes = (scheme for row in rows for scheme in groups[row.group].quantized)
        yield Hit(
            message=f"{counted(len(rows), 'fused group')} damaged: {some([row.group for row in rows])} ({shown})",
            module=rows[0].group,
            value=rows[0].damage,
            threshold=limit.warning,
            why=limit.reason,
            remedy=f"{gentler(schemes, 'these groups')}.",
        )


@rule(
    "QA507",
    "Ordinary values of an input round to zero",
    severity="warning",
    why="One scale that covers the peak is too coarse for the rest; SQNR, which the peak dominates, can look good.",
    remedy="Quantize these inputs dynamically per token; SmoothQuant helps only where a norm feeds them.",
)
def zeroed(evidence: Evidence) -> Iterator[Hit]:
    """Static inputs of which the policy's share rounds to zero under the recipe's scheme and observer."""
    limit = evidence.policy.zeroed_fraction
    rows = sorted(
        (
            (group.errors.zeroed_fraction, group.name)
            for group in evidence.assignments
            if group.errors is not None
            and group.errors.zeroed_fraction is not None
            and group.errors.zeroed_fraction > limit.warning
            and evidence.as_simulated(group)
        ),
        reverse=True,
    )
    if rows:
        yield Hit(
            message=f"{counted(len(rows), 'static input')} mostly rounded to zero: "
            f"{some([name for _, name in rows])} "
            f"({', '.join(percentage(share, limit.warning) for share, _ in rows[:3])})",
            module=rows[0][1],
            value=rows[0][0],
            threshold=limit.warning,
            why=limit.reason,
        )


@rule(
    "QA508",
    "Other text goes beyond the calibrated range",
    severity="warning",
    why="A static scale clips what lies beyond the calibration range.",
    remedy="Calibrate on more text, and of more kinds.",
)
def exceeded(evidence: Evidence) -> Iterator[Hit]:
    """Static inputs whose peak on the evaluation split is above the calibration split's, by the policy's factor."""
    stability, limit = evidence.card.stability, evidence.policy.calibration_excess
    static = {f"{group.name}.input" for group in evidence.assignments if group.static}
    rows = [
        (row.ratio, row.site)
        for row in (stability.exceedance.worst if stability is not None else [])
        if row.site in static and row.ratio is not None and row.ratio > limit.warning
    ]
    if rows:
        ratio, site = max(rows)
        yield Hit(
            message=f"`{site.removesuffix('.input')}` peaks {decimals(ratio, limit.warning)} times higher on the "
            "evaluation split",
            module=site.removesuffix(".input"),
            value=ratio,
            threshold=limit.warning,
            why=limit.reason,
        )


@rule(
    "QA509",
    "SmoothQuant misses what hurts",
    severity="warning",
    why="SmoothQuant rescales inputs that come straight from a norm; the inputs of o_proj and down_proj, where the "
    "largest peaks usually are, stay as they were.",
    remedy="Quantize these groups' inputs dynamically, or leave the groups unquantized.",
)
def missed(evidence: Evidence) -> Iterator[Hit]:
    """Groups beyond the damage or zeroed limits whose inputs no mapping smooths."""
    if not evidence.smoothings or any(smoothing.problem for smoothing in evidence.smoothings):
        return
    reached = {name for smoothing in evidence.smoothings for name in smoothing.balance_layers}
    hurting = [group for group in evidence.assignments if group.static and _hurts(group, evidence)]
    order = {row.group: place for place, row in enumerate(worst_first(evidence.rows))}
    hurting.sort(key=lambda group: order.get(group.name, len(order)))
    out_of_reach = [group.name for group in hurting if not reached & set(group.members)]
    if out_of_reach:
        yield Hit(
            message=f"{len(out_of_reach):,} of {counted(len(hurting), 'fused group')} that hurt are out of its reach: "
            f"{some(out_of_reach)}",
            keys=evidence.smoothings[0].keys,
            module=out_of_reach[0],
            value=float(len(out_of_reach)),
        )


def _quantized_unmeasured(evidence: Evidence) -> list[Unmeasured]:
    return [row for row in evidence.card.coverage.unmeasured if row.module in evidence.resolution.schemes]


def _inputs(group: GroupAssignment) -> bool:
    return any(scheme.inputs for scheme in group.quantized)


def _hurts(group: GroupAssignment, evidence: Evidence) -> bool:
    damage = group.row.damage if group.row is not None else None
    share = group.errors.zeroed_fraction if group.errors is not None else None
    return (damage or 0.0) > evidence.policy.damage.warning or (share or 0.0) > evidence.policy.zeroed_fraction.warning
