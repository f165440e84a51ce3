"""What changed from one subject to another, and by how much. Pure functions over subjects."""

from __future__ import annotations

import math
from collections.abc import Iterator

from quantaudit.compare.report import Change, ChannelChange, GroupChange, PeakChange, SchemeChange, ValueChange
from quantaudit.compare.subjects.subject import PeakPlace, SchemeScore, Subject
from quantaudit.stats.interval import student_t

LEVEL = 0.95
"""Two-sided confidence level of intervals."""
WORST = 3
"""Fused groups of each side that are set against the other side's."""


def change(index: int, baseline: Subject, other: Subject) -> Change:
    """Everything that both have, and what one of them lacks. index: of the other one."""
    return Change(
        subject=index,
        same_weights=baseline.fingerprint is not None and baseline.fingerprint == other.fingerprint,
        peaks=peak_changes(baseline, other),
        channels=_channels(baseline, other),
        schemes=scheme_changes(baseline, other),
        groups=list(_groups(baseline, other)),
    )


def peak_changes(baseline: Subject, other: Subject) -> list[PeakChange]:
    """One row for each kind of tensor that either side has, in the baseline's order."""
    kinds = dict.fromkeys((*baseline.peaks, *other.peaks))
    return [_peak(kind, baseline.peaks.get(kind), other.peaks.get(kind)) for kind in kinds]


def ratio(other: float | None, baseline: float | None) -> float | None:
    """other / baseline; None where one is not known or the baseline is 0."""
    return None if other is None or not baseline else other / baseline


def _peak(kind: str, ours: PeakPlace | None, theirs: PeakPlace | None) -> PeakChange:
    both = ours is not None and theirs is not None
    return PeakChange(
        kind=kind,
        baseline=ours,
        other=theirs,
        ratio=ratio(theirs.amax, ours.amax) if ours is not None and theirs is not None else None,
        moved=ours.site != theirs.site if both and ours is not None and theirs is not None else None,
    )


def scheme_changes(baseline: Subject, other: Subject) -> list[SchemeChange]:
    """One row for each scheme that either side has, in the baseline's order."""
    titles = {row.scheme: row.title for row in (*other.schemes, *baseline.schemes)}
    names = dict.fromkeys(row.scheme for row in (*baseline.schemes, *other.schemes))
    return [_scheme(name, titles[name], baseline.scheme(name), other.scheme(name)) for name in names]


def _scheme(name: str, title: str, ours: SchemeScore | None, theirs: SchemeScore | None) -> SchemeChange:
    samples = (ours.samples if ours else 0), (theirs.samples if theirs else 0)
    return SchemeChange(
        scheme=name,
        title=title,
        baseline_status=ours.status if ours else None,
        other_status=theirs.status if theirs else None,
        kl=value_change(
            (ours.kl if ours else None, ours.kl_stderr if ours else None),
            (theirs.kl if theirs else None, theirs.kl_stderr if theirs else None),
            samples,
        ),
        top1=value_change(
            (ours.top1 if ours else None, ours.top1_stderr if ours else None),
            (theirs.top1 if theirs else None, theirs.top1_stderr if theirs else None),
            samples,
        ),
    )


def value_change(
    ours: tuple[float | None, float | None], theirs: tuple[float | None, float | None], samples: tuple[int, int]
) -> ValueChange:
    """Two means with their standard errors over so many samples → their difference with its interval.

    Welch's: the variance of a difference of independent means is the sum of theirs, with the degrees of freedom of
    Satterthwaite 1946, rounded down. Means over the same text vary together, which makes the true interval narrower.
    """
    (mean, error), (other, other_error) = ours, theirs
    if mean is None or other is None:
        return ValueChange(baseline=mean, other=other, change=None, low=None, high=None)
    difference = other - mean
    if error is None or other_error is None or min(samples) < 2:
        return ValueChange(baseline=mean, other=other, change=difference, low=None, high=None)
    variances = error**2, other_error**2
    total = sum(variances)
    reach = 0.0
    if total:
        freedom = total**2 / sum(part**2 / (count - 1) for part, count in zip(variances, samples, strict=True))
        reach = student_t(LEVEL, max(1, math.floor(freedom)) + 1) * math.sqrt(total)
    return ValueChange(baseline=mean, other=other, change=difference, low=difference - reach, high=difference + reach)


def _channels(baseline: Subject, other: Subject) -> ChannelChange | None:
    ours, theirs = baseline.persistent_channels, other.persistent_channels
    if ours is None or theirs is None or baseline.hidden_size != other.hidden_size:
        return None
    return ChannelChange(
        both=[channel for channel in ours if channel in theirs],
        gone=[channel for channel in ours if channel not in theirs],
        new=[channel for channel in theirs if channel not in ours],
    )


def _groups(baseline: Subject, other: Subject) -> Iterator[GroupChange]:
    """Of each scheme on both sides that ranks by the same measure: the worst groups of either, with both shares."""
    for score in baseline.schemes:
        theirs = other.scheme(score.scheme)
        if theirs is None or theirs.shares_of != score.shares_of:
            continue
        shares = [{row.group: row.share for row in side.worst} for side in (score, theirs)]
        names = dict.fromkeys(row.group for side in (score, theirs) for row in side.worst[:WORST])
        for name in names:
            yield GroupChange(
                scheme=score.scheme,
                group=name,
                shares_of=score.shares_of,
                baseline=shares[0].get(name),
                other=shares[1].get(name),
            )
