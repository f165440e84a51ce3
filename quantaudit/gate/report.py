"""What a gate says: findings and the outcome, as written to JSON and read by every other format. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.card.schema.verdict import SealState
from quantaudit.common.outcome import EXIT_CODES, GateSeverity, Outcome
from quantaudit.common.rounding import limit_percentage, percentage, significant
from quantaudit.policy import PolicyName, identity_of
from quantaudit.provenance import Row
from quantaudit.quantities import Count, LowerLimit, Magnitude, Number, Share, UpperLimit

SCHEMA_VERSION = "1.0"
"""History: 1.0 first edition."""


class GateFinding(Row):
    """One rule's result on one recipe."""

    code: str
    title: str
    severity: GateSeverity
    fails: bool = Field(description="whether it fails the gate under the policy")
    module: str | None = Field(description="module or fused group, where there is one")
    line: int | None = Field(description="line of the recipe, where there is one")
    message: str
    value: Number
    threshold: Number
    reason: str
    remedy: str


class SchemeUse(Row):
    """How many Linears a recipe quantizes in one way."""

    title: str
    modules: int


class Score(Row):
    """What the recipe does to the whole model, and how that is known."""

    source: Literal["measured", "estimated", "unknown"]
    kl: Magnitude = Field(default=None, description="mean KL(base‖quantized) of the logits, nats per token")
    kl_stderr: Magnitude = Field(default=None, description="standard error over samples; null for an estimate")
    kl_low: Magnitude = Field(
        default=None,
        description="interval of `kl` at the policy's level, of an estimate by how far estimates of the card's recipes "
        "miss, or by the policy's margin where too few were simulated; of an unknown KL what it is at least",
    )
    kl_high: Magnitude = None
    top1: Share = Field(default=None, description="share of positions whose most likely token is unchanged")
    top1_stderr: Magnitude = Field(default=None, description="standard error over samples")
    top1_low: Share = Field(default=None, description="interval of `top1` at the policy's level")
    top1_high: Share = None
    tokens: Count | None = Field(default=None, description="evaluation tokens that the score, or its prices, rest on")
    samples: Count | None = Field(default=None, description="samples that these tokens are of")
    tokens_to_decide: Count | None = Field(
        default=None, description="evaluation tokens that would most likely decide what an interval leaves open"
    )
    nonfinite: bool = False
    approximate: list[str] = Field(default=[], description="what of the recipe these numbers hold nearly, not exactly")
    left_out: list[str] = Field(default=[], description="what of the recipe is not in these numbers")
    note: str


class Limits(Row):
    """The policy's limits on a whole model: comfortable up to `ready`, acceptable up to `care`."""

    kl: list[UpperLimit] = Field(description="ready and care, nats per token: a score may not lie above; null is none")
    top1: list[LowerLimit] = Field(description="ready and care, shares of one: a score may not lie below")
    level: float | None = Field(default=None, description="confidence level of the intervals")


class GateReport(Row):
    """The answer for one recipe on one card under one policy."""

    schema_version: str = SCHEMA_VERSION
    quantaudit_version: str
    recipe: str
    digest: str = Field(description="identity of what the recipe does to the model")
    model: str
    fingerprint: str
    seal: SealState = Field(default="unsealed", description="whether the card is as it was written")
    policy: str
    policy_digest: str = Field(default="", description="SHA-256 of what the policy says, reasons included")
    extends: list[PolicyName] = Field(default=[], description="policies that it builds on, nearest first")
    limits: Limits = Field(default=Limits(kl=[], top1=[]), description="what the score is held against")
    outcome: Outcome
    headline: str
    linears: int = Field(description="Linears of the model")
    quantized: list[SchemeUse]
    score: Score
    findings: list[GateFinding]
    rules: dict[str, str] = Field(description="code → title of every rule that was applied")

    @property
    def policy_identity(self) -> str:
        """The policy, and those that it builds on, each with the first digits of its digest."""
        return identity_of(PolicyName(name=self.policy, digest=self.policy_digest), *self.extends)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.outcome]


def score_text(score: Score, limits: Limits) -> str:
    """KL and top-1 in a line, with their intervals, each on its own side of the policy's limits; how they are known."""
    if score.kl is None:
        return f"KL unknown: {score.note}"
    parts = [f"KL {significant(score.kl, *limits.kl)} nats per token"]
    if score.kl_low is not None and score.kl_high is not None:
        interval = f"{significant(score.kl_low, *limits.kl)} to {significant(score.kl_high, *limits.kl)}"
        parts[0] += f" ({interval}{_at(score, limits)})"
    elif score.kl_stderr:
        parts = [f"KL {significant(score.kl, *limits.kl)} ± {score.kl_stderr:.1g} nats per token"]
    if score.top1 is not None:
        parts.append(f"{percentage(score.top1, *limits.top1)} of top-1 tokens kept")
        if score.top1_low is not None and score.top1_high is not None:
            ends = (percentage(end, *limits.top1) for end in (score.top1_low, score.top1_high))
            parts[1] += f" ({' to '.join(ends)})"
    return f"{', '.join(parts)}: {score.note}"


def _at(score: Score, limits: Limits) -> str:
    """At which level the interval of a measured KL is."""
    return f" at {limit_percentage(limits.level)}" if limits.level is not None and score.source == "measured" else ""
