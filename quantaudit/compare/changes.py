"""What changed from one subject to another, and by how much. Pure functions over subjects."""

from __future__ import annotations

from collections.abc import Iterator

from quantaudit.compare.intervals import MEASURES, Mean, value_change
from quantaudit.compare.report import Change, ChannelChange, GroupChange, PeakChange, SchemeChange
from quantaudit.compare.subjects.subject import Conditions, PeakPlace, SchemeScore, Subject
from quantaudit.policy import Status

ORDER: tuple[Status, ...] = ("READY", "READY WITH CARE", "NOT READY")
"""Verdicts, best first; what is inconclusive has no place among them."""
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
    same = _same_samples(baseline.conditions, other.conditions)
    return [_scheme(name, titles[name], baseline.scheme(name), other.scheme(name), same_samples=same) for name in names]


def _scheme(
    name: str, title: str, ours: SchemeScore | None, theirs: SchemeScore | None, *, same_samples: bool
) -> SchemeChange:
    repeated = same_samples and _measured_alike(ours, theirs)
    kl, top1 = (
        value_change(Mean.of(ours, measure), Mean.of(theirs, measure), same_samples=same_samples, repeated=repeated)
        for measure in MEASURES
    )
    return SchemeChange(
        scheme=name,
        title=title,
        baseline_status=ours.status if ours else None,
        other_status=theirs.status if theirs else None,
        kl=kl,
        top1=top1,
    )


def _measured_alike(ours: SchemeScore | None, theirs: SchemeScore | None) -> bool:
    """Whether all numbers of two scores are equal, by domain and group too: those of one measurement, or of two that
    no text told apart. Their verdicts may be by two policies.
    """
    if ours is None or theirs is None:
        return False
    return ours.model_copy(update={"status": theirs.status}) == theirs


def steps_worse(before: Status | None, after: Status | None) -> int | None:
    """How many statuses a verdict fell; below 0 where it rose. None where one is inconclusive, or was not judged."""
    if before not in ORDER or after not in ORDER:
        return None
    return ORDER.index(after) - ORDER.index(before)


def _same_samples(ours: Conditions, theirs: Conditions) -> bool:
    """Whether scores rest on the same samples of the same text."""
    keys = [
        (row.corpus_sha256, row.special_tokens, row.evaluation_sha256, row.evaluation_tokens) for row in (ours, theirs)
    ]
    return None not in keys[0] and keys[0] == keys[1]


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
