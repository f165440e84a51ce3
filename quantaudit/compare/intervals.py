"""How sure the change of a mean over text is: over the domains that both sides share, or as of independent samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantaudit.compare.report import ValueChange
from quantaudit.compare.subjects.subject import SchemeScore
from quantaudit.stats.interval import student_t

Measure = Literal["kl", "top1"]
MEASURES: tuple[Measure, ...] = ("kl", "top1")
LEVEL = 0.95
"""Two-sided confidence level of intervals."""
CLOSE = 1e-6
"""Relative difference up to which two means are one that was summed in two ways."""
LEAST_DOMAINS = 8
"""Domains from which a change is taken over them: of fewer the spread says too little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over tokens. stderr: over samples. parts: domain → its tokens and its own mean; empty where unknown."""

    value: float | None
    stderr: float | None
    samples: int
    parts: dict[str, tuple[int, float]]

    @classmethod
    def of(cls, score: SchemeScore | None, name: Measure) -> Mean:
        """One measure of a scheme's score."""
        if score is None:
            return cls(value=None, stderr=None, samples=0, parts={})
        known = {key: (row.tokens, getattr(row, name)) for key, row in score.domains.items()}
        parts = {key: (tokens, value) for key, (tokens, value) in known.items() if value is not None}
        value = getattr(score, name)
        return cls(
            value=value,
            stderr=getattr(score, f"{name}_stderr"),
            samples=score.samples,
            # A redacted card may lack some: those that are left are of other text.
            parts=parts if value is not None and _is_mean(value, list(parts.values())) else {},
        )


def _is_mean(value: float, parts: Sequence[tuple[int, float]]) -> bool:
    total = sum(tokens for tokens, _ in parts)
    return total > 0 and math.isclose(sum(tokens * part for tokens, part in parts) / total, value, rel_tol=CLOSE)


def value_change(baseline: Mean, other: Mean, *, same_samples: bool, repeated: bool = False) -> ValueChange:
    """The other mean minus the baseline's, with its interval.

    same_samples: whether both rest on the same samples, so that what is hard in a domain is hard for both.
    repeated: whether they are of scores that differ in no number, so that no sample speaks for a change.
    """
    if baseline.value is None or other.value is None:
        return ValueChange(baseline=baseline.value, other=other.value, change=None, low=None, high=None, paired=False)
    difference = other.value - baseline.value
    if repeated:
        return ValueChange(baseline=baseline.value, other=other.value, change=0.0, low=0.0, high=0.0, paired=True)
    paired = same_samples and shared_domains(baseline, other)
    reach = _over_domains(baseline, other, difference) if paired else _independent(baseline, other)
    return ValueChange(
        baseline=baseline.value,
        other=other.value,
        change=difference,
        low=None if reach is None else difference - reach,
        high=None if reach is None else difference + reach,
        paired=paired,
    )


def shared_domains(baseline: Mean, other: Mean) -> bool:
    """Whether both have the same domains with the same tokens in each, and enough of them."""
    tokens = [{name: count for name, (count, _) in side.parts.items()} for side in (baseline, other)]
    return tokens[0] == tokens[1] and len(tokens[0]) >= LEAST_DOMAINS


def _over_domains(baseline: Mean, other: Mean, difference: float) -> float:
    """Half the interval of a ratio estimator over clusters, the domains (Cochran 1977, 9A): with n_d of n tokens in
    domain d and D_d its own change, the variance is G/(G − 1) · Σ (n_d/n · (D_d − D))², with G − 1 degrees of freedom.
    """
    total = sum(count for count, _ in baseline.parts.values())
    groups = len(baseline.parts)
    residuals = [
        count / total * (other.parts[name][1] - value - difference) for name, (count, value) in baseline.parts.items()
    ]
    return _t(groups - 1) * math.sqrt(groups / (groups - 1) * sum(part**2 for part in residuals))


def _independent(baseline: Mean, other: Mean) -> float | None:
    """Half of Welch's interval: the variance of a difference is the sum of both, with the degrees of freedom of
    Satterthwaite 1946, rounded down. None where a standard error is not known.
    """
    sides: Sequence[Mean] = (baseline, other)
    errors = [side.stderr for side in sides if side.stderr is not None and side.samples > 1]
    if len(errors) < 2:
        return None
    variances = [error**2 for error in errors]
    total = sum(variances)
    if not total:
        return 0.0
    freedom = total**2 / sum(part**2 / (side.samples - 1) for part, side in zip(variances, sides, strict=True))
    return _t(max(1, math.floor(freedom))) * math.sqrt(total)


def _t(freedom: int) -> float:
    return student_t(LEVEL, freedom + 1)
