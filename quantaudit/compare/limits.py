"""`--fail-on`: whether a subject regressed beyond a limit. What cannot be decided never passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from quantaudit.card.text import number, percent
from quantaudit.common.outcome import Outcome
from quantaudit.common.rounding import limit_number
from quantaudit.compare.changes import ORDER, steps_worse
from quantaudit.compare.report import Caveat, Change, Decision, PeakChange, SchemeChange, ValueChange
from quantaudit.compare.subjects.subject import LINEAR_INPUT, RESIDUAL, SchemeScore, Subject
from quantaudit.errors import UsageError

Measure = Literal["verdict", "kl", "top1", "peak"]
FORMS = "verdict, kl=NATS, top1=SHARE or peak=RATIO"
_PARTS = {"verdict": "verdicts", "kl": "scores", "top1": "scores", "peak": "peaks"}
_PEAKS = {RESIDUAL: "the residual stream", LINEAR_INPUT: "the inputs of Linears"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far a measure may get worse.

    most: a rise of the KL in nats per token, a fall of top-1 as a share, a ratio of peaks; 0 for verdicts.
    """

    measure: Measure
    most: float

    @property
    def text(self) -> str:
        """As it is given."""
        return self.measure if self.measure == "verdict" else f"{self.measure}={limit_number(self.most)}"


def parse_limit(text: str) -> Limit:
    """`kl=0.01` as a limit. Raises UsageError."""
    name, equals, value = text.partition("=")
    measure = next((item for item in get_args(Measure) if item == name.strip()), None)
    if measure is None or (measure == "verdict") == bool(equals):
        raise UsageError("no such limit", where=f"--fail-on {text}", hint=f"one of {FORMS}")
    if measure == "verdict":
        return Limit(measure=measure, most=0.0)
    try:
        most = float(value)
    except ValueError:
        most = math.nan
    least = 1.0 if measure == "peak" else 0.0
    if not (math.isfinite(most) and most >= least and (measure != "top1" or most <= 1)):
        kind = {"peak": "a ratio of 1 or more", "top1": "a share from 0 to 1"}.get(measure, "a number of 0 or more")
        raise UsageError(f"not {kind}: {value[:40]!r}", where=f"--fail-on {measure}", hint=f"such as {measure}=1")
    return Limit(measure=measure, most=most)


def decide(limit: Limit, change: Change, subjects: tuple[Subject, Subject], caveats: Sequence[Caveat]) -> Decision:
    """One limit on one change. subjects: the baseline and the other; caveats: those about either."""
    blocking = next((row for row in caveats if _PARTS[limit.measure] in row.undecided), None)
    if blocking is not None:
        reason = f"{blocking.code}: {blocking.message}"
        return Decision(limit=limit.text, subject=change.subject, outcome="inconclusive", reason=reason)
    split = {part.removeprefix("scheme ") for row in caveats for part in row.undecided if part.startswith("scheme ")}
    answers = list(_answers(limit, change, subjects, split))
    if not answers:
        answers = [("inconclusive", "the baseline has nothing of it")]
    for outcome in ("fail", "inconclusive", "pass"):
        reasons = [reason for answer, reason in answers if answer == outcome]
        if reasons:
            return Decision(limit=limit.text, subject=change.subject, outcome=outcome, reason="; ".join(reasons))
    raise ValueError("an answer of no outcome")


def _answers(
    limit: Limit, change: Change, subjects: tuple[Subject, Subject], split: set[str]
) -> Iterator[tuple[Outcome, str]]:
    """One answer, with its reason, for each scheme or kind of tensor that the baseline has."""
    baseline, other = subjects
    if limit.measure == "peak":
        more = (other.unmeasured or 0) > (baseline.unmeasured or 0)
        yield from (_peak(limit, row, more) for row in change.peaks if row.kind in _PEAKS and row.baseline is not None)
        return
    for row in change.schemes:
        ours, theirs = baseline.scheme(row.scheme), other.scheme(row.scheme)
        if ours is None or (limit.measure == "verdict" and ours.status is None):
            continue
        if theirs is None:
            yield "inconclusive", f"{row.title} was not simulated on the other side"
        elif row.scheme in split:
            yield "inconclusive", f"{row.title} quantizes in another way on the other side"
        elif limit.measure == "verdict":
            yield _verdict(row)
        else:
            yield _score(limit, row, ours, theirs)


def _peak(limit: Limit, row: PeakChange, more_unmeasured: bool) -> tuple[Outcome, str]:
    name = _PEAKS[row.kind]
    if row.other is None:
        return "inconclusive", f"{name}: not measured on the other side"
    if row.other.nonfinite and row.baseline is not None and not row.baseline.nonfinite:
        return "fail", f"{name}: {row.other.nonfinite:,} values are not finite any more"
    if row.ratio is None or row.other.nonfinite:
        return "inconclusive", f"{name}: the ratio of peaks is not known"
    text = f"{name}: {number(row.ratio, (limit.most,))} times the baseline's peak"
    if row.ratio > limit.most:
        return "fail", text
    if more_unmeasured and row.kind == LINEAR_INPUT:
        return "inconclusive", f"{text}, and more Linears were not measured"
    return "pass", text


def _verdict(row: SchemeChange) -> tuple[Outcome, str]:
    before, after = row.baseline_status, row.other_status
    text = f"{row.title}: {before} → {after or 'not judged'}"
    steps = steps_worse(before, after)
    if before == ORDER[-1] or after == ORDER[0]:  # nothing is worse than the one, or better than the other
        return "pass", text
    if steps is None:
        return "inconclusive", text
    return ("fail" if steps > 0 else "pass"), text


def _score(limit: Limit, row: SchemeChange, ours: SchemeScore, theirs: SchemeScore) -> tuple[Outcome, str]:
    if theirs.nonfinite and not ours.nonfinite:
        if theirs.kl is None:
            return "fail", f"{row.title}: NaN or infinite values on the other side"
        return "inconclusive", f"{row.title}: some of its static ranges are missing on the other side"
    falls = limit.measure == "top1"
    # How much worse it got: KL that rises, top-1 that falls.
    value = _turned(row.top1) if falls else row.kl
    if value.change is None:
        return "inconclusive", f"{row.title}: not known on one side"

    def show(worse: float | None) -> str:
        return percent(worse, (limit.most,)) if falls else number(worse, (limit.most,))

    better = value.change < 0
    shown = _turned(value) if better else value
    text = (
        f"{row.title}: {'top-1' if falls else 'KL'} {'rises' if better == falls else 'falls'} by {show(shown.change)}"
    )
    if value.low is None or value.high is None:
        return "inconclusive", f"{text}, and how sure that is is not known"
    if value.low < value.high:
        text = f"{text} ({show(shown.low)} to {show(shown.high)})"
    if value.low > limit.most:
        return "fail", text
    return ("pass" if value.high <= limit.most else "inconclusive"), text


def _turned(value: ValueChange) -> ValueChange:
    """The same change, seen the other way: a fall where it was a rise."""
    if value.change is None:
        return value
    low, high = (None if end is None else 0.0 - end for end in (value.high, value.low))  # no negative zero
    return value.model_copy(update={"change": 0.0 - value.change, "low": low, "high": high})
