"""Subjects and limits → the comparison: what has to be said first, every change, what all show together, the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantaudit._version import __version__
from quantaudit.common.outcome import SEVERITY_ORDER, Outcome
from quantaudit.compare.caveats import caveats, own_caveats
from quantaudit.compare.changes import change
from quantaudit.compare.intervals import LEVEL
from quantaudit.compare.landscape import facts
from quantaudit.compare.limits import Limit, decide
from quantaudit.compare.report import Caveat, Comparison
from quantaudit.compare.subjects.subject import Subject


def compare(subjects: Sequence[Subject], limits: Sequence[Limit] = ()) -> Comparison:
    """Every subject against the first. subjects: two at least, with labels of their own."""
    baseline = subjects[0]
    others = list(enumerate(subjects))[1:]
    said = [row for index, subject in enumerate(subjects) for row in own_caveats(index, subject)]
    said += [row for index, subject in others for row in caveats(index, baseline, subject)]
    changes = [change(index, baseline, subject) for index, subject in others]
    decisions = [
        decide(limit, row, (baseline, subjects[row.subject]), about(said, row.subject))
        for row in changes
        for limit in limits
    ]
    return Comparison(
        quantaudit_version=__version__,
        level=LEVEL,
        subjects=list(subjects),
        caveats=gathered(said),
        changes=changes,
        landscape=facts(subjects),
        decisions=decisions,
        outcome=overall(row.outcome for row in decisions) if limits else None,
    )


def gathered(said: Iterable[Caveat]) -> list[Caveat]:
    """Caveats of one code and one message as one, about all of their subjects; gravest first."""
    rows: dict[tuple[str, str], Caveat] = {}
    for row in said:
        first = rows.setdefault((row.code, row.message), row)
        if first is not row:
            rows[row.code, row.message] = first.model_copy(update={"subjects": [*first.subjects, *row.subjects]})
    return sorted(rows.values(), key=lambda row: (SEVERITY_ORDER[row.severity], row.code))


def overall(outcomes: Iterable[Outcome]) -> Outcome:
    """A known failure is a failure, whatever else is unknown; what is unknown never passes."""
    seen = set(outcomes)
    return "fail" if "fail" in seen else "inconclusive" if "inconclusive" in seen else "pass"


def about(said: Sequence[Caveat], index: int) -> list[Caveat]:
    """What concerns the baseline, or the change to one subject."""
    return [row for row in said if row.subjects[0] in (0, index)]
