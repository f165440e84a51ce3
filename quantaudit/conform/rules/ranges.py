"""Rules about the static input ranges of an artifact, held against what a card measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from quantaudit.card.schema import Finding, SiteRow
from quantaudit.common.outcome import Severity
from quantaudit.conform.artifacts.records import Artifact, InputRange, Missing
from quantaudit.conform.rules.catalogue import BROKEN, RECALIBRATE, finding
from quantaudit.conform.rules.phrases import not_finite
from quantaudit.policy import Policy

UNKNOWN = "QA607"
SAME = 0.01
"""Relative difference up to which two scales of one tensor are the same: a step of bfloat16 is 1/128."""
DESIGNED = 0.25
"""Share of the measured peak that a moving average keeps even where single batches hold the peaks."""
PLAUSIBLE = 2.0
"""A value that stands for `nothing seen` is believed to be a real scale where its range is within this of the peak."""

Pair = tuple[InputRange, SiteRow | None]


def covered(row: InputRange, site: SiteRow) -> float | None:
    """What a range reaches over what was measured, on the side where that is least; None where nothing was measured.

    Infinite where the tensor was measured to be zero throughout. Where the card knows no more than the peak, the wider
    side counts. Of a smoothed tensor it knows the highest peaks with their channels, and coverage is that of those.
    """
    if site.amax is None:
        return None
    if site.min is None or site.max is None:
        return max(row.high, -row.low) / site.amax if site.amax and row.factors is None else None
    extremes = [site.max, site.min]
    if row.factors is not None:
        extremes = [peak.value * _factor(row, peak.channel) for peak in site.peaks if peak.value is not None]
    sides = [(row.high if value > 0 else row.low) / value for value in extremes if value]
    return min(sides, default=math.inf)


def _factor(row: InputRange, channel: int) -> float:
    factors = row.factors
    assert factors is not None
    return float(factors[channel] if len(factors) > 1 else factors[0])


def broken_inputs(pairs: Iterable[Pair], policy: Policy) -> list[Finding]:
    """QA601, QA602, QA603 for static input scales."""
    findings = []
    for row, site in pairs:
        problem = broken(row, site, policy)
        if problem is not None:
            code, message, threshold, reason = problem
            findings.append(
                finding(
                    code,
                    row.module,
                    message,
                    severity="error",
                    value=row.scale,
                    threshold=threshold,
                    why=reason,
                    remedy=RECALIBRATE,
                )
            )
    return findings


def broken(row: InputRange, site: SiteRow | None, policy: Policy) -> tuple[str, str, float | None, str] | None:
    """(code, message, threshold, reason) where an input scale is garbage."""
    name = row.tensor
    if not math.isfinite(row.scale):
        return "QA601", f"`{name}` is {not_finite(row.scale)}", None, BROKEN
    if row.scale <= 0:
        return "QA602", f"`{name}` is {row.scale:g}, which is no scale", 0.0, BROKEN
    if not row.low <= 0 <= row.high:
        return "QA602", f"zero lies outside the range of `{name}` ({row.low:.3g} … {row.high:.3g})", 0.0, BROKEN
    share = None if site is None else covered(row, site)
    if share is None or site is None or site.amax is None or math.isinf(share):
        return None
    if row.scale in row.epsilons and not 1 / PLAUSIBLE <= share <= PLAUSIBLE:
        return (
            "QA602",
            f"`{name}` is {row.scale:.3g}, a placeholder for a range never seen: it reaches {share:.3g} of the peak",
            None,
            "Libraries write this value where an observer saw only zeros, or nothing at all.",
        )
    if row.factors is None and site.median is not None and max(row.high, -row.low) < site.median:
        return (
            "QA603",
            f"`{name}` clips most values: its range ends below {site.median:.3g}, the median magnitude, "
            f"at {share:.3g} of the measured peak",
            site.median,
            "No observer clips most of what it saw: this scale was never calibrated, or was damaged afterwards.",
        )
    if share > policy.range_excess.error:
        limit = policy.range_excess
        return "QA603", f"`{name}` spans {share:.3g} times the measured peak", limit.error, limit.reason
    return None


def missing(rows: Iterable[Missing]) -> list[Finding]:
    """QA606."""
    reason = "An engine that trusts the configuration fails on this module, or runs it with whatever its memory held."
    return [finding("QA606", row.module, f"`{row.tensor}` is missing: {row.reason}", why=reason) for row in rows]


def coverage(pairs: Iterable[Pair], policy: Policy) -> list[Finding]:
    """QA604: ranges that clip the measured peak, or waste most of their levels; garbage is not reported twice."""
    findings = []
    for row, site in pairs:
        share = None if site is None else covered(row, site)
        if share is None or site is None or math.isinf(share) or broken(row, site, policy):
            continue
        severity: Severity = "warning"
        what = f"static range of `{row.tensor}`"
        if share < policy.range_coverage.warning:
            message = f"{what} reaches {share:.3g} of the measured peak, {site.amax:,.4g}, and clips it"
            limit, reason = policy.range_coverage.warning, policy.range_coverage.reason
            remedy = "Measure whether this clipping helps or hurts: run both artifacts on your own evaluation."
            if row.averages and _by_design(row, site):
                severity = "info"
                reason = "Its observer averages over calibration batches: it clips rare peaks as designed."
        elif share > policy.range_excess.warning:
            message = f"{what} reaches {share:.3g} times the measured peak, {site.amax:,.4g}: levels are wasted"
            limit, reason = policy.range_excess.warning, policy.range_excess.reason
            remedy = "Calibrate on text like the text that is served, or audit on text like that of the calibration."
        else:
            continue
        findings.append(
            finding(
                "QA604",
                row.module,
                message,
                severity=severity,
                value=share,
                threshold=limit,
                why=reason,
                remedy=remedy,
            )
        )
    return findings


def _by_design(row: InputRange, site: SiteRow) -> bool:
    """Whether a range holds all but a thousandth of what was measured; of an expert a card knows the peak alone."""
    reach = max(row.high, -row.low)
    if row.factors is not None or site.p999 is None or site.kind == "expert_input":
        return site.amax is not None and reach >= DESIGNED * site.amax
    return reach >= min(site.p999, DESIGNED * (site.amax or 0.0))


def disagreement(
    inputs: Sequence[InputRange], groups: Mapping[str, Sequence[str]], sites: Mapping[str, SiteRow]
) -> list[Finding]:
    """QA605: Linears of one fused group that read one tensor, at scales that differ. Names the smallest."""
    findings = []
    scales = {row.module: row for row in inputs if math.isfinite(row.scale) and row.scale > 0}
    for group, members in groups.items():
        readers: dict[str, list[InputRange]] = {}
        for member in members:
            if member in scales and member in sites:
                readers.setdefault(sites[member].name, []).append(scales[member])
        for rows in readers.values():
            smallest = min(rows, key=lambda row: row.scale)
            largest = max(rows, key=lambda row: row.scale)
            if largest.scale > smallest.scale * (1 + SAME):
                findings.append(
                    finding(
                        "QA605",
                        smallest.module,
                        f"`{smallest.tensor}`: reads the same tensor as `{largest.module}` at "
                        f"{smallest.scale / largest.scale:.3g} of its scale, in the fused group `{group}`",
                        value=smallest.scale / largest.scale,
                        threshold=1 - SAME,
                    )
                )
    return findings


def unknown(pairs: Iterable[Pair]) -> list[Finding]:
    """QA607."""
    findings = []
    for row, site in pairs:
        if site is not None and site.amax is not None and covered(row, site) is not None:
            continue
        what = "the card does not know" if site is None else "the card did not measure"
        findings.append(
            finding(
                UNKNOWN,
                row.module,
                f"`{row.tensor}`: has a static input range of {max(row.high, -row.low):.4g}, and {what} its input",
                value=row.scale,
            )
        )
    return findings


def nothing_static(artifact: Artifact) -> list[Finding]:
    """QA608: information only; weight-only and dynamic artifacts are like that."""
    if artifact.inputs or artifact.missing:
        return []
    how = (
        f"{len(artifact.dynamic)} inputs get their scales at run time"
        if artifact.dynamic
        else "inputs stay unquantized"
    )
    return [finding("QA608", None, f"the artifact has no static input range: {how}", value=0.0)]


def without_mask(layers: Sequence[str]) -> list[Finding]:
    """QA609, of decoder layers that calibration gave no mask: eager attention applies only the one it is given."""
    if not layers:
        return []
    return [
        finding(
            "QA609",
            layers[0],
            f"calibration runs {len(layers)} decoder layers without a causal mask: tokens see those behind them",
            value=float(len(layers)),
            threshold=0.0,
            why="Static scales are taken from activations that the deployed model never has. llm-compressor 0.14's "
            "sequential pipeline loses the mask of models that choose its function by `sliding_window` (Mistral, "
            "Mixtral, Phi-3, Qwen3-MoE).",
            remedy='Calibrate with pipeline="basic", in which no AuditModifier can take part; compare the result with '
            "`quantaudit conform`.",
        )
    ]
