"""Scales of an artifact that are no input's: of weights, outputs and caches. Each is held against its own tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from quantaudit.card.schema import Finding
from quantaudit.common.outcome import Severity
from quantaudit.conform.artifacts.records import OtherScale
from quantaudit.conform.rules.catalogue import BROKEN, RECALIBRATE, finding
from quantaudit.conform.rules.phrases import not_finite

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


def broken_others(scales: Iterable[OtherScale]) -> list[Finding]:
    """QA601, QA602, QA603 for every other scale, held against the others of its own tensor."""
    findings = []
    for row in scales:
        wrong = ~np.isfinite(row.values)
        if wrong.any():
            message = f"{_count(wrong, row)} {not_finite(float(row.values[wrong][0]))}"
            findings.append(_scale_finding("QA601", row, message, wrong, None, BROKEN))
            continue
        used = row.values[~row.idle]
        used = np.abs(used) if row.tensor.endswith(SIGNED) else used
        wrong = used <= 0
        if wrong.any():
            message = f"{_count(wrong, row)} {used[wrong][0]:g}, which is no scale"
            findings.append(_scale_finding("QA602", row, message, wrong, 0.0, BROKEN))
            continue
        findings += _stray(row, used)
    return findings


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
    value = float(wrong.sum())
    return finding(
        code, row.module, message, severity="error", value=value, threshold=threshold, why=reason, remedy=RECALIBRATE
    )


def _count(wrong: np.ndarray, row: OtherScale) -> str:
    number = int(wrong.sum())
    if len(row.values) == 1:
        return f"`{row.tensor}` is"
    return f"{number:,} of {len(row.values):,} values of `{row.tensor}` {'is' if number == 1 else 'are'}"
