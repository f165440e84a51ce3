"""What was advised for a recipe, and what llm-compressor really made of one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.card.schema.verdict import Finding
from quantaudit.provenance import Row
from quantaudit.quantities import Count, Magnitude, Perplexity, Share


class AdvicePoint(Row):
    """One mixed recipe between what was written and what costs nothing."""

    name: str
    kept: Share = Field(description="share of the quantized Linears' MACs that keep the recipe's own format")
    estimated_kl: Magnitude = Field(description="from the groups' prices and other simulated recipes, nats per token")
    kl: Magnitude = Field(description="simulated, nats per token")
    kl_stderr: Magnitude
    top1: Share
    options: dict[str, Count] = Field(description="fused groups by what is done to them")


class AdviceChange(Row):
    """A fused group that the advised recipe treats otherwise than the recipe that was given."""

    group: str
    option: str
    title: str
    keeps: bool
    price_before: Magnitude
    price_after: Magnitude
    amax: Magnitude


class AdviceInfo(Row):
    """What was advised instead of a recipe, and what else could have been: simulated, not only estimated."""

    recipe: str
    goal: str
    budget: Magnitude
    met: bool
    tokens: Count = Field(description="evaluation tokens of prices and simulations")
    before: AdvicePoint
    references: list[AdvicePoint] = Field(description="uniform alternatives, such as dynamic everywhere")
    curve: list[AdvicePoint] = Field(description="least KL at given shares of MACs that keep their format")
    advised: AdvicePoint
    changes: list[AdviceChange]


class VerifiedScore(Row):
    """The whole model on the evaluation tokens."""

    kl: Magnitude
    top1: Share
    perplexity: Perplexity
    perplexity_base: Perplexity = Field(default=None, description="the original's; null in older cards")


class ScaleComparison(Row):
    """Saved scales against predicted ones. worst: |saved − predicted| / predicted, and the module where it is.

    Nothing is compared where the recipe changes what scales are taken of (AWQ, SmoothQuant, rotations, AutoRound).
    """

    compared: Count
    worst: Magnitude
    module: str | None


class Verification(Row):
    """What llm-compressor really made of a recipe, and what was predicted.

    outcome: `fail` where what was saved is broken or not as predicted, or where it could not be predicted and is beyond
    the policy's limits; `inconclusive` where it could not be predicted and is within them.
    """

    recipe: str
    digest: str
    pipeline: str
    calibration_samples: Count
    tokens: Count
    input_scales: ScaleComparison
    weight_scales: ScaleComparison
    predicted: VerifiedScore
    with_saved_scales: VerifiedScore | None = Field(description="simulated with the scales as saved")
    actual: VerifiedScore = Field(description="the saved checkpoint, loaded again")
    unpredicted: list[str] = Field(description="what of the recipe is in no prediction, so that the two differ anyway")
    kl_error: Magnitude = Field(description="|predicted − actual| / actual; null where something is unpredicted")
    findings: list[Finding]
    agrees: bool | None = Field(description="whether it is as predicted; null where something is unpredicted")
    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str
