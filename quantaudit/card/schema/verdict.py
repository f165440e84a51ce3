"""Findings of rules, and verdicts of policies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.common.findings import Hit, find_rule
from quantaudit.common.outcome import Severity
from quantaudit.policy import PolicyName, Status
from quantaudit.provenance import Row
from quantaudit.quantities import Count, LowerLimit, Magnitude, Number, Perplexity, Share, UpperLimit
from quantaudit.simulate.sensitivity.ranking import Measure

SealState = Literal["sealed", "edited", "unsealed"]
"""Whether a card is as it was written, was edited afterwards, or has no seal by which that would show."""


class Finding(Row):
    """One rule's result."""

    code: str
    severity: Severity
    module: str | None
    message: str
    value: Number
    threshold: Number
    reason: str
    remedy: str

    @classmethod
    def of(cls, code: str, hit: Hit) -> Finding:
        """What a rule of a card or an artifact found; severity and texts are the rule's where the hit has none.

        Raises KeyError where no such rule is registered.
        """
        rule = find_rule(code)
        severity = hit.severity or rule.severity
        return cls(
            code=code,
            # What a range is unmeasured for never passes; a card's findings have no word of their own for it.
            severity="warning" if severity == "inconclusive" else severity,
            module=hit.module,
            message=hit.message,
            value=hit.value,
            threshold=hit.threshold,
            reason=hit.why or rule.why,
            remedy=hit.remedy or rule.remedy,
        )


class WorstGroup(Row):
    """A fused group that explains a verdict."""

    group: str
    damage: Magnitude
    price: Magnitude = None
    ranked_by: Measure = Field(default="damage", description="what the worst groups are the first by")
    share: Share = Field(description="of that, its own over the sum of all groups'")
    amax: Magnitude
    zeroed_fraction: Share
    explanation: str

    @property
    def share_of(self) -> str:
        """What `share` is a share of, in words."""
        return "the estimated KL" if self.ranked_by == "price" else "all damage"


class SchemeVerdict(Row):
    """The answer for one scheme."""

    scheme: str
    title: str
    status: Status
    kl: Magnitude
    kl_low: Magnitude = Field(default=None, description="interval of `kl` at the level of `limits`; null where unknown")
    kl_high: Magnitude = None
    top1: Share
    top1_low: Share = Field(default=None, description="interval of `top1` at the same level")
    top1_high: Share = None
    tokens_to_decide: Count | None = Field(
        default=None,
        description="evaluation tokens that would most likely decide what is inconclusive because an interval crosses "
        "a limit; null for the others",
    )
    perplexity: Perplexity
    perplexity_base: Perplexity
    reason: str
    remedy: str
    worst_groups: list[WorstGroup]


class VerdictLimits(Row):
    """The policy's limits, so that numbers are shown on their own side of them."""

    kl: list[UpperLimit] = Field(
        description="READY up to the first, READY WITH CARE up to the second, nats per token; null is no limit"
    )
    top1: list[LowerLimit] = Field(description="READY down to the first, READY WITH CARE down to the second")
    level: float | None = Field(
        default=None, gt=0, lt=1, description="confidence level of the intervals; null in cards without any"
    )


class Verdict(Row):
    """The answer, by scheme, under a named policy."""

    policy: str
    policy_digest: str | None = Field(
        default=None, description="SHA-256 of what the policy says, reasons included; null in cards without it"
    )
    extends: list[PolicyName] = Field(default=[], description="policies that it builds on, nearest first")
    headline: str
    schemes: list[SchemeVerdict]
    limits: VerdictLimits = Field(default=VerdictLimits(kl=[], top1=[]), description="what the schemes are judged by")
