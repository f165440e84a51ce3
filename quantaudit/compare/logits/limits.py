"""`--fail-on` of checkpoints: whether one is further from the base than a limit. What is not known never passes."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.card.text import number, percent
from quantaudit.common.outcome import Outcome
from quantaudit.compare.limits import Limit, parse_limit
from quantaudit.compare.logits.records import Pair
from quantaudit.compare.report import Caveat, Decision
from quantaudit.errors import UsageError

MEASURES = ("kl", "top1")
FORMS = "kl=NATS or top1=SHARE"


def parse_limits(texts: Sequence[str]) -> list[Limit]:
    """Limits on checkpoints. Raises UsageError, also for one that cards alone have."""
    limits = [parse_limit(text) for text in texts]
    for limit in limits:
        if limit.measure not in MEASURES:
            raise UsageError(
                "a limit on cards, which checkpoints do not have",
                where=f"--fail-on {limit.text}",
                hint=f"one of {FORMS}",
            )
    return limits


def decide(limit: Limit, pair: Pair, caveats: Sequence[Caveat], few: str | None = None) -> Decision:
    """One limit on one pair, by the upper end of the interval. caveats: about the base, or the other model.

    few: why this is too little text to show that a model is near, as a sentence; None where it is enough.
    """
    outcome, reason = _answer(limit, pair, caveats)
    if few is not None and outcome == "pass":
        outcome, reason = "inconclusive", f"{reason}. {few}"
    return Decision(limit=limit.text, subject=pair.subject, outcome=outcome, reason=reason)


def _answer(limit: Limit, pair: Pair, caveats: Sequence[Caveat]) -> tuple[Outcome, str]:
    blocking = next((row for row in caveats if row.undecided), None)
    if blocking is not None:
        return "inconclusive", f"{blocking.code}: {blocking.message}"
    broken = [row for row in caveats if row.code == "QA714"]
    if broken:
        # A base that is broken itself says nothing of the other.
        ours = any(row.subjects == [0] for row in broken)
        return ("inconclusive" if ours else "fail"), f"{broken[0].code}: {broken[0].message}"
    if limit.measure == "kl":
        mean = pair.kl.mean
        return _compare(limit, (mean.value, mean.low, mean.high), "KL")
    same = pair.top1
    changed = [None if value is None else 1 - value for value in (same.value, same.high, same.low)]
    return _compare(limit, (changed[0], changed[1], changed[2]), "top-1 changes at")


def _compare(limit: Limit, found: tuple[float | None, float | None, float | None], name: str) -> tuple[Outcome, str]:
    """found: the mean and the ends of its interval."""
    value, low, high = found
    if value is None:
        return "inconclusive", f"{name}: not known"

    def show(shown: float) -> str:
        return number(shown, (limit.most,)) if limit.measure == "kl" else percent(shown, (limit.most,))

    text = f"{name} {show(value)}"
    if low is None or high is None:
        return "inconclusive", f"{text}, and how sure that is is not known: of two samples at least it would be"
    text = f"{text} ({show(low)} to {show(high)})"
    if low > limit.most:
        return "fail", text
    return ("pass" if high <= limit.most else "inconclusive"), text
