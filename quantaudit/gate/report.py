"""What a gate says: findings and the outcome, as written to JSON and read by every other format. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.card.schema.verdict import SealState
from quantaudit.common.outcome import EXIT_CODES, GateSeverity, Outcome
from quantaudit.provenance import Number, Row

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
    kl: Number = Field(default=None, description="mean KL(base‖quantized) of the logits, nats per token")
    kl_stderr: Number = Field(default=None, description="standard error over samples; null for an estimate")
    top1: Number = Field(default=None, description="share of positions whose most likely token is unchanged")
    tokens: int | None = None
    nonfinite: bool = False
    approximate: list[str] = Field(default=[], description="what of the recipe these numbers hold nearly, not exactly")
    left_out: list[str] = Field(default=[], description="what of the recipe is not in these numbers")
    note: str


class Limits(Row):
    """The policy's limits on a whole model: comfortable up to `ready`, acceptable up to `care`."""

    kl: list[float] = Field(description="ready and care, nats per token: a score may not lie above")
    top1: list[float] = Field(description="ready and care, shares of one: a score may not lie below")


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
    limits: Limits = Field(default=Limits(kl=[], top1=[]), description="what the score is held against")
    outcome: Outcome
    headline: str
    linears: int = Field(description="Linears of the model")
    quantized: list[SchemeUse]
    score: Score
    findings: list[GateFinding]
    rules: dict[str, str] = Field(description="code → title of every rule that was applied")

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.outcome]
