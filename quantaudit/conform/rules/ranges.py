"""Rules about the scales of an artifact, one finding each, under stable codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from quantaudit.card.schema import Finding, SiteRow
from quantaudit.common.outcome import Severity
from quantaudit.conform.artifacts.records import Artifact, InputRange, Missing, OtherScale
from quantaudit.conform.rules.catalogue import BROKEN, RECALIBRATE, finding
from quantaudit.policy import Policy

UNKNOWN = "QA607"
SAME = 0.01
"""Relative difference up to which two scales of one tensor are the same: a step of bfloat16 is 1/128."""
SIGNED = ".weight_scale"
"""Scales of which only the magnitude counts: AutoRound makes one negative where that gives the longer end of the
symmetric grid, −128 of −128 … 127, to the side of the channel that reaches further."""
STRAY = 1e6
"""Factor from the median of its tensor beyond which a scale was never written: parts of healthy weights differ by 10⁴
and more, memory that was not written holds subnormal numbers and 10³⁰."""
FEW, MANY = 4, 256
"""Numbers of scales from which on it is no chance that all are equal; the second of powers of two, which are few."""
CACHES = (".q_scale", ".k_scale", ".v_scale")
CACHE_RANGE = (1e-7, 100.0)
"""Scales of caches that are believed: 8 bits of keys or values of up to 40,000."""
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
    found = []
    for row, site in pairs:
        problem = broken(row, site, policy)
        if problem is not None:
            code, message, threshold, reason = problem
            found.append(_finding(code, "error", row.module, message, row.scale, threshold, reason, RECALIBRATE))
    return found


def broken(row: InputRange, site: SiteRow | None, policy: Policy) -> tuple[str, str, float | None, str] | None:
    """(code, message, threshold, reason) where an input scale is garbage."""
    name = row.tensor
    if not math.isfinite(row.scale):
        return "QA601", f"`{name}` is {_spell(row.scale)}", None, BROKEN
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
            "Toolkits write this value where an observer saw only zeros, or nothing at all.",
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


def broken_others(scales: Iterable[OtherScale]) -> list[Finding]:
    """QA601, QA602, QA603 for every other scale: a card knows no weights, so one is held against its own tensor."""
    found = []
    for row in scales:
        wrong = ~np.isfinite(row.values)
        if wrong.any():
            message = f"{_count(wrong, row)} {_spell(float(row.values[wrong][0]))}"
            found.append(_scale_finding("QA601", row, message, wrong, None, BROKEN))
            continue
        used = row.values[~row.idle]
        used = np.abs(used) if row.tensor.endswith(SIGNED) else used
        wrong = used <= 0
        if wrong.any():
            message = f"{_count(wrong, row)} {used[wrong][0]:g}, which is no scale"
            found.append(_scale_finding("QA602", row, message, wrong, 0.0, BROKEN))
            continue
        found += _stray(row, used)
    return found


def _stray(row: OtherScale, used: np.ndarray) -> list[Finding]:
    """A scale unlike the others of its tensor; of a cache, one that no key or value explains."""
    if row.tensor.endswith(CACHES):
        wrong = (used > CACHE_RANGE[1]) | (used < CACHE_RANGE[0])
        message = f"{_count(wrong, row)} {used[wrong][0]:.3g}, which no keys or values need" if wrong.any() else ""
        reason = "Keys and values lie between a thousandth and some thousands: all of them would be zero, or clipped."
        return [_scale_finding("QA603", row, message, wrong, CACHE_RANGE[1], reason)] if message else []
    if len(used) < 3:
        return []
    exponents = bool(np.all(np.log2(used) % 1 == 0))
    if len(used) >= (MANY if exponents else FEW) and used.min() == used.max():
        severity: Severity = "warning" if exponents else "error"
        message = f"all {len(used):,} values of `{row.tensor}` are {used[0]:.3g}"
        return [finding("QA614", row.module, message, severity=severity)]
    ratio = used / np.median(used)
    wrong = (ratio > STRAY) | (ratio < 1 / STRAY)
    if not wrong.any():
        return []
    message = f"{_count(wrong, row)} {used[wrong][0]:.3g}, while {np.median(used):.3g} is usual in that tensor"
    reason = "Parts of one weight do not differ by such a factor: this looks like memory never written."
    return [_scale_finding("QA603", row, message, wrong, STRAY, reason)]


def _scale_finding(
    code: str, row: OtherScale, message: str, wrong: np.ndarray, threshold: float | None, reason: str
) -> Finding:
    return _finding(code, "error", row.module, message, float(wrong.sum()), threshold, reason, RECALIBRATE)


def missing(rows: Iterable[Missing]) -> list[Finding]:
    """QA606."""
    reason = "An engine that trusts the configuration fails on this module, or runs it with whatever its memory held."
    remedy = "Save the artifact again, or add the module to the configuration's `ignore`."
    return [
        _finding("QA606", "error", row.module, f"`{row.tensor}` is missing: {row.reason}", None, None, reason, remedy)
        for row in rows
    ]


def coverage(pairs: Iterable[Pair], policy: Policy) -> list[Finding]:
    """QA604: ranges that clip the measured peak, or waste most of their levels; garbage is not reported twice."""
    found = []
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
        found.append(_finding("QA604", severity, row.module, message, share, limit, reason, remedy))
    return found


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
    found = []
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
                found.append(
                    _finding(
                        "QA605",
                        "warning",
                        smallest.module,
                        f"`{smallest.tensor}`: reads the same tensor as `{largest.module}` at "
                        f"{smallest.scale / largest.scale:.3g} of its scale, in the fused group `{group}`",
                        smallest.scale / largest.scale,
                        1 - SAME,
                        "Serving engines run a fused group with one input scale, the largest: what was evaluated "
                        "member by member is not what is served.",
                        "Give all members of the group one scale.",
                    )
                )
    return found


def unknown(pairs: Iterable[Pair]) -> list[Finding]:
    """QA607."""
    found = []
    for row, site in pairs:
        if site is not None and site.amax is not None and covered(row, site) is not None:
            continue
        what = "the card does not know" if site is None else "the card did not measure"
        found.append(
            _finding(
                UNKNOWN,
                "warning",
                row.module,
                f"`{row.tensor}`: has a static input range of {max(row.high, -row.low):.4g}, and {what} its input",
                row.scale,
                None,
                "What was not measured cannot be declared safe.",
                "Measure with text that reaches this module, on the model that the artifact was made from.",
            )
        )
    return found


def nothing_static(artifact: Artifact) -> list[Finding]:
    """QA608: information only; weight-only and dynamic artifacts are like that."""
    if artifact.inputs or artifact.missing:
        return []
    how = (
        f"{len(artifact.dynamic)} inputs get their scales at run time"
        if artifact.dynamic
        else "inputs stay as they are"
    )
    return [
        _finding(
            "QA608",
            "info",
            None,
            f"the artifact has no static input range: {how}",
            0.0,
            None,
            "Ranges that are computed as the model runs cannot miss a peak.",
            "Nothing to do; what dynamic scales cost is on the card.",
        )
    ]


def without_mask(layers: Sequence[str]) -> list[Finding]:
    """QA609, of decoder layers that calibration gave no mask: eager attention applies only the one it is given."""
    if not layers:
        return []
    return [
        _finding(
            "QA609",
            "warning",
            layers[0],
            f"calibration runs {len(layers)} decoder layers without a causal mask: tokens see those behind them",
            float(len(layers)),
            0.0,
            "Static scales are taken from activations that the deployed model never has. llm-compressor 0.14's "
            "sequential pipeline loses the mask of models that choose its function by `sliding_window` (Mistral, "
            "Mixtral, Phi-3, Qwen3-MoE).",
            'Calibrate with pipeline="basic", in which no AuditModifier can take part; compare the result with '
            "`quantaudit conform`.",
        )
    ]


def _count(wrong: np.ndarray, row: OtherScale) -> str:
    number = int(wrong.sum())
    if len(row.values) == 1:
        return f"`{row.tensor}` is"
    return f"{number:,} of {len(row.values):,} values of `{row.tensor}` {'is' if number == 1 else 'are'}"


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{'−' if value < 0 else ''}infinite"


def _finding(
    code: str,
    severity: Severity,
    module: str | None,
    message: str,
    value: float | None,
    threshold: float | None,
    reason: str,
    remedy: str,
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        module=module,
        message=message,
        value=value,
        threshold=threshold,
        reason=reason,
        remedy=remedy,
    )
